"""``Identify``: streams around the machine that asks and answers who a peer is. See ``protocols/identify``.

It stands on the network's own seam. What it knows of a peer is that peer's word only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Final, Protocol

import structlog
import trio
from multiaddr import Multiaddr

from p2pnode.bounded import BoundedMap
from p2pnode.errors import P2PNodeError, ProtocolError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.multiaddrs import without_peer
from p2pnode.net.router import Handler
from p2pnode.net.stream import Stream
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.events import (
    CancelTimer,
    Command,
    Effect,
    Emit,
    Event,
    Fault,
    Received,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.framing.codec import FrameDecoder, pack_frame
from p2pnode.protocols.identify.identifier import (
    Ask,
    Changed,
    Connected,
    Disconnected,
    Identified,
    Identifier,
    Push,
    PushCame,
    ReadPush,
    Unanswered,
)
from p2pnode.protocols.identify.messages import (
    MESSAGE_MAX,
    PROTOCOL,
    PUSH,
    Statement,
    encode,
    signed_record,
)

log = structlog.get_logger()

_STATED_MAX: Final = 512
"""Peers whose addresses are kept, those that left among them: they may be dialled again."""


class IdentifyNetwork(Protocol):
    """What identify needs of the network below it."""

    def serve(self, protocol: str, handler: Handler, *, streams_per_peer: int | None = None) -> None: ...
    async def open_stream(self, peer: PeerId, protocol: str) -> Stream: ...
    def charge(self, peer: PeerId, fault: str, weight: float) -> Any: ...
    @property
    def protocols(self) -> frozenset[str]: ...
    @property
    def announced(self) -> tuple[str, ...]: ...


class Identify:
    """Runs between ``start`` and the end of the nursery. ``identified`` hears of each peer that said what it
    speaks."""

    def __init__(
        self,
        network: IdentifyNetwork,
        *,
        public_key: bytes,
        peer_id: bytes,
        sign: Signer,
        wall_clock: Callable[[], float],
        limits: Limits,
        start_task: Callable[..., None],
        identified: Callable[[PeerId], None],
    ) -> None:
        self._network, self._limits = network, limits
        self._public_key, self._peer_id, self._sign, self._wall_clock = public_key, peer_id, sign, wall_clock
        self._start_task, self._identified = start_task, identified
        self._machine = Identifier()
        self._pushes: dict[PeerId, bool] = {}
        self._timers: dict[str, trio.CancelScope] = {}
        self._stated: BoundedMap[PeerId, tuple[bytes, ...]] = BoundedMap(_STATED_MAX)
        self._record: tuple[tuple[bytes, ...], bytes] = ((), b"")
        network.serve(PROTOCOL, self._answer, streams_per_peer=1)
        network.serve(PUSH, self._take_push, streams_per_peer=1)

    def statement_of(self, peer: PeerId) -> Statement | None:
        """What a connected peer said last; None while it has said nothing."""
        return self._machine.statement_of(peer)

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer that is or was connected says that it listens, without ``/p2p``."""
        found = []
        for each in self._stated.get(peer) or ():
            # Each kind of address has a codec of its own, which may raise anything.
            with contextlib.suppress(Exception):
                found.append(without_peer(str(Multiaddr(each))))
        return tuple(found)

    def connected(self, peer: PeerId) -> None:
        """Ask a peer that has just come."""
        self._give(Command(Connected(peer)))

    def disconnected(self, peer: PeerId) -> None:
        """Forget a peer that is gone."""
        self._give(Command(Disconnected(peer)))

    def changed(self) -> None:
        """Push what we say now to those who listen: our addresses have changed."""
        self._give(Command(Changed()))

    # ---- the machine

    def _give(self, event: Event) -> None:
        self._perform(self._machine.handle(event, trio.current_time()))

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Emit(value=Ask(peer=peer)):
                    self._start_task(self._ask, peer)
                case Emit(value=Push(peer=peer)):
                    self._start_task(self._push, peer)
                case Emit(value=ReadPush(peer=peer)):
                    self._pushes[peer] = True
                case Emit(value=Identified(peer=peer)):
                    if (statement := self._machine.statement_of(peer)) is not None:
                        self._stated.put(peer, statement.addresses)
                    self._identified(peer)
                case Emit(value=Fault(peer=peer, name=name, weight=weight)):
                    self._network.charge(peer, name, weight)
                case SetTimer(key=key, at=at):
                    self._start_task(self._wait, key, at)
                case CancelTimer(key=key) if key in self._timers:
                    self._timers[key].cancel()
                case _:
                    pass

    async def _wait(self, key: str, at: float) -> None:
        with trio.CancelScope() as scope:
            self._timers[key] = scope
            await trio.sleep_until(at)
        if self._timers.get(key) is scope:
            del self._timers[key]
        if not scope.cancelled_caught:
            self._give(TimerFired(key))

    # ---- streams

    async def _ask(self, peer: PeerId) -> None:
        message: bytes | None = None
        try:
            with trio.move_on_after(self._limits.request_deadline_s):
                stream = await self._network.open_stream(peer, PROTOCOL)
                try:
                    message = await _read_one(stream)
                finally:
                    await stream.aclose()
        except ProtocolError:
            message = b"\xff"  # too long: for the machine it is as malformed as any
        except P2PNodeError as error:
            log.debug("identify.no_answer", peer=peer, reason=str(error))
        self._give(Command(Unanswered(peer)) if message is None else Received(peer, 0, message))

    async def _push(self, peer: PeerId) -> None:
        try:
            with trio.move_on_after(self._limits.request_deadline_s):
                stream = await self._network.open_stream(peer, PUSH)
                await self._say(stream)
                await stream.aclose()
        except P2PNodeError as error:
            log.debug("identify.push_failed", peer=peer, reason=str(error))

    async def _answer(self, stream: Stream) -> None:
        with trio.move_on_after(self._limits.request_deadline_s) as patience:
            await self._say(stream)
        if patience.cancelled_caught:
            await stream.reset()

    async def _take_push(self, stream: Stream) -> None:
        peer = stream.peer
        self._give(Command(PushCame(peer)))
        if not self._pushes.pop(peer, False):
            await stream.reset()
            return
        message: bytes | None = None
        try:
            with trio.move_on_after(self._limits.request_deadline_s):
                message = await _read_one(stream)
        except ProtocolError:
            message = b"\xff"
        if message is not None:
            self._give(Received(peer, 0, message))

    async def _say(self, stream: Stream) -> None:
        addresses = tuple(_in_bytes(each) for each in self._network.announced)
        if self._record[0] != addresses or not self._record[1]:
            record = signed_record(
                addresses,
                peer_id=self._peer_id,
                public_key=self._public_key,
                seq=int(self._wall_clock() * 1e9),
                sign=self._sign,
            )
            self._record = (addresses, record)
        message = encode(
            Statement(addresses, self._network.protocols),
            public_key=self._public_key,
            observed=_in_bytes(stream.remote_addr) if stream.remote_addr else b"",
            agent=_agent(),
            signed_record=self._record[1],
        )
        await stream.send_all(pack_frame(message))


@lru_cache
def _agent() -> str:
    return f"p2pnode/{version('p2pnode')}"


async def _read_one(stream: Stream) -> bytes | None:
    """The first frame; None where the stream ends before it. Raises ``ProtocolError`` and as the stream."""
    decoder = FrameDecoder(MESSAGE_MAX)
    while data := await stream.receive_some():
        if payloads := decoder.feed(data):
            return payloads[0]
    return None


def _in_bytes(address: str) -> bytes:
    """A multiaddr in bytes, without the peer."""
    return bytes(Multiaddr(address.partition("/p2p/")[0]).to_bytes())
