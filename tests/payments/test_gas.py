"""Gas that became dear, and a wallet that runs low: opens stop, settlements wait or pay, nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from p2pnode.chain.ledger import Call, Open, Outcome, RequestClose, RevertedError
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.errors import RefusedError
from p2pnode.payments.gas import HostGas
from p2pnode.payments.gas_budget import OPEN_GAS, SETTLE_GAS, WEI_PER_ETHER, GasBudget
from tests.host.paid import FEE, PaidWorld, domains, paid_world, wallet_address
from tests.host.test_paid import answer
from tests.payments.journals import NOW, TERMS, hosted, voucher

ETHER_PRICE = 3_000 * 10**6
CHEAP = FEE * WEI_PER_ETHER // ETHER_PRICE // (10 * OPEN_GAS)
"""A gas price at which an open costs a tenth of the fee."""
DEAR = 100 * CHEAP


def fill(w: PaidWorld, ether: int = 10**18) -> None:
    for name in ("host 0", "alice"):
        w.chain.ether[wallet_address(name)] = ether


def budget(**changes: int) -> GasBudget:
    return GasBudget(ether_price=ETHER_PRICE, **changes)


async def test_while_gas_costs_more_than_the_fee_covers_no_session_is_opened(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(budget=budget())
        fill(w)
        w.chain.gas_price_wei = DEAR
        async with w.client(member) as client:
            with pytest.raises(RefusedError, match="more now than this host's session fee covers") as refused:
                await answer(client)
            assert (refused.value.code, money.journal.hosted()) == ("capacity", [])
            w.chain.gas_price_wei = CHEAP
            await answer(client)
        assert len(money.journal.hosted()) == 1


async def test_without_a_price_of_ether_the_host_works_on(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        fill(w)
        w.chain.gas_price_wei = DEAR
        async with w.client(member) as client:
            await answer(client)


async def test_a_settlement_waits_for_cheaper_gas_while_it_can(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(budget=budget())
        fill(w)
        w.chain.gas_price_wei = CHEAP
        async with w.client(member) as client:
            await answer(client)
            w.chain.gas_price_wei = DEAR
        await trio.sleep(700)
        (record,) = money.journal.hosted()
        assert record.state == "over"
        w.chain.gas_price_wei = CHEAP
        await trio.sleep(700)
        (record,) = money.journal.hosted()
        assert (record.state, record.amount) == ("settled", record.due)


def test_opening_a_served_session_again_may_cost_half_of_its_voucher_since_it_can_not_wait() -> None:
    gas = HostGas(MemoryLedger(MemoryChain(domains(), lambda: NOW)), budget(), wall=lambda: NOW)
    worth = 100 * TERMS.session_fee
    record = hosted(1, voucher=voucher(1, worth))
    most = gas.open_again_max_wei(record)
    assert most is not None
    assert budget().wei(worth * 49 // 100) < most <= budget().wei(worth // 2)
    patient = hosted(1, voucher=voucher(1, worth), valid_before=NOW + 2 * 86_400)
    assert gas.open_again_max_wei(patient) == budget().wei(2 * TERMS.session_fee)
    unknown = HostGas(MemoryLedger(MemoryChain(domains(), lambda: NOW)), GasBudget(), wall=lambda: NOW)
    assert unknown.open_again_max_wei(record) is None


async def test_a_days_budget_stops_opens_and_never_an_answer_to_a_close_request(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host(budget=budget(day_max=FEE // 5))  # for one open
        fill(w)
        w.chain.gas_price_wei = CHEAP
        async with w.client(member) as client:
            await answer(client)
            async with w.client(member, name="bob") as other:
                with pytest.raises(RefusedError, match="day's budget"):
                    await answer(other)
            (record,) = money.journal.hosted()
            await MemoryLedger(w.chain, wallet_address("alice")).transact(RequestClose(record.terms))
            await trio.sleep(60)
        (record,) = money.journal.hosted()
        assert record.state == "settled"


async def test_a_host_whose_ether_runs_low_warns_and_then_opens_no_more_than_it_can_settle(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        w.chain.gas_price_wei = CHEAP
        fill(w, ether=6 * SETTLE_GAS * CHEAP)
        with capture_logs() as logs:
            async with w.client(member) as client:
                await answer(client)
        assert [log["settlements_left"] for log in logs if log["event"] == "gas.low"] == [6]
        fill(w, ether=2 * SETTLE_GAS * CHEAP - 1)
        async with w.client(member, name="bob") as other:
            with pytest.raises(RefusedError, match="lacks the ether to settle"):
                await answer(other)
        await trio.sleep(600)
        (record,) = money.journal.hosted()
        assert record.state == "settled"  # what is open is paid for


class Overtaken(MemoryLedger):
    """A chain on which the payer's money is gone when the open comes: it is mined, and refused."""

    gas_used = 60_000

    async def transact(self, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
        del call, fee_max_wei
        raise RevertedError("transfer amount exceeds balance", self.gas_used)


@pytest.mark.parametrize(("gas_used", "refused"), [(60_000, "day's budget"), (0, "")])
async def test_the_gas_of_an_open_that_the_contract_refused_counts_for_the_day(
    gas_used: int, refused: str
) -> None:
    chain = MemoryChain(domains(), lambda: 0, gas_price_wei=CHEAP)
    chain.ether[wallet_address("host 0")] = 10**18
    ledger = Overtaken(chain, wallet_address("host 0"))
    ledger.gas_used = gas_used
    gas = HostGas(ledger, budget(day_max=FEE // 5), lambda: 0.0)  # for one open
    assert await gas.why_not_open(FEE, 0) == ""
    for _ in range(2):
        with pytest.raises(RevertedError):
            await gas.open(Open(TERMS, 0, b""))
    why = await gas.why_not_open(FEE, 0)
    assert (refused in why) if refused else why == ""
