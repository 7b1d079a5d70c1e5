"""Failover on whole nodes in memory: whatever dies and whenever, the reader sees one answer."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.client.failover import AGAIN_MAX
from p2pnode.client.interface import Answer
from p2pnode.errors import NoHostError, RefusedError
from p2pnode.models.engine import GenerateRequest
from p2pnode.models.manifest import SCRIPTED
from p2pnode.models.scripted import Faults, ScriptedEngine
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.inference.messages import (
    CODEC,
    Accept,
    Checkpoint,
    Done,
    Error,
    Prompt,
    PromptBody,
    Quote,
    Refuse,
    SamplingParams,
    Tokens,
)
from p2pnode.protocols.inference.prompt_rules import call_seed, next_seed, seed_of
from p2pnode.protocols.inference.receipts import ids_hash
from p2pnode.protocols.wire import decode_record
from tests.client.failing import (
    LONG_QUESTION,
    ONE_BY_ONE,
    SESSION,
    TOKENS,
    ask,
    check_whole,
    engine_of,
    hosts,
    meet,
    read,
    seeds,
    serving,
    speaks,
    stage,
    unkilled,
)
from tests.client.support import HELLO, HELLO_HASH, Events, misbehave, whole
from tests.node.world import Member, World, scripted_host, world


def at(count: int, action: Callable[[], None]) -> Callable[[int], None]:
    """Do it once, when so many tokens are held."""
    done: list[int] = []

    def then(held: int) -> None:
        if held >= count and not done:
            done.append(held)
            action()

    return then


async def killed_at(count: int) -> None:
    async with stage(2) as (w, members, client):
        answer = ask(client)
        shown = await read(answer, at(count, lambda: w.crash(members[0])))
        await check_whole(answer, shown)
        first, second = answer.bill
        assert (first.peer, second.peer) == (members[0].node.peer_id, members[1].node.peer_id)
        assert first.tokens_out == count
        assert second.tokens_in == first.tokens_in + count  # the price of the failure, itemised


@pytest.mark.parametrize("count", [1, 32, 33])
async def test_a_host_that_dies_after_any_token_is_replaced(count: int, autojump_clock: MockClock) -> None:
    await killed_at(count)


@pytest.mark.long
@pytest.mark.parametrize("count", range(1, TOKENS))
async def test_a_host_that_dies_after_every_token_is_replaced(count: int, autojump_clock: MockClock) -> None:
    await killed_at(count)


async def test_a_host_that_dies_after_the_last_token_is_not_replaced(autojump_clock: MockClock) -> None:
    async with stage(2) as (w, members, client):
        answer = ask(client)
        shown = await read(answer, at(TOKENS, lambda: w.crash(members[0])))
        await check_whole(answer, shown)
        assert len(answer.bill) == 1
        assert members[1].host is not None
        assert members[1].host.totals.turns == 0


async def test_a_host_that_dies_while_it_reads_the_prompt_is_replaced(autojump_clock: MockClock) -> None:
    async with stage(2) as (w, members, client):
        events = Events(on={"prefill": lambda: w.crash(members[0])})
        events.of(client)
        answer = ask(client, LONG_QUESTION)
        shown = await read(answer)
        await check_whole(answer, shown, LONG_QUESTION)
        assert [item.tokens_out for item in answer.bill] == [0, TOKENS]
        (moved,) = events.named("failover")
        assert moved == {
            "from": members[0].node.peer_id,
            "to": members[1].node.peer_id,
            "held": 0,
            "reason": "lost",
        }


async def test_a_host_that_dies_between_turns_costs_the_next_turn_nothing_but_a_moment(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (w, members, client):
        await whole(ask(client))
        w.crash(members[0])
        began = trio.current_time()
        answer = ask(client, "and then?")
        shown = await read(answer)
        await check_whole(answer, shown, "and then?")
        assert answer.usage is not None
        assert answer.usage.ttft_s < 2.5
        assert trio.current_time() - began < 5
        assert answer.host == members[1].node.peer_id


async def test_two_hosts_may_die_in_one_answer(autojump_clock: MockClock) -> None:
    async with stage(3) as (w, members, client):
        events = Events()
        events.of(client)
        deaths = [10, 25]

        def then(held: int) -> None:
            if deaths and held >= deaths[0]:
                deaths.pop(0)
                w.crash(members[serving(answer, members)])

        answer = ask(client)
        shown = await read(answer, then)
        await check_whole(answer, shown)
        assert [item.tokens_out for item in answer.bill] == [10, 15, TOKENS - 25]
        assert [each["held"] for each in events.named("failover")] == [10, 25]


async def test_when_all_hosts_die_the_partial_answer_the_reason_and_the_way_on_are_told(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (w, members, client):
        events = Events()
        events.of(client)
        answer = ask(client)

        def then(held: int) -> None:
            if held == 10:
                for member in members:
                    w.crash(member)

        with pytest.raises(NoHostError, match=r"no host is left .* 10 tokens that came stay.*/go"):
            await read(answer, then)
        ids, text = await unkilled()
        assert answer.ids == ids[:10]
        assert text.startswith(answer.text)
        assert answer.usage is None
        assert [item.tokens_out for item in answer.bill] == [10]
        (cut,) = events.named("answer.cut")
        assert cut["held"] == 10
        with pytest.raises(StopAsyncIteration):
            await anext(answer)

        late = await w.add([scripted_host(tokens_per_s=50)])
        client.runtime.bootstrap = tuple(late.node.multiaddrs[:1])
        more = client.go_on(answer)
        shown = answer.text + await read(more)
        assert (more.ids, shown) == (ids, text)
        assert more.usage is not None
        assert more.usage.tokens_out == TOKENS - 10


async def test_going_on_from_a_whole_answer_asks_nobody(autojump_clock: MockClock) -> None:
    async with world(limits=ONE_BY_ONE) as w:
        members = await hosts(w, 1)
        async with w.client(seeds(members)) as client:
            answer = ask(client)
            shown = await read(answer)
            again = client.go_on(answer)
            assert await read(again) == ""
            assert (again.text, again.ids) == (shown, answer.ids)
            assert again.usage is not None
            assert (again.usage.tokens_out, again.bill) == (0, ())
            assert members[0].host is not None
            assert members[0].host.totals.turns == 1


async def test_what_is_held_goes_on_in_another_client(autojump_clock: MockClock) -> None:
    async with world(limits=ONE_BY_ONE) as w:
        members = await hosts(w, 1)
        async with w.client(seeds(members)) as client, ask(client) as answer:
            while len(answer.ids) < 15:
                await anext(answer)
        kept = answer.held
        assert len(kept.ids) >= 15
        async with w.client(seeds(members), ip="10.0.9.10") as client:
            sampling = SamplingParams(tokens_max=TOKENS, temperature=0)
            more = client.chat("hello", model=SCRIPTED, sampling=sampling, held=kept)
            shown = kept.text + await read(more)
        assert (more.ids, shown) == await unkilled()


async def test_the_engine_that_crashes_in_an_answer_costs_its_host_the_rest(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (_, members, client):
        engine_of(members[0]).faults = Faults(crash_after_tokens=17, crashes=2)
        answer = ask(client)
        shown = await read(answer)
        await check_whole(answer, shown)
        assert [item.reason for item in answer.bill] == ["internal", "length"]
        assert answer.bill[0].tokens_out == 2 * 17  # it goes on once


async def test_an_engine_that_restarts_in_an_answer_goes_on_there_and_it_counts_against_the_host(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (_, members, client):
        peer = members[0].node.peer_id
        events = Events()
        events.of(client)
        engine_of(members[0]).faults = Faults(crash_after_tokens=17)
        answer = ask(client)
        shown = await read(answer)
        await check_whole(answer, shown)
        (item,) = answer.bill
        assert (item.peer, item.tokens_out, item.reason) == (peer, TOKENS, "length")
        assert events.named("engine.restarted") == [{"peer": peer, "held": 17}]
        known = client.searches.measured[peer]
        assert (known.failures_in_a_row, known.faults) == (1, 0)
        assert known.failure_rate > 0


async def test_what_follows_a_host_that_failed_is_drawn_from_another_seed(autojump_clock: MockClock) -> None:
    async with stage(2) as (_, members, client):
        seeds: list[int] = []
        for member in members:
            _note_seeds(engine_of(member), seeds)
        engine_of(members[0]).faults = Faults(crash_after_tokens=17, crashes=2)
        sampling = SamplingParams(tokens_max=TOKENS, temperature=0.7)
        answer = client.chat("hello", model=SCRIPTED, sampling=sampling, seed=5)
        await read(answer)
        first = seed_of(5)
        assert seeds == [call_seed(first, 0), call_seed(first, 17), call_seed(next_seed(first), 34)]


def _note_seeds(engine: ScriptedEngine, seeds: list[int]) -> None:
    generate = engine.generate

    def noted(request: GenerateRequest) -> Any:
        seeds.append(request.seed)
        return generate(request)

    engine.generate = noted  # type: ignore[method-assign]


async def test_a_host_that_falls_silent_is_replaced_when_the_stall_timer_fires(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (_, members, client):
        engine_of(members[0]).faults = Faults(hang_after_tokens=5)
        answer = ask(client)
        shown = await read(answer)
        await check_whole(answer, shown)
        assert [item.reason for item in answer.bill] == ["stalled", "length"]


async def test_where_only_the_connection_breaks_the_same_host_goes_on(autojump_clock: MockClock) -> None:
    async with stage(2) as (w, members, client):

        def cut() -> None:
            w.net.partition(["10.0.9.9"], ["10.0.0.1"])
            w.net.heal()

        answer = ask(client)
        shown = await read(answer, at(12, cut))
        await check_whole(answer, shown)
        assert {item.peer for item in answer.bill} == {members[0].node.peer_id}


async def test_a_machine_that_does_not_even_refuse_costs_a_second_not_the_dial_deadline(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (w, members, client):
        times: list[float] = []

        def then(held: int) -> None:
            times.append(trio.current_time())
            if held == 12:
                w.net.partition(["10.0.9.9", "10.0.0.2"], ["10.0.0.1"])

        answer = ask(client)
        shown = await read(answer, then)
        await check_whole(answer, shown)
        gap = max(after - before for before, after in itertools.pairwise(times))
        assert gap < ONE_BY_ONE.reconnect_patience_s + 1.0
        assert answer.host == members[1].node.peer_id


# ---- hosts that lie, and questions nobody answers


async def after(w: World, client: Client, members: list[Member], messages: list[object]) -> Answer:
    misbehave(members[0], speaks(messages))
    answer = ask(client)
    shown = await read(answer)
    await check_whole(answer, shown)
    return answer


async def test_what_a_faulty_host_showed_stays_and_what_nobody_saw_is_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (w, members, client):
        ids, text = await unkilled()
        forged = Checkpoint(
            seq=1, tokens_in=9, tokens_out=10, token_hash=bytes(32), fingerprint_hash=bytes(32),
            root=bytes(32), signature=bytes(64),
        )  # fmt: skip
        shown = Tokens(turn=1, index=0, ids=tuple(ids[:6]), text=text[:6])
        unseen = Tokens(turn=1, index=6, ids=(1, 2, 3, 4))  # not what a model made
        answer = await after(
            w, client, members, [Quote(turn=1, prompt_hash=HELLO_HASH, tokens_in=8), shown, unseen, forged]
        )
        first, second = answer.bill
        assert (first.tokens_out, first.reason) == (6, "fault")
        assert second.tokens_in == 8 + 6
        assert "broke the protocol" in (await client.hosts(SCRIPTED)).excluded[0].excluded


async def test_ids_whose_text_a_dead_host_kept_are_told_by_the_next(autojump_clock: MockClock) -> None:
    async with stage(2) as (w, members, client):
        ids, text = await unkilled()
        messages = [
            Quote(turn=1, prompt_hash=HELLO_HASH, tokens_in=8),
            Tokens(turn=1, index=0, ids=tuple(ids[:6]), text=text[:6]),
            Tokens(turn=1, index=6, ids=tuple(ids[6:9])),
        ]

        async def handler(stream: Stream) -> None:
            channel = MessageChannel(stream, CODEC)
            await channel.receive()
            await channel.send([Accept(session=SESSION, nonce=bytes(32), epoch=1, n_ctx=2048)])
            await channel.receive()
            await channel.send(messages)
            await trio.sleep(0.5)
            w.crash(members[0])

        misbehave(members[0], handler)
        answer = ask(client)
        shown = await read(answer)
        await check_whole(answer, shown)
        assert [item.tokens_out for item in answer.bill] == [9, TOKENS - 9]


@pytest.mark.parametrize(
    ("ids", "times", "reason"), [((4_000_000_000,), 1, "fault"), ((104,), 1 + AGAIN_MAX, "lost")]
)
async def test_a_host_that_sends_a_token_and_hangs_up_takes_few_attempts_of_an_answer(
    ids: tuple[int, ...], times: int, reason: str, autojump_clock: MockClock
) -> None:
    async with stage(3) as (_, members, client):
        asked: list[tuple[int, ...]] = []

        async def handler(stream: Stream) -> None:
            channel = MessageChannel(stream, CODEC)
            await channel.receive()
            await channel.send([Accept(session=SESSION, nonce=bytes(32), epoch=1, n_ctx=2048)])
            request = await channel.receive()
            assert isinstance(request, Prompt)
            asked.append(decode_record(PromptBody, request.body).prefix)
            prompt = (*HELLO, *asked[-1])
            quote = Quote(turn=1, tokens_in=len(prompt), prompt_hash=ids_hash(prompt))
            await channel.send([quote, Tokens(turn=1, index=0, ids=ids, text="h")])
            await trio.sleep(0.5)
            await stream.reset()

        misbehave(members[0], handler)
        answer = ask(client)
        shown = await read(answer)
        assert len(asked) == times
        assert (answer.host, len(answer.ids)) == (members[1].node.peer_id, TOKENS)
        assert shown.startswith("h" * times) == (reason == "lost"), "an id that is none is seen by nobody"
        assert {item.reason for item in answer.bill} == {reason, "length"}
        assert client.searches.measured[members[1].node.peer_id].failures_in_a_row == 0
        (left_out,) = (await client.hosts(SCRIPTED)).excluded
        assert left_out.advert.peer == members[0].node.peer_id


async def test_a_host_that_calls_a_turn_cancelled_unasked_is_left_and_remembered(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (_, members, client):
        turns = 0

        async def handler(stream: Stream) -> None:
            nonlocal turns
            channel = MessageChannel(stream, CODEC)
            await channel.receive()
            await channel.send([Accept(session=SESSION, nonce=bytes(32), epoch=1, n_ctx=2048)])
            while (request := await channel.receive()) is not None:
                if isinstance(request, Prompt):
                    turns += 1
                    done = Done(turn=turns, reason="cancelled", tokens_in=0, reused=0, tokens_out=0)
                    await channel.send([done])

        misbehave(members[0], handler)
        answer = ask(client)
        shown = await read(answer)
        await check_whole(answer, shown)
        assert turns == 1
        assert answer.host == members[1].node.peer_id
        assert client.searches.measured[members[0].node.peer_id].faults == 1


def calls_it_wrong(asked: list[int], number: int) -> Callable[[Stream], Awaitable[None]]:
    """A host that finds every question malformed."""
    speak = speaks([Error(code="bad_request", detail="this makes no sense", turn=1)])

    async def handler(stream: Stream) -> None:
        asked.append(number)
        await speak(stream)

    return handler


async def test_one_host_that_calls_a_sound_question_wrong_ends_nothing(autojump_clock: MockClock) -> None:
    async with stage(2) as (_, members, client):
        asked: list[int] = []
        misbehave(members[0], calls_it_wrong(asked, 0))
        answer = ask(client)
        await check_whole(answer, await read(answer))
        assert (asked, answer.host) == ([0], members[1].node.peer_id)
        assert client.searches.measured[members[0].node.peer_id].failures_in_a_row == 1


async def test_what_two_hosts_call_wrong_is_asked_of_no_third(autojump_clock: MockClock) -> None:
    async with stage(3) as (_, members, client):
        asked: list[int] = []
        for number, member in enumerate(members):
            misbehave(member, calls_it_wrong(asked, number))
        with pytest.raises(RefusedError, match="this makes no sense"):
            await read(ask(client))
        assert asked == [0, 1]


async def test_an_answer_tries_no_more_hosts_than_its_limit(autojump_clock: MockClock) -> None:
    async with world(limits=replace(ONE_BY_ONE, hosts_per_answer=2)) as w:
        members = await hosts(w, 4)
        async with w.client(seeds(members)) as client:
            await meet(client, members)
            tried: list[Member] = []

            def full(member: Member) -> Callable[[Stream], Awaitable[None]]:
                async def handler(stream: Stream) -> None:
                    tried.append(member)
                    channel = MessageChannel(stream, CODEC)
                    await channel.receive()
                    await channel.send([Refuse(code="capacity", detail="full")])

                return handler

            for member in members:
                misbehave(member, full(member))
            with pytest.raises(RefusedError, match="full"):
                await read(ask(client))
            assert len(tried) == 2


async def test_an_answer_that_is_left_in_mid_failover_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    async with stage(3) as (w, members, client):
        answer = ask(client)

        def then(held: int) -> None:
            if held == 10:
                w.crash(members[0])
                scope.cancel()

        with trio.CancelScope() as scope:
            async with answer:
                await read(answer, then)
        assert scope.cancelled_caught
        assert 10 <= len(answer.ids) < TOKENS
        await trio.sleep(3)
        for member in members[1:]:
            assert engine_of(member).statistics().active == 0
        assert await whole(ask(client, "next"))
