"""Steady requests through one gateway while free hosts are killed and come back, in virtual time.

A request ends well as long as one host lives through it; where none does, it fails with an honest status.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator
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

from p2pnode.gateway.access import OpenRing
from p2pnode.gateway.app import AppOptions, make_app
from p2pnode.gateway.gateway import Gateway
from tests.client.failing import unkilled
from tests.gateway.test_long_life import ask
from tests.host.paid import PaidWorld, paid_world
from tests.net.memory_world import ip_of
from tests.node.world import scripted_host

HOSTS, ASKERS, TOKENS = 3, 4, 24
CHAT = "/v1/chat/completions"
HTTP_OK = 200


@dataclass
class Asked:
    """A request that is over: when, how, and which hosts lived all the while."""

    question: str
    began: float
    ended: float
    streamed: bool
    status: int
    got: bytes
    living: frozenset[int]

    @property
    def _events(self) -> list[Any]:
        lines = self.got.decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]

    @property
    def code(self) -> str:
        """The code of its error; "" where it ended well."""
        if self.status != HTTP_OK:
            return str(json.loads(self.got)["error"]["code"])
        if not self.streamed:
            return ""
        errors = [each["error"]["code"] for each in self._events if "error" in each]
        return str(errors[0]) if errors else ""

    @property
    def text(self) -> str:
        """What was answered."""
        if not self.streamed:
            return str(json.loads(self.got)["choices"][0]["message"]["content"])
        pieces = (each["choices"] for each in self._events)
        return "".join(each[0]["delta"].get("content") or "" for each in pieces if each)


@dataclass
class Town:
    """Hosts that die and come back, and a gateway that is asked meanwhile."""

    world: PaidWorld
    app: ASGIApp
    draw: Random
    hosts: list[Any]
    living: set[int] = field(default_factory=lambda: set(range(HOSTS)))
    asked: list[Asked] = field(default_factory=list)
    _under_way: dict[int, set[int]] = field(default_factory=dict)
    """By request, which hosts lived since it began."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def ask_on(self, number: int) -> None:
        """One request after another."""
        count = 0
        while True:
            count += 1
            await self.ask(f"asker {number} question {count}", stream=self.draw.random() < 0.5)
            await trio.sleep(self.draw.random())

    async def ask(self, question: str, *, stream: bool) -> None:
        """One request."""
        messages = [{"role": "user", "content": question}]
        body = {"model": "scripted", "temperature": 0, "stream": stream, "max_tokens": TOKENS}
        living = set(self.living)
        number = next(self._numbers)
        self._under_way[number] = living
        began = trio.current_time()
        status, got = await ask(self.app, CHAT, {**body, "messages": messages}, "none")
        del self._under_way[number]
        ended = trio.current_time()
        self.asked.append(Asked(question, began, ended, stream, status, got, frozenset(living)))

    async def kill(self, index: int) -> None:
        """Kill a host, and start it again after a while."""
        self.living.discard(index)
        for living in self._under_way.values():
            living.discard(index)
        member, money = self.hosts[index]
        self.world.kill(member, money)
        if self.draw.random() < 0.5:  # its process alone: who dials it is refused at once
            self.world.world.net.restart(ip_of(index))
        await trio.sleep(self.draw.choice([0.01, 0.3, 2.0, 12.0]) * (0.5 + self.draw.random()))
        self.hosts[index] = await self.world.host(index=index, model=scripted_host(tokens_per_s=20.0))
        self.living.add(index)

    async def kill_on(self, deaths: int) -> None:
        """Kill one host after another; two are dead at times."""
        async with trio.open_nursery() as nursery:
            for _ in range(deaths):
                await trio.sleep(self.draw.choice([0.2, 1.0, 4.0]) * (0.5 + self.draw.random()))
                while len(self.living) < 2:  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.1)
                nursery.start_soon(self.kill, self.draw.choice(sorted(self.living)))
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def town(folder: Path, seed: int) -> AsyncIterator[Town]:
    """Free hosts behind one gateway."""
    async with paid_world(folder, seed=seed) as w:
        hosts = [await w.host(model=scripted_host(tokens_per_s=20.0)) for _ in range(HOSTS)]
        addresses = [member.node.multiaddrs[0] for member, _ in hosts]
        async with w.world.client(addresses) as client:
            await client.hosts("scripted")
            yield Town(w, make_app(Gateway(client), OpenRing(), AppOptions()), Random(seed), hosts)


async def check(folder: Path, seed: int, deaths: int) -> None:
    """So many deaths under requests; and when all are back, each request ends well."""
    async with town(folder, seed) as t:
        async with trio.open_nursery() as nursery:
            for number in range(ASKERS):
                nursery.start_soon(t.ask_on, number)
            await t.kill_on(deaths)
            nursery.cancel_scope.cancel()
        during = len(t.asked)
        assert during > deaths
        for number in range(2 * ASKERS):
            await t.ask(f"question {number} after all", stream=bool(number & 1))
        for each in t.asked:
            what = (seed, each.began, each.ended, each.status, each.living, each.got[-600:])
            if each.code:
                assert not each.living, what
                assert each.code in ("no_host", "host_failed"), what
                assert each.status in (200, 502, 503), what
            else:
                assert each.text == (await unkilled(each.question, TOKENS))[1], what
        assert not [each for each in t.asked[during:] if each.code], "who failed often is back"
        assert sum(bool(each.code) for each in t.asked) < 0.1 * during


async def test_a_request_ends_well_where_a_host_lives_through_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    await check(tmp_path, 0, 12)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 13))
async def test_requests_end_well_while_hosts_die_many_times(
    tmp_path: Path, autojump_clock: MockClock, seed: int
) -> None:
    await check(tmp_path, seed, 60)


async def test_without_a_host_a_request_says_so_and_the_next_ones_end_well_once_hosts_are_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with town(tmp_path, 1) as t:
        await t.ask("before", stream=False)
        for _ in range(4):  # so often that each is left out where there is another
            for member, money in t.hosts:
                t.world.kill(member, money)
                t.world.world.net.restart(ip_of(member.index))
            await t.ask("meanwhile", stream=False)
            assert (t.asked[-1].status, t.asked[-1].code) in ((503, "no_host"), (502, "host_failed"))
            for index in range(HOSTS):
                t.hosts[index] = await t.world.host(index=index, model=scripted_host(tokens_per_s=20.0))
            for _ in range(2):
                await t.ask("afterwards", stream=True)
                assert t.asked[-1].code == ""
