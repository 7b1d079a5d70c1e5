"""Every way in which a paid session ends at its host: it may owe nothing more, and its loss counts once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.chain.ledger import Refund, Release, RequestClose, SubmitVoucher
from p2pnode.chain.memory.ledger import MemoryLedger
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.net.virtual_time import wall_clock
from p2pnode.payments.escrow import HostMoney
from p2pnode.payments.exposure import Exposure
from p2pnode.protocols.inference.messages import Ack, SessionTerms, Voucher
from p2pnode.protocols.typed_data import amount_due, voucher_digest
from tests.host.paid import (
    LIMITS,
    PRICE_OUT,
    RICH,
    PaidWorld,
    paid_world,
    wallet_address,
)
from tests.host.support import WINDOW
from tests.host.test_paid import answer
from tests.host.test_payment_attacks import keeps_vouchers_back, later
from tests.host.thief import Thief, payment, thief
from tests.net.support import eventually
from tests.node.world import Member
from tests.sqlite_disk import SlowDisk, WatchedDisk

WINDOW_UNITS = WINDOW * PRICE_OUT // 1_000_000
DAY_S = 86_400


@dataclass
class Scene:
    """A thief who has a window of unpaid output, on a stream that lives."""

    w: PaidWorld
    member: Member
    money: HostMoney
    thief: Thief

    @property
    def terms(self) -> SessionTerms:
        (record,) = self.money.journal.hosted()
        return record.terms

    @property
    def exposure(self) -> Exposure:
        assert self.member.host is not None
        assert self.member.host.escrow is not None
        return self.member.host.escrow.exposure

    @property
    def payer(self) -> MemoryLedger:
        return MemoryLedger(self.w.chain, wallet_address("mallory"))

    async def lose(self) -> None:
        """The stream breaks: from now on the session lingers."""
        await self.thief.network.disconnect(self.member.node.peer_id)
        await trio.sleep(1)

    async def wait_ended(self) -> None:
        """Until the host has ended the stream."""
        with trio.fail_after(60):
            await self.thief.over.wait()


@asynccontextmanager
async def stealing(
    folder: Path, *, limits: Limits = LIMITS, disk: WatchedDisk | None = None
) -> AsyncIterator[Scene]:
    """The thief is served a window, for which it does not sign."""
    async with paid_world(folder, limits=limits) as w:
        member, money = await w.host(disk=disk)
        w.chain.mint(wallet_address("mallory"), RICH)
        signed = payment("mallory", member, expiry=int(wall_clock()) + 4000)
        async with thief(w.world, member, signed) as one, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.run(keeps_vouchers_back(after=1)))
            await eventually(lambda: len(one.ids) == WINDOW)
            scene = Scene(w, member, money, one)
            assert scene.exposure.units == WINDOW_UNITS  # reserved
            yield scene
            nursery.cancel_scope.cancel()


async def closes(scene: Scene) -> None:
    scene.thief.close()


async def lingers(scene: Scene) -> None:
    await scene.lose()


async def breaks_the_protocol(scene: Scene) -> None:
    await scene.thief.say(Ack(seq=0))  # out of place in a paid session


async def stops_paying(scene: Scene) -> None:
    await scene.wait_ended()


async def closed_on_the_chain_while_served(scene: Scene) -> None:
    await scene.money.ledger.transact(Release(scene.terms))
    await scene.wait_ended()


async def closed_on_the_chain_while_it_lingers(scene: Scene) -> None:
    await scene.lose()
    await scene.money.ledger.transact(Release(scene.terms))


async def asked_to_close_while_served(scene: Scene) -> None:
    await scene.payer.transact(RequestClose(scene.terms))
    await scene.wait_ended()


async def asked_to_close_while_it_lingers(scene: Scene) -> None:
    await scene.lose()
    await scene.payer.transact(RequestClose(scene.terms))


async def refunded_while_served(scene: Scene) -> None:
    terms = scene.terms
    scene.w.chain.now = later(terms.expiry + DAY_S + 1 - int(wall_clock()))
    await scene.payer.transact(Refund(terms))
    await scene.wait_ended()


async def refunded_while_it_lingers(scene: Scene) -> None:
    await scene.lose()
    await refunded_while_served(scene)  # the thief is gone already


async def resumed_on_another_stream_and_lost_again(scene: Scene) -> None:
    one = scene.thief
    assert one.machine is not None
    held = one.machine.held
    other = thief(scene.w.world, scene.member, one.payment, number=1)
    async with other as two, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: two.run(keeps_vouchers_back(), resume=held))
        await one.over.wait()  # replaced
        await trio.sleep(2)
        await two.network.disconnect(scene.member.node.peer_id)
        nursery.cancel_scope.cancel()


async def drained(scene: Scene) -> None:
    with trio.fail_after(60):
        await scene.member.node.aclose()


async def drained_while_it_lingers(scene: Scene) -> None:
    await scene.lose()
    await drained(scene)


Ending = Callable[[Scene], Awaitable[None]]
ENDINGS: list[Ending] = [
    closes,
    lingers,
    breaks_the_protocol,
    stops_paying,
    closed_on_the_chain_while_served,
    closed_on_the_chain_while_it_lingers,
    asked_to_close_while_served,
    asked_to_close_while_it_lingers,
    refunded_while_served,
    refunded_while_it_lingers,
    resumed_on_another_stream_and_lost_again,
    drained,
    drained_while_it_lingers,
]


def forgotten_after_a_day(exposure: Exposure, number: int) -> int:
    """What is left when the losses of today don't count any more: what is still reserved."""
    new = SessionId(number.to_bytes(32, "big"))
    assert exposure.reserve(new, bytes(20), None, 0, wall_clock() + DAY_S) == ""
    return exposure.units


