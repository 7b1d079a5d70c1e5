"""Running async commands: signals, errors and exit codes in one place.

0 done, 1 failed, 2 usage, 3 no host, 4 refused, 130 interrupted. The first Ctrl-C asks for an
orderly end, the second forces it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import trio

from p2pnode.errors import NoHostError, P2PNodeError, RefusedError, UsageError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NO_HOST: Final = 3
EXIT_REFUSED: Final = 4
EXIT_INTERRUPTED: Final = 130


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
    ours = first_of(error)
    if ours is not None:
        code = exit_code(ours)
        on_error(ours, code)
        _leave(code)
    if contains(error, KeyboardInterrupt):
        _leave(EXIT_INTERRUPTED)
    raise error


def exit_code(error: P2PNodeError) -> int:
    """What the shell sees."""
    match error:
        case NoHostError():
            return EXIT_NO_HOST
        case RefusedError():
            return EXIT_REFUSED
        case UsageError():
            return EXIT_USAGE
        case _:
            return EXIT_FAILED


def first_of(error: BaseException) -> P2PNodeError | None:
    """The first of our own errors inside an exception group, depth first."""
    if isinstance(error, P2PNodeError):
        return error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            if (found := first_of(inner)) is not None:
                return found
    return None


def contains(error: BaseException, kind: type[BaseException]) -> bool:
    """Is there one of ``kind`` inside?"""
    if isinstance(error, BaseExceptionGroup):
        return any(contains(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)


def _leave(code: int) -> NoReturn:
    raise SystemExit(code)
