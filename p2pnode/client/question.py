"""A user's question: the model by its name, messages as maps, checked before a host is looked for.

``Questions`` makes the answers of one client: it knows the options of each question and where its hosts are
looked for.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, get_args

import trio

from p2pnode.client.answer import Answer, Answers, Watcher
from p2pnode.client.chat_options import ChatOptions, Estimate, Messages, json_text_of, text_of
from p2pnode.client.embedding import Embedding, EmbeddingTurn
from p2pnode.client.failover import Held, PartialAnswer
from p2pnode.client.history import without_oldest
from p2pnode.client.host_rules import HostRules
from p2pnode.client.hosts import HostSearch, Searches
from p2pnode.client.pool import SessionPool
from p2pnode.client.prompt_check import KEPT, PromptRenderers
from p2pnode.client.ranking import Filters, TurnBound, cost_bound, needs_of
from p2pnode.client.runtime import Runtime
from p2pnode.client.second_host import BYTES_PER_TOKEN
from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import ConfigError, ProtocolError
from p2pnode.ids import ModelId, PeerId, pasted
from p2pnode.models.answer_grammar import check_answer_form
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.generic_form import generic_messages, uses_tools
from p2pnode.models.gguf import read_header
from p2pnode.models.grammar import GrammarError
from p2pnode.models.local_models import installed
from p2pnode.models.manifest import SCRIPTED, Manifest, parse_model_id, scripted_model_id
from p2pnode.models.prompt_files import KeptPromptFiles, PromptFiles
from p2pnode.models.tokenizer import vocabulary_in
from p2pnode.models.vocabulary import Vocabulary, load_vocabulary
from p2pnode.net.multiaddrs import split_peer
from p2pnode.node.block_list import BlockList
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.embeddings import embed_tokens_max
from p2pnode.protocols.inference.messages import (
    TEMPLATE_TOKENS_MAX,
    TEMPLATE_TOKENS_PER_MESSAGE_MAX,
    ChatMessage,
    Part,
    PromptBody,
    Role,
    SamplingParams,
    ToolCall,
)
from p2pnode.protocols.inference.prompt_rules import check_prompt
from p2pnode.protocols.wire import decode_record, encode
from p2pnode.storage.model_peers import fetch_prompt_files

if TYPE_CHECKING:
    from p2pnode.payments.journal.keys import KeyLimits

_DAY_S: Final = 86_400
_NO_EMBEDDINGS: Final = (
    "Hosts with llama.cpp make them, unless memory is short or their owner wants none (--no-embeddings)"
)
JSON_AROUND_MAX: Final = 64
"""Bytes that a template's JSON has around a tool or a call, beyond those of the tool's own."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model as the client knows it: its id, and its manifest where the catalogue has it."""

    model: ModelId
    manifest: Manifest | None = None

    def input_max(self, body: PromptBody) -> int:
        """The largest number of input tokens that a host can honestly quote for this prompt.

        A text has no more tokens than bytes, as JSON or in words. A template adds as much to a tool and to a
        call as to a message.
        """
        if body.embed:
            return embed_tokens_max(body.embed)
        messages = generic_messages(body) if uses_tools(body) else body.messages
        calls = sum(len(message.tool_calls) for message in body.messages)
        size = sum(len(message.text.encode(errors="replace")) for message in messages)
        size += JSON_AROUND_MAX * (len(body.tools) + calls)
        count = len(messages) + len(body.tools) + calls
        if self.manifest is not None:
            return len(body.prefix) + self.manifest.template_overhead.tokens_max(count, size)
        return len(body.prefix) + size + TEMPLATE_TOKENS_MAX + TEMPLATE_TOKENS_PER_MESSAGE_MAX * count


def resolve_model(name: str, models_dir: Path) -> KnownModel:
    """The model of a catalogue name, ``LIST/NAME`` of a list that is subscribed in ``models_dir``, a model id
    (``m1…``) or a GGUF file that was pulled.

    Blocks on the disk. Raises ``ConfigError``.
    """
    if name == SCRIPTED:
        return KnownModel(scripted_model_id())
    if name.startswith("m1"):
        try:
            model = parse_model_id(name)
        except ConfigError:
            pass  # a name in the catalogue may begin so
        else:
            return KnownModel(model, Catalogue.of(models_dir).manifest_of(model))
    entry = Catalogue.of(models_dir).find(name)
    if entry.model_id is None:
        msg = f"{name} is a file: ask for it by its model id, which `p2pnode models list` and its host print"
        raise ConfigError(msg)
    return KnownModel(entry.model_id, entry.manifest)


