"""``ByteShares``: whose bytes are read later, and whose streams begin later, while the node is behind.

While the event loop keeps up, everybody's bytes are read as they come. When it lags, an origin that sent more
than an equal share of the last second's bytes waits a little before more of it is read, and its transport
holds it back. Shares are those of wide origins, and within each of near ones: who has many addresses of one
prefix makes nobody else's share smaller. The node itself counts as one more origin, so that a single flooder
leaves time for the node's own work. A stream that a peer opens counts as many bytes: to negotiate and serve
one takes a host some milliseconds, however little is sent on it. Pure but for :func:`watch_lag`, which
measures.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import trio

from p2pnode.shares import Origin

LAG_S: Final = 0.1
"""The loop is behind when a task runs so much later than it asked to."""
PAUSE_S: Final = 0.1
STREAM_PAUSE_S: Final = 1.0
"""Before the next stream of one connection begins. Longer than ``PAUSE_S``: what a peer sent during a shorter
one would be read and begun together after it, and the node would have as much to do as before."""
STREAM_PAUSE_MAX_S: Final = 8.0
"""For an origin that has many connections, each of which begins streams."""
WINDOW_S: Final = 1.0
BEAT_S: Final = 0.1
BUSY_BYTES: Final = 64 * 1024
"""Of all peers since the last beat; with fewer nothing is measured, so that an idle node sleeps."""
STREAM_BYTES: Final = BUSY_BYTES
"""What an opened stream counts: a session that asks one short question takes a host 2 to 3 ms, about what it
takes to read so much. So each one that is opened has the lag measured."""


class _Window:
    """What came in one second, by origin."""

    def __init__(self) -> None:
        self.total = 0
        self.wide: dict[str, int] = {}
        self.near: dict[str, int] = {}
        self.wide_of: dict[str, str] = {}
        """By near origin. To look for a whole ``Origin`` takes longer than all else of a read here."""

    def add(self, origin: Origin, count: int) -> None:
        self.total += count
        self.wide[origin.wide] = self.wide.get(origin.wide, 0) + count
        self.near[origin.near] = self.near.get(origin.near, 0) + count


class ByteShares:
    """The bytes of the last one to two seconds by origin; see the module."""

    def __init__(self) -> None:
        self.lag_s = 0.0
        """How late the loop was at the last beat."""
        self.paused = 0
        """How often a read or a stream was put off, since the start."""
        self._now, self._before = _Window(), _Window()
        self._wides = 0
        """Wide origins of both windows."""
        self._nears: Counter[str] = Counter()
        """Near origins of both, by their wide one. Kept, for who floods may be many, and each read asks."""
        self._began = 0.0
        self._since_beat = 0
        self._busy = trio.Event()

    def read(self, origin: Origin, count: int, now: float) -> float:
        """Note ``count`` bytes of an origin. The seconds to wait before more of its are read."""
        return PAUSE_S if self._has_to_wait(origin, count, now) else 0.0

    def opened(self, origin: Origin, connections: int, now: float) -> float:
        """Note a stream of an origin whose wide one has so many connections. The seconds to wait before the
        next one of the same connection."""
        if not self._has_to_wait(origin, STREAM_BYTES, now):
            return 0.0
        return min(STREAM_PAUSE_S * connections, STREAM_PAUSE_MAX_S)

    def _has_to_wait(self, origin: Origin, count: int, now: float) -> bool:
        self._note(origin, count, now)
        self._since_beat += count
        if self._since_beat >= BUSY_BYTES:
            self._busy.set()
        if self.lag_s < LAG_S:
            return False
        wide = self._now.wide[origin.wide] + self._before.wide.get(origin.wide, 0)
        near = self._now.near[origin.near] + self._before.near.get(origin.near, 0)
        if wide * (self._wides + 1) <= self._now.total + self._before.total:
            return False
        if near * self._nears[origin.wide] < wide:
            return False
        self.paused += 1
        return True

    def _note(self, origin: Origin, count: int, now: float) -> None:
        if now >= self._began + WINDOW_S:
            self._before = self._now if now < self._began + 2 * WINDOW_S else _Window()
            self._now, self._began = _Window(), now
            self._wides = len(self._before.wide)
            self._nears = Counter(self._before.wide_of.values())
        if origin.near not in self._now.near:
            self._now.wide_of[origin.near] = origin.wide
            if origin.near not in self._before.near:
                if not self._nears[origin.wide]:
                    self._wides += 1
                self._nears[origin.wide] += 1
        self._now.add(origin, count)

    async def watch_lag(self) -> None:
        """Measure while many bytes come in, and sleep otherwise. Runs until cancelled."""
        while True:
            if self.lag_s:
                with trio.move_on_after(WINDOW_S):  # what was measured holds for a while
                    await self._busy.wait()
            if not self._busy.is_set():
                self.lag_s = 0.0
                await self._busy.wait()
            self._busy, self._since_beat = trio.Event(), 0
            due = trio.current_time() + BEAT_S
            await trio.sleep_until(due)
            self.lag_s = trio.current_time() - due
