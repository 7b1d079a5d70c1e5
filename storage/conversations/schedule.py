"""What is sent to the replicas, in which order, and when leases are renewed. Pure.

A log is sent when a quorum lacks its head. The index goes before the conversations, since a conversation
counts as kept only once an index that names it is: without its name nobody could look for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.storage.conversations.records import Link
from p2pnode.storage.keys import INDEX_SID
from p2pnode.storage.store import DAY_S

RENEW_S: Final = 7 * DAY_S
"""Leases are renewed this long after the last time. A lease lasts 31 days: three renewals may fail."""


@dataclass(frozen=True, slots=True)
class LocalHead:
    """A log's head on this machine, and the one that a quorum acknowledged last (None: none yet)."""

    sid: bytes
    head: Link
    updated: int
    gone: bool = False
    acked: Link | None = None

    @property
    def lags(self) -> bool:
        """Whether the head has not reached a quorum."""
        return self.head != self.acked

    def covers(self, link: Link) -> bool:
        """Whether a quorum has acknowledged this revision or a later one."""
        return self.acked is not None and self.acked.seq >= link.seq


def to_send(
    heads: Iterable[LocalHead], *, lacking: Collection[bytes] = ()
) -> tuple[list[LocalHead], list[LocalHead]]:
    """The logs to send first, then those to send together after them.

    Those lag, or are ``lacking``: some replica did not get them.
    """
    due = [each for each in heads if each.lags or each.sid in lacking]
    return [each for each in due if each.sid == INDEX_SID], [each for each in due if each.sid != INDEX_SID]


def to_fetch(listed: Iterable[bytes], here: Iterable[LocalHead]) -> list[bytes]:
    """Conversations of the list that are not on this disk: nobody else might renew their leases."""
    known = {each.sid for each in here}
    return [sid for sid in listed if sid not in known]


def to_renew(renewed_at: Mapping[bytes, float], now: float) -> list[bytes]:
    """The logs whose leases are due, those renewed the longest ago first. Times are epoch seconds."""
    due = sorted((at, sid) for sid, at in renewed_at.items() if at < int(now - RENEW_S))
    return [sid for _, sid in due]


def floor_of(local: LocalHead | None, recovered: int) -> int:
    """The revision below which everything is known: acknowledged, or read back at a recovery."""
    return max(recovered, local.acked.seq if local is not None and local.acked is not None else 0)


def unknown_to(ours: Collection[Link], shown: Sequence[Link], floor: int) -> list[Link]:
    """Of the manifests that replicas show, those of other writers that may have to be merged."""
    return [link for link in shown if link.seq >= floor and link not in ours]
