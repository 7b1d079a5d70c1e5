"""One websocket between S5 nodes, running: the machine of ``protocols/s5`` with a store behind it.

What the other node asks for is looked up here; entries that it hands on are kept, counted by *its* key, so a
stranger can use up nobody's quota but his own. The socket is the caller's: :class:`Frames`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog
import trio

from p2pnode.errors import P2PNodeError
from p2pnode.ids import PeerId
from p2pnode.node.driver import Driver
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.s5.commands import (
    BlobHeld,
    Connected,
    Ended,
    EntryHeard,
    EntryHeld,
    LocationHeard,
    NewEntry,
    PeersHeard,
    PushEntry,
    S5Emission,
    SearchOver,
    WantedBlob,
    WantedEntry,
)
from p2pnode.protocols.s5.connection import S5Peer
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, BlobId, UnsupportedHashError
from p2pnode.protocols.s5.messages import CHALLENGE_BYTES, FRAME_MAX, decode, encode
from p2pnode.protocols.s5.nodes import NodeId
from p2pnode.storage.store import BlobStore, OwnerKey, Registry

LOCATION_S: Final = 3600
"""How long a location that we name may be believed: S5's own number for files."""
_NOBODY: Final = PeerId("")

log = structlog.get_logger(__name__)


class Frames(Protocol):
    """A websocket's binary messages."""

    async def send(self, frame: bytes) -> None:
        """Send one message. Raises ``UnreachableError`` when the websocket is closed."""
        ...

    async def receive(self) -> bytes | None:
        """The next message; None at the end."""
        ...


class _FrameChannel:
    """S5's messages on a websocket, for the driver: see ``node.driver.Channel``."""

    peer, frame_max = _NOBODY, FRAME_MAX

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    async def send(self, messages: Iterable[Any]) -> None:
        for message in messages:
            await self._frames.send(encode(message))

    def queue_now(self, messages: Iterable[Any]) -> bool:  # noqa: ARG002
        """To send takes a wait here."""
        return False

    async def receive(self) -> Any | None:
        while (frame := await self._frames.receive()) is not None:
            try:
                return decode(frame)
            except UnsupportedHashError:
                continue  # about a blob that nobody here can have
        return None

    def take_with(self, has_room: Callable[[], bool], take: Callable[[Any], None]) -> None:
        """All is received."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S5Node:
    """Who we are to other S5 nodes, where we can be dialled, and what we hold."""

    id: NodeId
    sign: Signer = field(repr=False)
    uris: tuple[str, ...] = ()
    blobs: BlobStore
    registry: Registry
    wall: Callable[[], float]


class PeerConnection:
    """A connection that we ``dialled`` or not. ``urls``: where the other side can fetch a blob of ours."""

    def __init__(
        self,
        node: S5Node,
        frames: Frames,
        urls: Callable[[BlobId], tuple[str, ...]],
        *,
        stall_s: float,
        dialled: bool,
        expected: NodeId | None = None,
    ) -> None:
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self._machine = S5Peer(
            node=node.id,
            sign=node.sign,
            challenge=challenge,
            dialled=dialled,
            uris=node.uris,
            expected=expected,
        )
        self._node, self._urls = node, urls
        self._driver = Driver(
            self._machine, _FrameChannel(frames), on_emit=self._emitted, write_deadline_s=stall_s
        )
        self._connected = trio.Event()
        self._ended: Ended | None = None
        self.heard: Entry | None = None
        """The last entry that the other side sent: it is not sent back."""

    @property
    def other(self) -> NodeId | None:
        """Who the other side is, once it has proved it."""
        return self._machine.node

    @property
    def ended(self) -> Ended | None:
        """Why the connection is over; None while it is not."""
        return self._ended

    async def wait_connected(self) -> None:
        """Wait until the other side has proved who it is, or the connection is over."""
        await self._connected.wait()

    async def run(self) -> None:
        """Run until either side ends it, or the other takes nothing for ``stall_s``."""
        try:
            await self._driver.run(self._machine.start(trio.current_time()))
        finally:
            self._connected.set()

    async def push(self, entry: Entry) -> None:
        """Send an entry to the other side."""
        await self._driver.command(PushEntry(entry))

    # ---- inside

    async def _emitted(self, value: S5Emission) -> None:
        match value:
            case Connected():
                self._connected.set()
            case Ended():
                self._ended = value
                self._driver.stop()
            case WantedBlob(digest=digest):
                self._driver.start_soon(self._look_for_blob, digest)
            case WantedEntry(key=key):
                self._driver.start_soon(self._look_for_entry, key)
            case NewEntry(entry=entry):
                self._driver.start_soon(self._keep, entry)
            case LocationHeard() | SearchOver() | EntryHeard() | PeersHeard():
                pass  # this node answers: it asks nobody, and dials nobody

    async def _look_for_blob(self, digest: BlobHash) -> None:
        urls: tuple[str, ...] = ()
        try:
            size = await self._node.blobs.size(digest)
            urls = self._urls(BlobId(digest, size)) if size is not None else ()
        except P2PNodeError as error:
            log.warning("s5.lookup_failed", error=str(error))
        until = int(self._node.wall()) + LOCATION_S
        await self._driver.command(BlobHeld(digest=digest, urls=urls, expires_at=until))

    async def _look_for_entry(self, key: EntryKey) -> None:
        entry = None
        try:
            entry = await self._node.registry.get(key)
        except P2PNodeError as error:
            log.warning("s5.lookup_failed", error=str(error))
        await self._driver.command(EntryHeld(key, entry))

    async def _keep(self, entry: Entry) -> None:
        other = self._machine.node
        if other is None:
            return
        self.heard = entry
        try:
            await self._node.registry.set(entry, owner=OwnerKey(other))
        except P2PNodeError as error:  # its quota is used up, or a newer one came meanwhile
            log.info("s5.entry_not_kept", error=str(error))
