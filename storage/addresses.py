"""Whose address is it: this machine's, anybody's on the internet, or one of a private network's?

What listens without a password must know the first, what follows a stranger's redirect the second.
"""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Is this name or address this machine's own?"""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_public(host: str) -> bool:
    """Is this address (not a name) one that anybody on the internet may have?"""
    address = _address(host)
    return address is not None and address.is_global and not address.is_multicast


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    # ::ffff:127.0.0.1 reaches what 127.0.0.1 does
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