def chat_messages(messages: Messages, system: str | None) -> tuple[ChatMessage, ...]:
    """The wire form of a question or a conversation. Raises ``ConfigError``."""
    given: Sequence[Any] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    made = [ChatMessage.of("system", system)] if system else []
    made += [each if isinstance(each, ChatMessage) else _chat_message(each) for each in given]
    if not all(_is_text(part.text) for message in made for part in message.content):
        msg = "a message holds half of a character (a lone surrogate): decode it as UTF-8 first"
        raise ConfigError(msg)
    if not made:
        msg = "there is nothing to ask: give at least one message"
        raise ConfigError(msg)
    return tuple(made)


def _chat_message(message: Mapping[str, Any]) -> ChatMessage:
    """One message as OpenAI's API has it: content is text, parts, or none beside calls of tools."""
    role, content = message.get("role"), message.get("content")
    calls = message.get("tool_calls") or ()
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    try:
        return ChatMessage(
            role=_one_of_roles(role),
            content=tuple(_part(part) for part in parts),
            tool_calls=tuple(
                ToolCall(
                    id=text_of(call["id"]),
                    name=text_of(call["function"]["name"]),
                    arguments=json_text_of(call["function"].get("arguments", "{}")),
                )
                for call in calls
            ),
            tool_call_id=None if message.get("tool_call_id") is None else text_of(message["tool_call_id"]),
            name=text_of(message.get("name") or ""),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        msg = (
            'each message is {"role": "system"|"developer"|"user"|"assistant"|"tool", "content": text}; an '
            'assistant\'s may have "tool_calls", a tool\'s has the "tool_call_id" that it answers'
        )
        raise ConfigError(msg) from error


def _one_of_roles(role: object) -> Role:
    if role not in get_args(Role):
        raise ValueError
    return cast("Role", role)


def _part(part: Mapping[str, Any]) -> Part:
    if part["type"] == "text":
        return Part(text=text_of(part["text"]))
    if part["type"] == "image_url":
        head, _, data = text_of(part["image_url"]["url"]).partition(";base64,")
        if not head.startswith("data:"):
            raise ConfigError("an image comes as a data: URL with base64, for a host fetches nothing")
        return Part(kind="image", data=b64decode(data, validate=True), mime=head.removeprefix("data:"))
    raise ConfigError(f"a part of a message is {str(part['type'])[:40]!r}; known are text and image_url")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_question(body: PromptBody) -> None:
    """Check all of a prompt that can be checked here. Raises ``ConfigError`` where no host would take it."""
    try:
        check_prompt(body)
        decode_record(PromptBody, encode(body))
        check_answer_form(body)
    except (ProtocolError, GrammarError) as error:
        raise ConfigError(str(error)) from error
    except UnicodeEncodeError as error:
        msg = "a schema or an argument holds half of a character (a lone surrogate): decode it as UTF-8 first"
        raise ConfigError(msg) from error


class Questions:
    """Makes the answers of one client, from sessions of its ``pool`` with hosts of its ``searches``."""

    def __init__(self, runtime: Runtime, pool: SessionPool, searches: Searches) -> None:
        self._runtime, self._pool, self._searches = runtime, pool, searches
        self.answers = Answers(runtime)
        self.renderers = PromptRenderers(runtime.data.models, self._fetch)
        self._vocabularies: dict[ModelId, Vocabulary] = {}
        self._ids_ends: dict[ModelId, int | None] = {}

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

        Raises ``ConfigError`` for an unknown model, a malformed multiaddr, and a prompt that no host takes,
        and ``BudgetError`` for what the key may not ask.
        """
        known, body = self._question(messages, options)
        return self._answer(known, PartialAnswer.of(body, held), options, watcher=watcher, trusted=trusted)

    def _answer(
        self,
        known: KnownModel,
        partial: PartialAnswer,
        options: ChatOptions,
        *,
        passed_over: Collection[PeerId] = (),
        watcher: Watcher | None = None,
        trusted: bool = False,
    ) -> Answer:
        """``passed_over``: hosts that have disagreed with others."""
        body = partial.body
        peer, allowed = self._allowed(options, body)

        async def open_search() -> HostSearch:
            if peer is not None:
                search = await self._searches.of_named_host(peer, known.model, allowed)
            else:
                search = self._searches.with_idle_sessions(known.model, allowed, prefer=options.prefer)
            for each in passed_over:
                search.pass_over(each, "its vectors and those of other hosts are not of one model")
            return search

        budget = options.budget.id if options.budget is not None else b""

        def make_ask(body: PromptBody) -> Ask:
            return Ask(body, known.input_max(body), budget=budget)

        return Answer(
            self._runtime,
            self._pool,
            self._searches,
            partial,
            search=open_search,
            make_ask=make_ask,
            renderers=self.renderers,
            answers=self.answers,
            watcher=watcher,
            trusted=trusted,
            hedge=options.hedge or self._runtime.config.hedge,
            shorten=_shortened if options.context == "drop-oldest" else None,
            vocabulary=(lambda: self.vocabulary(known)) if body.tools else None,
            ids_end=lambda: self._ids_end(known),
        )

    def embedding(self, texts: Sequence[str], options: ChatOptions) -> Embedding:
        """The vectors of ``texts``. Of ``options`` it takes ``model``, ``peer`` and ``filters``.

        Raises ``ConfigError``.
        """
        named = options.model if options.model is not None else DEFAULT_MODEL
        known = resolve_model(named, self._runtime.data.models)
        self._check_budget(options, known)
        filters = options.filters or Filters()

        def make(turn: EmbeddingTurn) -> Answer:
            left = None if filters.cost_max is None else max(0, filters.cost_max - turn.spent)
            body = PromptBody(embed=turn.texts, seed=self._runtime.node.draw(16))
            partial = PartialAnswer(body, vector_size=turn.vector_size)
            allowed = replace(options, filters=replace(filters, cost_max=left))
            return self._answer(known, partial, allowed, passed_over=turn.passed_over)

        trying = "" if known.model == scripted_model_id() else _NO_EMBEDDINGS
        return Embedding(texts, make, nobody=trying)

    async def _fetch(
        self, peer: PeerId, model: ModelId, manifest: Manifest | None, kept: KeptPromptFiles
    ) -> PromptFiles | None:
        return await fetch_prompt_files(self._runtime.node, peer, model, manifest, kept)

    async def vocabulary(self, known: KnownModel) -> Vocabulary | None:
        """The model's, where its file is on this machine: calls of tools are then checked against the ids."""
        if known.model == scripted_model_id():
            from p2pnode.models.scripted import VOCABULARY

            return VOCABULARY
        if known.model not in self._vocabularies:
            load = partial(_known_vocabulary, self._runtime.data.models, known)
            found = await trio.to_thread.run_sync(load)
            if found is None:
                return None  # a host may give it before the next turn
            self._vocabularies[known.model] = found
        return self._vocabularies[known.model]

    async def fetch_prompt_files(self, known: KnownModel, peers: Sequence[PeerId]) -> None:
        """Ask hosts, one after another, for the model's tokenizer and template, and keep them."""
        kept = KeptPromptFiles(self._runtime.data.models / KEPT)
        for peer in peers:
            with trio.move_on_after(self._runtime.limits.request_deadline_s):
                if await self._fetch(peer, known.model, known.manifest, kept) is not None:
                    return

    async def _ids_end(self, known: KnownModel) -> int | None:
        """The first id that is none of the model's; None where its file is not on this machine."""
        if known.model == scripted_model_id():
            from p2pnode.models.scripted import VOCABULARY

            return len(VOCABULARY)
        if known.model not in self._ids_ends:
            load = partial(_installed_ids_end, self._runtime.data.models, known.model)
            self._ids_ends[known.model] = await trio.to_thread.run_sync(load)
        return self._ids_ends[known.model]

    async def estimate(self, messages: Messages, options: ChatOptions) -> list[Estimate]:
        """What a question can cost at each host that is found, in the order of trial; those that may not be
        asked come last. Nothing is signed, and no host learns the question.

        Raises as :meth:`answer` does, ``NoHostError`` where none is found, and ``UnreachableError`` and
        ``RefusedError`` of a host that was named.
        """
        known, body = self._question(messages, options)
        peer, allowed = self._allowed(options, body)
        turn = TurnBound(tokens_in=known.input_max(body), tokens_out=body.tokens_out_max)
        if peer is not None:
            search = await self._searches.of_named_host(peer, known.model, allowed)
        else:
            search = self._searches.with_idle_sessions(known.model, allowed)
            search.start()
            await search.wait_over()
        search.ask_for(turn)
        ranking = search.ranking()
        if not (ranking.chosen or ranking.excluded):
            raise search.no_host()
        return [
            Estimate(candidate=each, turn=turn, cost=cost_bound(each.offer, turn, fee_paid=each.fee_paid))
            for each in (*ranking.chosen, *ranking.excluded)
        ]

    def _allowed(self, options: ChatOptions, body: PromptBody) -> tuple[str | None, Filters]:
        """The multiaddr of the host that is named, if any, and which hosts may be asked for this."""
        allowed = options.filters or Filters()
        trusted = HostRules.of(trust=self._runtime.config.trust).trust
        blocked = {str(each.peer) for each in BlockList(self._runtime.data.blocked).read()}
        rules = replace(
            allowed.rules, trust=allowed.rules.trust | trusted, never=allowed.rules.never | blocked
        )
        peer = pasted(options.peer) if options.peer is not None else None
        if peer is not None:
            # Who names a host wants it, stranger or not.
            rules = replace(rules, only=rules.only | {split_peer(peer)[1]})
        verified = allowed.verified or self._runtime.config.verified
        caps = allowed.caps | needs_of(body)
        if options.budget is not None:
            allowed = _allowed_by_key(allowed, options.budget.limits)
        return peer, replace(allowed, rules=rules, caps=caps, verified=verified)

    def _check_budget(self, options: ChatOptions, known: KnownModel) -> None:
        """Raise ``BudgetError`` where the key may not ask for this model, or not any more."""
        if options.budget is not None:
            from p2pnode.payments.keys import check_model

            check_model(options.budget, known.model, self._runtime.now())

    async def count(self, messages: Messages, options: ChatOptions) -> tuple[int, bool]:
        """How many tokens a prompt has, and whether that is exact, as where its tokenizer is on this machine.

        Otherwise it is an estimate: one token for four bytes, as in English with most tokenizers. Raises
        ``ConfigError``.
        """
        known, body = self._question(messages, options)
        rendered = await self.renderers.rendered(known.model, body)
        if rendered is not None:
            return rendered[0], True
        return max(1, known.input_max(body) // BYTES_PER_TOKEN), False

    def _question(self, messages: Messages, options: ChatOptions) -> tuple[KnownModel, PromptBody]:
        named = options.model if options.model is not None else DEFAULT_MODEL
        known = resolve_model(named, self._runtime.data.models)
        self._check_budget(options, known)
        body = PromptBody(
            messages=chat_messages(messages, options.system),
            tools=options.tools,
            tool_choice=options.tool_choice,
            parallel_tool_calls=options.parallel_tool_calls,
            response_format=options.response_format,
            sampling=options.sampling or SamplingParams(),
            seed=options.seed or self._runtime.node.draw(16),
            logprobs=options.logprobs,
            cache_key=options.cache_key,
            # A day, and not the second: a host needs to know no more, and its cache stays good for the day.
            now=int(self._runtime.now()) // _DAY_S * _DAY_S,
        )
        check_question(body)
        if uses_tools(body) and known.manifest is None and known.model != scripted_model_id():
            msg = (
                "tools go only to models of the catalogue, for what a host may bill for them is unknown "
                "otherwise: name one with --model"
            )
            raise ConfigError(msg)
        return known, body


def _allowed_by_key(allowed: Filters, limits: KeyLimits) -> Filters:
    """What the user allows for a question, and the key for any."""
    models = limits.models
    return replace(
        allowed,
        price_in_max=_lower(allowed.price_in_max, limits.price_in_max),
        price_out_max=_lower(allowed.price_out_max, limits.price_out_max),
        equivalents=tuple(each for each in allowed.equivalents if not models or each in models),
    )


def _lower(one: int | None, other: int | None) -> int | None:
    """The lower of two limits; None is none."""
    return min((each for each in (one, other) if each is not None), default=None)


def _installed_path(models_dir: Path, model: ModelId) -> Path | None:
    models = installed(models_dir) if models_dir.is_dir() else []
    gguf = (each for each in models if each.manifest.format == "gguf")
    return next((each.path for each in gguf if each.model_id == model), None)


def _known_vocabulary(models_dir: Path, known: KnownModel) -> Vocabulary | None:
    """Of the model's file, or of its tokenizer that was fetched. Blocks on the disk."""
    path = _installed_path(models_dir, known.model)
    if path is not None:
        return load_vocabulary(path)
    kept = KeptPromptFiles(models_dir / KEPT)
    manifest = known.manifest or kept.manifest(known.model)
    blob = None if manifest is None else kept.blob(manifest.tokenizer)
    try:
        return vocabulary_in(blob) if blob else None
    except ConfigError:
        return None


def _installed_ids_end(models_dir: Path, model: ModelId) -> int | None:
    """Blocks on the disk."""
    path = _installed_path(models_dir, model)
    return None if path is None else read_header(path).array("tokenizer.ggml.tokens").count


def _shortened(body: PromptBody) -> PromptBody | None:
    kept = without_oldest(
        body.messages,
        role=lambda message: message.role,
        size=_size,
    )
    return replace(body, messages=tuple(kept)) if len(kept) < len(body.messages) else None


def _size(message: ChatMessage) -> int:
    return len(message.text.encode()) + sum(len(call.arguments.encode()) for call in message.tool_calls)
