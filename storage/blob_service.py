"""Serves this node's store to peers over ``/p2pnode/blob/1``.

Anybody may read, within rates: what is stored is ciphertext, named by its hash. Who may write is decided by
the injected policy. Streams are bounded: where all places are taken, an idle stream is ended for a new one,
or one of the address that has the most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Final, assert_never

import structlog
import trio

from p2pnode.bounded import BoundedMap
from p2pnode.errors import P2PNodeError, StoreCode, StoreRefusedError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.stream import Stream
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.node import Node
from p2pnode.protocols.blob import commands as c
from p2pnode.protocols.blob.allowance import Allowance
from p2pnode.protocols.blob.messages import CODEC, FRAME_MAX, PROTOCOL
from p2pnode.protocols.blob.server import BlobServer
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.storage.store import (
    BadEntryError,
    BlobStore,
    DiskFullError,
    HashMismatchError,
    NoBlobError,
    OwnerKey,
    QuotaError,
    Registry,
    StaleEntryError,
    TooLargeError,
)

log = structlog.get_logger()
Admits = Callable[[PeerId, OwnerKey], str]
"""Returns why this owner's writes are not taken from this peer; an empty text if they are."""
_PEERS_MAX: Final = 1024
_IDLE_S: Final = 5.0
"""A stream that was idle for so long may be ended when all places are taken."""


class BlobService:
    """Serves ``blobs`` and ``registry`` on ``node``. ``on_entry`` gets each key that a peer wrote."""

    def __init__(
        self,
        node: Node,
        blobs: BlobStore,
        registry: Registry,
        *,
        admits: Admits,
        on_entry: Callable[[EntryKey], None] = lambda _key: None,
    ) -> None:
        self._node, self._blobs, self._registry = node, blobs, registry
        self._admits, self._on_entry = admits, on_entry
        self._everyone = Allowance()
        self._allowances: BoundedMap[PeerId, Allowance] = BoundedMap(_PEERS_MAX)
        self._streams: set[ServedBlobs] = set()

    def start(self) -> None:
        """Serve from now on."""
        limit = self._node.limits.store_streams_per_peer
        self._node.serve(PROTOCOL, self._serve, streams_per_peer=limit)

    async def _serve(self, stream: Stream) -> str | None:
        node, peer = self._node, stream.peer
        # No await from here until the stream is counted, or a crowd would come in on one free place.
        if not self._has_room(_host_of(stream)):
            await stream.reset()
            return None
        machine = BlobServer(
            peer=peer,
            self_peer=node.peer_id,
            stream=0,
            admits=lambda owner: self._admits(peer, OwnerKey(owner)),
            allowance=self._allowances.use(peer, lambda: Allowance(self._everyone)),
        )
        served = ServedBlobs(
            machine,
            stream,
            self._blobs,
            self._registry,
            limits=node.limits,
            on_entry=self._on_entry,
            on_fault=lambda what: node.faults.record(peer, what, trio.current_time()),
        )
        self._streams.add(served)
        try:
            return await served.run()
        finally:
            self._streams.discard(served)

    def _has_room(self, newcomer: str) -> bool:
        if len(self._streams) < self._node.limits.store_streams_max:
            return True
        now = trio.current_time()
        idle = [each for each in self._streams if each.idle and now - each.active_at >= _IDLE_S]
        longest = min(idle or self._crowding(newcomer), key=lambda each: each.active_at, default=None)
        if longest is None:
            return False
        self._streams.discard(longest)
        longest.give_way()
        return True

    def _crowding(self, newcomer: str) -> list[ServedBlobs]:
        """Streams of the address that has the most, if the newcomer's would still have fewer."""
        taken = Counter(_host_of(each.stream) for each in self._streams)
        host, most = taken.most_common(1)[0]
        if most <= taken[newcomer] + 1:
            return []
        return [each for each in self._streams if _host_of(each.stream) == host]


def _host_of(stream: Stream) -> str:
    """The address that the stream comes from, without the port."""
    return (stream.remote_addr or "").partition("/tcp/")[0]


_REFUSALS: Final[dict[type[P2PNodeError], tuple[StoreCode, str]]] = {
    NoBlobError: ("not_found", "this store does not have it"),
    HashMismatchError: ("hash_mismatch", "the bytes are not those of the hash"),
    TooLargeError: ("too_large", "more bytes than one blob may have here"),
    QuotaError: ("quota", "the owner's share, or the store's, is used up: unpin something or ask elsewhere"),
    DiskFullError: ("disk_full", "the disk takes no more: ask elsewhere"),
    BadEntryError: ("bad_entry", "the entry's key did not sign it"),
}


