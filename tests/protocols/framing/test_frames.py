"""Frames cut the same however the bytes arrive, and nothing is believed before it is checked."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.framing.codec import FRAME_MAX, FrameDecoder, frame_head, only_payload, pack_frame

payloads = st.lists(st.binary(min_size=1, max_size=300), max_size=12)


def feed_in_pieces(data: bytes, cuts: list[int]) -> tuple[list[bytes], bool]:
    """What comes out, and whether the decoder refused in the end."""
    decoder, out = FrameDecoder(), []
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    try:
        for start, end in pairwise(edges):
            out += decoder.feed(data[start:end])
        decoder.feed(b"")
    except ProtocolError:
        return out, True
    return out, False


@given(payloads, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_split_of_any_frames_decodes_the_same(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pack_frame(frame) for frame in frames)
    assert feed_in_pieces(data, cuts) == (frames, False)


@given(st.binary(max_size=40) | st.binary(max_size=300).map(lambda body: frame_head(len(body)) + body))
def test_one_whole_frame_and_nothing_else_gives_its_payload_at_once(data: bytes) -> None:
    decoder = FrameDecoder(200, frame_min=0)
    try:
        payloads = decoder.feed(data)
        decoder.check()
    except ProtocolError:
        payloads = []
    is_one = len(payloads) == 1 and not decoder.pending
    assert only_payload(data, 200) == (payloads[0] if is_one else None)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=20))
def test_any_split_of_random_bytes_decodes_the_same(data: bytes, cuts: list[int]) -> None:
    assert feed_in_pieces(data, cuts) == feed_in_pieces(data, [])


def test_frames_before_a_malformed_length_are_delivered_and_then_the_stream_is_dead() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(pack_frame(b"good") + b"\x00") == [b"good"]
    assert decoder.pending
    with pytest.raises(ProtocolError):
        decoder.check()  # without a byte more: none may come
    with pytest.raises(ProtocolError):
        decoder.feed(b"")
    with pytest.raises(ProtocolError):
        decoder.feed(pack_frame(bytes(1000)))
    assert decoder.pending < 10  # a dead decoder keeps nothing more


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(b"\x00", id="zero"),
        pytest.param(b"\x81\x80\x04", id="one byte over"),
        pytest.param(b"\xff\xff\xff\x7f", id="256 MiB"),
        pytest.param(b"\x81\x00", id="non-minimal"),
        pytest.param(b"\x80\x80\x80\x80", id="five bytes"),
    ],
)
def test_a_malformed_length_is_refused_before_its_body(length: bytes) -> None:
    with pytest.raises(ProtocolError):
        FrameDecoder().feed(length)


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (b"\x00", "a frame of 0 bytes; 1 to 65536 are allowed"),
        (b"\x81\x80\x04", "a frame of 65537 bytes; 1 to 65536 are allowed"),
        (b"\x81\x00", "in as few bytes as it takes"),
        (b"\x80\x00", "in as few bytes as it takes"),
    ],
)
def test_a_refusal_says_what_is_wrong_with_the_length(length: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        FrameDecoder().feed(length)


def test_the_largest_frame_passes() -> None:
    body = bytes(FRAME_MAX)
    packed = pack_frame(body)
    assert packed.startswith(b"\x80\x80\x04")
    assert FrameDecoder().feed(packed) == [body]


@pytest.mark.parametrize("size", [0, FRAME_MAX + 1])
def test_a_payload_no_peer_would_accept_is_not_packed(size: int) -> None:
    with pytest.raises(ValueError, match="a frame holds"):
        pack_frame(bytes(size))


def test_a_decoder_that_lives_has_nothing_to_raise() -> None:
    decoder = FrameDecoder()
    decoder.feed(pack_frame(b"good") + b"\x05half")
    decoder.check()


def test_a_truncated_frame_shows_as_pending_bytes() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(pack_frame(b"whole") + pack_frame(b"cut off")[:-1]) == [b"whole"]
    assert decoder.pending == 7
    assert decoder.feed(b"f") == [b"cut off"]
    assert decoder.pending == 0


def test_a_decoder_with_its_own_limit_keeps_it() -> None:
    assert FrameDecoder(1 << 20).feed(pack_frame(bytes(100_000), 1 << 20)) == [bytes(100_000)]
    with pytest.raises(ProtocolError):
        FrameDecoder(4).feed(pack_frame(b"12345"))


def test_a_frame_of_no_bytes_passes_where_it_may_be_a_message() -> None:
    empty_and_one = b"\x00\x01x"
    assert FrameDecoder(frame_min=0).feed(empty_and_one) == [b"", b"x"]
    with pytest.raises(ProtocolError, match="0 bytes; 1 to"):
        FrameDecoder().feed(empty_and_one)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 300, 65536, 2**21])
def test_the_head_of_a_frame_is_what_a_decoder_reads(length: int) -> None:
    payload = bytes(length)
    assert FrameDecoder(2**21, frame_min=0).feed(frame_head(length) + payload) == [payload]
