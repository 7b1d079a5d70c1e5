"""Whether a session whose stream was lost is resumed, and how often. Pure.

A host must not be able to have a client dial it all day: something has to come between two resumes.
"""

from __future__ import annotations

from typing import Final

FRUITLESS_MAX: Final = 2
"""Resumes in a row after which nothing came."""
AT_ONCE_S: Final = 1.0
AT_ONCE_MAX: Final = 2
"""Attempts to resume, one after another, that may fail at once before the session is given up."""


class Resumption:
    """Of one session. ``received`` is how many of its messages were taken so far, as a resume counts them."""

    def __init__(self) -> None:
        self._resumed_at = -1
        self._fruitless = self._at_once = 0

    def lost(self) -> None:
        """The stream is gone: attempts may begin."""
        self._at_once = 0

    def is_fruitful(self, received: int) -> bool:
        """Whether something came since the last resume, or has not failed to come too often."""
        return received > self._resumed_at or self._fruitless < FRUITLESS_MAX

    def begin(self, received: int) -> None:
        """An attempt begins."""
        self._fruitless = 0 if received > self._resumed_at else self._fruitless + 1

    def resumed(self, received: int) -> None:
        """The session goes on."""
        self._resumed_at = received

    def tries_at_once(self, took_s: float, *, reached: bool) -> bool:
        """Whether an attempt that failed after so long is followed by another one now.

        The host was ``reached``, or its network said at once that it isn't there: that may be the same
        interruption. Not for ever: of a host whose process is gone its network says so at once, each time.
        """
        if self._at_once < AT_ONCE_MAX and (reached or took_s < AT_ONCE_S):
            self._at_once += 1
            return True
        return False
