"""What became of a client's paid sessions: the chain is asked, the journal told.

A client need not come back for its money; it looks when its caps or its funds run out, or when its owner
asks. Sessions of another market than the ledger's are left alone.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from p2pnode.chain.ledger import EscrowState, Ledger
from p2pnode.errors import LocalError
from p2pnode.payments.funds import CHALLENGE_S
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.protocols.typed_data import session_id

EXPIRED_S: Final = 120
"""This long past its end an authorisation that the chain never saw is taken for dead (clocks, reorgs)."""
_QUESTIONS: Final = 8
log = structlog.get_logger()


async def reconcile(journal: Journal, ledger: Ledger, now: int) -> None:
    """Ask about every session that isn't known to be over. Raises ``UnavailableError``."""
    limiter = trio.CapacityLimiter(_QUESTIONS)
    failures: list[LocalError] = []
    dead_before = min((await ledger.head()).timestamp, now) - EXPIRED_S

    async def ask(bought: BoughtSession) -> None:
        async with limiter:
            state = await ledger.session(bought.session)
        match state.status:
            case "closed" if not await believable(bought, state):
                log.warning("session.not_believed", session=bought.session.hex()[:16], amount=state.recorded)
            case "closed":
                await journal.bought_settled(bought.session, state.recorded, now)
            case "open":
                await journal.bought_mined(bought.session)
            case "none":
                if bought.valid_before < dead_before:
                    await journal.bought_expired(bought.session)

    async def believable(bought: BoughtSession, state: EscrowState) -> bool:
        """Whether it may be settled so. That frees the user's caps: one endpoint's "closed, 0" must not.

        No settlement pays less than the fee or more than the deposit; and where there is a second endpoint,
        it has to say the same, until nothing can be taken any more.
        """
        possible = bought.terms.session_fee <= state.recorded <= bought.terms.deposit
        past = now > bought.terms.expiry + CHALLENGE_S
        return possible and (past or await ledger.confirmed(bought.session, state))

    async def ask_or_note(bought: BoughtSession) -> None:
        try:
            await ask(bought)
        except LocalError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for bought in journal.purchases("signed", "open", "over"):
            if session_id(ledger.domains.market, bought.terms) == bought.session:
                nursery.start_soon(ask_or_note, bought)
    if failures:
        raise failures[0]
