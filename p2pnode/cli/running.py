"""Running async commands: signals, errors and exit codes in one place.

0 done, 1 failed, 2 usage, 3 no host, 4 refused, 130 interrupted. The first Ctrl-C asks for an
orderly end, the second forces it. Nobody ever sees a traceback, but with ``--log-level debug``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, TypeVar

import structlog
import trio

from p2pnode.cli import EXIT_INTERRUPTED
from p2pnode.errors import LocalError, NoHostError, P2PNodeError, RefusedError, UsageError

log = structlog.get_logger()

Kind = TypeVar("Kind", bound=BaseException)
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NO_HOST: Final = 3
EXIT_REFUSED: Final = 4


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
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
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
    except BaseException as error:  # noqa: BLE001 - sorted out by kind below
        _exit_for(error, on_error)
    if interrupted and not orderly:
        _leave(EXIT_INTERRUPTED)


def _exit_for(error: BaseException, on_error: Callable[[P2PNodeError, int], None]) -> NoReturn:
    ours = first_of(error, P2PNodeError)
    if ours is None and first_of(error, BrokenPipeError) is not None:
        _reader_gone()
    left = first_of(error, SystemExit)  # rich's way to say that nobody reads its table
    if ours is None and left is not None and isinstance(left.__context__, BrokenPipeError):
        _reader_gone()
    if ours is None and first_of(error, KeyboardInterrupt) is not None:
        _leave(EXIT_INTERRUPTED)
    if ours is None:
        cause = first_of(error, Exception)
        if cause is None:
            raise error
        ours = _defect(cause)
    code = exit_code(ours)
    try:
        on_error(ours, code)
    except BrokenPipeError:
        _reader_gone()
    _leave(code)


def _defect(cause: Exception) -> LocalError:
    log.debug("command.crashed", exc_info=cause)
    return LocalError(
        f"unexpected {type(cause).__name__}: {cause}. This is a defect of p2pnode: "
        "run it again with --log-level debug and report what it prints"
    )


def _reader_gone() -> NoReturn:
    """Whoever read our output had enough (``| head``): nothing is wrong."""
    # Python flushes stdout once more on its way out.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _leave(0)


def exit_code(error: P2PNodeError) -> int:
    """What the shell sees."""
    match error:
        case NoHostError():
            return EXIT_NO_HOST
        case RefusedError(code=code) if code not in ("internal", "stalled"):
            return EXIT_REFUSED
        case UsageError():
            return EXIT_USAGE
        case _:
            return EXIT_FAILED


def first_of(error: BaseException, kind: type[Kind]) -> Kind | None:
    """The first error of a kind inside an exception group, depth first."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            if (found := first_of(inner, kind)) is not None:
                return found
        return None
    return error if isinstance(error, kind) else None


def _leave(code: int) -> NoReturn:
    raise SystemExit(code)
