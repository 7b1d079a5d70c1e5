"""Names of models: found by name, id or path; nearest name suggested; sources parsed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.errors import ConfigError
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue, parse_catalogue
from p2pnode.models.manifest import model_id_text
from p2pnode.models.pull.sources import HttpSource, HubSource, PypiSource, parse_source, places
from tests.models import model_folders
from tests.models.test_manifest import VECTOR, files

SHIPPED = (Path(__file__).parents[2] / "models" / "catalogue.toml").read_text(encoding="utf-8")


def test_the_default_model_is_found_by_name_and_by_id() -> None:
    catalogue = Catalogue.load()
    entry = catalogue.find(DEFAULT_MODEL)
    assert entry.licence == "Apache-2.0"
    assert entry.model_id is not None
    assert catalogue.find(model_id_text(entry.model_id)) is entry
    assert catalogue.find(DEFAULT_MODEL.upper()) is entry
    assert list(catalogue) == [entry]


def test_any_gguf_file_is_an_entry_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "My Model (1).gguf"
    path.write_bytes(b"x")
    entry = Catalogue.load().find(str(path))
    assert (entry.name, entry.path, entry.manifest, entry.model_id) == ("my-model-1", path, None, None)


def test_a_folder_and_a_part_of_a_split_file_are_entries_too(tmp_path: Path) -> None:
    folder = model_folders.write(tmp_path / "My-Model-exl2", model_folders.FILES)
    entry = Catalogue.load().find(str(folder))
    assert (entry.name, entry.path) == ("my-model-exl2", folder)
    part = tmp_path / "Big-00002-of-00003.gguf"
    part.write_bytes(b"x")
    assert Catalogue.load().find(str(part)).name == "big"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135m-instrct", r"did you mean 'smollm2-135m-instruct'\?"),
        ("gpt-9", "known are smollm2-135m-instruct"),
        ("no/such/file.gguf", "no such file"),
        ("m1" + "a" * 52, "unknown model"),
    ],
)
def test_an_unknown_model_names_what_is_near(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        Catalogue.load().find(name)


def test_a_catalogue_of_ones_own_adds_names_and_wins(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(SHIPPED.replace("smollm2-135m-instruct", "mine"), encoding="utf-8")
    catalogue = Catalogue.load(own)
    assert {entry.name for entry in catalogue} == {"mine", DEFAULT_MODEL}
    with pytest.raises(ConfigError, match="check the path"):
        Catalogue.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[a", "own.toml"),
        ("a = 1", "is a table of aliases, description"),
        ("[a]\nsource = 'x'", "manifest must be a table"),
        (SHIPPED.replace("[smollm2-135m-instruct]", "[smollm2-135m-instruct]\nmore = 1"), "is a table of"),
        (SHIPPED.replace("smollm2-135m-instruct", '"-x"'), "no model name"),
        (SHIPPED.replace('licence = "Apache-2.0"', "licence = 2"), "licence must be at most 64"),
        (SHIPPED.replace('source = "', 'source = [] # "'), "source must be at least one"),
        (SHIPPED.replace("model.gguf", "../../x.gguf"), "no name of a model's file"),
        (SHIPPED.replace("n_ctx = 8192", ""), "n_ctx"),
        (SHIPPED.replace("pypi:", "ftp:"), "no model source"),
    ],
)
def test_a_wrong_catalogue_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_catalogue(text, "own.toml")


def test_sources_are_parsed() -> None:
    assert parse_source("pypi:a-b==1.0#c/d e.gguf") == PypiSource("a-b", "1.0", "c/d e.gguf")
    assert parse_source("pypi:a-b==1.0#c/") == PypiSource("a-b", "1.0", "c/")
    assert parse_source("hf:a/b-c@v1.0#x y/z.gguf") == HubSource("a/b-c", "v1.0", "x y/z.gguf")
    assert parse_source("hf:a/b@main") == HubSource("a/b", "main", "")
    assert parse_source("https://host/x.gguf") == HttpSource("https://host/x.gguf")


def test_a_source_names_a_file_the_first_part_or_a_folder() -> None:
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    folder = replace(VECTOR, format="exl2", files=files(*names))
    split = replace(VECTOR, files=files(*(f"model-0000{n}-of-00002.gguf" for n in (1, 2))))
    assert places("https://host/dir/", folder) == [f"https://host/dir/{name}" for name in names]
    assert places("a/Big.gguf", VECTOR) == ["a/Big.gguf"]
    parts = [f"a/Big-Q4-0000{n}-of-00002.gguf?x=1" for n in (1, 2)]
    assert places(parts[0], split) == parts
    for path, manifest in (("https://host/dir", folder), ("a/Big.gguf", split), (parts[1], split)):
        with pytest.raises(ConfigError, match="is to be"):
            places(path, manifest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "file:///etc/passwd",
        "pypi:--index-url==1.0#x",
        "pypi:a==1.0 --index-url=x#x",
        "pypi:a==1.0",
        "pypi:a#x",
        "pypi:a==1.0#/etc/passwd",
        "pypi:a==1.0#../x",
        "pypi:a==-e#x",
        "http://",
        "https://host name/x",
        "hf:a@main",
        "hf:a/b",
        "hf:a/b@-x",
        "hf:../b@main",
        "hf:a/b@main#../x",
        "hf:a/b@main#/x",
    ],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no model source"):
        parse_source(text)
