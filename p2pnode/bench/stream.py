"""``stream.*``: tokens through the network against the same engine alone, and turns against sessions.

Client (this process) and host are separate processes; the host's runs both sides of each pair, so that
prompts, sampling and admission are the same and the machine's moods hit both. Who goes first alternates.

``stream.leaf`` says what receipts cost that bind more than ids (text, prompt, starts): the CPU of a leaf at
both sides over that of a hash of its ids, as if none of it ran beside the engine, taken from the time of 32
tokens over the network in this run. Each leaf has a start, the most that is allowed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, Final

import trio

from p2pnode.bench.delayed_link import delayed_link
from p2pnode.bench.figure import Measurement, compared, paired
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import Child, child
from p2pnode.bench.token_clock import TokenClock, question
from p2pnode.client.client import Client
from p2pnode.errors import LocalError
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY, SamplingParams, Tokens
from p2pnode.protocols.inference.receipts import Leaf, ids_hash

_TOKENS: Final = 257
"""The first one, and 256 that are counted."""
_FAST_TOKENS: Final = 4001
_FAST_TOKENS_PER_S: Final = 2000.0
_FIRST_TOKENS: Final = 30
_TURNS: Final = 8
_TURN_TOKENS: Final = 301
_TURN_TOKENS_PER_S: Final = 100.0
_FAR_S: Final = 0.1
"""A round trip to another continent."""
_LEAVES: Final = 2000
_RUN_DEADLINE_S: Final = 180.0
_SHORTEST: Final = 0.9
"""Of what was asked for: a stream that ends earlier would be counted by too few tokens."""


async def measure_stream(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    quick = options.quick
    real = {"engine": "scripted" if quick else "llamacpp", "slots": 4, "n_ctx": 2048}
    tokens_per_s = 80.0 if quick else None
    async with hosting(options, {**real, "tokens_per_s": tokens_per_s}) as bench:
        tokens = 33 if quick else _TOKENS
        for streams in (1, 4):
            await bench.run(-1, streams, tokens)  # caches of the processor, lazy imports
            pairs = await bench.pairs(options.pairs, streams, tokens)
            found = paired(pairs, tokens=tokens - 1, model=bench.model)
            take(f"stream.throughput_{streams}", found)
            if streams == 1:
                take("stream.leaf", _leaf_share(found.details["ours_p50"], model=bench.model))
    fast = {"engine": "scripted", "slots": 4, "n_ctx": 8192, "tokens_per_s": _FAST_TOKENS_PER_S}
    async with hosting(options, fast) as bench:
        tokens = 501 if quick else _FAST_TOKENS
        await bench.run(-1, 4, tokens)
        pairs = await bench.pairs(options.pairs, 4, tokens)
        take("stream.fast", paired(pairs, tokens=tokens - 1))
    eight = {"engine": "scripted", "slots": _TURNS, "n_ctx": 2048, "tokens_per_s": _TURN_TOKENS_PER_S}
    for name, round_trip_s in (("stream.parallel_8", 0.0), ("stream.parallel_8_far", _FAR_S)):
        async with hosting(options, eight, round_trip_s) as bench:
            tokens = 101 if options.quick else _TURN_TOKENS
            await bench.turns(-1, tokens)
            pairs = [await bench.turns(number, tokens) for number in range(options.pairs)]
            take(name, paired(pairs, turns=_TURNS, tokens=tokens - 1, round_trip_s=round_trip_s))
    async with hosting(options, {"engine": "scripted", "slots": 4, "n_ctx": 2048}) as bench:
        ours, engine, echo = await bench.first_tokens(5 if quick else _FIRST_TOKENS)
        parts = {"engine_ms": round(median(engine) * 1e3, 3), "echo_ms": round(median(echo) * 1e3, 3)}
        found = compared(median(ours) * 1e3, (median(engine) + median(echo)) * 1e3, **parts)
        take("stream.first_token_overhead", found)


@asynccontextmanager
async def hosting(
    options: BenchOptions, config: dict[str, Any], round_trip_s: float = 0.0
) -> AsyncIterator[_Bench]:
    """A host in a process of its own with the engine that ``config`` says, and a node that is connected."""
    config = {**config, "data_dir": str(options.scratch)}
    async with (
        child("host_process", config) as (host, told),
        trio.open_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        multiaddr = told["multiaddr"]
        if round_trip_s:
            port = multiaddr.split("/")[4]  # of /ip4/127.0.0.1/tcp/PORT/p2p/...
            far = await stack.enter_async_context(delayed_link(int(port), round_trip_s))
            multiaddr = multiaddr.replace(f"/tcp/{port}/", f"/tcp/{far}/")
        node = Node(NodeSetup(key=PeerKey.generate(), dht="off", gossip=False, keep_connected=False))
        await nursery.start(node.run)
        async with await trio.open_tcp_stream("127.0.0.1", told["echo_port"]) as echo:
            yield _Bench(host, node, echo, options.scratch, multiaddr, told["model"])
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

    async def turns(self, number: int, tokens: int) -> tuple[float, float]:
        """One pair: tokens/s of eight turns in one session, and of one turn in each of eight sessions."""
        if number % 2:
            apart = await self._turns(number, tokens, sessions=_TURNS)
            return await self._turns(number, tokens, sessions=1), apart
        together = await self._turns(number, tokens, sessions=1)
        return together, await self._turns(number, tokens, sessions=_TURNS)

    async def _turns(self, number: int, tokens: int, *, sessions: int) -> float:
        """Tokens/s of eight turns at once, in sessions that are open before the clock starts."""
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(Client(node=self.node, data_dir=self.scratch, remember=False))
                for _ in range(sessions)
            ]
            for client in clients:
                await self._ask(client, f"Hello {number}.", 1, TokenClock(trio.current_time()))
            clocks = [TokenClock(trio.current_time()) for _ in range(_TURNS)]
            with trio.fail_after(_RUN_DEADLINE_S):
                async with trio.open_nursery() as nursery:
                    for turn, clock in enumerate(clocks):
                        text = question(2 * (number + 1), turn)
                        nursery.start_soon(self._ask, clients[turn % sessions], text, tokens, clock)
            used = (await self.host.ask({"do": "sessions"}, deadline_s=_RUN_DEADLINE_S))["sessions"]
        if used != sessions or min(clock.tokens for clock in clocks) < tokens * _SHORTEST:
            came = min(clock.tokens for clock in clocks)
            msg = f"{used} sessions of {sessions} were used, and an answer had {came} tokens of {tokens}"
            raise LocalError(msg)
        return sum(clock.tokens_per_s for clock in clocks)

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


def _leaf_share(tokens_per_s: float, **details: Any) -> Measurement:
    """What leaves take of a stream of so many tokens/s: 1 means nothing."""
    with_leaf, ids_only = (median(cpu(_LEAVES) for _ in range(5)) for cpu in (_leaf_cpu_s, _ids_cpu_s))
    extra_ms = 2 * max(0.0, with_leaf - ids_only) * 1e3  # the host's and the client's
    without_ms = CHECKPOINT_EVERY / tokens_per_s * 1e3 - extra_ms
    fast_ms = CHECKPOINT_EVERY / _FAST_TOKENS_PER_S * 1e3
    return compared(
        tokens_per_s,
        CHECKPOINT_EVERY / without_ms * 1e3,
        leaf_ms=round(with_leaf * 1e3, 4),
        ids_alone_ms=round(ids_only * 1e3, 4),
        extra_ms_both_sides=round(extra_ms, 4),
        ratio_at_2000_tokens_per_s=round(1 - extra_ms / fast_ms, 4),
        **details,
    )


def _frames() -> list[Tokens]:
    """32 tokens as an engine gives them one by one, the first of them a start."""
    return [
        Tokens(turn=1, index=place, ids=(1000 + place,), text=" word", start="" if place else "credit")
        for place in range(CHECKPOINT_EVERY)
    ]


def _leaf_cpu_s(times: int) -> float:
    """CPU seconds of one leaf: each frame added, and the digest."""
    frames, began = _frames(), process_time()
    for turn in range(times):
        leaf = Leaf(turn=turn, first=0, request=bytes(32), prompt=bytes(32))
        for frame in frames:
            leaf.add(frame)
        leaf.digest()
    return (process_time() - began) / times


def _ids_cpu_s(times: int) -> float:
    """CPU seconds of what is left where a receipt binds ids alone."""
    frames, began = _frames(), process_time()
    for _ in range(times):
        ids: list[int] = []
        for frame in frames:
            ids.extend(frame.ids)
        ids_hash(ids)
    return (process_time() - began) / times
