"""``check_shape`` agrees with msgpack about what is well formed, and believes no header."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.framing.codec import DEPTH_MAX, FRAME_MAX, ITEMS_MAX, check_shape
from p2pnode.protocols.wire import unpack

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
objects = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=30,
)


def depth_of(value: Any) -> int:
    """How many filled containers lie in one another."""
    if not isinstance(value, list | dict) or not value:
        return 0
    return 1 + max(depth_of(each) for each in (value.values() if isinstance(value, dict) else value))


def accepts(payload: bytes) -> bool:
    """Whether the shape passes."""
    try:
        check_shape(payload)
    except ProtocolError:
        return False
    return True


@settings(max_examples=300)
@given(objects)
def test_what_msgpack_packs_passes_up_to_the_depth(value: Any) -> None:
    assert accepts(msgpack.packb(value)) == (depth_of(value) <= DEPTH_MAX)


@settings(max_examples=300)
@given(objects, st.data())
def test_nothing_that_was_cut_or_lengthened_passes(value: Any, data: st.DataObject) -> None:
    packed = msgpack.packb(value)
    assert not accepts(packed[: data.draw(st.integers(0, len(packed) - 1))])
    assert not accepts(packed + b"\xc0")


@settings(max_examples=2000)
@given(st.binary(max_size=64))
@example(b"\xd9")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc1")
def test_random_bytes_raise_nothing_but_a_protocol_error(payload: bytes) -> None:
    if accepts(payload):
        try:
            unpack(payload)
        except ProtocolError:
            return
        msgpack.unpackb(payload)  # what passes both is msgpack
    else:
        with pytest.raises(ProtocolError):
            unpack(payload)


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(b"\xdd\xff\xff\xff\xff" + bytes(100), id="an array of four billion"),
        pytest.param(b"\xdf\xff\xff\xff\xff" + bytes(100), id="a map of four billion"),
        pytest.param(b"\xc6\xff\xff\xff\xff" + bytes(100), id="four billion bytes"),
        pytest.param(b"\xdb\xff\xff\xff\xff" + bytes(100), id="four billion characters"),
        pytest.param(b"\xc7\x01\x05x", id="an extension"),
        pytest.param(b"\xd6\xff\x00\x00\x00\x00", id="a timestamp"),
        pytest.param(b"\x91" * 10_000, id="ten thousand levels"),
        pytest.param(b"\xdc\xff\xff" + b"\xc0" * 0xFFFF, id="too many items"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_lie_is_refused_without_allocating_for_it(lie: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            unpack(lie)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < FRAME_MAX


def test_the_deepest_and_the_fullest_payloads_pass() -> None:
    assert accepts(b"\x91" * DEPTH_MAX + b"\xc0")
    assert not accepts(b"\x91" * (DEPTH_MAX + 1) + b"\xc0")
    assert accepts(b"\xdc" + (ITEMS_MAX - 1).to_bytes(2, "big") + b"\xc0" * (ITEMS_MAX - 1))
    assert not accepts(b"\xdc" + ITEMS_MAX.to_bytes(2, "big") + b"\xc0" * ITEMS_MAX)


def test_a_map_with_other_than_string_keys_is_refused() -> None:
    with pytest.raises(ProtocolError, match="string keys"):
        unpack(msgpack.packb({1: 2}))


def test_a_string_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ProtocolError):
        unpack(b"\xa3\xed\xa0\x80")  # a surrogate
