"""One stream to a peer that stores: the client machine, and whoever waits for its answers.

A caller that is cancelled drops its question; the stream goes on for the others. It knows no store.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from p2pnode.errors import ProtocolError, RemoteError, UnreachableError
from p2pnode.limits import Limits
from p2pnode.net.stream import Stream
from p2pnode.node.channel import MessageChannel
from p2pnode.node.driver import Driver
from p2pnode.protocols.blob import commands as c
from p2pnode.protocols.blob.client import BlobClient
from p2pnode.protocols.blob.messages import CODEC, FRAME_MAX


@dataclass(slots=True)
class _Call:
    answered: trio.Event = field(default_factory=trio.Event)
    outcome: c.Outcome | None = None


class AskedPeer:
    """Questions on one stream. ``run`` it in a task of its own."""

    def __init__(
        self, machine: BlobClient, stream: Stream, *, limits: Limits, on_fault: Callable[[str], None]
    ) -> None:
        self._stream, self._on_fault = stream, on_fault
        channel = MessageChannel(stream, CODEC, FRAME_MAX)
        self._driver = Driver(machine, channel, on_emit=self._emitted, write_deadline_s=limits.stall_s)
        self._tickets = itertools.count()
        self._calls: dict[int, _Call] = {}
        self._over: c.Over | None = None
        self._scope = trio.CancelScope()
        self._ended = False

    @property
    def open(self) -> bool:
        """May more be asked?"""
        return self._over is None and not self._ended

    async def ask(self, question: c.Question) -> c.Outcome:
        """The answer. Raises ``UnreachableError`` when the stream is lost, ``ProtocolError`` for a liar's."""
        if not self.open:
            raise self._why()
        ticket, call = next(self._tickets), _Call()
        self._calls[ticket] = call
        try:
            self._driver.command_nowait(c.Ask(ticket, question))  # in order with its Drop
            await call.answered.wait()
        finally:
            del self._calls[ticket]
            if not call.answered.is_set():
                self._driver.command_nowait(c.Drop(ticket))
        if call.outcome is None:
            raise self._why()
        return call.outcome

    async def run(self) -> None:
        """Until the stream is over or :meth:`stop`."""
        fault: str | None = None
        try:
            with self._scope:
                await self._driver.run()
            over = self._over
            fault = self._driver.fault or (over.reason if over is not None and over.fault else None)
        finally:
            self._ended = True
            for call in self._calls.values():
                call.answered.set()
            if fault is not None:
                self._on_fault(fault)
            await (self._stream.reset() if fault is not None or self._over is None else self._stream.aclose())

    def stop(self) -> None:
        """End now."""
        self._scope.cancel()

    def _why(self) -> RemoteError:
        peer, over = self._stream.peer, self._over
        fault = self._driver.fault or (over.reason if over is not None and over.fault else None)
        if fault is not None:
            return ProtocolError(f"{peer} broke the protocol of blobs: {fault}")
        why = over.reason if over is not None and over.reason else "closed"
        return UnreachableError(f"the stream to {peer} was lost ({why}): try again, or another replica")

    async def _emitted(self, value: c.ClientEmission) -> None:
        match value:
            case c.Answered(ticket=ticket, outcome=outcome):
                call = self._calls.get(ticket)
                if call is not None:
                    call.outcome = outcome
                    call.answered.set()
            case c.Over():
                self._over = value
                self._driver.stop()
