"""The Python API: ``async with p2pnode.Client() as client: async for piece in client.chat("…")``.

A client dials; it listens on nothing, takes no lock, and speaks with a peer key that lives in memory only.
It remembers how hosts did in the data dir, if there is one. Its wallet is opened when a host that costs
something is chosen, within the caps of the configuration.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import structlog
import trio

from p2pnode.client.answer import Answer, Watcher
from p2pnode.client.conversations import Conversations
from p2pnode.client.memory import load_measured, save_measured
from p2pnode.client.partial import Held, Partial
from p2pnode.client.question import Messages, conversation, resolve_model
from p2pnode.client.ranking import Candidate, Filters, Measured, Ranking, is_priced, unpaid
from p2pnode.client.search import HostSearch
from p2pnode.client.session import Session, first_error
from p2pnode.client.standby import Standby
from p2pnode.client.talk import Talk, TalkOptions
from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.errors import LocalError, P2PNodeError, RefusedError, RemoteError, UnreachableError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net.multiaddrs import split_peer
from p2pnode.net.peerstore import SavedPeers
from p2pnode.node.datadir import DataDir
from p2pnode.node.finder import FoundHost
from p2pnode.node.invite import read_bootstrap
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.messages import PromptBody, SamplingParams

if TYPE_CHECKING:
    from p2pnode.client.payer import OpenPurse, Payer
    from p2pnode.storage.conversations.records import SavedSession

log = structlog.get_logger()
_SAVED_SEEDS: Final = 8
Event = Callable[[str, dict[str, object]], None]


class Client:
    """Finds hosts and talks to them. Use it as an async context manager; one per program is enough."""

    def __init__(
        self,
        config: NodeConfig | None = None,
        *,
        bootstrap: Sequence[str] = (),
        data_dir: Path | None = None,
        discovery: bool = True,
        limits: Limits = DEFAULT_LIMITS,
        node: Node | None = None,
        remember: bool = True,
        payer: Payer | None = None,
        in_thread: bool = True,
        on_event: Event = lambda _name, _fields: None,
    ) -> None:
        base = config or (NodeConfig(data_dir=data_dir) if data_dir is not None else NodeConfig())
        self._config, self._discovery, self.limits = base, discovery, limits
        self._bootstrap = tuple(one for each in (*bootstrap, *base.bootstrap) for one in read_bootstrap(each))
        self._data = DataDir(base.data_dir)
        self._remember = remember
        self._given_node, self._payer, self._on_event = node, payer, on_event
        self._node: Node | None = node
        self._nursery: trio.Nursery | None = None
        self._stack: AsyncExitStack | None = None
        self._measured: dict[PeerId, Measured] = {}
        self._free: dict[tuple[PeerId, ModelId], Session] = {}
        self._debts_paid = trio.Event()
        self.conversations = Conversations(self, base, in_thread=in_thread)

    # ---- lifetime

    async def __aenter__(self) -> Self:
        self._measured = load_measured(self._data.measured) if self._remember else {}
        if self._payer is None and self.pays:
            self._payer = self._configured_payer()
        async with AsyncExitStack() as stack:
            self._nursery = await stack.enter_async_context(trio.open_nursery())
            if self._node is None:
                self._node = self._make_node()
                await self._nursery.start(self._node.run)
                if self.pays:
                    self._nursery.start_soon(self._pay_debts)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        stack, nursery, node = self._stack, self._nursery, self._node
        if stack is None or nursery is None or node is None:
            return
        try:
            for session in self._free.values():
                session.close()
            await self.conversations.finish()
            with trio.move_on_after(self.limits.close_deadline_s, shield=True):
                for session in self._free.values():
                    await session.wait_over()
                if self._given_node is None and self.pays:
                    await self._debts_paid.wait()
                if self._given_node is None:
                    await node.aclose()
            if self._remember and self._data.root.is_dir():
                save_measured(self._data.measured, self._measured)
        finally:
            nursery.cancel_scope.cancel()
            self._nursery = self._stack = None
            # Not with the caller's error: a nursery would wrap it, and `except NoHostError` miss it.
            await stack.__aexit__(None, None, None)

    def _configured_payer(self) -> Payer | None:
        from p2pnode.client.payer import payer_of

        def on_sign(words: str, fields: Mapping[str, object]) -> None:
            self._on_event("signing", {"words": words, **fields})

        return payer_of(self._config, wall=time.time, draw=secrets.token_bytes, on_sign=on_sign)

    def _payable(self, advert: Advert, offer: Offer) -> str:
        return unpaid(advert, offer) if self._payer is None else self._payer.payable(advert, offer)

    def _make_node(self) -> Node:
        local = self._data.running_node()
        self._local = local.multiaddrs if local is not None else ()
        self._browses = self._discovery and self._config.mdns and not self._local
        return Node(
            NodeSetup(
                key=PeerKey.generate(),
                dht="client" if self._discovery else "off",
                gossip=False,
                keep_company=False,
                mdns="browse" if self._browses else "off",
                limits=self.limits,
            )
        )

    _bringing = False
    _local: tuple[str, ...] = ()
    _browses = False

    @property
    def node(self) -> Node:
        """The node underneath."""
        if self._node is None or self._nursery is None:
            msg = "use the client as `async with Client() as client`"
            raise RuntimeError(msg)
        return self._node

    def _seeds(self) -> list[str]:
        """First peers in the order to try: the node on this data dir, the user's, those of earlier runs."""
        seeds = list(dict.fromkeys((*self._local[:1], *self._bootstrap)))
        if self._given_node is None and self._data.peers.exists():
            store = SavedPeers(self._data.peers, limits=self.limits)
            store.load()
            seeds += [saved.addrs[0] for saved in store.best(_SAVED_SEEDS) if saved.addrs]
        return list(dict.fromkeys(seeds))

    # ---- asking

    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        peer: str | None = None,
        system: str | None = None,
        sampling: SamplingParams | None = None,
        filters: Filters | None = None,
        held: Held | None = None,
    ) -> Answer:
        """Ask; iterate over the result for text pieces as they stream.

        ``messages``: a question, or a conversation as ``{"role", "content"}`` maps. ``model``: a name of
        the catalogue or a model id; the default model otherwise. ``peer``: a multiaddr to dial, with
        nothing searched. ``held``: what came of this answer before, to go on from. Raises, while
        iterating: ``NoHostError``, ``RefusedError``, ``UnreachableError``, and ``LocalError`` where this
        side can't or may not pay; ``ConfigError`` for an unknown model or malformed multiaddr, at once.
        """
        options = TalkOptions(model=model, peer=peer, system=system, sampling=sampling, filters=filters)
        return self.answer(messages, options, held=held)

    def answer(
        self,
        messages: Messages,
        options: TalkOptions,
        *,
        held: Held | None = None,
        watcher: Watcher | None = None,
    ) -> Answer:
        """The answer to ``messages``, or the rest of one of which ``held`` is here already."""
        known = resolve_model(options.model if options.model is not None else DEFAULT_MODEL)
        body = PromptBody(
            messages=conversation(messages, options.system), sampling=options.sampling or SamplingParams()
        )
        peer = options.peer
        if peer is not None:
            split_peer(peer)
        allowed = options.filters or Filters()

        async def open_search() -> HostSearch:
            if peer is not None:
                return await self._direct(peer, known.model, allowed)
            return self._kept_or_new(known.model, allowed)

        def make_ask(body: PromptBody) -> Ask:
            return Ask(body, known.input_max(body))

        partial = Partial.of(body, held)
        return Answer(self, open_search, make_ask, partial, self._on_event, watcher=watcher)

    # ---- conversations

    async def talk(self, options: TalkOptions | None = None, *, keep: bool = True) -> Talk:
        """A new conversation, kept where this data dir keeps any. Raises ``LocalError``."""
        return await self.conversations.new(options or TalkOptions(), keep=keep)

    async def resume(self, sid: bytes, options: TalkOptions | None = None) -> Talk:
        """A conversation that was kept, here or elsewhere. Raises ``LocalError``; see ``Archive.open``."""
        return await self.conversations.resume(sid, options or TalkOptions())

    @property
    def pays(self) -> bool:
        """Is a chain configured?"""
        return bool(self._config.chain or self._data.chain.exists())

    async def _pay_debts(self) -> None:
        """Hosts that vanished may be back: they get what was signed for what they sent."""
        from p2pnode.client.debts import pay_debts

        try:
            paid = await pay_debts(self._config, self.node)
        except P2PNodeError as error:
            log.debug("debts.not_paid", reason=str(error))
            paid = []
        for each in paid:
            told = {"session": each.session.hex(), "outcome": each.outcome, "detail": each.detail}
            self._on_event("voucher", {**told})
        self._debts_paid.set()

    def purchase(self, session: SessionId) -> SavedSession | None:
        """What is to be kept of a session that this client pays for; None for a free one."""
        return self._payer.purchase(session) if self._payer is not None else None

    def tell(self, event: str, fields: dict[str, object]) -> None:
        """To whoever listens to this client's events."""
        self._on_event(event, fields)

    @property
    def tasks(self) -> trio.Nursery:
        """What lives as long as the client. Raises ``RuntimeError`` outside its block."""
        if self._nursery is None:
            msg = "use the client as `async with Client() as client`"
            raise RuntimeError(msg)
        return self._nursery

    def go_on(self, answer: Answer) -> Answer:
        """Go on with an answer that was cut short, from exactly what it holds: no token is asked for twice.

        The new one's ``text`` and ``ids`` begin with those of the old one, its pieces and bill don't.
        """
        return answer.rest()

    async def hosts(self, model: str | None = None, filters: Filters | None = None) -> Ranking:
        """Hosts of a model in the order they would be tried, and those left out with the reason."""
        known = resolve_model(model if model is not None else DEFAULT_MODEL)
        search = self._new_search(known.model, filters or Filters())
        search.start()
        await search.wait_over()
        self.last_failures = dict(search.failures)
        return search.ranking()

    last_failures: Mapping[PeerId, str] = {}

    async def advert_of(self, multiaddrs: Sequence[str]) -> Advert | None:
        """The current advert of the peer at these addresses. Raises ``RemoteError``."""
        address, peer = split_peer(multiaddrs[0])
        addresses = (address, *(split_peer(each)[0] for each in multiaddrs[1:]))
        try:
            with trio.fail_after(self.limits.dial_deadline_s):
                return await self.node.finder.contact(peer, addresses)
        except trio.TooSlowError:
            msg = f"{multiaddrs[0]} did not answer within {self.limits.dial_deadline_s:g} s: is it running?"
            raise UnreachableError(msg) from None

    async def known_adverts(self) -> list[Advert]:
        """Live adverts of every model that the first peers and those on the local network know of."""
        node = self.node
        await self.connect_first_peers()
        if self._browses:
            with trio.move_on_after(self.limits.mdns_wait_s):
                async for found in node.network.discovered():
                    await self._connect(found.peer, found.addrs)
        async with trio.open_nursery() as nursery:
            for peer in node.network.connected_peers():
                nursery.start_soon(self._sample, peer)
        return [entry.advert for entry in node.adverts.book.live(node.wall())]

    async def connect_first_peers(self) -> None:
        """Dial the node on this data dir, the user's first peers and those of earlier runs, all at once."""
        async with trio.open_nursery() as nursery:  # at once: each dead one may take its whole deadline
            for address, peer in map(split_peer, self._seeds()):
                nursery.start_soon(self._connect, peer, (address,))

    async def _sample(self, peer: PeerId) -> None:
        try:
            with trio.fail_after(self.limits.request_deadline_s):
                await self.node.adverts.sample(peer)
        except (RemoteError, trio.TooSlowError) as error:
            log.debug("exchange.failed", peer=peer, reason=str(error))

    async def _connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        try:
            with trio.fail_after(self.limits.dial_deadline_s):
                await self.node.network.connect_peer(peer, addresses)
        except (RemoteError, trio.TooSlowError) as error:
            log.debug("peer.unreachable", peer=peer, reason=str(error))

    # ---- hosts

    def _new_search(
        self, model: ModelId, filters: Filters, *, measured: Mapping[PeerId, Measured] | None = None
    ) -> HostSearch:
        def look(search: HostSearch) -> None:
            if not self._discovery:
                search.exhausted({})
            elif self._nursery is not None:
                self._nursery.start_soon(self._find, search, model)

        return HostSearch(
            model,
            filters,
            measured=self._measured if measured is None else measured,
            limits=self.limits,
            wall=self.node.wall,
            look=look,
            payable=self._payable,
            has_session=lambda peer: self._kept(peer, model) is not None,
        )

    def _kept(self, peer: PeerId, model: ModelId) -> Session | None:
        session = self._free.get((peer, model))
        return session if session is not None and not session.over else None

    def _kept_or_new(self, model: ModelId, filters: Filters) -> HostSearch:
        search = self._new_search(model, filters)
        for (peer, served), session in self._free.items():
            entry = self.node.adverts.book.get(peer, self.node.wall())
            if served == model and not session.over and entry is not None:
                search.keep(FoundHost(entry.advert, 0.0))
        return search

    async def _find(self, search: HostSearch, model: ModelId) -> None:
        def on_found(host: FoundHost) -> None:
            known = self._measured.get(host.advert.peer, Measured())
            self._measured[host.advert.peer] = known.connected(host.connect_s)
            search.found(host)

        failures: Mapping[PeerId, str] = {}
        try:
            failures = await self.node.finder.find(model, seeds=self._seeds(), on_found=on_found)
        finally:
            search.exhausted(failures)

    async def _direct(self, multiaddr: str, model: ModelId, filters: Filters) -> HostSearch:
        # What went wrong before is no reason to refuse what the user insists on.
        search = self._new_search(model, filters, measured={})
        started = trio.current_time()
        advert = await self.advert_of([multiaddr])
        if advert is None:
            msg = "that peer serves no model: it is a client or still starting"
            raise RefusedError("model_not_available", msg)
        offer = advert.offer(model)
        if offer is None:
            names = ", ".join(offer.name for offer in advert.offers)
            msg = f"that host serves {names or 'nothing'}: choose it with --model, or another host"
            raise RefusedError("model_not_available", msg)
        if advert.draining:
            raise RefusedError("shutting_down", "that host is about to leave: choose another")
        if why := self._payable(advert, offer):
            raise RefusedError("payment_required", f"that host {why}")
        search.found(FoundHost(advert, trio.current_time() - started))
        search.only()
        excluded = search.ranking().excluded
        if excluded:
            raise RefusedError("model_not_available", f"that host's {excluded[0].excluded}")
        return search

    # ---- sessions, for Answer

    async def open_session(self, candidate: Candidate, ask: Ask) -> Session:
        """An idle session with a host, kept from before or opened now, that can pay for a turn.

        Raises ``RemoteError``, and ``LocalError`` when this client can't or may not pay.
        """
        peer, model = candidate.advert.peer, candidate.offer.model
        tokens_out = ask.body.sampling.tokens_max
        kept = self._free.pop((peer, model), None)
        if kept is not None and not kept.over:
            if kept.covers(ask.input_max, tokens_out):
                kept.kept = True
                return kept
            kept.close()  # its deposit is nearly used up: the next one tops it up
        if self._nursery is None:
            msg = "the client is closed"
            raise RuntimeError(msg)
        await self._reach(candidate.advert)
        purchase = None
        if self._payer is not None and is_priced(candidate.offer):
            purchase = await self._payer.buy(
                self._nursery,
                candidate.advert,
                candidate.offer,
                tokens_in=ask.input_max,
                tokens_out=tokens_out,
            )
        session = Session(
            self.node.network,
            peer,
            model,
            limits=self.limits,
            draw=self.node.draw,
            purchase=purchase,
            addresses=[address.multiaddr for address in candidate.advert.addresses],
        )
        outcome: list[P2PNodeError] = []
        opened = trio.Event()

        async def run() -> None:
            try:
                await session.run(on_open=opened.set)
            except P2PNodeError as error:
                outcome.append(error)
            finally:
                opened.set()

        self._nursery.start_soon(run)
        try:
            await opened.wait()
        except BaseException:
            session.close()
            raise
        if session.accept is None:
            raise outcome[0] if outcome else session.error()
        return session

    async def _reach(self, advert: Advert) -> None:
        """Be connected: a host that was found, and is gone, must not cost more than a moment, nor a fee."""
        patience_s = self.limits.reconnect_patience_s
        with trio.move_on_after(patience_s) as scope:
            await self.node.network.connect_peer(advert.peer, [each.multiaddr for each in advert.addresses])
        if scope.cancelled_caught:
            msg = f"{advert.peer} is not connected any more, and did not answer within {patience_s:g} s"
            raise UnreachableError(msg)

    def keep_ready(self, search: HostSearch) -> trio.CancelScope:
        """Keep the next best host of a search ready until the scope is cancelled."""
        scope = trio.CancelScope()
        if self._nursery is None:
            return scope
        standby = Standby(
            search,
            contact=self.node.finder.contact,
            is_connected=self.node.network.is_connected,
            limits=self.limits,
        )

        async def run() -> None:
            with scope:
                await standby.run()

        self._nursery.start_soon(run)
        self._bring_owed()
        return scope

    def _bring_owed(self) -> None:
        """Hand final vouchers to hosts that vanished, as far as they are back. A free client owes nothing."""
        opened = self._payer.opened if self._payer is not None else None
        if opened is None or self._nursery is None or self._bringing:
            return
        from p2pnode.client.delivery import owed

        if owed(opened.journal, opened.purse.now()):
            self._bringing = True
            self._nursery.start_soon(self._bring, opened)

    async def _bring(self, opened: OpenPurse) -> None:
        from p2pnode.client.delivery import deliver_all

        try:
            await deliver_all(
                opened.journal,
                opened.purse.market,
                self.node.network,
                limits=self.limits,
                now=opened.purse.now(),
            )
        except* LocalError as group:  # what was not delivered stays owed
            log.warning("vouchers.not_delivered", reason=str(first_error(group)))
        finally:
            self._bringing = False

    def release(self, session: Session) -> None:
        """Keep an idle session for the next turn with the same host."""
        self._bring_owed()
        if session.over:
            return
        before = self._free.get((session.host, session.model))
        if before is not None and before is not session:
            before.close()
        self._free = {key: each for key, each in self._free.items() if not each.over}
        self._free[session.host, session.model] = session

    def note_answer(self, peer: PeerId, ttft_s: float, tokens_per_s: float | None) -> None:
        """A turn went well."""
        known = self._measured.pop(peer, Measured())
        self._measured[peer] = known.answered(ttft_s, tokens_per_s)

    def note_failure(self, peer: PeerId, *, fault: bool) -> None:
        """A host failed."""
        known = self._measured.pop(peer, Measured())
        self._measured[peer] = known.failed(self.node.wall(), fault=fault)


__all__ = ["Answer", "Candidate", "Client", "Filters"]
