"""The shell of one served session: the host machine, the stream, and one engine request at a time."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from p2pnode.host.generation import generate
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.models.engine import Engine
from p2pnode.net.stream import Stream
from p2pnode.node.channel import MessageChannel
from p2pnode.node.driver import Driver
from p2pnode.protocols.inference.commands import (
    CancelGenerate,
    Drain,
    Finished,
    Generate,
    HostEmission,
    Opened,
    TurnServed,
)
from p2pnode.protocols.inference.machine import HostSession
from p2pnode.protocols.inference.messages import CODEC

log = structlog.get_logger()


class ServedSession:
    """Drives one ``HostSession``. ``engine_of`` gives the engine once the session is open."""

    def __init__(
        self,
        machine: HostSession,
        stream: Stream,
        *,
        limits: Limits,
        engine_of: Callable[[Opened], Engine],
        on_turn: Callable[[TurnServed], None],
    ) -> None:
        self._machine, self._stream, self._limits = machine, stream, limits
        self._engine_of, self._on_turn = engine_of, on_turn
        self._driver = Driver(
            machine, MessageChannel(stream, CODEC), on_emit=self._emitted, write_deadline_s=limits.stall_s
        )
        self._engine: Engine | None = None
        self.session: SessionId | None = None
        self._scopes: dict[int, trio.CancelScope] = {}
        self._turn = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self.finished: Finished | None = None
        self.peer = stream.peer
        self.rests_since: float | None = trio.current_time()
        """Since when it asks nothing of the engine; None while a turn is served."""
        self.yielding = False
        """Was it told to give way?"""

    @property
    def fault(self) -> str | None:
        """What the peer did against the protocol, if anything."""
        if self.finished is not None and self.finished.fault:
            return self.finished.reason
        return self._driver.fault

    async def run(self) -> None:
        """Serve until the session is over, then close the stream."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._driver.run(self._machine.start(trio.current_time()))
                nursery.cancel_scope.cancel()
        finally:
            if self.fault is None and self.finished is not None:
                await self._stream.aclose()
            else:
                await self._stream.reset()

    def drain(self) -> None:
        """End after the present turn."""
        try:
            self._driver.command_nowait(Drain())
        except trio.WouldBlock:
            self._driver.stop()

    def give_way(self) -> None:
        """End now unless a turn is served: others wait for its place."""
        self.yielding = True
        for key in ("open", "idle", "prompt"):
            self._driver.fire_nowait(key)

    async def _emitted(self, value: HostEmission) -> None:
        match value:
            case Opened(session=session):
                self.session = session
                self._engine = self._engine_of(value)
            case Generate(run=run):
                self.rests_since, self.yielding = None, False
                if self._nursery is not None:
                    # Made here, not in the task: a run may be cancelled while it waits for the one before.
                    self._scopes[run] = trio.CancelScope()
                    self._nursery.start_soon(self._generate, value, self._scopes[run])
            case CancelGenerate(run=run):
                if run in self._scopes:
                    self._scopes[run].cancel()
            case TurnServed():
                self.rests_since = trio.current_time()
                self._on_turn(value)
            case Finished():
                self.finished = value
                for scope in self._scopes.values():
                    scope.cancel()
                self._driver.stop()

    async def _generate(self, order: Generate, scope: trio.CancelScope) -> None:
        if self._engine is None or self.session is None:
            return
        with scope:
            # One at a time: the one before may still be giving its slot back.
            async with self._turn:
                await generate(self._engine, order, self.session, self._limits, self._driver.command)
        del self._scopes[order.run]
