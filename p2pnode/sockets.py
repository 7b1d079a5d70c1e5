"""Unix sockets, and pipes as streams: not on Windows, where each raises ``LocalError``."""

from __future__ import annotations

import socket
import sys

import trio

from p2pnode.platforms import unsupported


def unix_socket() -> socket.socket:
    """A unix socket that is neither bound nor connected."""
    if sys.platform == "win32":
        raise unsupported("a node and its engines talk over unix sockets")
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def descriptor_stream(handle: int) -> trio.abc.Stream:
    """The stream of an open pipe, which it closes."""
    if sys.platform == "win32":
        raise unsupported("this is told what to do over a pipe that can be waited for")
    return trio.lowlevel.FdStream(handle)
