"""``SavedPeers``: peers that were reached before, in one small JSON file, so that a node rejoins without a
bootstrap address.

The file is written whole or not at all. A file that can't be read is moved away with a warning. Its size is
bounded: the worst entries are dropped first, but never those that were known longest, of distinct origins:
a network that changes while this node is away must not leave it with dead ends only. Nothing in it is secret,
and nothing is trusted: every entry is dialled before it counts. This module knows nothing of the network; the
time is an argument, and so is chance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from p2pnode.errors import ConfigError, StorageError
from p2pnode.files import not_writable, off_the_loop, write_private
from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net.address_policy import scope_of
from p2pnode.net.multiaddrs import host_of, is_valid, with_peer
from p2pnode.shares import Draw, Origin, one_of_each, origin_of

log = structlog.get_logger()

FORMAT: Final = 2
"""Format 1 held whatever a peer said of itself, also private addresses of other networks."""
_FORMATS: Final = (1, 2)
ADDRESSES_MAX: Final = 8
FILE_MAX_BYTES: Final = 4 << 20
LONG_LIVED_MAX: Final = 32
"""Of the peers known longest, each of another origin: kept though they fail, and though others are better."""
LONG_LIVED_S: Final = 86_400.0
"""Known for less, a peer is not one of these."""
KEPT_S: Final = 90 * 86_400.0
SESSION_S: Final = 120.0
"""Peers seen so shortly before the last one were all there at the end of the last session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPeer:
    """Times are in seconds since 1970; ``failures`` counts since the peer was last reached."""

    peer: PeerId
    addrs: tuple[str, ...]
    last_seen: float
    failures: int = 0
    first_seen: float = 0.0
    """When it was first reached; 0 where it never was."""

    @property
    def lived_s(self) -> float:
        """For how long it has been known to be there."""
        return self.last_seen - self.first_seen if self.first_seen else 0.0

    @property
    def origin(self) -> Origin:
        """Where its first address is."""
        return origin_of(host_of(self.addrs[0]) or None, self.peer)


