"""``gateway.*``: what a program gets through the gateway, against llama.cpp's own HTTP server.

The server is in the very process that computes for the host that the gateway asks, so that both sides of a
pair run on the same weights, threads and slots. One HTTP client reads both, takes turns, and counts tokens by
the usage that each server tells. The host, the gateway and the echo are processes of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import Final

import trio

from p2pnode.bench.chat_stream import ChatStream, chat, chat_request
from p2pnode.bench.crowd import Crowd, crowd_hosts
from p2pnode.bench.figure import compared, paired
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import child, gateway
from p2pnode.bench.token_clock import QUESTIONS, question
from p2pnode.bench.usage import cpu_s
from p2pnode.errors import LocalError
from p2pnode.models.child.http import ChildHttp

_NO_KEY: Final = "none"
_SLOTS: Final = 8
_N_CTX: Final = 512
_TOKENS: Final = {1: 257, 8: 129}
"""Output tokens of each stream, by their number."""
_FIRST_TOKENS: Final = 40
_ROUNDS_BEFORE: Final = 3
"""Whoever is asked has the question in a cache then."""
_CROWD_TOKENS: Final = 193
_RUN_S: Final = 300.0
_SHORTEST: Final = 0.9
"""Of what was asked for: an answer that ends earlier would be counted by too few tokens."""
_AGENT_N_CTX: Final = 5120
_AGENT_TOKENS: Final = 32
_PREFIX_TOKENS: Final = 4000
_RULE: Final = "Rule {}: read the file before it is changed, keep the change small, and say what was done. "
_RULE_TOKENS: Final = 20
"""At least; how many there are is counted by the gateway, and checked."""
_OUTPUT: Final = "The tests ran: 41 passed, 1 failed (test_tide: expected 3, got 2). What is to be changed?"


async def measure_gateway(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    pairs = 1 if options.quick else options.pairs
    async with AsyncExitStack() as stack:
        crowd = await stack.enter_async_context(crowd_hosts(options.scratch, quick=options.quick))
        bench = await stack.enter_async_context(_beside(options, _SLOTS, _N_CTX, crowd.multiaddrs))
        for streams, tokens in _TOKENS.items():
            each = tokens // 4 if options.quick else tokens
            await bench.pair(-1, streams, each)  # sessions, caches of the processor, lazy imports
            bench.took.clear()
            found = [await bench.pair(number, streams, each) for number in range(pairs)]
            take(f"gateway.throughput_{streams}", paired(found, tokens=each, **bench.cpu_per_token()))
        async with child("echo_process", {}) as (_, told):
            times = 3 if options.quick else _FIRST_TOKENS
            rounds = await bench.first_tokens(times, ChildHttp(told["port"], _NO_KEY))
        more = median(ours - engine for ours, engine, _ in rounds)
        parts = {
            name: round(median(each[place] for each in rounds) * 1e3, 2)
            for place, name in enumerate(("gateway_ms", "llamacpp_ms", "echo_ms"))
        }
        echo = median(each[2] for each in rounds)
        take("gateway.first_token_overhead", compared(more * 1e3, echo * 1e3, rounds=times, **parts))
        found = [await bench.crowded(number, crowd, options) for number in range(-1, pairs)][1:]
        take("gateway.crowded", paired(found, idle=crowd.idle, stalled=crowd.stalled))
    async with _beside(options, 1, _AGENT_N_CTX, ()) as bench:
        prefix = _PREFIX_TOKENS // 8 if options.quick else _PREFIX_TOKENS
        turn = await bench.second_turn(prefix)
        told = {"prompt_tokens": turn.tokens_in, "cached_tokens": turn.cached}
        take("gateway.second_turn", compared(turn.cached / turn.tokens_in, 1.0, **told))


@asynccontextmanager
async def _beside(
    options: BenchOptions, slots: int, n_ctx: int, others: Sequence[str]
) -> AsyncIterator[_Bench]:
    """A host, a gateway that knows it and the ``others``, and the host's own server of llama.cpp."""
    config = {"engine": "llamacpp", "slots": slots, "n_ctx": n_ctx, "data_dir": str(options.scratch)}
    async with child("host_process", config) as (host, told):
        known = [f"--bootstrap={each}" for each in (told["multiaddr"], *others)]
        async with gateway(options.scratch, f"gateway{n_ctx}", known) as running:
            yield _Bench(
                gateway=ChildHttp(running.port, _NO_KEY),
                server=ChildHttp(told["engine_address"], told["engine_key"]),
                model=told["model"],
                pids={"gateway": running.pid, "host": host.pid, "engine": told["engine_pid"]},
            )


