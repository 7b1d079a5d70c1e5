"""The results of a model's calls in ``p2pnode chat``: what a person types, or what a program of theirs says.

The program gets the tool's name as its argument and the call's arguments, JSON, on its standard input; what
it writes to standard output is the result. The arguments come from a stranger's machine: a person is asked
before each run, but with ``--yes``, and no shell reads them. What the program gets is what was shown, to the
letter; a call of which that can't be said is not run.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from p2pnode.platforms import kill_group, own_group
from p2pnode.words import one_line, printable, quoted

if TYPE_CHECKING:
    import trio

    from p2pnode.protocols.inference.messages import ToolCall

RUN_S: Final = 120.0
"""How long a program may take for one result."""
RESULT_BYTES_MAX: Final = 1 << 16
UNASKED_MAX: Final = 16
"""Calls in a row, without a word of the user's, after which a person is asked in spite of ``--yes``."""
NO_RESULT: Final = "The user gives no result for this call."
SKIP: Final = "/skip"
CALL_MAX: Final = 100_000
"""Letters of a call that people are shown; scripts get all of it."""
_SHOWN_MAX: Final = 2000


class ToolProgram:
    """A program that gives the results of calls."""

    def __init__(self, path: str, *, asks: bool) -> None:
        """``asks``: a person is asked before each run."""
        self.path = path
        self._asks = asks
        self._unasked = 0

    @classmethod
    def find(cls, name: str, *, asks: bool) -> Self:
        """The program of a path, or of a name on ``PATH``. Raises ``UsageError``."""
        from p2pnode.errors import UsageError

        path = shutil.which(name)
        if path is None:
            msg = f"--tool-command: {name} is no program: give its path, and make it executable (chmod +x)"
            raise UsageError(msg)
        return cls(path, asks=asks)

    def begin_turn(self) -> None:
        """The user said something."""
        self._unasked = 0

    def must_ask(self) -> bool:
        """Whether a person is to be asked before the next run."""
        self._unasked += 1
        return self._asks or self._unasked > UNASKED_MAX

    async def run(self, call: ToolCall) -> str:
        """What it says to a call of which :func:`why_not_run` says nothing.

        For one that fails it is what went wrong, for the model to know.
        """
        import trio

        try:
            # In a group of its own: Ctrl-C at the terminal is for the chat, which ends the program. One that
            # heard it, too, would end first, and its failure would go to the model as the result.
            process = await trio.lowlevel.open_process(
                [self.path, call.name], stdin=PIPE, stdout=PIPE, **own_group()
            )
        except OSError as error:
            return f"error: {self.path} can't be run: {error.strerror}"
        said = b""
        try:
            with trio.move_on_after(RUN_S) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_give, process, as_shown(call.arguments).encode())
                    said = await _output(process)
                await process.wait()
        finally:
            _kill(process)
            with trio.CancelScope(shield=True):
                await process.wait()
        if scope.cancelled_caught:
            return f"error: no result within {RUN_S:.0f} s"
        text = said[:RESULT_BYTES_MAX].decode(errors="replace")
        if len(said) > RESULT_BYTES_MAX:
            return f"{text}\n[cut after {RESULT_BYTES_MAX} bytes]"
        return text if process.returncode == 0 else f"error: exit status {process.returncode}\n{text}"


async def _give(process: trio.Process, data: bytes) -> None:
    import trio

    assert process.stdin is not None  # noqa: S101 - a pipe
    with suppress(trio.BrokenResourceError):  # it needs no arguments
        await process.stdin.send_all(data)
    await process.stdin.aclose()


async def _output(process: trio.Process) -> bytes:
    """All that it writes; it is killed where that is more than a result may have."""
    assert process.stdout is not None  # noqa: S101 - a pipe
    said = b""
    async for piece in process.stdout:
        said += piece
        if len(said) > RESULT_BYTES_MAX:
            _kill(process)
            break
    await process.stdout.aclose()
    return said


def as_shown(arguments: str) -> str:
    """The arguments of a call on one line, with an escape in place of each letter that can't be seen.

    JSON that says the same: a blank between its tokens is as good as a line break, and in a string an escape
    is as good as what it stands for.
    """
    return "".join(
        letter if letter.isprintable() else " " if letter in "\t\r\n" else json.dumps(letter)[1:-1]
        for letter in arguments
    )


def call_line(call: ToolCall) -> str:
    """A call as a person sees it, on one line: what follows a line break could look like words of ours."""
    return one_line(_line(call), CALL_MAX)


def _line(call: ToolCall) -> str:
    return f"{call.name}({as_shown(call.arguments)})"


def why_not_run(call: ToolCall) -> str:
    """Why no program may get a call's arguments; "" where one may.

    Of a name that stands twice people read the first, and most programs take the last.
    """
    if len(_line(call)) > CALL_MAX:
        return f"its arguments are too long to show: more than {CALL_MAX} letters"
    try:
        value = json.loads(call.arguments, object_pairs_hook=_distinct, parse_constant=_refuse)
    except _RepeatedError as error:
        return f"its arguments name {quoted(error.name, 40)} twice"
    except (ValueError, RecursionError):
        value = None
    return "" if isinstance(value, dict) else "its arguments are no JSON object"


class _RepeatedError(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise _RepeatedError(name)
        made[name] = value
    return made


def _refuse(_constant: str) -> NoReturn:
    raise ValueError


def _kill(process: trio.Process) -> None:
    """End a program and what it has started, where it still runs."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            kill_group(process.pid)


def wanted(call: ToolCall, program: ToolProgram | None) -> str:
    """What a person can do about a call."""
    runs = f"Enter runs {program.path}, or " if program is not None else ""
    if program is not None and (reason := why_not_run(call)):
        runs = f"{program.path} is not run, for {reason}: "
    return f"[{call.name}: {runs}type its result; {SKIP} gives none]"


def running(call: ToolCall, program: ToolProgram) -> str:
    """What runs now, and how it is stopped."""
    return f"[{program.path} runs for {call.name}: at most {RUN_S:.0f} s, Ctrl-C stops it]"


def shown(result: str) -> str:
    """A result as a person sees it."""
    text = printable(result.rstrip("\n"))
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}… ({len(text)} letters)"
