"""What a host has served and refused since it started; its totals in a file that ``p2pnode status`` reads."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from p2pnode.errors import ConfigError
from p2pnode.files import read_text_or_none, write_atomic
from p2pnode.host.residency import Memory
from p2pnode.payments.escrow import EscrowStatistics

log = structlog.get_logger()
_INTERVAL_S: Final = 2.0
_REFUSALS_KEPT: Final = 8


@dataclass(slots=True)
class Totals:
    """What this host has served since it started."""

    sessions: int = 0
    turns: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A question or a session that was not taken: when (wall clock), by which wire code, and why."""

    at: float
    code: str
    detail: str


class Refusals:
    """What was asked of a host and not taken: counts by code, and the last ones."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._last: deque[Refusal] = deque(maxlen=_REFUSALS_KEPT)

    def add(self, refusal: Refusal) -> None:
        """One more."""
        self.counts[refusal.code] += 1
        self._last.append(refusal)

    @property
    def last(self) -> tuple[Refusal, ...]:
        """Of the last ones, the newest first."""
        return tuple(reversed(self._last))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """One model that a host offers, now; ``restarts`` and ``tokens_out`` since its engine was loaded."""

    name: str
    state: str
    slots: int = 0
    active: int = 0
    queued: int = 0
    restarts: int = 0
    tokens_out: int = 0
    tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatistics:
    """A host, now. ``memory`` is what its models may take, ``memory_free`` what none takes."""

    models: tuple[ModelStatistics, ...]
    streams: int
    sessions_left: int
    memory: Memory
    memory_free: Memory
    served: Totals
    refused: Mapping[str, int]
    money: EscrowStatistics | None


class TotalsFile:
    """The file with ``totals``. :meth:`keep` writes it after :meth:`changed`, every two seconds at most."""

    def __init__(self, path: Path, totals: Totals) -> None:
        self._path, self._totals = path, totals
        self._since = int(time.time())
        self._wake = trio.Event()

    def changed(self) -> None:
        """Have the totals written soon."""
        self._wake.set()

    async def keep(self) -> None:
        """Write until cancelled. Where the disk is full, only the figures are lost."""
        while True:
            data = json.dumps({"since": self._since, **asdict(self._totals)}).encode()
            try:
                await trio.to_thread.run_sync(write_atomic, self._path, data)
            except ConfigError as error:
                log.warning("totals.not_written", reason=str(error))
            await trio.sleep(_INTERVAL_S)
            await self._wake.wait()
            self._wake = trio.Event()


def read_totals(path: Path) -> dict[str, Any] | None:
    """``since`` (epoch seconds) and the fields of ``Totals``; None where no host wrote them."""
    try:
        found = json.loads(read_text_or_none(path) or "")
    except (ConfigError, ValueError):
        return None
    wanted = ("since", "sessions", "turns", "tokens_in", "tokens_out")
    if not isinstance(found, dict) or any(type(found.get(name)) is not int for name in wanted):
        return None
    return found
