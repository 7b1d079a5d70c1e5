"""Evidence against hosts: two receipts for one place, shown to the contract, which takes the host's stake.

Each pair is shown once, and the journal has what came of it. One that the contract refuses for good (the
place was punished before, nothing is at stake, the session was never opened) is not tried again; one that
could not be sent is. Knows nothing of how evidence was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from p2pnode.chain.ledger import Ledger, RevertedError, Slash, Slashed
from p2pnode.payments.journal.journal import Evidence, Journal
from p2pnode.payments.orders import Orders
from p2pnode.protocols.typed_data import session_id

log = structlog.get_logger()
_FAB: Final = 10**18


@dataclass(frozen=True, slots=True)
class Accusation:
    """What came of one pair of receipts. ``reward`` is in FAB wei."""

    evidence: Evidence
    reward: int
    words: str


async def submit_evidence(journal: Journal, ledger: Ledger, orders: Orders | None = None) -> list[Accusation]:
    """Submit the evidence of this market that has no outcome yet. Raises ``ChainError``.

    ``orders`` is None for a ledger in memory: nothing can be on its way from an earlier process.
    """
    market = ledger.domains.market
    return [
        await _submit(each, journal, ledger, orders)
        for each in journal.evidence()
        if not each.outcome and session_id(market, each.terms) == each.session
    ]


async def _submit(evidence: Evidence, journal: Journal, ledger: Ledger, orders: Orders | None) -> Accusation:
    call = Slash(evidence.terms, evidence.one, evidence.other)
    try:
        # An earlier process may have been cut off while its order landed: the contract refuses a second one.
        outcome = None if orders is None else await orders.carried_out(call)
        if outcome is None:
            await ledger.check(call)
            outcome = await (ledger if orders is None else orders).transact(call)
    except RevertedError as error:
        await journal.evidence_submitted(evidence, f"refused: {error.reason}")
        return Accusation(evidence, 0, f"the contract refused: {error.reason}")
    slashed = next((each for each in outcome.events if isinstance(each, Slashed)), None)
    lost, reward = (slashed.amount, slashed.reward) if slashed is not None else (0, 0)
    await journal.evidence_submitted(evidence, f"slashed: {outcome.transaction.hex()}")
    log.info("host.slashed", session=evidence.session.hex()[:16], amount=lost, reward=reward)
    words = f"host {evidence.host} lost its stake of {lost / _FAB:g} FAB; {reward / _FAB:g} of it are yours"
    return Accusation(evidence, reward, words)
