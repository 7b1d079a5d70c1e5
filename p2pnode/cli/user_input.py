"""What a user types: edited on a terminal, read as it comes from anywhere else, in a thread.

Reads that can't be interrupted are left behind when the process ends. They go to the file itself and not
through ``sys.stdin``, whose lock they would hold: Python aborts when it finds it held on its way out.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TextIO

from p2pnode.cli.output import Output, draws
from p2pnode.terminals import Modes, hold_back, modes_of, set_modes
from p2pnode.words import printable

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.data_structures import Size


READ_MAX: Final = 64 << 20
"""Bytes of a whole input or file that a question or texts are made of: more than any host's context holds."""
_PROMPT: Final = "> "
_CHUNK: Final = 1 << 16
_AHEAD_MAX: Final = 1 << 14
_STOP_S: Final = 2.0
BLOCK: Final = '"""'
"""Opens and closes a message of several lines."""


class PromptInterruptedError(Exception):
    """Ctrl-C was pressed at the prompt. ``empty``: with nothing typed."""

    def __init__(self, *, empty: bool) -> None:
        super().__init__("Ctrl-C")
        self.empty = empty


class UserInput:
    """``await next()`` until it is None. As a context manager it leaves the terminal as it was.

    With ``edits``, and where both sides are a terminal, a line can be edited, a paste of several lines is one
    message, and a Ctrl-C raises ``PromptInterruptedError``.
    """

    def __init__(self, source: TextIO, *, quiet: bool, edits: bool = False) -> None:
        self._source, self._file = source, _file_of(source)
        self._prompts = source.isatty() and not quiet
        self._edits = edits and self._prompts and draws()
        self._modes: Modes | None = None
        self._pending = b""
        self._ahead = ""
        """What was typed while an answer streamed."""
        self._session: PromptSession[str] | None = None
        self._idle = threading.Event()

    def __enter__(self) -> Self:
        if self._source.isatty():
            self._modes = modes_of(self._source.fileno())
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._modes is not None:
            # A read that was left behind keeps the terminal in the state that it needs.
            set_modes(self._source.fileno(), self._modes)

    async def next(self) -> str | None:
        """The next message without its end; None at the end of input. Raises ``PromptInterruptedError``."""
        import trio

        try:
            line = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        except trio.Cancelled:
            self._stop()
            raise
        if line is None and self._prompts and not self._edits:
            sys.stderr.write("\n")
        return line

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """What is typed meanwhile is not shown; it is offered at the next prompt. Ctrl-C works as ever."""
        if self._modes is None or not self._prompts:
            yield
            return
        # Without an editor the terminal keeps what is typed, a line at a time, and gives it to the next read.
        hold_back(self._source.fileno(), by_key=self._edits)
        try:
            yield
        finally:
            if self._edits and self._file is not None:
                with suppress(OSError):
                    self._ahead += _typed(os.read(self._file, _AHEAD_MAX))
            set_modes(self._source.fileno(), self._modes)

    def _read(self) -> str | None:
        return self._edited() if self._edits else self._message()

    # ---- with an editor

    def _edited(self) -> str | None:
        if self._session is None:
            self._session = _editor()
        self._idle.clear()
        ahead, self._ahead = self._ahead.rstrip("\n"), ""
        try:
            # The first Ctrl-C clears what was typed, as in a shell.
            return _without_marks(self._session.prompt(_PROMPT, default=ahead))
        except KeyboardInterrupt:
            raise PromptInterruptedError(empty=not self._session.default_buffer.text) from None
        except EOFError:
            return None
        finally:
            self._idle.set()

    def _stop(self) -> None:
        """End the editor from outside, and wait until it has given the terminal back."""
        app = self._session.app if self._session is not None else None
        if app is None or app.loop is None or self._idle.is_set():
            return

        def leave() -> None:
            with suppress(Exception):  # it has just ended by itself
                app.exit(exception=EOFError)

        app.loop.call_soon_threadsafe(leave)
        self._idle.wait(_STOP_S)

    # ---- without

    def _message(self) -> str | None:
        line = self._line()
        if line is None or not line.lstrip().startswith(BLOCK):
            return line
        lines = [line]
        while not _is_closed("\n".join(lines)) and (line := self._line()) is not None:
            lines.append(line)
        return _without_marks("\n".join(lines))

    def _line(self) -> str | None:
        if self._prompts:
            sys.stderr.write(_PROMPT)
            sys.stderr.flush()
        while b"\n" not in self._pending and (data := _read_some(self._source, self._file)):
            self._pending += data
        line, end, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace") if line or end else None


