"""Many nodes on one topic in one process: ours, or the library's as it comes.

Configured by one line: ``library``, ``nodes``, ``settle_s``, ``seed`` of the graph. Commands: ``gossip``
(``messages``, ``interval_s``, ``drain_s``) and ``idle`` (``seconds``) answer with the CPU seconds that the
process took; ``dial`` (``count``) with the seconds that dials from fresh nodes took.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import trio

from p2pnode.bench.processes import Command, answer, run_child

_TOPIC: Final = "/p2pnode/bench/1"
_MESSAGE_BYTES: Final = 300
_LINKS: Final = 2


class _OurNode:
    """Our network, with the parts that gossip needs."""

    def __init__(self, network: Any, subscription: Any) -> None:
        self._network, self._subscription = network, subscription

    async def connect(self, other: _OurNode) -> None:
        await self._network.connect(other._network.multiaddrs[0])

    async def publish(self, topic: str, data: bytes) -> None:
        await self._network.publish(topic, data)

    async def received(self) -> AsyncIterator[bytes]:
        async for _sender, data in self._subscription:
            yield data


@asynccontextmanager
async def _our_node(topic: str) -> AsyncIterator[_OurNode]:
    from p2pnode.net.network import Network, NetworkConfig

    network = Network(
        NetworkConfig(key_seed=secrets.token_bytes(32), listen=("/ip4/127.0.0.1/tcp/0",), dht="off")
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        yield _OurNode(network, await network.subscribe(topic, lambda _author, _data: True))
        await network.aclose()


def _node(library: bool) -> Any:
    if library:
        from p2pnode.bench.library import library_node

        return library_node(_TOPIC)
    return _our_node(_TOPIC)


class _Nodes:
    """The nodes, and what they receive."""

    def __init__(self, config: dict[str, Any], members: list[Any]) -> None:
        self._config, self._members = config, members
        self._random = random.Random(config.get("seed", 1))  # noqa: S311 - the shape of a graph
        self._deliveries = 0

    async def count(self, member: Any) -> None:
        async for _ in member.received():
            self._deliveries += 1

    async def connect(self) -> None:
        """Each to the first and to some before it, so that the graph is one piece."""

        async def dial(index: int, others: set[int]) -> None:
            for other in sorted(others):
                await self._members[index].connect(self._members[other])

        async with trio.open_nursery() as nursery:
            for index in range(1, len(self._members)):
                others = {0, *(self._random.randrange(index) for _ in range(_LINKS))}
                nursery.start_soon(dial, index, others)

    async def gossip(self, command: dict[str, Any]) -> dict[str, Any]:
        self._deliveries = 0
        cpu = time.process_time()
        for _ in range(command["messages"]):
            await self._random.choice(self._members).publish(_TOPIC, secrets.token_bytes(_MESSAGE_BYTES))
            await trio.sleep(command["interval_s"])
        await trio.sleep(command["drain_s"])
        expected = command["messages"] * len(self._members)
        return {"deliveries": self._deliveries, "expected": expected, "cpu_s": time.process_time() - cpu}

    async def idle(self, command: dict[str, Any]) -> dict[str, Any]:
        cpu = time.process_time()
        await trio.sleep(command["seconds"])
        return {"cpu_s": time.process_time() - cpu}

    async def dial(self, command: dict[str, Any]) -> dict[str, Any]:
        took = []
        for _ in range(command["count"]):
            async with _node(self._config["library"]) as fresh:
                began = trio.current_time()
                await fresh.connect(self._members[0])
                took.append(trio.current_time() - began)
        return {"seconds": took}


async def main(commands: AsyncIterator[Command]) -> None:
    """Until the commands end."""
    config = await anext(commands)
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        members = [await stack.enter_async_context(_node(config["library"])) for _ in range(config["nodes"])]
        nodes = _Nodes(config, members)
        for member in members:
            nursery.start_soon(nodes.count, member)
        await nodes.connect()
        await trio.sleep(config["settle_s"])
        answer({"ready": True})
        handlers = {"gossip": nodes.gossip, "idle": nodes.idle, "dial": nodes.dial}
        async for command in commands:
            answer(await handlers[command["do"]](command))


if __name__ == "__main__":
    run_child(main)
