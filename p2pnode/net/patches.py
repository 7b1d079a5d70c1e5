"""What we change in libp2p 0.8.1, and the check that it still is what we think we change.

Most changes are subclasses in their own modules (``swarm``, ``connection``, ``host``, ``upgrader`` with
``yamux``). Each relies on code of the library that it replaces or
calls: ``EXPECTED`` holds the fingerprint of that code, and a library that differs stops the start with
the name of the patch. Only two things are changed in the library's own modules: logging (which would
otherwise install a handler on the root logger and print on every disconnect), and the signed peer record,
made and compared anew for each message.

``apply_patches(only_fixes=True)``, called before any ``Network`` is made, leaves out what only saves
CPU: the library's muxer and stream run then.
"""

from __future__ import annotations

import hashlib
import importlib
import linecache
import logging
from collections.abc import Iterator
from importlib.metadata import version
from types import CodeType
from typing import Any, Final

import structlog

from p2pnode.errors import LocalError

VERSION: Final = "0.8.1"

EXPECTED: Final[dict[str, dict[str, str]]] = {
    "inbound slots and limits (swarm.py)": {
        "libp2p.network.swarm:Swarm.__init__": "44f87a9ea1a14852",
        "libp2p.network.swarm:Swarm._init_connection_management": "0d1ac8a9642024be",
        "libp2p.network.swarm:Swarm.remove_conn": "5ae215db4539dbdc",
        "libp2p.network.swarm:Swarm._notify": "36afe611751a4cb8",
        "libp2p.network.swarm:Swarm.notify_connected": "f984413ca77652cb",
    },
    "our own keys are kept (swarm.py)": {
        "libp2p.peer.peerstore:PeerStore._enforce_peer_limit": "9f1adf0db61b34b2",
        "libp2p.peer.peerstore:PeerStore.add_addrs": "0983713217b06c43",
    },
    "connections without sleeps (connection.py)": {
        "libp2p.network.connection.swarm_connection:SwarmConn.__init__": "0b238b08f4f3f167",
        "libp2p.network.stream.net_stream:NetStream.__init__": "c1bafd9d5782acb4",
        "libp2p.network.stream.net_stream:NetStream.close_write": "437474ecdfe5c597",
        "libp2p.network.stream.net_stream:NetStream.remove": "e52d974b3052cb18",
    },
    "identify within the nursery (host.py)": {
        "libp2p.host.basic_host:BasicHost.__init__": "6a81506e92fbd211",
        "libp2p.host.basic_host:BasicHost._identify_peer": "a8e37ea32f624529",
        "libp2p.host.basic_host:BasicHost._swarm_stream_handler": "cec985884b1ba269",
        "libp2p.host.basic_host:BasicHost.get_addrs": "9d79f88eb0d4824b",
        "libp2p.identity.identify.identify:_mk_identify_protobuf": "d8d649b394797ba0",
    },
    "noise, then our yamux (upgrader.py)": {
        "libp2p.stream_muxer.muxer_multistream:MuxerMultistream.new_conn": "91d21f40f524ad99",
        "libp2p.security.security_multistream:SecurityMultistream.secure_outbound": "039685d2adca8ed6",
        "libp2p.security.noise.patterns:PatternXX.handshake_outbound": "4d30463dc66bfda8",
        "libp2p.security.secure_session:SecureSession.read": "eeba14a89cf12325",
    },
    "quiet logging (patches.py)": {
        "libp2p.utils.logging:setup_logging": "e2009782ff014f6b",
    },
    "one signed record (patches.py)": {
        "libp2p.peer.peerstore:env_to_send_in_RPC": "9fea9d702c187d22",
    },
}
"""Patch, then function of the library, then the fingerprint of its source."""

_RECORD_USERS: Final = ("libp2p.identity.identify.identify",)

log = structlog.get_logger()


class _State:
    applied: bool | None = None


def apply_patches(*, only_fixes: bool = False) -> bool:
    """Check and apply once a process; true when the speed patches are in. The first call decides."""
    if _State.applied is None:
        check()
        _quiet()
        if not only_fixes:
            _keep_signed_record()
        _State.applied = not only_fixes
    return _State.applied


def check(expected: dict[str, dict[str, str]] | None = None) -> None:
    """Raise ``LocalError`` naming the patch whose ground has moved."""
    installed = version("libp2p")
    for patch, functions in (EXPECTED if expected is None else expected).items():
        for path, fingerprint in functions.items():
            found = _fingerprint_at(path)
            if found != fingerprint:
                raise LocalError(
                    f"the patch {patch!r} doesn't fit the installed libp2p {installed}: {path} has changed "
                    f"({found}, expected {fingerprint}). Install libp2p=={VERSION}, or update the patch."
                )


def fingerprint(function: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a function's source lines."""
    code: CodeType = function.__code__
    last = max(line for line in _lines(code))
    source = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 : last]
    return hashlib.sha256("".join(source).encode()).hexdigest()[:16]


def _fingerprint_at(path: str) -> str:
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return fingerprint(getattr(found, "__wrapped__", found))
    except (ImportError, AttributeError):
        return "missing"


def _lines(code: CodeType) -> Iterator[int]:
    yield from (line for _, _, line in code.co_lines() if line)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _lines(constant)


class _ToStructlog(logging.Handler):
    """The library's warnings as debug events of ours: a normal disconnect is nobody's problem."""

    def emit(self, record: logging.LogRecord) -> None:
        """One event."""
        try:
            log.debug("libp2p", logger=record.name, level_name=record.levelname, message=record.getMessage())
        except Exception:  # noqa: BLE001  logging must not raise
            self.handleError(record)


def _quiet() -> None:
    for name in ("libp2p", "trio-websocket", "wsproto"):
        library = logging.getLogger(name)
        library.handlers = [_ToStructlog()]
        library.propagate = False
        library.setLevel(logging.WARNING)
    # This module of the library logs through the root logger; the first use of that prints to the terminal
    # from then on.
    connection = importlib.import_module("libp2p.network.connection.swarm_connection")
    connection.logging = logging.getLogger("libp2p.network.connection")  # type: ignore[attr-defined]


def _keep_signed_record() -> None:
    """Make our signed record once for each set of addresses, not once a message."""
    peerstore = importlib.import_module("libp2p.peer.peerstore")
    original = peerstore.env_to_send_in_RPC

    def env_to_send_in_rpc(host: Any) -> tuple[bytes, bool]:
        addresses = tuple(str(address) for address in host.get_addrs())
        cached: tuple[tuple[str, ...], bytes] | None = getattr(host, "signed_record", None)
        if cached is None or cached[0] != addresses:
            record, fresh = original(host)
            host.signed_record = (addresses, record)
            return record, fresh
        return cached[1], False

    for name in _RECORD_USERS:
        module = importlib.import_module(name)
        if getattr(module, "env_to_send_in_RPC", None) is original:
            module.env_to_send_in_RPC = env_to_send_in_rpc  # type: ignore[attr-defined]
