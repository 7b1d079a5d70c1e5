"""Model folders: which files they are, what follows from them, and what is wrong with half of one."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.models.folder import FOLDER_TOKENIZER, folder_tokenizer_blob, read_folder
from p2pnode.models.local_models import describe_at
from p2pnode.models.manifest import Manifest, TemplateOverhead, model_id
from tests.models.model_folders import (
    CONFIG,
    FILES,
    INDEX,
    SETTINGS,
    SHARDED,
    SHARDS,
    TEMPLATE,
    TOKENIZER,
    safetensors,
    text,
    write,
)

Change = dict[str, bytes | None]


def manifest_of(tmp_path: Path, change: Change | None = None, base: dict[str, bytes] = FILES) -> Manifest:
    changed = {name: data for name, data in {**base, **(change or {})}.items() if data is not None}
    root = tmp_path / f"folder{len(list(tmp_path.iterdir()))}"
    return describe_at("mine", write(root, changed)).manifest


def test_a_folder_gives_its_manifest(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    assert (manifest.architecture, manifest.quantisation, manifest.n_ctx) == ("tiny", "BF16", 128)
    assert (manifest.format, [file.path for file in manifest.files]) == ("safetensors", sorted(FILES))
    assert manifest.size_bytes == sum(map(len, FILES.values()))
    assert manifest.template_overhead == TemplateOverhead(fixed=8 + 3, per_message=9 + 1)


def test_what_decides_nothing_is_no_part_of_it(tmp_path: Path) -> None:
    more: Change = {
        "README.md": b"# x",
        "pytorch_model.bin": b"x",
        "modeling_tiny.py": b"x",
        ".gitattributes": b"",
    }
    assert model_id(manifest_of(tmp_path, more)) == model_id(manifest_of(tmp_path))
    decides: Change = {"generation_config.json": b"{}"}
    assert model_id(manifest_of(tmp_path, decides)) != model_id(manifest_of(tmp_path))


def quantised(config: dict[str, Any]) -> Change:
    return {"config.json": text(CONFIG | {"quantization_config": config})}


@pytest.mark.parametrize(
    ("change", "kind", "quantisation"),
    [
        (quantised({"quant_method": "exl2", "bits": 4.65, "head_bits": 6}), "exl2", "exl2-4.65bpw"),
        (quantised({"quant_method": "exl3", "bits": 4.0}), "exl3", "exl3-4bpw"),
        (quantised({"quant_method": "gptq", "bits": 4, "group_size": 128}), "gptq", "gptq-4bit-128g"),
        (quantised({"quant_method": "gptq", "bits": 8, "group_size": -1}), "gptq", "gptq-8bit"),
        ({"quantize_config.json": text({"bits": 4, "group_size": 32})}, "gptq", "gptq-4bit-32g"),
        (quantised({"quant_method": "awq", "bits": 4}), "safetensors", "awq-4bit"),
        ({"config.json": text(CONFIG | {"torch_dtype": "float16"})}, "safetensors", "F16"),
        ({"config.json": text(CONFIG | {"torch_dtype": None, "dtype": "float8"})}, "safetensors", "float8"),
        (
            {"config.json": text({k: v for k, v in CONFIG.items() if k != "torch_dtype"})},
            "safetensors",
            "unknown",
        ),
    ],
)
def test_the_format_and_quantisation_follow_from_the_config(
    tmp_path: Path, change: Change, kind: str, quantisation: str
) -> None:
    manifest = manifest_of(tmp_path, change)
    assert (manifest.format, manifest.quantisation) == (kind, quantisation)


def test_weights_are_those_of_the_index(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, {"consolidated.safetensors": b"cut"}, SHARDED)
    assert [file.path for file in manifest.files if file.path.endswith(".safetensors")] == SHARDS
    # ExLlama reads no index and loads all: one that quantising left over names files that aren't there.
    exl2 = quantised({"quant_method": "exl2", "bits": 3}) | {"model.safetensors.index.json": INDEX}
    manifest = manifest_of(tmp_path, {**exl2, "output.safetensors": safetensors(9)})
    weights = ["model.safetensors", "output.safetensors"]
    assert [file.path for file in manifest.files if "safetensors" in file.path] == weights


@pytest.mark.parametrize("missing", [*SHARDS, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("index", [True, False])
def test_half_a_folder_names_the_file_that_is_missing(tmp_path: Path, missing: str, index: bool) -> None:
    gone: Change = {missing: None} if index else {missing: None, "model.safetensors.index.json": None}
    with pytest.raises(ConfigError, match=rf"{missing}'? is missing.*models pull"):
        manifest_of(tmp_path, gone, SHARDED)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model.safetensors": None}, r"no weights"),
        ({"model.safetensors": FILES["model.safetensors"][:-1]}, r"truncated: it has \d+ bytes"),
        ({"model.safetensors": FILES["model.safetensors"] + b"x"}, r"truncated: it has \d+ bytes"),
        ({"model.safetensors": FILES["model.safetensors"][:20]}, "truncated, or no safetensors"),
        ({"model.safetensors": b""}, "truncated, or no safetensors"),
        ({"model.safetensors": b"\x02" + bytes(7) + b"[]"}, "no object of JSON"),
        ({"model.safetensors": b"\x08" + bytes(7) + b'{"w": 1}'}, "tensor without offsets"),
        ({"config.json": b"{"}, "config.json is no JSON"),
        ({"config.json": text(CONFIG | {"max_position_embeddings": 0})}, "lacks max_position_embeddings"),
        ({"config.json": text(CONFIG | {"vocab_size": None})}, "lacks vocab_size"),
        ({"config.json": b"[" * 100_000}, "config.json is no JSON"),
        ({"tokenizer.json": text({"model": {}})}, "no vocabulary"),
        ({"tokenizer.json": text(TOKENIZER | {"added_tokens": [{"content": "x"}]})}, "without ids"),
        ({"model.safetensors": None, "m-00001-of-99999.safetensors": b"x"}, "99999 files"),
        ({"chat_template.jinja": b"\xff"}, "not UTF-8"),
    ],
)
def test_a_folder_that_is_wrong_says_how_and_what_to_do(tmp_path: Path, change: Change, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"{reason}.*models pull"):
        manifest_of(tmp_path, change)


@pytest.mark.parametrize("rows", [7, 11, 32_000])
def test_another_models_tokenizer_is_refused_with_both_sizes(tmp_path: Path, rows: int) -> None:
    with pytest.raises(ConfigError, match=rf"do not belong together: the model has {rows} tokens, .* 8"):
        manifest_of(tmp_path, {"config.json": text(CONFIG | {"vocab_size": rows})})
    manifest_of(tmp_path, {"config.json": text(CONFIG | {"vocab_size": 10})})  # rows that its maker padded


def test_a_model_that_sees_keeps_the_sizes_of_its_text_apart(tmp_path: Path) -> None:
    config = {"model_type": "seeing", "text_config": {k: v for k, v in CONFIG.items() if k != "model_type"}}
    manifest = manifest_of(tmp_path, {"config.json": text(config)})
    assert (manifest.architecture, manifest.n_ctx) == ("seeing", 128)


@pytest.mark.parametrize(
    ("change", "template"),
    [
        ({}, TEMPLATE),
        ({"chat_template.jinja": b"one"}, "one"),
        ({"chat_template.json": text({"chat_template": "two"})}, "two"),
        ({"chat_template.jinja": b"one", "chat_template.json": text({"chat_template": "two"})}, "one"),
        ({"tokenizer_config.json": text({"chat_template": [{"name": "default", "template": "x"}]})}, "x"),
        ({"tokenizer_config.json": text({"chat_template": [{"name": "rag", "template": "x"}]})}, ""),
        ({"tokenizer_config.json": None}, ""),
    ],
)
def test_the_chat_template_is_where_its_makers_put_it(tmp_path: Path, change: Change, template: str) -> None:
    files = {name: data for name, data in {**FILES, **change}.items() if data is not None}
    assert read_folder(write(tmp_path / "one", files)).chat_template == template


def test_the_tokenizer_blob_says_what_begins_and_ends_a_text(tmp_path: Path) -> None:
    folder = read_folder(write(tmp_path / "one", FILES))
    assert (folder.bos, folder.eos, folder.special) == ("<s>", "</s>", frozenset({"<s>", "</s>"}))
    blob = folder_tokenizer_blob(folder)
    assert blob.startswith(FOLDER_TOKENIZER)
    assert blob.endswith(FILES["tokenizer.json"])
    settings = {name: value for name, value in SETTINGS.items() if name != "bos_token"}
    other: Change = {
        "tokenizer_config.json": text(settings),
        "special_tokens_map.json": text({"bos_token": {"content": "</s>"}}),
    }
    assert manifest_of(tmp_path, other).tokenizer != manifest_of(tmp_path).tokenizer


KEYS = (
    "model", "vocab", "added_tokens", "id", "vocab_size", "quantization_config", "bits", "chat_template",
    "model_type", "architectures", "text_config", "bos_token",
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_good_folder_corrupted_anywhere_gives_our_error_and_nothing_else(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    content = bytearray(FILES[name])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    root = write(tmp_path / "one", FILES | {name: bytes(content[: data.draw(st.integers(0, len(content)))])})
    with suppress(ConfigError):
        describe_at("mine", root)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    name=st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(KEYS),
                inner,
                max_size=6,
            )
        ),
        max_leaves=12,
    ),
)
@example(name="config.json", value={"architectures": True, "model_type": None})
def test_any_json_gives_our_error_and_nothing_else(tmp_path: Path, name: str, value: object) -> None:
    if isinstance(value, dict):
        value = json.loads(FILES[name]) | value
    root = write(tmp_path / "one", FILES | {name: text(value)})
    with suppress(ConfigError):
        describe_at("mine", root)