class SavedPeers:
    """The file at ``path``. ``in_thread``: see ``files.off_the_loop``."""

    def __init__(self, path: Path, *, limits: Limits = DEFAULT_LIMITS, in_thread: bool = True) -> None:
        self._path, self._in_thread = path, in_thread
        self._limits = limits
        self._peers: dict[PeerId, SavedPeer] = {}
        self._last_session: frozenset[PeerId] = frozenset()

    async def load(self) -> tuple[SavedPeer, ...]:
        """Read the file; the best peers come first. Without a file there are no peers; an unreadable one
        is renamed to ``….corrupt``."""
        entries = await off_the_loop(self._read, in_thread=self._in_thread)
        self._peers = {entry.peer: entry for entry in entries}
        self._trim()
        newest = max((entry.last_seen for entry in self._peers.values()), default=0.0)
        recent = (entry.peer for entry in self._peers.values() if 0 < newest <= entry.last_seen + SESSION_S)
        self._last_session = frozenset(recent)
        return self.best(self._limits.peers_saved_max)

    def _read(self) -> list[SavedPeer]:
        try:
            with self._path.open("rb") as file:
                return _decode(file.read(FILE_MAX_BYTES))
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("saved_peers.unreadable", path=str(self._path), error=str(error))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            aside = self._path.with_name(self._path.name + ".corrupt")
            log.warning("saved_peers.corrupt", path=str(self._path), set_aside=str(aside), error=str(error))
            try:
                self._path.replace(aside)
            except OSError as problem:
                log.warning("saved_peers.unreadable", path=str(self._path), error=str(problem))
        return []

    def remember(self, peer: PeerId, addrs: Sequence[str], *, now: float) -> None:
        """Note that ``peer`` was reached at ``addrs``, or named them itself and may be dialled there; the
        newest come first."""
        held = self._peers.get(peer)
        known = held.addrs if held is not None else ()
        full = dict.fromkeys(with_peer(address, peer) for address in (*addrs, *known))
        usable = tuple(address for address in full if is_valid(address))[:ADDRESSES_MAX]
        if usable:
            first = held.first_seen if held is not None and held.first_seen else now
            last = max(now, held.last_seen) if held is not None else now
            self._peers[peer] = SavedPeer(peer=peer, addrs=usable, last_seen=last, first_seen=first)
            self._trim()

    def failed(self, peer: PeerId) -> None:
        """Note that ``peer`` couldn't be reached while others could: that nobody answers says nothing of
        it."""
        if (entry := self._peers.get(peer)) is not None:
            self._peers[peer] = replace(entry, failures=entry.failures + 1)

    def forget(self, peer: PeerId) -> None:
        """Remove ``peer``, which couldn't be reached while others could; one known long only counts a
        failure."""
        if peer in self._long_lived():
            self.failed(peer)
        else:
            self._peers.pop(peer, None)

    def is_recent(self, peer: PeerId) -> bool:
        """Whether it was there at the end of the last session."""
        return peer in self._last_session

    def to_try(self, n: int, draw: Draw) -> list[SavedPeer]:
        """Up to ``n`` peers: those of the last session, at most half, then others drawn over origins.

        Those that merely came to us are drawn last: a crowd of made-up peers must not be all that is tried.
        """
        last = [entry for entry in self.best(len(self._peers)) if entry.peer in self._last_session]
        chosen = last[: (n + 1) // 2]
        for tier in (True, False):
            by_origin: dict[str, list[SavedPeer]] = {}
            for entry in self._peers.values():
                if entry not in chosen and (entry.last_seen > 0) is tier:
                    by_origin.setdefault(entry.origin.wide, []).append(entry)
            chosen += one_of_each(by_origin.values(), n - len(chosen), draw)
        return chosen

    def best(self, n: int) -> tuple[SavedPeer, ...]:
        """Up to ``n`` peers: those with fewest failures first, then the most recently seen."""
        return tuple(sorted(self._peers.values(), key=_worth)[:n])

    async def save(self) -> None:
        """Write the file, whole or not at all. Raises ``StorageError``."""
        entries = [asdict(entry) for entry in self.best(self._limits.peers_saved_max)]
        data = json.dumps({"format": FORMAT, "peers": entries}, indent=1).encode()
        await off_the_loop(partial(self._write, data), in_thread=self._in_thread)

    def _write(self, data: bytes) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, data)
        except OSError as error:
            raise StorageError(str(not_writable(self._path, error))) from error
        except ConfigError as error:
            raise StorageError(str(error)) from error

    def _trim(self) -> None:
        newest = max((entry.last_seen for entry in self._peers.values()), default=0.0)
        if len(self._peers) > self._limits.peers_saved_max:
            long_lived = self._long_lived()
            # True sorts first here: those known long, then the best.
            ranked = sorted(
                self._peers.values(), key=lambda each: (each.peer not in long_lived, _worth(each))
            )
            self._peers = {entry.peer: entry for entry in ranked[: self._limits.peers_saved_max]}
        for peer, entry in list(self._peers.items()):
            if entry.first_seen and entry.last_seen < newest - KEPT_S:
                del self._peers[peer]

    def _long_lived(self) -> frozenset[PeerId]:
        """Those known longest, the first of each origin; at most half of what is saved."""
        found: dict[str, PeerId] = {}
        for entry in sorted(self._peers.values(), key=lambda each: (-each.lived_s, each.peer)):
            if entry.lived_s >= LONG_LIVED_S:
                found.setdefault(entry.origin.wide, entry.peer)
        most = min(LONG_LIVED_MAX, self._limits.peers_saved_max // 2)
        return frozenset(list(found.values())[:most])


def _worth(entry: SavedPeer) -> tuple[int, float, str]:
    return (entry.failures, -entry.last_seen, entry.peer)


def _decode(data: bytes) -> list[SavedPeer]:
    document: Any = json.loads(data)
    if not isinstance(document, dict) or document.get("format") not in _FORMATS:
        raise ValueError("it has another format")
    entries = []
    for raw in document["peers"]:
        peer = PeerId(str(raw["peer"]))
        addrs = tuple(str(address) for address in raw["addrs"])[:ADDRESSES_MAX]
        usable = tuple(address for address in addrs if is_valid(address) and address.endswith(peer))
        if document["format"] == 1:
            usable = tuple(address for address in usable if scope_of(address) == "global")
        last_seen, failures = float(raw["last_seen"]), int(raw["failures"])
        first_seen = float(raw.get("first_seen", last_seen))  # earlier versions did not write it
        if not (math.isfinite(last_seen) and math.isfinite(first_seen)):
            raise ValueError("a peer was seen at no time")
        if usable:
            entries.append(
                SavedPeer(
                    peer=peer,
                    addrs=usable,
                    last_seen=last_seen,
                    failures=failures,
                    first_seen=first_seen,
                )
            )
    return entries