class ServedBlobs:
    """One peer's stream: drives a ``BlobServer``, with a task for each order to the store.

    Where the store is slow, pieces of an upload wait for it, and so does the peer: it gets credit for what
    the store has taken. The store's own errors stay here, since they may name folders: the peer is told the
    kind of error only. ``on_entry`` is called with the key of each entry that was kept.
    """

    def __init__(
        self,
        machine: BlobServer,
        stream: Stream,
        blobs: BlobStore,
        registry: Registry,
        *,
        limits: Limits,
        on_entry: Callable[[EntryKey], None],
        on_fault: Callable[[str], None],
    ) -> None:
        self._machine, self.stream = machine, stream
        self._blobs, self._registry = blobs, registry
        self._on_entry, self._on_fault = on_entry, on_fault
        channel = MessageChannel(stream, CODEC, FRAME_MAX)
        self._driver = Driver(machine, channel, on_emit=self._ordered, write_deadline_s=limits.stall_s)
        self._scopes: dict[int, trio.CancelScope] = {}
        self._uploads: dict[int, trio.MemorySendChannel[bytes]] = {}
        self._scope = trio.CancelScope()
        self._over: c.Over | None = None
        self.active_at = trio.current_time()

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything on it."""
        return self._machine.resting

    def give_way(self) -> None:
        """End, since another stream waits for the place."""
        if self.idle:
            self._driver.fire_nowait("idle")
        else:
            self._scope.cancel()

    async def run(self) -> str | None:
        """Serve until the stream is over, then close it. Returns what the peer did against the protocol."""
        with self._scope:
            await self._driver.run_to_close(self.stream, self._machine.start(trio.current_time()))
        if self._driver.fault is not None:
            return self._driver.fault
        return self._over.reason if self._over is not None and self._over.fault else None

    async def _ordered(self, order: c.Order) -> None:
        match order:
            case c.Piece():
                self._piece(order)
            case c.Abandon(id=id_):
                self._scopes.get(id_, trio.CancelScope()).cancel()
            case c.Fault(what=what):
                self._on_fault(what)
            case c.Over():
                self._over = order
                self._driver.stop()
            case _:
                self._begin(order)

    def _piece(self, piece: c.Piece) -> None:
        upload = self._uploads.get(piece.id)
        if upload is None:
            return
        try:
            if piece.data:
                upload.send_nowait(piece.data)
        except trio.BrokenResourceError:
            return  # the store takes no more of it, and its report follows
        if piece.last:
            upload.close()

    def _begin(self, order: c.Work) -> None:
        self.active_at = trio.current_time()
        pieces: trio.MemoryReceiveChannel[bytes] | None = None
        if isinstance(order, c.KeepBlob) and order.data is None:
            self._uploads[order.id], pieces = trio.open_memory_channel[bytes](
                math.inf
            )  # the machine bounds it
        # Made here, not in the task: it may be abandoned before the task runs.
        self._scopes[order.id] = trio.CancelScope()
        self._driver.start_soon(self._work, order, pieces)

    async def _work(self, order: c.Work, pieces: trio.MemoryReceiveChannel[bytes] | None) -> None:
        report: c.Report = c.NotDone(order.id, "cancelled")
        with self._scopes[order.id]:
            try:
                report = await self._do(order, pieces)
            except StaleEntryError as error:
                report = c.NewerEntry(order.id, error.current)
            except P2PNodeError as error:
                report = self._refusal(order, error)
        if pieces is not None:
            pieces.close()
            del self._uploads[order.id]
        self.active_at = trio.current_time()
        del self._scopes[order.id]
        await self._driver.command(report)

    async def _do(self, order: c.Work, pieces: trio.MemoryReceiveChannel[bytes] | None) -> c.Report:
        match order:
            case c.KeepBlob(owner=owner, hash=digest, lease_s=lease_s):
                data = order.data if order.data is not None else self._each(order.id, pieces)
                await self._blobs.put(data, owner=OwnerKey(owner), expected=digest, lease_s=lease_s)
                if pieces is not None:
                    async for _ in self._each(order.id, pieces):
                        pass  # it was here already: the answer comes once the peer has sent all
            case c.ReadBlob(hash=digest, offset=offset, length=length, sized=sized):
                size = await self._blobs.size(digest) if sized else None
                if sized and size is None:
                    return c.NotDone(order.id, *_REFUSALS[NoBlobError])
                return c.BlobRead(order.id, await self._blobs.read(digest, offset, length), size)
            case c.FindSizes(hashes=hashes):
                return c.SizesFound(order.id, tuple([await self._blobs.size(each) for each in hashes]))
            case c.KeepLease(owner=owner, hash=digest, lease_s=lease_s):
                await self._blobs.pin(digest, owner=OwnerKey(owner), lease_s=lease_s)
            case c.EndLease(owner=owner, hash=digest):
                await self._blobs.unpin(digest, owner=OwnerKey(owner))
            case c.FindEntry(key=key):
                return c.EntryFound(order.id, await self._registry.get(key))
            case c.KeepEntry(owner=owner, entry=entry):
                await self._registry.set(entry, owner=OwnerKey(owner))
                self._on_entry(entry.key)
            case _:
                assert_never(order)
        return c.WorkDone(order.id)

    async def _each(self, id_: int, pieces: trio.MemoryReceiveChannel[bytes] | None) -> AsyncIterator[bytes]:
        if pieces is not None:
            async for piece in pieces:
                yield piece
                await self._driver.command(c.Taken(id_, len(piece)))

    def _refusal(self, order: c.Work, error: P2PNodeError) -> c.NotDone:
        for kind, (code, detail) in _REFUSALS.items():
            if isinstance(error, kind):
                return c.NotDone(order.id, code, detail)
        if isinstance(error, StoreRefusedError):
            return c.NotDone(order.id, error.code, error.detail, error.retry_after_s)
        log.warning("store.failed", order=type(order).__name__, reason=str(error))
        return c.NotDone(order.id, "internal", "the store failed")
