"""What counts as kept: which replicas are counted, and what came of a write or a question. Pure values.

A write counts when ``quorum`` replicas have it that are neither this machine nor the host that serves the
conversation. Where there aren't enough others, the serving host is counted too, and then this machine: that
is reported (``weak``), since one loss may then take all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pnode.protocols.s5.entries import Entry
from p2pnode.storage.store import Place, Replica

QUORUM: Final = 2
_IN_ORDER: Final[tuple[Place, ...]] = ("other", "serving", "own")
_WEAK: Final[Mapping[Place, str]] = {
    "other": "",
    "serving": "the host that serves the conversation is counted as a replica: there aren't enough others",
    "own": "this machine is counted as a replica: there aren't enough others",
}


@dataclass(frozen=True, slots=True)
class Counted:
    """By which replicas a write is judged."""

    names: frozenset[str]
    quorum: int
    weak: str = ""

    def reached(self, acks: frozenset[str]) -> bool:
        """Do enough of the counted ones have it?"""
        return len(self.names & acks) >= self.quorum


def counted(replicas: Sequence[Replica], quorum: int = QUORUM) -> Counted:
    """Others where there are enough, with the serving host or this machine where there aren't."""
    names: set[str] = set()
    weak = ""
    for place in _IN_ORDER:
        if len(names) >= quorum:
            break
        found = {replica.name for replica in replicas if replica.place == place}
        names |= found
        weak = _WEAK[place] if found and place != "other" else weak
    if len(names) < quorum:
        weak = f"only {len(names)} of {quorum} places to keep it were found: name nodes that store (--store)"
    return Counted(frozenset(names), quorum, weak)


@dataclass(frozen=True, slots=True)
class Written:
    """What came of a write. ``failures`` says by replica why it does not have it."""

    entry: Entry
    acks: frozenset[str]
    counted: Counted
    failures: Mapping[str, str] = field(default_factory=dict)
    conflicts: tuple[Entry, ...] = ()
    """Entries of another writer that stand where ours should."""
    mended: Mapping[str, int] = field(default_factory=dict)
    """Blobs that a replica should have had and lacked, and has now."""

    @property
    def reached(self) -> bool:
        """Is it kept, as far as a quorum can say?"""
        return self.counted.reached(self.acks)


@dataclass(frozen=True, slots=True)
class Seen:
    """What replicas answered for one key, all asked at once."""

    entries: tuple[tuple[str, Entry], ...]
    """By replica; only entries whose signature holds."""
    empty: frozenset[str] = frozenset()
    """Replicas that know the key not."""
    failures: Mapping[str, str] = field(default_factory=dict)

    def newest_first(self) -> list[Entry]:
        """The different entries, the one that wins before those it replaces."""
        found: list[Entry] = []
        for _, entry in self.entries:
            if not any((entry.revision, entry.data) == (known.revision, known.data) for known in found):
                place = next((at for at, known in enumerate(found) if entry.replaces(known)), len(found))
                found.insert(place, entry)
        return found

    def highest(self, counted: Counted) -> int:
        """The revision that the counted replicas show; 0 where they know nothing."""
        return max((entry.revision for name, entry in self.entries if name in counted.names), default=0)

    def rolled_back(self, revision: int, counted: Counted) -> bool:
        """Do so many show less than an acknowledged ``revision`` that a quorum can't have kept it?

        Of every quorum that acknowledged it one at least is among them.
        """
        behind = set(self.empty) | {name for name, entry in self.entries if entry.revision < revision}
        ahead = self.highest(counted) >= revision
        return not ahead and len(behind & counted.names) > len(counted.names) - counted.quorum
