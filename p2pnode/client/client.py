"""The Python API: ``async with p2pnode.Client() as client: async for piece in client.chat("…")``.

A client dials; it listens on nothing, takes no lock, and speaks with a peer key that lives in memory only.
It remembers in the data dir, if there is one, whom it reached and how hosts did. Its wallet is opened when
a host that costs something is chosen, within the caps of the configuration.
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
from p2pnode.client.debts import Debts
from p2pnode.client.memory import load_measured, save_measured
from p2pnode.client.partial import Held, Partial
from p2pnode.client.pool import SessionPool
from p2pnode.client.question import Messages, conversation, resolve_model
from p2pnode.client.ranking import Candidate, Filters, Ranking, unpaid
from p2pnode.client.search import HostSearch
from p2pnode.client.searches import Searches
from p2pnode.client.talk import Talk, TalkOptions
from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.ids import PeerId, SessionId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net.multiaddrs import split_peer
from p2pnode.node.datadir import DataDir
from p2pnode.node.invite import read_bootstrap
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.messages import PromptBody, SamplingParams

if TYPE_CHECKING:
    from p2pnode.client.payer import Payer
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
        self._config, self.discovers, self.limits = base, discovery, limits
        self.bootstrap = tuple(one for each in (*bootstrap, *base.bootstrap) for one in read_bootstrap(each))
        self.data = DataDir(base.data_dir)
        self._remember = remember
        self.owns_node, self.payer, self._on_event = node is None, payer, on_event
        self._node: Node | None = node
        self._nursery: trio.Nursery | None = None
        self._stack: AsyncExitStack | None = None
        self.searches, self.pool = Searches(self), SessionPool(self)
        self.debts = Debts(self, base)
        self.conversations = Conversations(self, base, in_thread=in_thread)

    # ---- lifetime

    async def __aenter__(self) -> Self:
        self.searches.measured = load_measured(self.data.measured) if self._remember else {}
        if self.payer is None and self.pays:
            self.payer = self._configured_payer()
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            self._nursery = await nursery.start(_hold_tasks)
            stack.callback(self._nursery.cancel_scope.cancel)
            if self._node is None:
                self._node = self._make_node()
                await self._nursery.start(self._node.run)
                self.debts.pay_first()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        stack, node = self._stack, self._node
        if stack is None or node is None:
            return
        try:
            await self.conversations.finish()  # hosts store for clients with an open session
            if self._remember and self.owns_node and not self.local and self.data.root.is_dir():
                self.searches.save_peers()  # where a node runs, the file is its own
            self.pool.close()
            with trio.move_on_after(self.limits.close_deadline_s, shield=True):
                await self.pool.wait_closed()
                await self.debts.wait_tried()
                if self.owns_node:
                    await node.aclose()
            if self._remember and self.data.root.is_dir():
                save_measured(self.data.measured, self.searches.measured)
        finally:
            self._nursery = self._stack = None
            # Not with the caller's error: a nursery would wrap it, and `except NoHostError` miss it.
            await stack.__aexit__(None, None, None)

    def _configured_payer(self) -> Payer | None:
        from p2pnode.client.payer import payer_of

        def on_sign(words: str, fields: Mapping[str, object]) -> None:
            self._on_event("signing", {"words": words, **fields})

        return payer_of(self._config, wall=time.time, draw=secrets.token_bytes, on_sign=on_sign)

    def payable(self, advert: Advert, offer: Offer) -> str:
        """Why this client can't pay an offer; "" when it can, or it is free."""
        return unpaid(advert, offer) if self.payer is None else self.payer.payable(advert, offer)

    def _make_node(self) -> Node:
        local = self.data.running_node()
        self.local = local.multiaddrs if local is not None else ()
        self.browses = self.discovers and self._config.mdns and not self.local
        return Node(
            NodeSetup(
                key=PeerKey.generate(),
                dht="client" if self.discovers else "off",
                gossip=False,
                keep_company=False,
                mdns="browse" if self.browses else "off",
                limits=self.limits,
            )
        )

    local: tuple[str, ...] = ()
    browses = False

    @property
    def node(self) -> Node:
        """The node underneath."""
        if self._node is None or self._nursery is None:
            msg = "use the client as `async with Client() as client`"
            raise RuntimeError(msg)
        return self._node

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
                return await self.searches.direct(peer, known.model, allowed)
            return self.searches.kept_or_new(known.model, allowed)

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
        return bool(self._config.chain or self.data.chain.exists())

    def purchase(self, session: SessionId) -> SavedSession | None:
        """What is to be kept of a session that this client pays for; None for a free one."""
        return self.payer.purchase(session) if self.payer is not None else None

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

    async def advert_of(self, multiaddrs: Sequence[str]) -> Advert | None:
        """The current advert of the peer at these addresses. Raises ``RemoteError``."""
        return await self.searches.advert_of(multiaddrs)

    async def known_adverts(self) -> list[Advert]:
        """Live adverts of every model that the first peers and those on the local network know of."""
        return await self.searches.known_adverts()

    async def hosts(self, model: str | None = None, filters: Filters | None = None) -> Ranking:
        """Hosts of a model in the order they would be tried, and those left out with the reason."""
        known = resolve_model(model if model is not None else DEFAULT_MODEL)
        search = self.searches.new(known.model, filters or Filters())
        search.start()
        await search.wait_over()
        self.last_failures = dict(search.failures)
        return search.ranking()

    last_failures: Mapping[PeerId, str] = {}


async def _hold_tasks(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """A nursery that does not end with a cancelled caller: what runs there must be ended in order first.

    Else an interrupted answer would neither be written down nor paid for.
    """
    async with trio.open_nursery() as tasks:
        tasks.cancel_scope.shield = True
        task_status.started(tasks)
        await trio.sleep_forever()


__all__ = ["Answer", "Candidate", "Client", "Filters"]
