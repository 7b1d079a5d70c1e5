"""A measured process's end of the line: commands in on stdin, answers out on stdout, one JSON line each.

The process lives as long as its stdin: whatever ends the bench closes it, and then nothing is left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Self, TypeAlias

import trio

from p2pnode.log import configure_logging

LINE_MAX_BYTES: Final = 1 << 20
Command: TypeAlias = dict[str, Any]
_READ_BYTES: Final = 1 << 16


def run_child(main: Callable[[AsyncIterator[Command]], Awaitable[None]]) -> None:
    """Run ``main`` over the commands until they end, then leave at once."""
    # Ctrl-C goes to the whole group; the bench, which gets it too, decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging("error")  # to stderr: stdout is for answers

    async def whole() -> None:
        async with trio.open_nursery() as nursery:
            commands_in, commands = trio.open_memory_channel[Command](8)
            nursery.start_soon(_read, commands_in, nursery.cancel_scope)
            await main(commands)
            nursery.cancel_scope.cancel()

    trio.run(whole)


def answer(fields: Mapping[str, Any]) -> None:
    """One line to the bench."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def _read(commands: trio.MemorySendChannel[Command], scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        async for line in LineReader(stdin):
            await commands.send(json.loads(line))
    scope.cancel()


class LineReader:
    """Whole lines of a stream; a longer one than ``LINE_MAX_BYTES`` ends it."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._rest = b""
        self._whole: deque[bytes] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._whole:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data or len(self._rest) > LINE_MAX_BYTES:
                raise StopAsyncIteration
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._whole.extend(whole)
        return self._whole.popleft()
