"""Counts prompts for clients that are about to pay, so that nobody pays a fee for a prompt that can't fit.

A few prompts are taken in at once, one of each peer, with fair shares by origin, and fewer are counted at
once. A prompt that comes slowly gives way to another client's. It knows nothing of sessions and money.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import structlog
import trio

from p2pnode.errors import EngineError, WireCode
from p2pnode.host.generation import counted
from p2pnode.host.model_pool import HoldModel
from p2pnode.host.unpaid_work import TOO_MUCH, UnpaidWork
from p2pnode.ids import ModelId
from p2pnode.net.stream import Stream
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.node import Node
from p2pnode.protocols.count.counter import TURN, Answered, CountHost
from p2pnode.protocols.count.messages import CODEC, PROTOCOL
from p2pnode.protocols.inference import commands
from p2pnode.protocols.inference.messages import Refuse
from p2pnode.shares import FairShares

log = structlog.get_logger()
_STREAMS_PER_PEER: Final = 1
_TAKEN_AT_ONCE: Final = 16
_COUNTED_AT_ONCE: Final = 4
_PATIENCE_S: Final = 2.0
"""A prompt whose parts take longer gives way to any newcomer when all places are taken."""
_RETRY_S: Final = 1.0
_FULL: Final[tuple[WireCode, str, float]] = ("capacity", "others are counted: try again", _RETRY_S)
_NO_CACHE: Final = b"count"
"""A cache key that no session has, so that nothing is counted as reused."""
Serves = Callable[[ModelId], tuple[HoldModel, int] | Refuse]
"""How to hold a model, and its context in tokens; or why it is not served now."""


def serve_counts(node: Node, serves: Serves, unpaid: UnpaidWork) -> None:
    """Answer ``/p2pnode/count/1`` while the node runs."""
    places: FairShares[_Counting] = FairShares(_TAKEN_AT_ONCE)
    engine_places = trio.CapacityLimiter(_COUNTED_AT_ONCE)

    def enter(newcomer: _Counting) -> bool:
        entered, victim = places.enter(newcomer, newcomer.origin, _oldest_incomplete)
        if not entered:
            late = trio.current_time() - _PATIENCE_S
            victim = next((each for each in places if each.is_incomplete and each.since < late), None)
            if victim is None:
                return False
            places.leave(victim)
            places.enter(newcomer, newcomer.origin, _oldest_incomplete)
        if victim is not None:
            victim.give_way()
        return True

    async def serve(stream: Stream) -> str | None:
        counting = _Counting(node, stream, serves, enter, engine_places, unpaid=unpaid)
        try:
            return await counting.run()
        finally:
            places.leave(counting)

    node.serve(PROTOCOL, serve, streams_per_peer=_STREAMS_PER_PEER)


class _Counting:
    """One stream."""

    def __init__(
        self,
        node: Node,
        stream: Stream,
        serves: Serves,
        enter: Callable[[_Counting], bool],
        engine_places: trio.CapacityLimiter,
        *,
        unpaid: UnpaidWork,
    ) -> None:
        self._unpaid = unpaid
        self._stream, self._serves, self._enter, self._engine_places = stream, serves, enter, engine_places
        self.origin = node.network.origin_of(stream.peer)
        self.since = trio.current_time()
        self._machine = CountHost(peer=stream.peer, stream=0, admit=self._admit)
        self._driver = Driver(
            self._machine,
            MessageChannel(stream, CODEC),
            on_emit=self._emitted,
            write_deadline_s=node.limits.stall_s,
            sleep=node.sleep,
        )
        self._hold: HoldModel | None = None
        self._fault: str | None = None

    async def run(self) -> str | None:
        """Serve to the end. Returns what the peer did against the protocol."""
        await self._driver.run_to_close(self._stream, self._machine.start(trio.current_time()))
        return self._fault or self._driver.fault

    @property
    def is_incomplete(self) -> bool:
        """Whether a part of the prompt is still to come."""
        return self._machine.state == "reading"

    def give_way(self) -> None:
        """End now, so that another client gets the place."""
        self._driver.command_nowait(commands.CountFailed(TURN, *_FULL))

    def _admit(self, model: ModelId) -> int | Refuse:
        served = self._serves(model)
        if isinstance(served, Refuse):
            return served
        if not self._enter(self):
            code, detail, retry_after_s = _FULL
            return Refuse(code=code, detail=detail, retry_after_s=retry_after_s)
        self._hold, n_ctx = served
        return n_ctx

    async def _emitted(self, value: commands.Count | Answered) -> None:
        match value:
            case commands.Count() if self._hold is not None:
                self._driver.start_soon(self._count, self._hold, value)
            case Answered(reason=reason, fault=fault):
                self._fault = reason if fault else None
                log.debug("prompt.counted", peer=self._stream.peer, reason=reason)
                self._driver.stop()
            case _:
                pass

    async def _count(self, hold: HoldModel, order: commands.Count) -> None:
        wait_s = self._unpaid.begin(self.origin, None, trio.current_time())
        if wait_s:
            await self._driver.command(commands.CountFailed(TURN, *TOO_MUCH, wait_s))
            return
        try:
            held = await hold(embeds=bool(order.body.embed))
        except EngineError as error:  # its model is cold, and can't be had in time
            failed = commands.CountFailed(TURN, error.code, str(error), error.retry_after_s)
            await self._driver.command(failed)
            return
        try:
            async with self._engine_places:
                news, _ = await counted(held.engine, order, _NO_CACHE, self._machine.n_ctx)
        finally:
            held.release()
        await self._driver.command(news)


def _oldest_incomplete(places: Collection[_Counting]) -> _Counting | None:
    return next((each for each in places if each.is_incomplete), None)
