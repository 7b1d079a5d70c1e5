"""The shell of one session at a client: the client machine, its stream, and a queue of what it says."""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pnode.errors import RefusedError, RemoteError, UnreachableError
from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import Limits
from p2pnode.net.network import Network
from p2pnode.node.channel import MessageChannel
from p2pnode.node.driver import Driver
from p2pnode.protocols.inference.commands import (
    Accepted,
    Ask,
    CancelTurn,
    ClientEmission,
    End,
    Ended,
    SessionFailed,
    Start,
)
from p2pnode.protocols.inference.machine import ClientSession, ClientTimes
from p2pnode.protocols.inference.messages import CODEC, PROTOCOL, Accept


class HostFault(RemoteError):  # noqa: N818 - it names what the host did
    """The host broke the protocol: it is remembered."""


class Session:
    """A session with one host: ``run`` it in a nursery, then ``ask`` and ``receive``."""

    def __init__(
        self,
        network: Network,
        host: PeerId,
        model: ModelId,
        *,
        limits: Limits,
        draw: Callable[[int], bytes],
    ) -> None:
        self.host, self.model = host, model
        self._network, self._limits, self._draw = network, limits, draw
        self._driver: Driver | None = None
        # Full when the application does not read: then nothing is acknowledged and the host pauses.
        self._send, self._receive = trio.open_memory_channel[ClientEmission](64)
        self._on_open: Callable[[], None] = lambda: None
        self.accept: Accept | None = None
        self.failure: SessionFailed | None = None
        self.kept = False
        """Was it used before, and kept?"""
        self._closing = False
        self._ended = trio.Event()

    async def run(self, on_open: Callable[[], None]) -> None:
        """Open, call ``on_open``, then live until closed or failed.

        Raises ``UnreachableError`` when there is no stream; everything later is in ``failure``.
        """
        stream = await self._network.open_stream(self.host, PROTOCOL)
        machine = ClientSession(
            host=self.host,
            stream=0,
            model=self.model,
            salt=self._draw(32),
            times=ClientTimes(
                open_s=self._limits.request_deadline_s,
                first_token_s=self._limits.first_token_deadline_s,
                stall_s=self._limits.stall_s,
            ),
        )
        self._on_open = on_open
        self._driver = Driver(
            machine,
            MessageChannel(stream, CODEC),
            on_emit=self._emitted,
            write_deadline_s=self._limits.stall_s,
        )
        # Whoever wanted it may have gone while the stream opened: nothing is asked of the host then.
        self._driver.command_nowait(End() if self._closing else Start())
        try:
            await self._driver.run()
        finally:
            self._ended.set()
            self._send.close()
            if self.failure is None:
                await stream.aclose()
            else:
                await stream.reset()

    @property
    def over(self) -> bool:
        """Can it take no further turn?"""
        return self.failure is not None or self._ended.is_set()

    async def wait_over(self) -> None:
        """Until everything is written and the stream is closed."""
        await self._ended.wait()

    def error(self) -> RemoteError:
        """Why the session is over."""
        failure, malformed = self.failure, self._driver.fault if self._driver is not None else None
        if malformed is not None:
            return HostFault(f"the host broke the protocol: {malformed}")
        if failure is None:
            return RefusedError("internal", "the session was closed")
        if failure.fault:
            return HostFault(failure.detail)
        if failure.code in ("internal", "stalled"):
            return UnreachableError(failure.detail)
        return RefusedError(failure.code, failure.detail, retry_after_s=failure.retry_after_s)

    async def ask(self, ask: Ask) -> None:
        """Begin a turn; read it with :meth:`receive`."""
        if self._driver is None or self.over:
            raise self.error()
        await self._driver.command(ask)

    async def receive(self) -> ClientEmission:
        """The next event of the turn. Raises ``RemoteError`` when the session is over."""
        try:
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self.error() from None

    def cancel_turn(self) -> None:
        """Stop the turn; its remaining events still come."""
        self._command_nowait(CancelTurn())

    def close(self) -> None:
        """End the session in order."""
        self._closing = True
        self._receive.close()
        self._command_nowait(End())

    def _command_nowait(self, value: CancelTurn | End) -> None:
        if self._driver is None or self.over:
            return
        try:
            self._driver.command_nowait(value)
        except trio.WouldBlock:
            self._driver.stop()

    async def _emitted(self, value: ClientEmission) -> None:
        match value:
            case Accepted(accept=accept):
                self.accept = accept
                self._on_open()
                return
            case SessionFailed():
                self.failure = value
                if self._driver is not None:
                    self._driver.stop()
            case Ended():
                if self._driver is not None:
                    self._driver.stop()
            case _:
                pass
        try:
            await self._send.send(value)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
