"""Manifests and model ids: vectors that another implementation can check itself against."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId
from p2pnode.models.manifest import (
    Manifest,
    TemplateOverhead,
    model_id,
    model_id_text,
    parse_model_id,
)

VECTOR = Manifest(
    weights="11" * 32,
    size_bytes=1000,
    architecture="llama",
    quantisation="Q4_1",
    n_ctx=2048,
    tokenizer="22" * 32,
    chat_template="33" * 32,
    template_overhead=TemplateOverhead(fixed=10, per_message=5),
)
CANONICAL = (
    '{"architecture":"llama","chat_template":"' + "33" * 32 + '","n_ctx":2048,"quantisation":"Q4_1",'
    '"size_bytes":1000,"template_overhead":{"fixed":10,"per_message":5},"tokenizer":"' + "22" * 32 + '",'
    '"weights":"' + "11" * 32 + '"}'
)


def test_the_canonical_bytes_and_the_id_are_as_published() -> None:
    assert VECTOR.canonical() == CANONICAL.encode()
    assert model_id(VECTOR) == hashlib.sha256(b"p2pnode/model/1\0" + CANONICAL.encode()).digest()
    assert model_id_text(model_id(VECTOR)) == "m1n33r3emegci34v4u3l77rdhcpoaaday74tjqpechnxdm7ru2egka"


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "44" * 32},
        {"size_bytes": 1001},
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
        ("weights", "AB" * 32),
        ("tokenizer", "short"),
        ("architecture", "two words"),
        ("quantisation", ""),
        ("n_ctx", 0),
        ("n_ctx", True),
        ("size_bytes", 1 << 60),
        ("template_overhead", TemplateOverhead(fixed=-1, per_message=0)),
    ],
)
def test_a_value_that_is_none_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(VECTOR, **{field: value})  # type: ignore[arg-type]


def test_a_table_that_lacks_or_adds_a_key_is_no_manifest() -> None:
    table = {name: getattr(VECTOR, name) for name in VECTOR.__slots__}
    table["template_overhead"] = {"fixed": 10, "per_message": 5}
    assert Manifest.from_mapping(table) == VECTOR
    for wrong in (table | {"more": 1}, {k: v for k, v in table.items() if k != "n_ctx"}, {}):
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
