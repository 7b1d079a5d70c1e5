"""Identify's message as protocol buffers, and what of it is kept. See ``SPEC.md``.

Wire format: libp2p's ``identify`` specification (``/ipfs/id/1.0.0``). Addresses are binary multiaddrs here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.framing.codec import frame_head
from p2pnode.protocols.protobuf import Field, Schema

PROTOCOL: Final = "/ipfs/id/1.0.0"
PUSH: Final = "/ipfs/id/push/1.0.0"
PROTOCOL_VERSION: Final = "ipfs/0.1.0"
"""go-libp2p says nothing else, and some peers ask for it."""
MESSAGE_MAX: Final = 8192
"""Bytes of one message, either way: as in go-libp2p."""
ENTRIES_MAX: Final = 512
"""Fields of one message."""
ADDRESSES_MAX: Final = 16
ADDRESS_MAX: Final = 128
"""Bytes of one address."""
PROTOCOLS_MAX: Final = 96
PROTOCOL_NAME_MAX: Final = 64
"""Bytes of a protocol's name."""
KEPT_MAX: Final = 4096
"""Bytes of addresses and names that are kept of one peer."""

IDENTIFY: Final = Schema(
    "Identify",
    Field("public_key", 1, "bytes"),
    Field("listen_addrs", 2, "bytes", many=True),
    Field("protocols", 3, "bytes", many=True),
    Field("observed_addr", 4, "bytes"),
    Field("protocol_version", 5, "bytes"),
    Field("agent_version", 6, "bytes"),
    Field("signed_peer_record", 8, "bytes"),
)


_RECORD_DOMAIN: Final = b"libp2p-peer-record"
_RECORD_TYPE: Final = b"\x03\x01"
_ADDRESS_INFO: Final = Schema("AddressInfo", Field("multiaddr", 1, "bytes"))
_PEER_RECORD: Final = Schema(
    "PeerRecord",
    Field("peer_id", 1, "bytes"),
    Field("seq", 2, "uint64"),
    Field("addresses", 3, _ADDRESS_INFO, many=True),
)
_ENVELOPE: Final = Schema(
    "Envelope",
    Field("public_key", 1, "bytes"),  # a message of its own; it is written as it stands
    Field("payload_type", 2, "bytes"),
    Field("payload", 3, "bytes"),
    Field("signature", 5, "bytes"),
)


@dataclass(frozen=True, slots=True)
class Statement:
    """What a peer says of itself, as far as it is kept: where it listens, and what it speaks."""

    addresses: tuple[bytes, ...] = ()
    protocols: frozenset[str] = frozenset()


def encode(
    statement: Statement, *, public_key: bytes, observed: bytes, agent: str, signed_record: bytes
) -> bytes:
    """Our own message. ``public_key`` is the protocol buffers' form of the key, ``observed`` where the peer
    that asks comes from, ``signed_record`` a signed envelope with the same addresses."""
    message = IDENTIFY.make(
        public_key=public_key,
        listen_addrs=list(statement.addresses),
        protocols=[each.encode() for each in sorted(statement.protocols)],
        observed_addr=observed,
        protocol_version=PROTOCOL_VERSION.encode(),
        agent_version=agent.encode(),
        signed_peer_record=signed_record,
    )
    data: bytes = message.SerializeToString()
    return data


def signed_record(
    addresses: Iterable[bytes],
    *,
    peer_id: bytes,
    public_key: bytes,
    seq: int,
    sign: Callable[[bytes], bytes],
) -> bytes:
    """Our addresses in an envelope that others may pass on (libp2p's RFC 0002 and 0003). ``seq`` grows."""
    infos = [_ADDRESS_INFO.make(multiaddr=each) for each in addresses]
    payload: bytes = _PEER_RECORD.make(peer_id=peer_id, seq=seq, addresses=infos).SerializeToString()
    signed = b"".join(frame_head(len(part)) + part for part in (_RECORD_DOMAIN, _RECORD_TYPE, payload))
    data: bytes = _ENVELOPE.make(
        public_key=public_key, payload_type=_RECORD_TYPE, payload=payload, signature=sign(signed)
    ).SerializeToString()
    return data


def decode(data: bytes) -> Statement:
    """What is kept of a peer's message. Raises ``ProtocolError`` where it is too large or malformed.

    What exceeds a bound of its own is left out: the rest still holds.
    """
    if len(data) > MESSAGE_MAX:
        msg = f"an identify message of {len(data)} bytes; {MESSAGE_MAX} are allowed"
        raise ProtocolError(msg)
    message = IDENTIFY.decode(data, entries_max=ENTRIES_MAX)
    room = KEPT_MAX
    addresses, room = _kept(message.listen_addrs, ADDRESSES_MAX, ADDRESS_MAX, room)
    names, _ = _kept(message.protocols, PROTOCOLS_MAX, PROTOCOL_NAME_MAX, room)
    return Statement(addresses, frozenset(each.decode("utf-8", "replace") for each in names))


def _kept(values: Iterable[bytes], most: int, bytes_max: int, room: int) -> tuple[tuple[bytes, ...], int]:
    """The first ``most`` different ones that are small enough and fit, and the room that is left."""
    kept: dict[bytes, None] = {}
    for value in values:
        if len(kept) == most:
            break
        if 0 < len(value) <= min(bytes_max, room) and value not in kept:
            kept[value] = None
            room -= len(value)
    return tuple(kept), room
