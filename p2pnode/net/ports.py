"""Ports for a node that was told none: the usual ones while they are free, any free ones otherwise."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from p2pnode.net.multiaddrs import endpoint, parse


def free_listen(wanted: Sequence[str]) -> tuple[str, ...]:
    """``wanted`` with port 0 (the system chooses) in place of every port that is taken."""
    return tuple(each if is_free(each) else _any_port(each) for each in wanted)


def is_free(address: str) -> bool:
    """Can we listen on this multiaddr now?"""
    host, port = endpoint(parse(address))
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _any_port(address: str) -> str:
    parts = address.split("/")
    parts[4] = "0"
    return "/".join(parts)
