"""Failover where tokens cost money: each output token is billed by one host, each unit signed once."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.bill import BillItem
from p2pnode.client.client import Client
from p2pnode.client.interface import Answer
from p2pnode.errors import EngineError
from p2pnode.models.engine import EngineEvent, GenerateRequest
from p2pnode.models.manifest import SCRIPTED
from p2pnode.net.stream import Stream
from p2pnode.payments.escrow import HostMoney
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.payments.spending import FundsError, SpendingLimitError, SpendingLimits
from p2pnode.protocols.inference.messages import (
    Checkpoint,
    SamplingParams,
    Tokens,
)
from tests.client.failing import (
    LONG_QUESTION,
    ONE_BY_ONE,
    TOKENS,
    ask,
    check_whole,
    meet,
    read,
    serving,
    unkilled,
)
from tests.client.support import Events, misbehave
from tests.host.paid import FEE, PRICE_IN, PRICE_OUT, RICH, PaidWorld, paid_world, priced
from tests.host.thief import quoted
from tests.node.world import Member

Running = tuple[Member, HostMoney]


def due(tokens_in: int, tokens_out: int) -> int:
    return FEE + -(-(tokens_in * PRICE_IN + tokens_out * PRICE_OUT) // 1_000_000)


@contextlib.asynccontextmanager
async def market(
    folder: Path,
    count: int,
    *,
    tokens_per_s: float = 50.0,
    limits: SpendingLimits | None = None,
    units: int = RICH,
    n_ctx: tuple[int, ...] = (),
) -> AsyncIterator[tuple[PaidWorld, list[Running], Client]]:
    """Paid hosts, in the order in which the client prefers them."""
    async with paid_world(folder, limits=ONE_BY_ONE) as w:
        running = []
        for number in range(count):
            model = priced(tokens_per_s=tokens_per_s, n_ctx=n_ctx[number] if n_ctx else 2048)
            running.append(await w.host(model=model))
        members = [member for member, _ in running]
        async with w.client(members[0], units=units, limits=limits) as client:
            client.runtime.bootstrap = tuple(member.node.multiaddrs[0] for member in members)
            await meet(client, members)
            yield w, running, client


def journal_of(client: Client) -> Journal:
    assert client.runtime.payer is not None
    assert client.runtime.payer.opened is not None
    return client.runtime.payer.opened.journal


def purchase(client: Client, item: BillItem) -> BoughtSession:
    record = journal_of(client).purchase(item.session)
    assert record is not None
    return record


def check_claims(client: Client, answer: Answer, running: list[Running]) -> None:
    """What each host holds is what this client signed and what its item says: to the unit, and no more."""
    assert len({item.session for item in answer.bill}) == len(answer.bill)
    for item in answer.bill:
        record = purchase(client, item)
        assert record.host == item.peer
        voucher = record.voucher
        signed_out = voucher.tokens_out if voucher is not None else 0
        assert item.cost == (voucher.amount if voucher is not None else FEE)
        if voucher is not None:
            assert voucher.amount == due(voucher.tokens_in, voucher.tokens_out)
            assert voucher.tokens_in == item.tokens_in - item.reused
        # What a dead host sent after its last receipt is held, and nobody can claim it.
        assert 0 <= item.tokens_out - signed_out < 32
        if item.reason == "length":
            assert signed_out == item.tokens_out
        (money,) = [money for member, money in running if member.node.peer_id == item.peer]
        hosted = money.journal.hosted_one(item.session)
        assert hosted is not None
        claimed = hosted.voucher.amount if hosted.voucher is not None else FEE
        assert claimed <= item.cost


async def killed_at(folder: Path, count: int) -> None:
    async with market(folder, 2) as (w, running, client):

        def then(held: int) -> None:
            if held >= count and dead == []:
                dead.append(held)
                w.kill(*running[0])

        dead: list[int] = []
        answer = ask(client)
        shown = await read(answer, then)
        await check_whole(answer, shown)
        check_claims(client, answer, running)
        assert [item.tokens_out for item in answer.bill] == [count, TOKENS - count]
        first, second = answer.bill
        assert second.tokens_in == first.tokens_in + count
        assert answer.usage is not None
        assert answer.usage.cost == first.cost + second.cost


@pytest.mark.parametrize("count", [1, 32, 33])
async def test_a_paid_host_that_dies_after_any_token_is_replaced_and_claims_what_was_signed(
    tmp_path: Path, autojump_clock: MockClock, count: int
) -> None:
    await killed_at(tmp_path, count)


@pytest.mark.long
@pytest.mark.parametrize("count", range(1, TOKENS))
async def test_a_paid_host_that_dies_after_every_token_is_replaced(
    tmp_path: Path, autojump_clock: MockClock, count: int
) -> None:
    await killed_at(tmp_path, count)


async def test_a_paid_host_that_dies_while_it_reads_the_prompt_keeps_its_fee_and_the_input(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 2) as (w, running, client):
        events = Events(on={"prefill": lambda: w.kill(*running[0])})
        events.of(client)
        answer = ask(client, LONG_QUESTION)
        shown = await read(answer)
        await check_whole(answer, shown, LONG_QUESTION)
        check_claims(client, answer, running)
        first, _ = answer.bill
        assert (first.tokens_out, first.cost) == (0, due(first.tokens_in, 0))


async def test_two_paid_hosts_may_die_in_one_answer(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with market(tmp_path, 3) as (w, running, client):
        deaths = [10, 30]

        def then(held: int) -> None:
            if deaths and held >= deaths[0]:
                deaths.pop(0)
                w.kill(*running[serving(answer, [member for member, _ in running])])

        answer = ask(client)
        shown = await read(answer, then)
        await check_whole(answer, shown)
        check_claims(client, answer, running)
        assert [item.tokens_out for item in answer.bill] == [10, 20, TOKENS - 30]


async def test_a_paid_host_that_dies_between_turns_is_replaced_in_the_next(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 2) as (w, running, client):
        await read(ask(client))
        w.kill(*running[0])
        began = trio.current_time()
        answer = ask(client, "and then?")
        shown = await read(answer)
        await check_whole(answer, shown, "and then?")
        check_claims(client, answer, running)
        assert answer.host == running[1][0].node.peer_id
        assert trio.current_time() - began < 6


@pytest.mark.parametrize("patience", ["while it is idle", "just before the next turn"])
async def test_a_session_whose_connection_breaks_between_turns_takes_the_next_turn_all_the_same(
    tmp_path: Path, autojump_clock: MockClock, patience: str
) -> None:
    async with market(tmp_path, 2) as (w, _, client):
        first = ask(client)
        await read(first)
        w.world.net.partition(["10.0.9.9"], ["10.0.0.1"])
        w.world.net.heal()
        if patience == "while it is idle":
            await trio.sleep(2)
        answer = ask(client, "and then?")
        with trio.fail_after(20):
            shown = await read(answer)
        await check_whole(answer, shown, "and then?")
        assert answer.bill[0].session == first.bill[0].session  # no second fee
        assert answer.bill[0].cost == answer.bill[0].tokens_in - answer.bill[0].reused + 3 * TOKENS


async def test_a_caps_end_in_mid_failover_leaves_the_part_and_the_reason(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    limits = SpendingLimits(day_max=10_000)
    async with market(tmp_path, 2, limits=limits) as (w, running, client):
        events = Events()
        events.of(client)
        answer = ask(client)

        def then(held: int) -> None:
            if held == 10:
                w.kill(*running[0])

        with pytest.raises(SpendingLimitError, match=r"spend_locked_max.*10 tokens that came stay"):
            await read(answer, then)
        assert len(answer.ids) == len(answer.text) == 10
        (item,) = answer.bill
        assert item.tokens_out == 10
        assert events.named("answer.cut")[0]["held"] == 10
        assert len(journal_of(client).purchases("signed", "open", "over")) == 1  # nothing else was signed


async def test_an_empty_wallet_in_mid_failover_leaves_the_part_and_the_reason(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 2, units=FEE + 2_000) as (w, running, client):
        answer = ask(client)

        def then(held: int) -> None:
            if held == 10:
                w.kill(*running[0])

        with pytest.raises(FundsError, match=r"is missing. Send USDC to .* 10 tokens that came stay"):
            await read(answer, then)
        assert len(answer.ids) == 10


async def test_no_fee_is_paid_to_a_host_whose_context_can_not_hold_the_conversation(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    question = "hello " * 100
    async with market(tmp_path, 3, n_ctx=(2048, 512, 2048)) as (w, running, client):
        answer = ask(client, question)

        def then(held: int) -> None:
            if held == 10:
                w.kill(*running[0])

        shown = await read(answer, then)
        await check_whole(answer, shown, question)
        assert answer.host == running[2][0].node.peer_id
        assert running[1][1].journal.hosted() == []


async def test_a_standby_signs_nothing_until_it_is_needed(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with market(tmp_path, 2, tokens_per_s=10) as (w, running, client):
        answer = ask(client)
        signed: list[int] = []

        def then(held: int) -> None:
            if held in (20, 30):
                signed.append(len(journal_of(client).purchases("signed", "open", "over")))
            if held == 30:
                w.kill(*running[0])

        shown = await read(answer, then)
        await check_whole(answer, shown)
        assert signed == [1, 1]
        assert len(journal_of(client).purchases("signed", "open", "over")) == 2


async def test_a_host_with_an_open_session_of_this_payer_is_preferred_and_takes_no_second_fee(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 3) as (_, running, client):
        third = running[2][0].node
        sampling = SamplingParams(tokens_max=TOKENS, temperature=0)
        earlier = client.chat("hi", model=SCRIPTED, peer=third.multiaddrs[0], sampling=sampling)
        await read(earlier)
        await meet(client, [member for member, _ in running])
        answer = ask(client)
        shown = await read(answer)
        await check_whole(answer, shown)
        (item,) = answer.bill
        assert (item.peer, item.session) == (third.peer_id, earlier.bill[0].session)
        assert item.cost == item.tokens_in - item.reused + 3 * TOKENS


async def both(client: Client, *questions: str) -> list[Answer]:
    """Asked at the same time and read to the end."""
    answers = [ask(client, question) for question in questions]
    async with trio.open_nursery() as nursery:
        for answer in answers:
            nursery.start_soon(read, answer)
    return answers


async def test_questions_at_once_share_one_session_and_one_fee_also_where_it_takes_one_turn_at_a_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 1) as (_, running, client):
        money = running[0][1]
        for pair in range(3):
            first, second = await both(client, f"one {pair}", f"other {pair}")
            assert first.bill[0].session == second.bill[0].session
        (hosted,) = money.journal.hosted()
        assert hosted.state == "open"


async def test_a_session_whose_deposit_is_nearly_used_up_is_ended_when_a_turn_needs_more(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 1) as (_, running, client):
        money = running[0][1]
        await both(client, "one", "other")
        sampling = SamplingParams(tokens_max=2000 * TOKENS, temperature=0)
        long = client.chat("all of it", model=SCRIPTED, sampling=sampling)
        await anext(long)
        await long.aclose()
        await trio.sleep(5)
        assert sorted(each.state for each in money.journal.hosted()) == ["open", "settled"]


async def test_what_the_client_paid_in_all_is_what_its_bills_say(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 2) as (w, running, client):
        answer = ask(client)

        def then(held: int) -> None:
            if held == 35:
                w.kill(*running[0])

        await read(answer, then)
        second = answer.bill[1]
        client.pool.close()
        await trio.sleep(5)
        hosted = running[1][1].journal.hosted_one(second.session)
        assert hosted is not None
        assert (hosted.state, hosted.amount) == ("settled", second.cost)


async def test_a_host_that_lies_about_what_it_sent_is_paid_for_the_input_alone_and_replaced(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 2) as (_, running, client):
        member, _ = running[0]
        ids, text = await unkilled()

        async def overcharge(stream: Stream) -> None:
            channel = await quoted(stream)
            await channel.receive()
            lie = Checkpoint(
                seq=1, tokens_in=8, tokens_out=20, token_hash=bytes(32), fingerprint_hash=bytes(32),
                root=bytes(32), signature=bytes(65),
            )  # fmt: skip
            await channel.send([Tokens(turn=1, index=0, ids=tuple(ids[:10]), text=text[:10]), lie])
            while await channel.receive() is not None:
                pass

        misbehave(member, overcharge)
        answer = ask(client)
        shown = await read(answer)
        await check_whole(answer, shown)
        first, second = answer.bill
        assert (first.tokens_out, first.cost, first.reason) == (10, due(8, 0), "fault")
        assert second.tokens_in == 8 + 10
        voucher = purchase(client, first).voucher
        assert voucher is not None
        assert (voucher.tokens_in, voucher.tokens_out) == (8, 0)


async def test_a_killed_host_that_comes_back_is_handed_its_final_voucher_and_settles_all_it_sent(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 2) as (w, running, client):
        answer = ask(client)

        def then(held: int) -> None:
            if held == 20 and answer.host == running[0][0].node.peer_id:
                w.kill(*running[0])

        await read(answer, then)
        first = answer.bill[0]
        assert (first.tokens_out, first.cost) == (20, due(first.tokens_in, 20))  # none of it was receipted
        _, money = await w.host(index=0, model=priced(tokens_per_s=50))
        await trio.sleep(5)
        await read(ask(client, "and then?"))
        await trio.sleep(10)
        hosted = money.journal.hosted_one(first.session)
        assert hosted is not None
        assert (hosted.state, hosted.amount) == ("settled", first.cost)
        record = journal_of(client).purchase(first.session)
        assert record is not None
        assert record.owed is None


async def test_a_host_that_is_back_within_the_patience_goes_on_in_its_session(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 1) as (w, running, client):
        answer = ask(client)

        async def then(held: int) -> None:
            if held == 20:
                w.kill(*running[0])
                running.append(await w.host(index=0, model=priced(tokens_per_s=50)))

        shown = await read(answer, then)
        await check_whole(answer, shown)
        (item,) = answer.bill
        assert item.cost == due(item.tokens_in - item.reused, TOKENS)


async def test_a_host_that_breaks_off_after_every_token_bills_the_prompt_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 2) as (w, running, client):
        bad = running[0][0].node.peer_id

        def then(_held: int) -> None:
            if answer.host == bad:
                w.world.net.partition(["10.0.9.9"], ["10.0.0.1"])
                w.world.net.heal()

        answer = ask(client)
        shown = await read(answer, then)
        await check_whole(answer, shown)
        (only,) = answer.bill
        assert only.peer == bad
        assert only.tokens_in == len(b"hello") + 3
        hosted = running[0][1].journal.hosted()
        assert len(hosted) == 1, "and it takes one fee"


async def test_a_host_that_takes_the_input_and_then_has_no_room_is_remembered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 2) as (_, running, client):
        host = running[0][0].host
        assert host is not None
        engine = host.models[0].new_engine()

        def full(_request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
            msg = "all slots are taken"
            raise EngineError(msg, code="capacity")

        engine.generate = full  # type: ignore[method-assign,assignment]
        answer = ask(client)
        await check_whole(answer, await read(answer))
        assert [item.reason for item in answer.bill] == ["capacity", "length"]
        assert answer.bill[0].cost > FEE
        assert client.searches.measured[running[0][0].node.peer_id].failures_in_a_row == 1


async def test_an_answer_that_is_interrupted_is_paid_for_as_far_as_it_came(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path, limits=ONE_BY_ONE) as w:
        member, money = await w.host(model=priced(tokens_per_s=50))
        with trio.CancelScope() as interrupted:
            async with w.client(member) as client, ask(client) as answer:
                async for _ in answer:
                    if len(answer.ids) >= 10:
                        interrupted.cancel()
        assert interrupted.cancelled_caught
        await trio.sleep(30)
        (hosted,) = money.journal.hosted()
        assert hosted.voucher is not None
        assert (hosted.state, hosted.voucher.tokens_out) == ("settled", len(answer.ids))


async def test_an_answer_whose_loop_is_left_is_paid_to_the_token_and_its_session_serves_the_next(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with market(tmp_path, 1) as (_, running, client):
        money = running[0][1]
        taken = 0
        async for _ in ask(client, tokens=1000):
            taken += 1
            if taken == 10:
                break
        await trio.sleep(2)
        (hosted,) = money.journal.hosted()
        assert hosted.voucher is not None
        assert 10 <= hosted.voucher.tokens_out < 20
        await read(ask(client, "the next"))
        assert len(money.journal.hosted()) == 1


async def test_ctrl_c_in_the_loop_ends_the_turn_in_order_and_settles_what_came(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """As a program without `async with` around its answer takes it: the error leaves loop and client."""
    async with paid_world(tmp_path, limits=ONE_BY_ONE) as w:
        member, money = await w.host(model=priced(tokens_per_s=50))

        async def program() -> None:
            taken = 0
            async with w.client(member) as client:
                async for _ in ask(client, tokens=1000):
                    taken += 1
                    if taken == 10:
                        raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await program()
        assert member.host is not None
        assert member.host.sessions == 0
        await trio.sleep(5)
        (hosted,) = money.journal.hosted()
        assert hosted.voucher is not None
        assert hosted.state == "settled"
        assert 10 <= hosted.voucher.tokens_out < 20
