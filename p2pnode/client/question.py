"""A user's question: the model by its name, messages as maps, checked before a host is looked for.

``Questions`` makes the answers of one client: it knows the options of each question and where its hosts are
looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from p2pnode.client.answer import Answer, Answers, Watcher
from p2pnode.client.failover import Held, PartialAnswer
from p2pnode.client.history import without_oldest
from p2pnode.client.host_rules import HostRules
from p2pnode.client.hosts import HostSearch, Searches
from p2pnode.client.pool import SessionPool
from p2pnode.client.ranking import Candidate, CostBound, Filters, TurnBound, cost_bound
from p2pnode.client.runtime import Runtime
from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId, pasted
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.manifest import SCRIPTED, Manifest, parse_model_id, scripted_model_id
from p2pnode.net.multiaddrs import split_peer
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.messages import (
    TEMPLATE_TOKENS_MAX,
    TEMPLATE_TOKENS_PER_MESSAGE_MAX,
    ChatMessage,
    PromptBody,
    SamplingParams,
)

ContextChoice: TypeAlias = Literal["refuse", "drop-oldest"]
Messages: TypeAlias = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model as the client knows it: its id, and its manifest where the catalogue has it."""

    model: ModelId
    manifest: Manifest | None = None

    def input_max(self, body: PromptBody) -> int:
        """The largest number of input tokens that a host can honestly quote for this prompt."""
        size = sum(len(message.content.encode()) for message in body.messages)
        count = len(body.messages)
        if self.manifest is not None:
            return len(body.prefix) + self.manifest.template_overhead.tokens_max(count, size)
        return len(body.prefix) + size + TEMPLATE_TOKENS_MAX + TEMPLATE_TOKENS_PER_MESSAGE_MAX * count


def resolve_model(name: str) -> KnownModel:
    """The model of a catalogue name, a model id (``m1…``) or a GGUF file that was pulled.

    Raises ``ConfigError``.
    """
    if name == SCRIPTED:
        return KnownModel(scripted_model_id())
    if name.startswith("m1"):
        try:
            model = parse_model_id(name)
        except ConfigError:
            pass  # a name in the catalogue may begin so
        else:
            manifests = (entry.manifest for entry in Catalogue.load() if entry.model_id == model)
            return KnownModel(model, next(manifests, None))
    entry = Catalogue.load().find(name)
    if entry.model_id is None:
        msg = f"{name} is a file: ask for it by its model id, which `p2pnode models list` and its host print"
        raise ConfigError(msg)
    return KnownModel(entry.model_id, entry.manifest)


def chat_messages(messages: Messages, system: str | None) -> tuple[ChatMessage, ...]:
    """The wire form of a question or a conversation. Raises ``ConfigError``."""
    given: Sequence[Any] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    made = [ChatMessage(role="system", content=system)] if system else []
    for message in given:
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            msg = 'each message is {"role": "system"|"user"|"assistant", "content": text}'
            raise ConfigError(msg)
        made.append(ChatMessage(role=role, content=content))
    if not all(_is_text(message.content) for message in made):
        msg = "a message holds half of a character (a lone surrogate): decode it as UTF-8 first"
        raise ConfigError(msg)
    if not made:
        msg = "there is nothing to ask: give at least one message"
        raise ConfigError(msg)
    return tuple(made)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a question is asked; the parameters of ``Client.chat``."""

    model: str | None = None
    peer: str | None = None
    system: str | None = None
    sampling: SamplingParams | None = None
    filters: Filters | None = None
    context: ContextChoice = "refuse"
    """What becomes of a conversation that fits no host: it is refused, or loses its oldest messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a question can cost at a host, before anything is signed."""

    candidate: Candidate
    turn: TurnBound
    cost: CostBound


class Questions:
    """Makes the answers of one client, from sessions of its ``pool`` with hosts of its ``searches``."""

    def __init__(self, runtime: Runtime, pool: SessionPool, searches: Searches) -> None:
        self._runtime, self._pool, self._searches = runtime, pool, searches
        self.answers = Answers(runtime)

    def answer(
        self,
        messages: Messages,
        options: ChatOptions,
        *,
        held: Held | None = None,
        watcher: Watcher | None = None,
        trusted: bool = False,
    ) -> Answer:
        """The answer to ``messages``, or the rest of the answer of which ``held`` came before.

        ``trusted``: a host that the user trusts knows what was said before.

        Raises ``ConfigError`` for an unknown model or a malformed multiaddr.
        """
        known, body = _question(messages, options)
        peer, allowed = self._allowed(options)

        async def open_search() -> HostSearch:
            if peer is not None:
                return await self._searches.of_named_host(peer, known.model, allowed)
            return self._searches.with_idle_sessions(known.model, allowed)

        def make_ask(body: PromptBody) -> Ask:
            return Ask(body, known.input_max(body))

        return Answer(
            self._runtime,
            self._pool,
            self._searches,
            PartialAnswer.of(body, held),
            search=open_search,
            make_ask=make_ask,
            answers=self.answers,
            watcher=watcher,
            trusted=trusted,
            shorten=_shortened if options.context == "drop-oldest" else None,
        )

    async def estimate(self, messages: Messages, options: ChatOptions) -> list[Estimate]:
        """What a question can cost at each host that is found, in the order of trial; those that may not be
        asked come last. Nothing is signed, and no host learns the question.

        Raises as :meth:`answer` does, and ``UnreachableError`` and ``RefusedError`` of a host that was named.
        """
        known, body = _question(messages, options)
        peer, allowed = self._allowed(options)
        turn = TurnBound(tokens_in=known.input_max(body), tokens_out=body.sampling.tokens_max)
        if peer is not None:
            search = await self._searches.of_named_host(peer, known.model, allowed)
        else:
            search = self._searches.with_idle_sessions(known.model, allowed)
            search.start()
            await search.wait_over()
        search.ask_for(turn)
        ranking = search.ranking()
        return [
            Estimate(candidate=each, turn=turn, cost=cost_bound(each.offer, turn, fee_paid=each.fee_paid))
            for each in (*ranking.chosen, *ranking.excluded)
        ]

    def _allowed(self, options: ChatOptions) -> tuple[str | None, Filters]:
        """The multiaddr of the host that is named, if any, and which hosts may be asked."""
        allowed = options.filters or Filters()
        trusted = HostRules.of(trust=self._runtime.config.trust).trust
        rules = replace(allowed.rules, trust=allowed.rules.trust | trusted)
        peer = pasted(options.peer) if options.peer is not None else None
        if peer is not None:
            # Who names a host wants it, stranger or not.
            rules = replace(rules, only=rules.only | {split_peer(peer)[1]})
        return peer, replace(allowed, rules=rules)


def _shortened(body: PromptBody) -> PromptBody | None:
    kept = without_oldest(
        body.messages,
        role=lambda message: message.role,
        size=lambda message: len(message.content.encode()),
    )
    return replace(body, messages=tuple(kept)) if len(kept) < len(body.messages) else None


def _question(messages: Messages, options: ChatOptions) -> tuple[KnownModel, PromptBody]:
    known = resolve_model(options.model if options.model is not None else DEFAULT_MODEL)
    body = PromptBody(
        messages=chat_messages(messages, options.system), sampling=options.sampling or SamplingParams()
    )
    return known, body
