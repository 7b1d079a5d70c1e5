"""Names of models: found by name, id or path; nearest name suggested; sources parsed."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.errors import ConfigError
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue, parse_catalogue
from p2pnode.models.manifest import model_id_text
from p2pnode.models.pull.sources import HttpSource, PypiSource, parse_source

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
        ("a = 1", "needs source and manifest"),
        ("[a]\nsource = 'x'", "needs source and manifest"),
        (SHIPPED.replace("[smollm2-135m-instruct]", "[smollm2-135m-instruct]\nmore = 1"), "needs source"),
        (SHIPPED.replace("smollm2-135m-instruct", '"-x"'), "no model name"),
        (SHIPPED.replace('licence = "Apache-2.0"', "licence = 2"), "are texts"),
        (SHIPPED.replace("n_ctx = 8192", ""), "n_ctx"),
        (SHIPPED.replace("pypi:", "ftp:"), "no model source"),
    ],
)
def test_a_wrong_catalogue_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_catalogue(text, "own.toml")


def test_sources_are_parsed() -> None:
    assert parse_source("pypi:a-b==1.0#c/d e.gguf") == PypiSource("a-b", "1.0", "c/d e.gguf")
    assert parse_source("https://host/x.gguf") == HttpSource("https://host/x.gguf")


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
    ],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no model source"):
        parse_source(text)
