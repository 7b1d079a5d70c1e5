"""How a client looks for hosts: its first peers, the network, a host it is told; and what it measured.

One search serves one question; what was found stays in the node's book. It opens no session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import structlog
import trio

from p2pnode.client.hosts import HostSearch
from p2pnode.client.pool import SessionPool
from p2pnode.client.ranking import Filters, Measured
from p2pnode.client.runtime import Runtime
from p2pnode.errors import ClockError, RefusedError, RemoteError, StorageError, UnreachableError
from p2pnode.ids import ModelId, PeerId
from p2pnode.net.multiaddrs import split_peer
from p2pnode.net.peerstore import SavedPeers
from p2pnode.node.adverts import failure_of
from p2pnode.node.finder import FoundHost
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.words import one_line

log = structlog.get_logger()
_SAVED_SEEDS: Final = 8
_SLOW: Final = "it did not answer in time"


class Searches:
    """Of one client. ``measured`` is what it knows of hosts from its own dealings with them.

    ``in_thread``: see ``files.off_the_loop``.
    """

    def __init__(self, runtime: Runtime, pool: SessionPool, *, in_thread: bool = True) -> None:
        self._runtime, self._pool, self._in_thread = runtime, pool, in_thread
        self.measured: dict[PeerId, Measured] = {}
        self._unreached: set[PeerId] = set()

    async def seeds(self) -> list[str]:
        """First peers in the order to try: the node on this data dir, the user's, those of earlier runs."""
        seeds = list(dict.fromkeys((*self._runtime.local[:1], *self._runtime.bootstrap)))
        if self._runtime.owns_node and self._runtime.data.peers.exists():
            store = await self._saved_peers()
            seeds += [saved.addrs[0] for saved in store.best(_SAVED_SEEDS) if saved.addrs]
        return list(dict.fromkeys(seeds))

    async def save_peers(self) -> None:
        """Note for the next run whom this one reached: so a first peer is given once.

        Who could not be reached while others could is forgotten: those know it when it is back. A disk that
        can't take it costs a log line only.
        """
        network = self._runtime.node.network
        reached = network.connected_peers()
        if not reached:
            return  # no network: that says nothing of anybody
        store = await self._saved_peers()
        for peer in self._unreached.difference(reached):
            store.forget(peer)
        for peer in reached:
            store.remember(peer, network.addresses_of(peer), now=self._runtime.node.wall())
        try:
            await store.save()
        except StorageError as error:
            log.debug("peerstore.not_saved", reason=str(error))

    async def _saved_peers(self) -> SavedPeers:
        """As the file has them now: other processes write it too."""
        store = SavedPeers(self._runtime.data.peers, limits=self._runtime.limits, in_thread=self._in_thread)
        await store.load()
        return store

    def new(
        self, model: ModelId, filters: Filters, *, measured: Mapping[PeerId, Measured] | None = None
    ) -> HostSearch:
        def look(search: HostSearch) -> None:
            if not self._runtime.discovers:
                search.exhausted({})
            else:
                self._runtime.tasks.start_soon(
                    self._runtime.node.network.guard.run, self._find, search, model
                )

        return HostSearch(
            model,
            filters,
            measured=self.measured if measured is None else measured,
            limits=self._runtime.limits,
            wall=self._runtime.node.wall,
            look=look,
            payable=self._runtime.payable,
            has_session=lambda peer: self._pool.has(peer, model),
        )

    def kept_or_new(self, model: ModelId, filters: Filters) -> HostSearch:
        search = self.new(model, filters)
        for peer in self._pool.peers(model):
            entry = self._runtime.node.adverts.book.get(peer, self._runtime.node.wall())
            if entry is not None:
                search.keep(FoundHost(entry.advert, 0.0))
        return search

    async def _find(self, search: HostSearch, model: ModelId) -> None:
        def on_found(host: FoundHost) -> None:
            known = self.measured.get(host.advert.peer, Measured())
            self.measured[host.advert.peer] = known.connected(host.connect_s)
            search.found(host)

        failures: Mapping[PeerId, str] = {}
        try:
            seeds = await self.seeds()
            failures = await self._runtime.node.finder.find(model, seeds=seeds, on_found=on_found)
        finally:
            self._unreached.update(failures)
            search.exhausted(failures)

    async def direct(self, multiaddr: str, model: ModelId, filters: Filters) -> HostSearch:
        # What went wrong before is no reason to refuse what the user insists on.
        search = self.new(model, filters, measured={})
        started = trio.current_time()
        advert = await self.advert_of([multiaddr])
        if advert is None:
            msg = "that peer serves no model: it is a client or still starting"
            raise RefusedError("model_not_available", msg)
        offer = advert.offer(model)
        if offer is None:
            names = ", ".join(one_line(offer.name) for offer in advert.offers)
            msg = f"that host serves {names or 'nothing'}: choose it with --model, or another host"
            raise RefusedError("model_not_available", msg)
        if advert.draining:
            raise RefusedError("shutting_down", "that host is about to leave: choose another")
        if why := self._runtime.payable(advert, offer):
            raise RefusedError("payment_required", f"that host {why}")
        search.found(FoundHost(advert, trio.current_time() - started))
        search.only()
        excluded = search.ranking().excluded
        if excluded:
            raise RefusedError("model_not_available", f"that host's {one_line(excluded[0].excluded)}")
        return search

    async def advert_of(self, multiaddrs: Sequence[str]) -> Advert | None:
        """The current advert of the peer at these addresses. Raises ``RemoteError``."""
        address, peer = split_peer(multiaddrs[0])
        addresses = (address, *(split_peer(each)[0] for each in multiaddrs[1:]))
        patience_s = self._runtime.limits.dial_deadline_s
        try:
            with trio.fail_after(patience_s):
                return await self._runtime.node.finder.contact(peer, (), told=addresses)
        except trio.TooSlowError:
            msg = (
                f"{multiaddrs[0]} did not answer within {patience_s:g} s: it is not running, or a router or "
                "firewall lets nobody in (its owner can forward the port: see `p2pnode doctor` there)"
            )
            raise UnreachableError(msg) from None

    async def known_adverts(self) -> list[Advert]:
        """Live adverts of every model that the first peers and those on the local network know of."""
        node = self._runtime.node
        await self.connect_first_peers()
        await self.connect_neighbours()
        async with trio.open_nursery() as nursery:
            for peer in node.network.connected_peers():
                nursery.start_soon(node.network.guard.run, self._sample, peer)
        return [entry.advert for entry in node.adverts.book.live(node.wall())]

    async def clock_offsets(self) -> list[float]:
        """Asked of the hosts that we are connected to, but for the node on this data dir, all at once."""
        node, found = self._runtime.node, list[float]()

        async def ask(peer: PeerId) -> None:
            try:
                with trio.fail_after(self._runtime.limits.request_deadline_s):
                    advert = await node.adverts.fetch(peer)
            except ClockError as error:
                found.append(error.offset_s)
            except (RemoteError, trio.TooSlowError) as error:
                log.debug("clock.not_asked", peer=peer, reason=str(error))
            else:
                found.extend([advert.clock_offset_s(node.wall())] if advert is not None else [])

        own = {split_peer(each)[1] for each in self._runtime.local}
        async with trio.open_nursery() as nursery:
            for peer in node.network.connected_peers():
                if peer not in own:
                    nursery.start_soon(node.network.guard.run, ask, peer)
        return found

    async def connect_first_peers(self) -> dict[PeerId, str]:
        """Dial the node on this data dir, the user's first peers and those of earlier runs, all at once.

        Once one is reached the rest have ``replica_grace_s``: a dead one would take its whole deadline.
        Returns why those that were not reached were not.
        """
        grace_s = self._runtime.limits.replica_grace_s
        failed: dict[PeerId, str] = {}

        async def connect(peer: PeerId, address: str) -> None:
            failed[peer] = _SLOW
            failure = await self._connect(peer, (address,))
            if failure:
                failed[peer] = failure
                return
            del failed[peer]
            nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, trio.current_time() + grace_s)

        seeds = await self.seeds()
        async with trio.open_nursery() as nursery:
            for address, peer in map(split_peer, seeds):
                nursery.start_soon(connect, peer, address)
        reached = self._runtime.node.network.connected_peers()
        unreached = {peer: why for peer, why in failed.items() if peer not in reached}
        self._unreached.update(unreached)
        return unreached

    async def connect_neighbours(self) -> None:
        """Dial the nodes that make themselves known on the local network, where they are looked for."""
        if self._runtime.browses:
            with trio.move_on_after(self._runtime.limits.mdns_wait_s):
                async for found in self._runtime.node.network.discovered():
                    await self._connect(found.peer, found.addrs)

    async def _sample(self, peer: PeerId) -> None:
        try:
            with trio.fail_after(self._runtime.limits.request_deadline_s):
                await self._runtime.node.adverts.sample(peer)
        except (RemoteError, trio.TooSlowError) as error:
            log.debug("exchange.failed", peer=peer, reason=str(error))

    async def _connect(self, peer: PeerId, addresses: Sequence[str]) -> str:
        """Why it can't be reached; empty: it is."""
        try:
            with trio.fail_after(self._runtime.limits.dial_deadline_s):
                await self._runtime.node.network.connect_peer(peer, (), told=addresses)
        except (RemoteError, trio.TooSlowError) as error:
            failure = failure_of(error) if isinstance(error, RemoteError) else _SLOW
            log.debug("peer.unreachable", peer=peer, reason=failure)
            self._unreached.add(peer)
            return failure
        return ""

    def note_answer(self, peer: PeerId, ttft_s: float, tokens_per_s: float | None) -> None:
        """A turn went well."""
        known = self.measured.pop(peer, Measured())
        self.measured[peer] = known.answered(ttft_s, tokens_per_s)

    def note_failure(self, peer: PeerId, *, fault: bool) -> None:
        """A host failed."""
        known = self.measured.pop(peer, Measured())
        self.measured[peer] = known.failed(self._runtime.node.wall(), fault=fault)
