"""What one request says of its hosts: the least reputation, and whether a second host is asked for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from starlette.types import ASGIApp
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.gateway.access import OpenRing
from p2pnode.gateway.app import make_app
from p2pnode.gateway.gateway import Gateway
from tests.client.failing import ONE_BY_ONE, engine_of, hosts, meet, seeds
from tests.client.support import Events
from tests.client.test_second_host import HANGS, LATE_S, measure
from tests.gateway.test_long_life import ask
from tests.node.world import Member, world

CHAT = "/v1/chat/completions"
ASK = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


@dataclass
class Asking:
    """Two hosts, of which the first one is preferred, and a gateway."""

    members: list[Member]
    client: Client
    app: ASGIApp
    events: Events

    async def ask(self, routing: dict[str, Any], *, headers: bool = False) -> tuple[int, dict[str, Any]]:
        """A request that says this, in its field or in headers, and what came."""
        told = {f"x-p2pnode-{name.replace('_', '-')}": str(value) for name, value in routing.items()}
        body = ASK if headers or not routing else {**ASK, "p2pnode": routing}
        status, got = await ask(self.app, CHAT, body, "none", headers=told if headers else {})
        return status, json.loads(got)

    async def host(self, routing: dict[str, Any], *, headers: bool = False) -> int:
        """Which host answered."""
        status, answer = await self.ask(routing, headers=headers)
        assert status == 200, answer
        peers = [str(member.node.peer_id) for member in self.members]
        return peers.index(answer["usage"]["p2pnode"]["host"])


@asynccontextmanager
async def asking(config: NodeConfig | None = None) -> AsyncIterator[Asking]:
    """Hosts that are known, with first tokens of a second."""
    async with world(limits=ONE_BY_ONE) as w:
        members = await hosts(w, 2)
        async with w.client(seeds(members), config=config) as client:
            await meet(client, members)
            measure(client, members)
            events = Events()
            events.of(client)
            yield Asking(members, client, make_app(Gateway(client), OpenRing()), events)


@pytest.mark.parametrize("headers", [False, True])
async def test_a_request_is_sent_to_no_host_below_its_least_reputation(
    headers: bool, autojump_clock: MockClock
) -> None:
    async with asking() as a:
        for _ in range(40):
            a.client.searches.note_answer(a.members[1].node.peer_id, 2.0, 5_000.0)
        assert await a.host({}) == 0, "without one the better host is asked, of which little is known"
        assert await a.host({"min_reputation": 0}, headers=headers) == 0
        assert await a.host({"min_reputation": 0.9}, headers=headers) == 1
        status, refused = await a.ask({"min_reputation": 0.99}, headers=headers)
        assert (status, refused["error"]["code"]) == (503, "no_host")
        assert "its reputation here is 0.9" in refused["error"]["message"]


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize(("default", "asked"), [("never", "free"), ("never", "always"), ("free", "")])
async def test_a_second_host_is_asked_for_the_request_that_wants_it(
    default: Any, asked: str, headers: bool, autojump_clock: MockClock
) -> None:
    async with asking(NodeConfig(hedge=default)) as a:
        engine_of(a.members[0]).faults = HANGS
        began = trio.current_time()
        assert await a.host({"hedge": asked} if asked else {}, headers=headers) == 1
        assert LATE_S < trio.current_time() - began < LATE_S + 2
        assert len(a.events.named("hedge")) == 1


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize(("default", "asked"), [("free", "never"), ("always", "never"), ("never", "")])
async def test_no_second_host_is_asked_for_the_request_that_does_not(
    default: Any, asked: str, headers: bool, autojump_clock: MockClock
) -> None:
    async with asking(NodeConfig(hedge=default)) as a:
        engine_of(a.members[0]).faults = HANGS
        with trio.move_on_after(LATE_S + 5) as scope:
            await a.host({"hedge": asked} if asked else {}, headers=headers)
        assert scope.cancelled_caught
        assert not a.events.named("hedge")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("min_reputation", "high", "is a number from 0 to 1"),
        ("min_reputation", 1.5, "is from 0 to 1"),
        ("min_reputation", -0.1, "is from 0 to 1"),
        ("min_reputation", "nan", "is from 0 to 1"),
        ("min_reputation", True, "is a number"),
        ("hedge", "sometimes", "free or always or never"),
        ("hedge", "FREE", "free or always or never"),
        ("min_reputatoin", 0.5, "known are"),
    ],
)
async def test_a_value_that_means_nothing_is_refused_by_the_name_of_its_field(
    name: str, value: object, why: str, autojump_clock: MockClock
) -> None:
    async with asking() as a:
        for headers in (False, True) if value is not True else (False,):
            status, refused = await a.ask({name: value}, headers=headers)
            assert (status, refused["error"]["code"]) == (400, "invalid_request")
            assert refused["error"]["param"] == f"p2pnode.{name}"
            assert why in refused["error"]["message"]
        assert not [each for each in a.members if engine_of(each).statistics().active]
