"""Standard streams that can always be used: open, in any encoding, and never worth more than what is printed.

Nothing but Python's own is imported here: `p2pnode --help` comes by.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import Any, TextIO, cast


class Screen:
    """A text stream for people, whose reader may leave and whose disk may be full: writing never fails.

    For standard error: what goes there is never worth an answer, a drain or a settlement.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write as much as is possible. Returns the length of the whole text; never fails."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        """As far as is possible; it never fails."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        # A full disk may be emptied, and a pipe that is full for now be read.
        if not isinstance(error, BlockingIOError):
            to_nowhere(self._stream, files=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def screen_of(stream: TextIO) -> TextIO:
    """The stream as a :class:`Screen`, where it isn't one yet."""
    return stream if isinstance(stream, Screen) else cast("TextIO", Screen(stream))


def to_nowhere(stream: TextIO, *, files: bool = True) -> None:
    """What is written to a stream from now on, and what waits in its buffer, goes to the null device.

    ``files`` False leaves one alone that is a regular file.
    """
    try:
        number = stream.fileno()
        if files or not stat.S_ISREG(os.fstat(number).st_mode):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
    except (OSError, ValueError):
        return  # no file at all, or closed


def open_streams() -> None:
    """Make all three usable, whatever the parent closed. To be called before any file is opened.

    A closed one would become the first file that we open: what is printed would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    # Python has None in the place of one that was closed when it started.
    sys.stdin = sys.stdin or _opened(0, "r")
    sys.stdout = sys.stdout or _opened(1, "w")
    sys.stderr = screen_of(sys.stderr or _opened(2, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer goes on where a letter can't be shown


def settle_streams() -> None:
    """Empty the buffers at the end, or Python tries once more and exits with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            to_nowhere(stream)


def _opened(number: int, mode: str) -> Any:
    return os.fdopen(number, mode, encoding="utf-8", errors="replace", closefd=False)
