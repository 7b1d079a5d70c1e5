"""RPCs are what libp2p's own classes read and write, and a signature covers what theirs covers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import get_peer_and_seqno_msg_id
from libp2p.pubsub.validators import signature_validator

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import peer_id_of, verify_key
from p2pnode.protocols.gossipsub.messages import (
    DATA_MAX,
    ENTRIES_MAX,
    ID_MAX,
    RPC,
    TOPIC_MAX,
    Control,
    Message,
    Rpc,
    decode_rpc,
    encode_publish,
    encode_subscriptions,
    key_fits,
    message_of,
    public_key_in,
    signed_bytes,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "protocols" / "gossipsub" / "vectors.json").read_text()
)
SEED = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
PUBLIC = KEY.public_key().public_bytes_raw()
PAIR = create_new_key_pair(SEED)
AUTHOR = ID.from_pubkey(PAIR.public_key).to_bytes()
TOPIC = "/p2pnode/adverts/1/" + "ab" * 32


def ours(data: bytes = b"data", topic: str = TOPIC, **changes: Any) -> Message:
    seqno = (7).to_bytes(8, "big")
    signature = KEY.sign(signed_bytes(AUTHOR, data, seqno, topic.encode()))
    made = {"author": AUTHOR, "seqno": seqno, "topic": topic.encode(), "data": data, "signature": signature}
    return Message.of(**{**made, **changes})


def theirs(data: bytes = b"data", **changes: Any) -> rpc_pb2.Message:
    """As the library's ``publish`` makes it."""
    made = {"data": data, "topicIDs": [TOPIC], "from_id": AUTHOR, "seqno": (7).to_bytes(8, "big")}
    message = rpc_pb2.Message(**{**made, **changes})
    message.signature = PAIR.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    message.key = PAIR.public_key.serialize()
    return message


def parsed(message: rpc_pb2.Message) -> Message:
    return message_of(RPC.parse(rpc_pb2.RPC(publish=[message]).SerializeToString()).publish[0])


TOPICS = st.binary(min_size=1, max_size=200)
IDS = st.lists(st.binary(max_size=200), min_size=1, max_size=4)


@given(
    graft=st.dictionaries(TOPICS, st.none(), max_size=3),
    prune=st.dictionaries(TOPICS, st.integers(0, 2**63), max_size=3),
    ihave=st.dictionaries(TOPICS, IDS, max_size=3),
    iwant=IDS | st.just([]),
    idontwant=IDS | st.just([]),
)
def test_control_messages_are_the_bytes_that_protocol_buffers_write(
    graft: dict[bytes, None],
    prune: dict[bytes, int],
    ihave: dict[bytes, list[bytes]],
    iwant: list[bytes],
    idontwant: list[bytes],
) -> None:
    ours = Control(graft=graft, prune=prune, ihave=dict(ihave), iwant=iwant, idontwant=idontwant)
    theirs = RPC.make(
        control={
            "graft": [{"topic": topic} for topic in graft],
            "prune": [{"topic": topic, "backoff": backoff} for topic, backoff in prune.items()],
            "ihave": [{"topic": topic, "ids": ids} for topic, ids in ihave.items()],
            "iwant": [{"ids": iwant}] if iwant else [],
            "idontwant": [{"ids": idontwant}] if idontwant else [],
        }
    )
    assert ours.encode() == theirs.SerializeToString()


@pytest.mark.parametrize("data", [b"", b"x", b"y" * 127, b"z" * 128, b"w" * 20_000])
def test_the_library_verifies_what_we_sign(data: bytes) -> None:
    [read] = rpc_pb2.RPC.FromString(ours(data).encode()).publish
    assert (read.from_id, read.data, list(read.topicIDs)) == (AUTHOR, data, [TOPIC])
    assert signature_validator(read)
    read.data += b"!"
    assert not signature_validator(read)


@pytest.mark.parametrize("data", [b"", b"x", b"w" * 20_000])
def test_we_verify_what_the_library_signs(data: bytes) -> None:
    message = parsed(theirs(data))
    key = public_key_in(message.author)
    assert key == PUBLIC
    assert key_fits(message, PUBLIC)
    signed = signed_bytes(message.author, message.data, message.seqno, message.topic)
    assert verify_key(PUBLIC, signed, message.signature)
    assert not verify_key(PUBLIC, signed + b"!", message.signature)


def test_the_id_of_a_message_is_the_library_s() -> None:
    assert ours().id == get_peer_and_seqno_msg_id(theirs())


def test_a_message_travels_on_as_it_came() -> None:
    for message in (theirs(), theirs(b"")):
        rpc = rpc_pb2.RPC(publish=[message]).SerializeToString()
        assert parsed(message).encode() == rpc
    without = theirs()
    without.ClearField("key")
    assert parsed(without).encode() == rpc_pb2.RPC(publish=[without]).SerializeToString()


