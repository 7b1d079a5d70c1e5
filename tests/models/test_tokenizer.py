"""A tokenizer from its blob alone: folders as Hugging Face counts them; what isn't certain is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace

from p2pnode.errors import ConfigError
from p2pnode.models.folder import FOLDER_TOKENIZER, folder_tokenizer_blob, read_folder
from p2pnode.models.gguf import GGUF_TOKENIZER, blob_entry, read_header, tokenizer_blob
from p2pnode.models.prompt_files import PromptFiles
from p2pnode.models.prompt_maker import prompt_maker
from p2pnode.models.tokenizer import Tokenizer, load_tokenizer
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody
from tests.models import model_folders
from tests.models.gguf_files import PAIRS, gguf, integers, string, strings, u32

SMALL = {
    **PAIRS,
    "tokenizer.ggml.pre": string("gpt-2"),
    "tokenizer.ggml.tokens": strings([b"<end>", b"a", "Ġ".encode(), b"b", "Ġb".encode(), b"<tool>"]),
    "tokenizer.ggml.token_type": integers([3, 1, 1, 1, 1, 4]),
    "tokenizer.ggml.merges": strings(["Ġ b".encode()]),
}


def blob_of(tmp_path: Path, pairs: dict[str, bytes]) -> bytes:
    path = tmp_path / "small.gguf"
    path.write_bytes(gguf(pairs))
    return tokenizer_blob(read_header(path))


def of_folder(tmp_path: Path, told: dict[str, Any]) -> Tokenizer:
    files = model_folders.FILES | {"tokenizer.json": model_folders.text(told)}
    return load_tokenizer(folder_tokenizer_blob(read_folder(model_folders.write(tmp_path / "folder", files))))


def test_special_tokens_are_found_where_they_are_asked_for_and_those_of_its_makers_anywhere(
    tmp_path: Path,
) -> None:
    ours = load_tokenizer(blob_of(tmp_path, SMALL))
    assert ours.encode("a b<tool>a") == (1, 4, 5, 1)
    assert ours.encode("a<end>b", special=True) == (1, 0, 3)
    assert 0 not in ours.encode("a<end>b")
    assert ours.decode((1, 4, 0, 5)) == "a b<tool>"
    assert (ours.begins, ours.bos, ours.eos) == ((), "", "<end>")


@pytest.mark.parametrize("template", ["<end>{{ messages[0].content }}", "{{ messages[0].content }}"])
async def test_a_begin_token_stands_once(tmp_path: Path, template: str) -> None:
    begins = {"tokenizer.ggml.bos_token_id": u32(0), "tokenizer.ggml.add_bos_token": b"\x07\0\0\0\x01"}
    blob = blob_of(tmp_path, SMALL | begins)
    maker = await prompt_maker(PromptFiles(tokenizer=blob, chat_template=template), 64)
    try:
        body = PromptBody(messages=(ChatMessage.of("user", "a"),), seed=bytes(16))
        assert (await maker.prompt(body)).ids == (0, 1)
        said = PromptBody(messages=(ChatMessage.of("user", "a<end>"),), seed=bytes(16))
        assert (await maker.prompt(said)).ids.count(0) == 1
    finally:
        await maker.aclose()


def test_a_folder_is_counted_as_hugging_face_counts_it(tmp_path: Path) -> None:
    told = model_folders.TOKENIZER
    ours, theirs = of_folder(tmp_path, told), HuggingFace.from_str(json.dumps(told))
    for text in ("ab a b", "abab", "a<s>b</s>", "é"):
        assert list(ours.encode(text, special=True)) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode("<s>ab", special=True) == (6, 3)
    assert 6 not in ours.encode("<s>ab")  # a user's text holds no special token
    assert ours.decode((6, 3, 2, 4, 5)) == "ab é"
    assert (ours.bos, ours.eos, ours.vocabulary.special) == ("<s>", "</s>", {"<s>": 6, "</s>": 7})


def test_a_folder_with_sentence_pieces_spells_blanks_and_bytes(tmp_path: Path) -> None:
    words = {"\u2581": 0, "a": 1, "\u2581a": 2, "<0xC3>": 3, "<0xA9>": 4, "b": 5}
    model = {"type": "BPE", "vocab": words, "merges": [["\u2581", "a"]], "byte_fallback": True}
    told = model_folders.TOKENIZER | {
        "model": model,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    }
    ours = of_folder(tmp_path, told)
    assert ours.encode("b aé") == (5, 2, 3, 4)
    assert ours.decode((5, 2, 3, 4)) == "b aé"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.pre": string("kimi-k2")}, "'kimi-k2', is not known"),
        ({"tokenizer.ggml.model": string("bert")}, "kind 'bert'"),
        ({"tokenizer.ggml.merges": strings([b"a q"])}, "can't be used here"),
        ({"tokenizer.ggml.tokens": integers([1])}, "array of strings"),
        ({"tokenizer.ggml.tokens": strings([b"\xff"] * 6)}, "can't be used here"),
    ],
)
def test_what_would_not_be_certain_is_not_counted(
    tmp_path: Path, change: dict[str, bytes], reason: str
) -> None:
    blob = blob_of(tmp_path, SMALL | change)
    with pytest.raises(ConfigError, match=reason):
        load_tokenizer(blob)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"something else",
        GGUF_TOKENIZER,
        GGUF_TOKENIZER + b"\0\0\0\x01",
        GGUF_TOKENIZER + blob_entry("tokenizer.x", b"\x08\0\0\0"),
        GGUF_TOKENIZER + blob_entry("a", b"") * 2,
        FOLDER_TOKENIZER,
        FOLDER_TOKENIZER + blob_entry("tokenizer.json", b"{}"),
    ],
)
def test_a_blob_that_is_none_is_refused(blob: bytes) -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        load_tokenizer(blob)


@settings(max_examples=200)
@given(st.data())
def test_a_blob_corrupted_anywhere_gives_our_error_and_nothing_else(data: st.DataObject) -> None:
    entries = b"".join(blob_entry(key, value) for key, value in sorted(SMALL.items()) if "tokenizer" in key)
    blob = bytearray(GGUF_TOKENIZER + entries)
    for _ in range(data.draw(st.integers(0, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ConfigError):
        load_tokenizer(bytes(blob[: data.draw(st.integers(0, len(blob)))]))
