"""go-libp2p, by what others recorded of it or published of its formats: ``go_libp2p.json`` says where from.

Go itself is not run here. A recording shows that its bytes are read; the formats, that a newer version's are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pnode.ids import PeerId
from p2pnode.net import yamux
from p2pnode.node.keys import PeerKey
from p2pnode.protocols.crypto import peer_id_of, public_key_of
from p2pnode.protocols.gossipsub import messages as gossipsub
from p2pnode.protocols.identify import messages as identify
from p2pnode.protocols.kademlia import messages as kademlia
from p2pnode.protocols.protobuf import Field, Schema
from tests.net.support import Wire

TOLD: Final[dict[str, Any]] = json.loads((Path(__file__).parent / "go_libp2p.json").read_text())
HEADER: Final = b"\x13/multistream/1.0.0\n"
ECHO: Final = HEADER + b"\x0c/echo/1.0.0\n" + b"Hello from swift libp2p!\n"
IDENTIFY: Final = HEADER + b"\x0f/ipfs/id/1.0.0\n"


async def read_all(stream: yamux.YamuxStream) -> bytes:
    """What the recording has on one stream."""
    data = b""
    while more := await stream.read():
        data += more
    return data


async def recorded() -> tuple[dict[int, bytes], bytes]:
    """What go-libp2p said on each stream of the session, and what our muxer sent meanwhile."""
    wire = Wire()
    conn = yamux.Yamux(wire, PeerId("go"), is_initiator=True)
    found: dict[int, bytes] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.start)
        await conn.event_started.wait()
        ours = [conn.open_stream() for _ in range(3)]
        wire.say(b"".join(bytes.fromhex(each) for each in TOLD["session"]["frames"]))
        theirs = await conn.opened_by_peer.receive()
        for stream in (theirs, *ours):
            found[stream.stream_id] = await read_all(stream)
        assert not conn.is_closed
        await conn.close()
    return found, wire.sent


async def test_a_recorded_session_of_go_passes_our_muxer(autojump_clock: object) -> None:
    found, sent = await recorded()
    assert sorted(found) == [1, 2, 3, 5]
    assert found[1] == found[5] == ECHO
    assert found[2] == IDENTIFY
    assert found[3].startswith(IDENTIFY)
    assert yamux.frame(yamux.PING, yamux.ACK, 0, 0) in sent
    assert yamux.frame(yamux.WINDOW_UPDATE, yamux.ACK, 2, 0) in sent
    assert yamux.frame(yamux.WINDOW_UPDATE, yamux.RST, 2, 0) not in sent


async def test_what_go_says_of_itself_is_read(autojump_clock: object) -> None:
    found, _ = await recorded()
    message = found[3].removeprefix(IDENTIFY)
    assert message[:2] == b"\xaf\x08"  # 1071 as a varint
    told = identify.decode(message[2:])
    assert told.protocols == {"/echo/1.0.0", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"}
    assert [str(Multiaddr(each)) for each in told.addresses] == ["/ip4/172.17.0.2/tcp/10000"]


def test_a_recorded_question_of_go_to_the_dht_is_read() -> None:
    data = bytes.fromhex(TOLD["kademlia"]["bytes"])
    message = data.removeprefix(HEADER + b"\x10/coda/kad/1.0.0\n")
    assert message[0] == len(message) - 1
    question = kademlia.decode(message[1:])
    assert (question.kind, question.closer, question.providers) == ("find_node", (), ())
    assert question.key == ID.from_base58(peer_id_of(question.key[6:])).to_bytes()
    # Go also says a cluster level (field 10), which means nothing any more: ours is the rest of its question.
    assert kademlia.encode(question) + b"\x50\x01" == message[1:]


def test_a_published_key_has_the_form_that_ours_have() -> None:
    told = TOLD["keys"]
    public = bytes.fromhex(told["public_protobuf"])
    key = PeerKey(bytes.fromhex(told["secret"]))
    assert public_key_of(key.peer_id) == public[4:]
    assert ID.from_base58(key.peer_id).to_bytes() == b"\x00\x24" + public


def test_published_multiaddrs_have_the_bytes_that_ours_have() -> None:
    for text, hexed in TOLD["multiaddrs"]["pairs"]:
        assert Multiaddr(text).to_bytes().hex() == hexed


# ---- formats, as go-libp2p-pubsub's rpc.proto has them since its extensions

_EXTENSIONS = Schema("ControlExtensions", Field("partialMessages", 10, "bool"))
_CONTROL = Schema(
    "ControlMessage",
    Field("graft", 3, gossipsub.GRAFT, many=True),
    Field("extensions", 6, _EXTENSIONS),
)
_SUBSCRIPTION = Schema(
    "SubOpts", Field("subscribe", 1, "bool"), Field("topicid", 2, "bytes"), Field("partial", 3, "bool")
)
_PARTIAL = Schema("PartialMessagesExtension", Field("topicID", 1, "bytes"), Field("groupID", 2, "bytes"))
_RPC = Schema(
    "RPC",
    Field("subscriptions", 1, _SUBSCRIPTION, many=True),
    Field("control", 3, _CONTROL),
    Field("partial", 10, _PARTIAL),
    Field("testExtension", 6_492_434, "bytes"),
)


def test_what_a_newer_go_peer_adds_to_an_rpc_is_passed_over() -> None:
    topic = b"/p2pnode/adverts/1/" + b"11" * 32
    sent = _RPC.make(
        subscriptions=[_SUBSCRIPTION.make(subscribe=False, topicid=topic, partial=True)],
        control=_CONTROL.make(
            graft=[gossipsub.GRAFT.make(topic=topic)], extensions=_EXTENSIONS.make(partialMessages=True)
        ),
        partial=_PARTIAL.make(topicID=topic, groupID=b"1"),
        testExtension=b"",
    ).SerializeToString()
    read = gossipsub.RPC.decode(sent, entries_max=gossipsub.ENTRIES_MAX)
    [subscription] = read.subscriptions
    # Proto2 has presence: Go writes that a peer is off a topic, and does not leave it out.
    assert (subscription.subscribe, subscription.topic) == (False, topic)
    assert [each.topic for each in read.control.graft] == [topic]
    assert not read.publish
