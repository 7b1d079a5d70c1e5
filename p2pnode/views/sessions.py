"""A paid session of the journal, as it is told to people and programs. Pure; amounts are token units."""

from __future__ import annotations

from typing import Any

from p2pnode.chain.addresses import shown_address
from p2pnode.payments.journal.journal import BoughtSession, HostedSession


def session_fields(record: BoughtSession | HostedSession) -> dict[str, Any]:
    """A session in a list. ``as``: what this data dir is in it, client or host."""
    bought = isinstance(record, BoughtSession)
    return {
        "session": record.session.hex(),
        "as": "client" if bought else "host",
        "state": record.state,
        "peer": record.host if isinstance(record, BoughtSession) else record.peer,
        "deposit": record.terms.deposit,
        "amount": record.due,
    }


def terms_fields(record: BoughtSession | HostedSession) -> dict[str, Any]:
    """Its terms, and how far its best voucher goes. Times are epoch seconds."""
    terms, voucher = record.terms, record.voucher
    return {
        "payer": shown_address(terms.payer),
        "host": shown_address(terms.host),
        "price_in": terms.price_in,
        "price_out": terms.price_out,
        "session_fee": terms.session_fee,
        "tip": terms.tip,
        "expiry": terms.expiry,
        "valid_before": record.valid_before,
        "tokens_in": voucher.tokens_in if voucher is not None else 0,
        "tokens_out": voucher.tokens_out if voucher is not None else 0,
    }