def read_by_the_parser(payload: bytes) -> tuple[Any, ...]:
    """What protocol buffers read: entries, and of each message its fields, or None for a bad form."""
    entries, body = RPC.count(payload, entries_max=ENTRIES_MAX), RPC.parse(payload)
    return entries, len(body.subscriptions), body.HasField("control"), [fields(each) for each in body.publish]


def fields(sent: Any) -> tuple[Any, ...] | None:
    try:
        message = message_of(sent)
    except ProtocolError:
        return None
    signed = signed_bytes(sent.author, sent.data, sent.seqno, sent.topics[0])
    assert message.signed() == signed
    return (message.id, sent.author, sent.seqno, sent.topics[0], sent.data, sent.signature, sent.key, signed)


def as_read(rpc: Rpc) -> tuple[Any, ...]:
    """The same of ``decode_rpc``."""
    found: list[Any] = []
    for entry in rpc.publish:
        try:
            read = entry.message()
        except ProtocolError:
            found.append(None)
            continue
        assert (entry.id, list(entry.topics), read.size) == (read.id, [read.topic], len(read.data))
        found.append(
            (read.id, read.author, read.seqno, read.topic, read.data, read.signature, read.key, read.signed())
        )
    return rpc.entries, len(rpc.subscriptions), rpc.control is not None, found


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except ProtocolError as error:
        return type(error)


SIZES = st.sampled_from([0, 1, 2, 38, 64, 88, 89, 100, 101, 127, 128, 129, 200, 16_383, 16_384, 20_000])


@given(
    sizes=st.tuples(SIZES, SIZES, st.sampled_from([8, 8, 7, 9]), SIZES, SIZES, st.sampled_from([0, 36, 200])),
    ordered=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3)), max_size=2),
)
@example(sizes=(38, 500, 8, 82, 64, 0), ordered=True, changes=[])
@example(sizes=(38, 500, 8, 82, 64, 36), ordered=True, changes=[])
@example(sizes=(0, 0, 8, 0, 0, 0), ordered=True, changes=[(1, b"\x8e\x00", 1)])
def test_decode_rpc_reads_what_the_parser_reads(
    sizes: tuple[int, ...], ordered: bool, changes: list[tuple[int, bytes, int]]
) -> None:
    author, data, seqno, topic, signature, key = (bytes([65 + at]) * size for at, size in enumerate(sizes))
    made = Message.of(author=author, data=data, seqno=seqno, topic=topic, signature=signature, key=key)
    payload = made.encode() if ordered else made.encode() * 2
    for at, put, instead in changes:
        payload = payload[:at] + put + payload[at + instead :]
    assert outcome(lambda: as_read(decode_rpc(payload))) == outcome(lambda: read_by_the_parser(payload))


def control_read(control: Any) -> Any:
    """Its lists, as plain values."""
    return [
        [(each.topic, list(each.ids)) for each in control.ihave],
        [list(each.ids) for each in (*control.iwant, *control.idontwant)],
        [each.topic for each in (*control.graft, *control.prune)],
    ]


@given(
    ihave=st.dictionaries(st.binary(max_size=130), st.lists(st.binary(max_size=130), max_size=4), max_size=2),
    many=st.sampled_from([0, 0, 1, 300, 400, 7000]),
    changes=st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=2), st.integers(0, 2)), max_size=2),
)
@example(ihave={b"topic": [b"i" * 46] * 4}, many=0, changes=[])
@example(ihave={b"topic": [b""] * 6141}, many=0, changes=[])
@example(ihave={b"topic": [b""] * 6142}, many=0, changes=[])
def test_offers_are_read_as_the_parser_reads_them(
    ihave: dict[bytes, list[bytes]], many: int, changes: list[tuple[int, bytes, int]]
) -> None:
    told = {topic: [*ids, *[b"i" * (46 if many < 1000 else 1)] * many] for topic, ids in ihave.items()}
    payload = Control(ihave=dict(told)).encode()
    for at, put, instead in changes:
        payload = payload[:at] + put + payload[at + instead :]

    def ours_() -> Any:
        rpc = decode_rpc(payload)
        return rpc.entries, len(rpc.publish), rpc.control is not None and control_read(rpc.control)

    def theirs_() -> Any:
        entries, body = RPC.count(payload, entries_max=ENTRIES_MAX), RPC.parse(payload)
        return entries, len(body.publish), body.HasField("control") and control_read(body.control)

    assert outcome(ours_) == outcome(theirs_)


@given(st.binary(max_size=40))
def test_decode_rpc_raises_for_the_same_bytes_as_the_parser(payload: bytes) -> None:
    assert outcome(lambda: as_read(decode_rpc(payload))) == outcome(lambda: read_by_the_parser(payload))


def test_a_message_that_was_read_travels_on_as_it_came() -> None:
    for message in (ours(), ours(b""), ours(b"x" * 20_000), ours(key=PAIR.public_key.serialize())):
        payload = message.encode()
        [entry] = decode_rpc(payload).publish
        assert entry.message().encode() == payload
        assert entry.message().signed() == message.signed()


