"""Multiaddrs as strings: parsed, checked, and put together. Pure.

A multiaddr is a path such as ``/ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…``: first where a peer is, then who it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pnode.errors import ConfigError
from p2pnode.ids import PeerId

EXAMPLE: Final = "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…"
LISTEN_EXAMPLE: Final = "/ip4/0.0.0.0/tcp/4001"
HOST_PROTOCOLS: Final = ("ip4", "ip6", "dns", "dns4", "dns6")
MULTIADDR_MAX: Final = 1024
PEER_ID_MAX: Final = 128
_KNOWN_MAX: Final = 1024

Kind: TypeAlias = Literal["tcp", "ws"]
_KINDS: Final[dict[tuple[str, ...], Kind]] = {("tcp",): "tcp", ("tcp", "ws"): "ws"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAddresses:
    """A peer, and full multiaddrs at which it may be found. Only a hint until it was dialled."""

    peer: PeerId
    addrs: tuple[str, ...]


@lru_cache(_KNOWN_MAX)  # each lookup begins with the same first peers, and parsing takes a millisecond
def split_peer(maddr: str) -> tuple[str, PeerId]:
    """``(address, peer)`` of a full multiaddr. Raises ``ConfigError`` that shows a right one."""
    parsed = parse(maddr)
    names = [protocol.name for protocol in parsed.protocols()]
    if "p2p" not in names:
        raise ConfigError(f"{maddr!r} doesn't say which peer: it must end in /p2p/<peer id>, as in {EXAMPLE}")
    if names.count("p2p") > 1 or names[-1] != "p2p":
        raise ConfigError(
            f"{maddr!r} goes through a relay, which is not supported; use a direct one: {EXAMPLE}"
        )
    address, _, peer = str(parsed).rpartition("/p2p/")
    if not address:
        raise ConfigError(f"{maddr!r} doesn't say where the peer is; a whole one looks like {EXAMPLE}")
    check_address(address)
    return address, PeerId(check_peer(peer))


def with_peer(address: str, peer: PeerId) -> str:
    """The full form of an address, whether or not it ends in ``/p2p`` already."""
    return f"{without_peer(address)}/p2p/{peer}"


def without_peer(address: str) -> str:
    """The address without the peer. That of a circuit keeps its relay, and is none that we could dial."""
    head, mark, peer = address.rpartition("/p2p/")
    return head if mark and "/" not in peer else address


def parse(maddr: str, *, example: str = EXAMPLE) -> Multiaddr:
    """The library's object. It can be taken apart and written out again.

    Raises ``ConfigError`` that shows an ``example``.
    """
    # The length is checked first, because the library decodes base58 in quadratic time.
    if len(maddr) > MULTIADDR_MAX:
        raise ConfigError(f"{maddr[:40]!a}… is no multiaddr: it has more than {MULTIADDR_MAX} characters")
    try:
        parsed = Multiaddr(maddr)
        # Some protocols (ip6zone) are only found to be malformed when they are read again.
        text, protocols = str(parsed), list(parsed.protocols())
        # A path (unix) is written out without its escapes, so that the text may name another address.
        is_stable = not any(each.path for each in protocols) or str(Multiaddr(text)) == text
    except Exception as error:
        # Each of some forty protocols has a codec of its own, which may raise anything.
        raise ConfigError(f"{maddr!r} is no multiaddr; a right one looks like {example}") from error
    if not is_stable:
        msg = f"{maddr!r} has a path that is another one when it is written out; one looks like {example}"
        raise ConfigError(msg)
    return parsed


def kind_of(maddr: Multiaddr) -> Kind | None:
    """The transport by which this address is dialled; None for one that we can't dial."""
    names = [protocol.name for protocol in maddr.protocols()]
    if not names or names[0] not in HOST_PROTOCOLS:
        return None
    return _KINDS.get(tuple(names[1:]))


def check_address(address: str) -> Multiaddr:
    """The library's object. Raises ``ConfigError`` unless we can dial or listen on this kind of address."""
    parsed = parse(address, example=LISTEN_EXAMPLE)
    if kind_of(parsed) is not None:
        return parsed
    raise ConfigError(
        f"{address!r} is not supported: only TCP and WebSocket are, "
        f"as in {LISTEN_EXAMPLE} or {LISTEN_EXAMPLE}/ws"
    )


def is_valid(maddr: str) -> bool:
    """Whether it is a full multiaddr that we could dial."""
    try:
        split_peer(maddr)
    except ConfigError:
        return False
    return True


def check_peer(peer: str) -> PeerId:
    """The id itself. Raises ``ConfigError`` for what is no peer id."""
    wrong = f"{peer[:PEER_ID_MAX]!r} is no peer id; one looks like 12D3KooW…"
    if not 0 < len(peer) <= PEER_ID_MAX:
        raise ConfigError(wrong)
    try:
        to_id(PeerId(peer))
    except Exception as error:
        raise ConfigError(wrong) from error
    return PeerId(peer)


def is_peer(peer: str) -> bool:
    """Whether it is a peer id."""
    try:
        check_peer(peer)
    except ConfigError:
        return False
    return True


def to_id(peer: PeerId) -> ID:
    """The library's object of a peer id."""
    return ID.from_base58(peer)


def from_id(peer: ID) -> PeerId:
    """Our string of a peer id."""
    return PeerId(peer.to_base58())


def endpoint(maddr: Multiaddr) -> tuple[str, int]:
    """An address's host and port."""
    parts = str(maddr).split("/")
    return parts[2], int(parts[4])


def host_of(address: str) -> str:
    """The IP address or name in an address string."""
    return "".join(address.split("/")[2:3])
