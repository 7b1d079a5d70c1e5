"""The handshake of trio-websocket, with its reader in a guarded task of ours.

The library runs a reader in the nursery that it is given, which raises there whatever its parsers raise (a
header that is no UTF-8, an answer that is no WebSocket), and which may end without a word to who waits for
the handshake. Knows nothing of what is said over the WebSocket.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import trio
from trio_websocket import HandshakeError

_T = TypeVar("_T")
StartTask: TypeAlias = Callable[..., None]
"""``start_task(function, *args)`` runs it guarded: whatever it raises ends nothing else."""


async def shake_hands(
    start_task: StartTask, stream: trio.abc.Stream, handshake: Callable[[Any], Awaitable[_T]]
) -> _T:
    """What ``handshake(nursery)`` returns, where ``nursery`` is what to give to the library.

    Raises ``HandshakeError`` when the reader has ended before. When it ends, the socket is closed.
    """
    return await _Reader(start_task, stream).run_handshake(handshake)


class _Reader:
    """An object that the library uses as its nursery."""

    def __init__(self, start_task: StartTask, stream: trio.abc.Stream) -> None:
        self._start_task, self._stream = start_task, stream
        self._handshake = trio.CancelScope()
        self._error: Exception | None = None

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._start_task(self._run, reader)

    async def run_handshake(self, handshake: Callable[[Any], Awaitable[_T]]) -> _T:
        with self._handshake:
            return await handshake(self)
        raise HandshakeError from self._error

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except HandshakeError as error:
            self._error = error  # the other side refused, as WebSocket has it
        except Exception as error:
            self._error = error
            raise
        finally:
            self._handshake.cancel()
            # The library would leave the socket open after its reader ended, and a writer waiting for ever.
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)
