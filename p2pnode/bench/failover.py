"""``failover.*``: a host is killed in the middle of a paid answer, and the answer goes on from another.

Two hosts, each a process of its own with the same model, on a development chain. In each round the client
finds both, asks, and the host that serves is ended by SIGKILL when so many output tokens are held; it is
started again for the next round. The baseline asks the surviving host for the same rest, in a fresh session,
while nothing fails.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Final, TypeAlias

import trio

from p2pnode.bench.figure import Measurement, compared
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import Joined, joined
from p2pnode.chain.dev.devchain import open_dev_chain
from p2pnode.chain.profile import write_profile
from p2pnode.chain.wallet.wallet import open_or_make_wallet
from p2pnode.client.client import Client
from p2pnode.client.failover import Held
from p2pnode.client.interface import Answer
from p2pnode.client.session import Session, SessionTurn
from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.errors import LocalError
from p2pnode.ids import PeerId, SessionId
from p2pnode.models.manifest import SCRIPTED
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import wallet_files
from p2pnode.payments.books import open_journal
from p2pnode.platforms import KILL
from p2pnode.protocols.inference.commands import Ask, ClientEmission, Delivered, Quoted
from p2pnode.protocols.inference.messages import SamplingParams

_ROUNDS: Final = 30
_QUICK_ROUNDS: Final = 3
_KILL_LAST: Final = 96
_TOKENS: Final = 128
_ATTEMPTS: Final = 4
"""Questions tried in a round until an answer is long enough for its kill."""
_ROUND_DEADLINE_S: Final = 90.0
_CALM_S: Final = 2.0
"""After a start, and after sessions were closed: settling must not disturb a round."""
_PRICES: Final = ("--price-in=1", "--price-out=2", "--session-fee=0.001")
_HOSTS: Final = ("one", "two")
_STEPS: Final = ("detect", "choose", "sign", "open", "count", "prefill")


async def measure_failover(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    rounds = _QUICK_ROUNDS if options.quick else _ROUNDS
    found: list[_Round] = []
    async with _market(options) as market:
        for number in range(rounds):
            kill_at = 1 + number * (_KILL_LAST - 1) // max(1, rounds - 1)
            found.append(await market.round(number, kill_at))
            await market.start_again()
    _take_tokens(found, take)
    _take_gaps(found, take)


def _take_tokens(found: list[_Round], take: Take) -> None:
    held = float(sum(each.held for each in found))
    rest = float(sum(each.tokens for each in found)) - held
    # Without failover: what is held is asked for, delivered and billed again, and the rest is missing.
    for name, baseline in (
        ("failover.duplicated", held),
        ("failover.missing", rest),
        ("failover.billed_twice", held),
    ):
        value = sum(getattr(each.verdict, name.partition(".")[2]) for each in found)
        ratio, details = value / baseline, {"rounds": len(found)}
        take(name, Measurement(value=value, baseline=baseline, ratio=ratio, details=details))


def _take_gaps(found: list[_Round], take: Take) -> None:
    gaps, fresh = [each.gap_s for each in found], [each.fresh_s for each in found]
    steps = {f"{step}_ms_p50": round(median(each.steps[step] for each in found) * 1e3, 1) for step in _STEPS}
    details = {
        "prompt_tokens": median(each.tokens_in for each in found),
        "held": [each.held for each in found],
        "s": [round(gap, 3) for gap in gaps],
        "fresh_s": [round(each, 3) for each in fresh],
        **steps,
    }
    take("failover.gap", compared(median(gaps), median(fresh), **details))
    take("failover.gap_p95", compared(_p95(gaps), _p95(fresh)))


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """One kill. ``steps`` are the parts of the gap, in seconds."""

    held: int
    tokens: int
    tokens_in: int
    gap_s: float
    fresh_s: float
    steps: dict[str, float]
    verdict: Verdict


@dataclass(slots=True)
class _Watch:
    """When a client told what, first after the kill."""

    killed_at: float | None = None
    at: dict[str, float] = field(default_factory=dict)

    def on_event(self, name: str, _fields: dict[str, object]) -> None:
        if self.killed_at is not None:
            self.at.setdefault(name, trio.current_time())


class _Market:
    """A chain, two hosts that can be killed and started, and a client's data dir with money in it."""

    def __init__(self, options: BenchOptions, profile: Path) -> None:
        self._root, self._profile = options.scratch, profile
        self._model = SCRIPTED if options.quick else DEFAULT_MODEL
        engine = ("--scripted-tokens-per-s=80",) if options.quick else ("--threads=1",)
        self._flags = (f"--model={self._model}", *engine, "--slots=1", *_PRICES, f"--chain={profile}")
        self._hosts: dict[str, Joined] = {}
        self._stacks: dict[str, AsyncExitStack] = {}

    async def start_again(self) -> None:
        """Start each host that doesn't run."""
        for name in _HOSTS:
            if name not in self._hosts:
                try:
                    await self._start(name)
                except LocalError:  # how a host starts is not what is measured here
                    await self._start(name)
        await trio.sleep(_CALM_S)

    async def _start(self, name: str) -> None:
        stack = AsyncExitStack()
        self._hosts[name] = await stack.enter_async_context(joined(self._root, name, self._flags))
        self._stacks[name] = stack

    async def aclose(self) -> None:
        """End both hosts."""
        for stack in self._stacks.values():
            await stack.aclose()

    async def _kill(self, peer: PeerId | None) -> None:
        for name, host in self._hosts.items():
            if host.multiaddrs[0].endswith(f"/p2p/{peer}"):
                os.kill(host.pid, KILL)
                self._killed_name = name
                return
        msg = f"no host of this run is {peer}"
        raise LocalError(msg)

    _killed_name = ""

    def _client(self, watch: _Watch) -> Client:
        config = NodeConfig(
            data_dir=self._root / "client", chain=str(self._profile), mdns=False,
            spend_day_max=10**10, spend_host_max=10**10,
        )  # fmt: skip
        seeds = [host.multiaddrs[0] for host in self._hosts.values()]
        # A session that was left with a host would be resumed, and the next round would sign nothing.
        return Client(config, bootstrap=seeds, remember=False, closes=True, on_event=watch.on_event)

    async def round(self, number: int, kill_at: int) -> _Round:
        """One answer whose host is killed. Raises ``LocalError`` when no question gives one long enough."""
        for attempt in range(_ATTEMPTS):
            question = f"Number {10 + (number + attempt * 30) % 90}. Tell a long story."
            with trio.fail_after(_ROUND_DEADLINE_S):
                found = await self._try(question, kill_at)
            if found is not None:
                return found
        msg = f"no answer was longer than {kill_at} tokens"
        raise LocalError(msg)

    async def _try(self, question: str, kill_at: int) -> _Round | None:
        watch = _Watch()
        with traced_sessions() as trace:
            async with self._client(watch) as client:
                await client.hosts(self._model)
                async with self._ask(client, question) as answer:
                    async for _ in answer:
                        if watch.killed_at is None and len(answer.ids) >= kill_at:
                            watch.killed_at = trio.current_time()
                            await self._kill(answer.host)
        if watch.killed_at is None or len(trace.turns()) < 2:  # noqa: PLR2004 - it was over before it could fail
            if watch.killed_at is not None:
                await self._end_killed()
                await self.start_again()
            return None
        verdict = trace.judge(answer.ids, await self._signed())
        await self._end_killed()
        fresh_s = await self._fresh(question, answer, len(trace.turns()[1].prefix))
        return _measured(trace, watch, answer, verdict, fresh_s)

    def _ask(self, client: Client, question: str, held: Held | None = None) -> Answer:
        sampling = SamplingParams(tokens_max=_TOKENS, temperature=0.0)
        return client.chat(question, model=self._model, sampling=sampling, held=held)

    async def _end_killed(self) -> None:
        """Wait until the supervisor of the killed host has ended."""
        del self._hosts[self._killed_name]
        await self._stacks.pop(self._killed_name).aclose()

    async def _signed(self) -> dict[SessionId, int]:
        async with open_journal(DataDir(self._root / "client").journal) as journal:
            return {
                each.session: each.voucher.tokens_out if each.voucher is not None else 0
                for each in journal.purchases()
            }

    async def _fresh(self, question: str, answer: Answer, held: int) -> float:
        """Seconds to the first token of the same rest, of the host that lives."""
        await trio.sleep(_CALM_S)
        async with self._client(_Watch()) as client:
            await client.hosts(self._model)
            began = trio.current_time()
            part = Held(tuple(answer.ids[:held]), "", held)
            async with self._ask(client, question, part) as again:
                await anext(again)
                return trio.current_time() - began


