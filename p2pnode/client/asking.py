"""How a question becomes an answer: which model, under which options, and where its hosts are looked for."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.client.answer import Answer, Answers, Watcher
from p2pnode.client.failover import Held, Partial
from p2pnode.client.hosts import HostSearch
from p2pnode.client.pool import SessionPool
from p2pnode.client.question import Messages, conversation, resolve_model
from p2pnode.client.ranking import Filters
from p2pnode.client.runtime import Runtime
from p2pnode.client.searches import Searches
from p2pnode.config import DEFAULT_MODEL
from p2pnode.ids import pasted
from p2pnode.net.multiaddrs import split_peer
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.messages import PromptBody, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkOptions:
    """How each question is asked; as for ``Client.chat``."""

    model: str | None = None
    peer: str | None = None
    system: str | None = None
    sampling: SamplingParams | None = None
    filters: Filters | None = None


class Asking:
    """Of one client: answers from sessions of its ``pool`` with hosts that its ``searches`` found."""

    def __init__(self, runtime: Runtime, pool: SessionPool, searches: Searches) -> None:
        self._runtime, self._pool, self._searches = runtime, pool, searches
        self.answers = Answers(runtime)

    def answer(
        self,
        messages: Messages,
        options: TalkOptions,
        *,
        held: Held | None = None,
        watcher: Watcher | None = None,
    ) -> Answer:
        """The answer to ``messages``, or the rest of one of which ``held`` is here already.

        Raises ``ConfigError`` for an unknown model or a malformed multiaddr.
        """
        known = resolve_model(options.model if options.model is not None else DEFAULT_MODEL)
        body = PromptBody(
            messages=conversation(messages, options.system), sampling=options.sampling or SamplingParams()
        )
        peer = pasted(options.peer) if options.peer is not None else None
        if peer is not None:
            split_peer(peer)
        allowed = options.filters or Filters()

        async def open_search() -> HostSearch:
            if peer is not None:
                return await self._searches.direct(peer, known.model, allowed)
            return self._searches.kept_or_new(known.model, allowed)

        def make_ask(body: PromptBody) -> Ask:
            return Ask(body, known.input_max(body))

        return Answer(
            self._runtime,
            self._pool,
            self._searches,
            Partial.of(body, held),
            search=open_search,
            make_ask=make_ask,
            answers=self.answers,
            watcher=watcher,
        )
