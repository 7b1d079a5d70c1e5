"""Keeping company: bootstrap, saved peers, mDNS and peer exchange, until enough peers are connected.

Every first peer comes from the user (a multiaddr or an invite), the LAN, or an earlier run: there is
no built-in address anywhere.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
import trio

from p2pnode.errors import RemoteError, StorageError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.multiaddrs import split_peer, with_peer
from p2pnode.net.network import Network
from p2pnode.net.peerstore import SavedPeers
from p2pnode.node.adverts import AdvertService, failure_of

log = structlog.get_logger()
_EXCHANGES: Final = 3
"""Questions to one peer that stay without an answer, at most."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A peer to dial: where we know it to be, and where strangers say that it is."""

    peer: PeerId
    told: tuple[str, ...] = ()
    heard: tuple[str, ...] = ()


class PeerKeeper:
    """Keeps ``limits.peers_wanted`` connections, and what it learned for the next start."""

    def __init__(
        self,
        network: Network,
        adverts: AdvertService,
        *,
        limits: Limits,
        bootstrap: Sequence[str],
        store: SavedPeers | None,
    ) -> None:
        self._network, self._adverts, self._limits = network, adverts, limits
        self._bootstrap = [split_peer(each) for each in bootstrap]
        self._store = store
        self._saved = True
        self._failed: Counter[PeerId] = Counter()
        self._exchanges: Counter[PeerId] = Counter()
        self._wait_s = 0.5
        self.dialled: set[PeerId] = set()
        """Peers we reached ourselves: they count as real."""
        self.joined = trio.Event()
        """Set when the first round of dials is over."""

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_mdns)
            while True:
                await self._round()
                self.joined.set()
                with trio.move_on_after(self._interval()):
                    await trio.sleep_forever()

    def _interval(self) -> float:
        """Soon at first and while company is short, so that a new node is on the meshes within seconds."""
        connected = len(self._network.connected_peers())
        if connected >= self._limits.peers_wanted:
            return self._limits.peers_interval_s
        self._wait_s = min(2 * self._wait_s, self._limits.peers_interval_s if connected else 3.0)
        return self._wait_s

    async def _round(self) -> None:
        wanted = self._limits.peers_wanted - len(self._network.connected_peers())
        if wanted > 0:
            async with trio.open_nursery() as nursery:
                for candidate in self._candidates()[: 2 * wanted]:
                    nursery.start_soon(self._dial, candidate)
        connected = self._network.connected_peers()
        self._exchanges = Counter({peer: self._exchanges[peer] for peer in connected})
        waiting = [peer for peer in connected if self._exchanges[peer] < _EXCHANGES]
        # At once and few: those who never answer must not keep us from dialling others.
        first = sorted(waiting, key=lambda peer: (self._exchanges[peer], peer not in self.dialled))
        async with trio.open_nursery() as nursery:
            for peer in first[: 2 * self._limits.peers_wanted]:
                nursery.start_soon(self._exchange, peer)
        await self.save()

    def _candidates(self) -> list[_Candidate]:
        found = {
            peer: _Candidate(peer, told=(address,))
            for address, peer in self._bootstrap
            if peer != self._network.peer_id
        }
        if self._store is not None:
            for saved in self._store.best(self._limits.peers_wanted):
                found.setdefault(saved.peer, _Candidate(saved.peer, told=saved.addrs))
        known = {self._network.peer_id, *self._network.connected_peers(), *found}
        live = (entry.advert for entry in self._adverts.book.live(self._adverts.wall()))
        news = (advert for advert in live if advert.peer not in known)
        # Those who failed go last: a book of dead ends must not hide the host behind them.
        count = 4 * self._limits.peers_wanted
        for advert in heapq.nsmallest(count, news, key=lambda advert: self._failed[advert.peer]):
            if addresses := self._network.reach.dialable(each.multiaddr for each in advert.addresses):
                found[advert.peer] = _Candidate(advert.peer, heard=addresses)
            else:
                self._note_failure(advert.peer)
        return [
            each
            for each in found.values()
            if each.peer != self._network.peer_id and not self._network.is_connected(each.peer)
        ]

    async def _dial(self, candidate: _Candidate) -> None:
        peer = candidate.peer
        try:
            with trio.fail_after(self._limits.dial_deadline_s):
                await self._network.connect_peer(peer, candidate.heard, told=candidate.told)
        except Exception as error:  # noqa: BLE001  of one peer of many: the others are dialled on
            if not isinstance(error, RemoteError | trio.TooSlowError):
                self._network.guard.note("dial", error)
            reason = failure_of(error) if isinstance(error, RemoteError) else "deadline"
            log.debug("peer.unreachable", peer=peer, reason=reason)
            self._note_failure(peer)
            if self._store is not None:
                self._store.failed(peer)
            return
        self._failed.pop(peer, None)
        self.dialled.add(peer)
        if len(self.dialled) > 4 * self._limits.book_max:
            self.dialled.pop()
        log.debug("peer.connected", peer=peer)

    def _note_failure(self, peer: PeerId) -> None:
        self._failed[peer] += 1
        if len(self._failed) > self._limits.book_max:
            self._failed.pop(next(iter(self._failed)))

    async def _exchange(self, peer: PeerId) -> None:
        """Ask for adverts it knows, and whether someone else speaks as us."""
        self._exchanges[peer] += 1
        try:
            with trio.fail_after(self._limits.request_deadline_s):
                await self._adverts.sample(peer)
                await self._adverts.fetch(peer, self._network.peer_id)
        except (RemoteError, trio.TooSlowError):
            return  # it speaks no adverts: a relay or another kind of node
        except Exception as error:  # noqa: BLE001  of one peer of many: the others are asked on
            self._network.guard.note("exchange", error)
            return
        self._exchanges[peer] = _EXCHANGES

    async def _follow_mdns(self) -> None:
        async for found in self._network.discovered():
            if found.peer != self._network.peer_id and not self._network.is_connected(found.peer):
                await self._dial(_Candidate(found.peer, told=found.addrs))
                if self._network.is_connected(found.peer):
                    await self._exchange(found.peer)

    async def load(self) -> None:
        """Read whom an earlier start saved; before :meth:`run` and :meth:`save`."""
        if self._store is not None:
            await self._store.load()

    async def save(self) -> None:
        """Write who is connected to the saved peerstore."""
        if self._store is None:
            return
        now = self._adverts.wall()
        for peer in self._network.connected_peers():
            addresses = tuple(with_peer(each, peer) for each in self._network.addresses_of(peer))
            if addresses:
                # Whoever merely came to us ranks behind all that we reached: else a crowd of made-up
                # peers would be all that we know at the next start.
                self._store.remember(peer, addresses, now=now if peer in self.dialled else 0.0)
        try:
            await self._store.save()
        except StorageError as error:
            # Once: the next round is seconds away, and a disk or the limit of open files may stay full.
            tell = log.warning if self._saved else log.debug
            tell("peerstore.not_saved", reason=str(error))
            self._saved = False
        else:
            self._saved = True
