"""What a user said before the question counts through failover: whom to trust, what it may cost, and what
becomes of a conversation that is too long for every host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.client import Client
from p2pnode.client.conversation import Conversation
from p2pnode.client.host_rules import HostRules
from p2pnode.client.interface import Answer
from p2pnode.client.ranking import Filters
from p2pnode.errors import NoHostError, RefusedError
from p2pnode.ids import PeerId
from p2pnode.models.manifest import SCRIPTED
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.failing import ONE_BY_ONE, TOKENS, hosts, meet, read, seeds, stage
from tests.client.support import Events
from tests.host.paid import FEE, PRICE_IN, PRICE_OUT, paid_world, priced
from tests.node.world import Member, scripted_host, world

GREEDY = SamplingParams(tokens_max=TOKENS, temperature=0)
OPTIONS = ChatOptions(model=SCRIPTED, sampling=GREEDY)


def trusting(*members: Member, only: tuple[PeerId, ...] = ()) -> Filters:
    return Filters(rules=HostRules.of(trust=[each.node.peer_id for each in members], only=only))


# ---- trust


async def test_no_stranger_goes_on_with_what_a_trusted_host_began(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (w, (stranger, trusted), client):
        answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=trusting(trusted))

        def then(held: int) -> None:
            if held >= 5:
                w.crash(trusted)

        with pytest.raises(NoHostError, match="a stranger, and this conversation is with hosts you trust"):
            await read(answer, then)
        assert [item.peer for item in answer.bill] == [trusted.node.peer_id]
        assert stranger.host is not None
        assert stranger.host.totals.turns == 0
        # Nor when it is gone on with later.
        with pytest.raises(NoHostError, match="a stranger"):
            await read(client.go_on(answer))
        assert stranger.host.totals.turns == 0


async def test_another_trusted_host_goes_on(autojump_clock: MockClock) -> None:
    async with stage(3) as (w, (stranger, one, other), client):
        answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=trusting(one, other))
        crashed: list[PeerId] = []

        def then(held: int) -> None:
            if held >= 5 and not crashed and answer.host is not None:
                crashed.append(answer.host)
                w.crash(one if answer.host == one.node.peer_id else other)

        await read(answer, then)
        assert len(answer.ids) == TOKENS
        assert {item.peer for item in answer.bill} == {one.node.peer_id, other.node.peer_id}
        assert stranger.node.peer_id not in crashed


async def test_where_no_trusted_host_is_there_the_user_is_told_of_the_stranger(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (w, (stranger, trusted), client):
        w.crash(trusted)
        await trio.sleep(60)
        events = Events()
        events.of(client)
        answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=trusting(trusted))
        await read(answer)
        assert [each["peer"] for each in events.named("stranger")] == [stranger.node.peer_id]
        assert not answer.trusted


async def test_the_next_question_of_a_conversation_does_not_go_to_a_stranger_either(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (w, (stranger, trusted), client):
        options = replace(OPTIONS, filters=trusting(trusted))
        conversation = await client.new_conversation(options)
        await read(conversation.ask("hello"))
        w.crash(trusted)
        await trio.sleep(60)
        with pytest.raises(NoHostError, match="a stranger"):
            await read(conversation.ask("and then?"))
        assert stranger.host is not None
        assert stranger.host.totals.turns == 0


async def test_a_stranger_that_is_named_may_go_on(autojump_clock: MockClock) -> None:
    async with stage(2) as (w, (stranger, trusted), client):
        names = (stranger.node.peer_id, trusted.node.peer_id)
        answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=trusting(trusted, only=names))

        def then(held: int) -> None:
            if held >= 5:
                w.crash(trusted)

        await read(answer, then)
        assert [item.peer for item in answer.bill] == [trusted.node.peer_id, stranger.node.peer_id]


async def test_only_and_never_hold_through_failover(autojump_clock: MockClock) -> None:
    async with stage(3) as (w, (first, never, last), client):
        rules = HostRules.of(never=[never.node.peer_id])
        answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=Filters(rules=rules))
        await read(answer, lambda held: w.crash(first) if held >= 5 else None)
        assert [item.peer for item in answer.bill] == [first.node.peer_id, last.node.peer_id]
        only = HostRules.of(only=[last.node.peer_id])
        again = client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=Filters(rules=only))
        with pytest.raises(NoHostError, match="to ask only others"):
            await read(again, lambda held: w.crash(last) if held >= 5 else None)


# ---- what it may cost


def _most(tokens_in: int, fee: int = FEE) -> int:
    return fee + (tokens_in * PRICE_IN + TOKENS * PRICE_OUT) // 1_000_000


async def test_an_estimate_signs_nothing_and_is_never_less_than_the_bill(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host(model=priced())
        async with w.client(member) as client:
            (estimate,) = await client.estimate("hello", OPTIONS)
            assert estimate.candidate.advert.peer == member.node.peer_id
            assert estimate.cost.total == _most(estimate.turn.tokens_in)
            assert w.chain.block == 0
            answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY)
            await read(answer)
            assert answer.usage is not None
            assert 0 < answer.usage.cost <= estimate.cost.total
            (again,) = await client.estimate("hello", OPTIONS)
            assert (again.cost.fee, again.candidate.fee_paid) == (0, True)  # the session is open


async def test_what_could_cost_more_than_is_allowed_is_refused_before_anything_is_signed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced())
        async with w.client(member) as client:
            (estimate,) = await client.estimate("hello", OPTIONS)
            events = Events()
            events.of(client)
            below, just = (Filters(cost_max=estimate.cost.total - less) for less in (1, 0))
            with pytest.raises(NoHostError, match="--max-cost allows"):
                await read(client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=below))
            assert (w.chain.block, money.journal.hosted(), events.named("signing")) == (0, [], [])
            answer = client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=just)
            await read(answer)
            assert len(answer.ids) == TOKENS


# ---- too long for every host


async def _told(client: Client, conversation: Conversation, question: str) -> list[dict[str, object]]:
    events = Events()
    events.of(client)
    await read(conversation.ask(question))
    return events.named("context.dropped")


async def test_a_conversation_that_is_too_long_is_refused_with_the_choice(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host(n_ctx=512)])
        async with w.client([host.node.multiaddrs[0]]) as client:
            conversation = await client.new_conversation(OPTIONS)
            await read(conversation.ask("x" * 200))
            with pytest.raises(RefusedError, match="--context drop-oldest") as refused:
                await read(conversation.ask("y" * 300))
            assert refused.value.code == "context_overflow"


async def test_the_oldest_messages_go_where_that_was_chosen_and_it_is_told(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host(n_ctx=512)])
        async with w.client([host.node.multiaddrs[0]]) as client:
            options = replace(OPTIONS, system="be brief", context="drop-oldest")
            conversation = await client.new_conversation(options)
            assert await _told(client, conversation, "x" * 200) == []
            (told,) = await _told(client, conversation, "y" * 300)
            assert told == {"messages": 2, "left": 2}  # one exchange; what the system said stays
            # The history is whole, and what was left out stays out without a second refusal.
            assert [len(each.text) for each in conversation.messages if each.role == "user"] == [200, 300]
            assert await _told(client, conversation, "z") == []
            (again,) = await _told(client, conversation, "x" * 300)
            assert again["messages"] == 2


async def test_a_question_that_is_too_long_by_itself_is_refused_whatever_was_chosen(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host(n_ctx=512)])
        async with w.client([host.node.multiaddrs[0]]) as client:
            conversation = await client.new_conversation(replace(OPTIONS, context="drop-oldest"))
            await read(conversation.ask("short"))
            with pytest.raises(RefusedError) as refused:
                await read(conversation.ask("x" * 1000))
            assert refused.value.code == "context_overflow"


async def test_before_messages_go_a_host_with_a_larger_context_is_asked(autojump_clock: MockClock) -> None:
    async with world() as w:
        small = await w.add([scripted_host(n_ctx=512)])
        large = await w.add([scripted_host(n_ctx=2048)], bootstrap=small.node.multiaddrs[:1])
        await trio.sleep(5)
        async with w.client([each.node.multiaddrs[0] for each in (small, large)]) as client:
            await client.hosts(SCRIPTED)
            client.searches.note_answer(small.node.peer_id, 0.001, 10_000.0)
            conversation = await client.new_conversation(replace(OPTIONS, context="drop-oldest"))
            await read(conversation.ask("x" * 200))
            assert await _told(client, conversation, "y" * 300) == []


async def test_nothing_is_signed_for_a_conversation_that_has_to_be_cut_first(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(n_ctx=512))
        async with w.client(member) as client:
            messages = [
                {"role": "user", "content": "x" * 300},
                {"role": "assistant", "content": "y" * 300},
                {"role": "user", "content": "and?"},
            ]
            with pytest.raises(RefusedError):
                await read(client.chat(messages, model=SCRIPTED, sampling=GREEDY))
            assert (w.chain.block, money.journal.hosted()) == (0, [])
            answer = client.chat(messages, model=SCRIPTED, sampling=GREEDY, context="drop-oldest")
            await read(answer)
            assert (answer.left_out, len(money.journal.hosted())) == (2, 1)


async def test_what_the_system_is_told_is_in_a_prompt_once(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client([host.node.multiaddrs[0]]) as client:
            conversation = await client.new_conversation(replace(OPTIONS, system="be brief"))
            once = client.chat("hello", model=SCRIPTED, system="be brief", sampling=GREEDY)
            for answer in (conversation.ask("hello"), once):
                await read(answer)
                assert answer.usage is not None
                # Each message takes its bytes, its role and an end; the assistant's role comes last.
                assert answer.usage.tokens_in == len("be brief" + "hello") + 2 * 2 + 1


# ---- several questions at once


SLOTS = 4


def shares(answers: list[Answer], members: list[Member]) -> list[int]:
    """How many of the answers each host gave."""
    return [sum(each.host == member.node.peer_id for each in answers) for member in members]


def measure(client: Client, members: list[Member], *ttfts_s: float, speed: float = 50.0) -> None:
    """The client has asked each of them often, and waited so long for answers of this speed."""
    for member, ttft_s in zip(members, ttfts_s, strict=True):
        for _ in range(30):
            client.searches.note_answer(member.node.peer_id, ttft_s, speed)


async def ask_at_once(client: Client, count: int) -> list[Answer]:
    answers = [client.chat(f"question {each}", model=SCRIPTED, sampling=GREEDY) for each in range(count)]
    async with trio.open_nursery() as nursery:
        for answer in answers:
            nursery.start_soon(read, answer)
    return answers


async def test_questions_of_one_time_take_the_slots_of_all_hosts_with_and_without_sessions(
    autojump_clock: MockClock,
) -> None:
    async with stage(3) as (_, members, client):
        for _ in range(3):  # with no session open, and with some
            measure(client, members, 0.1, 0.5, 0.9)
            assert shares(await ask_at_once(client, 3 * SLOTS), members) == [SLOTS] * 3


async def test_a_question_alone_goes_to_the_best_host_whatever_others_have_room(
    autojump_clock: MockClock,
) -> None:
    async with stage(3) as (_, members, client):
        for _ in range(4):
            assert shares(await ask_at_once(client, 1), members) == [1, 0, 0]


async def test_a_host_that_is_much_slower_is_not_asked_for_the_sake_of_its_slots(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=ONE_BY_ONE) as w:
        members = [*await hosts(w, 1, tokens_per_s=100.0), *await hosts(w, 1, tokens_per_s=2.0)]
        async with w.client(seeds(members)) as client:
            await meet(client, members)
            for member in reversed(members):  # there is a session with each
                rules = HostRules.of(only=[member.node.peer_id])
                filters = Filters(rules=rules)
                await read(client.chat("hello", model=SCRIPTED, sampling=GREEDY, filters=filters))
            measure(client, members[:1], 0.1, speed=100.0)
            measure(client, members[1:], 0.1, speed=2.0)
            assert shares(await ask_at_once(client, SLOTS), members) == [SLOTS, 0]


async def test_paid_questions_of_one_time_wait_for_no_slot_where_another_host_has_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        members = [(await w.host(model=priced(tokens_per_s=50.0), keep_s=3600))[0] for _ in range(3)]
        async with w.client(members[0]) as client:
            client.runtime.bootstrap = tuple(member.node.multiaddrs[0] for member in members)
            await meet(client, members)
            few = await ask_at_once(client, SLOTS)
            assert sorted(shares(few, members)) == [0, 0, SLOTS], "one fee is enough for these"
            measure(client, members, 0.1, 0.5, 0.9)
            many = await ask_at_once(client, 3 * SLOTS)
            # What a fee is worth beside the wait for a slot is a matter of prices, too.
            assert min(shares(many, members)) >= SLOTS - 1, shares(many, members)