@dataclass(frozen=True, slots=True)
class _Bench:
    """``pids``: the processes between a program and its tokens; a baseline takes only the ``engine``."""

    gateway: ChildHttp
    server: ChildHttp
    model: str
    pids: dict[str, int]
    numbers: Iterator[int] = field(default_factory=count)
    took: list[tuple[ChildHttp, int, dict[str, float]]] = field(default_factory=list)
    """Of each run: whom it asked, its tokens, and the CPU seconds of each process."""

    async def pair(self, number: int, streams: int, tokens: int) -> tuple[float, float]:
        """(tokens/s through the gateway, tokens/s of llama.cpp's own server), all streams together."""
        questions = [self._question() for _ in range(streams)]
        if number % 2:
            bare = await self._rate(self.server, questions, tokens)
            return await self._rate(self.gateway, questions, tokens), bare
        ours = await self._rate(self.gateway, questions, tokens)
        return ours, await self._rate(self.server, questions, tokens)

    async def _rate(self, http: ChildHttp, questions: Sequence[str], tokens: int) -> float:
        """Tokens/s from asking to the last text."""
        streams: list[ChatStream] = []

        async def ask(text: str) -> None:
            streams.append(await self._ask(http, text, tokens))

        before, began = self._cpu(), trio.current_time()
        with trio.fail_after(_RUN_S):
            async with trio.open_nursery() as nursery:
                for text in questions:
                    nursery.start_soon(ask, text)
        after = self._cpu()
        if (least := min(each.tokens for each in streams)) < tokens * _SHORTEST:
            msg = f"an answer ended after {least} tokens of {tokens}"
            raise LocalError(msg)
        made = sum(each.tokens for each in streams)
        self.took.append((http, made, {name: after[name] - before[name] for name in after}))
        return made / (max(each.last_at for each in streams) - began)

    async def _ask(self, http: ChildHttp, text: str, tokens: int) -> ChatStream:
        messages = [{"role": "user", "content": text}]
        return await chat(http, chat_request(messages, self.model, tokens, cache_prompt=False))

    def _cpu(self) -> dict[str, float]:
        return {name: cpu_s(pid, with_children=False) for name, pid in self.pids.items()}

    def cpu_per_token(self) -> dict[str, float]:
        """Milliseconds of CPU a token, by process: on the way through the gateway, and without."""
        told = {}
        for http, names, way in (
            (self.gateway, self.pids, "cpu_ms_per_token"),
            (self.server, ("engine",), "baseline_cpu_ms_per_token"),
        ):
            runs = [(made, took) for asked, made, took in self.took if asked is http]
            for name in names:
                spent = sum(took[name] for _, took in runs) / sum(made for made, _ in runs)
                told[f"{name}_{way}"] = round(spent * 1e3, 3)
        return told

    async def first_tokens(self, times: int, echo: ChildHttp) -> list[tuple[float, float, float]]:
        """Seconds to the first text through the gateway, of llama.cpp's own server, and of an echo; who is
        asked first changes. The first rounds don't count.

        All are asked one question again and again, and both engines have it in a cache: to read it anew takes
        them some 400 ms, which differ by more than what is measured.
        """
        rounds = []
        asked = [self.gateway, self.server, echo]
        body = chat_request([{"role": "user", "content": QUESTIONS[0]}], self.model, 2)
        for number in range(-_ROUNDS_BEFORE, times):
            took = [0.0, 0.0, 0.0]
            for turn in range(3):
                place = (number + turn) % 3
                stream = await chat(asked[place], body)
                if number >= 0 and stream.cached + 1 < stream.tokens_in:
                    msg = f"of a prompt of {stream.tokens_in} tokens only {stream.cached} came from a cache"
                    raise LocalError(msg)
                took[place] = stream.first_token_s
            rounds.append((took[0], took[1], took[2]))
        return rounds[_ROUNDS_BEFORE:]

    async def crowded(self, number: int, crowd: Crowd, options: BenchOptions) -> tuple[float, float]:
        """Tokens/s of one stream through the gateway: among a crowd of others, and alone."""
        tokens = _CROWD_TOKENS // 4 if options.quick else _CROWD_TOKENS
        alone = await self._rate(self.gateway, [self._question()], tokens) if number % 2 else 0.0
        async with crowd.gathered(self.gateway, self.pids["gateway"]):
            among = await self._rate(self.gateway, [self._question()], tokens)
        return among, alone or await self._rate(self.gateway, [self._question()], tokens)

    def _question(self) -> str:
        """A new one: the gateway would find what it asked before in a cache of its host."""
        return question(*divmod(next(self.numbers), len(QUESTIONS)))

    async def second_turn(self, prefix: int) -> ChatStream:
        """An agent's second turn through the gateway, after a first one with so many tokens of instructions.

        The server itself is not asked: between two turns its host measures the idle engine, in the same slot.
        """
        rules = "".join(map(_RULE.format, range(prefix // _RULE_TOKENS)))
        messages = [
            {"role": "system", "content": f"You are an agent. {rules}"},
            {"role": "user", "content": "Run the tests of this repository."},
        ]
        first = await chat(self.gateway, chat_request(messages, self.model, _AGENT_TOKENS))
        if first.tokens_in < prefix or first.cached:
            msg = f"an agent's first turn had {first.tokens_in} tokens, {first.cached} of them from a cache"
            raise LocalError(msg)
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": _OUTPUT}]
        return await chat(self.gateway, chat_request(messages, self.model, _AGENT_TOKENS))
