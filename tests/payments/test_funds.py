"""Where the money is: sessions of this chain's market count, and others are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from p2pnode.chain.ledger import EscrowState
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.errors import ChainError
from p2pnode.ids import SessionId
from p2pnode.payments.books import Books, open_journal
from p2pnode.payments.funds import local_funds
from p2pnode.payments.settlement import close_session
from p2pnode.protocols.typed_data import market_domain, session_id
from tests.host.paid import domains
from tests.payments.journals import NOW, TERMS, Anything, bought, hosted

MARKET, OTHER = market_domain(1, b"\x11" * 20), market_domain(1, b"\x12" * 20)


async def test_what_was_earned_on_another_chain_is_not_counted_and_is_named(tmp_path: Path) -> None:
    earned = {MARKET: 700, OTHER: 153_020}
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        for market, amount in earned.items():
            session = session_id(market, TERMS)
            await journal.host_relaying(replace(hosted(1), session=session))
            await journal.host_open(session)
            await journal.host_over(session, NOW)
            await journal.host_settled(session, amount)
        for market, amount in earned.items():
            found = local_funds(journal, market, TERMS.payer, NOW)
            assert (found.earned, found.elsewhere) == (amount, 1)


class Closed(MemoryLedger):
    """Its first endpoint says that every session is closed; ``agreed``: and so does the second one."""

    agreed = False

    async def session(self, session: SessionId) -> EscrowState:
        return EscrowState(status="closed", recorded=TERMS.session_fee)

    async def confirmed(self, session: SessionId, state: EscrowState) -> bool:
        return self.agreed


async def test_a_session_closed_by_hand_is_over_only_when_two_endpoints_say_so(tmp_path: Path) -> None:
    ledger = Closed(MemoryChain(domains(), lambda: NOW))
    session = session_id(ledger.domains.market, TERMS)
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        await journal.bought(bought(1, session=session), Anything(), NOW)
        (record,) = journal.purchases()
        nothing = cast("Any", None)  # neither a wallet nor orders are needed to look
        books = Books(nothing, cast("Any", ledger), journal, nothing)
        with pytest.raises(ChainError, match="no second one"):
            await close_session(record, books, NOW)
        assert [each.state for each in journal.purchases()] == ["signed"]
        ledger.agreed = True
        assert (await close_session(record, books, NOW)).outcome == "nothing"
        assert [each.state for each in journal.purchases()] == ["settled"]
