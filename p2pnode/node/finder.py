"""Lookups of hosts: asks every source at once, dials the peers that ``Search`` chooses, and returns hosts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.errors import RemoteError
from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import Limits
from p2pnode.net.address_policy import scope_of
from p2pnode.net.dht import Provider
from p2pnode.net.multiaddrs import split_peer
from p2pnode.net.network import Network
from p2pnode.node.adverts import AdvertService, failure_of
from p2pnode.node.driver import Driver
from p2pnode.protocols.adverts.book import UNSEEN
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.lookup.messages import (
    Contact,
    Contacted,
    Exhausted,
    Found,
    Hint,
    LookupEmission,
    Source,
    SourceDone,
    provider_key,
)
from p2pnode.protocols.lookup.search import Search
from p2pnode.shares import Draw, one_of_each

POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class FoundHost:
    """A host that is connected. ``connect_s`` is the measured time of the dial and the advert together."""

    advert: Advert
    connect_s: float


class Finder:
    """Finds hosts of a model over a node's network."""

    def __init__(
        self,
        network: Network,
        adverts: AdvertService,
        limits: Limits,
        wall: Callable[[], float],
        *,
        draw: Draw,
        mdns: bool = True,
    ) -> None:
        self._network, self._adverts, self._limits, self._wall = network, adverts, limits, wall
        self._draw = draw
        # A search does not wait for a source that is switched off.
        self._off: frozenset[Source] = frozenset() if mdns else frozenset({"mdns"})

    async def find(
        self,
        model: ModelId,
        *,
        seeds: Sequence[str],
        on_found: Callable[[FoundHost], None],
        on_lacking: Callable[[Advert], None] = lambda _advert: None,
        caps: int = 0,
        sources: frozenset[Source] = frozenset({"book", "bootstrap", "exchange", "dht", "mdns"}),
    ) -> dict[PeerId, str]:
        """Search until no source has more, or until cancelled. Returns by peer why it is no host to use.

        A host whose advert lacks any of ``caps`` isn't dialled, where the advert is known before:
        ``on_lacking`` is called instead.
        """
        run = _Run(
            self._network,
            self._adverts,
            self._limits,
            self._wall,
            model=model,
            seeds=seeds,
            contact=self.contact,
            on_found=on_found,
            on_lacking=on_lacking,
            caps=caps,
            sources=sources - self._off,
            draw=self._draw,
        )
        return await run.run()

    async def contact(self, peer: PeerId, heard: Sequence[str], *, told: Sequence[str] = ()) -> Advert | None:
        """Dial if needed (see ``connect_peer``) and take the peer's own current advert.

        Raises ``RemoteError``.
        """
        if not self._network.is_connected(peer):
            await self._network.connect_peer(peer, heard, trusted=told)
        return await self._adverts.fetch(peer)


