"""What S5 nodes say to one another over a websocket, one message to a binary frame. See ``SPEC.md``.

Most are msgpack values one after another, the first of which is the message's number; a storage location
and a registry entry are bytes of their own form. Values after those that are known are ignored, and so are
messages with other numbers: S5's streams (8, 9, 0x49) among them, of which this node keeps none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, TypeAlias, assert_never

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import Signer, verify_key
from p2pnode.protocols.s5.entries import Entry, EntryKey, parse_entry, parse_key, tagged
from p2pnode.protocols.s5.ids import MULTIHASH_BYTES, BlobHash, is_old_multihash, multihash, parse_multihash
from p2pnode.protocols.s5.locations import FILE, FULL, StorageLocation, parse_location
from p2pnode.protocols.s5.nodes import URI_MAX, NodeId, node_bytes, parse_node
from p2pnode.protocols.s5.values import Reader, pack

FRAME_MAX: Final = 256 * 1024
"""Bytes of one websocket message, both ways."""
CHALLENGE_BYTES: Final = 32
"""Of ours; others draw up to ``CHALLENGE_MAX``, s5.js 64."""
CHALLENGE_MAX: Final = 64
FEATURES: Final = 3
"""What every node of this dialect must support."""
NETWORK_MAX: Final = 64
URIS_MAX: Final = 8
PEERS_MAX: Final = 64
"""Peers of one announcement that are read; the others are left."""
TYPES_MAX: Final = 16
_U8: Final = 2**8 - 1
_U32: Final = 2**32 - 1
_COUNT_MAX: Final = 2**16 - 1
_KEY: Final = 33
_SIGNATURE: Final = 64


class Kind(IntEnum):
    """The numbers of messages and of statements."""

    HANDSHAKE_OPEN = 1
    HANDSHAKE_DONE = 2
    HASH_QUERY = 4
    STORAGE_LOCATION = 5
    REGISTRY_ENTRY = 7
    ANNOUNCE_PEERS = 8
    SIGNED = 10
    REGISTRY_QUERY = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeOpen:
    """The first message of either side: a challenge to sign. ``network`` names a closed network."""

    challenge: bytes
    network: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A statement and the node that signed it. :meth:`holds` checks the signature."""

    node: NodeId
    signature: bytes
    inner: bytes

    def holds(self) -> bool:
        """Whether the node signed it. It takes a third of a millisecond."""
        return verify_key(self.node, self.inner, self.signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeDone:
    """A statement: the answer to a challenge, the speaker's features, and where it can be dialled."""

    challenge: bytes
    features: int = FEATURES
    uris: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPeer:
    """A node that another knows."""

    node: NodeId
    connected: bool
    uris: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncePeers:
    """A statement: these nodes exist, as far as the speaker knows."""

    peers: tuple[KnownPeer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HashQuery:
    """Ask who has this blob. ``old`` writes the hash's kind as 1f, as all known nodes do."""

    digest: BlobHash
    types: tuple[int, ...] = (FILE, FULL)
    old: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryQuery:
    """Ask for the newest entry of this key."""

    key: EntryKey


@dataclass(frozen=True, slots=True)
class Ignored:
    """A message that means nothing to this node; ``kind`` is its number."""

    kind: int


S5Message: TypeAlias = HandshakeOpen | Signed | HashQuery | RegistryQuery | StorageLocation | Entry | Ignored
Statement: TypeAlias = HandshakeDone | AnnouncePeers | Ignored


def decode(frame: bytes) -> S5Message:
    """The message in a frame; no signature is checked. Raises ``ProtocolError``."""
    if not 0 < len(frame) <= FRAME_MAX:
        msg = f"a message has 1 to {FRAME_MAX} bytes, not {len(frame)}"
        raise ProtocolError(msg)
    if frame[0] == Kind.STORAGE_LOCATION:
        return parse_location(frame)
    if frame[0] == Kind.REGISTRY_ENTRY:
        return parse_entry(frame)
    reader = Reader(frame)
    match kind := reader.take_int(_U32, "the kind of message"):
        case Kind.HANDSHAKE_OPEN:
            challenge = reader.take_bytes(CHALLENGE_BYTES, CHALLENGE_MAX, "the challenge")
            network = "" if reader.at_end else reader.take_text(NETWORK_MAX, "the network's id")
            return HandshakeOpen(challenge=challenge, network=network)
        case Kind.HASH_QUERY:
            raw = reader.take_bytes(MULTIHASH_BYTES, MULTIHASH_BYTES, "the hash")
            types = reader.take_ints(TYPES_MAX, _U8, "the types")
            return HashQuery(digest=parse_multihash(raw), types=types, old=is_old_multihash(raw))
        case Kind.SIGNED:
            return Signed(
                node=parse_node(reader.take_bytes(_KEY, _KEY, "the node's id")),
                signature=reader.take_bytes(_SIGNATURE, _SIGNATURE, "the signature"),
                inner=reader.take_bytes(1, FRAME_MAX, "the statement"),
            )
        case Kind.REGISTRY_QUERY:
            return RegistryQuery(key=parse_key(reader.take_bytes(_KEY, _KEY, "the key")))
        case _:
            return Ignored(kind)


def encode(message: S5Message) -> bytes:
    """A frame."""
    match message:
        case HandshakeOpen(challenge=challenge, network=network):
            return pack(Kind.HANDSHAKE_OPEN, challenge, *((network,) if network else ()))
        case Signed():
            return pack(Kind.SIGNED, node_bytes(message.node), message.signature, message.inner)
        case HashQuery():
            return pack(Kind.HASH_QUERY, multihash(message.digest, old=message.old), message.types)
        case RegistryQuery(key=key):
            return pack(Kind.REGISTRY_QUERY, tagged(key))
        case StorageLocation() | Entry():
            return message.to_bytes()
        case Ignored(kind=kind):
            return pack(kind)
        case _:
            assert_never(message)


def decode_statement(inner: bytes) -> Statement:
    """The statement inside ``Signed``. Raises ``ProtocolError``."""
    reader = Reader(inner)
    match kind := reader.take_int(_U32, "the kind of statement"):
        case Kind.HANDSHAKE_DONE:
            return HandshakeDone(
                challenge=reader.take_bytes(CHALLENGE_BYTES, CHALLENGE_MAX, "the challenge"),
                features=reader.take_int(_U32, "the features"),
                uris=() if reader.at_end else _take_uris(reader),
            )
        case Kind.ANNOUNCE_PEERS:
            count = reader.take_int(_COUNT_MAX, "the number of peers")
            return AnnouncePeers(peers=tuple([_take_peer(reader) for _ in range(min(count, PEERS_MAX))]))
        case _:
            return Ignored(kind)


def encode_statement(statement: HandshakeDone | AnnouncePeers) -> bytes:
    """What is signed."""
    match statement:
        case HandshakeDone(challenge=challenge, features=features, uris=uris):
            return pack(Kind.HANDSHAKE_DONE, challenge, features, len(uris), *uris)
        case AnnouncePeers(peers=peers):
            described = [
                pack(node_bytes(peer.node), peer.connected, len(peer.uris), *peer.uris) for peer in peers
            ]
            return pack(Kind.ANNOUNCE_PEERS, len(peers)) + b"".join(described)
        case _:
            assert_never(statement)


def sign_statement(statement: HandshakeDone | AnnouncePeers, node: NodeId, sign: Signer) -> Signed:
    """A statement as ``node`` sends it; ``sign`` is Ed25519 of its key."""
    inner = encode_statement(statement)
    return Signed(node=node, signature=sign(inner), inner=inner)


def announcement(peers: tuple[KnownPeer, ...]) -> AnnouncePeers:
    """As much of these peers as the other side will read."""
    readable = [replace(each, uris=readable_uris(each.uris)) for each in peers[:PEERS_MAX]]
    return AnnouncePeers(peers=tuple(readable))


def readable_uris(uris: tuple[str, ...]) -> tuple[str, ...]:
    """As many of these URIs as the other side will read."""
    return tuple([uri for uri in uris if len(uri.encode()) <= URI_MAX][:URIS_MAX])


def _take_peer(reader: Reader) -> KnownPeer:
    return KnownPeer(
        node=parse_node(reader.take_bytes(_KEY, _KEY, "a peer's id")),
        connected=reader.take_bool("whether a peer is connected"),
        uris=_take_uris(reader),
    )


def _take_uris(reader: Reader) -> tuple[str, ...]:
    count = reader.take_int(URIS_MAX, "the number of URIs")
    return tuple([reader.take_text(URI_MAX, "a URI") for _ in range(count)])
