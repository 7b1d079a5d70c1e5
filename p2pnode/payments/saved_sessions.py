"""A paid session in the journal and in the sealed index: so that money recovers with the words. Pure."""

from __future__ import annotations

from p2pnode.payments.journal.journal import BoughtSession
from p2pnode.protocols.inference.messages import Receipt, Voucher
from p2pnode.storage.conversations.records import SavedSession


def last_voucher(record: BoughtSession) -> Voucher | None:
    """The best there is; of a session that is over the last, which is what its host is owed."""
    return (record.final or record.voucher) if record.state == "over" else record.voucher


def saved_of(record: BoughtSession, receipt: Receipt | None) -> SavedSession:
    """What another machine needs of it. ``receipt`` is the one that :func:`last_voucher` goes on from."""
    return SavedSession(
        session=record.session,
        terms=record.terms,
        voucher_secret=record.voucher_secret,
        host=record.host,
        addresses=record.addresses,
        valid_before=record.valid_before,
        opened_at=record.opened_at,
        voucher=last_voucher(record),
        receipt=receipt,
        over=record.state == "over",
    )


def bought_of(saved: SavedSession) -> BoughtSession:
    """A purchase that was made elsewhere. What became of it since, the chain says."""
    return BoughtSession(
        session=saved.session,
        terms=saved.terms,
        voucher_secret=saved.voucher_secret,
        host=saved.host,
        addresses=saved.addresses,
        valid_before=saved.valid_before,
        opened_at=saved.opened_at,
        state="over" if saved.over else "signed",
        voucher=saved.voucher,
    )
