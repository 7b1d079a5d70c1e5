"""What a host's owner may ask for with its stake: as calls, in words, and what is refused beforehand."""

from __future__ import annotations

import pytest

from p2pnode.chain.ledger import (
    AddStake,
    Approve,
    Rebond,
    Register,
    Transfer,
    TransferFab,
    Unbond,
    WithdrawStake,
)
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.contract_rules import STAKE_MIN, UNBONDING_S
from p2pnode.payments.plans import Plan, about, quote, require_ether, send
from p2pnode.payments.stakes import (
    HostKeys,
    StakeStanding,
    bond,
    change_keys,
    rebond,
    standing,
    unbond,
    withdraw,
)
from tests.chain.contracts.support import ADDRESS, FAB
from tests.chain.memory_world import MEMORY_DOMAINS, START
from tests.payments.refusals import refused

KEYS = HostKeys(peer_key=b"\1" * 32, receipt_key=ADDRESS["receipt key"])
OTHERS = HostKeys(peer_key=b"\2" * 32, receipt_key=ADDRESS["receipt key"])
HOST = ADDRESS["host"]


class Stakes:
    """A host with 5000 FAB on a chain in memory, whose time is set."""

    def __init__(self, *, fab: int = 5_000 * FAB) -> None:
        self.now = START
        self.chain = MemoryChain(MEMORY_DOMAINS, lambda: self.now, gas_price_wei=10**9)
        self.chain.mint_fab(HOST, fab)
        self.chain.ether[HOST] = 10**18
        self.ledger = MemoryLedger(self.chain, HOST)

    async def standing(self) -> StakeStanding:
        return await standing(self.ledger, HOST)

    async def carry_out(self, plan: Plan) -> None:
        """As a command does: tried first."""
        await quote(self.ledger, plan, HOST)
        for call in plan.calls:
            await self.ledger.transact(call)

    async def bonded(self, amount: int = 2 * STAKE_MIN) -> StakeStanding:
        await self.carry_out(bond(await self.standing(), KEYS, amount, more=True))
        return await self.standing()


async def test_a_stake_is_allowed_exactly_registered_and_told_with_what_it_risks() -> None:
    stakes = Stakes()
    plan = bond(await stakes.standing(), KEYS, 1_500 * FAB, more=False)
    assert plan.calls == (
        Approve(MEMORY_DOMAINS.node_registry, 1_500 * FAB),
        Register(KEYS.peer_key, KEYS.receipt_key, 1_500 * FAB),
    )
    allow, words = plan.words
    assert "take 1500 FAB from this wallet, once" in allow
    assert "All of it is lost if this host ever signs two different receipts" in words
    assert "taken out 7 days after you ask" in words
    await stakes.carry_out(plan)
    found = await stakes.standing()
    assert (found.record.stake, found.fab.balance, found.fab.to_nodes) == (1_500 * FAB, 3_500 * FAB, 0)
    assert found.keys == KEYS


async def test_more_is_added_only_where_that_was_said() -> None:
    stakes = Stakes()
    found = await stakes.bonded()
    with refused("already_staked", "2000 FAB at stake already", "--more"):
        bond(found, KEYS, FAB, more=False)
    plan = bond(found, KEYS, FAB, more=True)
    assert plan.calls[-1] == AddStake(FAB)
    assert "so that 2001 FAB are at stake" in plan.words[-1]
    await stakes.carry_out(plan)
    assert (await stakes.standing()).record.stake == 2_001 * FAB
    moved = bond(await stakes.standing(), OTHERS, FAB, more=True)
    assert isinstance(moved.calls[-1], Register), "another data dir's host"


async def test_an_allowance_that_is_there_is_not_given_again() -> None:
    stakes = Stakes()
    await stakes.ledger.transact(Approve(MEMORY_DOMAINS.node_registry, 3 * STAKE_MIN))
    plan = bond(await stakes.standing(), KEYS, STAKE_MIN, more=False)
    assert [type(each) for each in plan.calls] == [Register]
    await stakes.carry_out(plan)


async def test_too_little_a_stake_or_too_little_fab_is_refused_with_what_is_missing() -> None:
    stakes = Stakes(fab=1_200 * FAB)
    found = await stakes.standing()
    with refused("too_little", "at least 1000 FAB"):
        bond(found, KEYS, STAKE_MIN - 1, more=False)
    with refused("no_fab", "takes 1300 FAB", "has 1200 FAB", "send it 100 FAB more"):
        bond(found, KEYS, 1_300 * FAB, more=False)
    with refused("not_staked", "nothing at stake"):
        unbond(found, None)
    with refused("not_staked", "nothing at stake"):
        change_keys(found, KEYS)


