"""Opinions on models in ``ModelRegistry``: proposals, votes, bonds, attestations, as calls and in words. Pure
but for ``vote_standing``, which reads the chain.

Nothing here gates anything: no host needs a vote to serve a model. FAB that votes is locked in its proposal
until that vote ends, so no token votes twice on one. A proposer's bond comes back whatever the outcome.
Amounts are FAB's smallest unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.ledger import (
    Attest,
    FabState,
    Proposal,
    Propose,
    RegistryLedger,
    ReturnBond,
    Unlock,
    Vote,
)
from p2pnode.contract_rules import BOND, MANIFEST_BYTES_MAX, QUORUM, VOTING_S
from p2pnode.ids import ModelId
from p2pnode.money import fab_text
from p2pnode.payments.plans import Plan, PlanError, day_text, require_fab, with_allowance
from p2pnode.words import span


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteStanding:
    """A proposal, and how a wallet stands to it; ``now`` is the time on the chain."""

    account: bytes
    registry: bytes
    proposal: Proposal
    locked: int
    """What the account has locked in it."""
    fab: FabState
    now: int


async def vote_standing(ledger: RegistryLedger, account: bytes, number: int) -> VoteStanding:
    """Read it. Raises ``PlanError`` where there is no such proposal, and ``ChainError``."""
    return VoteStanding(
        account=account,
        registry=ledger.domains.model_registry,
        proposal=await proposal_of(ledger, number),
        locked=await ledger.locked(number, account),
        fab=await ledger.fab(account),
        now=(await ledger.head()).timestamp,
    )


async def proposal_of(ledger: RegistryLedger, number: int) -> Proposal:
    """A proposal. Raises ``PlanError`` where there is none of this number."""
    found = await ledger.proposal(number)
    if found is None:
        count = await ledger.proposal_count()
        there = f"they are numbered from 1 to {count}" if count else "there is none yet"
        raise PlanError("no_proposal", f"there is no proposal {number}: {there}")
    return found


def propose(
    manifest: bytes, name: str, fab: FabState, *, account: bytes, registry: bytes, open_one: int | None
) -> Plan:
    """Put a model to the vote. ``open_one``: the number of a proposal of the same model that is voted on now.

    Raises ``PlanError``.
    """
    if open_one is not None:
        raise PlanError(
            "already_proposed",
            f"{name} is voted on already, as proposal {open_one}: vote on that, or add --again",
        )
    if len(manifest) > MANIFEST_BYTES_MAX:
        raise PlanError(
            "refused",
            f"the manifest of {name} has {len(manifest)} bytes, and the contract takes "
            f"{MANIFEST_BYTES_MAX} at most: a model of fewer files can be proposed",
        )
    require_fab(BOND, fab.balance, account, "the bond of a proposal")
    words = (
        f"Propose the model {name}, and leave {fab_text(BOND)} as a bond. The vote lasts {span(VOTING_S)}; "
        "then `p2pnode models bond NUMBER` brings the bond back, whatever the outcome. The manifest is "
        "public for ever."
    )
    return with_allowance(Propose(manifest), words, spender=registry, amount=BOND, allowed=fab.to_models)


def vote(found: VoteStanding, name: str, amount: int, *, support: bool, more: bool) -> Plan:
    """Vote with ``amount``; ``more`` where the account may have voted already. Raises ``PlanError``."""
    proposal = found.proposal
    if proposal.is_over(found.now):
        raise PlanError(
            "vote_over",
            f"the vote on proposal {proposal.number} ended on {day_text(proposal.ends_at)}: "
            f"{outcome_text(proposal, found.now)}",
        )
    if found.locked and not more:
        raise PlanError(
            "voted_already",
            f"this wallet voted on proposal {proposal.number} with {fab_text(found.locked)} already: --more "
            "adds to that",
        )
    if amount <= 0:
        raise PlanError("too_little", "a vote is of more than 0 FAB")
    locked = f" ({fab_text(found.locked)} are locked in it already)" if found.locked else ""
    require_fab(amount, found.fab.balance, found.account, f"this vote{locked}")
    words = (
        f"Vote {'for' if support else 'against'} proposal {proposal.number} ({name}) with "
        f"{fab_text(amount)}. They are locked until {day_text(proposal.ends_at)} and can't be taken back "
        f"before; then `p2pnode models unlock {proposal.number}` brings them back."
    )
    call = Vote(proposal.number, support, amount)
    return with_allowance(call, words, spender=found.registry, amount=amount, allowed=found.fab.to_models)


def unlock(found: VoteStanding) -> Plan:
    """Get back what voted. Raises ``PlanError``, which says when that can be."""
    proposal = found.proposal
    if found.locked == 0:
        raise PlanError("nothing_locked", f"this wallet has nothing locked in proposal {proposal.number}")
    _require_over(found, f"{fab_text(found.locked)} are locked")
    words = f"Bring {fab_text(found.locked)} back from proposal {proposal.number} to this wallet."
    return Plan((Unlock(proposal.number, found.account),), (words,))


def return_bond(found: VoteStanding, *, for_another: bool) -> Plan:
    """Bring a bond back to its proposer; ``for_another`` where that may be another account.

    Raises ``PlanError``.
    """
    proposal = found.proposal
    if proposal.bond == 0:
        raise PlanError("bond_is_back", f"the bond of proposal {proposal.number} was given back already")
    if proposal.proposer != found.account and not for_another:
        raise PlanError(
            "not_proposer",
            f"proposal {proposal.number} is of {shown_address(proposal.proposer)}, and its bond goes there: "
            "--for-another sends it all the same, at this wallet's gas",
        )
    _require_over(found, f"the bond of {fab_text(proposal.bond)} stays")
    words = (
        f"Bring the bond of {fab_text(proposal.bond)} of proposal {proposal.number} back to "
        f"{shown_address(proposal.proposer)}."
    )
    return Plan((ReturnBond(proposal.number),), (words,))


def attest(model: ModelId, name: str, statement: bytes, held: bytes) -> Plan:
    """Say something of a model, by the hash of a statement. ``held``: what the account says of it now.

    Raises ``PlanError``.
    """
    if statement == held:
        raise PlanError("already_attested", f"this wallet says exactly that of {name} already")
    words = (
        f"Attest the model {name} in this wallet's name, with the statement whose SHA-256 is "
        f"{statement.hex()}. Anyone who has the statement can check it."
    )
    if any(held):
        words += " It takes the place of what this wallet says now."
    return Plan((Attest(model, statement),), (words,))


def revoke(model: ModelId, name: str, held: bytes) -> Plan:
    """Take an attestation back. Raises ``PlanError``."""
    if not any(held):
        raise PlanError("not_attested", f"this wallet attests nothing of {name}")
    words = f"Take back what this wallet says of the model {name}. That it once did stays on the record."
    return Plan((Attest(model, bytes(len(held))),), (words,))


def outcome_text(proposal: Proposal, now: int) -> str:
    """How a vote stands or ended, in words."""
    votes = f"{fab_text(proposal.votes_for)} for, {fab_text(proposal.votes_against)} against"
    quorum = f"{fab_text(QUORUM)} for are needed"
    if not proposal.is_over(now):
        short = "" if proposal.has_quorum else f"; {quorum}"
        return f"open until {day_text(proposal.ends_at)} ({votes}{short})"
    if proposal.is_accepted(now):
        return f"accepted ({votes})"
    why = f"no quorum: {quorum}" if proposal.has_majority else "no majority"
    return f"not accepted, {why} ({votes})"


def _require_over(found: VoteStanding, what: str) -> None:
    proposal = found.proposal
    if not proposal.is_over(found.now):
        raise PlanError(
            "vote_on",
            f"{what} until the vote on proposal {proposal.number} ends, on {day_text(proposal.ends_at)} (in "
            f"{span(proposal.ends_at - found.now)})",
        )
