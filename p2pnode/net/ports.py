"""Ports for a node that was told none: the usual ones while they are free, any free ones otherwise."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from p2pnode.net.multiaddrs import endpoint, parse


def free_listen(wanted: Sequence[str]) -> tuple[str, ...]:
    """``wanted`` with port 0 (the system chooses) in place of every port that is taken.

    A port that is taken for one IP version is left for both: an address in one of them must not lead to
    another program than the same port in the other. What this machine has no IP version for is left out.
    """
    usable = [each for each in wanted if _has_version(each)]
    taken = {endpoint(parse(each))[1] for each in usable if not is_free(each)}
    return tuple(_any_port(each) if endpoint(parse(each))[1] in taken else each for each in usable)


def is_free(address: str) -> bool:
    """Whether we can listen on this multiaddr now."""
    host, port = endpoint(parse(address))
    return _can_bind(host, port)


def _has_version(address: str) -> bool:
    host, _ = endpoint(parse(address))
    return ":" not in host or _can_bind("::", 0)


def _can_bind(host: str, port: int) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ":" in host:  # as the listener does: the same port of IPv4 is another socket's
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError:
        return False
    return True


def _any_port(address: str) -> str:
    parts = address.split("/")
    parts[4] = "0"
    return "/".join(parts)