def test_several_messages_are_one_rpc() -> None:
    read = rpc_pb2.RPC.FromString(encode_publish([ours(b"one"), ours(b"two")]))
    assert [each.data for each in read.publish] == [b"one", b"two"]


def test_a_foreign_key_beside_the_message_does_not_fit() -> None:
    assert key_fits(ours(key=PAIR.public_key.serialize()), PUBLIC)
    assert not key_fits(ours(key=create_new_key_pair(bytes(32)).public_key.serialize()), PUBLIC)
    assert not key_fits(ours(key=PUBLIC), PUBLIC)


@pytest.mark.parametrize("author", [b"", b"short", bytes.fromhex("1220") + bytes(32), AUTHOR + b"x"])
def test_only_an_ed25519_id_holds_its_key(author: bytes) -> None:
    assert public_key_in(author) is None
    assert peer_id_of(public_key_in(AUTHOR) or b"") == ID(AUTHOR).to_base58()


@pytest.mark.parametrize(
    "changes",
    [
        {"topicIDs": []},
        {"topicIDs": [TOPIC, "other"]},
        {"topicIDs": ["t" * (TOPIC_MAX + 1)]},
        {"topicIDs": [""]},
        {"from_id": b""},
        {"from_id": b"x" * (ID_MAX - 7)},
        {"seqno": b"1234567"},
        {"seqno": b"123456789"},
        {"data": b"x" * (DATA_MAX + 1)},
    ],
    ids=lambda changes: f"{next(iter(changes))} {str(next(iter(changes.values())))[:12]}",
)
def test_a_message_of_a_form_that_nobody_sends_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        parsed(rpc_pb2.Message(**{"topicIDs": [TOPIC], "from_id": AUTHOR, "seqno": b"12345678", **changes}))


def test_what_we_tell_of_topics_is_what_the_library_reads() -> None:
    read = rpc_pb2.RPC.FromString(encode_subscriptions({b"on": True, b"off": False}))
    assert [(each.topicid, each.subscribe) for each in read.subscriptions] == [("on", True), ("off", False)]


def test_control_is_what_the_library_reads() -> None:
    told = Control(
        graft={b"g": None}, prune={b"p": 60}, ihave={b"h": [b"1", b"2"]}, iwant=[b"3"], idontwant=[b"4"]
    )
    control = rpc_pb2.RPC.FromString(told.encode()).control
    assert [each.topicID for each in control.graft] == ["g"]
    assert [(each.topicID, each.backoff, len(each.peers)) for each in control.prune] == [("p", 60, 0)]
    assert [(each.topicID, list(each.messageIDs)) for each in control.ihave] == [("h", [b"1", b"2"])]
    assert [list(each.messageIDs) for each in control.iwant] == [[b"3"]]
    assert [list(each.messageIDs) for each in control.idontwant] == [[b"4"]]
    assert rpc_pb2.RPC.FromString(Control(graft={b"g": None}).encode()).control.iwant == []


def test_control_of_the_library_is_read() -> None:
    theirs_ = rpc_pb2.ControlMessage(
        prune=[
            rpc_pb2.ControlPrune(
                topicID="p", backoff=2**64 - 1, peers=[rpc_pb2.PeerInfo(peerID=b"x", signedPeerRecord=b"y")]
            )
        ],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"1"])],
    )
    rpc = RPC.decode(rpc_pb2.RPC(control=theirs_).SerializeToString(), entries_max=ENTRIES_MAX)
    assert [(each.topic, each.backoff) for each in rpc.control.prune] == [(b"p", 2**64 - 1)]
    assert [list(each.ids) for each in rpc.control.iwant] == [[b"1"]]


@pytest.mark.parametrize("vector", VECTORS["rpcs"], ids=lambda vector: str(vector["name"]))
def test_each_vector_is_what_the_library_writes(vector: dict[str, Any]) -> None:
    raw = bytes.fromhex(vector["hex"])
    assert rpc_pb2.RPC.FromString(raw).SerializeToString() == raw
    assert RPC.count(raw, entries_max=ENTRIES_MAX) == vector["entries"]


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda vector: str(vector["name"]))
def test_each_signed_vector_holds_for_the_library_and_for_us_or_for_neither(vector: dict[str, Any]) -> None:
    [read] = rpc_pb2.RPC.FromString(bytes.fromhex(vector["hex"])).publish
    assert signature_validator(read) == vector["holds"]
    message = parsed(read)
    signed = signed_bytes(message.author, message.data, message.seqno, message.topic)
    assert (message.id.hex(), signed.hex()) == (vector["id"], vector["signed"])
    key = public_key_in(message.author)
    assert key is not None
    assert key_fits(message, key)
    assert verify_key(key, signed, message.signature) == vector["holds"]
