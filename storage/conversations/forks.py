"""Two writers of one log: how another's manifest stands to our head, and which one goes on.

The higher revision wins, at the same one the smaller hash (``Entry.replaces``), so that both writers come to
the same result. The other is never dropped: the winner's next manifest names it as a branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.entries import Entry, pointer_to
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.storage.conversations.reader import Head, Reader
from p2pnode.storage.conversations.records import Link
from p2pnode.storage.replication.replication import BlobLostError
from p2pnode.storage.sealing import SealError

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
