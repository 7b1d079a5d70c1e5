"""p2pnode: a node in a peer-to-peer marketplace for LLM inference, with no central component.

Everything public is here. It is imported when it is first used, so that ``p2pnode --help`` starts fast::

    async with p2pnode.Client() as client:
        async for piece in client.chat("Why is the sky blue?"):
            print(piece, end="")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from p2pnode import compiled

if TYPE_CHECKING:
    __version__: str
    from p2pnode.client.bill import BillItem, Usage
    from p2pnode.client.chosen import Client
    from p2pnode.client.embedding import Embedding
    from p2pnode.client.failover import Held
    from p2pnode.client.interface import Answer
    from p2pnode.client.ranking import Filters
    from p2pnode.config import NodeConfig
    from p2pnode.errors import (
        ChainError,
        ConfigError,
        EngineError,
        LocalError,
        NoHostError,
        P2PNodeError,
        ProtocolError,
        RefusedError,
        RemoteError,
        StorageError,
        UnreachableError,
    )
    from p2pnode.host.host import Host
    from p2pnode.host.model_pool import HostedModel
    from p2pnode.node.node import Node, NodeSetup
    from p2pnode.protocols.inference.messages import ResponseFormat, SamplingParams

_WHERE = {
    "Answer": "p2pnode.client.interface",
    "BillItem": "p2pnode.client.bill",
    "ChainError": "p2pnode.errors",
    "Client": "p2pnode.client.chosen",
    "ConfigError": "p2pnode.errors",
    "Embedding": "p2pnode.client.embedding",
    "EngineError": "p2pnode.errors",
    "Filters": "p2pnode.client.ranking",
    "Held": "p2pnode.client.failover",
    "Host": "p2pnode.host.host",
    "HostedModel": "p2pnode.host.model_pool",
    "LocalError": "p2pnode.errors",
    "NoHostError": "p2pnode.errors",
    "Node": "p2pnode.node.node",
    "NodeConfig": "p2pnode.config",
    "NodeSetup": "p2pnode.node.node",
    "P2PNodeError": "p2pnode.errors",
    "ProtocolError": "p2pnode.errors",
    "RefusedError": "p2pnode.errors",
    "RemoteError": "p2pnode.errors",
    "ResponseFormat": "p2pnode.protocols.inference.messages",
    "SamplingParams": "p2pnode.protocols.inference.messages",
    "StorageError": "p2pnode.errors",
    "UnreachableError": "p2pnode.errors",
    "Usage": "p2pnode.client.bill",
}
_LOGGING = frozenset({"Client", "Host", "Node"})
"""The classes that log: structlog without a set-up would print on the program's standard output."""
compiled.use()
__all__ = [
    "Answer",
    "BillItem",
    "ChainError",
    "Client",
    "ConfigError",
    "Embedding",
    "EngineError",
    "Filters",
    "Held",
    "Host",
    "HostedModel",
    "LocalError",
    "NoHostError",
    "Node",
    "NodeConfig",
    "NodeSetup",
    "P2PNodeError",
    "ProtocolError",
    "RefusedError",
    "RemoteError",
    "ResponseFormat",
    "SamplingParams",
    "StorageError",
    "UnreachableError",
    "Usage",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("p2pnode")
    if name in _WHERE:
        if name in _LOGGING:
            from p2pnode.log import configure_unless_done

            configure_unless_done()
        return getattr(import_module(_WHERE[name]), name)
    msg = f"module 'p2pnode' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
