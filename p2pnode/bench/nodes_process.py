"""Many nodes on one topic in one process: ours, or the library's as it comes.

Configured by one line: ``library``, ``nodes``, ``settle_s``, ``seed`` of the graph, and ``adverts``: whether
ours publish adverts and judge them as hosts do, or random bytes. Commands: ``gossip`` (``messages``,
``interval_s``, ``drain_s``) and ``idle`` (``seconds``) answer with the CPU seconds that the process took, the
first also with the seconds until others had each message; ``checks`` with the CPU seconds of an advert's bare
signatures; ``dial`` (``count``) with the seconds that dials from fresh nodes took.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import trio

from p2pnode.bench.options import GOSSIP_BYTES
from p2pnode.bench.processes import Command, answer, run_child
from p2pnode.errors import LocalError
from p2pnode.ids import ModelId
from p2pnode.protocols.adverts.messages import topic_of

_MODEL: Final = ModelId(bytes(32))
_TOPIC: Final = topic_of(_MODEL)
_LINKS: Final = 2


class _OurNode:
    """Our network, with the parts that gossip needs."""

    def __init__(self, network: Any, subscription: Any, host: _Host | None) -> None:
        self._network, self._subscription, self.host = network, subscription, host

    async def connect(self, other: _OurNode) -> None:
        await self._network.connect(other._network.multiaddrs[0])

    def message(self) -> bytes:
        return self.host.advert() if self.host is not None else secrets.token_bytes(GOSSIP_BYTES)

    async def publish(self, topic: str, data: bytes) -> None:
        await self._network.publish(topic, data)

    async def received(self) -> AsyncIterator[bytes]:
        async for _sender, data in self._subscription:
            yield data


class _Host:
    """A host that has something to say, and judges what others say, as ``p2pnode/node`` does."""

    def __init__(self, seed: bytes) -> None:
        from p2pnode.node.advert_exchange import AdvertExchange
        from p2pnode.node.keys import PeerKey
        from p2pnode.protocols.adverts.book import Book
        from p2pnode.protocols.adverts.exchange import Publisher
        from p2pnode.protocols.adverts.signatures import BindingTerms, bind
        from p2pnode.protocols.crypto import key_address, sign_digest

        self.key, self._seq = PeerKey(seed), 0
        wallet = secrets.token_bytes(32)
        address = key_address(wallet)
        terms = BindingTerms(receipt_key=address, seq=1, expires_at=int(time.time()) + 86_400)
        self._binding = bind(self.key.peer_id, address, terms, lambda digest: sign_digest(wallet, digest))
        book, instance = Book(), secrets.token_bytes(8)
        publisher = Publisher(
            peer=self.key.peer_id, instance=instance, sign=self.key.sign, wall=time.time, draw=random.random
        )
        self._exchange = AdvertExchange(
            book, publisher, peer=self.key.peer_id, starts=[instance], wall=time.time
        )

    def judge(self, author: Any, data: bytes) -> Any:
        return self._exchange.judge(data, author, _MODEL)

    def signed(self) -> Any:
        """A new advert, sealed, and as it reads."""
        from p2pnode.protocols.adverts.messages import Address, Advert, Load, Offer
        from p2pnode.protocols.adverts.signatures import seal

        self._seq += 1
        now = int(time.time())
        advert = Advert(
            peer=self.key.peer_id, instance=bytes(8), seq=self._seq, issued_at=now, expires_at=now + 90,
            binding=self._binding, load=Load(slots=4),
            addresses=(Address(multiaddr="/ip4/203.0.113.7/tcp/4001"),),
            offers=(Offer(model=_MODEL, n_ctx=8192),),
        )  # fmt: skip
        return seal(advert, self.key.sign), advert

    def advert(self) -> bytes:
        from p2pnode.protocols.wire import encode

        return encode(self.signed()[0])


@asynccontextmanager
async def _our_node(topic: str, *, adverts: bool) -> AsyncIterator[_OurNode]:
    from p2pnode.net.network import Network, NetworkConfig
    from p2pnode.protocols.gossipsub.commands import ACCEPT

    seed = secrets.token_bytes(32)
    host = _Host(seed) if adverts else None
    network = Network(NetworkConfig(key_seed=seed, listen=("/ip4/127.0.0.1/tcp/0",), dht="off"))
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        validator = host.judge if host is not None else lambda _author, _data: ACCEPT
        yield _OurNode(network, await network.subscribe(topic, validator), host)
        await network.aclose()


def _node(config: dict[str, Any]) -> Any:
    if config["library"]:
        from p2pnode.bench.library import library_node

        return library_node(_TOPIC)
    return _our_node(_TOPIC, adverts=config.get("adverts", False))


class _Nodes:
    """The nodes, and what they receive."""

    def __init__(self, config: dict[str, Any], members: list[Any]) -> None:
        self._config, self._members = config, members
        self._random = random.Random(config.get("seed", 1))  # noqa: S311 - the shape of a graph
        self._deliveries = 0
        self._published: dict[bytes, float] = {}
        self._delays: list[float] = []

    async def count(self, member: Any) -> None:
        async for data in member.received():
            self._deliveries += 1
            self._delays.append(trio.current_time() - self._published[data])

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
        self._deliveries, self._delays = 0, []
        speakers = [self._members[0]] if command.get("one") else self._members
        cpu = time.process_time()
        for number in range(command["messages"]):
            # In turn: a host that speaks twice in a second is not heard twice.
            speaker = speakers[number % len(speakers)]
            message = speaker.message()
            self._published[message] = trio.current_time()
            await speaker.publish(_TOPIC, message)
            await trio.sleep(command["interval_s"])
        await trio.sleep(command["drain_s"])
        cpu = time.process_time() - cpu
        expected = command["messages"] * len(self._members)
        # The speaker has its own message at once: it is one of the deliveries, and no delay.
        late = sorted(self._delays)[command["messages"] :]
        p99 = late[min(len(late) - 1, int(len(late) * 0.99))] if late else None
        return {"deliveries": self._deliveries, "expected": expected, "cpu_s": cpu, "p99_s": p99}

    async def checks(self, command: dict[str, Any]) -> dict[str, Any]:
        """CPU seconds of one envelope's, one advert's and one binding's signature, checked and no more."""
        from p2pnode.protocols.adverts.signatures import is_bound, verify
        from p2pnode.protocols.crypto import public_key_of, verify_key
        from p2pnode.protocols.gossipsub.messages import signed_bytes
        from p2pnode.protocols.wire import encode

        host, count = self._members[0].host, command["count"]
        sealed, advert = host.signed()
        envelope = signed_bytes(bytes(38), encode(sealed), bytes(8), _TOPIC.encode())
        signature, public_key = host.key.sign(envelope), public_key_of(host.key.peer_id)
        work: dict[str, Callable[[], bool]] = {
            "envelope": lambda: verify_key(public_key, envelope, signature),
            "advert": lambda: verify(sealed, advert),
            "binding": lambda: is_bound(advert.peer, advert.binding),
        }
        took = {}
        for name, check in work.items():
            began = time.process_time()
            for _ in range(count):
                if not check():
                    raise LocalError(f"the {name}'s signature doesn't hold")
            took[name] = (time.process_time() - began) / count
            await trio.lowlevel.checkpoint()
        return took

    async def idle(self, command: dict[str, Any]) -> dict[str, Any]:
        cpu = time.process_time()
        await trio.sleep(command["seconds"])
        return {"cpu_s": time.process_time() - cpu}

    async def dial(self, command: dict[str, Any]) -> dict[str, Any]:
        took = []
        for _ in range(command["count"]):
            async with _node(self._config) as fresh:
                began = trio.current_time()
                await fresh.connect(self._members[0])
                took.append(trio.current_time() - began)
        return {"seconds": took}


async def main(commands: AsyncIterator[Command]) -> None:
    """Until the commands end."""
    config = await anext(commands)
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        members = [await stack.enter_async_context(_node(config)) for _ in range(config["nodes"])]
        nodes = _Nodes(config, members)
        for member in members:
            nursery.start_soon(nodes.count, member)
        await nodes.connect()
        await trio.sleep(config["settle_s"])
        answer({"ready": True})
        handlers = {
            "gossip": nodes.gossip, "checks": nodes.checks, "idle": nodes.idle, "dial": nodes.dial
        }  # fmt: skip
        async for command in commands:
            answer(await handlers[command["do"]](command))


if __name__ == "__main__":
    run_child(main)
