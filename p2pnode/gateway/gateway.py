"""``Gateway``: answers turns of any face through one client, and keeps each conversation with its host.

It knows no HTTP and no API: a turn comes in, pieces of an answer go out. Nothing of a request but its turn
reaches a host: no header, no key.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import structlog
import trio

from p2pnode.bounded import BoundedMap
from p2pnode.client.answer import Answer
from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.client import Client
from p2pnode.client.embedding import Embedding
from p2pnode.client.question import resolve_model
from p2pnode.client.ranking import why_not_free
from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import ConfigError, P2PNodeError
from p2pnode.gateway.access import Caller
from p2pnode.gateway.faults import FaultError, KeyRefusedError
from p2pnode.gateway.turn import (
    Asked,
    Ended,
    Routing,
    Served,
    Tally,
    TokenSaid,
    Turn,
    cache_key,
    within,
)
from p2pnode.ids import ModelId, PeerId
from p2pnode.models.answer import Said
from p2pnode.models.catalogue import Catalogue, shown_name
from p2pnode.models.manifest import SCRIPTED
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.adverts.messages import Advert, capability_names
from p2pnode.protocols.inference.messages import FinishReason, TokenLogprob, ToolCall

_CONVERSATIONS_MAX: Final = 4096
"""Whose host is remembered."""
_PIECES_AHEAD: Final = 16
_MODELS_S: Final = 5.0
"""How long a list of the network's models is good."""
_FINISH: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "cancelled": "cancelled",
    "tool_calls": "tool_calls",
}
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the answer to the turn ``choice``; ``call_id``: of a call that begins with it."""

    choice: int
    said: Said
    call_id: str = ""
    logprobs: tuple[TokenSaid, ...] = ()


@dataclass(frozen=True, slots=True)
class Over:
    """The answer to the turn ``choice`` is whole."""

    choice: int
    ended: Ended


@dataclass(frozen=True, slots=True)
class Failed:
    """An answer was cut short, or never began."""

    error: P2PNodeError


GatewayEvent: TypeAlias = Piece | Over | Failed
Begin: TypeAlias = Callable[[ChatOptions], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that can be asked now, over all hosts that serve it. Prices are token units per million."""

    name: str
    model: ModelId
    n_ctx: int
    hosts: int
    price_in: int
    price_out: int
    """The lowest ones of any host."""
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatistics:
    """``requests`` that ended, by face and HTTP status; how many are ``under_way`` now."""

    requests: dict[tuple[str, int], int] = field(default_factory=dict)
    under_way: int = 0
    conversations: int = 0


