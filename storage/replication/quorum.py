"""What counts as kept: which replicas are counted, and what came of a write or a question. Pure.

A write is kept when ``quorum`` replicas have it that are neither this machine nor the host that serves the
conversation. Where there aren't enough others, the serving host is counted too, and then this machine: that
is reported (``weak``), since one loss may then take all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pnode.protocols.s5.entries import Entry
from p2pnode.storage.store import Place, Placed

QUORUM: Final = 2
_IN_ORDER: Final[tuple[Place, ...]] = ("other", "serving", "own")
_WEAK: Final[Mapping[Place, str]] = {
    "other": "",
    "serving": "the host that serves the conversation is counted as a replica: there aren't enough others",
    "own": "this machine is counted as a replica: there aren't enough others",
}


@dataclass(frozen=True, slots=True)
class Counted:
    """The replicas by which a write is judged, and how many of them must have it."""

    names: frozenset[str]
    quorum: int
    weak: str = ""

    def reached(self, acks: frozenset[str]) -> bool:
        """Whether enough of the counted ones have it."""
        return len(self.names & acks) >= self.quorum


def counted(replicas: Sequence[Placed], quorum: int = QUORUM) -> Counted:
    """Count the others where there are enough; else the serving host too, and then this machine."""
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
    """What came of a write. ``failures``: by replica, why it does not have it."""

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
        """Whether a quorum has it."""
        return self.counted.reached(self.acks)


class WriteRound:
    """One write of an entry and its blobs to several replicas: what came of it so far, and what may follow.

    A replica first gets the blobs. The pointer may move once a quorum has them all, or no more replicas can
    have them now: on no replica does a pointer come before its blobs.
    """

    def __init__(self, entry: Entry, replicas: int, counted: Counted) -> None:
        self._entry, self.counted = entry, counted
        self._writing_blobs = self._unfinished = replicas
        self._have_blobs: set[str] = set()
        self._acks: set[str] = set()
        self._conflicts: list[Entry] = []
        self._mended: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        """By replica, why it does not have it."""

    @property
    def may_point(self) -> bool:
        """Whether the pointer may move where the blobs are."""
        return not self._writing_blobs or self.counted.reached(frozenset(self._have_blobs))

    @property
    def decided(self) -> bool:
        """Whether the write is kept, or will not be."""
        return not self._unfinished or self.counted.reached(frozenset(self._acks))

    @property
    def over(self) -> bool:
        """Whether no replica is being written to any more."""
        return not self._unfinished

    @property
    def in_conflict(self) -> bool:
        """Whether another writer's entry was found: ours moves nowhere else then."""
        return bool(self._conflicts)

    def blobs_over(self, replica: str, *, there: bool) -> None:
        """A replica has all blobs, and its pointer may move; or it failed. Once for each replica."""
        self._writing_blobs -= 1
        if there:
            self._have_blobs.add(replica)

    def acknowledged(self, replica: str) -> None:
        """A replica has the pointer."""
        self._acks.add(replica)

    def has_acknowledged(self, replica: str) -> bool:
        """Whether it has the pointer."""
        return replica in self._acks

    def conflict(self, replica: str, current: Entry) -> None:
        """Another writer's entry stands there."""
        self.failures[replica] = f"another writer's revision {current.revision} stands there"
        self._conflicts.append(current)

    def mended(self, replica: str) -> None:
        """A blob that should have been there was missing, and is there now."""
        self._mended[replica] = self._mended.get(replica, 0) + 1

    def finished(self) -> None:
        """One replica is done with, whatever came of it. Once for each replica."""
        self._unfinished -= 1

    def outcome(self) -> Written:
        """What came of it so far."""
        return Written(
            self._entry, frozenset(self._acks), self.counted, dict(self.failures),
            tuple(self._conflicts), dict(self._mended),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """What replicas answered for one key, all asked at once."""

    entries: tuple[tuple[str, Entry], ...]
    """By replica; only entries whose signature holds."""
    empty: frozenset[str] = frozenset()
    """Replicas that have no entry of the key."""
    failures: Mapping[str, str] = field(default_factory=dict)

    def newest_first(self) -> list[Entry]:
        """The different entries, each before those that it replaces."""
        found: list[Entry] = []
        for _, entry in self.entries:
            if not any((entry.revision, entry.data) == (known.revision, known.data) for known in found):
                place = next((at for at, known in enumerate(found) if entry.replaces(known)), len(found))
                found.insert(place, entry)
        return found

    def highest(self, counted: Counted) -> int:
        """The highest revision that the counted replicas show; 0 where they have none."""
        return max((entry.revision for name, entry in self.entries if name in counted.names), default=0)

    def rolled_back(self, revision: int, counted: Counted) -> bool:
        """Whether so many show less than an acknowledged ``revision`` that a quorum can't have kept it.

        Every quorum that acknowledged it has at least one member among them.
        """
        behind = set(self.empty) | {name for name, entry in self.entries if entry.revision < revision}
        ahead = self.highest(counted) >= revision
        return not ahead and len(behind & counted.names) > len(counted.names) - counted.quorum
