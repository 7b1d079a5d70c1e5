"""``ScriptedEngine``: a deterministic engine without weights, for tests, benchmarks and the simulator.

Token ids are byte values and a few special ones, so that text and ids are easy to read. The next id is a
function of the seed and of all ids before it, as with a real model: the same prompt and seed give the same
answer, and a continuation from any part of it gives exactly the rest. All time passes in ``trio`` sleeps, so
that trio's ``MockClock`` drives it.
"""

from __future__ import annotations

import math
import secrets
import struct
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeAlias

import trio

from p2pnode.errors import EngineError, EngineLostError
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.engine import (
    Done,
    Embedding,
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineFeature,
    EngineInfo,
    EngineStatistics,
    GenerateRequest,
    Logprob,
    Prefill,
    Started,
    Tokens,
)
from p2pnode.models.grammar import AnyGrammar, Grammar, GrammarError, grammar_after, spell
from p2pnode.models.prompt import pieces_of
from p2pnode.models.prompt_compiler import compile_prompt, rest_of, text_of_prefix
from p2pnode.models.renderer import ChatTemplate, Renderer
from p2pnode.models.slot_wait import wait_assigned
from p2pnode.models.slots import QueuedRequest, SlotQueue
from p2pnode.models.text import Released, TextAssembler
from p2pnode.models.validation import (
    BYTES_PER_TOKEN_MAX,
    check_embed,
    check_text,
    no_embeddings,
    tokens_allowed,
    validate_sampling,
)
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.inference.messages import FinishReason, PromptBody

END: Final = 256
ROLE_IDS: Final[Mapping[str, int]] = {"system": 257, "user": 258, "assistant": 259, "tool": 260}
VOCABULARY: Final = Vocabulary(
    [bytes([byte]) for byte in range(256)] + [b""] * 5,
    ends=[END],
    special={"<|end|>": END} | {f"<|{role}|>": token for role, token in ROLE_IDS.items()},
)
TEMPLATE: Final = ChatTemplate(
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|end|>{% endfor %}<|assistant|>"
)
"""Each message as its role's token, its bytes and the end token. Calls are written in the form ``hermes``."""

Script: TypeAlias = Callable[[tuple[int, ...], int], str]
"""(the prompt's ids up to the last assistant mark, the seed; 0 when greedy) -> the whole answer."""

_VOWELS: Final = b"aeiou"
_CONSONANTS: Final = b"bdfgklmnprstvz"
_VOWELS_SET: Final = frozenset(_VOWELS)
_CONSONANTS_SET: Final = frozenset(_CONSONANTS)
_ID: Final = struct.Struct("<H")
_SPACE: Final = ord(" ")
_PREFILL_BATCH: Final = 64
_PACE_S: Final = 0.001
_CHUNK: Final = 16
_SPELLED_MAX: Final = 400
"""Bytes of an answer that a grammar shapes, about half of them freely."""
_LOGPROB: Final = math.log(0.5)
DIMENSIONS: Final = 64
"""Numbers of an embedding."""
_LETTERS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedConfig:
    """A rate of ``None`` is as fast as possible. Rates are per slot, in tokens per second."""

    n_ctx: int = 2048
    slots: int = 4
    queue_max: int = 32
    tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    load_s: float = 0.0
    script: Script | None = None
    """``None``: pseudo-words without end."""
    template: ChatTemplate = TEMPLATE
    embeddings: bool = True
    """Whether it makes any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong with requests that begin from now on, after so many tokens, or vectors, of one."""

    crash_after_tokens: int | None = None
    """The engine crashes: every request under way fails. After ``crashes`` of them the fault is over."""
    crashes: int = 1
    hang_after_tokens: int | None = None
    """Nothing more comes until the caller gives up."""