def _measured(trace: Trace, watch: _Watch, answer: Answer, verdict: Verdict, fresh_s: float) -> _Round:
    second = trace.turns()[1]
    came = [each for each in trace.noted if isinstance(each, Came) and each.ids]
    last = max(each.at for each in came if each.session != second.session)
    first = min(each.at for each in came if each.session == second.session)
    counted = next(e for e in trace.noted if isinstance(e, Counted) and e.session == second.session)
    at = watch.at
    moments = (last, at["host.failed"], at["host"], at["signing"], second.at, counted.at, first)
    return _Round(
        held=len(second.prefix),
        tokens=len(answer.ids),
        tokens_in=counted.tokens_in - len(second.prefix),
        gap_s=first - last,
        fresh_s=fresh_s,
        steps=dict(zip(_STEPS, (after - before for before, after in pairwise(moments)), strict=True)),
        verdict=verdict,
    )


@asynccontextmanager
async def _market(options: BenchOptions) -> AsyncIterator[_Market]:
    async with open_dev_chain() as chain:
        profile = options.scratch / "chain.toml"
        write_profile(profile, replace(chain.profile(), name="bench"))
        for name, usdc, ether_wei in (*((name, 0, 10**18) for name in _HOSTS), ("client", 10**9, 0)):
            data = DataDir(options.scratch / name)
            data.prepare()
            wallet = await trio.to_thread.run_sync(open_or_make_wallet, wallet_files(data))
            await chain.fund(wallet.address, usdc=usdc, ether_wei=ether_wei)
        market = _Market(options, profile)
        try:
            await market.start_again()
            yield market
        finally:
            with trio.CancelScope(shield=True):
                await market.aclose()


