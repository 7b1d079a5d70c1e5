"""Counts prompts for clients that are about to pay, so that nobody pays a fee for a prompt that can't fit.

A few prompts are counted at once, one of each peer. It knows nothing of sessions and money.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from p2pnode.host.session import count_input
from p2pnode.ids import ModelId
from p2pnode.models.engine import Engine
from p2pnode.net.stream import Stream
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.node import Node
from p2pnode.protocols.count.counter import Answered, CountHost
from p2pnode.protocols.count.messages import CODEC, PROTOCOL
from p2pnode.protocols.inference import commands
from p2pnode.protocols.inference.messages import Refuse

log = structlog.get_logger()
_STREAMS_PER_PEER: Final = 1
_AT_ONCE: Final = 4
_RETRY_S: Final = 1.0
_NO_CACHE: Final = b"count"
"""A cache key that no session has, so that nothing is counted as reused."""
Serves = Callable[[ModelId], tuple[Engine, int] | Refuse]
"""The engine of a model and its context in tokens, or why it is not served now."""


def serve_counts(node: Node, serves: Serves) -> None:
    """Answer ``/p2pnode/count/1`` while the node runs."""
    under_way: set[_Counting] = set()

    async def serve(stream: Stream) -> str | None:
        counting = _Counting(node, stream, serves, is_full=lambda: len(under_way) > _AT_ONCE)
        under_way.add(counting)
        try:
            return await counting.run()
        finally:
            under_way.discard(counting)

    node.serve(PROTOCOL, serve, streams_per_peer=_STREAMS_PER_PEER)


class _Counting:
    """One stream."""

    def __init__(self, node: Node, stream: Stream, serves: Serves, *, is_full: Callable[[], bool]) -> None:
        self._stream, self._serves, self._is_full = stream, serves, is_full
        self._machine = CountHost(peer=stream.peer, stream=0, admit=self._admit)
        self._driver = Driver(
            self._machine,
            MessageChannel(stream, CODEC),
            on_emit=self._emitted,
            write_deadline_s=node.limits.stall_s,
            sleep=node.sleep,
        )
        self._engine: Engine | None = None
        self._fault: str | None = None

    async def run(self) -> str | None:
        """Serve to the end. Returns what the peer did against the protocol."""
        await self._driver.run_to_close(self._stream, self._machine.start(trio.current_time()))
        return self._fault or self._driver.fault

    def _admit(self, model: ModelId) -> int | Refuse:
        if self._is_full():
            return Refuse(code="capacity", detail="others are counted: try again", retry_after_s=_RETRY_S)
        served = self._serves(model)
        if isinstance(served, Refuse):
            return served
        self._engine, n_ctx = served
        return n_ctx

    async def _emitted(self, value: commands.Count | Answered) -> None:
        match value:
            case commands.Count() if self._engine is not None:
                self._driver.start_soon(
                    count_input, self._engine, value, _NO_CACHE, self._machine.n_ctx, self._driver.command
                )
            case Answered(reason=reason, fault=fault):
                self._fault = reason if fault else None
                log.debug("prompt.counted", peer=self._stream.peer, reason=reason)
                self._driver.stop()
            case _:
                pass
