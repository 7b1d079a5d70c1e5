"""Directories are read and written as s5.js does it; what can't be read whole is never taken for empty."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5 import cbor
from p2pnode.protocols.s5.directory import (
    DIRECTORY_MAX,
    LEGACY_EMPTY,
    NAME_MAX,
    Directory,
    DirRef,
    FileRef,
    parse_directory,
)
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.protocols.s5.links import Changing, Fixed
from tests.protocols.s5.support import HELLO_HASH, ZERO, hashes
from tests.protocols.s5.test_links import links

ZEROS = BlobHash(bytes(32))
EMPTY = "846653352e70726fa0a0a0"
ONE_FILE = "846653352e70726fa0a0a168746573742e747874a2035820" + "00" * 32 + "04190400"

numbers = st.none() | st.integers(0, 2**63 - 1)
others = st.dictionaries(
    st.integers(9, 22),
    st.integers(-(2**63), 2**63) | st.text() | st.binary() | st.lists(st.booleans()),
    max_size=3,
)
names = st.text(min_size=1, max_size=20).filter(
    lambda name: name not in {".", ".."} and "/" not in name and "\0" not in name
)
files = st.recursive(
    st.builds(
        FileRef,
        digest=hashes,
        size=st.integers(0, 2**63 - 1),
        media_type=st.none() | st.text(max_size=20),
        seconds=numbers,
        nanos=numbers,
        other=others,
    ),
    lambda before: st.builds(FileRef, digest=hashes, size=st.just(1), previous=before),
    max_leaves=3,
)
directories = st.builds(
    Directory,
    dirs=st.dictionaries(
        names, st.builds(DirRef, link=links, seconds=numbers, nanos=numbers, other=others), max_size=3
    ),
    files=st.dictionaries(names, files, max_size=3),
)


def made(*parts: Any) -> bytes:
    return b"\x5f\x5d" + cbor2.dumps(list(parts))


def test_the_vectors_are_written_and_read_byte_for_byte() -> None:
    empty = Directory()
    one = Directory(files={"test.txt": FileRef(digest=ZEROS, size=1024)})
    for directory, told in ((empty, EMPTY), (one, ONE_FILE)):
        assert directory.to_bytes().hex() == "5f5d" + told
        assert parse_directory(bytes.fromhex("5f5d" + told)) == directory


def test_the_empty_directory_of_older_programs_is_read_and_their_others_are_not() -> None:
    assert LEGACY_EMPTY.hex() == "5f5d808080"
    assert parse_directory(LEGACY_EMPTY) == Directory()
    for raw in (b"\x5f\x5d\x80\x81\x80\x80", LEGACY_EMPTY + b"\0", b"\x5f\x5d\x93\x80\x80\x80"):
        with pytest.raises(ProtocolError):
            parse_directory(raw)


def test_names_and_keys_are_written_in_order_whatever_order_they_came_in() -> None:
    one, two = DirRef(link=Fixed(HELLO_HASH), seconds=7), DirRef(link=Changing(ZERO.entry_key))
    forth, back = Directory(dirs={"a": one, "b": two}), Directory(dirs={"b": two, "a": one})
    assert forth.to_bytes() == back.to_bytes()
    whole = FileRef(
        digest=ZEROS, size=1, media_type="text/plain", seconds=2, nanos=3, other={22: {"k": 1}, 9: []}
    )
    told = cbor2.loads(Directory(files={"f": whole}).to_bytes()[2:])
    assert list(told[3]["f"]) == [3, 4, 6, 7, 8, 9, 22]


@settings(max_examples=60)
@given(directories)
def test_every_directory_comes_back_from_its_bytes_with_all_that_was_in_it(directory: Directory) -> None:
    assert parse_directory(directory.to_bytes()) == directory


def test_what_this_node_has_no_use_for_is_kept() -> None:
    told = {3: bytes(32), 4: 5, 9: [[1, "http://x/"]], 22: {"encryption": {"key": [1, 2]}}, 99: True}
    raw = made("S5.pro", {}, {}, {"f": told})
    assert parse_directory(raw).to_bytes() == raw


def test_a_large_number_that_javascript_wrote_as_a_float_is_read() -> None:
    told = {3: bytes(32), 4: float(2**40), 7: 1.7e9}
    file = parse_directory(made("S5.pro", {}, {}, {"f": told})).files["f"]
    assert (file.size, file.seconds) == (2**40, 1_700_000_000)


def test_a_sharded_directory_is_an_error_and_never_an_empty_one() -> None:
    sharding = {"sharding": {"type": "hamt", "root": {"cid": bytes(33)}}}
    with pytest.raises(ProtocolError, match="sharded"):
        parse_directory(made("S5.pro", sharding, {}, {}))


FILE: dict[int, Any] = {3: bytes(32), 4: 5}


@pytest.mark.parametrize(
    "parts",
    [
        ("S5.old", {}, {}, {}),
        ("S5.pro", {}, {}),
        ("S5.pro", {}, {}, {}, {}),
        ("S5.pro", [], {}, {}),
        ("S5.pro", {}, [], {}),
        ("S5.pro", {}, {}, []),
        ("S5.pro", {}, {"d": {}}, {}),
        ("S5.pro", {}, {"d": {2: "text"}}, {}),
        ("S5.pro", {}, {"d": {2: bytes(33)}}, {}),
        ("S5.pro", {}, {"d": {2: b"\x1e" + bytes(31)}}, {}),
        ("S5.pro", {}, {"d": 5}, {}),
        ("S5.pro", {}, {}, {"f": {3: bytes(31), 4: 5}}),
        ("S5.pro", {}, {}, {"f": {3: bytes(32)}}),
        ("S5.pro", {}, {}, {"f": FILE | {4: -1}}),
        ("S5.pro", {}, {}, {"f": FILE | {4: 2**63}}),
        ("S5.pro", {}, {}, {"f": FILE | {4: True}}),
        ("S5.pro", {}, {}, {"f": FILE | {4: 0.5}}),
        ("S5.pro", {}, {}, {"f": FILE | {4: float("nan")}}),
        ("S5.pro", {}, {}, {"f": FILE | {4: float("inf")}}),
        ("S5.pro", {}, {}, {"f": FILE | {6: 5}}),
        ("S5.pro", {}, {}, {"f": FILE | {7: "now"}}),
        ("S5.pro", {}, {}, {"f": FILE | {23: []}}),
        ("S5.pro", {}, {}, {"f": FILE | {"key": 5}}),
        ("S5.pro", {}, {}, {5: FILE}),
        ("S5.pro", {}, {}, {"": FILE}),
        ("S5.pro", {}, {}, {"..": FILE}),
        ("S5.pro", {}, {}, {"../up": FILE}),
        ("S5.pro", {}, {}, {"nul\0": FILE}),
        ("S5.pro", {}, {}, {"x" * (NAME_MAX + 1): FILE}),
    ],
)
def test_what_is_no_directory_is_refused(parts: tuple[Any, ...]) -> None:
    with pytest.raises(ProtocolError):
        parse_directory(made(*parts))


def test_a_directory_without_its_mark_or_too_large_is_refused() -> None:
    for raw in (bytes.fromhex(EMPTY), b"", b"\x5f\x5d" + bytes(DIRECTORY_MAX)):
        with pytest.raises(ProtocolError, match="5f5d"):
            parse_directory(raw)


@given(
    st.binary(max_size=200).map(lambda tail: b"\x5f\x5d\x84\x66S5.pro\xa0" + tail) | st.binary(max_size=50)
)
@example(b"\x5f\x5d\x84\x66S5.pro\xa0\xbb" + b"\xff" * 8)
@example(b"\x5f\x5d\x84\x66S5.pro\xa0\xa0\xa1\x61f\xa2\x03\x5b" + b"\xff" * 8)
def test_no_bytes_do_anything_but_parse_or_raise_a_protocol_error(raw: bytes) -> None:
    try:
        parse_directory(raw)
    except ProtocolError as error:
        assert str(error)  # noqa: PT017 - any, as long as it says something


# ---- CBOR

values = st.recursive(
    st.integers(-(2**64), 2**64 - 1)
    | st.text()
    | st.binary()
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 99), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_cbor_is_read_as_the_library_reads_it(value: Any) -> None:
    raw = cbor2.dumps(value)
    assert cbor.loads(raw) == cbor2.loads(raw) == value
    assert cbor.dumps(value) == raw


@given(st.binary(max_size=60))
def test_cbor_that_is_read_is_never_read_otherwise_than_by_the_library(raw: bytes) -> None:
    try:
        value = cbor.loads(raw)
    except ProtocolError:
        return
    # The library has an "undefined" of its own, which here is null; repr, since NaN is not itself.
    assert repr(value) == repr(cbor2.loads(raw)).replace("undefined", "None")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("a2616101616102", "twice"),
        ("a1f501", "neither text"),
        ("a1800100", "neither text"),
        ("c11a514b67b0", "a tag"),
        ("d81c80", "a tag"),
        ("9fff", "announced later"),
        ("5f4101ff", "announced later"),
        ("1c", "announced later"),
        ("9bffffffffffffffff", "more items than bytes"),
        ("bb7fffffffffffffff", "more items than bytes"),
        ("5bffffffffffffffff", "ends too early"),
        ("19ff", "ends too early"),
        ("", "ends too early"),
        ("0000", "something follows"),
        ("61ff", "not UTF-8"),
        ("f8ff", "simple value"),
        ("e0", "simple value"),
        ("81" * 20 + "00", "nested deeper"),
    ],
)
def test_cbor_that_lies_or_is_not_in_use_is_refused(raw: str, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        cbor.loads(bytes.fromhex(raw))
