"""A host that is paid for a question and ends its answer without a token: what it takes, and what follows.

No client can prove that such an answer is wrong. So the first one counts against its host and another host is
asked; where that one says nothing either, nothing is the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.errors import RefusedError
from tests.client.failing import ONE_BY_ONE, ask, check_whole, meet, read
from tests.host.paid import FEE, PaidWorld, paid_world, priced
from tests.host.test_paid_failover import Running, check_claims, due

SAID = "all of it "


def _nothing(_prompt: tuple[int, ...], _seed: int) -> str:
    return ""


@asynccontextmanager
async def _market(
    folder: Path, count: int, empty: int, **config: object
) -> AsyncIterator[tuple[PaidWorld, list[Running], Client]]:
    """``count`` hosts, of which the first ``empty`` answer nothing, in the order in which the client prefers
    them."""
    async with paid_world(folder, limits=ONE_BY_ONE) as w:
        running = [
            await w.host(model=priced(script=_nothing if number < empty else None, **config))
            for number in range(count)
        ]
        members = [member for member, _ in running]
        async with w.client(members[0]) as client:
            client.runtime.bootstrap = tuple(member.node.multiaddrs[0] for member in members)
            await meet(client, members)
            yield w, running, client


async def test_a_host_that_is_paid_and_says_nothing_has_one_input_and_is_not_asked_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with _market(tmp_path, 2, 1) as (_, running, client):
        evil, honest = (member.node.peer_id for member, _ in running)
        answer = ask(client)
        await check_whole(answer, await read(answer))
        taken, given = answer.bill
        assert (taken.peer, given.peer) == (evil, honest)
        assert taken.cost == due(taken.tokens_in - taken.reused, 0), "its fee and one input"
        assert taken.tokens_out == 0
        check_claims(client, answer, running)
        for _ in range(3):
            again = ask(client)
            await check_whole(again, await read(again))
            assert [item.peer for item in again.bill] == [honest]
        known = client.searches.measured[evil]
        assert known.failures_in_a_row == 1
        assert known.failure_rate > 0, "which is what ranking remembers"


async def test_three_empty_answers_in_a_row_and_a_host_is_left_out_also_where_it_is_the_only_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with _market(tmp_path, 1, 1) as (_, running, client):
        ((_, money),) = running
        for _ in range(3):
            answer = ask(client)
            with pytest.raises(RefusedError, match="without a token"):
                await read(answer)
            (item,) = answer.bill
            assert item.cost == due(item.tokens_in, 0)
        answer = ask(client)
        with pytest.raises(Exception, match="left out"):
            await read(answer)
        assert not answer.bill
        assert len(money.journal.hosted()) == 3, "each time the session was closed: it is not used again"


async def test_where_two_hosts_say_nothing_nothing_is_the_answer(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with _market(tmp_path, 3, 2) as (_, running, client):
        first, second, third = (member.node.peer_id for member, _ in running)
        answer = ask(client)
        assert await read(answer) == ""
        assert [item.peer for item in answer.bill] == [first, second]
        assert answer.usage is not None
        assert (answer.usage.reason, answer.usage.tokens_out) == ("stop", 0)
        assert client.searches.measured[second].failures_in_a_row == 0
        assert third not in {item.peer for item in answer.bill}


async def test_eight_questions_at_once_pay_such_a_host_for_two_at_most(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The session counts what it was paid for and did not give, whether it ends turns by an error or not."""
    async with _market(tmp_path, 2, 1, slots=8) as (_, running, client):
        (evil, money), _ = running
        answers = [ask(client, f"question {number}") for number in range(8)]
        async with trio.open_nursery() as nursery:
            for answer in answers:
                nursery.start_soon(read, answer)
        items = [item for answer in answers for item in answer.bill if item.peer == evil.node.peer_id]
        assert sum(1 for item in items if item.cost > FEE) <= 2
        assert sum(item.cost for item in items) <= 2 * FEE + 2 * max(item.tokens_in for item in items)
        assert all(answer.usage is not None and answer.usage.tokens_out == 40 for answer in answers)
        assert len(money.journal.hosted()) <= 2


async def test_the_rest_of_an_answer_may_be_nothing_and_counts_a_little(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Another host ends an answer that all came from the first one: that is whole, for it may be right."""
    async with paid_world(tmp_path, limits=ONE_BY_ONE) as w:
        running = [
            await w.host(model=priced(script=lambda _prompt, _seed, end=end: SAID + end, tokens_per_s=50))
            for end in ("and more of it", "")
        ]
        members = [member for member, _ in running]
        async with w.client(members[1]) as client:
            client.runtime.bootstrap = tuple(member.node.multiaddrs[0] for member in members)
            await meet(client, members)
            answer = ask(client)
            killed: list[int] = []

            def then(held: int) -> None:
                if held >= len(SAID) and not killed:
                    killed.append(held)
                    w.kill(*running[0])

            assert await read(answer, then) == SAID
            assert killed == [len(SAID)]
            assert [item.tokens_out for item in answer.bill] == [len(SAID), 0]
            assert client.searches.measured[members[1].node.peer_id].failures_in_a_row == 1
