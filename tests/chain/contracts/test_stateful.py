"""All calls, several actors, time passing, in any order: the money is always where the book says.

After each step: the market holds exactly its open deposits and what it owes; no USDC or FAB was made or lost;
each actor has to the unit what the book says, the tenth of the treasury included; the honest host has its
stake. After each run: everything comes home without any host or payer, and the market is empty.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import initialize, invariant, run_state_machine_as_test

from p2pnode.chain.abi import terms_tuple
from p2pnode.chain.dev.embedded import Contract
from tests.chain.contracts.book import CLOSED
from tests.chain.contracts.market_rules import ACTORS, HOSTS, PAYERS
from tests.chain.contracts.support import ADDRESS, BALANCE, DAY, FAB, World
from tests.chain.contracts.trust_rules import HONEST, TrustRules

STEPS_IN_CI = 150
SUPPLY_FAB = 10**9 * FAB


class Machine(TrustRules):
    """One run: from a fresh deployment to an empty market."""

    deployed: ClassVar[World]
    lens: ClassVar[Contract]

    @initialize()
    def deploy(self) -> None:
        self.world = self.deployed
        self.start = self.world.chain.snapshot()
        self.shown: dict[int, int] = {}
        self.begin()

    @invariant()
    def everybody_has_what_the_book_says_and_the_market_what_it_owes(self) -> None:
        market = self.world.market.address
        accounts = [ADDRESS[name] for name in ACTORS]
        in_hand, owed = self.lens.read("look", self.world.usdc.address, market, [*accounts, market])
        assert dict(zip(ACTORS, in_hand, strict=False)) == {
            name: self.book.wallets[ADDRESS[name]] for name in ACTORS
        }
        assert dict(zip(ACTORS, owed, strict=False)) == {
            name: self.book.ledger[ADDRESS[name]] for name in ACTORS
        }
        assert in_hand[-1] == self.book.escrow() + sum(owed)
        assert owed[-1] == 0

    @invariant()
    def no_value_is_created(self) -> None:
        assert self.world.usdc.read("totalSupply") == len(PAYERS) * BALANCE
        everything = sum(self.book.wallets.values()) + sum(self.book.ledger.values()) + self.book.escrow()
        assert everything == len(PAYERS) * BALANCE
        assert self.world.fab.read("totalSupply") == SUPPLY_FAB - self.burned

    @invariant()
    def the_treasury_gets_its_tenth_and_no_more(self) -> None:
        settled = sum(not session.is_open for session in self.book.sessions)
        assert 0 <= self.book.tokens_earned - 10 * self.book.treasury_earned <= 9 * settled

    @invariant()
    def sessions_stand_as_the_book_says(self) -> None:
        for session in self.book.sessions[-3:]:
            state = (session.status, session.closing_at, session.recorded)
            assert self.world.state(session.terms) == state

    @invariant()
    def what_is_on_record_never_falls_and_no_host_gets_less(self) -> None:
        """Asked of the contract, and held against what it said before."""
        for number, session in enumerate(self.book.sessions):
            status, _, recorded = self.world.state(session.terms)
            before = self.shown.get(number, 0)
            assert recorded >= before
            if status == CLOSED:
                assert recorded >= session.terms.session_fee
            self.shown[number] = recorded

    @invariant()
    def stakes_stand_as_the_book_says_and_no_honest_one_is_gone(self) -> None:
        held = 0
        for name in HOSTS:
            node = self.stakes[name]
            found = self.world.nodes.read("node", ADDRESS[name])[2:]
            assert found == (node.stake, node.unbonding, node.unbonds_at), name
            held += node.stake + node.unbonding
        assert self.world.fab.read("balanceOf", self.world.nodes.address) == held
        locked = sum(vote.bond + sum(vote.locked.values()) for vote in self.votes)
        assert self.world.fab.read("balanceOf", self.world.models.address) == locked
        honest = self.fab[HONEST] + self.stakes[HONEST].stake + self.stakes[HONEST].unbonding
        voted = sum(
            vote.locked.get(HONEST, 0) + (vote.bond if vote.proposer == HONEST else 0) for vote in self.votes
        )
        assert honest + voted >= 50_000 * FAB

    def teardown(self) -> None:
        if not hasattr(self, "start"):
            return
        try:
            self.bring_everything_home()
        finally:
            self.world.chain.revert(self.start)
            self.world.opened.clear()

    def bring_everything_home(self) -> None:
        """Six days later a stranger refunds all, and each account withdraws to an address never frozen."""
        self.world.chain.travel(6 * DAY)
        for session in self.book.sessions:
            if session.is_open:
                self.world.market.send(ADDRESS["watchtower"], "refund", terms_tuple(session.terms))
                self.book.settle(session, 0, session.terms.tip, ADDRESS["watchtower"])
        for name in ACTORS:
            owed = self.world.owed(name)
            if owed:
                self.world.market.send(ADDRESS[name], "withdraw", ADDRESS["deployer"], owed)
        assert self.world.wallet(self.world.market.address) == 0
        self.world.chain.travel(7 * DAY)
        for number, vote in enumerate(self.votes, start=1):
            for name in vote.locked:
                self.world.models.send(ADDRESS["stranger"], "unlock", number, ADDRESS[name])
            if vote.bond:
                self.world.models.send(ADDRESS["stranger"], "return_bond", number)
        assert self.world.fab.read("balanceOf", self.world.models.address) == 0
        for name, node in self.stakes.items():
            if node.stake:
                self.world.nodes.send(ADDRESS[name], "unbond", node.stake)
        self.world.chain.travel(7 * DAY)
        for name, node in self.stakes.items():
            if node.stake + node.unbonding:
                self.world.nodes.send(ADDRESS[name], "withdraw", ADDRESS[name])
        assert self.world.fab.read("balanceOf", self.world.nodes.address) == 0


def _run(world: World, lens: Contract, *, examples: int, steps: int, derandomize: bool) -> type[Machine]:
    class Fresh(Machine):
        steps = 0
        refusals = 0

    Fresh.deployed, Fresh.lens = world, lens
    run_state_machine_as_test(
        Fresh,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=derandomize,
            phases=(Phase.generate, Phase.shrink),
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return Fresh


def test_any_order_of_calls_by_anyone_leaves_every_unit_where_it_belongs(
    world: World, lens: Contract
) -> None:
    ran = _run(world, lens, examples=8, steps=40, derandomize=True)
    assert ran.steps >= STEPS_IN_CI
    assert 0 < ran.refusals < ran.steps


@pytest.mark.long
def test_many_more_orders_of_calls_by_anyone(world: World, lens: Contract) -> None:
    ran = _run(world, lens, examples=60, steps=120, derandomize=False)
    assert ran.steps >= 20 * STEPS_IN_CI
