"""The ``Engine`` seam: what a host needs of an inference engine, and nothing about how it works.

An engine works on token ids. It knows nothing of peers, money or streams. ``cache_key`` names whose prefix
cache a request may reuse: an engine never reuses one key's cache for another, because a shared cache leaks
other users' prompts through timing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.grammar import AnyGrammar
from p2pnode.protocols.inference.messages import FinishReason, PromptBody, SamplingParams
from p2pnode.shares import Origin

ANYBODY: Final = Origin("", "")
EngineFeature: TypeAlias = Literal[
    "tools", "schema", "reasoning", "logprobs", "embeddings", "vision", "grammar"
]
"""What an engine can do besides text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One completion. ``prompt_ids`` holds everything, also a partial answer that is to be continued.

    ``seed`` is of this call, from 0 to 2^32-2. The engine draws from its beginning with the first token.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    cache_key: bytes
    """Reuse of the prefix cache is allowed within one key only."""
    session: bytes = b""
    """Requests of one origin go round its sessions."""
    origin: Origin = ANYBODY
    """Whose turn it is when requests wait: a payer, or where a client that doesn't pay comes from."""
    text_pending: int = 0
    """How many ids at the prompt's end still need their text, which comes first, without these ids."""
    grammar: AnyGrammar | None = None
    """What may follow the prompt but for its ``text_pending`` ids, which begin it; None where all may."""
    logprobs: int = -1
    """How many likely tokens are told beside each, with log-probabilities; -1: not even its own is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The request has a slot. ``reused`` of its ``tokens_in`` prompt tokens were in the cache."""

    tokens_in: int
    reused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """Progress of reading the prompt, in tokens."""

    processed: int
    total: int


@dataclass(frozen=True, slots=True)
class Logprob:
    """The log-probability of an output token, and the ids and log-probabilities of the likeliest ones.

    Natural logarithms of the softmax of the raw logits, before any sampler. Nobody proves them.
    """

    own: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Output ids in order, and the text they complete.

    ``text`` may lag ``ids`` (a partial UTF-8 character, a possible stop string) and catches up later.
    ``logprobs`` has one for each id, or nothing.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The last event. ``tokens_out`` doesn't count ids of a stop string or an end of sequence, which are not
    delivered. ``stop`` is the stop string that ended the answer, "" where none did."""

    reason: FinishReason
    tokens_out: int
    stop: str = ""


EngineEvent: TypeAlias = Started | Prefill | Tokens | Done


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Texts to embed, as ids (``Engine.embed_ids``). ``session`` and ``origin`` as in ``GenerateRequest``."""

    texts: tuple[tuple[int, ...], ...]
    session: bytes = b""
    origin: Origin = ANYBODY


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of the text that follows: finite numbers of 32 bits, as many for each text."""

    numbers: tuple[float, ...]


EmbedEvent: TypeAlias = Prefill | Embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What a loaded engine serves. ``n_ctx`` is the context of ONE request, in tokens.

    The fields from ``build`` on say how it computes: its version, how many tokens it computes together, how
    it keeps keys and values (as ``f16/f16``), its samplers in their order, and a hash of the logits that it
    gave for a fixed prompt. Each may be empty.

    ``remote``: it belongs to somebody else, and may go away or change, which ``Engine.load`` tells each time.
    """

    engine: str
    quantisation: str
    n_ctx: int
    slots: int
    features: frozenset[EngineFeature] = frozenset()
    build: str = ""
    batch: int = 0
    kv_types: str = ""
    samplers: tuple[str, ...] = ()
    arithmetic: bytes = b""
    note: str = ""
    """What whoever runs it should know, such as why it has fewer slots than it was asked for."""
    remote: bool = False
    gpu_memory: int = 0
    """Bytes that it was seen to take of the GPUs' memory; 0 where that isn't known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """A snapshot. ``queued`` requests wait for a slot; ``tokens_per_s`` is an exponentially weighted mean."""

    active: int = 0
    queued: int = 0
    restarts: int = 0
    tokens_out: int = 0
    tokens_per_s: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """The last hidden state of each token of a text, before the last norm: ``rows`` x ``width`` numbers of 16
    bits, little-endian (IEEE 754 binary16)."""

    rows: int
    width: int
    data: bytes


@runtime_checkable
class InspectableEngine(Protocol):
    """What some engines tell besides answers, for verification. Asked for by ``isinstance``, not assumed."""

    async def likeliest(self, prompt_ids: tuple[int, ...]) -> list[tuple[int, float]]:
        """The likeliest next tokens with their log-probabilities, computed anew. It takes a slot."""
        ...

    async def hidden_states(self, prompt_ids: Sequence[int]) -> HiddenStates:
        """The hidden states of a text, computed by itself."""
        ...


class Engine(Protocol):
    """An inference engine. All methods run on the trio thread and never block it.

    Every method but ``aclose`` raises ``EngineError`` with a wire ``code``: ``capacity`` (with
    ``retry_after_s``) when the bounded queue is full, ``context_overflow`` when the prompt does not
    fit, ``bad_request`` when a value makes no sense, ``internal`` when the engine failed. Where it died or
    hung with the request, that is an ``EngineLostError``: it restarts itself, and asking again works.
    """

    async def load(self) -> EngineInfo:
        """Load the weights and warm up. Idempotent."""
        ...

    async def aclose(self) -> None:
        """Free everything. Requests under way end with ``EngineError``."""
        ...

    async def prompt(self, body: PromptBody) -> CompiledPrompt:
        """The prompt of a whole turn, rendered by the model's chat template, ready for the answer.

        Rendering and grammars are ours (``models/prompt_compiler.py``); only the model's tokens are the
        engine's. Everything that a stranger can make expensive happens here, within limits.
        """
        ...

    async def extend(self, prompt: CompiledPrompt, ids: tuple[int, ...]) -> CompiledPrompt:
        """``prompt`` with more ids of its answer, as :meth:`prompt` would give it with a longer prefix.

        Nothing is rendered or compiled again; a grammar is followed through the new text, within limits.
        """
        ...

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, without special tokens."""
        ...

    def reusable(self, cache_key: bytes, prompt_ids: tuple[int, ...]) -> int:
        """How many leading prompt tokens this key's cache holds now. A hint; never of another key's cache."""
        ...

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Run one request: ``async with engine.generate(r) as events: async for event in events``.

        Leaving the block cancels it and frees its slot within one batch, during prefill too.
        """
        ...

    async def embed_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of texts as they are embedded, with those that begin and end each.

        Raises ``EngineError`` with code ``bad_request`` where it makes none (its ``features`` say so).
        """
        ...

    def embed(self, request: EmbedRequest) -> AbstractAsyncContextManager[AsyncIterator[EmbedEvent]]:
        """Embed texts: an ``Embedding`` for each, in their order. Used as :meth:`generate` is."""
        ...

    async def arithmetic(self) -> bytes:
        """The hash of the logits for a fixed prompt (``models/arithmetic.py``); empty where there are none.

        It takes a slot for a prompt's time, and is the same each time unless other requests run meanwhile.
        """
        ...

    def statistics(self) -> EngineStatistics:
        """A snapshot of the load."""
        ...
