"""Names of S5 nodes, and where one is dialled.

::

    node id     ed | key[32], as text z and base58btc
    peer URI    ws or wss ://<node id>@host[:port]/s5/p2p

The node id in a URI says who must answer; without it anybody may. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NewType

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.ids import multibase

NodeId = NewType("NodeId", bytes)
"""32 bytes: an Ed25519 public key. On the wire ``ed`` leads it."""

P2P_PATH: Final = "/s5/p2p"
URI_MAX: Final = 256
"""Bytes of a URI that a node says it can be reached at."""
_ED25519: Final = 0xED
_KEY_BYTES: Final = 32
_PORTS: Final = {"ws": 80, "wss": 443}


def node_bytes(node: NodeId) -> bytes:
    """33 bytes: ``ed`` and the key."""
    return bytes([_ED25519]) + node


def parse_node(raw: bytes) -> NodeId:
    """The node in 33 bytes. Raises ``ProtocolError``."""
    if len(raw) != _KEY_BYTES + 1 or raw[0] != _ED25519:
        msg = "a node id has 33 bytes and begins with ed (Ed25519)"
        raise ProtocolError(msg)
    return NodeId(raw[1:])


def node_text(node: NodeId) -> str:
    """As people see it and URIs hold it."""
    return multibase(node_bytes(node), "z")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUri:
    """Where a node is dialled, and who must answer there (None: anybody)."""

    host: str
    port: int
    tls: bool
    node: NodeId | None = None

    def text(self) -> str:
        """As it is announced."""
        scheme = "wss" if self.tls else "ws"
        who = f"{node_text(self.node)}@" if self.node is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[scheme] else f":{self.port}"
        return f"{scheme}://{who}{host}{port}{P2P_PATH}"
