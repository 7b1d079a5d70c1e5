"""Attacks on a paid host and on a payer, each named; who loses at most what is asserted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.chain.ledger import (
    Call,
    CloseMany,
    EscrowState,
    Ledger,
    Open,
    Outcome,
    Refund,
    Release,
    RequestClose,
    RevertedError,
)
from p2pnode.chain.memory.ledger import MemoryLedger
from p2pnode.errors import RemoteError
from p2pnode.net.stream import Stream
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.driver import MessageChannel
from p2pnode.payments.exposure import ExposureLimits
from p2pnode.protocols.inference.commands import SessionFailed, TurnDone
from p2pnode.protocols.inference.messages import (
    CODEC,
    Close,
    Refuse,
    Resume,
    SamplingParams,
    Voucher,
)
from p2pnode.protocols.inference.messages import Open as OpenMessage
from tests.client.support import misbehave
from tests.host.paid import (
    FEE,
    PRICE_OUT,
    RICH,
    PaidWorld,
    paid_world,
    priced,
    wallet_address,
)
from tests.host.support import WINDOW
from tests.host.test_paid import answer, due, settled
from tests.host.thief import Thief, payment, takes_and_refuses, thief

WINDOW_UNITS = WINDOW * PRICE_OUT // 1_000_000


def honest(message: Any) -> Any:
    return message


def keeps_vouchers_back(after: int = 0) -> Callable[[Any], Any | None]:
    """Pays ``after`` vouchers, then none."""
    sent = 0

    def keep(message: Any) -> Any | None:
        nonlocal sent
        if not isinstance(message, Voucher):
            return message
        sent += 1
        return message if sent <= after else None

    return keep


async def steal(w: PaidWorld, one: Thief, keep: Callable[[Any], Any | None], **how: Any) -> None:
    """Run a thief until its host has had enough."""
    with trio.fail_after(3600):
        await one.run(keep, **how)


class SlowLedger:
    """A chain on which a deposit takes its time."""

    def __init__(self, ledger: Ledger, seconds: float) -> None:
        self._ledger, self._seconds = ledger, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def transact(self, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
        if isinstance(call, Open):
            await trio.sleep(self._seconds)
        return await self._ledger.transact(call)


def later(seconds: int) -> Callable[[], int]:
    """The chain's clock, ahead of everybody's."""
    return lambda: int(wall_clock()) + seconds


def slow(seconds: float) -> Callable[[Ledger], Ledger]:
    return lambda ledger: SlowLedger(ledger, seconds)


# ---- a client that takes and does not pay


async def test_a_client_that_stops_signing_is_cut_off_within_one_window(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        w.chain.mint(wallet_address("mallory"), RICH)
        async with thief(w.world, member, payment("mallory", member)) as one:
            await steal(w, one, keeps_vouchers_back(after=1))  # the input only
        assert len(one.ids) == WINDOW
        assert isinstance(one.outcome, SessionFailed)
        # Both sides wait as long: the host says it, or the client has noticed before it heard.
        assert (one.outcome.code, one.outcome.cause) in {("stalled", one.outcome.cause), (None, "stuck")}
        assert member.host is not None
        assert member.host.escrow is not None
        await trio.sleep(400)
        (record,) = money.journal.hosted()
        assert record.state == "settled"
        delivered = due(record.voucher.tokens_in if record.voucher else 0, len(one.ids))
        assert delivered - (record.amount or 0) == WINDOW_UNITS  # the host's whole loss
        assert member.host.escrow.exposure.units == WINDOW_UNITS  # and it is remembered


async def test_a_32k_token_prompt_that_is_never_paid_costs_no_prefill(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(n_ctx=1 << 16))
        w.chain.mint(wallet_address("mallory"), RICH)
        async with thief(w.world, member, payment("mallory", member)) as one:
            await steal(w, one, keeps_vouchers_back(), question="word " * 32_000)
        assert one.ids == []
        assert member.host is not None
        assert member.host.models[0].new_engine().statistics().tokens_per_s == 0  # the engine was never asked
        await trio.sleep(400)
        (record,) = money.journal.hosted()
        assert (record.state, record.amount) == ("settled", FEE)  # mallory paid for the host's gas
        assert RICH - w.balance("mallory") == FEE


async def test_a_thousand_fresh_payers_each_taking_an_unpaid_window_take_what_the_caps_allow(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    exposure_limits = ExposureLimits(prefix=3 * WINDOW_UNITS, all=5 * WINDOW_UNITS)
    async with paid_world(tmp_path) as w:
        member, _ = await w.host(exposure_limits=exposure_limits)
        stolen = refused = 0
        for number in range(12):  # a thousand, by the same arithmetic: see test_exposure
            name = f"fresh {number}"
            w.chain.mint(wallet_address(name), RICH)
            async with thief(w.world, member, payment(name, member), number=number * 100) as one:
                await steal(w, one, keeps_vouchers_back(after=1))
            stolen += len(one.ids)
            refused += isinstance(one.outcome, SessionFailed) and one.outcome.code == "capacity"
            if one.ids:
                await trio.sleep(400)
                assert RICH - w.balance(name) >= FEE  # each of them paid the host's gas
        assert stolen * PRICE_OUT // 1_000_000 == exposure_limits.all
        assert refused == 7


async def test_one_balance_authorised_to_many_hosts_at_once_pays_one_and_robs_none(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        hosts = [await w.host(ledger=slow(3)) for _ in range(3)]
        w.chain.mint(wallet_address("mallory"), 1_000_000)
        outcomes: list[Thief] = []

        async def one(number: int) -> None:
            member, _ = hosts[number]
            async with thief(w.world, member, payment("mallory", member), number=number) as made:
                await steal(w, made, honest, tokens=40)
                outcomes.append(made)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(one, number)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        await trio.sleep(1000)
        served = [record for _, money in hosts for record in money.journal.hosted("settled")]
        lost = [record for _, money in hosts for record in money.journal.hosted("lost")]
        assert len(served) == 1
        assert len(lost) == 2
        assert all(record.voucher is None for record in lost)  # nothing was served ahead to a stranger
        assert w.balance("mallory") == 1_000_000 - (served[0].amount or 0)


async def test_a_known_payer_that_moves_its_funds_before_the_open_lands_takes_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(ledger=slow(20))
        async with w.client(member, name="mallory") as client:
            await answer(client)
        await trio.sleep(5)
        async with thief(w.world, member, payment("mallory", member)) as one, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: steal(w, one, honest, tokens=1900))
            await trio.sleep(10)
            w.chain.move(wallet_address("mallory"), bytes([9]) * 20, w.balance("mallory"))
            with trio.fail_after(300):
                await one.over.wait()
        assert isinstance(one.outcome, SessionFailed)
        assert one.outcome.code == "payment_required"
        assert one.ids == []
        assert member.host is not None
        assert member.host.escrow is not None
        assert member.host.escrow.exposure.units == 0
        await trio.sleep(1000)
        (lost,) = money.journal.hosted("lost")
        assert lost.terms.payer == wallet_address("mallory")


async def test_a_contract_wallet_that_changes_its_mind_takes_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(ledger=slow(20))
        w.chain.mint(wallet_address("carol"), RICH)
        secret_holds: list[bool] = [True]
        w.chain.deploy_wallet(wallet_address("carol"), lambda _digest, _signature: secret_holds[0])
        async with thief(w.world, member, payment("carol", member)) as one, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: steal(w, one, honest, tokens=40))
            await trio.sleep(15)
            secret_holds[0] = False  # while the open is on its way
            with trio.fail_after(300):
                await one.over.wait()
        assert one.ids == []
        await trio.sleep(1000)
        assert len(money.journal.hosted("lost")) == 1


async def test_a_session_whose_challenge_is_over_or_runs_is_not_served(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A payer opens by itself, asks to close, waits a day, and sends the same terms once more."""
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        w.chain.mint(wallet_address("mallory"), 3_000_000)
        mallory = MemoryLedger(w.chain, wallet_address("mallory"))
        signed = payment("mallory", member, expiry=int(wall_clock()) + 400_000)
        await mallory.transact(Open(signed.terms, signed.valid_before, signed.authorisation))
        await mallory.transact(RequestClose(signed.terms))
        for number, wait_s in enumerate((1, 86_401)):
            w.chain.now = later(wait_s)
            again = payment("mallory", member, expiry=signed.terms.expiry, salt=signed.terms.salt)
            async with thief(w.world, member, replace(again, terms=signed.terms), number=number) as one:
                await steal(w, one, honest)
            assert one.ids == []
            assert isinstance(one.outcome, SessionFailed)


