"""Ten thousand conversations through one gateway in virtual time: nothing of one is left when it is over."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.lowlevel
from starlette.types import ASGIApp
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.gateway.access import SingleKey
from p2pnode.gateway.app import AppOptions, make_app
from p2pnode.gateway.dashboard.traffic import Traffic
from p2pnode.gateway.gateway import Gateway
from p2pnode.gateway.keys import BudgetRing
from p2pnode.host.model_pool import HostedModel
from p2pnode.net.virtual_time import wall_clock
from p2pnode.payments.keys import KeyBook, KeyLimits, NewKey
from p2pnode.payments.spending import SpendingLimits
from tests.client.failing import engine_of
from tests.host.paid import FEE, PaidWorld, journal_on, paid_world, priced
from tests.memory import held_bytes
from tests.node.world import scripted_host
from tests.sqlite_disk import WatchedDisk

CONVERSATIONS, EARLY, AT_ONCE = 10_000, 2_000, 8
TOKENS = 6
HOSTS, PAID, POOR = 3, 0, 1
HTTP_OK = 200
OWNER = "p2p-owner"
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions", "/v1/embeddings")
RICH = 1_000_000_000
LIMITS = SpendingLimits(day_max=RICH, host_max=RICH, session_max=2_000_000)


async def ask(
    app: ASGIApp,
    path: str,
    body: dict[str, Any],
    token: str,
    *,
    leave: bool = False,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """One request, as a server brings it; ``leave``: the program goes away with the first piece."""
    left = trio.Event()
    asked = False
    status, got = 0, b""

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, got
        status = message.get("status", status)
        got += message.get("body", b"")
        if got and leave:
            left.set()
            await trio.lowlevel.checkpoint()

    told = {"host": "127.0.0.1", "content-type": "application/json", "x-api-key": token, **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in told.items()],
    }
    await app(scope, receive, send)
    left.set()
    return status, got


def body_of(number: int, path: str, *, stream: bool, turns: int) -> dict[str, Any]:
    """A question of the conversation ``number``, after so many turns."""
    words = [f"conversation {number}"]
    for turn in range(turns):
        words += [f"answer {turn}", f"question {turn}"]
    messages = [{"role": ("user", "assistant")[at % 2], "content": each} for at, each in enumerate(words)]
    asked: dict[str, Any] = {"model": "scripted", "temperature": 0, "stream": stream}
    match path:
        case "/v1/completions":
            return {**asked, "prompt": words[0], "max_tokens": TOKENS}
        case "/v1/responses":
            return {**asked, "input": messages, "max_output_tokens": TOKENS}
        case "/v1/embeddings":
            return {"model": "scripted", "input": words[0]}
        case _:
            return {**asked, "messages": messages, "max_tokens": TOKENS}


def model_of(index: int) -> HostedModel:
    """What a host serves: one asks money for it, and the others none."""
    return priced(tokens_per_s=100.0) if index == PAID else scripted_host(tokens_per_s=100.0)


@dataclass
class Life:
    """A gateway whose client pays three hosts, and keys that may use it."""

    world: PaidWorld
    hosts: list[Any]
    client: Client
    gateway: Gateway
    app: ASGIApp
    keys: list[NewKey]
    journal: Path
    statuses: Counter[int] = field(default_factory=Counter)
    begun: int = 0
    killed: int = 0
    failed: int = 0
    failed_unnamed: int = 0
    """Of those, the ones that another host might have answered."""

    async def converse(self, number: int) -> None:
        """One conversation, of one turn or of two; each seventh program leaves."""
        path = PATHS[number % len(PATHS)]
        key = self.keys[number % len(self.keys)]
        token = key.secret if number % 4 else OWNER
        for turn in range(1 + (number % 10 == 0)):
            body = body_of(number, path, stream=bool(number & 1), turns=turn)
            named = number % 10 == 3  # the others are answered by hosts that ask no money
            if named:
                body["p2pnode"] = {"host": str(self.hosts[PAID][0].node.peer_id)}
            status, got = await ask(self.app, path, body, token, leave=number % 7 == 0)
            self.statuses[status] += 1
            failed = status != HTTP_OK or b'"code":"host_failed"' in got or b'"code":"no_host"' in got
            self.failed_unnamed += failed and not named and key is not self.keys[POOR]
            self.failed += failed

    async def work(self, until: int) -> None:
        """Conversations one after another, with those of others."""
        while self.begun < until:
            self.begun += 1
            await self.converse(self.begun)

    async def converse_until(self, until: int) -> None:
        """Conversations up to this one, some at once, and a silence after them."""
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self.work, until)
        await trio.sleep(120)

    async def replace_host(self, index: int) -> None:
        """Kill a host, under whatever it answers, and start it again after a while."""
        member, money = self.hosts[index]
        self.world.kill(member, money)
        self.killed += 1
        await trio.sleep(20)
        self.hosts[index] = await self.world.host(index=index, model=model_of(index), keep_s=3600)

    async def converse_through_deaths(self, until: int) -> None:
        """The same, while one host after the other dies and comes back."""
        begun = self.begun
        for index in range(HOSTS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.replace_host, index)
                await self.converse_until(begun + (until - begun) * (index + 1) // HOSTS)

    def held(self) -> tuple[int, int]:
        """Bytes that the gateway and its client hold on to, and tasks that run, without the two of the
        journal of each killed host, which the test keeps."""
        gc.collect()
        return held_bytes(self.app), trio.lowlevel.current_statistics().tasks_living - 2 * self.killed


@asynccontextmanager
async def life(folder: Path) -> AsyncIterator[Life]:
    """A gateway over hosts that run, with three keys: one of them has little to spend."""
    path = folder / "client.sqlite"
    async with paid_world(folder) as w:
        hosts = [await w.host(model=model_of(index), keep_s=3600) for index in range(HOSTS)]
        async with w.client(hosts[0][0], journal=path, units=RICH, limits=LIMITS) as client:
            client.runtime.bootstrap = tuple(member.node.multiaddrs[0] for member, _ in hosts)
            await client.hosts("scripted")
            keys = []
            async with journal_on(WatchedDisk(), path) as journal:
                book = KeyBook(journal, wall=wall_clock, draw=Random(1).randbytes)
                for name, most in (("rich", RICH), ("poor", FEE + 5_000), ("other", RICH)):
                    keys.append(await book.new(name, KeyLimits(total_max=most)))
            ring = BudgetRing(SingleKey(OWNER, where="FILE"), path, wall=wall_clock)
            gateway, traffic = Gateway(client), Traffic()
            options = AppOptions(observe=lambda record: traffic.note(record, wall_clock()))
            yield Life(w, hosts, client, gateway, make_app(gateway, ring, options), keys, path)
            ring.close()


async def check(folder: Path, early: int, conversations: int, grows_max: int) -> None:
    """So many conversations, and what is held after the first ones and after each part of the others."""
    async with life(folder) as one:
        await one.converse_through_deaths(early)
        bytes_early, tasks_early = bytes_late, tasks_late = one.held()
        for until in sorted({*(conversations * part // 4 for part in (1, 2, 3)), conversations}):
            if until > early:
                await one.converse_through_deaths(until)
                bytes_late, tasks_late = one.held()
            print(f"\n{one.begun} conversations: {bytes_late} bytes, {tasks_late} tasks")  # noqa: T201
        assert one.failed_unnamed == 0, "another host lived"
        assert 0 < one.failed < 0.1 * conversations, one.statuses
        assert bytes_late - bytes_early < grows_max
        assert tasks_late <= tasks_early + 30
        assert one.gateway.under_way == 0
        assert not [each for member, _ in one.hosts if (each := engine_of(member).statistics()).active]
        async with journal_on(WatchedDisk(), one.journal) as journal:
            for made in one.keys:
                used = journal.key_usage(made.key.id, int(wall_clock()))
                assert used.claimed == 0, "an answer that is over keeps nothing of its key's budget"
                assert used.total <= (made.key.limits.total_max or 0)


@pytest.mark.long
async def test_conversations_leave_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    await check(tmp_path, 60, 120, 3 << 20)


@pytest.mark.churn
async def test_ten_thousand_conversations_leave_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    await check(tmp_path, EARLY, CONVERSATIONS, 3 << 20)
