"""Messages to bytes and back: every bound of every field, and nothing but ``ProtocolError`` for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, Literal

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.adverts.messages import CODEC as ADVERTS
from p2pnode.protocols.adverts.messages import Advert, SignedAdvert
from p2pnode.protocols.checkpoint.messages import CODEC as CHECKPOINT
from p2pnode.protocols.count.messages import CODEC as COUNT
from p2pnode.protocols.framing.codec import FRAME_MAX, FrameDecoder, pack_frame
from p2pnode.protocols.inference.messages import CODEC as INFERENCE
from p2pnode.protocols.inference.messages import PromptBody
from p2pnode.protocols.wire import Codec, Range, Size, decode_record, encode, exactly, message
from tests.examples import examples
from tests.protocols.strategies import largest, messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A nested record."""

    size: Annotated[int, Range(0, 9)]


@message("sample")
@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One field of each kind."""

    count: Annotated[int, Range(1, 9)]
    ratio: Annotated[float, Range(0, 1)] = 0.5
    name: Annotated[str, Size(1, 4)] = "x"
    key: Annotated[bytes, exactly(2)] = b"ab"
    flag: bool = False
    mode: Literal["on", "off"] = "on"
    ids: Annotated[tuple[Annotated[int, Range(0, 9)], ...], Size(0, 2)] = ()
    part: Part | None = None
    note: Annotated[str, Size(0, 4)] | None = None


SAMPLE = Codec(Sample)
GOOD: dict[str, Any] = {"t": "sample", "count": 1}


def decode(**changes: Any) -> Any:
    """Decode GOOD with changes."""
    return SAMPLE.decode(msgpack.packb({**GOOD, **changes}, unicode_errors="surrogatepass"))


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 1},
        {"count": 9},
        {"ratio": 0.0},
        {"ratio": 1},
        {"name": "abcd"},
        {"name": "éé"},
        {"key": b"\x00\xff"},
        {"flag": True},
        {"mode": "off"},
        {"ids": [0, 9]},
        {"part": {"size": 3}},
        {"part": None},
        {"note": ""},
    ],
    ids=repr,
)
def test_a_value_within_its_bounds_is_taken(changes: dict[str, Any]) -> None:
    decoded = decode(**changes)
    assert SAMPLE.decode(SAMPLE.encode(decoded)) == decoded


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 0},
        {"count": 10},
        {"count": 2**64 - 1},
        {"count": -(2**63)},
        {"count": True},
        {"count": 1.0},
        {"count": "1"},
        {"count": None},
        {"count": []},
        {"ratio": float("nan")},
        {"ratio": float("inf")},
        {"ratio": float("-inf")},
        {"ratio": 1.0000001},
        {"ratio": True},
        {"ratio": 2**64 - 1},
        {"name": ""},
        {"name": "abcde"},
        {"name": "ééé"},
        {"name": b"ab"},
        {"name": "\ud800"},
        {"key": b"a"},
        {"key": b"abc"},
        {"key": "ab"},
        {"flag": 1},
        {"flag": None},
        {"mode": "ON"},
        {"mode": 1},
        {"mode": ["on"]},
        {"ids": [1, 2, 3]},
        {"ids": [10]},
        {"ids": [True]},
        {"ids": {}},
        {"ids": "12"},
        {"part": {}},
        {"part": {"size": 10}},
        {"part": 3},
        {"part": [3]},
        {"t": "other"},
        {"t": None},
        {"t": 7},
        {"t": []},
        {"t": {}},
        {"t": b"sample"},
    ],
    ids=repr,
)
def test_a_value_outside_its_bounds_is_a_protocol_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        decode(**changes)


def test_the_error_names_the_field() -> None:
    with pytest.raises(ProtocolError, match="ratio must be a number from 0 to 1"):
        decode(ratio=7)


def test_unknown_keys_are_ignored_and_missing_ones_take_their_default() -> None:
    assert decode(news="from the future", **{"": 1}) == Sample(count=1)


def test_a_missing_key_without_a_default_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match=r"sample\.count is missing"):
        SAMPLE.decode(msgpack.packb({"t": "sample"}))


def test_an_integer_in_a_float_field_becomes_a_float() -> None:
    assert type(decode(ratio=1).ratio) is float


@pytest.mark.parametrize("value", [[], [1], "sample", 3, None], ids=repr)
def test_a_message_that_is_no_map_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(ProtocolError, match="must be a map"):
        SAMPLE.decode(msgpack.packb(value))
    with pytest.raises(ProtocolError, match="must be a map"):
        decode_record(Part, msgpack.packb(value))


def test_a_record_of_another_type_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="expected a 'advert' message"):
        decode_record(SignedAdvert, msgpack.packb({"t": "get", "body": b"x", "signature": bytes(64)}))


def test_none_is_not_sent_and_fields_keep_the_order_of_the_class() -> None:
    assert list(msgpack.unpackb(encode(Sample(count=1)))) == [
        "t", "count", "ratio", "name", "key", "flag", "mode", "ids",
    ]  # fmt: skip


def test_text_without_a_utf8_form_is_sent_with_question_marks() -> None:
    assert SAMPLE.decode(SAMPLE.encode(Sample(count=1, name="a\udc80b"))).name == "a?b"


def test_a_codec_wants_a_name_for_each_message() -> None:
    with pytest.raises(TypeError, match="wire name"):
        Codec(Part)
    with pytest.raises(TypeError, match="wire name"):
        Codec(Sample, Sample)


@pytest.mark.parametrize("hint", [int, str, bytes, tuple[int, ...], dict], ids=str)
def test_a_field_without_bounds_can_not_be_on_the_wire(hint: Any) -> None:
    cls: type = dataclass(frozen=True)(type("Loose", (), {"__annotations__": {"value": hint}}))
    with pytest.raises(TypeError):
        decode_record(cls, msgpack.packb({"value": 1}))


# ---- every codec


CODECS = {"adverts": ADVERTS, "checkpoint": CHECKPOINT, "count": COUNT, "inference": INFERENCE}
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
CLASSES = [(codec, cls) for codec in CODECS.values() for cls in codec.classes]


@pytest.mark.parametrize(("codec", "cls"), CLASSES, ids=[cls.__name__ for _, cls in CLASSES])
def test_every_message_survives_the_wire(codec: Codec, cls: type) -> None:
    @settings(max_examples=40)
    @given(messages(cls))
    def check(value: Any) -> None:
        (payload,) = FrameDecoder().feed(pack_frame(codec.encode(value)))
        assert codec.decode(payload) == value

    check()


@pytest.mark.parametrize("cls", [Advert, PromptBody])
def test_every_record_survives_the_wire(cls: type) -> None:
    @settings(max_examples=40)
    @given(messages(cls))
    def check(value: Any) -> None:
        assert decode_record(cls, encode(value)) == value

    check()


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def decodes_or_refuses(codec: Codec, payload: bytes) -> None:
    """Any other exception fails the test; what was decoded encodes again."""
    try:
        value = codec.decode(payload)
    except ProtocolError:
        return
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    "codec", [ADVERTS, CHECKPOINT, COUNT, INFERENCE], ids=["adverts", "checkpoint", "count", "inference"]
)
def test_random_bytes_are_refused_with_a_protocol_error(codec: Codec) -> None:
    @examples(3000)
    @given(st.binary(max_size=80))
    def check(payload: bytes) -> None:
        decodes_or_refuses(codec, payload)

    check()


@pytest.mark.parametrize(
    "codec", [ADVERTS, CHECKPOINT, COUNT, INFERENCE], ids=["adverts", "checkpoint", "count", "inference"]
)
def test_random_values_in_known_messages_are_refused_with_a_protocol_error(codec: Codec) -> None:
    names = [message_class.__wire_name__ for message_class in codec.classes]  # type: ignore[attr-defined]
    keys = sorted({name for cls in codec.classes for name in cls.__dataclass_fields__})  # type: ignore[attr-defined]

    @examples(400)
    @given(st.sampled_from(names), st.dictionaries(st.sampled_from(keys), junk, max_size=8))
    def check(name: str, body: dict[str, Any]) -> None:
        decodes_or_refuses(codec, msgpack.packb({"t": name, **body}))

    check()


@pytest.mark.parametrize(
    "codec", [ADVERTS, CHECKPOINT, COUNT, INFERENCE], ids=["adverts", "checkpoint", "count", "inference"]
)
def test_damaged_messages_are_refused_with_a_protocol_error(codec: Codec) -> None:
    @examples(300)
    @given(st.sampled_from(codec.classes).flatmap(messages), st.randoms(use_true_random=False))
    def check(value: Any, rng: Random) -> None:
        payload = codec.encode(value)
        for _ in range(25):
            damaged = bytearray(payload)
            for _ in range(rng.randint(1, 3)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            decodes_or_refuses(codec, bytes(damaged))

    check()


def test_the_largest_messages_fit_a_frame() -> None:
    for codec, cls in CLASSES:
        assert len(codec.encode(largest(cls))) <= FRAME_MAX, cls