async def test_a_close_request_that_lands_with_the_open_is_seen(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A payer back-runs the open: the host has not written down yet that it is in escrow."""
    async with paid_world(tmp_path) as w:

        class BackRun(SlowLedger):
            async def transact(self, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
                done = await super().transact(call)
                if isinstance(call, Open):
                    await MemoryLedger(w.chain, call.terms.payer).transact(RequestClose(call.terms))
                    await trio.sleep(8)  # the watcher has looked meanwhile
                return done

        member, money = await w.host(ledger=lambda ledger: BackRun(ledger, 0))
        w.chain.mint(wallet_address("mallory"), RICH)
        async with thief(w.world, member, payment("mallory", member)) as one:
            await steal(w, one, honest)
        assert one.ids == []
        await trio.sleep(30)
        (record,) = money.journal.hosted()
        assert (record.state, record.amount) == ("settled", FEE)


async def test_a_session_that_is_closed_on_the_chain_is_served_no_further(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=20))
        w.chain.mint(wallet_address("mallory"), RICH)
        async with thief(w.world, member, payment("mallory", member)) as one, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: steal(w, one, honest, tokens=1900))
            await one.delivered.wait()
            (record,) = money.journal.hosted()
            await money.ledger.transact(Release(record.terms))  # by hand, beside the running host
            with trio.fail_after(30):
                await one.over.wait()
        assert len(one.ids) < 20 * 10
        await trio.sleep(30)
        (record,) = money.journal.hosted()
        assert (record.state, record.amount) == ("settled", FEE)


async def test_one_wrong_answer_of_an_endpoint_writes_off_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A replica that lags says that there is no such session, when it is due."""
    async with paid_world(tmp_path) as w:
        lies: list[Any] = []

        class Lagging(SlowLedger):
            lying = False

            async def check(self, call: Call, sender: bytes | None = None) -> None:
                if self.lying:
                    raise RevertedError("JobMarketplace: not open")
                await self._ledger.check(call, sender)

            async def session(self, session: Any) -> EscrowState:
                return EscrowState(status="none") if self.lying else await self._ledger.session(session)

        def lagging(ledger: Ledger) -> Any:
            lies.append(Lagging(ledger, 0))
            return lies[-1]

        member, money = await w.host(ledger=lagging)
        async with w.client(member) as client:
            counts = await answer(client)
            await trio.sleep(800)  # its authorisation is long past
            lies[0].lying = True
        await trio.sleep(600)
        (record,) = money.journal.hosted()
        assert record.state == "over"
        lies[0].lying = False
        await trio.sleep(600)
        settled(w, due(*counts))


async def test_a_wallet_contract_that_does_not_exist_yet_is_told_to_be_deployed_first(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        w.chain.mint(wallet_address("carol"), RICH)
        signed = payment("carol", member)
        wrapped = replace(signed, authorisation=bytes(300))
        async with thief(w.world, member, wrapped) as one:
            await steal(w, one, honest)
        assert isinstance(one.outcome, SessionFailed)
        assert one.outcome.code == "payment_required"
        assert "deploy it first" in one.outcome.detail
        assert w.balance("carol") == RICH


@pytest.mark.parametrize(
    "change",
    [
        {"price_out": 1},
        {"price_in": 0},
        {"session_fee": 0},
        {"host": bytes([7]) * 20},
        {"receipt_key": bytes([7]) * 20},
        {"deposit": FEE - 1},
        {"expiry": 1},
        {"valid_before": 1_700_000_001},
        {"valid_before": 1_800_000_000},
    ],
)
async def test_terms_other_than_the_hosts_own_are_refused_before_anything_is_relayed(
    tmp_path: Path, autojump_clock: MockClock, change: dict[str, Any]
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        w.chain.mint(wallet_address("mallory"), RICH)
        async with thief(w.world, member, payment("mallory", member, **change)) as one:
            await steal(w, one, honest)
        assert isinstance(one.outcome, SessionFailed)
        assert one.outcome.code in ("payment_required", "bad_request")
        assert money.journal.hosted() == []
        assert w.chain.block == 0


async def test_terms_altered_on_the_way_are_refused(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        w.chain.mint(wallet_address("mallory"), RICH)

        def alter(message: Any) -> Any:
            if isinstance(message, OpenMessage) and message.terms is not None:
                return replace(message, terms=replace(message.terms, deposit=message.terms.deposit * 2))
            return message

        async with thief(w.world, member, payment("mallory", member)) as one:
            await steal(w, one, alter)
        assert isinstance(one.outcome, SessionFailed)
        assert "not the payer's signature" in one.outcome.detail
        assert w.balance("mallory") == RICH


async def test_the_same_open_again_neither_opens_nor_serves_twice(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        w.chain.mint(wallet_address("mallory"), RICH)
        signed = payment("mallory", member)
        async with thief(w.world, member, signed) as one, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.run(honest, tokens=40))
            await one.told.wait()
            assert isinstance(one.outcome, TurnDone)
            async with thief(w.world, member, signed, number=1) as two:
                await steal(w, two, honest)
            nursery.cancel_scope.cancel()
        assert isinstance(two.outcome, SessionFailed)
        assert "opened before" in two.outcome.detail
        assert w.chain.block == 1


@pytest.mark.parametrize("quicker_by", [0, 2])
async def test_a_front_run_open_opens_the_same_session_and_is_served(
    tmp_path: Path, autojump_clock: MockClock, quicker_by: float
) -> None:
    """Somebody relays the payer's authorisation before the host asks the chain, or before its own lands."""
    async with paid_world(tmp_path) as w:
        member, money = await w.host(ledger=slow(5))
        w.chain.mint(wallet_address("mallory"), 1_000_000)
        signed = payment("mallory", member)
        call = Open(signed.terms, signed.valid_before, signed.authorisation)
        async with thief(w.world, member, signed) as one, trio.open_nursery() as nursery:
            if not quicker_by:
                await MemoryLedger(w.chain, wallet_address("passer-by")).transact(call)
            nursery.start_soon(lambda: one.run(honest, tokens=40))
            if quicker_by:
                await trio.sleep(quicker_by)
                await MemoryLedger(w.chain, wallet_address("passer-by")).transact(call)
            with trio.fail_after(60):
                await one.told.wait()
            assert isinstance(one.outcome, TurnDone)
            nursery.cancel_scope.cancel()
        await trio.sleep(400)
        (record,) = money.journal.hosted()
        assert record.voucher is not None
        assert (record.state, record.amount) == ("settled", record.voucher.amount)


# ---- somebody else's session


@pytest.mark.parametrize("forged", [True, False])
async def test_a_second_stream_without_the_voucher_key_leaves_the_first_alone(
    tmp_path: Path, autojump_clock: MockClock, *, forged: bool
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=20))
        async with w.client(member) as client, thief(w.world, member, None) as spy:
            counts: list[tuple[int, int]] = []

            async def ask() -> None:
                counts.append(await answer(client, tokens=200))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(3)
                (record,) = money.journal.hosted()
                # It even knows the session's id and (forged) signs with a key of its own.
                proof = payment("mallory", member).sign(bytes(32)) if forged else bytes(65)
                resume = Resume(holder=bytes(16), session=record.session, received=0, turn=1, proof=proof)
                stream = await spy.network.open_stream(member.node.peer_id, "/p2pnode/inference/1")
                channel = MessageChannel(stream, CODEC)
                await channel.send([resume])
                refused = await channel.receive()
                assert isinstance(refused, Refuse)
                assert refused.code == "bad_request"
        assert counts[0][1] == 200  # not a token was missed
        await trio.sleep(5)
        settled(w, due(*counts[0]))


async def test_a_client_whose_connection_breaks_resumes_and_pays_for_all_it_got(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=priced(tokens_per_s=20))
        async with w.client(member) as client:
            asked = client.chat("hello", model="scripted", sampling=SamplingParams(tokens_max=100))
            received = 0
            async for _ in asked:
                received += 1
                if received == 3:
                    w.world.net.partition(["10.0.9.9"], ["10.0.0.1"])
                    w.world.net.heal()
            assert asked.usage is not None
            assert asked.usage.reason == "length"  # the same turn went on
            bill = due(asked.usage.tokens_in - asked.usage.reused, len(asked.ids))
            assert len(asked.ids) == asked.usage.tokens_out == 100
            assert asked.usage.cost == bill
            (item,) = asked.bill
            assert item.tokens_in == len(b"hello") + 3, "and its input was billed once"
        await trio.sleep(10)
        (record,) = money.journal.hosted()
        assert (record.state, record.amount) == ("settled", bill)


# ---- a host that takes and does not serve


async def test_a_host_that_opens_and_refuses_to_serve_gets_the_session_fee_and_no_more(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        misbehave(member, takes_and_refuses(money))
        async with w.client(member) as client:
            with pytest.raises(RemoteError, match="busy"):
                await answer(client)
        assert RICH - w.balance("alice") == FEE == w.earned("host 0")


async def test_a_host_that_withholds_the_open_and_relays_it_later_gets_the_fee_if_it_is_quick(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        withheld: list[Open] = []

        async def withhold(stream: Stream) -> None:
            request = await MessageChannel(stream, CODEC).receive()
            assert isinstance(request, OpenMessage)
            assert request.terms is not None
            assert request.authorisation is not None
            withheld.append(Open(request.terms, request.valid_before, request.authorisation))
            await stream.reset()

        misbehave(member, withhold)
        async with w.client(member) as client:
            for _ in range(2):
                with pytest.raises(RemoteError):
                    await answer(client)
        early, late = withheld
        await money.ledger.transact(early)
        await money.ledger.transact(Release(early.terms))
        await trio.sleep(601)
        with pytest.raises(RevertedError, match="authorization is expired"):
            await money.ledger.transact(late)
        assert RICH - w.balance("alice") == FEE


async def test_a_host_that_vanishes_with_the_escrow_loses_it_to_the_refund(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()

        async def take_and_vanish(stream: Stream) -> None:
            request = await MessageChannel(stream, CODEC).receive()
            assert isinstance(request, OpenMessage)
            assert request.terms is not None
            assert request.authorisation is not None
            await money.ledger.transact(Open(request.terms, request.valid_before, request.authorisation))
            taken.append(request)
            await stream.reset()

        taken: list[OpenMessage] = []
        misbehave(member, take_and_vanish)
        async with w.client(member) as client:
            with pytest.raises(RemoteError):
                await answer(client)
        terms = taken[0].terms
        assert terms is not None
        w.chain.now = later(3 * 86_400 + 60)
        stranger = MemoryLedger(w.chain, wallet_address("passer-by"))
        await stranger.transact(Refund(terms))
        assert RICH - w.balance("alice") == FEE
        assert w.earned("host 0") == FEE - terms.tip
        assert w.balance("passer-by") == terms.tip


async def test_a_payer_that_closes_with_its_oldest_voucher_while_the_host_is_away_pays_in_full(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, first = await w.host()
        w.chain.mint(wallet_address("mallory"), RICH)
        signed = payment("mallory", member)
        vouchers: list[Voucher] = []

        def note(message: Any) -> Any | None:
            if isinstance(message, Voucher):
                vouchers.append(message)
            return None if isinstance(message, Close) else message

        async with thief(w.world, member, signed) as one, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.run(note, tokens=200))
            await one.told.wait()
            await trio.sleep(1)
            w.kill(member, first)
            nursery.cancel_scope.cancel()
        mallory = MemoryLedger(w.chain, wallet_address("mallory"))
        await mallory.transact(RequestClose(signed.terms, vouchers[0]))
        await trio.sleep(80_000)  # the host is back within the day
        _, money = await w.host(index=0)
        await trio.sleep(10)
        (record,) = money.journal.hosted()
        assert (record.state, record.amount) == ("settled", vouchers[-1].amount)
        assert RICH - w.balance("mallory") == vouchers[-1].amount
        with pytest.raises(RevertedError):
            await mallory.transact(Refund(signed.terms))


async def test_a_close_request_during_a_session_is_answered_with_the_best_voucher(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        w.chain.mint(wallet_address("mallory"), RICH)
        signed = payment("mallory", member)
        async with thief(w.world, member, signed) as one, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.run(honest, tokens=200))
            await one.told.wait()
            await MemoryLedger(w.chain, wallet_address("mallory")).transact(RequestClose(signed.terms))
            with trio.fail_after(60):
                await one.over.wait()  # the host ends it: its escrow is about to close
            nursery.cancel_scope.cancel()
        await trio.sleep(5)
        (record,) = money.journal.hosted()
        assert record.voucher is not None
        assert (record.state, record.amount) == ("settled", record.voucher.amount)


async def test_sessions_that_fall_due_together_are_settled_in_one_transaction(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        calls: list[Call] = []

        class Watched(SlowLedger):
            async def transact(self, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
                calls.append(call)
                return await super().transact(call)

        member, _ = await w.host(ledger=lambda ledger: Watched(ledger, 0))
        async with trio.open_nursery() as nursery:
            for number in range(5):

                async def one(number: int = number) -> None:
                    async with w.client(member, name=f"payer {number}", ip=f"10.0.9.{number + 1}") as client:
                        await answer(client, tokens=10)

                nursery.start_soon(one)
        await trio.sleep(5)
        closes = [call for call in calls if not isinstance(call, Open)]
        assert [type(call) for call in closes] == [CloseMany]
        assert len(closes[0].claims) == 5  # type: ignore[union-attr]
