"""The peers of a node: dials and asks those that ``PeerSelection`` chooses, and saves them for later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
import trio

from p2pnode.errors import RemoteError, StorageError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.multiaddrs import split_peer, with_peer
from p2pnode.net.network import Network
from p2pnode.net.saved_peers import SavedPeers
from p2pnode.node.adverts import AdvertService, failure_of
from p2pnode.node.peer_selection import (
    ADVERTS_DRAWN,
    ALONE_TOLD_S,
    DialCandidate,
    Kind,
    PeerSelection,
)
from p2pnode.shares import Draw

log = structlog.get_logger()


class Peers:
    """Keeps ``limits.peers_wanted`` connections, and saves the peers of this start for the next one."""

    def __init__(
        self,
        network: Network,
        adverts: AdvertService,
        *,
        limits: Limits,
        bootstrap: Sequence[str],
        store: SavedPeers | None,
        draw: Draw,
    ) -> None:
        self._network, self._adverts, self._limits = network, adverts, limits
        self._draw = draw
        first = [(peer, address) for address, peer in map(split_peer, bootstrap)]
        self.selection = PeerSelection(network.peer_id, limits, first)
        self._store = store
        self._saved = True
        self.joined = trio.Event()
        """Set when the first round of dials is over."""
        self._look_again = trio.Event()
        self._alone_since: float | None = None
        self._told = False

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Dial and ask in rounds until cancelled."""
        task_status.started()
        self._network.watch_peers(self._peer_changed)
        self._alone_since = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_mdns)
            nursery.start_soon(self._follow_network)
            while True:
                self._look_again = trio.Event()
                await self._round()
                self.joined.set()
                self._tell_when_alone()
                with trio.move_on_after(self.selection.wait_s(len(self._network.connected_peers()))):
                    await self._look_again.wait()

    def _peer_changed(self, _peer: PeerId, change: str) -> None:
        """Look again at once when the first peer has come: there is somebody to ask now."""
        if change == "connected" and self._alone_since is not None:
            self._alone_since, self._told = None, False
            self.selection.begin_anew()
            self._look_again.set()

    async def _follow_network(self) -> None:
        while True:
            await self._network.wait_changed()
            self.selection.begin_anew()
            self._look_again.set()

    def _tell_when_alone(self) -> None:
        """Say why nobody answers, once, after ``ALONE_TOLD_S``."""
        now = trio.current_time()
        if self._network.connected_peers():
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since, self._told = now, False
        elif now - self._alone_since >= ALONE_TOLD_S and not self._told and self.selection.has_tried:
            self._told = True
            log.warning("peers.alone", detail=self.selection.alone_words())

    async def _round(self) -> None:
        store = self._store
        saved = store.to_try(2 * self._limits.peers_wanted, self._draw) if store is not None else ()
        chosen = self.selection.to_dial(
            self._network.connected_peers(),
            saved=[(each.peer, each.addrs, self._kind_of(each.peer)) for each in saved],
            adverts=[
                entry.advert for entry in self._adverts.book.sample(ADVERTS_DRAWN, self._adverts.wall())
            ],
            dialable=self._network.policy.dialable,
        )
        async with trio.open_nursery() as nursery:
            for candidate in chosen:
                nursery.start_soon(self._dial, candidate)
        async with trio.open_nursery() as nursery:
            for peer in self.selection.to_ask(self._network.connected_peers()):
                nursery.start_soon(self._exchange, peer)
        await self.save()

    def _kind_of(self, peer: PeerId) -> Kind:
        return "last session" if self._store is not None and self._store.is_recent(peer) else "saved"

    async def _dial(self, candidate: DialCandidate) -> None:
        peer = candidate.peer
        try:
            with trio.fail_after(self._limits.dial_deadline_s):
                await self._network.connect_peer(peer, candidate.heard, trusted=candidate.told)
        except Exception as error:  # noqa: BLE001  of one peer of many: the others are dialled on
            if not isinstance(error, RemoteError | trio.TooSlowError):
                self._network.guard.note("dial", error)
            reason = failure_of(error) if isinstance(error, RemoteError) else "no answer in time"
            log.debug("peer.unreachable", peer=peer, reason=reason)
            self.selection.failed(peer, candidate.kind, reason)
            # While nobody at all answers, it is this machine that is offline: that says nothing of any peer.
            if self._store is not None and self._network.connected_peers():
                self._store.failed(peer)
            return
        self.selection.dialled(peer)
        log.debug("peer.connected", peer=peer)

    async def _exchange(self, peer: PeerId) -> None:
        """Ask for the adverts a peer knows, and for ours, to see whether somebody uses our identity."""
        self.selection.asked(peer)
        try:
            with trio.fail_after(self._limits.request_deadline_s):
                await self._adverts.sample(peer)
                await self._adverts.fetch(peer, self._network.peer_id)
        except (RemoteError, trio.TooSlowError):
            return  # it does not speak this protocol: it is another kind of node
        except Exception as error:  # noqa: BLE001  of one peer of many: the others are asked on
            self._network.guard.note("exchange", error)
            return
        self.selection.answered(peer)

    async def _follow_mdns(self) -> None:
        async for found in self._network.discovered():
            if found.peer != self._network.peer_id and not self._network.is_connected(found.peer):
                await self._dial(DialCandidate(found.peer, "local network", told=found.addrs))
                if self._network.is_connected(found.peer):
                    await self._exchange(found.peer)

    async def load(self) -> None:
        """Read the peers that an earlier start saved; to be awaited before :meth:`run` and :meth:`save`."""
        if self._store is not None:
            await self._store.load()

    async def save(self) -> None:
        """Write the connected peers to the file of saved peers."""
        if self._store is None:
            return
        now = self._adverts.wall()
        for peer in self._network.connected_peers():
            addresses = tuple(with_peer(each, peer) for each in self._network.addresses_of(peer))
            if addresses:
                # A peer that merely came to us ranks behind all that we reached: else a crowd of made-up
                # peers would be all that this node knows at its next start.
                self._store.remember(peer, addresses, now=now if peer in self.selection.reached else 0.0)
        try:
            await self._store.save()
        except StorageError as error:
            # Warned of once: the next round is seconds away, and a disk may stay full for long.
            tell = log.warning if self._saved else log.debug
            tell("saved_peers.not_saved", reason=str(error))
            self._saved = False
        else:
            self._saved = True
