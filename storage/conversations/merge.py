"""What becomes of a log that several machines of the user wrote. Pure.

The index is merged: in whatever order they read, all machines come to the same list. Of two records of one
conversation "forgotten" wins, then the later one; of one session the one that is over, then the one of the
later generation, then the one with the highest voucher, then the one that says it was left. The rule is
commutative, associative and idempotent.

A conversation forks. The higher revision wins, at the same revision the smaller hash (``Entry.replaces``), so
that both writers come to the same result. The other is never dropped: the winner's next manifest names it as
a branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias

from p2pnode.protocols.s5.entries import Entry, pointer_to
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.protocols.wire import encode
from p2pnode.storage.conversations.records import INDEX_CODEC, Head, IndexRecord, Link, SavedConversation

SESSION_KEPT_S: Final = 30 * 86_400
"""A session is forgotten so long after its terms expired: nothing is left to pay or to be paid back then."""


def id_of(record: IndexRecord) -> bytes:
    """The id of a record: 16 bytes for a conversation, 32 for a session."""
    return record.sid if isinstance(record, SavedConversation) else record.session


def better(first: IndexRecord, other: IndexRecord) -> IndexRecord:
    """Which of two records with one id is kept."""
    return max(first, other, key=_weight)


def merged(records: Iterable[IndexRecord]) -> dict[bytes, IndexRecord]:
    """By id, the record that is kept of all those with the id."""
    found: dict[bytes, IndexRecord] = {}
    for record in records:
        key = id_of(record)
        found[key] = better(found[key], record) if key in found else record
    return found


def improvements(known: Mapping[bytes, IndexRecord], new: Mapping[bytes, IndexRecord]) -> list[IndexRecord]:
    """Those of the ``new`` records that are better than the known ones."""
    return [each for key, each in new.items() if key not in known or better(known[key], each) != known[key]]


def live(records: Iterable[IndexRecord], now: float) -> list[IndexRecord]:
    """The records without sessions that can't matter any more."""
    return [
        record
        for record in records
        if isinstance(record, SavedConversation) or record.terms.expiry + SESSION_KEPT_S > now
    ]


def parse_index(record: bytes) -> IndexRecord:
    """Parse a record of the index. Raises ``ProtocolError``."""
    found: IndexRecord = INDEX_CODEC.decode(record)
    return found


def _weight(record: IndexRecord) -> tuple[tuple[int, ...], bytes]:
    if isinstance(record, SavedConversation):
        return (int(record.gone), record.updated), encode(record)
    amount, seq = (-1, 0) if record.voucher is None else (record.voucher.amount, record.voucher.seq)
    is_left = record.left_until is not None
    return (int(record.over), record.generation, amount, seq, int(is_left)), encode(record)


# ---- two writers of one log


Relation: TypeAlias = Literal["behind", "ahead", "fork", "unreadable"]
"""How another writer's manifest relates to our head. ``behind``: our head builds on it. ``ahead``: it builds
on our head. ``fork``: neither does. ``unreadable``: no replica that answered has it."""
Step: TypeAlias = Literal["nothing", "note it unread", "keep ours", "wait", "follow", "rebase"]


def relation(ours: Head | None, other: Head) -> Relation:
    """How ``other``, which was read, relates to our head."""
    if ours is not None and ours.manifest.builds_on(other.manifest):
        return "behind"
    if ours is None or other.manifest.builds_on(ours.manifest):
        return "ahead"
    return "fork"


def next_step(found: Relation, ours: Link | None, other: Link, *, in_turn: bool) -> Step:
    """What a conversation does about another writer's manifest.

    ``keep ours``: our next manifest names the other as a branch. ``follow``: the other becomes our head.
    ``rebase``: the other becomes our head, and ours its branch. Neither happens in the middle of a turn.
    """
    match found:
        case "behind":
            return "nothing"
        case "unreadable":
            return "note it unread"
        case "fork" if ours is not None and wins(ours, other):
            return "keep ours"
        case _ if in_turn:
            return "wait"
        case "fork":
            return "rebase"
        case "ahead":
            return "follow"


def wins(first: Link, other: Link) -> bool:
    """Whether a registry that has ``other`` would replace it by ``first``."""
    if first.seq != other.seq:
        return first.seq > other.seq
    return hash_of(pointer_to(first.hash)) < hash_of(pointer_to(other.hash))


def link_of(entry: Entry) -> Link:
    """The manifest that an entry points at; a hash that nobody has where it points at nothing."""
    return Link(seq=entry.revision, hash=entry.points_at or BlobHash(hash_of(entry.data)))
