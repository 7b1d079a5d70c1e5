"""Opinions on models: proposals, votes, bonds and attestations, as calls, in words, and what is refused."""

from __future__ import annotations

from p2pnode.chain.ledger import Approve, Attest, Propose, ReturnBond, Unlock, Vote
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.contract_rules import BOND, MANIFEST_BYTES_MAX, QUORUM, VOTING_S
from p2pnode.ids import ModelId
from p2pnode.payments.plans import Plan, quote
from p2pnode.payments.votes import (
    VoteStanding,
    attest,
    outcome_text,
    proposal_of,
    propose,
    return_bond,
    revoke,
    unlock,
    vote,
    vote_standing,
)
from tests.chain.contracts.support import ADDRESS, FAB
from tests.chain.memory_world import MEMORY_DOMAINS, START
from tests.payments.refusals import refused

HOST, RIVAL = ADDRESS["host"], ADDRESS["rival"]
MANIFEST = b'{"n_ctx":2048}'
MODEL = ModelId(b"\7" * 32)


class Votes:
    """Two holders of FAB on a chain in memory, whose time is set."""

    def __init__(self, *, fab: int = 2 * QUORUM) -> None:
        self.now = START
        self.chain = MemoryChain(MEMORY_DOMAINS, lambda: self.now)
        for account in (HOST, RIVAL):
            self.chain.mint_fab(account, fab)

    def ledger(self, account: bytes = HOST) -> MemoryLedger:
        return MemoryLedger(self.chain, account)

    async def carry_out(self, plan: Plan, account: bytes = HOST) -> None:
        await quote(self.ledger(account), plan, account)
        for call in plan.calls:
            await self.ledger(account).transact(call)

    async def proposal(self, manifest: bytes = MANIFEST, *, open_one: int | None = None) -> Plan:
        fab = await self.ledger().fab(HOST)
        registry = MEMORY_DOMAINS.model_registry
        return propose(manifest, "tiny", fab, account=HOST, registry=registry, open_one=open_one)

    async def standing(self, account: bytes = HOST, number: int = 1) -> VoteStanding:
        return await vote_standing(self.ledger(account), account, number)

    async def vote(self, account: bytes, amount: int, *, support: bool = True, more: bool = False) -> None:
        found = await self.standing(account)
        await self.carry_out(vote(found, "tiny", amount, support=support, more=more), account)


async def test_a_proposal_takes_a_bond_and_says_that_it_comes_back() -> None:
    votes = Votes()
    plan = await votes.proposal()
    assert plan.calls == (Approve(MEMORY_DOMAINS.model_registry, BOND), Propose(MANIFEST))
    assert "1000 FAB as a bond" in plan.words[1]
    assert "whatever the outcome" in plan.words[1]
    await votes.carry_out(plan)
    found = await proposal_of(votes.ledger(), 1)
    assert (found.bond, found.proposer, found.ends_at) == (BOND, HOST, START + VOTING_S)


async def test_what_can_not_be_proposed_is_refused_in_words() -> None:
    votes = Votes(fab=BOND - 1)
    with refused("no_fab", "bond of a proposal takes 1000 FAB"):
        await votes.proposal()
    with refused("refused", "32769 bytes", "32768 at most"):
        await votes.proposal(bytes(MANIFEST_BYTES_MAX + 1))
    with refused("already_proposed", "as proposal 4", "--again"):
        await votes.proposal(open_one=4)
    with refused("no_proposal", "there is none yet"):
        await votes.standing()


async def test_a_vote_says_how_long_it_locks_and_a_second_one_is_asked_for() -> None:
    votes = Votes()
    await votes.carry_out(await votes.proposal())
    found = await votes.standing()
    plan = vote(found, "tiny", 500 * FAB, support=False, more=False)
    assert plan.calls[-1] == Vote(1, False, 500 * FAB)
    assert "Vote against proposal 1 (tiny) with 500 FAB" in plan.words[-1]
    assert "locked until 2027-01-22" in plan.words[-1]
    await votes.carry_out(plan)
    found = await votes.standing()
    with refused("voted_already", "with 500 FAB already", "--more"):
        vote(found, "tiny", FAB, support=True, more=False)
    await votes.vote(HOST, FAB, more=True)
    assert (await votes.standing()).locked == 501 * FAB
    with refused("no_fab", "501 FAB are locked in it already"):
        vote(await votes.standing(), "tiny", 2 * QUORUM, support=True, more=True)
    with refused("too_little"):
        vote(found, "tiny", 0, support=True, more=True)
    with refused("no_proposal", "numbered from 1 to 1"):
        await votes.standing(number=2)


async def test_nothing_comes_back_before_the_end_and_all_after_it() -> None:
    votes = Votes()
    await votes.carry_out(await votes.proposal())
    await votes.vote(HOST, QUORUM)
    await votes.vote(RIVAL, QUORUM - 1, support=False)
    votes.now = START + VOTING_S - 1
    found = await votes.standing()
    assert outcome_text(found.proposal, found.now).startswith("open until 2027-01-22")
    with refused("vote_on", "10000000 FAB are locked until", "2027-01-22"):
        unlock(found)
    with refused("vote_on", "the bond of 1000 FAB stays until"):
        return_bond(found, for_another=False)
    votes.now += 1
    found = await votes.standing()
    assert outcome_text(found.proposal, found.now).startswith("accepted (10000000 FAB for")
    with refused("vote_over", "ended on 2027-01-22", "accepted"):
        vote(found, "tiny", 1, support=True, more=True)
    assert unlock(found).calls == (Unlock(1, HOST),)
    await votes.carry_out(unlock(found))
    with refused("nothing_locked"):
        unlock(await votes.standing())
    rival = await votes.standing(RIVAL)
    with refused("not_proposer", "--for-another"):
        return_bond(rival, for_another=False)
    plan = return_bond(rival, for_another=True)
    assert plan.calls == (ReturnBond(1),)
    await votes.carry_out(plan, RIVAL)
    with refused("bond_is_back"):
        return_bond(await votes.standing(), for_another=False)
    assert votes.chain.fab(HOST).balance == 2 * QUORUM


async def test_the_outcome_says_why_a_model_is_not_accepted() -> None:
    for yes, no, why in (
        (QUORUM - 1, 0, "no quorum: 10000000 FAB for are needed"),
        (QUORUM, QUORUM, "no majority"),
        (0, 0, "no majority"),
    ):
        votes = Votes()
        await votes.carry_out(await votes.proposal())
        for account, amount, support in ((HOST, yes, True), (RIVAL, no, False)):
            if amount:
                await votes.vote(account, amount, support=support)
        votes.now = START + VOTING_S
        found = await votes.standing()
        assert why in outcome_text(found.proposal, found.now)


async def test_an_attestation_is_said_changed_and_taken_back() -> None:
    votes = Votes()
    nothing = bytes(32)
    plan = attest(MODEL, "tiny", b"\1" * 32, nothing)
    assert plan.calls == (Attest(MODEL, b"\1" * 32),)
    assert ("01" * 32) in plan.words[0]
    await votes.carry_out(plan)
    held = await votes.ledger().attestation(MODEL, HOST)
    with refused("already_attested"):
        attest(MODEL, "tiny", b"\1" * 32, held)
    assert "takes the place" in attest(MODEL, "tiny", b"\2" * 32, held).words[0]
    await votes.carry_out(revoke(MODEL, "tiny", held))
    with refused("not_attested"):
        revoke(MODEL, "tiny", await votes.ledger().attestation(MODEL, HOST))
