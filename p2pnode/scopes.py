"""The scope of an IP address or a name: from where it can be reached at all. Pure; resolves nothing.

The words are those of RFC 4007 and RFC 4291; ``shared`` is 100.64.0.0/10 (RFC 6598): behind a carrier's NAT,
or in an overlay network. It is neither private nor global, and Python's ``ipaddress`` calls it neither.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final, Literal, TypeAlias

Scope: TypeAlias = Literal["global", "private", "shared", "link-local", "loopback"]
SCOPES: Final[tuple[Scope, ...]] = ("global", "private", "shared", "link-local", "loopback")
"""Ordered from the scope that most others can reach to the one that nobody else can."""
_Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")
_THIS_NETWORK: Final = ipaddress.ip_network("0.0.0.0/8")  # Linux takes it for loopback
_NAT64: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_KNOWN_MAX: Final = 1024
"""Addresses that need not be parsed again: each advert brings those of the last one."""
_LOCAL_NAMES: Final = (".localhost", ".local", ".lan", ".home", ".internal", ".home.arpa")


@lru_cache(_KNOWN_MAX)
def scope_of_host(host: str) -> Scope | None:
    """The scope of a name or an IP address, which may have brackets and a zone; None for no host's address.

    A name counts as global unless it is one that no public name server knows. Only resolving it would tell
    more.
    """
    if (ip := ip_of(host)) is not None:
        return _scope_of_ip(ip)
    name = host.rstrip(".").lower()
    if name == "localhost":
        return "loopback"
    return "private" if "." not in name or name.endswith(_LOCAL_NAMES) else "global"


@lru_cache(_KNOWN_MAX)
def ip_of(host: str) -> _Ip | None:
    """The IP address that ``host`` is; None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether this name or address is a loopback one."""
    return scope_of_host(host) == "loopback"


def is_global_ip(host: str) -> bool:
    """Whether it is a global IP address; a name is none."""
    return ip_of(host) is not None and scope_of_host(host) == "global"


def _scope_of_ip(ip: _Ip) -> Scope | None:
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:  # ::ffff:127.0.0.1 reaches what 127.0.0.1 does
            return _scope_of_ip(ip.ipv4_mapped)
        if (inner := _translated(ip)) is not None:
            # A translator sends it on to the IPv4 address inside, which must not be in its own network.
            return "global" if _scope_of_ip(inner) == "global" else None
    if ip.is_loopback:
        return "loopback"
    if ip.is_unspecified or ip.is_multicast or ip.is_reserved or ip in _THIS_NETWORK:
        return None
    if ip.is_link_local:
        return "link-local"
    if ip in _SHARED:
        return "shared"
    return "global" if ip.is_global else "private"  # documentation ranges are private, as Python has it


def _translated(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside an address of 6to4, Teredo or NAT64; None for any other."""
    if any(ip in network for network in _NAT64):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.sixtofour or (ip.teredo[1] if ip.teredo is not None else None)
