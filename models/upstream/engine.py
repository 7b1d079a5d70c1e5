"""``UpstreamEngine``: an OpenAI-compatible server that runs on this machine already, as an ``Engine``.

The prompt is ours to the last id, and so are stop strings, the budget and the bill. What the server makes of
sampling fields is tried at the first load (``trials.py``), and what shows no effect is refused. With
``/v1/completions`` an answer goes on from exactly the ids that it has. A server that has only
``/v1/chat/completions`` renders the prompt itself: then the count of the prompt is the tokenizer's, and a
begun answer goes on from its text, where the server can do that at all.

The server belongs to somebody else. It may stop, change its model or be busy; then this engine's ``load``
says so, and works again when the server does. It may keep prompts of all its users in one cache, unless it
can be told not to (``Abilities.isolates``); no reuse is ever reported or billed for less.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog
import trio

from p2pnode.bounded import BoundedMap
from p2pnode.errors import ConfigError, EngineError, EngineLostError
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.engine import (
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineFeature,
    EngineInfo,
    EngineStatistics,
    GenerateRequest,
)
from p2pnode.models.grammar import AnyGrammar, GrammarError, grammar_after
from p2pnode.models.prompt_maker import PromptMaker
from p2pnode.models.slot_wait import wait_assigned
from p2pnode.models.slots import SlotQueue
from p2pnode.models.upstream.completion import (
    Part,
    RefusedError,
    error_of,
    joined,
    part_of,
    words_for_the_owner,
)
from p2pnode.models.upstream.http import GoneError, HungError, UpstreamHttp
from p2pnode.models.upstream.run import UpstreamRun
from p2pnode.models.upstream.server import Server, found_at
from p2pnode.models.upstream.sse import MalformedError
from p2pnode.models.upstream.text_model import TextModel
from p2pnode.models.upstream.trials import (
    COUNTED,
    PROMPT,
    TOKENS,
    Abilities,
    Trial,
    judged,
    trials,
)
from p2pnode.models.validation import no_embeddings, tokens_allowed
from p2pnode.protocols.inference.messages import PromptBody

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"
_PROBE_S: Final = 5.0
_TRIAL_S: Final = 120.0
"""A large model on a slow machine reads a short prompt within this; its server may load it first."""
_CHATS_MAX: Final = 256
_BIAS_WORD: Final = "a"
_ISOLATION_REPEATS: Final = 3
_PARTS_MAX: Final = 1000
_NOT_OF_THE_TRIAL: Final = frozenset({401, 403, 429})
_TROUBLE = (RefusedError, GoneError, HungError, MalformedError)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """``url`` ends before ``/v1``. ``model`` is the server's name for it, "" for its first; ``n_ctx`` the
    context of one request, None for what the server says."""

    url: str
    model: str = ""
    key: str = field(default="", repr=False)
    n_ctx: int | None = None
    slots: int | None = None
    queue_max: int = 32
    stall_s: float = 60.0
    """A request in which nothing came for this long is given up."""


class UpstreamEngine:
    """An ``Engine`` (see ``models/engine.py``)."""

    def __init__(self, model: TextModel, prompts: PromptMaker, config: UpstreamConfig) -> None:
        self._model, self._prompts, self._config = model, prompts, config
        self._http = UpstreamHttp(config.url, config.key)
        self._loading = trio.Lock()
        self._server: Server | None = None
        self._info: EngineInfo | None = None
        self._queue = SlotQueue(1, config.queue_max)
        self.abilities = Abilities()
        """What the server showed at the last load."""
        self._chats: BoundedMap[tuple[int, ...], PromptBody] = BoundedMap(_CHATS_MAX)
        """Where prompts are the server's to render: the turns by their ids, as our template renders them."""
        self._closed = False
        self._gone = 0

    async def load(self) -> EngineInfo:
        """Ask the server whether it is there, and, the first time and when it has changed, what it can do.

        Raises ``ConfigError`` for what only its owner can mend.
        """
        async with self._loading:
            self._check_open()
            if self._info is not None and self._queue.table.busy:
                return self._info  # it answers somebody, and may answer nobody else meanwhile
            try:
                server = await found_at(self._http, self._config.model, deadline_s=_PROBE_S)
                if self._info is None or server != self._server:
                    self.abilities = await self._abilities(server)
                    self._queue = SlotQueue(self._config.slots or server.slots, self._config.queue_max)
            except _TROUBLE as error:
                self._gone += 1
                raise _not_there(error, self._http.url, self._config.model) from error
            if self._info is None:
                log.info("upstream.found", url=self._http.url, model=server.model, abilities=self.abilities)
            self._server = server
            self._info = EngineInfo(
                engine="upstream",
                quantisation="unknown",
                n_ctx=self._n_ctx(server),
                slots=self._config.slots or server.slots,
                features=self._features,
                build=server.build,
                samplers=self.abilities.samplers,
                remote=True,
            )
            return self._info

    async def aclose(self) -> None:
        """Take no more requests. The server goes on."""
        self._closed = True
        await self._prompts.aclose()

    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        """The prompt by the model's chat template, which runs in a process with limits."""
        await self._ready()
        wants_grammar = bool(body.tools) or body.response_format.kind != "text"
        self.abilities.check(body.sampling, logprobs=body.logprobs, grammar=wants_grammar)
        made = await self._prompts.prompt(body)
        if self.abilities.chat:
            self._chats.put(made.ids[: len(made.ids) - len(body.prefix)], body)
        return made

    async def extend(self, prompt: CompiledPrompt, ids: tuple[int, ...]) -> CompiledPrompt:
        """As ``followed_by`` says; the process that compiles prompts follows the grammar."""
        return await self._prompts.extend(prompt, ids)

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text. What looks like a special token in it stays text."""
        await self._ready()
        return await self._prompts.tokenize(text)

    def reusable(self, cache_key: bytes, prompt_ids: tuple[int, ...]) -> int:  # noqa: ARG002
        """Nothing: what the server keeps is not known."""
        return 0

    async def embed_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:  # noqa: ARG002
        """It makes no embeddings."""
        await trio.lowlevel.checkpoint()
        raise no_embeddings()

    def embed(
        self,
        request: EmbedRequest,  # noqa: ARG002
    ) -> AbstractAsyncContextManager[AsyncIterator[EmbedEvent]]:
        """It makes no embeddings."""
        raise no_embeddings()

    async def arithmetic(self) -> bytes:
        """Empty: no such server tells logits."""
        await trio.lowlevel.checkpoint()
        return b""

    def statistics(self) -> EngineStatistics:
        """A snapshot of the load. ``restarts`` counts how often the server was gone."""
        return self._queue.statistics(restarts=self._gone)

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Run one request. Leaving the block closes it, at which the server stops."""
        info = await self._ready()
        vocabulary = self._model.vocabulary
        allowed = tokens_allowed(request, n_ctx=info.n_ctx, vocabulary=len(vocabulary))
        self.abilities.check(request.sampling, logprobs=request.logprobs, grammar=request.grammar is not None)
        path, body = self._body(request, allowed)
        place = self._queue.enter(request.cache_key, request.prompt_ids, request.origin, request.session)
        queue, run = self._queue, UpstreamRun(request, allowed, self._model)
        first_token_at: float | None = None

        async def events() -> AsyncGenerator[EngineEvent, None]:
            nonlocal first_token_at
            await wait_assigned(place)
            try:
                async with aclosing(self._http.stream(path, body, stall_s=self._config.stall_s)) as answer:
                    async for parts in answer:
                        for event in run.take(parts):
                            yield event
                        if run.delivered and first_token_at is None:
                            first_token_at = trio.current_time()
                        if run.over:
                            break
                for event in run.end():
                    yield event
            except _TROUBLE as error:
                raise self._failure(error) from error

        try:
            async with aclosing(events()) as stream:
                yield stream
        finally:
            if first_token_at is not None:
                queue.record(run.delivered, trio.current_time() - first_token_at)
            queue.leave(place, ())

    # ---- requests

    def _body(self, request: GenerateRequest, allowed: int) -> tuple[str, dict[str, Any]]:
        abilities, sampling = self.abilities, request.sampling
        made: dict[str, Any] = {
            **self._base(allowed),
            **abilities.fields(sampling, request.seed),
            "stream": True,
        }
        if request.grammar is not None:
            made["grammar"] = self._grammar(request, request.grammar)
        if request.logprobs >= 0:
            # One at least, for the ids' own are told with them.
            made |= _logprobs(max(1, request.logprobs), chat=abilities.chat)
        if abilities.chat:
            return CHAT, {**made, "messages": self._messages(request.prompt_ids)}
        if abilities.ids:
            return COMPLETIONS, {**made, "prompt": request.prompt_ids}
        text = self._model.text_of(request.prompt_ids, adds_begin=abilities.adds_begin)
        return COMPLETIONS, {**made, "prompt": text}

    def _grammar(self, request: GenerateRequest, grammar: AnyGrammar) -> str:
        prompt, piece = request.prompt_ids, self._model.vocabulary.piece
        begun = b"".join(map(piece, prompt[len(prompt) - request.text_pending :]))
        try:
            rest, part = grammar_after(grammar, begun)
        except GrammarError as error:
            raise EngineError(str(error), code="bad_request") from error
        if part:
            msg = "the answer ends inside of a letter, where this host can't go on: use another one"
            raise EngineError(msg, code="capacity", retry_after_s=0.0)
        return rest.gbnf()

    def _base(self, tokens_max: int) -> dict[str, Any]:
        model = self._server.model if self._server is not None else self._config.model
        isolated = {"cache_prompt": False} if self.abilities.isolates else {}
        return {"model": model, "max_tokens": tokens_max, **isolated}

    def _messages(self, prompt_ids: tuple[int, ...]) -> list[dict[str, str]]:
        for ids in self._chats:
            if prompt_ids[: len(ids)] == ids:
                break
        else:
            raise EngineError("this host has forgotten the conversation; ask again", retry_after_s=0.0)
        body = self._chats.get(ids)
        assert body is not None  # noqa: S101 - its key was just found
        said = [{"role": each.role, "content": each.text} for each in body.messages]
        begun = b"".join(map(self._model.vocabulary.piece, prompt_ids[len(ids) :]))
        if begun and not self.abilities.continues:
            msg = (
                "the server behind this host can't go on with an answer that was begun: ask anew, or use "
                "another host"
            )
            raise EngineError(msg, code="bad_request")
        return [*said, {"role": "assistant", "content": begun.decode("utf-8", "replace")}] if begun else said

    # ---- what the server can do

    async def _abilities(self, server: Server) -> Abilities:
        self._server = server
        bias_id = next(iter(self._model.encode(_BIAS_WORD)))
        counted = len(self._model.encode(COUNTED))
        bias_text = self._model.vocabulary.piece(bias_id).decode("utf-8", "replace")
        wrong = ""
        for chat in (False, True):
            answers: dict[str, Part | None] = {}
            for trial in trials(bias_id):
                answers[trial.name] = await self._tried(trial, chat=chat)
                if answers[trial.name] is None and trial.name == "greedy":
                    break
            found = judged(answers, chat=chat, counted=counted, bias_text=bias_text)
            if found is not None:
                greedy = answers["greedy"]
                assert greedy is not None  # noqa: S101 - nothing is found without
                return await (self._of_chat(found) if chat else self._of_text(found, greedy.text))
            told = answers.get("counted")
            if told is not None and told.prompt_tokens is not None:
                wrong = (
                    f" It counts {told.prompt_tokens} tokens in a text of which this tokenizer makes "
                    f"{counted}: is it the model's own? Name the right one with --upstream-tokenizer."
                )
        raise ConfigError(
            f"{self._http.url} serves {server.model!r} in no way that can be used: it answers neither "
            f"{COMPLETIONS} nor {CHAT}.{wrong}"
        )

    async def _of_text(self, found: Abilities, greedy: str) -> Abilities:
        ids = [*self._model.begins, *self._model.encode(PROMPT)]
        by_ids = await self._asked(COMPLETIONS, {"prompt": ids, "temperature": 0.0, "max_tokens": TOKENS})
        found = replace(found, ids=by_ids is not None and by_ids.text == greedy)
        # The same prompt again: what was kept of it shows in the count, unless it is told not to look.
        cached = []
        for allowed in (True, False):
            body = {"prompt": PROMPT * _ISOLATION_REPEATS, "temperature": 0.0, "max_tokens": 1}
            await self._asked(COMPLETIONS, {**body, "cache_prompt": allowed})
            told = await self._asked(COMPLETIONS, {**body, "cache_prompt": allowed})
            cached.append(None if told is None else told.cached_tokens)
        return replace(found, isolates=bool(cached[0]) and cached[1] == 0)

    async def _of_chat(self, found: Abilities) -> Abilities:
        """Whether a begun answer is gone on with: then the rest of one is what was there before, without its
        beginning."""
        user = {"role": "user", "content": PROMPT}
        body = {"temperature": 0.0, "max_tokens": 3 * TOKENS}
        told = await self._asked(CHAT, {**body, "messages": [user]})
        whole = told.text if told is not None else ""
        at = whole.rfind(" ", 1)
        at = at if at > 0 else len(whole) // 2
        begun, rest = whole[:at], whole[at:].strip()
        more = await self._asked(CHAT, {**body, "messages": [user, {"role": "assistant", "content": begun}]})
        goes_on = more is not None and bool(rest) and more.text.strip().startswith(rest)
        return replace(found, continues=goes_on)

    async def _tried(self, trial: Trial, *, chat: bool) -> Part | None:
        fields: dict[str, Any] = {"max_tokens": TOKENS, **trial.fields}
        if "logprobs" in fields:
            fields |= _logprobs(fields.pop("logprobs"), chat=chat)
        said = {"messages": [{"role": "user", "content": trial.prompt}]} if chat else {"prompt": trial.prompt}
        return await self._asked(CHAT if chat else COMPLETIONS, {**fields, **said}, streams=trial.streams)

    async def _asked(self, path: str, body: Mapping[str, Any], *, streams: bool = False) -> Part | None:
        """The whole answer to a request of our own; None where the server refuses it, or gives no answer."""
        whole = {**self._base(TOKENS), **body, "stream": streams}
        try:
            if not streams:
                return part_of(await self._http.call(path, whole, deadline_s=_TRIAL_S))
            found: list[Part] = []
            async with aclosing(self._http.stream(path, whole, stall_s=_TRIAL_S)) as answer:
                async for parts in answer:
                    found += parts
                    if len(found) > _PARTS_MAX:
                        return None
            return joined(found)
        except MalformedError:
            return None
        except RefusedError as refused:
            if refused.status in _NOT_OF_THE_TRIAL:
                raise
            return None

    @property
    def _features(self) -> frozenset[EngineFeature]:
        lacking: set[EngineFeature] = set()
        if not self.abilities.grammar:
            lacking |= {"tools", "schema"}
        if not self.abilities.logprobs:
            lacking.add("logprobs")
        return self._prompts.features() - lacking

    def _n_ctx(self, server: Server) -> int:
        told = [each for each in (self._config.n_ctx, server.n_ctx) if each]
        if not told:
            raise ConfigError(f"{self._http.url} doesn't say how long its context is: name it with --n-ctx")
        return min(told)

    # ---- what goes wrong

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed", code="shutting_down")

    async def _ready(self) -> EngineInfo:
        self._check_open()
        return self._info if self._info is not None else await self.load()

    def _failure(self, error: Exception) -> EngineError:
        if self._closed:
            return EngineError("the engine was closed", code="shutting_down")
        if isinstance(error, RefusedError):
            made = error_of(error)
            if made.code == "internal":
                log.warning(
                    "upstream.refuses",
                    reason=words_for_the_owner(error, self._http.url, self._config.model),
                )
            return made
        log.warning("upstream.lost", url=self._http.url, reason=str(error) or type(error).__name__)
        if isinstance(error, HungError):
            what = f"gave no sign for {self._config.stall_s:g} s"
        elif isinstance(error, MalformedError):
            what = f"sent what is no answer ({error})"
        else:
            what = "is gone, or broke off"
        return EngineLostError(f"the server behind this host {what}; ask again", retry_after_s=1.0)


def _not_there(error: Exception, url: str, model: str) -> Exception:
    if isinstance(error, RefusedError):
        refused = error_of(error)
        if refused.code == "capacity":
            return refused
        return ConfigError(words_for_the_owner(error, url, model))
    if isinstance(error, HungError):
        return EngineError(f"{url} does not answer within {_PROBE_S:g} s: is its server busy or stuck?")
    return EngineError(f"{url} is not to be reached ({error}): is its server running?", retry_after_s=5.0)


async def find_server(url: str, model: str = "", key: str = "") -> Server:
    """The server at ``url`` and its model of this name, or its first.

    Raises ``ConfigError`` and ``EngineError``, which say what its owner can do.
    """
    try:
        return await found_at(UpstreamHttp(url, key), model, deadline_s=_PROBE_S)
    except _TROUBLE as error:
        raise _not_there(error, url, model) from error


def _logprobs(count: int, *, chat: bool) -> dict[str, Any]:
    return {"logprobs": True, "top_logprobs": count} if chat else {"logprobs": count}