def _editor() -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.output.vt100 import Vt100_Output

    @Condition
    def in_a_block() -> bool:
        text = session.default_buffer.text
        return text.lstrip().startswith(BLOCK) and not _is_closed(text)

    # Without questions to the terminal, whose answers would be read as keys by whoever reads next.
    output = Vt100_Output(sys.stdout, _size, term=os.environ.get("TERM"), enable_cpr=False)
    session: PromptSession[str] = PromptSession(multiline=in_a_block, output=output)
    return session


def _size() -> Size:
    from prompt_toolkit.data_structures import Size

    columns, rows = shutil.get_terminal_size()  # of a terminal that doesn't know: 80 to 24
    return Size(rows=rows, columns=columns)


def _is_closed(text: str) -> bool:
    stripped = text.strip()
    return len(stripped) >= 2 * len(BLOCK) and stripped.endswith(BLOCK)


def _without_marks(text: str) -> str:
    """The message inside of ``\"\"\"``, or as it is."""
    stripped = text.strip()
    return (
        stripped.removeprefix(BLOCK).removesuffix(BLOCK).strip("\n") if stripped.startswith(BLOCK) else text
    )


def _typed(data: bytes) -> str:
    """Keys as text, without those that are none."""
    return printable(data.decode(errors="replace").replace("\r", "\n")).replace(
        "\N{REPLACEMENT CHARACTER}", ""
    )


async def read_all(source: TextIO, output: Output) -> str:
    """Everything up to the end of input, as text; see :func:`read_bytes`."""
    return (await read_bytes(source, output)).decode(errors="replace")


async def read_bytes(source: TextIO, output: Output) -> bytes:
    """Everything up to the end of input. A person at a terminal is told that it is read.

    Raises ``UsageError`` for more than ``READ_MAX``.
    """
    import trio

    from p2pnode.errors import UsageError

    if source.isatty():
        output.note("[reading from the keyboard: Ctrl-D at the start of a line ends it]")

    def read() -> bytes:
        pieces, size, file = [], 0, _file_of(source)
        while size <= READ_MAX and (more := _read_some(source, file)):
            pieces.append(more)
            size += len(more)
        if size > READ_MAX:
            raise UsageError(f"standard input has more than {READ_MAX >> 20} MiB: give less at once")
        return b"".join(pieces)

    return await trio.to_thread.run_sync(read, abandon_on_cancel=True)


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


async def confirm(output: Output, what: str, *, yes: bool) -> None:
    """Ask once before what can't be undone, and return when the user wants it. ``yes`` answers beforehand.

    Raises ``UsageError`` where there is no terminal to ask at, and ``LocalError`` when the answer is no.
    """
    from p2pnode.errors import LocalError, UsageError

    if yes:
        return
    if output.as_json or not sys.stdin.isatty():
        msg = f"{what}: add --yes to do that where nobody can be asked. Nothing was done"
        raise UsageError(msg)
    output.event("", text=f"{what}. Type yes to go on:")
    with UserInput(sys.stdin, quiet=False) as lines:
        answer = await lines.next()
    if answer is None or answer.strip().lower() not in {"y", "yes"}:
        msg = "nothing was done, since the answer was not yes"
        raise LocalError(msg)
