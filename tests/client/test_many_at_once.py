"""Many questions at once of one client: they look for hosts together, and ask each peer once."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from tests.client.failing import ask, hosts, seeds
from tests.client.support import whole
from tests.node.world import Member, world

QUESTIONS = 60
ASKED_EACH_MAX = 16
"""Advert questions of one client to one host, for all of its questions: of the lookups and of standbys."""


def told(members: list[Member]) -> list[int]:
    """How many advert questions each host has answered."""
    return [member.node.adverts.served.total() for member in members]


async def ask_all(client: Client, count: int, apart_s: float = 0.0) -> None:
    """Each answer is whole, or this raises."""

    async def one(number: int) -> None:
        assert await whole(ask(client, f"question {number}", 30))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
            await trio.sleep(apart_s)


async def test_a_crowd_of_questions_asks_each_host_for_adverts_a_few_times(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        members = await hosts(w, 3, tokens_per_s=50.0)
        async with w.client([seeds(members)[0]]) as client:
            before = told(members)
            await ask_all(client, QUESTIONS)
            after = told(members)
    assert max(new - old for old, new in zip(before, after, strict=True)) <= ASKED_EACH_MAX


async def test_questions_that_come_one_after_another_share_what_was_just_found(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        members = await hosts(w, 3, tokens_per_s=50.0)
        async with w.client([seeds(members)[0]]) as client:
            before = told(members)
            await ask_all(client, QUESTIONS, apart_s=0.1)
            after = told(members)
    # 22 to 31 in eight runs; over 60 where each question looks alone.
    assert max(new - old for old, new in zip(before, after, strict=True)) <= QUESTIONS * 2 / 3
