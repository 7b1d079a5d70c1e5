"""Running async commands: signals, errors and exit codes in one place.

0 done, 1 failed, 2 usage, 3 no host, 4 refused, 130 interrupted. The first Ctrl-C asks for an
orderly end, the second forces it; a terminal that is closed asks for one too, and never forces it.
Nobody ever sees a traceback, but with ``--log-level debug``.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import structlog
import trio

from p2pnode.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from p2pnode.cli.output import OutputLostError
from p2pnode.errors import LocalError, NoHostError, P2PNodeError, RefusedError, UsageError, first_of_kind
from p2pnode.platforms import HANGUP

log = structlog.get_logger()

Kind = TypeVar("Kind", bound=BaseException)
EXIT_USAGE: Final = 2
EXIT_NO_HOST: Final = 3
EXIT_REFUSED: Final = 4
_FULL: Final = "free some space, or choose another --data-dir"
_DENIED: Final = "fix its owner and permissions, or choose another --data-dir"
_WRONG_PATH: Final = "check the path"
_SITUATIONS: Final[dict[int | None, str]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.ENOTDIR: _WRONG_PATH,
    errno.EISDIR: _WRONG_PATH,
    errno.ENOENT: _WRONG_PATH,
    errno.ELOOP: _WRONG_PATH,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk's health",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "end other programs: the system has no more open files to give",
    errno.ENOMEM: "end other programs, or take a smaller model",
}
_FILE_TROUBLES: Final = {
    "full": _FULL,
    "denied": _DENIED,
    "busy": "another program holds it: end that, and try again",
    "disk": "check the disk's health",
}


def run_async(
    function: Callable[[], Awaitable[None]],
    *,
    on_error: Callable[[P2PNodeError, int], None],
    on_interrupt: Callable[[], bool] = lambda: False,
    again: bool = False,
) -> None:
    """Run ``function``; exit with the code its failure stands for.

    ``on_interrupt`` is called at the first SIGINT or SIGTERM and returns True when it will end the
    run by itself; otherwise the run is cancelled. With ``again`` every signal is offered to it.
    """
    interrupted = False

    async def watch(scope: trio.CancelScope) -> None:
        nonlocal interrupted
        with trio.open_signal_receiver(*_signals()) as signals:
            async for each in signals:
                if interrupted and each == HANGUP:
                    continue  # the shell and the kernel each send one when a terminal is closed
                if interrupted:
                    os._exit(EXIT_INTERRUPTED)
                handled = on_interrupt()
                interrupted = not (handled and again)
                if not handled:
                    scope.cancel()

    orderly = False

    async def main() -> None:
        nonlocal orderly
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            await function()
            orderly = True
            nursery.cancel_scope.cancel()

    try:
        trio.run(main, strict_exception_groups=True)
        _flush()
    except BaseException as error:  # noqa: BLE001 - sorted out by kind below
        if first_of_kind(error, OutputLostError) is not None and interrupted:
            _leave(EXIT_INTERRUPTED)
        _exit_for(error, on_error)
    if interrupted and not orderly:
        _leave(EXIT_INTERRUPTED)


def run_plain(function: Callable[[], None], *, on_error: Callable[[P2PNodeError, int], None]) -> None:
    """Run a function that has no tasks; exit with the code its failure stands for.

    The first SIGINT, SIGTERM or SIGHUP raises ``KeyboardInterrupt`` in it, the second ends the process.
    """
    interrupted = False

    def interrupt(number: int, _frame: object) -> None:
        nonlocal interrupted
        if interrupted and number == HANGUP:
            return  # the shell and the kernel each send one when a terminal is closed
        if interrupted:
            os._exit(EXIT_INTERRUPTED)
        interrupted = True
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in _signals()}
    try:
        function()
        _flush()
    except BaseException as error:  # noqa: BLE001 - sorted out by kind
        _exit_for(error, on_error)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _signals() -> list[signal.Signals]:
    """Those that ask for an end. Not a hangup that our parent had us ignore, as `nohup` does."""
    asked = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is None or signal.getsignal(HANGUP) == signal.SIG_IGN:
        return asked
    return [*asked, HANGUP]


def _flush() -> None:
    """Write what was printed. Raises ``OutputLostError``."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OutputLostError(error) from error


def _exit_for(error: BaseException, on_error: Callable[[P2PNodeError, int], None]) -> NoReturn:
    ours: P2PNodeError | None = first_of_kind(error, P2PNodeError)
    lost = first_of_kind(error, OutputLostError)
    if ours is None and lost is not None and lost.left:
        _leave(0)  # whoever read our output had enough (``| head``): nothing is wrong
    if ours is None and lost is None and first_of_kind(error, KeyboardInterrupt) is not None:
        _leave(EXIT_INTERRUPTED)
    if ours is None:
        cause = first_of_kind(error, Exception)
        if cause is None:
            raise error
        ours = situation_of(cause) or _defect(cause)
    code = exit_code(ours)
    with suppress(OutputLostError):
        on_error(ours, code)
    _leave(code)


def situation_of(cause: Exception) -> LocalError | None:
    """An error of the system as one of ours that says what to do; None for a defect of p2pnode."""
    import sqlite3  # here: a free answer needs no database

    from p2pnode.durable import trouble_of

    match cause:
        case OutputLostError():
            return LocalError(f"standard output can't be written ({cause}): free space, or write elsewhere")
        case OSError(errno=number) if number in _SITUATIONS:
            where = f"{cause.filename}: " if isinstance(cause.filename, (str, Path)) else ""
            return LocalError(f"{where}{cause.strerror}: {_SITUATIONS[number]}")
        case sqlite3.Error() if (trouble := trouble_of(cause)) in _FILE_TROUBLES:
            return LocalError(f"a file of the data dir can't be used ({cause}): {_FILE_TROUBLES[trouble]}")
        case MemoryError():
            return LocalError("there is not enough memory: end other programs, or take a smaller model")
        case EOFError():
            return LocalError("the input ended before there was an answer: nothing was done")
        case _:
            return None


def _defect(cause: Exception) -> LocalError:
    log.debug("command.crashed", exc_info=cause)
    return LocalError(
        f"unexpected {type(cause).__name__}: {cause}. This is a defect of p2pnode: "
        "run it again with --log-level debug and report what it prints"
    )


def exit_code(error: P2PNodeError) -> int:
    """The exit code of an error."""
    match error:
        case NoHostError():
            return EXIT_NO_HOST
        case RefusedError(code=code) if code not in ("internal", "stalled"):
            return EXIT_REFUSED
        case UsageError():
            return EXIT_USAGE
        case _:
            return EXIT_FAILED


def _leave(code: int) -> NoReturn:
    raise SystemExit(code)