class Gateway:
    """One gateway over one client, which outlives it.

    ``aliases``: pairs of a pattern (``claude-*``, ``*``) and the model that is meant by names that fit it.
    ``trust_host``: tools are offered also where the text of a host's calls can't be checked against the ids
    that it is paid for.
    """

    def __init__(
        self, client: Client, *, aliases: Sequence[tuple[str, str]] = (), trust_host: bool = False
    ) -> None:
        self._client, self._aliases, self._trust_host = client, tuple(aliases), trust_host
        self._homes: BoundedMap[bytes, PeerId] = BoundedMap(_CONVERSATIONS_MAX)
        self._models: tuple[float, tuple[ServedModel, ...]] | None = None
        self._looking = trio.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self.under_way = 0
        """Requests that are being answered."""

    @property
    def client(self) -> Client:
        """What it asks with."""
        return self._client

    def statistics(self) -> GatewayStatistics:
        """A snapshot."""
        return GatewayStatistics(
            requests=dict(self._requests), under_way=self.under_way, conversations=len(self._homes)
        )

    def note(self, face: str, status: int) -> None:
        """Count a request that ended."""
        self._requests[face, status] += 1

    # ---- models

    def model_of(self, name: str) -> str:
        """The model that a request's name means. Raises ``FaultError`` where nobody can know it.

        Paths of files are no names here: who sends a request may not learn which files there are.
        """
        known = {each.name for each in Catalogue.load()} | {SCRIPTED}
        if not name:
            name = next((model for pattern, model in self._aliases if pattern == "*"), DEFAULT_MODEL)
        if name.lower() in known:
            return name.lower()
        for pattern, model in self._aliases:
            if fnmatch.fnmatchcase(name, pattern):
                return model
        models_dir = self._client.runtime.data.models
        try:
            if name.startswith("m1"):
                resolve_model(name, models_dir)
                return name
        except ConfigError:
            pass
        if (listed := Catalogue.of(models_dir).find_in_list(name)) is not None:
            return listed.name
        msg = (
            f"no model is named {name[:80]!r}: GET /v1/models lists those that can be asked, and "
            "`p2pnode gateway --alias 'NAME=MODEL'` gives one another name"
        )
        raise FaultError(404, "model_not_found", msg, param="model")

    async def models(self, caller: Caller) -> tuple[ServedModel, ...]:
        """What this caller can ask now, by name."""
        async with self._looking:
            now = trio.current_time()
            if self._models is None or now > self._models[0] + _MODELS_S:
                self._models = (now, self._served(await self._client.known_adverts()))
            return tuple(each for each in self._models[1] if may_ask(each, caller))

    async def model(self, name: str, caller: Caller) -> ServedModel:
        """The model of this name as :meth:`models` has it. Raises ``FaultError``."""
        known = self.model_of(name)
        wanted = resolve_model(known, self._client.runtime.data.models).model
        for each in await self.models(caller):
            if each.model == wanted:
                return each
        msg = f"no host of {known} was found that may be asked: GET /v1/models lists what there is"
        raise FaultError(404, "model_not_found", msg)

    def _served(self, adverts: Sequence[Advert]) -> tuple[ServedModel, ...]:
        found: dict[ModelId, ServedModel] = {}
        capabilities: dict[ModelId, int] = {}
        payer = self._client.runtime.payer
        for advert in adverts:
            for offer in () if advert.draining or advert.withdrawn else advert.offers:
                if not offer.n_ctx or (payer.payable if payer is not None else why_not_free)(advert, offer):
                    continue
                before = found.get(offer.model)
                caps = capabilities[offer.model] = capabilities.get(offer.model, 0) | offer.caps
                found[offer.model] = ServedModel(
                    name=shown_name(offer.model),
                    model=offer.model,
                    n_ctx=max(offer.n_ctx, before.n_ctx if before else 0),
                    hosts=1 + (before.hosts if before else 0),
                    price_in=min(offer.price_in, before.price_in) if before else offer.price_in,
                    price_out=min(offer.price_out, before.price_out) if before else offer.price_out,
                    capabilities=capability_names(caps),
                )
        return tuple(sorted(found.values(), key=lambda each: each.name))

    # ---- turns

    async def answers(self, asked: Asked, routing: Routing, caller: Caller) -> list[Reply]:
        """The answers to a request's turns, not begun. Raises ``FaultError`` and ``P2PNodeError``."""
        return [await self.reply(turn, routing, caller) for turn in asked.turns]

    async def reply(self, turn: Turn, routing: Routing, caller: Caller, begin: Begin | None = None) -> Reply:
        """The answer to a turn, not begun. ``begin`` makes it of how it is to be asked; without, its messages
        are asked as they are. Raises as :meth:`answers`."""
        model = self.model_of(turn.model)
        check_model(model, routing, caller, self._client.runtime.data.models)
        vocabulary: Vocabulary | None = None
        if turn.tools or turn.logprobs >= 0:
            vocabulary = await self._client.vocabulary(model, ask_hosts=bool(turn.tools))
            if turn.tools and vocabulary is None and not self._trust_host:
                msg = (
                    f"the tokenizer of {model} is not on this machine and no host gave it, so that calls of "
                    "tools could not be checked against what a host is paid for: "
                    f"`p2pnode models pull {model}` brings it, or start the gateway with --trust-host"
                )
                raise FaultError(503, "tokenizer_missing", msg)
        key = cache_key(caller.key_id, turn, routing)
        options = ChatOptions(
            model=model,
            sampling=turn.sampling,
            filters=within(routing.filters, caller.filters),
            tools=turn.tools,
            tool_choice=turn.tool_choice,
            parallel_tool_calls=turn.parallel_tool_calls,
            response_format=turn.response_format,
            logprobs=turn.logprobs,
            seed=turn.seed,
            budget=caller.budget,
            cache_key=key,
            prefer=self._homes.get(key),
            hedge=routing.hedge,
        )
        answer = self._client.answer(turn.messages, options) if begin is None else await begin(options)
        return Reply(answer, vocabulary, on_host=lambda host: self._homes.put(key, host))

    async def count(self, turn: Turn, routing: Routing, caller: Caller) -> tuple[int, bool]:
        """How many tokens a prompt has, and whether that is exact. Raises as :meth:`answers`."""
        model = self.model_of(turn.model)
        check_model(model, routing, caller, self._client.runtime.data.models)
        options = ChatOptions(
            model=model,
            tools=turn.tools,
            tool_choice=turn.tool_choice,
            parallel_tool_calls=turn.parallel_tool_calls,
            response_format=turn.response_format,
            sampling=turn.sampling,
        )
        return await self._client.count(turn.messages, options)

    def embedding(self, name: str, texts: Sequence[str], routing: Routing, caller: Caller) -> Embedding:
        """The vectors of texts, not begun. Raises ``FaultError`` and ``P2PNodeError``."""
        model = self.model_of(name)
        check_model(model, routing, caller, self._client.runtime.data.models)
        filters = within(routing.filters, caller.filters)
        return self._client.embed(texts, model=model, filters=filters, budget=caller.budget)

    @asynccontextmanager
    async def events(
        self, replies: Sequence[Reply]
    ) -> AsyncIterator[trio.MemoryReceiveChannel[GatewayEvent]]:
        """What comes of these answers, all at once. Those that are not whole at the end of the block are
        stopped, and their hosts' slots are free."""
        send, receive = trio.open_memory_channel[GatewayEvent](_PIECES_AHEAD)
        async with trio.open_nursery() as nursery:
            with send, receive:
                for choice, reply in enumerate(replies):
                    nursery.start_soon(reply.tell, choice, send.clone())
                yield receive
                nursery.cancel_scope.cancel()


