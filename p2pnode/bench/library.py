"""libp2p as it comes, for the baselines: no patch, no subclass, nothing of ``p2pnode.net``.

Only what a user of the library sets: keys, addresses, GossipSub's degrees, a heartbeat of one second.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from p2pnode.bench.options import GOSSIP_BYTES

_ANY: Final = "/ip4/127.0.0.1/tcp/0"
_PROTOCOLS: Final = (TProtocol("/meshsub/1.2.0"), TProtocol("/meshsub/1.1.0"))


class LibraryNode:
    """A stock host with GossipSub on one topic."""

    def __init__(self, host: Any, pubsub: Any, subscription: Any) -> None:
        self._host, self._pubsub, self._subscription = host, pubsub, subscription

    async def connect(self, other: LibraryNode) -> None:
        """Dial another node."""
        await self._host.connect(PeerInfo(other._host.get_id(), other._host.get_addrs()))

    def message(self) -> bytes:
        """Something to publish."""
        return secrets.token_bytes(GOSSIP_BYTES)

    async def publish(self, topic: str, data: bytes) -> None:
        """Publish to all nodes on the topic."""
        await self._pubsub.publish(topic, data)

    async def received(self) -> AsyncIterator[bytes]:
        """Yield what comes on the topic."""
        while True:
            yield (await self._subscription.get()).data

    @property
    def multiaddr(self) -> str:
        """Where it listens, with its peer id."""
        return str(self._host.get_addrs()[0])


@asynccontextmanager
async def library_node(topic: str) -> AsyncIterator[LibraryNode]:
    """A node of the library that runs until the block is left."""
    quiet()
    listen = [Multiaddr(_ANY)]
    async with AsyncExitStack() as stack:
        host = new_host(listen_addrs=listen)
        await stack.enter_async_context(host.run(listen_addrs=listen))
        router = GossipSub(
            protocols=list(_PROTOCOLS), degree=6, degree_low=4, degree_high=12, heartbeat_interval=1
        )
        pubsub = Pubsub(host, router)
        await stack.enter_async_context(background_trio_service(pubsub))
        await stack.enter_async_context(background_trio_service(router))
        yield LibraryNode(host, pubsub, await pubsub.subscribe(topic))


def quiet() -> None:
    """Silence the library, which warns on every normal disconnect."""
    logging.disable(logging.WARNING)
