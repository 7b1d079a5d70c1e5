"""What a client remembers of hosts, in memory and in a file of the data dir, which other processes share.

What is remembered of one host, which hosts are worth it, and what two processes know together, is decided in
``reputation.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import structlog
import trio

from p2pnode.client.reputation import HOSTS_MAX, Measured, measured_of, merged, worth_keeping
from p2pnode.errors import ConfigError
from p2pnode.files import locked, off_the_loop, read_text_or_none, write_atomic
from p2pnode.ids import PeerId

log = structlog.get_logger()
_SAVE_EVERY_S = 60.0
"""A process that is killed loses what it learnt within so many seconds."""


class HostMemory:
    """Of one client. ``path`` None keeps nothing between runs. ``in_thread``: see ``files.off_the_loop``."""

    def __init__(self, path: Path | None, *, in_thread: bool = True) -> None:
        self._path, self._in_thread = path, in_thread
        self.measured: dict[PeerId, Measured] = {}
        """What is known now, the host of which something was noted last at the end."""
        self._before: dict[PeerId, Measured] = {}

    def note(self, peer: PeerId, change: Callable[[Measured], Measured]) -> None:
        """Remember something of a host."""
        # Taken out and put in anew: hosts of which something was noted last are kept.
        self.measured[peer] = change(self.measured.pop(peer, Measured()))
        if len(self.measured) > 2 * HOSTS_MAX:
            kept = worth_keeping(self.measured)
            # In place: searches that run look at this very map.
            for other in self.measured.keys() - kept.keys():
                del self.measured[other]

    async def load(self) -> None:
        """Read what earlier runs knew."""
        if self._path is not None:
            self._before = await off_the_loop(self._read, in_thread=self._in_thread)
            self.measured = dict(self._before)

    async def save(self) -> None:
        """Write what is new to the file, together with what others wrote meanwhile; a disk that can't take
        it costs a log line."""
        if self._path is None or self.measured == self._before or not self._path.parent.is_dir():
            return
        ours, before = dict(self.measured), self._before
        if await off_the_loop(partial(self._write, ours, before), in_thread=self._in_thread):
            self._before = ours

    async def keep(self) -> None:
        """Save each minute until cancelled."""
        while True:
            await trio.sleep(_SAVE_EVERY_S)
            await self.save()

    def _read(self) -> dict[PeerId, Measured]:
        """A damaged file is ignored: all of it can be measured again."""
        assert self._path is not None  # noqa: S101 - only then it is read
        try:
            raw = json.loads(read_text_or_none(self._path) or "{}")
            return {PeerId(peer): measured_of(known) for peer, known in raw.items()}
        except (ValueError, TypeError, AttributeError, ConfigError):
            log.warning("measured.unreadable", remedy="measuring anew")
            return {}

    def _write(self, ours: dict[PeerId, Measured], before: dict[PeerId, Measured]) -> bool:
        assert self._path is not None  # noqa: S101 - only then it is written
        try:
            with locked(self._path.parent):
                known = worth_keeping(merged(ours, before, self._read()))
                text = json.dumps({peer: asdict(each) for peer, each in known.items()})
                write_atomic(self._path, text.encode())
        except (ConfigError, OSError) as error:
            log.debug("measured.not_saved", reason=str(error))
            return False
        return True
