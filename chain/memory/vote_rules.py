"""``VoteRules``: what ModelRegistry does, in Python. Pure and exact: no clock, no I/O.

The checks and their order are those of ``contracts/ModelRegistry.vy``, and so are the reasons. A differential
test compares the two. Each method raises ``RevertedError``, or returns what remains to be done: nothing has
changed until that is called.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from typing import Final

from p2pnode.chain.ledger import (
    NO_REASON,
    Approve,
    Attest,
    LedgerEvent,
    Proposal,
    Propose,
    Proposed,
    ReturnBond,
    RevertedError,
    Unlock,
    Vote,
    VoteCall,
)
from p2pnode.chain.memory.fab_rules import FabRules
from p2pnode.chain.memory.market_rules import Commit, Context
from p2pnode.chain.memory.token_rules import require
from p2pnode.contract_rules import BOND, MANIFEST_BYTES_MAX, VOTING_S
from p2pnode.ids import ModelId

_MODEL_TAG: Final = b"p2pnode/model/1\0"


class VoteRules:
    """The registry of models is at this address."""

    def __init__(self, tokens: FabRules, *, registry: bytes) -> None:
        self._tokens, self._registry = tokens, registry
        self._proposals: list[Proposal] = []
        self._manifests: list[bytes] = []
        self._locked: defaultdict[tuple[int, bytes], int] = defaultdict(int)
        self._attestations: dict[tuple[ModelId, bytes], bytes] = {}

    @property
    def count(self) -> int:
        """How many proposals there are."""
        return len(self._proposals)

    def proposal(self, number: int) -> Proposal | None:
        """A proposal; None where there is none of this number."""
        return self._proposals[number - 1] if 1 <= number <= len(self._proposals) else None

    def manifest(self, number: int) -> bytes:
        """What was proposed under a number that there is."""
        return self._manifests[number - 1]

    def locked(self, number: int, voter: bytes) -> int:
        """The FAB that a voter has locked in a proposal."""
        return self._locked.get((number, voter), 0)

    def attestation(self, model: ModelId, attester: bytes) -> bytes:
        """The hash of what an account says of a model; zeros where it says nothing."""
        return self._attestations.get((model, attester), bytes(32))

    def decide(self, call: VoteCall, context: Context, allowed: Approve | None = None) -> Commit:
        """The effect of a call; ``allowed`` as in ``RegistryLedger.estimate``. Raises ``RevertedError``."""
        match call:
            case Propose():
                return self._propose(call, context, allowed)
            case Vote():
                return self._vote(call, context, allowed)
            case Unlock():
                return self._unlock(call, context.at)
            case ReturnBond():
                return self._return_bond(call, context.at)
            case Attest():
                return self._attest(call, context.sender)

    def _propose(self, call: Propose, context: Context, allowed: Approve | None) -> Commit:
        require(len(call.manifest) <= MANIFEST_BYTES_MAX, NO_REASON)
        require(len(call.manifest) > 0, "ModelRegistry: no manifest")
        self._check_take(context.sender, BOND, allowed)
        made = Proposal(
            number=self.count + 1,
            model=ModelId(hashlib.sha256(_MODEL_TAG + call.manifest).digest()),
            proposer=context.sender,
            ends_at=context.at + VOTING_S,
            votes_for=0,
            votes_against=0,
            bond=BOND,
        )

        def commit() -> list[LedgerEvent]:
            self._proposals.append(made)
            self._manifests.append(call.manifest)
            self._tokens.take(context.sender, self._registry, BOND)
            return [
                Proposed(proposal=made.number, model=made.model, proposer=made.proposer, block=context.block)
            ]

        return commit

    def _vote(self, call: Vote, context: Context, allowed: Approve | None) -> Commit:
        found = self.proposal(call.proposal)
        if found is None:
            raise RevertedError("ModelRegistry: no such proposal")
        require(context.at < found.ends_at, "ModelRegistry: vote is over")
        require(call.amount > 0, "ModelRegistry: bad amount")
        self._check_take(context.sender, call.amount, allowed)

        def commit() -> list[LedgerEvent]:
            self._locked[call.proposal, context.sender] += call.amount
            held = self._proposals[call.proposal - 1]
            self._proposals[call.proposal - 1] = replace(
                held,
                votes_for=held.votes_for + call.amount * call.support,
                votes_against=held.votes_against + call.amount * (not call.support),
            )
            self._tokens.take(context.sender, self._registry, call.amount)
            return []

        return commit

    def _unlock(self, call: Unlock, at: int) -> Commit:
        found = self.proposal(call.proposal)
        require(found is not None and at >= found.ends_at, "ModelRegistry: vote is on")
        amount = self.locked(call.proposal, call.voter)
        require(amount > 0, "ModelRegistry: nothing locked")

        def commit() -> list[LedgerEvent]:
            del self._locked[call.proposal, call.voter]
            self._tokens.move(self._registry, call.voter, amount)
            return []

        return commit

    def _return_bond(self, call: ReturnBond, at: int) -> Commit:
        found = self.proposal(call.proposal)
        if found is None or at < found.ends_at:
            raise RevertedError("ModelRegistry: vote is on")
        require(found.bond > 0, "ModelRegistry: bond is back")

        def commit() -> list[LedgerEvent]:
            self._proposals[call.proposal - 1] = replace(found, bond=0)
            self._tokens.move(self._registry, found.proposer, found.bond)
            return []

        return commit

    def _attest(self, call: Attest, attester: bytes) -> Commit:
        def commit() -> list[LedgerEvent]:
            self._attestations[call.model, attester] = call.statement
            return []

        return commit

    def _check_take(self, owner: bytes, amount: int, allowed: Approve | None) -> None:
        given = allowed.amount if allowed is not None and allowed.spender == self._registry else None
        self._tokens.check_take(owner, self._registry, amount, given)
