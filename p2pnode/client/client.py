"""The Python API: ``async with p2pnode.Client() as client: async for piece in client.chat("…")``.

A client dials; it listens on nothing, takes no lock, and speaks with a peer key that lives in memory only. It
remembers in the data dir, if there is one, which peers it reached and how hosts did. Its wallet is opened
when a host that costs something is chosen, within the spending limits of the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import trio

from p2pnode.client import interface
from p2pnode.client.answer import Answer
from p2pnode.client.chat_options import ChatOptions, Estimate, Messages
from p2pnode.client.conversation import Conversation
from p2pnode.client.conversations import Conversations
from p2pnode.client.embedding import Embedding
from p2pnode.client.failover import Held
from p2pnode.client.host_memory import HostMemory
from p2pnode.client.hosts import Searches
from p2pnode.client.kept_sessions import KeptSessions
from p2pnode.client.pool import SessionPool
from p2pnode.client.question import Questions, resolve_model
from p2pnode.client.ranking import Candidate, Filters, Ranking
from p2pnode.client.runtime import Event, Runtime
from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.node.node import Node
from p2pnode.protocols.adverts.messages import Advert, Sheet

_TOKENIZER_HOSTS: Final = 3
if TYPE_CHECKING:
    from p2pnode.payments.journal.keys import Key
    from p2pnode.payments.payer import Payer
    from p2pnode.payments.redelivery import Redeliverer


class Client(interface.Client):
    """Finds hosts and asks them. Use it as an async context manager; one per program is enough."""

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
        keep_s: int | None = None,
        closes: bool = False,
        wait_s: float = 0.0,
        on_event: Event = lambda _name, _fields: None,
    ) -> None:
        self._remember, self._in_thread = remember, in_thread
        self._stack: AsyncExitStack | None = None
        self.last_failures: Mapping[PeerId, str] = {}
        self.alone = False
        self.runtime = Runtime(
            config or (NodeConfig(data_dir=data_dir) if data_dir is not None else NodeConfig()),
            bootstrap=tuple(bootstrap),
            discovery=discovery,
            limits=limits,
            node=node,
            payer=payer,
            on_event=on_event,
        )
        self._redeliverer: Redeliverer | None = None
        wanted = 3600 * self.runtime.config.keep_hours if keep_s is None else keep_s
        kept = KeptSessions(self.runtime, in_thread=in_thread, keep_s=wanted, remember=remember)
        self.pool = SessionPool(self.runtime, self._redeliver, kept)
        memory = HostMemory(self.runtime.data.measured if remember else None, in_thread=in_thread)
        self.searches = Searches(self.runtime, self.pool, memory, in_thread=in_thread)
        self.pool.on_gone = self.searches.note_closed_early
        self.pool.closes, self.pool.wait_s = closes, wait_s
        self._questions = Questions(self.runtime, self.pool, self.searches)
        self.renderers = self._questions.renderers
        self.conversations = Conversations(self.runtime, self.searches, self._questions, in_thread=in_thread)
        self.pool.on_taken = self.conversations.note_taken

    # ---- lifetime

    async def __aenter__(self) -> Self:
        memory = self.searches.memory
        await memory.load()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.runtime.run())
            self.runtime.tasks.start_soon(memory.keep)
            self._redeliverer = self._make_redeliverer()
            if self._redeliverer is not None and self.runtime.pays and self.runtime.owns_node:
                self._redeliverer.begin()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        stack, runtime = self._stack, self.runtime
        if stack is None:
            return
        try:
            with trio.CancelScope(shield=True):  # each answer has its own deadline
                await self._questions.answers.finish()
                await self.renderers.aclose()
            # Before the sessions are closed: hosts store for clients with an open session.
            await self.conversations.finish(leaves=not self.pool.closes)
            if self._remember and runtime.owns_node and not runtime.local and runtime.data.root.is_dir():
                with trio.CancelScope(shield=True):
                    await self.searches.save_peers()  # where a node runs, it alone writes the file
            self.pool.close()
            with trio.move_on_after(runtime.limits.close_deadline_s, shield=True):
                await self.pool.wait_closed()
                if self._redeliverer is not None:
                    await self._redeliverer.wait_tried()
            with trio.CancelScope(shield=True):
                await self.searches.memory.save()
        finally:
            self._stack = None
            # Without the caller's error: a nursery would wrap it, and `except NoHostError` would miss it.
            await stack.__aexit__(None, None, None)

    @property
    def node(self) -> Node:
        """The node underneath."""
        return self.runtime.node

    def _make_redeliverer(self) -> Redeliverer | None:
        """None for a client that pays nothing: it opens no journal, and loads nothing of payments."""
        runtime = self.runtime
        if runtime.payer is None and not runtime.pays:
            return None
        from p2pnode.payments.redelivery import Redeliverer

        return Redeliverer(runtime.config, runtime.node, runtime.tasks, runtime.tell)

    def _redeliver(self) -> None:
        """Hosts that vanished in this run may be back."""
        opened = self.runtime.payer.opened if self.runtime.payer is not None else None
        if self._redeliverer is not None and opened is not None:
            self._redeliverer.soon(opened)

    # ---- asking

    def answer(self, messages: Messages, options: ChatOptions, *, held: Held | None = None) -> Answer:
        return self._questions.answer(messages, options, held=held)

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str | None = None,
        peer: str | None = None,
        filters: Filters | None = None,
        budget: Key | None = None,
    ) -> Embedding:
        options = ChatOptions(model=model, peer=peer, filters=filters, budget=budget)
        return self._questions.embedding(texts, options)

    async def vocabulary(self, model: str | None = None, *, ask_hosts: bool = False) -> Vocabulary | None:
        """The tokens of a model, where its tokenizer is on this machine; calls of tools are checked with it.

        ``ask_hosts``: where it is not, up to three hosts of the model are asked for it, in vain perhaps.
        """
        named = model if model is not None else DEFAULT_MODEL
        known = resolve_model(named, self.runtime.data.models)
        found = await self._questions.vocabulary(known)
        if found is None and ask_hosts:
            chosen = (await self.hosts(model)).chosen[:_TOKENIZER_HOSTS]
            await self._questions.fetch_prompt_files(known, [each.advert.peer for each in chosen])
            found = await self._questions.vocabulary(known)
        return found

    async def count(self, messages: Messages, options: ChatOptions) -> tuple[int, bool]:
        counted = await self._questions.count(messages, options)
        if not counted[1]:
            await self.vocabulary(options.model, ask_hosts=True)  # with it comes what renders
            counted = await self._questions.count(messages, options)
        return counted

    async def estimate(self, messages: Messages, options: ChatOptions | None = None) -> list[Estimate]:
        return await self._questions.estimate(messages, options or ChatOptions())

    # ---- conversations

    async def new_conversation(
        self, options: ChatOptions | None = None, *, keep: bool = True
    ) -> Conversation:
        return await self.conversations.new(options or ChatOptions(), keep=keep)

    async def resume(self, sid: bytes, options: ChatOptions | None = None) -> Conversation:
        return await self.conversations.resume(sid, options or ChatOptions())

    async def find_conversation(self, begins: str) -> interface.Found:
        return await self.conversations.find(begins)

    # ---- hosts

    async def sheets(self, adverts: Iterable[Advert]) -> dict[PeerId, Sheet]:
        return await self.searches.sheets(adverts)

    async def advert_of(self, multiaddrs: Sequence[str]) -> Advert | None:
        """The current advert of the peer at these addresses. Raises ``RemoteError``."""
        return await self.searches.advert_of(multiaddrs)

    async def clock_offsets(self) -> list[float]:
        """By how many seconds at least the clock of each connected host is ahead of ours."""
        return await self.searches.clock_offsets()

    async def known_adverts(self) -> list[Advert]:
        return await self.searches.known_adverts()

    async def hosts(self, model: str | None = None, filters: Filters | None = None) -> Ranking:
        named = model if model is not None else DEFAULT_MODEL
        known = resolve_model(named, self.runtime.data.models)
        allowed = filters or Filters()
        allowed = replace(allowed, verified=allowed.verified or self.runtime.config.verified)
        search = self.searches.new(known.model, allowed)
        search.start()
        await search.wait_over()
        self.last_failures, self.alone = dict(search.failures), search.alone
        return search.ranking()


__all__ = ["Answer", "Candidate", "Client", "Filters"]
