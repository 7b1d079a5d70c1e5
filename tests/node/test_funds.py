"""Where the money is: sessions of this chain's market count, and others are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from p2pnode.node.funds import local_funds
from p2pnode.node.money import open_journal
from p2pnode.protocols.typed_data import market_domain, session_id
from tests.node.journals import NOW, TERMS, hosted

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
