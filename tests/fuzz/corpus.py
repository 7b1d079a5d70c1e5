"""Valid bytes of each protocol: the vectors of their specifications, and what libraries make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from p2pnode.net.multiaddrs import to_id
from p2pnode.node.keys import PeerKey
from tests.net.memory_world import seed_of

_ROOT = Path(__file__).parents[2]
SOMEBODY = PeerKey(seed_of(900)).peer_id


def vectors(protocol: str) -> dict[str, Any]:
    """``vectors.json``."""
    found: dict[str, Any] = json.loads((_ROOT / "protocols" / protocol / "vectors.json").read_text())
    return found


def messages(protocol: str) -> list[bytes]:
    """The encodings of a protocol's messages and records."""
    found = vectors(protocol)
    return [bytes.fromhex(each["hex"]) for kind in ("messages", "records") for each in found.get(kind, ())]


def kad() -> list[bytes]:
    """Questions and answers of the DHT, without their length."""
    peer = Message.Peer(id=to_id(SOMEBODY).to_bytes(), addrs=[Multiaddr("/ip4/10.0.0.9/tcp/4001").to_bytes()])
    kinds = Message.MessageType
    made = [
        Message(type=kinds.FIND_NODE, key=b"\x12\x20" + bytes(32), closerPeers=[peer]),
        Message(
            type=kinds.GET_PROVIDERS, key=b"\x12\x20" + bytes(32), providerPeers=[peer], closerPeers=[peer]
        ),
        Message(type=kinds.ADD_PROVIDER, key=b"\x12\x20" + bytes(32), providerPeers=[peer]),
        Message(type=kinds.GET_VALUE, key=b"key"),
        Message(type=kinds.PUT_VALUE, key=b"key", record={"key": b"key", "value": b"value"}),
        Message(type=kinds.PING),
    ]
    return [each.SerializeToString() for each in made]


def gossip(topic: str) -> list[bytes]:
    """RPCs of meshsub, without their length."""
    message = rpc_pb2.Message(
        from_id=to_id(SOMEBODY).to_bytes(),
        data=b"data",
        seqno=bytes(8),
        topicIDs=[topic],
        signature=bytes(64),
    )
    control = rpc_pb2.ControlMessage(
        ihave=[rpc_pb2.ControlIHave(topicID=topic, messageIDs=[b"id"])],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"id"])],
        graft=[rpc_pb2.ControlGraft(topicID=topic)],
        prune=[rpc_pb2.ControlPrune(topicID=topic, backoff=1)],
    )
    subscription = rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic)
    made = [
        rpc_pb2.RPC(subscriptions=[subscription]),
        rpc_pb2.RPC(publish=[message]),
        rpc_pb2.RPC(control=control),
        rpc_pb2.RPC(subscriptions=[subscription], publish=[message], control=control, senderRecord=b"record"),
    ]
    return [each.SerializeToString() for each in made]


def identify() -> list[bytes]:
    """What a peer says of itself, without its length."""
    full = Identify(
        protocol_version="ipfs/0.1.0",
        agent_version="fuzz",
        public_key=b"\x08\x01\x12\x20" + bytes(32),
        listen_addrs=[Multiaddr("/ip4/10.0.0.9/tcp/4001").to_bytes()],
        observed_addr=Multiaddr("/ip4/10.0.0.9/tcp/4001").to_bytes(),
        protocols=["/p2pnode/kad/1.0.0", "/p2pnode/adverts/1", "/meshsub/1.1.0"],
        signedPeerRecord=b"record",
    )
    return [full.SerializeToString(), Identify(protocols=["x"]).SerializeToString()]


def prefixed(payload: bytes) -> bytes:
    """With the length before it that libp2p's own protocols have."""
    return encode_varint_prefixed(payload)
