"""This node's store, served to peers over ``/p2pnode/blob/1``.

Anybody may read, within rates: it is ciphertext, named by its hash. Who may write, the injected policy says.
Streams are few: where all are taken, one that rests gives way, or one of the address that has the most.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

import structlog
import trio

from p2pnode.ids import PeerId
from p2pnode.net.stream import Stream
from p2pnode.node.node import Node
from p2pnode.protocols.blob.messages import PROTOCOL
from p2pnode.protocols.blob.rates import Allowance
from p2pnode.protocols.blob.server import BlobServer
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.storage.blob_stream import ServedBlobs
from p2pnode.storage.store import BlobStore, OwnerKey, Registry

log = structlog.get_logger()
Admits = Callable[[PeerId, OwnerKey], str]
"""Why this owner's writes are not taken from this peer; empty: they are."""
_PEERS_MAX: Final = 1024
_REST_S: Final = 5.0
"""A stream that has rested so long gives way when all places are taken."""


class BlobService:
    """Serves ``blobs`` and ``registry`` on ``node``. ``on_entry`` is told of each entry a peer wrote."""

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
        self._allowances: OrderedDict[PeerId, Allowance] = OrderedDict()
        self._streams: set[ServedBlobs] = set()

    def start(self) -> None:
        """Take streams from now on."""
        limit = self._node.limits.store_streams_per_peer
        self._node.network.serve(PROTOCOL, self._serve, streams_per_peer=limit)

    async def _serve(self, stream: Stream) -> None:
        node, peer = self._node, stream.peer
        if node.faults.shunned(peer, trio.current_time()) or not self._has_room(_host_of(stream)):
            await stream.reset()
            return
        machine = BlobServer(
            peer=peer,
            self_peer=node.peer_id,
            stream=0,
            admits=lambda owner: self._admits(peer, OwnerKey(owner)),
            allowance=self._allowance(peer),
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
            await served.run()
        finally:
            self._streams.discard(served)

    def _has_room(self, newcomer: str) -> bool:
        if len(self._streams) < self._node.limits.store_streams_max:
            return True
        now = trio.current_time()
        resting = [each for each in self._streams if each.resting and now - each.active_at >= _REST_S]
        longest = min(resting or self._crowding(newcomer), key=lambda each: each.active_at, default=None)
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

    def _allowance(self, peer: PeerId) -> Allowance:
        found = self._allowances.pop(peer, None) or Allowance(self._everyone)
        self._allowances[peer] = found
        if len(self._allowances) > _PEERS_MAX:
            self._allowances.popitem(last=False)
        return found


def _host_of(stream: Stream) -> str:
    """The address that it comes from, without the port."""
    return (stream.remote_addr or "").partition("/tcp/")[0]
