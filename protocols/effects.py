"""What one ``handle`` decides, gathered in order, and which timers are armed. Each machine owns one.

A timer that fires although it was cancelled (a shell may be late) is not ours any more: ``fired``
says so. It knows nothing of what the effects mean.
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
        """Told of each message, for those who must be able to say it again."""
        self.muted = False
        """The stream is gone: messages are noted, not sent."""

    def take(self) -> Sequence[Effect]:
        """Everything since the last call."""
        taken, self._gathered = self._gathered, []
        return taken

    def send(self, message: object) -> None:
        """To the peer."""
        if self.on_send is not None:
            self.on_send(message)
        if not self.muted:
            self._gathered.append(Send(self._peer, self._stream, message))

    def emit(self, value: object) -> None:
        """To the role above."""
        self._gathered.append(Emit(value))

    def set_timer(self, key: str, at: float) -> None:
        """Arm, or replace."""
        self._armed.add(key)
        self._gathered.append(SetTimer(key, at))

    def cancel_timer(self, *keys: str) -> None:
        """Disarm those that are armed."""
        for key in keys:
            if key in self._armed:
                self._armed.discard(key)
                self._gathered.append(CancelTimer(key))

    def cancel_timers(self) -> None:
        """Disarm all: the machine is over."""
        self.cancel_timer(*sorted(self._armed))

    def armed(self, key: str) -> bool:
        """Is this timer running?"""
        return key in self._armed

    def fired(self, key: str) -> bool:
        """Note that a timer fired; False when it was not armed."""
        armed = key in self._armed
        self._armed.discard(key)
        return armed
