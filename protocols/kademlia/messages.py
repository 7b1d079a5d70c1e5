"""Kademlia as libp2p speaks it: one message form for questions and answers. See ``SPEC.md``.

Peer ids, keys and addresses of peers are bytes on the wire. Addresses stay bytes here: which of them are
dialled is for the role above to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias, get_args

import base58

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.protobuf import Field, Schema

PROTOCOL: Final = "/p2pnode/kad/1.0.0"
STANDARD_PROTOCOL: Final = "/ipfs/kad/1.0.0"
"""libp2p's own name, for tests and private networks: its table holds peers that know nothing of our rules."""

K: Final = 20
"""Places of a bucket, and closer peers in an answer (the Kademlia paper's k, as in libp2p)."""
QUESTION_MAX: Final = 16 * 1024
ANSWER_MAX: Final = 256 * 1024
"""Bytes of an answer that are read. Those of ours are shorter: ``ANSWER_SENT_MAX``."""
ANSWER_SENT_MAX: Final = 48 * 1024
ENTRIES_MAX: Final = 4096
KEY_MAX: Final = 80
PEERS_READ: Final = 40
"""Closer peers, and providers, of one message that are looked at."""
ADDRESSES_MAX: Final = 8
ADDRESS_BYTES_MAX: Final = 256
RECORD_BYTES_MAX: Final = 1024
"""Of one peer's id and addresses together."""
ID_BYTES_MAX: Final = 44

Kind: TypeAlias = Literal["put_value", "get_value", "add_provider", "get_providers", "find_node", "ping"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""In the order of their numbers on the wire."""
_CONNECTED: Final = 1
_DIGEST_BYTES: Final = 32
_CACHED: Final = 4096

_PEER = Schema(
    "Peer",
    Field("id", 1, "bytes"),
    Field("addrs", 2, "bytes", many=True),
    Field("connection", 3, "int32"),
)
_MESSAGE = Schema(
    "Message",
    Field("type", 1, "int32"),
    Field("key", 2, "bytes"),
    Field("closerPeers", 8, _PEER, many=True),
    Field("providerPeers", 9, _PEER, many=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KadPeer:
    """A peer as a message names it. ``addresses`` are binary multiaddrs that nobody has checked."""

    peer: PeerId
    addresses: tuple[bytes, ...] = ()
    connected: bool = False
    """Whether who says so is connected to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A question or an answer; an answer has the kind of its question."""

    kind: Kind
    key: bytes = b""
    closer: tuple[KadPeer, ...] = ()
    providers: tuple[KadPeer, ...] = ()


def decode(data: bytes) -> Message:
    """The message in ``data``. Raises ``ProtocolError``.

    Lists longer than ``PEERS_READ`` are cut, peers whose id is none are left out, and of a peer's addresses
    the first are kept that fit: what is too long in a list costs its sender the rest, never the message.
    """
    found = _MESSAGE.decode(data, entries_max=ENTRIES_MAX)
    if not 0 <= found.type < len(KINDS):
        msg = f"a Kademlia message of the unknown kind {found.type}"
        raise ProtocolError(msg)
    if len(found.key) > KEY_MAX:
        msg = f"a Kademlia key of {len(found.key)} bytes; at most {KEY_MAX} are allowed"
        raise ProtocolError(msg)
    return Message(
        kind=KINDS[found.type],
        key=found.key,
        closer=_peers_in(found.closerPeers),
        providers=_peers_in(found.providerPeers),
    )


def encode(message: Message) -> bytes:
    """The bytes of a message, at most ``ANSWER_SENT_MAX``.

    Peers that would not fit any more are left out: the closer ones first, then providers.
    """
    made = _MESSAGE.make()
    # What is 0 or empty is not written, as proto3 has it; but a message of no bytes would be no frame.
    if (kind := KINDS.index(message.kind)) or not (message.key or message.closer or message.providers):
        made.type = kind
    if message.key:
        made.key = message.key
    size = made.ByteSize()
    for target, peers in ((made.providerPeers, message.providers), (made.closerPeers, message.closer)):
        for each in peers:
            entry = _peer_of(each)
            size += entry.ByteSize() + 4  # its number, and its length in at most three bytes
            if size > ANSWER_SENT_MAX:
                return bytes(made.SerializeToString())
            target.append(entry)
    return bytes(made.SerializeToString())


def fit(addresses: Iterable[bytes]) -> tuple[bytes, ...]:
    """Of a peer's addresses the first that a record has room for, each once."""
    left = RECORD_BYTES_MAX - ID_BYTES_MAX
    kept: list[bytes] = []
    for each in dict.fromkeys(addresses):
        if not each or len(each) > min(left, ADDRESS_BYTES_MAX):
            continue
        kept.append(each)
        left -= len(each)
        if len(kept) == ADDRESSES_MAX:
            break
    return tuple(kept)


def record_key(key: bytes) -> bytes:
    """The multihash under which providers of ``key`` are stored: ``0x12 0x20`` and a SHA-256.

    A key of 32 bytes is taken for a SHA-256 (as a model id is); any other is hashed first.
    """
    digest = key if len(key) == _DIGEST_BYTES else hashlib.sha256(key).digest()
    return b"\x12\x20" + digest


@lru_cache(_CACHED)
def point_of_key(key: bytes) -> int:
    """Where a key lies: its SHA-256 as a number. Distances are the XOR of two such numbers."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


def point_of(peer: PeerId) -> int:
    """Where a peer lies: the SHA-256 of its id's bytes."""
    return point_of_key(bytes_of(peer))


@lru_cache(_CACHED)
def bytes_of(peer: PeerId) -> bytes:
    """A peer id as it is on the wire."""
    return bytes(base58.b58decode(peer))


def peer_of(raw: bytes) -> PeerId | None:
    """The peer id in these bytes, a multihash (SHA-256, or identity of a short key); None for any other."""
    hashed = len(raw) == _DIGEST_BYTES + 2 and raw.startswith(b"\x12\x20")
    inline = len(raw) <= ID_BYTES_MAX and raw.startswith(bytes([0, max(0, len(raw) - 2)]))
    return PeerId(_text_of(raw)) if hashed or inline else None


@lru_cache(_CACHED)
def _text_of(raw: bytes) -> str:
    return base58.b58encode(raw).decode()


def _peers_in(entries: Any) -> tuple[KadPeer, ...]:
    found: dict[PeerId, KadPeer] = {}
    for entry in entries[:PEERS_READ]:
        peer = peer_of(entry.id)
        if peer is not None and peer not in found:
            found[peer] = KadPeer(
                peer=peer,
                addresses=fit(entry.addrs),
                connected=entry.connection == _CONNECTED,
            )
    return tuple(found.values())


def _peer_of(each: KadPeer) -> Any:
    made = _PEER.make(id=bytes_of(each.peer), addrs=fit(each.addresses))
    if each.connected:
        made.connection = _CONNECTED
    return made
