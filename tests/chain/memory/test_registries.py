"""FAB and both registries in memory are the contracts: any calls, by anyone, in any order, end alike."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from p2pnode.chain.evm.calls import Encoder, registry_events
from p2pnode.chain.evm.node import Log
from p2pnode.chain.ledger import (
    NO_REASON,
    AddStake,
    Approve,
    Attest,
    Call,
    Domains,
    Proposal,
    Propose,
    Rebond,
    Register,
    ReturnBond,
    RevertedError,
    TransferFab,
    Unbond,
    Unlock,
    Vote,
    WithdrawStake,
)
from p2pnode.chain.memory.ledger import MemoryChain
from p2pnode.contract_rules import MANIFEST_BYTES_MAX, QUORUM, STAKE_MIN
from p2pnode.ids import ModelId
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.typed_data import Domain, market_domain
from tests.chain.contracts.support import ADDRESS, DAY, World

ACTORS = ("host", "rival", "stranger")
PURSE = 4 * QUORUM
WHO = st.sampled_from(ACTORS)
STAKES = st.sampled_from((0, 1, STAKE_MIN - 1, STAKE_MIN, 2 * STAKE_MIN))
MODEL = ModelId(keccak256(b"model"))
OTHERS = ("host", "rival", "nobody", "nodes", "models", "fab")
done: set[type[Call]] = set()


class RegistryTwins(RuleBasedStateMachine):
    """Sends each call to the contracts and to the rules in memory."""

    world: World

    @initialize()
    def begin(self) -> None:
        self.before = self.world.chain.snapshot()
        found, chain_id = self.world.addresses, self.world.chain.chain_id
        self.domains = Domains(
            market=market_domain(chain_id, found.job_marketplace),
            token=Domain(name="USD Coin", version="2", chain_id=chain_id, contract=found.usdc),
            node_registry=found.node_registry,
            treasury=ADDRESS["treasury"],
            fab=found.fab,
            model_registry=found.model_registry,
        )
        self.at = 0
        self.memory = MemoryChain(self.domains, lambda: self.at)
        self.encode = Encoder(self.domains)
        self.places = {
            **{name: ADDRESS[name] for name in ACTORS},
            "nobody": bytes(20),
            "nodes": found.node_registry,
            "models": found.model_registry,
            "fab": found.fab,
        }
        for name in ACTORS:
            self.world.fab.send(ADDRESS["deployer"], "transfer", ADDRESS[name], PURSE)
            self.memory.mint_fab(ADDRESS[name], PURSE)
            for registry in (found.node_registry, found.model_registry):
                self.do(name, Approve(registry, PURSE))
            self.do(name, Register(b"\1" * 32, ADDRESS["receipt key"], 2 * STAKE_MIN))

    def teardown(self) -> None:
        if hasattr(self, "before"):
            self.world.chain.revert(self.before)

    def do(self, name: str, call: Call) -> None:
        self.at = self.world.chain.next_timestamp
        expected = self._on_chain(ADDRESS[name], call)
        try:
            found: Any = [replace(each, block=0) for each in self.memory.send(ADDRESS[name], call).events]
            done.add(type(call))
        except RevertedError as error:
            found = error.reason
        assert found == expected, (name, type(call))

    def _on_chain(self, sender: bytes, call: Call) -> Any:
        order = self.encode.order(call)
        try:
            receipt = self.world.chain.send(sender, order.to, order.data)
        except RevertedError as error:
            return error.reason or NO_REASON
        logs = [
            Log(contract=contract, topics=topics, data=data, block=0, index=index)
            for index, (contract, topics, data) in enumerate(receipt.logs)
        ]
        return list(registry_events(self.domains, logs))

    # ---- FAB

    @rule(name=WHO, to=st.sampled_from(OTHERS), amount=st.sampled_from((0, 1, STAKE_MIN, PURSE)))
    def transfer(self, name: str, to: str, amount: int) -> None:
        self.do(name, TransferFab(self.places[to], amount))

    @rule(name=WHO, spender=st.sampled_from(("nodes", "models")), amount=st.sampled_from((0, 1, PURSE)))
    def approve(self, name: str, spender: str, amount: int) -> None:
        self.do(name, Approve(self.places[spender], amount))

    # ---- stake

    @rule(name=WHO, amount=STAKES, key=st.sampled_from((bytes(32), b"\1" * 32, b"\2" * 32)))
    def register(self, name: str, amount: int, key: bytes) -> None:
        self.do(name, Register(key, ADDRESS["receipt key"], amount))

    @rule(name=WHO, amount=STAKES)
    def add_stake(self, name: str, amount: int) -> None:
        self.do(name, AddStake(amount))

    @rule(name=WHO, amount=STAKES)
    def unbond(self, name: str, amount: int) -> None:
        self.do(name, Unbond(amount))

    @rule(name=WHO)
    def rebond(self, name: str) -> None:
        self.do(name, Rebond())

    @rule(name=WHO, to=st.sampled_from(OTHERS))
    def withdraw(self, name: str, to: str) -> None:
        self.do(name, WithdrawStake(self.places[to]))

    # ---- votes

    @rule(
        name=WHO,
        manifest=st.sampled_from((b"", b"{}", bytes(MANIFEST_BYTES_MAX), bytes(MANIFEST_BYTES_MAX + 1))),
    )
    def propose(self, name: str, manifest: bytes) -> None:
        self.do(name, Propose(manifest))

    def proposed(self) -> bool:
        return self.memory.votes.count > 0

    @rule(name=WHO, number=st.integers(0, 3), support=st.booleans(), amount=st.sampled_from((0, 1, QUORUM)))
    def vote(self, name: str, number: int, amount: int, *, support: bool) -> None:
        self.do(name, Vote(number, support, amount))

    @precondition(proposed)
    @rule(name=WHO, number=st.integers(0, 3), voter=WHO)
    def unlock(self, name: str, number: int, voter: str) -> None:
        self.do(name, Unlock(number, ADDRESS[voter]))

    @precondition(proposed)
    @rule(name=WHO, number=st.integers(0, 3))
    def return_bond(self, name: str, number: int) -> None:
        self.do(name, ReturnBond(number))

    @rule(name=WHO, statement=st.sampled_from((bytes(32), b"\3" * 32)))
    def attest(self, name: str, statement: bytes) -> None:
        self.do(name, Attest(MODEL, statement))

    @rule(name=WHO, voter=WHO, early=st.booleans())
    def see_a_vote_through(self, name: str, voter: str, *, early: bool) -> None:
        self.do(name, Propose(b"{}"))
        number = self.memory.votes.count
        self.do(voter, Vote(number, True, QUORUM))
        self.world.chain.travel((6 if early else 7) * DAY + 10)
        self.do(name, Unlock(number, ADDRESS[voter]))
        self.do(voter, ReturnBond(number))

    @rule(name=WHO, early=st.booleans(), amount=st.sampled_from((STAKE_MIN, 2 * STAKE_MIN)))
    def take_stake_out(self, name: str, amount: int, *, early: bool) -> None:
        self.do(name, Register(b"\2" * 32, ADDRESS["receipt key"], STAKE_MIN))
        self.do(name, AddStake(STAKE_MIN))
        self.do(name, Unbond(amount))
        self.do(name, Rebond())
        self.do(name, Unbond(amount))
        self.world.chain.travel((6 if early else 7) * DAY + 10)
        self.do(name, WithdrawStake(ADDRESS[name]))

    @rule(days=st.sampled_from((1, 3, 7)))
    def travel(self, days: int) -> None:
        self.world.chain.travel(days * DAY)

    # ---- what holds after each

    @invariant()
    def both_say_the_same(self) -> None:
        if not hasattr(self, "memory"):
            return
        fab, nodes, models = self.world.fab, self.world.nodes, self.world.models
        for name, address in self.places.items():
            held = self.memory.fab(address)
            assert held.balance == fab.read("balanceOf", address), name
            if name not in ACTORS:
                continue
            assert held.to_nodes == fab.read("allowance", address, nodes.address)
            assert held.to_models == fab.read("allowance", address, models.address)
            assert astuple(self.memory.node(address)) == nodes.read("node", address)
            assert self.memory.votes.attestation(MODEL, address) == models.read("attestation", MODEL, address)
        for number in range(1, self.memory.votes.count + 1):
            found = self.memory.votes.proposal(number)
            assert found == _proposal(number, models.read("proposal", number))
            assert found is not None
            assert found.is_accepted(self.world.chain.next_timestamp) == models.read("is_accepted", number)
            for name in ACTORS:
                held_there = models.read("locked", number, ADDRESS[name])
                assert self.memory.votes.locked(number, ADDRESS[name]) == held_there

    @invariant()
    def no_fab_is_made_or_lost_and_the_registries_hold_what_they_owe(self) -> None:
        if not hasattr(self, "memory"):
            return
        held = {name: self.memory.fab(address).balance for name, address in self.places.items()}
        assert sum(held.values()) == len(ACTORS) * PURSE
        records = [self.memory.node(ADDRESS[name]) for name in ACTORS]
        owed = sum(each.stake + each.unbonding for each in records)
        assert held["nodes"] >= owed, "more where somebody sent it FAB for nothing"
        votes = self.memory.votes
        proposals = [votes.proposal(number) for number in range(1, votes.count + 1)]
        bonds = sum(each.bond for each in proposals if each is not None)
        locked = sum(
            votes.locked(number, ADDRESS[name]) for number in range(1, votes.count + 1) for name in ACTORS
        )
        assert held["models"] >= bonds + locked


def _proposal(number: int, found: tuple[Any, ...]) -> Proposal:
    model, proposer, ends_at, votes_for, votes_against, bond = found
    return Proposal(
        number=number, model=ModelId(model), proposer=proposer, ends_at=ends_at, votes_for=votes_for,
        votes_against=votes_against, bond=bond,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def _run(world: World, *, examples: int, steps: int) -> None:
    RegistryTwins.world = world
    run_state_machine_as_test(
        RegistryTwins,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            database=None,
            phases=(Phase.generate,),  # each step sends a transaction: to shrink would take minutes
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.long
def test_whatever_is_sent_to_the_registries_ends_in_memory_as_on_the_chain(world: World) -> None:
    done.clear()
    _run(world, examples=8, steps=40)
    assert done >= {
        Register, AddStake, Unbond, Rebond, WithdrawStake, Propose, Vote, Unlock, ReturnBond, Attest,
        TransferFab, Approve,
    }  # fmt: skip