def may_ask(model: ServedModel, caller: Caller) -> bool:
    """Whether a caller may ask a model, as far as its key and the lowest prices say."""
    limits = caller.budget.limits if caller.budget is not None else None
    if caller.models is not None and model.name not in caller.models:
        return False
    if limits is None:
        return True
    if limits.models and model.model not in limits.models:
        return False
    prices = ((model.price_in, limits.price_in_max), (model.price_out, limits.price_out_max))
    return all(most is None or price <= most for price, most in prices)


def check_model(model: str, routing: Routing, caller: Caller, models_dir: Path) -> None:
    """Raise ``KeyRefusedError`` or ``FaultError`` where this model may not be asked for a request."""
    if caller.models is not None and model not in caller.models:
        allowed = ", ".join(sorted(caller.models)) or "none"
        raise KeyRefusedError("model", f"this key may not ask {model}: it is for {allowed}")
    if not routing.quantisation:
        return
    manifest = resolve_model(model, models_dir).manifest
    found = manifest.quantisation if manifest is not None else "unknown"
    if found.lower() != routing.quantisation.lower():
        msg = f"the quantisation of {model} is {found}, and {routing.quantisation[:40]} was asked for"
        raise FaultError(400, "invalid_request", msg, param="p2pnode.quantisation")


class Reply:
    """One answer on its way to a program."""

    def __init__(
        self, answer: Answer, vocabulary: Vocabulary | None, *, on_host: Callable[[PeerId], object]
    ) -> None:
        self.answer, self._vocabulary, self._on_host = answer, vocabulary, on_host
        self._told = 0
        """Of how many tokens the log-probabilities were told."""

    @property
    def served(self) -> Served:
        """Who answers, as far as that is known."""
        answer = self.answer
        offer, session = answer.offer, answer.session
        return Served(
            host=str(answer.host or ""),
            session=session.hex() if session is not None else self._last_session,
            price_in=offer.price_in if offer is not None else 0,
            price_out=offer.price_out if offer is not None else 0,
        )

    @property
    def _last_session(self) -> str:
        return self.answer.bill[-1].session.hex() if self.answer.bill else ""

    @property
    def tally(self) -> Tally:
        """What it took so far, by its bill."""
        bill = self.answer.bill
        return Tally(
            tokens_in=sum(each.tokens_in for each in bill),
            reused=sum(each.reused for each in bill),
            tokens_out=sum(each.tokens_out for each in bill),
            cost=sum(each.cost for each in bill),
        )

    async def tell(self, choice: int, events: trio.MemorySendChannel[GatewayEvent]) -> None:
        """Send what comes of it; end it with its host where this is cancelled."""
        async with events, self.answer as answer:
            try:
                async for said in answer.events():
                    call_id = answer.tool_calls[said.call].id if said.name else ""
                    await events.send(Piece(choice, said, call_id, self._logprobs()))
            except P2PNodeError as error:
                await events.send(Failed(error))
                return
            if answer.host is not None:
                self._on_host(answer.host)
            await events.send(Over(choice, self._ended()))

    def _ended(self) -> Ended:
        answer = self.answer
        usage = answer.usage
        reason, stop = (usage.reason, usage.stop) if usage is not None else ("cancelled", "")
        return Ended(
            text=answer.text,
            reasoning=answer.reasoning,
            calls=tuple(_whole(each) for each in answer.tool_calls),
            finish=_FINISH.get(reason, "stop"),
            stop=stop,
            context_full=usage is not None and usage.context_full,
            tally=self.tally,
            served=self.served,
            logprobs=self._logprobs(),
        )

    def _logprobs(self) -> tuple[TokenSaid, ...]:
        """Those of the tokens that came since the last time."""
        answer, begin = self.answer, self._told
        self._told = len(answer.logprobs)
        ids = answer.ids[begin : self._told]
        return tuple(
            _token_said(token, logprob, self._vocabulary)
            for token, logprob in zip(ids, answer.logprobs[begin:], strict=False)
        )


def _whole(call: ToolCall) -> ToolCall:
    return call if call.arguments else ToolCall(id=call.id, name=call.name)


def _token_said(token: int, told: TokenLogprob, vocabulary: Vocabulary | None) -> TokenSaid:
    text, data = _token_text(token, vocabulary)
    top = tuple((*_token_text(each.id, vocabulary), each.logprob) for each in told.top)
    return TokenSaid(text=text, data=data, logprob=told.logprob, top=top)


def _token_text(token: int, vocabulary: Vocabulary | None) -> tuple[str, bytes]:
    """As other servers do, the id where the model's tokenizer is not here."""
    if vocabulary is None:
        return f"token_id:{token}", b""
    data = vocabulary.piece(token)
    return data.decode(errors="replace"), data
