"""Peers that were reached before, in one small JSON file: how a node rejoins without a bootstrap address.

Written whole, to a temporary file that is flushed and renamed; a file that can't be read is set aside with
a warning. Bounded: the worst entries go first. Nothing here is secret, and nothing is trusted: every entry
is dialled before it counts. Knows nothing of the network; the clock is given.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from p2pnode.errors import StorageError
from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net.multiaddrs import is_valid, with_peer
from p2pnode.net.reach import scope_of

log = structlog.get_logger()

FORMAT: Final = 2
"""Format 1 kept whatever a peer said of itself, private addresses of anybody's network among it."""
_FORMATS: Final = (1, 2)
ADDRESSES_MAX: Final = 8
FILE_MAX_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPeer:
    """``last_seen`` in seconds since 1970; ``failures`` since it was last reached."""

    peer: PeerId
    addrs: tuple[str, ...]
    last_seen: float
    failures: int = 0


class SavedPeers:
    """The file at ``path``. All calls are quick and synchronous; a save is one small fsync."""

    def __init__(self, path: Path, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._path = path
        self._limits = limits
        self._peers: dict[PeerId, SavedPeer] = {}

    def load(self) -> tuple[SavedPeer, ...]:
        """Read the file; best first. No file is no peers; an unreadable one is moved to ``….corrupt``."""
        self._peers = {}
        try:
            with self._path.open("rb") as file:
                data = file.read(FILE_MAX_BYTES)
            self._peers = {entry.peer: entry for entry in _decode(data)}
        except FileNotFoundError:
            return ()
        except OSError as error:
            log.warning("peerstore.unreadable", path=str(self._path), error=str(error))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            aside = self._path.with_name(self._path.name + ".corrupt")
            log.warning("peerstore.corrupt", path=str(self._path), set_aside=str(aside), error=str(error))
            try:
                self._path.replace(aside)
            except OSError as problem:
                log.warning("peerstore.unreadable", path=str(self._path), error=str(problem))
        self._trim()
        return self.best(self._limits.peers_saved_max)

    def remember(self, peer: PeerId, addrs: Sequence[str], *, now: float) -> None:
        """``peer`` was reached at ``addrs``, or told us of them and may be dialled there; newest first."""
        known = self._peers[peer].addrs if peer in self._peers else ()
        full = dict.fromkeys(with_peer(address, peer) for address in (*addrs, *known))
        usable = tuple(address for address in full if is_valid(address))[:ADDRESSES_MAX]
        if usable:
            self._peers[peer] = SavedPeer(peer=peer, addrs=usable, last_seen=now)
            self._trim()

    def failed(self, peer: PeerId) -> None:
        """``peer`` couldn't be reached."""
        if (entry := self._peers.get(peer)) is not None:
            self._peers[peer] = replace(entry, failures=entry.failures + 1)

    def forget(self, peer: PeerId) -> None:
        """Remove ``peer``."""
        self._peers.pop(peer, None)

    def best(self, n: int) -> tuple[SavedPeer, ...]:
        """Up to ``n`` peers: fewest failures first, then the most recently seen."""
        return tuple(sorted(self._peers.values(), key=_worth)[:n])

    def save(self) -> None:
        """Write the file, whole or not at all. Raises ``StorageError``."""
        entries = [asdict(entry) for entry in self.best(self._limits.peers_saved_max)]
        data = json.dumps({"format": FORMAT, "peers": entries}, indent=1).encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self._path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}. Check the directory's permissions and space."
            ) from error

    def _trim(self) -> None:
        if len(self._peers) > self._limits.peers_saved_max:
            self._peers = {entry.peer: entry for entry in self.best(self._limits.peers_saved_max)}


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
        if usable:
            entries.append(
                SavedPeer(
                    peer=peer, addrs=usable, last_seen=float(raw["last_seen"]), failures=int(raw["failures"])
                )
            )
    return entries
