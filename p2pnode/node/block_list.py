"""Peers that this node's owner wants nothing to do with, in a file of the data dir.

The file is the list: a command changes it and tells a node that runs to read it again, so that it holds from
now on and after a restart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pnode.errors import ConfigError
from p2pnode.files import locked, not_writable, read_text_or_none, write_private
from p2pnode.ids import PeerId

BLOCKED_MAX: Final = 10_000
REASON_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Blocked:
    """One peer: since when (epoch seconds), and why, as its blocker said."""

    peer: PeerId
    since: int
    reason: str = ""


class BlockList:
    """The list at ``path``. Each method reads the file as it is now, and raises ``ConfigError``."""

    def __init__(self, path: Path, *, wall: Callable[[], float] = time.time) -> None:
        self._path, self._wall = path, wall

    def read(self) -> tuple[Blocked, ...]:
        """All of them, the oldest first. A file that is damaged is an error: it must not let anybody in."""
        text = read_text_or_none(self._path)
        if text is None:
            return ()
        try:
            return tuple(map(_blocked, json.loads(text)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            msg = f"{self._path} is damaged: mend it, or delete it and block its peers anew (p2pnode block)"
            raise ConfigError(msg) from error

    def add(self, peer: PeerId, reason: str = "") -> bool:
        """Block a peer; False where it was blocked already, for which the reason is noted anew."""
        with self._changing() as before:
            kept = [each for each in before if each.peer != peer]
            if len(kept) >= BLOCKED_MAX:
                msg = f"{BLOCKED_MAX} peers are blocked, the most there is room for: unblock some"
                raise ConfigError(msg)
            self._write([*kept, Blocked(peer, int(self._wall()), reason[:REASON_MAX])])
        return len(kept) == len(before)

    def remove(self, peer: PeerId) -> bool:
        """Let a peer in again; False where it was not blocked."""
        with self._changing() as before:
            kept = [each for each in before if each.peer != peer]
            self._write(kept)
        return len(kept) < len(before)

    @contextmanager
    def _changing(self) -> Iterator[tuple[Blocked, ...]]:
        """One command at a time; gives what stands there."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self._path.parent):
                yield self.read()
        except OSError as error:
            raise not_writable(self._path, error) from error

    def _write(self, blocked: list[Blocked]) -> None:
        told = [{"peer": each.peer, "since": each.since, "reason": each.reason} for each in blocked]
        write_private(self._path, json.dumps(told, indent=1).encode())


def _blocked(raw: Any) -> Blocked:
    peer, since, reason = raw["peer"], raw["since"], raw.get("reason", "")
    if not (isinstance(peer, str) and type(since) is int and isinstance(reason, str)):
        raise ValueError("no entry of a block list")
    return Blocked(PeerId(peer), since, reason)
