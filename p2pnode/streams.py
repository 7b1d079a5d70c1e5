"""Standard streams that are always open, and whose failure never ends what the program does.

Only the standard library is imported here, because ``p2pnode --help`` imports this module.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import Any, TextIO, cast


class Screen:
    """A text stream whose writing never fails, also where its reader has left or its disk is full.

    It is for standard error: a message that can't be shown must not end an answer, a drain or a settlement.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write as much as possible. Returns the length of the whole text; never raises."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        """Flush as much as possible; never raises."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        # A stream that would only block may take more later.
        if not isinstance(error, BlockingIOError):
            to_nowhere(self._stream, files=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def screen_of(stream: TextIO) -> TextIO:
    """The stream as a :class:`Screen`."""
    return stream if isinstance(stream, Screen) else cast("TextIO", Screen(stream))


def to_nowhere(stream: TextIO, *, files: bool = True) -> None:
    """Send what waits in a stream's buffer, and what is written from now on, to the null device.

    Without ``files``, a stream that is a regular file is left as it is.
    """
    try:
        number = stream.fileno()
        if files or not stat.S_ISREG(os.fstat(number).st_mode):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
    except (OSError, ValueError):
        return  # it has no file, or it is closed


def open_streams() -> None:
    """Make all three standard streams usable, whatever the parent process closed.

    It is to be called before any file is opened: that file would get the number of a closed stream, and what
    is printed would be written into it.
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
        sys.stdout.reconfigure(errors="replace")  # a letter that can't be shown must not end an answer


def settle_streams() -> None:
    """Empty the buffers before the end: else Python tries it, and exits with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            to_nowhere(stream)


def _opened(number: int, mode: str) -> Any:
    return os.fdopen(number, mode, encoding="utf-8", errors="replace", closefd=False)
