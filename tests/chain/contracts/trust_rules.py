"""Every call of NodeRegistry and ModelRegistry, by an honest host, a liar, and anyone else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from p2pnode.chain.abi import terms_tuple
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.inference.messages import SessionTerms
from p2pnode.protocols.inference.receipts import NO_FINGERPRINT, ReceiptChain, token_hash
from tests.chain.contracts.market_rules import ACTOR, HOSTS, INDEX, RECEIPT_KEYS, MarketRules
from tests.chain.contracts.support import ADDRESS, DAY, FAB, NAME, sign

STAKE = 1_000 * FAB
BOND = 1_000 * FAB
PURSE_FAB = 50_000 * FAB
HOST = st.sampled_from(HOSTS)
HONEST = "host"
"""Signs one receipt for each place. The other host signs whatever it is asked."""


@dataclass(slots=True)
class Node:
    stake: int = 0
    unbonding: int = 0
    unbonds_at: int = 0


@dataclass(frozen=True, slots=True)
class Signed:
    """A receipt somebody holds."""

    terms: SessionTerms
    epoch: int
    root: bytes
    link: tuple[Any, ...]


@dataclass(slots=True)
class Vote:
    ends_at: int
    proposer: str
    bond: int = BOND
    locked: dict[str, int] = field(default_factory=dict)


class TrustRules(MarketRules):
    """Stake, receipts, evidence, proposals, votes."""

    def begin(self) -> None:
        super().begin()
        self.stakes = {name: Node() for name in HOSTS}
        self.receipts: list[Signed] = []
        self.punished: set[tuple[bytes, int]] = set()
        self.burned = 0
        self.fab = dict.fromkeys(HOSTS, PURSE_FAB)
        self.votes: list[Vote] = []
        for name in HOSTS:
            deployer = ADDRESS["deployer"]
            self.world.fab.send(deployer, "transfer", ADDRESS[name], PURSE_FAB)
            for contract in (self.world.nodes, self.world.models):
                self.world.fab.send(ADDRESS[name], "approve", contract.address, 10**6 * FAB)
            self._register(name, STAKE)

    def node_call(self, allowed: bool, sender: str, name: str, *arguments: Any) -> bool:
        return self.expect(allowed, lambda: self.world.nodes.send(ADDRESS[sender], name, *arguments))

    def model_call(self, allowed: bool, sender: str, name: str, *arguments: Any) -> bool:
        return self.expect(allowed, lambda: self.world.models.send(ADDRESS[sender], name, *arguments))

    @rule(name=HOST, amount=st.sampled_from((0, STAKE, 3 * STAKE)))
    def register(self, name: str, amount: int) -> None:
        self._register(name, amount)

    def _register(self, name: str, amount: int) -> None:
        node = self.stakes[name]
        allowed = node.stake + amount >= STAKE and amount <= self.fab[name]
        order = (keccak256(name.encode()), ADDRESS[RECEIPT_KEYS[name]], amount)
        if self.node_call(allowed, name, "register", *order):
            node.stake += amount
            self.fab[name] -= amount

    @rule(name=HOST, amount=st.sampled_from((1, STAKE, 3 * STAKE)))
    def unbond(self, name: str, amount: int) -> None:
        node = self.stakes[name]
        left = node.stake - amount
        at = self.at
        if self.node_call(left == 0 or left >= STAKE, name, "unbond", amount):
            node.stake = left
            node.unbonding += amount
            node.unbonds_at = at + 7 * DAY

    def leaving(self) -> bool:
        return any(node.unbonding for node in self.stakes.values())

    @precondition(leaving)
    @rule(name=HOST)
    def rebond(self, name: str) -> None:
        node = self.stakes[name]
        allowed = node.unbonding > 0 and node.stake + node.unbonding >= STAKE
        if self.node_call(allowed, name, "rebond"):
            self.stakes[name] = Node(stake=node.stake + node.unbonding)

    @precondition(leaving)
    @rule(name=HOST)
    def withdraw_stake(self, name: str) -> None:
        node = self.stakes[name]
        allowed = node.unbonding > 0 and self.at >= node.unbonds_at
        if self.node_call(allowed, name, "withdraw", ADDRESS[name]):
            self.fab[name] += node.unbonding
            self.stakes[name] = Node(stake=node.stake)

    @precondition(MarketRules.opened)
    @rule(index=INDEX, epoch=st.integers(1, 2), answer=st.sampled_from((b"yes", b"no")))
    def sign_a_receipt(self, index: int, epoch: int, answer: bytes) -> None:
        """Off the chain. An honest host answers one place once: asked again, it says the same."""
        terms = self.some(index).terms
        self._sign(terms, epoch, answer)
        self._sign(terms, epoch, b"perhaps")

    def _sign(self, terms: SessionTerms, epoch: int, answer: bytes) -> None:
        name = NAME[terms.host]
        said = b"always this" if name == HONEST else answer
        chain = ReceiptChain.begin(self.world.id_of(terms), terms.model, b"salt", epoch)
        previous, hashed = chain.root, token_hash([said])
        root = chain.advance(1, 32, hashed, NO_FINGERPRINT)
        link = (previous, 1, 32, hashed, NO_FINGERPRINT, sign(RECEIPT_KEYS[name], chain.digest()))
        self.receipts.append(Signed(terms, epoch, root, link))

    @precondition(MarketRules.opened)
    @rule(index=INDEX, epoch=st.integers(1, 2), reporter=ACTOR)
    def sign_and_report(self, index: int, epoch: int, reporter: str) -> None:
        """The last two receipts somebody got from one host."""
        self.sign_a_receipt(index, epoch, b"yes")
        self.judge(self.receipts[-1], self.receipts[-2], reporter)

    def told(self) -> bool:
        return len(self.receipts) > 1

    @precondition(told)
    @rule(first=INDEX, second=INDEX, reporter=ACTOR)
    def report(self, first: int, second: int, reporter: str) -> None:
        """Any two receipts as evidence: only two that conflict cost a stake, once."""
        a = self.receipts[first % len(self.receipts)]
        same = [receipt for receipt in self.receipts if receipt.terms == a.terms]
        self.judge(a, same[second % len(same)], reporter)

    def judge(self, a: Signed, b: Signed, reporter: str) -> None:
        """Show both to the registry."""
        name = NAME[a.terms.host]
        node = self.stakes[name]
        place = (self.world.id_of(a.terms), a.epoch)
        registered = self.world.nodes.read("is_receipt_key", a.terms.host, a.terms.receipt_key)
        allowed = (
            registered
            and a.epoch == b.epoch
            and a.root != b.root
            and place not in self.punished
            and node.stake + node.unbonding > 0
        )
        order = (terms_tuple(a.terms), a.epoch, 1, a.link, b.link)
        if self.node_call(allowed, reporter, "slash", *order):
            assert name != HONEST
            lost = node.stake + node.unbonding
            reward = 0 if reporter == name else lost // 10
            self.stakes[name] = Node()
            self.punished.add(place)
            self.burned += lost - reward
            if reporter in self.fab:
                self.fab[reporter] += reward

    @rule(name=HOST)
    def propose(self, name: str) -> None:
        at = self.at
        if self.model_call(self.fab[name] >= BOND, name, "propose", b"{}"):
            self.fab[name] -= BOND
            self.votes.append(Vote(at + 7 * DAY, name))

    def voting(self) -> bool:
        return bool(self.votes)

    @precondition(voting)
    @rule(index=INDEX, name=HOST, support=st.booleans(), amount=st.sampled_from((0, 1, STAKE)))
    def vote(self, index: int, name: str, amount: int, *, support: bool) -> None:
        number = index % len(self.votes)
        vote = self.votes[number]
        allowed = 0 < amount <= self.fab[name] and self.at < vote.ends_at
        if self.model_call(allowed, name, "vote", number + 1, support, amount):
            self.fab[name] -= amount
            vote.locked[name] = vote.locked.get(name, 0) + amount

    @precondition(voting)
    @rule(index=INDEX, name=HOST, caller=ACTOR)
    def unlock(self, index: int, name: str, caller: str) -> None:
        number = index % len(self.votes)
        vote = self.votes[number]
        allowed = self.at >= vote.ends_at and vote.locked.get(name, 0) > 0
        if self.model_call(allowed, caller, "unlock", number + 1, ADDRESS[name]):
            self.fab[name] += vote.locked.pop(name)

    @precondition(voting)
    @rule(index=INDEX, caller=ACTOR)
    def return_bond(self, index: int, caller: str) -> None:
        number = index % len(self.votes)
        vote = self.votes[number]
        allowed = self.at >= vote.ends_at and vote.bond > 0
        if self.model_call(allowed, caller, "return_bond", number + 1):
            self.fab[vote.proposer] += vote.bond
            vote.bond = 0
