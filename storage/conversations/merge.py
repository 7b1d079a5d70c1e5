"""The index as a union: whoever wrote, in whatever order, all devices come to the same list. Pure.

Of two records of one conversation "forgotten" wins, then the later; of one session the one that is over,
then the one with the highest voucher. The rule is commutative, associative and idempotent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.entries import Entry, pointer_to
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.protocols.wire import encode
from p2pnode.storage.conversations.reader import Head, Reader
from p2pnode.storage.conversations.records import INDEX_CODEC, IndexRecord, Link, SavedConversation
from p2pnode.storage.replication.replication import BlobLostError
from p2pnode.storage.sealing import SealError

SESSION_KEPT_S: Final = 30 * 86_400
"""After its terms expired there is nothing left to pay or to be paid back."""


def id_of(record: IndexRecord) -> bytes:
    """16 bytes for a conversation, 32 for a session."""
    return record.sid if isinstance(record, SavedConversation) else record.session


def better(first: IndexRecord, other: IndexRecord) -> IndexRecord:
    """The one to keep, of two under one id."""
    return max(first, other, key=_weight)


def merged(records: Iterable[IndexRecord]) -> dict[bytes, IndexRecord]:
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


# Two writers of one log: how another's manifest stands to our head, and which one goes on.
#
# The higher revision wins, at the same one the smaller hash (``Entry.replaces``), so that both writers come
# to
# the same result. The other is never dropped: the winner's next manifest names it as a branch.


Relation: TypeAlias = Literal["behind", "ahead", "fork", "unreadable"]


@dataclass(frozen=True, slots=True)
class Stands:
    """How another's manifest stands to our head; ``why`` it can't be read."""

    relation: Relation
    other: Head | None = None
    why: str = ""


async def compare(reader: Reader, ours: Head | None, link: Link) -> Stands:
    """``behind``: our head builds on it; ``ahead``: it builds on our head; ``fork``: neither."""
    if ours is not None and ours.link == link:
        return Stands("behind", ours)
    try:
        other = Head(link, await reader.manifest(link))
    except (BlobLostError, SealError, ProtocolError) as error:
        return Stands("unreadable", why=str(error))
    if ours is not None and ours.manifest.builds_on(other.manifest):
        return Stands("behind", other)
    if ours is None or other.manifest.builds_on(ours.manifest):
        return Stands("ahead", other)
    return Stands("fork", other)


def wins(first: Link, other: Link) -> bool:
    """Would a registry that has ``other`` take ``first`` for it?"""
    if first.seq != other.seq:
        return first.seq > other.seq
    return hash_of(pointer_to(first.hash)) < hash_of(pointer_to(other.hash))


def link_of(entry: Entry) -> Link:
    """The manifest an entry points at. What points at nothing is a hash that nobody has."""
    return Link(seq=entry.revision, hash=entry.points_at or BlobHash(hash_of(entry.data)))
