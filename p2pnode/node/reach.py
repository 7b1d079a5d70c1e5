"""Where an address means something, and whether a stranger's word is enough to dial it.

What an advert or a provider record holds was written by anybody: an address of a kind that we can't
dial is dropped, and a private one counts only where we have a peer, so that nobody can aim us at a LAN.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal, TypeAlias

from p2pnode.errors import ConfigError
from p2pnode.net.multiaddrs import check_address, is_loopback, is_private, without_peer

Scope: TypeAlias = Literal["loopback", "lan", "public"]


def scope_of(address: str) -> Scope | None:
    """None for what is no address that we could dial."""
    try:
        check_address(without_peer(address))
    except ConfigError:
        return None
    if is_loopback(address):
        return "loopback"
    return "lan" if is_private(address) else "public"


def scopes_of(addresses: Iterable[str]) -> set[Scope]:
    """Where these addresses mean something."""
    return {scope for address in addresses if (scope := scope_of(address)) is not None}


def dialable(addresses: Iterable[str], reach: Collection[Scope]) -> tuple[str, ...]:
    """Those of a stranger's addresses that are public, or private where ``reach`` says we have peers."""
    return tuple(each for each in addresses if (scope := scope_of(each)) == "public" or scope in reach)
