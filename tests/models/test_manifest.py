"""Manifests and model ids: vectors that another implementation can check itself against."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId
from p2pnode.models.manifest import (
    FILES_MAX,
    FORMATS,
    Manifest,
    ModelFile,
    TemplateOverhead,
    model_id,
    model_id_text,
    parse_model_id,
)

VECTOR = Manifest(
    architecture="llama",
    quantisation="Q4_1",
    n_ctx=2048,
    format="gguf",
    files=(ModelFile(path="model.gguf", size_bytes=1000, sha256="11" * 32, chunks="44" * 32),),
    tokenizer="22" * 32,
    chat_template="33" * 32,
    template_overhead=TemplateOverhead(fixed=10, per_message=5),
)
CANONICAL = (
    '{"architecture":"llama","chat_template":"'
    + "33" * 32
    + '","files":[{"chunks":"'
    + "44" * 32
    + '","path":"model.gguf","sha256":"'
    + "11" * 32
    + '","size_bytes":1000}],"format":"gguf","n_ctx":2048,"name":"","quantisation":"Q4_1",'
    + '"template_overhead":{"fixed":10,"per_message":5},"tokenizer":"'
    + "22" * 32
    + '"}'
)


def test_the_canonical_bytes_and_the_id_are_as_published() -> None:
    assert VECTOR.canonical() == CANONICAL.encode()
    assert model_id(VECTOR) == hashlib.sha256(b"p2pnode/model/1\0" + CANONICAL.encode()).digest()
    assert model_id_text(model_id(VECTOR)) == "m15xu6lnbvtsyyy6xztii4zu35wrzdw2n3jkdmccvwndgjjzlsps2q"


@pytest.mark.parametrize(
    "change",
    [
        {"files": (replace(VECTOR.files[0], sha256="66" * 32),)},
        {"files": (replace(VECTOR.files[0], chunks="66" * 32),)},
        {"files": (replace(VECTOR.files[0], size_bytes=1001),)},
        {"format": "upstream", "files": (), "name": "llama3.2"},
        {"architecture": "qwen3"},
        {"quantisation": "Q8_0"},
        {"n_ctx": 4096},
        {"tokenizer": "44" * 32},
        {"chat_template": "44" * 32},
        {"template_overhead": TemplateOverhead(fixed=11, per_message=5)},
    ],
)
def test_every_field_counts_in_the_id(change: dict[str, object]) -> None:
    assert model_id(replace(VECTOR, **change)) != model_id(VECTOR)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokenizer", "short"),
        ("tokenizer", "AB" * 32),
        ("format", "zip"),
        ("name", "llama3.2"),
        ("files", ()),
        ("architecture", "two words"),
        ("quantisation", ""),
        ("n_ctx", 0),
        ("n_ctx", True),
        ("template_overhead", TemplateOverhead(fixed=-1, per_message=0)),
    ],
)
def test_a_value_that_is_none_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(VECTOR, **{field: value})  # type: ignore[arg-type]


def test_a_table_that_lacks_or_adds_a_key_is_no_manifest() -> None:
    table = asdict(VECTOR)
    assert Manifest.from_mapping(table) == VECTOR
    for wrong in (
        table | {"more": 1},
        {k: v for k, v in table.items() if k != "n_ctx"},
        table | {"files": "model.gguf"},
        table | {"files": [1]},
        table | {"files": [{"path": "model.gguf"}]},
        {},
    ):
        with pytest.raises(ConfigError, match="manifest"):
            Manifest.from_mapping(wrong)


@given(st.binary(min_size=32, max_size=32))
def test_an_id_survives_being_written_down(raw: bytes) -> None:
    text = model_id_text(ModelId(raw))
    assert parse_model_id(text) == raw
    assert len(text) == 54


@given(st.text(max_size=60))
def test_no_other_text_is_an_id(text: str) -> None:
    try:
        value = parse_model_id(text)
    except ConfigError:
        return
    assert model_id_text(value) == text


def test_only_the_canonical_spelling_of_an_id_is_one() -> None:
    text = model_id_text(model_id(VECTOR))
    last = "abcdefghijklmnopqrstuvwxyz234567"["abcdefghijklmnopqrstuvwxyz234567".index(text[-1]) ^ 1]
    for wrong in (text.upper(), text[:-1], text + "a", text[2:], text[:-1] + last, ""):
        with pytest.raises(ConfigError, match="no model id"):
            parse_model_id(wrong)


def test_a_client_can_bound_what_it_may_be_billed() -> None:
    assert VECTOR.template_overhead.tokens_max(messages=3, content_bytes=100) == 125


def files(*names: str) -> tuple[ModelFile, ...]:
    return tuple(ModelFile(path=name, size_bytes=1, sha256="55" * 32, chunks="66" * 32) for name in names)


FOLDER = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        ("gguf", ("model.gguf",)),
        ("gguf", ("model-00001-of-00002.gguf", "model-00002-of-00002.gguf")),
        ("safetensors", FOLDER),
        ("exl2", ("config.json", "output.safetensors", "tokenizer.json")),
        ("gptq", ("config.json", "model.safetensors", "quantize_config.json", "tokenizer.json")),
    ],
)  # fmt: skip
def test_the_files_of_each_format(kind: str, paths: tuple[str, ...]) -> None:
    made = replace(VECTOR, format=kind, files=files(*paths))  # type: ignore[arg-type]
    assert (made.size_bytes, made.verified) == (len(paths), True)


@pytest.mark.parametrize(
    ("kind", "paths", "reason"),
    [
        ("gguf", ("other.gguf",), r"model\.gguf"),
        ("gguf", ("model-00001-of-00003.gguf", "model-00002-of-00003.gguf"), "and so on"),
        ("gguf", FOLDER, "for gguf"),
        ("safetensors", ("model.gguf",), "config.json is missing"),
        ("safetensors", ("config.json", "model.safetensors"), "tokenizer.json is missing"),
        ("safetensors", ("config.json", "tokenizer.json"), "with weights"),
        (
            "safetensors",
            ("config.json", "model.py", "model.safetensors", "tokenizer.json"),
            "model.py is none",
        ),
        (
            "safetensors",
            ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json"),
            "is none",
        ),
        ("safetensors", tuple(reversed(FOLDER)), "sorted by path"),
        ("safetensors", ("A.safetensors", "a.safetensors", *FOLDER[::2]), "whatever the case"),
        ("safetensors", ("a.safetensors", "a.safetensors", *FOLDER[::2]), "whatever the case"),
        ("upstream", ("model.gguf",), "empty for upstream"),
        ("exl2", tuple(f"{n}.safetensors" for n in range(FILES_MAX + 1)), "1 to 1024 files"),
    ],
)
def test_what_is_no_whole_model_is_refused(kind: str, paths: tuple[str, ...], reason: str) -> None:
    name = "served" if kind == "upstream" else ""
    with pytest.raises(ConfigError, match=reason):
        replace(VECTOR, format=kind, files=files(*paths), name=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["../../x", "/etc/x", "C:\\x", "a/../b", "x\0", "aux.json", ".git"])
def test_a_manifest_that_names_a_place_outside_of_its_folder_is_refused_in_words(path: str) -> None:
    table = asdict(replace(VECTOR, format="safetensors", files=files(*FOLDER)))
    table["files"] = [
        *table["files"],
        {"path": path, "size_bytes": 1, "sha256": "55" * 32, "chunks": "66" * 32},
    ]
    with pytest.raises(ConfigError, match=r"no name of a model's file.*Nothing was written"):
        Manifest.from_mapping(table)


@pytest.mark.parametrize(
    "file",
    [
        {"path": "model.gguf", "size_bytes": -1, "sha256": "55" * 32},
        {"path": "model.gguf", "size_bytes": True, "sha256": "55" * 32},
        {"path": "model.gguf", "size_bytes": 1 << 60, "sha256": "55" * 32},
        {"path": "model.gguf", "size_bytes": 1, "sha256": "AB" * 32},
        {"path": "model.gguf", "size_bytes": 1, "sha256": "55" * 32, "chunks": "short"},
        {"path": "model.gguf", "size_bytes": 0, "sha256": "55" * 32},
    ],
)
def test_a_file_has_a_size_and_a_hash(file: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="model manifest"):
        Manifest.from_mapping(asdict(VECTOR) | {"files": [{"chunks": "66" * 32} | file]})


def test_only_what_a_host_says_of_itself_proves_no_weights() -> None:
    upstream = replace(VECTOR, format="upstream", files=(), name="llama3.2:3b")
    assert (upstream.verified, upstream.size_bytes) == (False, 0)
    assert VECTOR.verified
    assert set(FORMATS) >= {"gguf", "upstream"}
    with pytest.raises(ConfigError, match="name"):
        replace(upstream, name="")
