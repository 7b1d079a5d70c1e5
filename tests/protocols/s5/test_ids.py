"""Content ids are those of other S5 programs, in both dialects, and each blob has one text in each base."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.ids import (
    TEXT_MAX,
    Base,
    BlobHash,
    BlobId,
    UnsupportedHashError,
    base64url,
    from_base64url,
    from_multibase,
    hash_of,
    is_old_multihash,
    multibase,
    multihash,
    multihash_text,
    parse_id,
    parse_id_bytes,
    parse_multihash,
    parse_multihash_text,
)
from tests.protocols.s5.support import HELLO, HELLO_HASH, hashes

HELLO_HEX = "5b821eede5c0b10f2ec4979c69b52f61e42ff5b413519ce09be0f14d098dcfe5f6f98d0d"
HELLO_TEXTS: list[tuple[Base, str]] = [
    ("f", "f" + HELLO_HEX),
    ("b", "blobb53pfycyq6lwes6ogtnjpmhsc75nucnizzye34dyu2cmnz7s7n6mnbu"),
    ("z", "zhJTU2Mz5tATfj9rc5xorsXiadvYq3idS4CznEfW9Zg9zfksX2"),
    ("u", "uW4Ie7eXAsQ8uxJecabUvYeQv9bQTUZzgm-DxTQmNz-X2-Y0N"),
]
HELLO_LEGACY: list[tuple[Base, str]] = [
    ("z", "z4odvyg7EbrxBZ5mJjwSJEr47rdfL4jbVDrBfQnzzwNUup8s6"),
    ("u", "uJh_t5cCxDy7El5xptS9h5C_1tBNRnOCb4PFNCY3P5fb5jQ0"),
]
bases: st.SearchStrategy[Base] = st.sampled_from(["z", "f", "b", "u"])


@pytest.mark.parametrize(("base", "text"), HELLO_TEXTS)
def test_the_id_of_hello_is_the_vector_in_each_base(base: Base, text: str) -> None:
    blob = BlobId.of(HELLO)
    assert HELLO_HASH.hex().startswith("ede5c0b1")
    assert blob.text(base) == text
    assert parse_id(text) == blob


@pytest.mark.parametrize(("base", "text"), HELLO_LEGACY)
def test_the_legacy_id_of_hello_is_the_vector(base: Base, text: str) -> None:
    blob = BlobId.of(HELLO)
    assert blob.legacy_text(base) == text
    assert parse_id(text) == blob


def test_the_vector_of_5050_bytes_is_read_and_written() -> None:
    blob = parse_id("blobb5zalq5yidqqianwukg4jq4aljp4tq6jp7i7eijxsx6drvicx3gjlxijq")
    assert blob.hash.hex() == "e40b877081c208036d451b898700b4bf938792ffa3e4426f2bf871aa057d992b"
    assert blob.size == 5050
    assert blob == parse_id("z44t3p46N4Fmqc1STusbaEoZ2HeDCFNNFRGys8SJsDvV9kHyMUbt")
    assert blob.text("z") == "z44t3p46N4Fmqc1STusbaEoZ2HeDCFNNFRGys8SJsDvV9kHyMUbt"


@pytest.mark.parametrize(
    ("size", "tail"),
    [
        (0, "aa"),
        (1, "ab"),
        (42, "bk"),
        (255, "h7"),
        (256, "aaae"),
        (65535, "h774"),
        (65536, "aaaaaq"),
        (57124823, "gxu5tqg"),
    ],
)
def test_sizes_are_written_as_s5js_writes_them(size: int, tail: str) -> None:
    # s5.js's own vectors leave the kind of hash out.
    written = BlobId(BlobHash(bytes(32)), size).to_bytes()
    assert multibase(written[:2] + written[3:], "b") == "blob" + 51 * "a" + tail
    assert parse_id_bytes(written).size == size


def test_the_legacy_vector_with_a_large_size_is_read_and_written() -> None:
    text = "uJh9HlpMAkwc3YGnUflReWWPwj6Vtg3ihGyXFYNe_KvJbGl_fj1s"
    blob = parse_id(text)
    assert blob.size == 1_536_155_487
    assert blob == parse_id("z6e5mLE5CqXdaPxWaD1h4tCMibSH1adYGAyGrWn5xpNNf4CMVxDxW")
    assert from_multibase(text)[:2].hex() == "261f"
    assert blob.legacy_text("u") == text
    assert blob.legacy_text("z") == "z6e5mLE5CqXdaPxWaD1h4tCMibSH1adYGAyGrWn5xpNNf4CMVxDxW"


def test_the_empty_blob_is_written_with_a_size_and_read_without_one_too() -> None:
    empty = BlobId.of(b"")
    assert empty.text() == "blobb5lytjg47l6nbu2qeatpkg3omssm3zms4tlobck34zgutzlsb6mtcaa"
    assert parse_id("blobb5lytjg47l6nbu2qeatpkg3omssm3zms4tlobck34zgutzlsb6mtcaa") == empty
    assert parse_id("blobb5lytjg47l6nbu2qeatpkg3omssm3zms4tlobck34zgutzlsb6mtc") == empty


def test_sha256_is_named_as_such_and_other_kinds_are_refused() -> None:
    for raw in (b"\x5b\x82\x12" + bytes(33), b"\x26\x12" + bytes(33)):
        with pytest.raises(UnsupportedHashError):
            parse_id_bytes(raw)
    assert parse_id_bytes(b"\x26\x1e" + bytes(33)) == BlobId(BlobHash(bytes(32)))
    for raw in (b"\x5b\x82\x1f" + bytes(33), b"\x26\x20" + bytes(33), b"\x26", b"\x5b\x82", b""):
        with pytest.raises(ProtocolError, match=r"unknown kind|those begin with"):
            parse_id_bytes(raw)


@pytest.mark.parametrize("prefix", [b"\x5b\x82\x1e", b"\x26\x1f"])
def test_an_id_that_is_cut_or_has_a_longer_size_is_refused(prefix: bytes) -> None:
    assert parse_id_bytes(prefix + bytes(32) + b"\xff" * 8).size == 2**64 - 1
    for tail in (bytes(31), bytes(32) + b"\xff" * 9):
        with pytest.raises(ProtocolError, match="is it cut"):
            parse_id_bytes(prefix + tail)


@given(hashes, st.integers(0, 2**64 - 1), bases)
def test_every_id_comes_back_from_its_text_in_both_dialects(digest: BlobHash, size: int, base: Base) -> None:
    blob = BlobId(digest, size)
    assert parse_id(blob.text(base)) == blob
    assert parse_id(blob.legacy_text(base)) == blob
    assert len(blob.text(base)) < TEXT_MAX


@given(st.binary(max_size=100), bases)
def test_every_text_has_one_form(raw: bytes, base: Base) -> None:
    text = multibase(raw, base)
    assert from_multibase(text) == raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" + HELLO_HEX,
        "F" + HELLO_HEX.upper(),
        "f" + HELLO_HEX.upper(),
        "f" + HELLO_HEX + " ",
        "f " + HELLO_HEX,
        "f" + HELLO_HEX[:-1],
        HELLO_TEXTS[1][1].upper(),
        "b" + HELLO_TEXTS[1][1][1:].upper(),
        HELLO_TEXTS[1][1] + "=",
        HELLO_TEXTS[1][1][:-1] + "v",
        HELLO_TEXTS[2][1] + " ",
        HELLO_TEXTS[2][1] + "\n",
        HELLO_TEXTS[2][1][:-1] + "0",
        HELLO_TEXTS[3][1].replace("-", "+"),
        HELLO_TEXTS[3][1] + "===",
        HELLO_TEXTS[3][1] + "ä",
        "f" + "00" * TEXT_MAX,
    ],
)
def test_a_text_in_any_other_form_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_id(text)


@given(st.text(max_size=80) | st.builds(str.__add__, st.sampled_from("zfbu"), st.text(max_size=60)))
@example("z\udc80")
@example("z")
@example("b1")
def test_no_text_does_anything_but_parse_or_raise_a_protocol_error(text: str) -> None:
    for parse in (parse_id, parse_multihash_text, from_base64url):
        try:
            parse(text)
        except ProtocolError as error:
            assert str(error)  # noqa: PT017 - any, as long as it says something


@given(st.binary(max_size=50))
def test_no_bytes_do_anything_but_parse_or_raise_a_protocol_error(raw: bytes) -> None:
    for parse in (parse_id_bytes, parse_multihash):
        try:
            parse(raw)
        except ProtocolError as error:
            assert str(error)  # noqa: PT017 - any, as long as it says something


@given(hashes, st.booleans())
def test_a_multihash_is_read_with_and_without_the_prefix_that_lumeweb_sends(
    digest: BlobHash, old: bool
) -> None:
    text = multihash_text(digest, old=old)
    assert len(text) == 44
    assert parse_multihash_text(text) == parse_multihash_text("u" + text) == digest
    assert is_old_multihash(multihash(digest, old=old)) is old
    assert parse_multihash(multihash(digest, old=old)) == digest


@pytest.mark.parametrize(
    "raw", [b"", bytes(33), b"\x12" + bytes(32), b"\x1e" + bytes(31), b"\x1e" + bytes(33)]
)
def test_what_is_no_multihash_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_multihash(raw)
    with pytest.raises(ProtocolError):
        parse_multihash_text(base64url(raw))


def test_base64url_is_read_padded_or_not_but_in_one_form() -> None:
    assert from_base64url("_-8=") == from_base64url("_-8") == b"\xff\xef"
    for text in ("_-9", "/+8", "_-8 ", "_"):
        with pytest.raises(ProtocolError):
            from_base64url(text)
    assert hash_of(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
