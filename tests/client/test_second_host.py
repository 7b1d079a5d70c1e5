"""A second host that is asked because the first one's first token is late: one text, and an exact bill."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.bill import AnswerRecord
from p2pnode.client.client import Client
from p2pnode.client.hedging import SAMPLES_MIN, HedgeMode
from p2pnode.client.interface import Answer
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.models.scripted import Faults
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.failing import ONE_BY_ONE, TOKENS, engine_of, hosts, meet, read, seeds, stage, unkilled
from tests.client.support import Events
from tests.host.paid import PRICE_IN, paid_world, priced
from tests.node.world import Member, World, scripted_host, world

USUAL_S = 1.0
LATE_S = 1.25 * USUAL_S
HANGS = Faults(hang_after_tokens=0)


def ask(client: Client, hedge: HedgeMode | None = None) -> Answer:
    sampling = SamplingParams(tokens_max=TOKENS, temperature=0)
    return client.chat("hello", model=SCRIPTED, sampling=sampling, hedge=hedge)


def measure(client: Client, members: list[Member]) -> None:
    """The client knows how long first tokens take at each, and may ask second hosts."""
    for member in members:
        for _ in range(SAMPLES_MIN):
            client.searches.hedging.first_tokens.note(member.node.peer_id, 2_000, USUAL_S)
    for _ in range(100):
        client.searches.hedging.turn()


@asynccontextmanager
async def hedging_stage(
    count: int = 2,
) -> AsyncIterator[tuple[World, list[Member], Client, Events, list[AnswerRecord]]]:
    async with stage(count) as (w, members, client):
        measure(client, members)
        events, records = Events(), list[AnswerRecord]()
        events.of(client)
        client.runtime.observe = records.append
        yield w, members, client, events, records


def is_free(member: Member) -> bool:
    """Whether no engine's slot of a host is used."""
    stats = engine_of(member).statistics()
    return not (stats.active or stats.queued)


async def test_the_second_host_answers_where_the_first_one_is_late_and_the_first_is_free_at_once(
    autojump_clock: MockClock,
) -> None:
    async with hedging_stage() as (_, (late, other), client, events, records):
        engine_of(late).faults = HANGS
        began, answer = trio.current_time(), ask(client)
        pieces = [await anext(answer)]
        assert LATE_S < trio.current_time() - began < LATE_S + 1
        await trio.sleep(0.2)
        assert is_free(late)
        pieces += [piece async for piece in answer]
        ids, text = await unkilled()
        assert (answer.ids, "".join(pieces), answer.host) == (ids, text, other.node.peer_id)
        first, second = answer.bill
        assert (first.peer, first.tokens_out, first.reason) == (late.node.peer_id, 0, "hedged")
        assert (second.tokens_out, second.reason) == (TOKENS, "length")
        assert [each["to"] for each in events.named("hedge")] == [other.node.peer_id]
        assert [(each.hedge, each.attempts) for each in records] == [("won", 1)]
        known = client.searches.measured[late.node.peer_id]
        assert known.broken == 0, "a token that is late breaks no promise"
        assert known.ttft_s is not None and known.ttft_s > 1.0, "and is remembered"  # noqa: PT018


async def test_the_first_host_answers_where_its_token_comes_before_the_seconds(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=ONE_BY_ONE) as w:
        late = await w.add([scripted_host(tokens_per_s=50.0, prefill_tokens_per_s=4.0)])
        (other,) = await hosts(w, 1)
        async with w.client(seeds([late, other])) as client:
            await meet(client, [late, other])
            measure(client, [late, other])
            events = Events()
            events.of(client)
            engine_of(other).faults = HANGS
            answer = ask(client)
            pieces = [await anext(answer)]
            assert events.named("hedge")
            await trio.sleep(0.2)
            assert is_free(other)
            pieces += [piece async for piece in answer]
            assert (answer.ids, "".join(pieces)) == await unkilled()
            assert [(each.peer, each.reason) for each in answer.bill if each.reason != "hedged"] == [
                (late.node.peer_id, "length")
            ]