async def test_stake_leaves_after_seven_days_and_not_a_second_before() -> None:
    stakes = Stakes()
    found = await stakes.bonded()
    with refused("nothing_unbonding", "2000 FAB are at stake"):
        withdraw(found, HOST)
    with refused("too_little", "500 FAB would be left", "take out 1000 FAB or less"):
        unbond(found, 1_500 * FAB)
    with refused("too_little", "2000 FAB are at stake"):
        unbond(found, 2_001 * FAB)
    plan = unbond(found, STAKE_MIN)
    assert plan.calls == (Unbond(STAKE_MIN),)
    assert "can still be lost" in plan.words[0]
    await stakes.carry_out(plan)
    found = await stakes.standing()
    assert (found.record.stake, found.record.unbonding) == (STAKE_MIN, STAKE_MIN)
    stakes.now = found.record.unbonds_at - 1
    with refused("not_unbonded", "1000 FAB can be withdrawn on 2027-01-22"):
        withdraw(await stakes.standing(), HOST)
    assert found.record.unbonds_at == START + UNBONDING_S
    stakes.now += 1
    out = withdraw(await stakes.standing(), ADDRESS["stranger"])
    assert out.calls == (WithdrawStake(ADDRESS["stranger"]),)
    await stakes.carry_out(out)
    assert stakes.chain.fab(ADDRESS["stranger"]).balance == STAKE_MIN
    assert (await stakes.standing()).record.unbonding == 0


async def test_all_of_it_is_meant_without_an_amount_and_more_begins_the_time_anew() -> None:
    stakes = Stakes()
    await stakes.bonded()
    await stakes.carry_out(unbond(await stakes.standing(), STAKE_MIN))
    plan = unbond(await stakes.standing(), None)
    assert "no priority" in plan.words[0]
    assert "the time begins anew" in plan.words[0]
    await stakes.carry_out(plan)
    assert (await stakes.standing()).record.unbonding == 2 * STAKE_MIN


async def test_what_unbonds_can_be_put_back() -> None:
    stakes = Stakes()
    found = await stakes.bonded()
    with refused("nothing_unbonding"):
        rebond(found)
    await stakes.carry_out(unbond(found, None))
    with refused("not_staked", "2000 FAB unbond", "stake rebond"):
        unbond(await stakes.standing(), None)
    plan = rebond(await stakes.standing())
    assert plan.calls == (Rebond(),)
    await stakes.carry_out(plan)
    assert (await stakes.standing()).record.stake == 2 * STAKE_MIN


async def test_other_keys_are_named_without_more_stake() -> None:
    stakes = Stakes()
    found = await stakes.bonded()
    with refused("already_staked", "keys of this data dir already"):
        change_keys(found, KEYS)
    await stakes.carry_out(change_keys(found, OTHERS))
    found = await stakes.standing()
    assert (found.keys, found.record.stake) == (OTHERS, 2 * STAKE_MIN)


# ---- what it costs


async def test_a_quote_adds_up_the_gas_of_all_calls_and_prices_it() -> None:
    stakes = Stakes()
    plan = bond(await stakes.standing(), KEYS, STAKE_MIN, more=False)
    found = await quote(stakes.ledger, plan, HOST, ether_price=3_000 * 10**6)
    one, other = [await stakes.ledger.estimate(each, allowed=plan.calls[0]) for each in plan.calls]  # type: ignore[arg-type]
    assert found.gas == (one or 0) + (other or 0) > 0
    assert found.cost_wei == found.gas * 10**9
    assert found.cost == -(-found.cost_wei * 3_000 * 10**6 // 10**18)
    assert (await quote(stakes.ledger, plan, HOST)).cost is None
    assert (await stakes.standing()).fab.to_nodes == 0, "nothing was sent"


async def test_too_little_ether_is_told_with_what_the_gas_costs() -> None:
    stakes = Stakes()
    stakes.chain.ether[HOST] = 1
    plan = bond(await stakes.standing(), KEYS, STAKE_MIN, more=False)
    found = await quote(stakes.ledger, plan, HOST)
    with refused("no_ether", "the gas costs about 0.000", "send it some ether"):
        require_ether(found, HOST)


async def test_what_the_contract_would_refuse_is_told_in_its_words() -> None:
    stakes = Stakes()
    with refused("refused", "NodeRegistry: not registered"):
        await quote(stakes.ledger, Plan((AddStake(1),), ("",)), HOST)


@pytest.mark.parametrize(("wei", "shown"), [(0, 0), (9_999, 9_999), (12_341, 12_350), (99_999, 100_000)])
def test_a_cost_that_changes_with_each_block_is_rounded_up_to_four_digits(wei: int, shown: int) -> None:
    assert about(wei) == shown


def test_no_more_is_sent_than_there_is() -> None:
    to = ADDRESS["stranger"]
    assert "nobody can bring it back" in send(TransferFab(to, FAB), FAB, HOST).words[0]
    with refused("no_fab", "has 0 FAB: 1 FAB can't be sent"):
        send(TransferFab(to, FAB), 0, HOST)
    for amount in (0, 6):
        with refused("no_usdc"):
            send(Transfer(to, amount), 5, HOST)
