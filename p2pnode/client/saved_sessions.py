"""A paid session in the journal and in the sealed index: so that money recovers with the words. Pure."""

from __future__ import annotations

from p2pnode.node.journal import BoughtSession
from p2pnode.storage.conversations.records import SavedSession


def saved_of(record: BoughtSession) -> SavedSession:
    """What another machine needs of it."""
    return SavedSession(
        session=record.session,
        terms=record.terms,
        voucher_secret=record.voucher_secret,
        host=record.host,
        addresses=record.addresses,
        valid_before=record.valid_before,
        opened_at=record.opened_at,
        voucher=record.voucher,
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
        voucher=saved.voucher,
    )