@pytest.mark.parametrize("end", ENDINGS, ids=[each.__name__ for each in ENDINGS])
async def test_a_session_that_ended_may_owe_nothing_more_and_its_loss_counts_once(
    tmp_path: Path, autojump_clock: MockClock, end: Ending
) -> None:
    async with stealing(tmp_path) as scene:
        await end(scene)
        await trio.sleep(400)
        exposure = scene.exposure
        assert exposure.units == WINDOW_UNITS  # lost, once
        assert forgotten_after_a_day(exposure, 1) == 0


async def test_a_session_that_lingers_may_still_owe_its_window(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with stealing(tmp_path) as scene:
        await scene.lose()
        await trio.sleep(200)
        assert forgotten_after_a_day(scene.exposure, 1) == WINDOW_UNITS


async def test_a_host_that_starts_again_owes_nothing_for_a_session_that_nobody_resumes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with stealing(tmp_path) as scene:
        scene.w.kill(scene.member, scene.money)
        member, money = await scene.w.host(index=0)
        await trio.sleep(400)
        assert Scene(scene.w, member, money, scene.thief).exposure.units == 0
        (record,) = money.journal.hosted()
        assert record.state == "settled"


async def test_a_disk_slower_than_an_ending_may_take_keeps_no_exposure_and_no_session_open(
    tmp_path: Path,
) -> None:
    limits = replace(LIMITS, close_deadline_s=0.01, settle_batch_s=0.05, settle_retry_s=0.1)
    with trio.fail_after(30):
        async with stealing(tmp_path, limits=limits, disk=SlowDisk(0.04)) as scene:
            scene.thief.close()
            await eventually(lambda: scene.money.journal.hosted("settled"))
            assert scene.exposure.units == WINDOW_UNITS
            assert forgotten_after_a_day(scene.exposure, 1) == 0


@pytest.mark.long  # two days of a host's virtual time
async def test_a_voucher_on_record_that_the_host_has_lost_is_paid_by_a_refund(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A watchtower showed it. The host can't close with it, and may not let it go for the fee."""
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        w.chain.mint(wallet_address("mallory"), RICH)
        signed = payment("mallory", member, expiry=int(wall_clock()) + 4000)
        async with thief(w.world, member, signed) as one:
            with trio.fail_after(3600):
                await one.run(keeps_vouchers_back())
        (record,) = money.journal.hosted()
        assert record.voucher is None
        amount = amount_due(record.terms, 0, 9)
        bare = Voucher(seq=0, tokens_in=0, tokens_out=9, amount=amount, root=bytes(32), signature=b"")
        digest = voucher_digest(money.ledger.domains.market, record.session, bare)
        best = replace(bare, signature=signed.sign(digest))
        await MemoryLedger(w.chain, wallet_address("watchtower")).transact(SubmitVoucher(record.terms, best))
        await trio.sleep(4000 + 2 * DAY_S)
        (record,) = money.journal.hosted()
        assert (record.state, record.amount) == ("settled", best.amount)
        assert w.earned("host 0") == best.amount - (best.amount - record.terms.session_fee) // 10


async def test_a_host_that_stops_settles_a_session_that_ended_just_before(tmp_path: Path) -> None:
    disk = SlowDisk(0.0)
    with trio.fail_after(30):
        async with paid_world(tmp_path, limits=replace(LIMITS, settle_batch_s=3.0)) as w:
            member, money = await w.host(disk=disk)
            async with w.client(member) as client:
                await answer(client, tokens=10)
                disk.commit_s = 0.5  # its end is not written down yet when the host is told to stop
            await member.node.aclose()
            assert [record.state for record in money.journal.hosted()] == ["settled"]