async def test_who_stops_an_answer_stops_it_at_both_hosts(autojump_clock: MockClock) -> None:
    async with hedging_stage() as (_, (late, other), client, _, records):
        engine_of(late).faults = engine_of(other).faults = HANGS
        answer = ask(client)
        with trio.move_on_after(LATE_S + 1):
            await read(answer)
        assert not is_free(late)
        assert not is_free(other)
        await answer.aclose()
        await trio.sleep(0.2)
        assert is_free(late)
        assert is_free(other)
        assert [each.hedge for each in records] == ["lost"]


@pytest.mark.parametrize("hedge", ["never", None])
async def test_nobody_else_is_asked_where_that_is_not_wanted_or_too_little_was_measured(
    autojump_clock: MockClock, hedge: HedgeMode | None
) -> None:
    async with stage(2) as (_, members, client):
        if hedge is not None:
            measure(client, members)
        engine_of(members[0]).faults = HANGS
        answer = ask(client, hedge)
        with trio.move_on_after(20):
            await read(answer)
        assert client.pool.peers(scripted_model_id()) == [members[0].node.peer_id]
        await answer.aclose()


async def test_the_second_host_goes_on_where_the_first_one_dies_before_any_token(
    autojump_clock: MockClock,
) -> None:
    async with hedging_stage(3) as (w, (late, other, third), client, events, records):
        engine_of(late).faults = HANGS
        answer = ask(client)

        events.on["hedge"] = lambda: w.crash(late)
        shown = await read(answer)
        assert (answer.ids, shown) == await unkilled()
        assert answer.host == other.node.peer_id
        assert third.host is not None
        assert third.host.totals.turns == 0
        assert [each.hedge for each in records] == ["won"]


async def test_a_second_host_that_fails_costs_the_first_ones_answer_nothing(
    autojump_clock: MockClock,
) -> None:
    async with hedging_stage() as (w, (late, other), client, _, records):
        engine_of(late).faults = engine_of(other).faults = HANGS
        answer = ask(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, answer)
            await trio.sleep(LATE_S + 1)
            w.crash(other)
            await trio.sleep(DEFAULT_LIMITS.stall_s)
            nursery.cancel_scope.cancel()
        await answer.aclose()
        assert [each.hedge for each in records] == ["failed"]
        assert client.searches.measured[other.node.peer_id].failures_in_a_row == 1
        assert client.searches.measured[late.node.peer_id].failures_in_a_row == 0


@pytest.mark.parametrize(("hedge", "hosts"), [("free", 1), ("always", 2)])
async def test_a_second_host_that_costs_money_is_asked_only_by_who_wants_that_and_both_are_paid_exactly(
    tmp_path: Path, autojump_clock: MockClock, hedge: HedgeMode, hosts: int
) -> None:
    async with paid_world(tmp_path) as w:
        running = [await w.host(model=priced(tokens_per_s=50.0), keep_s=3600) for _ in range(2)]
        members = [member for member, _ in running]
        async with w.client(members[0]) as client:
            client.runtime.bootstrap = tuple(member.node.multiaddrs[0] for member in members)
            await meet(client, members)
            measure(client, members)
            engine_of(members[0]).faults = HANGS
            answer = ask(client, hedge)
            with trio.move_on_after(20):
                await read(answer)
            await answer.aclose()
            assert len({each.peer for each in answer.bill}) == hosts
            assert client.runtime.payer is not None and client.runtime.payer.opened is not None  # noqa: PT018
            journal = client.runtime.payer.opened.journal
            claims = {
                each.host: max(each.terms.session_fee, each.voucher.amount if each.voucher else 0)
                for each in journal.purchases()
            }
            assert sum(claims.values()) == sum(each.cost for each in answer.bill)
            if hosts == 2:
                assert answer.ids == (await unkilled())[0]
                first, second = answer.bill
                assert first.reason == "hedged"
                assert first.cost >= first.tokens_in * PRICE_IN // 1_000_000
                assert second.tokens_out == TOKENS
