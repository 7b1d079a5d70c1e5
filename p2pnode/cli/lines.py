"""What a user types, read in a thread: edited by readline on a terminal, plain from anywhere else.

Reads that can't be interrupted are left behind when the process ends. They go to the file itself and not
through ``sys.stdin``, whose lock they would hold: Python aborts when it finds it held on its way out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self, TextIO

_PROMPT: Final = "> "
_CHUNK: Final = 1 << 16


class Lines:
    """``await next()`` until it is None. As a context manager it leaves the terminal as it was."""

    def __init__(self, source: TextIO, *, quiet: bool) -> None:
        self._source, self._file = source, _file_of(source)
        self._prompts = source.isatty() and not quiet
        # input() edits only where it both reads from and writes to a terminal.
        self._edits = self._prompts and sys.stdout.isatty()
        self._attributes: list[object] | None = None
        self._pending = b""

    def __enter__(self) -> Self:
        if self._source.isatty():
            import termios

            self._attributes = termios.tcgetattr(self._source)
        if self._edits:
            import readline  # noqa: F401 - input() edits once it is imported
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._attributes is not None:
            import termios

            # A read that was left behind keeps the terminal in the state readline needs.
            termios.tcsetattr(self._source, termios.TCSADRAIN, self._attributes)  # type: ignore[arg-type]

    async def next(self) -> str | None:
        """The next line without its end; None at the end of input."""
        import trio

        line = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        if line is None and self._prompts:
            sys.stderr.write("\n")
        return line

    def _read(self) -> str | None:
        if self._edits:
            try:
                return input(_PROMPT)
            except EOFError:
                return None
        if self._prompts:
            sys.stderr.write(_PROMPT)
            sys.stderr.flush()
        while b"\n" not in self._pending and (data := _read_some(self._source, self._file)):
            self._pending += data
        line, end, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace") if line or end else None


async def read_all(source: TextIO) -> str:
    """Everything up to the end of input."""
    import trio

    def read() -> bytes:
        data, file = b"", _file_of(source)
        while more := _read_some(source, file):
            data += more
        return data

    return (await trio.to_thread.run_sync(read, abandon_on_cancel=True)).decode(errors="replace")


async def read_pieces(source: TextIO) -> AsyncIterator[bytes]:
    """The bytes of the input, as they come."""
    import trio

    file = _file_of(source)
    while piece := await trio.to_thread.run_sync(_read_some, source, file, abandon_on_cancel=True):
        yield piece


def _file_of(source: TextIO) -> int | None:
    try:
        return source.fileno()
    except (OSError, ValueError):
        return None  # no file: a test's


def _read_some(source: TextIO, file: int | None) -> bytes:
    if file is not None:
        return os.read(file, _CHUNK)
    data = source.buffer.read(_CHUNK)
    return bytes(data)
