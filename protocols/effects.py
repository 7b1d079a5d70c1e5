"""``Effects``: what one ``handle`` decides, in order, and which timers are armed. Each machine owns one.

A shell may fire a timer late, after the machine cancelled it: ``fired`` tells such a timer from one that is
armed. It knows nothing of what the effects mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pnode.ids import PeerId
from p2pnode.protocols.events import CancelTimer, Effect, Emit, Send, SetTimer, StreamRef


class Effects:
    """Effects towards one peer on one stream."""

    def __init__(self, peer: PeerId, stream: StreamRef) -> None:
        self._peer, self._stream = peer, stream
        self._gathered: list[Effect] = []
        self._armed: set[str] = set()
        self.on_send: Callable[[object], None] | None = None
        """Called with each message, for a machine that must be able to send it again."""
        self.muted = False
        """Whether the stream is gone: then messages go to ``on_send`` only."""

    def take(self) -> Sequence[Effect]:
        """The effects since the last call."""
        taken, self._gathered = self._gathered, []
        return taken

    def send(self, message: object) -> None:
        """Send a message to the peer."""
        if self.on_send is not None:
            self.on_send(message)
        if not self.muted:
            self._gathered.append(Send(self._peer, self._stream, message))

    def emit(self, value: object) -> None:
        """Tell the role above."""
        self._gathered.append(Emit(value))

    def set_timer(self, key: str, at: float) -> None:
        """Let ``key`` fire at ``at``; replaces an earlier setting."""
        self._armed.add(key)
        self._gathered.append(SetTimer(key, at))

    def cancel_timer(self, *keys: str) -> None:
        """Cancel those of these timers that are armed."""
        for key in keys:
            if key in self._armed:
                self._armed.discard(key)
                self._gathered.append(CancelTimer(key))

    def cancel_timers(self) -> None:
        """Cancel all timers: the machine is over."""
        self.cancel_timer(*sorted(self._armed))

    def armed(self, key: str) -> bool:
        """Whether this timer is armed."""
        return key in self._armed

    def fired(self, key: str) -> bool:
        """Note that a timer fired; False when it was not armed."""
        armed = key in self._armed
        self._armed.discard(key)
        return armed