class _Run:
    """One search: its machine, its sources and its dials."""

    def __init__(
        self,
        network: Network,
        adverts: AdvertService,
        limits: Limits,
        wall: Callable[[], float],
        *,
        model: ModelId,
        seeds: Sequence[str],
        contact: Callable[..., Awaitable[Advert | None]],
        on_found: Callable[[FoundHost], None],
        on_lacking: Callable[[Advert], None],
        caps: int,
        sources: frozenset[Source],
        draw: Draw,
    ) -> None:
        self._network, self._adverts, self._limits, self._wall = network, adverts, limits, wall
        self._draw = draw
        self._model, self._dial, self._on_found = model, contact, on_found
        self._caps, self._on_lacking = caps, on_lacking
        self._seeds = [split_peer(seed) for seed in seeds]
        self._sources = sources
        self._search = Search(
            model,
            sources,
            self_peer=network.peer_id,
            dials_max=limits.dials_per_lookup,
            dials_at_once=limits.dials_at_once,
            deadline_s=limits.lookup_deadline_s,
            usable=self._usable,
        )
        self._driver = Driver(self._search, on_emit=self._emitted, write_deadline_s=limits.stall_s)
        self._measured: dict[PeerId, float] = {}
        self._failures: dict[PeerId, str] = {}
        self._seeded = trio.Event()

    async def run(self) -> dict[PeerId, str]:
        readers = {
            "book": self._read_book,
            "bootstrap": self._read_seeds,
            "dht": self._read_dht,
            "mdns": self._read_mdns,
        }
        async with trio.open_nursery() as nursery:
            for source, reader in readers.items():
                if source in self._sources:
                    nursery.start_soon(reader)
            await self._driver.run(self._search.start(trio.current_time()))
            nursery.cancel_scope.cancel()
        return self._failures

    async def _emitted(self, value: LookupEmission) -> None:
        match value:
            case Contact():
                self._driver.start_soon(self._contact, value)
            case Found(advert=advert):
                self._on_found(FoundHost(advert, self._measured.get(advert.peer, 0.0)))
            case Exhausted(failures=failures):
                self._failures = failures
                self._driver.stop()

    def _usable(self, address: str, local: bool) -> bool:
        """Whether an address may be dialled: an advert must not point us into our own network."""
        return scope_of(address) is not None if local else bool(self._network.policy.dialable([address]))

    async def _contact(self, contact: Contact) -> None:
        started = trio.current_time()
        advert, failure = None, ""
        try:
            with trio.fail_after(self._limits.dial_deadline_s):
                told = contact.addresses if contact.local else ()
                heard = () if contact.local else contact.addresses
                advert = await self._dial(contact.peer, heard, told=told)
        except trio.TooSlowError:
            failure = f"no answer within {self._limits.dial_deadline_s:g} s"
        except RemoteError as error:
            failure = failure_of(error)
        except Exception as error:  # noqa: BLE001  of one host of many: the others are asked on
            self._network.guard.note("contact", error)
            failure = "it made this node fail: the log says how"
        self._measured[contact.peer] = trio.current_time() - started
        await self._driver.command(Contacted(contact.peer, advert, failure))

    async def _read_book(self) -> None:
        # Drawn by origin: a book that is full of one liar's adverts must not hide the others.
        book, most = self._adverts.book, self._limits.dials_per_lookup
        for entry in book.sample(most, self._wall(), self._model) if self._caps else ():
            self._lacks(entry.advert)
        for entry in book.sample(most, self._wall(), self._model, caps=self._caps):
            addresses = tuple(a.multiaddr for a in entry.advert.addresses)
            seen = frozenset[str]() if entry.origin.wide == UNSEEN else frozenset({entry.origin.wide})
            await self._driver.command(
                Hint(peer=entry.advert.peer, addresses=addresses, source="book", tellers=seen)
            )
        await self._driver.command(SourceDone("book"))

    async def _read_seeds(self) -> None:
        async with trio.open_nursery() as nursery:
            for address, peer in self._seeds:
                hint = Hint(peer=peer, addresses=(address,), source="bootstrap", local=True)
                await self._driver.command(hint)
                nursery.start_soon(self._exchange, peer, (address,))
            for peer in self._of_distinct_origins(self._network.connected_peers()):
                if all(peer != seed for _, seed in self._seeds):
                    await self._driver.command(Hint(peer=peer, addresses=(), source="bootstrap", local=True))
                    nursery.start_soon(self._exchange, peer, ())
            await self._driver.command(SourceDone("bootstrap"))
        self._seeded.set()
        await self._driver.command(SourceDone("exchange"))

    def _of_distinct_origins(self, peers: Sequence[PeerId]) -> list[PeerId]:
        """As many as are dialled at once: of each origin one before a second of any."""
        by_origin: dict[str, list[PeerId]] = {}
        for peer in peers:
            by_origin.setdefault(self._network.origin_of(peer).wide, []).append(peer)
        return one_of_each(by_origin.values(), self._limits.dials_at_once, self._draw)

    async def _exchange(self, peer: PeerId, addresses: Sequence[str]) -> None:
        if "exchange" not in self._sources:
            return
        try:
            with trio.fail_after(self._limits.exchange_deadline_s):
                if not self._network.is_connected(peer):
                    await self._network.connect_peer(peer, (), trusted=addresses)
                adverts = await self._adverts.sample(peer, self._model, caps=self._caps)
                if not adverts and self._caps:  # who is there, and lacks what is needed, is to be told
                    adverts = await self._adverts.sample(peer, self._model)
        except (RemoteError, trio.TooSlowError):
            return  # the contact of the same peer reports why
        except Exception as error:  # noqa: BLE001  of one peer of many: the others are asked on
            self._network.guard.note("exchange", error)
            return
        told_by = frozenset({self._network.origin_of(peer).wide})
        for advert in adverts:
            if advert.offer(self._model) is not None and not self._lacks(advert):
                where = tuple(a.multiaddr for a in advert.addresses)
                await self._driver.command(
                    Hint(peer=advert.peer, addresses=where, source="exchange", tellers=told_by)
                )

    def _lacks(self, advert: Advert) -> bool:
        """Whether this host offers the model and lacks what is needed; then it is told, and not dialled."""
        lacks = advert.offer(self._model) is not None and not advert.serves(self._model, self._caps)
        if lacks:
            self._on_lacking(advert)
        return lacks

    async def _read_dht(self) -> None:
        if "bootstrap" in self._sources:
            await self._wait_for_company()
        found: list[Provider] = []
        with trio.move_on_after(self._limits.dht_deadline_s):
            found = await self._network.find_providers(
                provider_key(self._model), limit=self._limits.dials_per_lookup
            )
        for provider in found:
            where = () if self._network.is_connected(provider.peer) else provider.addrs
            tellers = frozenset(each.wide for each in provider.tellers)
            await self._driver.command(
                Hint(peer=provider.peer, addresses=where, source="dht", tellers=tellers)
            )
        await self._driver.command(SourceDone("dht"))

    async def _wait_for_company(self) -> None:
        """Wait until the first peers have answered: before that the DHT knows nobody.

        One that is silent must not hold it up: after a second, somebody who is connected is enough.
        """
        with trio.move_on_after(self._limits.dht_wait_s):
            await self._seeded.wait()
        while not self._seeded.is_set() and not self._network.connected_peers():
            with trio.move_on_after(POLL_S):
                await self._seeded.wait()

    async def _read_mdns(self) -> None:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(self._limits.mdns_wait_s):
                async for found in self._network.discovered():
                    await self._driver.command(
                        Hint(peer=found.peer, addresses=found.addrs, source="mdns", local=True)
                    )
                    nursery.start_soon(self._exchange, found.peer, found.addrs)
        await self._driver.command(SourceDone("mdns"))
