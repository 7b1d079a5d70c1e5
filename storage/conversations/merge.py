"""The index as a union: whoever wrote, in whatever order, all devices come to the same list. Pure.

Of two records of one conversation "forgotten" wins, then the later; of one session the one that is over,
then the one with the highest voucher. The rule is commutative, associative and idempotent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2pnode.protocols.wire import encode
from p2pnode.storage.conversations.records import INDEX_CODEC, IndexRecord, SavedConversation

SESSION_KEPT_S: Final = 30 * 86_400
"""After its terms expired there is nothing left to pay or to be paid back."""


def id_of(record: IndexRecord) -> bytes:
    """16 bytes for a conversation, 32 for a session."""
    return record.sid if isinstance(record, SavedConversation) else record.session


def better(first: IndexRecord, other: IndexRecord) -> IndexRecord:
    """The one to keep, of two under one id."""
    return max(first, other, key=_weight)


def union(records: Iterable[IndexRecord]) -> dict[bytes, IndexRecord]:
    """The record to keep under each id."""
    found: dict[bytes, IndexRecord] = {}
    for record in records:
        key = id_of(record)
        found[key] = better(found[key], record) if key in found else record
    return found


def live(records: Iterable[IndexRecord], now: float) -> list[IndexRecord]:
    """Without sessions that can't matter any more."""
    return [
        record
        for record in records
        if isinstance(record, SavedConversation) or record.terms.expiry + SESSION_KEPT_S > now
    ]


def parse_index(record: bytes) -> IndexRecord:
    """A record of the index. Raises ``ProtocolError``."""
    found: IndexRecord = INDEX_CODEC.decode(record)
    return found


def _weight(record: IndexRecord) -> tuple[int, int, int, bytes]:
    if isinstance(record, SavedConversation):
        return int(record.gone), record.updated, 0, encode(record)
    if record.voucher is None:
        return int(record.over), -1, 0, encode(record)
    return int(record.over), record.voucher.amount, record.voucher.seq, encode(record)