# ---- the trace: which tokens came for which place of an answer


@dataclass(frozen=True, slots=True)
class Asked:
    """A turn began, with these ids of the answer."""

    at: float
    session: SessionId
    prefix: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """The host quoted its input."""

    at: float
    session: SessionId
    tokens_in: int


@dataclass(frozen=True, slots=True)
class Came:
    """Output; ``index`` counts in the turn."""

    at: float
    session: SessionId
    index: int
    ids: tuple[int, ...]


Noted: TypeAlias = Asked | Counted | Came


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts of tokens: those that came twice for a place, places without one, those billed twice."""

    duplicated: int
    missing: int
    billed_twice: int


@dataclass(slots=True)
class Trace:
    """What the sessions of one answer asked and received, in order.

    A place is the number of an output token in the whole answer: the number of ids that a turn began with,
    and the token's number in the turn. :meth:`judge` compares no text and needs no run without a failure.
    """

    noted: list[Noted] = field(default_factory=list)

    def turns(self) -> list[Asked]:
        """The turns that were asked."""
        return [each for each in self.noted if isinstance(each, Asked)]

    def places(self) -> Iterator[tuple[SessionId, int, int]]:
        """(session, place, id) of each token that came."""
        base: dict[SessionId, int] = {}
        for each in self.noted:
            if isinstance(each, Asked):
                base[each.session] = len(each.prefix)
            elif isinstance(each, Came):
                for offset, token in enumerate(each.ids):
                    yield each.session, base[each.session] + each.index + offset, token

    def judge(self, ids: Sequence[int], signed: Mapping[SessionId, int]) -> Verdict:
        """``ids`` are the answer's; ``signed`` says how many output tokens each session's voucher pays."""
        times: Counter[int] = Counter()
        wrong: set[int] = set()
        paid: Counter[int] = Counter()
        left = dict(signed)
        for session, place, token in self.places():
            times[place] += 1
            if not (0 <= place < len(ids) and ids[place] == token):
                wrong.add(place)
            if left.get(session, 0) > 0:  # a voucher pays for a session's tokens in their order
                left[session] -= 1
                paid[place] += 1
        for turn in self.turns():
            wrong |= {place for place, token in enumerate(turn.prefix) if ids[place : place + 1] != [token]}
        absent = {place for place in range(len(ids)) if not times[place]}
        return Verdict(
            duplicated=sum(count - 1 for count in times.values()),
            missing=len(absent | wrong),
            billed_twice=sum(count - 1 for count in paid.values() if count > 1),
        )


@contextmanager
def traced_sessions() -> Iterator[Trace]:
    """Record what all sessions of this process ask and receive while the block runs."""
    trace = Trace()
    ask, receive = Session.ask, SessionTurn.receive

    async def noting_ask(session: Session, asked: Ask) -> SessionTurn:
        if session.accept is not None:
            trace.noted.append(Asked(trio.current_time(), session.accept.session, asked.body.prefix))
        return await ask(session, asked)

    async def noting_receive(turn: SessionTurn) -> ClientEmission:
        value, session = await receive(turn), turn.session
        if session.accept is not None:
            match value:
                case Delivered(tokens=tokens):
                    now = trio.current_time()
                    trace.noted.append(Came(now, session.accept.session, tokens.index, tokens.ids))
                case Quoted(quote=quote):
                    noted = Counted(trio.current_time(), session.accept.session, quote.tokens_in)
                    trace.noted.append(noted)
                case _:
                    pass
        return value

    setattr(Session, "ask", noting_ask)  # noqa: B010 - a method, replaced on purpose
    setattr(SessionTurn, "receive", noting_receive)  # noqa: B010
    try:
        yield trace
    finally:
        setattr(Session, "ask", ask)  # noqa: B010
        setattr(SessionTurn, "receive", receive)  # noqa: B010
