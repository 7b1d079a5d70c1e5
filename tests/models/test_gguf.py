"""Reading GGUF headers: the real file, small ones, and anything a hostile one may hold."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.models.gguf import describe, read_header
from p2pnode.models.local_models import LocalModel
from p2pnode.models.manifest import FileHashes, TemplateOverhead
from p2pnode.models.template_overhead import template_overhead
from p2pnode.models.vocabulary import load_vocabulary
from tests.models.gguf_files import PAIRS, TINY, gguf, integers, string, strings, tensor, u32, with_weights

HASH = FileHashes(sha256="0" * 64, chunks="1" * 64)


def write(directory: Path, data: bytes) -> Path:
    path = directory / "file.gguf"
    path.write_bytes(data)
    return path


def test_the_default_model_is_described_quickly_and_as_the_catalogue_says(smollm: LocalModel) -> None:
    (file,) = smollm.manifest.files
    hashes = FileHashes(sha256=file.sha256, chunks=file.chunks)
    took_s = []
    for _ in range(3):
        began = time.process_time()
        manifest = describe([read_header(smollm.path)], [hashes])
        took_s.append(time.process_time() - began)
        assert manifest == smollm.manifest
    assert min(took_s) < 0.1


def test_a_small_file_gives_its_manifest(tmp_path: Path) -> None:
    manifest = describe([read_header(write(tmp_path, TINY + b"weights"))], [HASH])
    assert (manifest.architecture, manifest.quantisation, manifest.n_ctx) == ("tiny", "Q8_0", 128)
    assert manifest.size_bytes == len(TINY) + 7
    assert manifest.template_overhead == TemplateOverhead(fixed=8 + 3, per_message=9 + 1)


def test_the_tokenizer_hash_covers_the_tokens_and_not_the_template(tmp_path: Path) -> None:
    def hashes(pairs: dict[str, bytes]) -> tuple[str, str]:
        manifest = describe([read_header(write(tmp_path, gguf(pairs)))], [HASH])
        return manifest.tokenizer, manifest.chat_template

    tokenizer, template = hashes(PAIRS)
    assert hashes(dict(reversed(PAIRS.items()))) == (tokenizer, template)
    other = hashes(PAIRS | {"tokenizer.chat_template": string("x")})
    assert other[0] == tokenizer
    assert other[1] != template
    assert hashes(PAIRS | {"tokenizer.ggml.eos_token_id": u32(1)})[0] != tokenizer


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"GGML" + TINY[4:], "doesn't begin with GGUF"),
        (TINY[:100], "truncated"),
        (gguf(PAIRS, version=9), "version is 9"),
        (gguf(PAIRS, keys=1 << 40), "claims 1099511627776 keys"),
        (gguf(PAIRS) + b"\0" * 8, None),
        (gguf({"x": struct.pack("<IQ", 8, 1 << 60)}), "string of 1152921504606846976 bytes"),
        (gguf({"x": struct.pack("<IIQ", 9, 4, 1 << 60)}), "array of 1152921504606846976 elements"),
        (gguf({"x": struct.pack("<IIQ", 9, 8, 1 << 20)}), "truncated"),
        (gguf({"x": struct.pack("<IIQQ", 9, 8, 1, 1 << 63)}), "truncated"),
        (gguf({"x": struct.pack("<IIQ", 9, 9, 1)}), "array of unknown type 9"),
        (gguf({"x": struct.pack("<I", 77)}), "unknown type 77"),
        (gguf({"general.architecture": string("tiny")}), "lacks tiny.context_length"),
        (gguf(PAIRS | {"tiny.context_length": u32(0)}), "context length is 0"),
        (gguf(PAIRS | {"tiny.context_length": string("8")}), "lacks tiny.context_length"),
        (gguf({}), "lacks general.architecture"),
    ],
)
def test_a_file_that_is_wrong_says_how_and_what_to_do(
    tmp_path: Path, data: bytes, reason: str | None
) -> None:
    path = write(tmp_path, data)
    if reason is None:
        describe([read_header(path)], [HASH])
        return
    with pytest.raises(ConfigError, match=r"p2pnode models pull") as error:
        describe([read_header(path)], [HASH])
    assert reason in str(error.value)


F32, Q8_0, NEWER = 0, 8, 250
MATRICES = (tensor("a", (64, 4), Q8_0, 0), tensor("b", (3, 2), F32, 288))


def test_a_file_that_ends_before_its_last_tensor_does_is_truncated(tmp_path: Path) -> None:
    needed = 288 + 3 * 2 * 4  # eight blocks of 34 bytes, padded to 32, then six floats
    read_header(write(tmp_path, with_weights(MATRICES, needed)))
    read_header(write(tmp_path, with_weights(MATRICES, needed + 8)))
    for present in (needed - 1, 288, 0):
        with pytest.raises(ConfigError, match=r"truncated: it has \d+ bytes, and its tensors need \d+"):
            read_header(write(tmp_path, with_weights(MATRICES, present)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (with_weights((tensor("a", (1 << 62, 1 << 62), F32, 0),), 64), "truncated"),
        (with_weights((tensor("a", (4,), F32, 1 << 62),), 64), "truncated"),
        (with_weights((tensor("a", (4,), NEWER, 64),), 64), "truncated"),
        (with_weights((tensor("a", (1,) * 9, F32, 0),), 64), "tensor of 9 dimensions"),
        (gguf(PAIRS | {"general.alignment": u32(0)}, tensors=MATRICES), "alignment is 0"),
        (gguf(PAIRS | {"general.alignment": string("32")}, tensors=MATRICES), "alignment is '32'"),
        (gguf(PAIRS, tensors=MATRICES)[:-6], "truncated"),
    ],
)
def test_tensors_that_claim_too_much_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_header(write(tmp_path, data))
    assert reason in str(error.value)


def test_of_a_type_that_is_newer_than_ours_only_the_beginning_is_looked_for(tmp_path: Path) -> None:
    read_header(write(tmp_path, with_weights((tensor("a", (4,), NEWER, 0),), 64)))


def test_the_default_model_cut_anywhere_in_its_weights_is_truncated(
    smollm: LocalModel, tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    with smollm.path.open("rb") as file:
        path.write_bytes(file.read(8 << 20))
    for size in (smollm.manifest.size_bytes - 1, 8 << 20):
        os.truncate(path, size)  # what is missing between is a hole, which costs no disk
        with pytest.raises(ConfigError, match="truncated"):
            read_header(path)
    os.truncate(path, smollm.manifest.size_bytes)
    read_header(path)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="check the path"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(ConfigError, match="check the path"):
        read_header(tmp_path)


def use(path: Path) -> None:
    try:
        describe([read_header(path)], [HASH])
        load_vocabulary(path)
    except ConfigError:
        pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.binary(max_size=200))
def test_garbage_gives_our_error_and_nothing_else(tmp_path: Path, data: bytes) -> None:
    use(write(tmp_path, b"GGUF\x03\0\0\0" + data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=500)
@given(
    st.integers(0, len(TINY)),
    st.lists(st.tuples(st.integers(0, len(TINY) - 1), st.integers(0, 255)), max_size=4),
)
def test_a_good_file_cut_or_corrupted_anywhere_gives_our_error_and_nothing_else(
    tmp_path: Path, length: int, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(TINY)
    for at, value in changes:
        data[at] = value
    use(write(tmp_path, bytes(data[:length])))


def test_pieces_are_bytes_and_specials_are_silent(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(write(tmp_path, TINY))
    assert vocabulary.pieces == [b"", b"a", b" b", b"\xe4\xbd", b"\xa0", b"user_token"]
    assert vocabulary.silent == {0}
    assert vocabulary.piece(99) == b""


def test_sentence_piece_vocabularies_spell_spaces_and_bytes(tmp_path: Path) -> None:
    pairs = PAIRS | {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": strings([b"</s>", "▁the▁".encode(), b"<0xE4>", b"<0xZZ>"]),
        "tokenizer.ggml.token_type": integers([3, 1, 6, 6]),
    }
    assert load_vocabulary(write(tmp_path, gguf(pairs))).pieces == [b"", b" the ", b"\xe4", b""]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer.ggml.model": string("bert")}, "'bert' isn't supported"),
        ({"tokenizer.ggml.token_type": integers([1])}, "one type for each token"),
        ({"tokenizer.ggml.tokens": integers([1])}, "array of strings"),
        ({"tokenizer.ggml.token_type": strings([b"x"])}, "array of integers"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_says_why(
    tmp_path: Path, changes: dict[str, bytes], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_vocabulary(write(tmp_path, gguf(PAIRS | changes)))


@pytest.mark.parametrize(
    ("template", "fixed", "per_message"),
    [
        ("", 0, 0),
        ("abc", 3, 0),
        ("{# no words #}{{ messages[0]['content'] }}", 0, 0),
        ("{% for m in messages %}ab{{ m.content + 'c' }}{% endfor %}d", 1, 3),
        ("{% for m in messages %}{% if loop.first and m.role != 'x' %}once{% endif %}m{% endfor %}", 4, 1),
        ("{% for m in messages %}{% if not loop.first %}again{% endif %}{% endfor %}", 0, 5),
        ("{% for m in messages %}{% if loop.first %}a{% else %}bb{% endif %}{% endfor %}", 1, 2),
        ("{% set s = 'sys' %}{{- s -}}", 3, 0),
        ("{% for m in messages %}<s>{{ '<s>' + m['role'] }}\n{% endfor %}", 0, 3),
    ],
)
def test_the_cost_of_a_template_is_bounded_by_its_literals(
    template: str, fixed: int, per_message: int
) -> None:
    found = template_overhead(template, frozenset({"<s>"}))
    assert (found.fixed - 8, found.per_message - 9) == (fixed, per_message)