class ScriptedEngine:
    """An ``Engine`` (see ``models/engine.py``)."""

    def __init__(self, config: ScriptedConfig | None = None) -> None:
        self._config = config or ScriptedConfig()
        self._queue = SlotQueue(self._config.slots, self._config.queue_max)
        self._renderer = Renderer(self._config.template)
        self._broken = trio.Event()
        self._loaded = False
        self._closed = False
        self._restarts = 0
        self.faults = Faults()

    async def load(self) -> EngineInfo:
        """Sleep for ``load_s``."""
        if self._closed:
            raise EngineError("the engine is closed; make a new one", code="shutting_down")
        if not self._loaded:
            await trio.sleep(self._config.load_s)
            self._loaded = True
        config = self._config
        return EngineInfo(
            engine="scripted",
            quantisation="none",
            n_ctx=config.n_ctx,
            slots=config.slots,
            features=self._features,
        )

    @property
    def _features(self) -> frozenset[EngineFeature]:
        features: tuple[EngineFeature, ...] = ("tools", "schema", "logprobs")
        return frozenset((*features, "embeddings") if self._config.embeddings else features)

    async def aclose(self) -> None:
        """End all requests under way."""
        self._closed = True
        self._broken.set()
        await trio.lowlevel.checkpoint()

    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        """As ``TEMPLATE`` renders it, which is our own and needs no limits."""
        await self._ready()
        validate_sampling(body.sampling, len(VOCABULARY))
        text, pending = await text_of_prefix(VOCABULARY, body)
        parts = compile_prompt(
            self._renderer,
            body,
            text=text,
            nonce=secrets.token_hex(8),
            letters_max=self._config.n_ctx * BYTES_PER_TOKEN_MAX,
        )
        ids: list[int] = []
        for piece in pieces_of(parts.segments, VOCABULARY):
            ids += piece.encode(errors="replace") if isinstance(piece, str) else [piece]
        return CompiledPrompt.of(parts, ids, body, text=text, text_pending=pending)

    async def extend(self, prompt: CompiledPrompt, ids: tuple[int, ...]) -> CompiledPrompt:
        """As ``followed_by`` says; its grammar is followed here, without limits."""
        await self._ready()
        grown, text = prompt.followed_by(ids, VOCABULARY)
        if grown.grammar is None or not text:
            return grown
        return replace(grown, grammar=rest_of(grown.grammar.unpacked(), text))

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """The UTF-8 bytes of the text."""
        await self._ready()
        check_text(text, n_ctx=self._config.n_ctx)
        return tuple(text.encode())

    def reusable(self, cache_key: bytes, prompt_ids: tuple[int, ...]) -> int:
        """As the slot table says."""
        return self._queue.table.reusable(cache_key, prompt_ids)

    async def arithmetic(self) -> bytes:
        """Empty: its numbers are the same everywhere."""
        await self._ready()
        return b""

    def statistics(self) -> EngineStatistics:
        """A snapshot of the load."""
        return self._queue.statistics(restarts=self._restarts)

    async def embed_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The UTF-8 bytes of each text, and the end token."""
        if not self._config.embeddings:
            raise no_embeddings()
        return tuple([(*await self.tokenize(text), END) for text in texts])

    @asynccontextmanager
    async def embed(self, request: EmbedRequest) -> AsyncIterator[AsyncIterator[EmbedEvent]]:
        """Embed texts, at the pace at which prompts are read."""
        if not self._config.embeddings:
            raise no_embeddings()
        await self._ready()
        check_embed(request, n_ctx=self._config.n_ctx, vocabulary=len(VOCABULARY))
        place = self._queue.enter(request.session + b"embed", (), request.origin, request.session)
        try:
            async with aclosing(self._vectors(request, place)) as events:
                yield events
        finally:
            self._queue.leave(place)

    async def _vectors(self, request: EmbedRequest, place: QueuedRequest) -> AsyncGenerator[EmbedEvent, None]:
        await wait_assigned(place)
        broken, faults = self._broken, self.faults
        processed, total = 0, sum(map(len, request.texts))
        for made, ids in enumerate(request.texts):
            await self._pause(broken, len(ids) / (self._config.prefill_tokens_per_s or float("inf")))
            await self._fail_if_due(faults, broken, made)
            processed += len(ids)
            yield Prefill(processed=processed, total=total)
            yield Embedding(_embedding(ids))

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Run one request."""
        await self._ready()
        allowed = tokens_allowed(request, n_ctx=self._config.n_ctx, vocabulary=len(VOCABULARY))
        place = self._queue.enter(request.cache_key, request.prompt_ids, request.origin, request.session)
        made: list[int] = []
        try:
            async with aclosing(self._events(request, place, allowed, made)) as events:
                yield events
        finally:
            self._queue.leave(place, request.prompt_ids + tuple(made))

    async def _events(
        self, request: GenerateRequest, place: QueuedRequest, allowed: int, made: list[int]
    ) -> AsyncGenerator[EngineEvent, None]:
        assignment = await wait_assigned(place)
        broken, faults = self._broken, self.faults
        prompt = request.prompt_ids
        yield Started(tokens_in=len(prompt), reused=assignment.reusable)
        for processed in range(assignment.reusable, len(prompt), _PREFILL_BATCH):
            batch = min(_PREFILL_BATCH, len(prompt) - processed)
            await self._pause(broken, batch / (self._config.prefill_tokens_per_s or float("inf")))
            yield Prefill(processed=processed + batch, total=len(prompt))
        began = trio.current_time()
        known = prompt[: len(prompt) - request.text_pending]
        text = TextAssembler(VOCABULARY.piece, request.sampling.stop, before=VOCABULARY.tail_of(known))
        source = self._ids(request)
        reason: FinishReason = "length"
        delivered = 0
        released = text.release_pending(prompt[len(known) :])
        if released.text:
            yield Tokens(ids=(), text=released.text)
        if released.stopped:
            reason = "stop"
        while len(made) < allowed and reason == "length":
            count = await self._due(broken, began, len(made), allowed)
            ids: list[int] = []
            for _ in range(count):
                await self._fail_if_due(faults, broken, len(made) + len(ids))
                token = next(source, END)
                if token == END:
                    reason = "stop"
                    break
                ids.append(token)
            made += ids
            released = text.feed(ids)
            if released.ids or released.text:
                delivered += len(released.ids)
                yield _tokens(request, released)
            if released.stopped:
                reason = "stop"
        if not text.stopped:
            released = text.finish(complete=reason == "stop")
            if released.ids or released.text:
                delivered += len(released.ids)
                yield _tokens(request, released)
        self._queue.record(delivered, trio.current_time() - began)
        yield Done(reason=reason, tokens_out=delivered, stop=text.stopped_by)

    async def _due(self, broken: trio.Event, began: float, made: int, allowed: int) -> int:
        """How many tokens are due by now, at least one. Counted from the start: delays don't add up."""
        rate = self._config.tokens_per_s
        if rate is None:
            await self._pause(broken, 0)
            return min(_CHUNK, allowed - made)
        at_least = max(1.0, _PACE_S * rate)
        await self._pause(broken, began + (made + at_least) / rate - trio.current_time())
        # The epsilon makes up for a mock clock's rounding, which could cost a token.
        due = int((trio.current_time() - began) * rate + 1e-6) - made
        return max(1, min(due, allowed - made))

    async def _pause(self, broken: trio.Event, seconds: float) -> None:
        with trio.move_on_after(max(0.0, seconds)):
            await broken.wait()
        self._check(broken)

    def _check(self, broken: trio.Event) -> None:
        if broken.is_set():
            if self._closed:
                raise EngineError("the engine was closed", code="shutting_down")
            raise EngineLostError("the engine crashed and restarted; ask again", retry_after_s=0.5)

    async def _fail_if_due(self, faults: Faults, broken: trio.Event, made: int) -> None:
        if faults.crash_after_tokens is not None and made >= faults.crash_after_tokens:
            self.faults = replace(faults, crashes=faults.crashes - 1) if faults.crashes > 1 else Faults()
            self._restarts += 1
            self._queue.table.forget()
            self._broken, old = trio.Event(), self._broken
            old.set()
            self._check(broken)
        if faults.hang_after_tokens is not None and made >= faults.hang_after_tokens:
            await trio.sleep_forever()

    def _ids(self, request: GenerateRequest) -> Iterator[int]:
        seed = request.seed if request.sampling.temperature > 0 else 0
        if self._config.script is not None:
            return _answer(self._config.script, request.prompt_ids, seed)
        if request.grammar is not None:
            return _shaped(request, request.grammar, seed)
        return _pseudo_words(request.prompt_ids, seed)

    async def _ready(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed", code="shutting_down")
        await self.load()


def _tokens(request: GenerateRequest, released: Released) -> Tokens:
    """Log-probabilities are made up: each id has one in two, and the ids after it share the rest."""
    told: tuple[Logprob, ...] = ()
    if request.logprobs >= 0:
        others = range(1, request.logprobs)
        told = tuple(
            Logprob(
                _LOGPROB,
                ((token, _LOGPROB), *(((token + n) % len(VOCABULARY), _LOGPROB - n) for n in others))
                if request.logprobs
                else (),
            )
            for token in released.ids
        )
    return Tokens(ids=released.ids, text=released.text, logprobs=told)


def _answer(script: Script, prompt: tuple[int, ...], seed: int) -> Iterator[int]:
    """The scripted answer without the part that the prompt already holds."""
    begins = _answer_begins(prompt)
    whole = script(prompt[:begins], seed).encode()
    yield from whole[len(prompt) - begins :]


def _answer_begins(prompt: tuple[int, ...]) -> int:
    """Where the answer begins, of which the prompt may hold a part: after the last assistant mark."""
    mark = ROLE_IDS["assistant"]
    return len(prompt) - prompt[::-1].index(mark) if mark in prompt else len(prompt)


def _shaped(request: GenerateRequest, grammar: AnyGrammar, seed: int) -> Iterator[int]:
    """The ids of a text of the grammar, after those of it that the prompt ends with."""
    prompt = request.prompt_ids
    begun = bytes(token for token in prompt[len(prompt) - request.text_pending :] if token < END)
    try:
        rest, part = grammar_after(grammar, begun)
    except GrammarError as error:
        raise EngineError(str(error), code="bad_request") from error
    # The letter that was begun is drawn again, by the ids before it.
    return islice(_spelled(rest.unpacked(), prompt[: len(prompt) - len(part)], seed), len(part), None)


def _spelled(grammar: Grammar, prompt: tuple[int, ...], seed: int) -> Iterator[int]:
    """A text of the grammar, each letter drawn by the seed and all ids so far, like :func:`_pseudo_words`."""
    state = zlib.crc32(b"".join(map(_ID.pack, prompt)), zlib.crc32(seed.to_bytes(8, "big")))
    drawn = 0

    def choose(below: int) -> int:
        nonlocal drawn
        drawn += 1
        return ((zlib.crc32(_ID.pack(drawn), state) * 2654435761) & 0xFFFFFFFF) % below

    begun = len(prompt) - _answer_begins(prompt)
    for letter in spell(grammar, choose, bytes_max=_SPELLED_MAX, begun=begun):
        for byte in letter.encode():
            yield byte
            state = zlib.crc32(_ID.pack(byte), state)
        drawn = 0


def _pseudo_words(prompt: tuple[int, ...], seed: int) -> Iterator[int]:
    """Words drawn by a running hash of the seed and all ids so far: a very small language model."""
    state = zlib.crc32(seed.to_bytes(8, "big"))
    last = 0
    for last in prompt:
        state = zlib.crc32(_ID.pack(last), state)
    while True:
        # CRCs of neighbours differ in few bits: mix before drawing (Knuth's multiplicative hash).
        draw = ((state * 2654435761) & 0xFFFFFFFF) >> 8
        if last in _CONSONANTS_SET:
            last = _VOWELS[draw % len(_VOWELS)]
        elif last in _VOWELS_SET and draw % 3 == 0:
            last = _SPACE
        else:
            last = _CONSONANTS[draw % len(_CONSONANTS)]
        yield last
        state = zlib.crc32(_ID.pack(last), state)


def _embedding(ids: tuple[int, ...]) -> tuple[float, ...]:
    """Each run of up to three letters counts for or against one number, by its hash ("feature hashing",
    Weinberger et al., 2009): texts with many words in common get vectors that are near. The length is 1."""
    letters = bytes(token for token in ids if token < END)
    numbers = [1.0, *(0.0 for _ in range(DIMENSIONS - 1))]  # so that none is 0 in all
    for end in range(1, len(letters) + 1):
        drawn = (zlib.crc32(letters[max(0, end - _LETTERS) : end]) * 2654435761) & 0xFFFFFFFF
        numbers[1 + (drawn >> 8) % (DIMENSIONS - 1)] += 1 if drawn & 1 else -1
    length = math.sqrt(sum(number * number for number in numbers))
    return tuple(number / length for number in numbers)
