"""``stream.*``: tokens through the network against the same engine alone.

Client (this process) and host are separate processes; the host's runs both sides of each pair, so that
prompts, sampling and admission are the same and the machine's moods hit both. Who goes first alternates.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import trio

from p2pnode.bench.figure import compared, paired
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import Child, child
from p2pnode.bench.token_clock import TokenClock, question
from p2pnode.client.client import Client
from p2pnode.errors import LocalError
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.inference.messages import SamplingParams

_TOKENS: Final = 257
"""The first one, and 256 that are counted."""
_FAST_TOKENS: Final = 4001
_FAST_TOKENS_PER_S: Final = 2000.0
_FIRST_TOKENS: Final = 30
_RUN_DEADLINE_S: Final = 180.0
_SHORTEST: Final = 0.9
"""Of what was asked for: a stream that ends earlier would be counted by too few tokens."""


async def measure_stream(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    quick = options.quick
    real = {"engine": "scripted" if quick else "llamacpp", "slots": 4, "n_ctx": 2048}
    tokens_per_s = 80.0 if quick else None
    async with _hosting(options, {**real, "tokens_per_s": tokens_per_s}) as bench:
        tokens = 33 if quick else _TOKENS
        for streams in (1, 4):
            await bench.run(-1, streams, tokens)  # caches of the processor, lazy imports
            pairs = await bench.pairs(options.pairs, streams, tokens)
            take(f"stream.throughput_{streams}", paired(pairs, tokens=tokens - 1, model=bench.model))
    fast = {"engine": "scripted", "slots": 4, "n_ctx": 8192, "tokens_per_s": _FAST_TOKENS_PER_S}
    async with _hosting(options, fast) as bench:
        tokens = 501 if quick else _FAST_TOKENS
        await bench.run(-1, 4, tokens)
        pairs = await bench.pairs(options.pairs, 4, tokens)
        take("stream.fast", paired(pairs, tokens=tokens - 1))
    async with _hosting(options, {"engine": "scripted", "slots": 4, "n_ctx": 2048}) as bench:
        ours, engine, echo = await bench.first_tokens(5 if quick else _FIRST_TOKENS)
        parts = {"engine_ms": round(median(engine) * 1e3, 3), "echo_ms": round(median(echo) * 1e3, 3)}
        found = compared(median(ours) * 1e3, (median(engine) + median(echo)) * 1e3, **parts)
        take("stream.first_token_overhead", found)


@asynccontextmanager
async def _hosting(options: BenchOptions, config: dict[str, Any]) -> AsyncIterator[_Bench]:
    config = {**config, "data_dir": str(options.scratch)}
    async with child("host_process", config) as (host, told), trio.open_nursery() as nursery:
        node = Node(NodeSetup(key=PeerKey.generate(), dht="off", gossip=False, keep_connected=False))
        await nursery.start(node.run)
        async with await trio.open_tcp_stream("127.0.0.1", told["echo_port"]) as echo:
            yield _Bench(host, node, echo, options.scratch, told["multiaddr"], told["model"])
        await node.aclose()


@dataclass(frozen=True, slots=True)
class _Bench:
    """A host, and a node that is connected to it for the whole run."""

    host: Child
    node: Node
    echo: trio.SocketStream
    scratch: Path
    multiaddr: str
    model: str

    async def pairs(self, count: int, streams: int, tokens: int) -> list[tuple[float, float]]:
        """(tokens/s by the network, tokens/s of the engine alone), all streams together."""
        return [await self.run(number, streams, tokens) for number in range(count)]

    async def run(self, number: int, streams: int, tokens: int) -> tuple[float, float]:
        """One pair."""
        questions = [question(number + 1, stream) for stream in range(streams)]
        if number % 2:
            engine = await self._engine(questions, tokens)
            network = await self._network(questions, tokens)
        else:
            network = await self._network(questions, tokens)
            engine = await self._engine(questions, tokens)
        for side, came in (("network", network), ("engine", engine)):
            if min(clock[0] for clock in came) < tokens * _SHORTEST:
                msg = f"an answer over the {side} ended after {min(c[0] for c in came)} tokens of {tokens}"
                raise LocalError(msg)
        return sum(rate for _, rate in network), sum(rate for _, rate in engine)

    async def first_tokens(self, count: int) -> tuple[list[float], list[float], list[float]]:
        """Seconds to the first token by an open session, of the engine alone, and of a TCP echo, in turn."""
        ours, engine, echo = [], [], []
        async with Client(node=self.node, data_dir=self.scratch) as client:
            await self._ask(client, question(0, 0), 4, TokenClock(trio.current_time()))
            for number in range(count):
                text = question(number + 1, 0)
                clock = TokenClock(trio.current_time())
                await self._ask(client, text, 4, clock)
                told = await self.host.ask(_generate([text], 4), deadline_s=_RUN_DEADLINE_S)
                ours.append(clock.first_token_s)
                engine.append(told["streams"][0]["first_token_s"])
                echo.append(await self._echo(text.encode()))
        return ours, engine, echo

    async def _echo(self, data: bytes) -> float:
        """Seconds until the host's process has sent the same bytes back, by plain TCP."""
        began, left = trio.current_time(), len(data)
        with trio.fail_after(_RUN_DEADLINE_S):
            await self.echo.send_all(data)
            while left > 0:
                came = await self.echo.receive_some()
                if not came:
                    raise LocalError("the host's process ended its echo: is the machine short of memory?")
                left -= len(came)
        return trio.current_time() - began

    async def _engine(self, questions: list[str], tokens: int) -> list[tuple[int, float]]:
        told = await self.host.ask(_generate(questions, tokens), deadline_s=_RUN_DEADLINE_S)
        return [(each["tokens"], each["tokens_per_s"]) for each in told["streams"]]

    async def _network(self, questions: list[str], tokens: int) -> list[tuple[int, float]]:
        """Fresh sessions on the open connection: a session's cache must not help."""
        clocks = [TokenClock(trio.current_time()) for _ in questions]
        async with Client(node=self.node, data_dir=self.scratch) as client:
            with trio.fail_after(_RUN_DEADLINE_S):
                async with trio.open_nursery() as nursery:
                    for text, clock in zip(questions, clocks, strict=True):
                        nursery.start_soon(self._ask, client, text, tokens, clock)
        return [(clock.tokens, clock.tokens_per_s) for clock in clocks]

    async def _ask(self, client: Client, text: str, tokens: int, clock: TokenClock) -> None:
        sampling = SamplingParams(tokens_max=tokens, temperature=0.0)
        async with client.chat(text, model=self.model, peer=self.multiaddr, sampling=sampling) as answer:
            async for _ in answer:
                clock.came(len(answer.ids))


def _generate(questions: list[str], tokens: int) -> dict[str, Any]:
    return {"do": "generate", "questions": questions, "tokens": tokens}
