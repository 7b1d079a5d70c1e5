"""Many real networks in one memory net: ``async with world(20) as w: …``, under any clock.

Node ``i`` lives at ``10.0.x.y`` and has a fixed key, so that a run can be repeated. What the nodes serve
is the test's business; ``extra`` lets it change a node's config. Usable by the node's own tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import trio

from p2pnode.net.memory import MemoryNet
from p2pnode.net.network import Network, NetworkConfig

LIFE_S = 3600.0
"""Of virtual time: what waits for ever must fail, since a mock clock never tires."""


def seed_of(index: int) -> bytes:
    """The key seed of node ``index``."""
    return hashlib.sha256(b"memory world %d" % index).digest()


def ip_of(index: int) -> str:
    """The address of node ``index``."""
    return f"10.0.{index // 250}.{index % 250 + 1}"


def config_of(net: MemoryNet, index: int) -> NetworkConfig:
    """How node ``index`` is built."""
    return NetworkConfig(
        key_seed=seed_of(index),
        listen=(f"/ip4/{ip_of(index)}/tcp/4001",),
        transport=net.transport(ip_of(index)),
        rng=random.Random(index),
    )


@dataclass
class World:
    """The nodes, running; ``nursery`` runs whatever the test adds."""

    net: MemoryNet
    nursery: trio.Nursery
    nodes: list[Network] = field(default_factory=list)

    async def connect_all(self, *, links: int = 3, seed: int = 0) -> None:
        """Everyone knows node 0, and dials ``links - 1`` earlier ones besides."""
        chance = random.Random(seed)
        async with trio.open_nursery() as nursery:
            for i in range(1, len(self.nodes)):
                for j in sorted({0, *(chance.randrange(i) for _ in range(links - 1))}):
                    nursery.start_soon(self.nodes[i].connect, self.nodes[j].multiaddrs[0])


@contextlib.asynccontextmanager
async def world(
    count: int,
    *,
    net: MemoryNet | None = None,
    extra: Callable[[int, NetworkConfig], NetworkConfig] | None = None,
) -> AsyncIterator[World]:
    """``count`` nodes, listening and not yet connected; closed in order on exit."""
    wires = net or MemoryNet(latency=0.02, jitter=0.01, seed=1)
    with trio.fail_after(LIFE_S):
        async with trio.open_nursery() as nursery:
            made = World(wires, nursery)
            for i in range(count):
                config = config_of(wires, i)
                made.nodes.append(Network(extra(i, config) if extra is not None else config))
                await nursery.start(made.nodes[i].run)
            yield made
            async with trio.open_nursery() as closing:
                for node in made.nodes:
                    closing.start_soon(node.aclose)
            nursery.cancel_scope.cancel()


def as_client(index: int, config: NetworkConfig) -> NetworkConfig:
    """For ``extra``: the node only dials, has no gossip, and asks the DHT without serving it."""
    return dataclasses.replace(config, listen=(), dht="client", gossip=False)
