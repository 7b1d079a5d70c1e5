"""Messages of ``/p2pnode/inference/1``. See ``SPEC.md`` for states, limits and byte vectors.

Counts are cumulative over the session unless a field says otherwise. ``Tokens.index`` counts the output
tokens of its turn, ``Ack.seq`` those of the session; ``Checkpoint.seq`` and ``Voucher.seq`` number
checkpoints from 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias

from p2pnode.errors import WireCode
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.wire import (
    U32,
    U63,
    Bytes16,
    Bytes20,
    Bytes32,
    Codec,
    Range,
    Size,
    exactly,
    message,
)

PROTOCOL: Final = "/p2pnode/inference/1"
CHECKPOINT_EVERY: Final = 32
"""Output tokens of a session that no receipt covers, at most."""
WINDOW: Final = 2 * CHECKPOINT_EVERY
"""Pay credit of a session where no more is granted: output tokens past the last ``Ack`` or ``Voucher``."""
WINDOW_MAX: Final = 1 << 16
TURNS_MAX: Final = 64
"""Turns of one session that may be under way at once, whatever a host grants."""
READ_CREDIT: Final = 256
"""Output tokens of a turn that may be sent past those that the application at the client has taken."""
VECTOR_CREDIT: Final = 256 * 1024
"""The same for an embeddings turn, in bytes of its vectors."""
READ_STALL_S: Final = 120.0
"""How long a turn may have no read credit; then it ends."""
UNCONFIRMED_MAX: Final = 32 * 1024
"""Bytes of prompts that a client may have sent and the host not confirmed by ``Received``."""
PROMPT_BYTES_PER_CTX: Final = 8
"""A whole prompt takes at most this many bytes per token of context."""
PROMPT_SLACK_BYTES: Final = 4096
"""This many bytes more, so that the smallest context still takes its sampling and stop strings."""
PROMPT_PART_MAX: Final = 8 * 1024
"""Small, so that a voucher never waits long behind an upload."""
TOKENS_PER_FRAME_MAX: Final = CHECKPOINT_EVERY
KEEP_MAX_S: Final = 432_000
"""How long a session may be left with its host, at most."""
TEXT_MAX: Final = 32_768
"""Bytes of text in one ``Tokens``."""
TEXT_SLACK_BYTES: Final = 4096
TEXT_PER_TOKEN_MAX: Final = 1024
"""A turn's text takes at most this many bytes per token, and the slack: without a bound a host could send
unbilled text for ever."""
TEMPLATE_TOKENS_MAX: Final = 512
TEMPLATE_TOKENS_PER_MESSAGE_MAX: Final = 64
"""What a model's template adds to a prompt at most, and for each message, where no manifest says it."""
EMBED_MAX: Final = 256
"""Texts of one embeddings turn."""
EMBED_TOKENS_MAX: Final = 8192
"""Their tokens together."""
VECTOR_MAX: Final = 1 << 15
"""Bytes of one vector."""
EMBED_TOKENS_AROUND: Final = 4
"""What a tokenizer adds to a text that is embedded, at most: where it begins and ends, and a blank."""
N_CTX_MAX: Final = 1 << 21
PREFIX_MAX: Final = 8192
"""Ids of a partial answer that a prompt may hold."""
TOOLS_MAX: Final = 128
"""Tools of a prompt, and calls in one message."""
LOGPROBS_MAX: Final = 20
"""Other tokens beside each of an answer whose log-probability is told."""
DETAIL_MAX: Final = 512
RETRY_MAX_S: Final = 86_400

Signature = Annotated[bytes, Size(64, 2048)]
SessionIdBytes = Annotated[SessionId, exactly(32)]
ModelIdBytes = Annotated[ModelId, exactly(32)]
Ids = Annotated[tuple[U32, ...], Size(0, TOKENS_PER_FRAME_MAX)]
Name = Annotated[str, Size(1, 64)]
JsonText = Annotated[str, Size(0, 1 << 16)]
Seconds = Annotated[float, Range(0, RETRY_MAX_S)]
Detail = Annotated[str, Size(0, DETAIL_MAX)]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "tool_calls"]
EndReason: TypeAlias = Literal["stop", "length", "cancelled", "tool_calls", "failed", "stalled"]
TextChannel: TypeAlias = Literal["content", "reasoning", "call"]
StartCause: TypeAlias = Literal["", "credit", "restart"]
Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTerms:
    """What a payer signs once (EIP-712). Amounts are token units; times are epoch seconds."""

    payer: Bytes20
    host: Bytes20
    voucher_key: Bytes20
    receipt_key: Bytes20
    model: ModelIdBytes
    deposit: U63
    price_in: U63
    price_out: U63
    session_fee: U63
    tip: U63
    expiry: U63
    salt: Bytes32


@message("open")
@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Ask for a session. Free sessions have neither terms nor an authorisation.

    ``authorisation`` is the payer's EIP-3009 signature (its nonce: the session id), good until
    ``valid_before``. ``salt`` is the receipt chain's secret, not that of the terms.
    ``keep_s`` asks for how long the session may be left; ``resume_key`` proves a resume of a free one.
    """

    model: ModelIdBytes
    salt: Bytes32
    holder: Bytes16
    """Drawn once by each process of a client."""
    terms: SessionTerms | None = None
    authorisation: Signature | None = None
    valid_before: U63 = 0
    keep_s: Annotated[int, Range(0, KEEP_MAX_S)] = 0
    resume_key: Bytes20 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A checkpoint with the epoch and the root before it, so that its signature can be checked alone."""

    epoch: U63
    previous: Bytes32
    checkpoint: Checkpoint


@message("resume")
@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Take a paid session to this stream. ``proof`` is the voucher key's: see ``channel.resume_digest``.

    ``received`` counts the ``Quote``, ``Tokens``, ``Vector``, ``Checkpoint``, ``Done`` and turns' ``Error``
    that the client took, over the session; ``turn`` is the last one it asked, ``turns`` are those without an
    answer, ascending. Without a proof it asks for a ``Challenge``; what answers one brings the last receipt
    and the final voucher, for a host that restarted.
    """

    session: SessionIdBytes
    holder: Bytes16
    received: U63
    turn: U32
    turns: Annotated[tuple[U32, ...], Size(0, TURNS_MAX)] = ()
    proof: Signature | None = None
    receipt: Receipt | None = None
    voucher: Voucher | None = None


@message("challenge")
@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """Resume once more on this stream, with a proof over ``nonce``."""

    nonce: Bytes32


@message("accept")
@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """The session is open. The next ``Resume`` signs ``nonce``; later starts have a higher ``epoch``.

    ``turns_max`` turns may be under way at once, ``window`` is the session's pay credit. After a ``Resume``
    ``voucher`` is the best that the host took.
    """

    session: SessionIdBytes
    nonce: Bytes32
    epoch: U63
    n_ctx: Annotated[int, Range(1, N_CTX_MAX)]
    window: Annotated[int, Range(CHECKPOINT_EVERY, WINDOW_MAX)] = WINDOW
    session_fee: U63 = 0
    turns_max: Annotated[int, Range(1, TURNS_MAX)] = 1
    keep_s: Annotated[int, Range(0, KEEP_MAX_S)] = 0
    settle_above: U63 = 0
    generation: U32 = 0
    voucher: Voucher | None = None
    receipt: Receipt | None = None


@message("refuse")
@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """No session; the stream ends."""

    code: WireCode
    detail: Detail = ""
    retry_after_s: Seconds | None = None


@message("prompt")
@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A part of a turn's ``PromptBody``: parts count from 0, ``total`` bytes in all, ``last`` ends it.

    Turns count from 1, in the order of their first parts; parts of several prompts may interleave. No part is
    empty, so a prompt has no more parts than bytes.
    """

    turn: U32
    part: U32
    last: bool
    total: U63
    body: Annotated[bytes, Size(1, PROMPT_PART_MAX)]


@message("received")
@dataclass(frozen=True, slots=True, kw_only=True)
class PromptReceived:
    """The host has read ``bytes`` of this turn's prompt: the client may send more."""

    turn: U32
    bytes: U63


@message("quote")
@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What this turn's input costs: ``tokens_in`` in all, of which ``reused`` are not billed.

    ``prompt_hash`` is that of the rendered ids. The rest says how the answer's channels are read.
    """

    turn: U32
    tokens_in: U32
    prompt_hash: Bytes32
    reused: U32 = 0
    format: Annotated[str, Size(0, 32)] = ""
    reasons: bool = False
    thinking: bool = False


@message("progress")
@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Prefill: ``processed`` of ``total`` prompt tokens; 0 tells a client that its turn is queued."""

    turn: U32
    processed: U32
    total: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class TopToken:
    """A token that might have been drawn."""

    id: U32
    logprob: Annotated[float, Range(-1e6, 0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Of one id: the natural logarithm of its probability, before any sampler. Advisory, in no receipt."""

    logprob: Annotated[float, Range(-1e6, 0)]
    top: Annotated[tuple[TopToken, ...], Size(0, LOGPROBS_MAX)] = ()


@message("tokens")
@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Output of a turn from ``index`` on: billed ``ids`` and the text they complete (which may lag).

    A frame says something: ids, text, or the ``name`` of a call. Its text belongs to one channel. ``start``:
    why these ids are the first of another engine call than the turn's first one.
    """

    turn: U32
    index: U32
    ids: Ids
    text: Annotated[str, Size(0, TEXT_MAX)] = ""
    channel: TextChannel = "content"
    call: U32 = 0
    name: Annotated[str, Size(0, 64)] = ""
    start: StartCause = ""
    logprobs: Annotated[tuple[TokenLogprob, ...], Size(0, TOKENS_PER_FRAME_MAX)] = ()


@message("vector")
@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """The embedding of one text of a turn, in their order: float32, little-endian. See ``embeddings.py``."""

    turn: U32
    index: U32
    data: Annotated[bytes, Size(4, VECTOR_MAX)]


@message("credit")
@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """The application takes this turn's output: ids below ``upto``, or so many bytes of vectors, may come."""

    turn: U32
    upto: U32


@message("ack")
@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """The client holds every output token below ``seq``."""

    seq: U63


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnd:
    """A turn ends with this receipt."""

    turn: U32
    reason: EndReason


@message("checkpoint")
@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The host's receipt: what it has delivered, chained to all before. See ``receipts.py``.

    ``tokens_in`` is what the vouchers that the host had taken pay for; in a free session what was quoted.
    """

    seq: U63
    tokens_in: U63
    tokens_out: U63
    token_hash: Bytes32
    fingerprint_hash: Bytes32
    root: Bytes32
    signature: Signature
    ended: Annotated[tuple[TurnEnd, ...], Size(0, TURNS_MAX)] = ()


@message("voucher")
@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """The client's payment: cumulative, exact, implies an ``Ack`` of ``tokens_out``.

    ``turn`` names the one quote whose input it newly pays, 0 for none. It is not signed: see ``SPEC.md``.
    """

    seq: U63
    tokens_in: U63
    tokens_out: U63
    amount: U63
    root: Bytes32
    signature: Signature
    turn: U32 = 0


@message("cancel")
@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop this turn; what was delivered stays billed."""

    turn: U32


@message("done")
@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The turn is over. Counts are this turn's. ``stop`` is the stop string that ended it, if any."""

    turn: U32
    reason: FinishReason
    tokens_in: U32
    reused: U32
    tokens_out: U32
    stop: Annotated[str, Size(0, 256)] = ""


@message("ping")
@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Ask whether the other side is there."""

    nonce: U32


@message("pong")
@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """The answer to ``Ping``, with its nonce."""

    nonce: U32


@message("close")
@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The client ends the session; a paid one settles at once."""


@message("leave")
@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """Keep the session until ``until`` (epoch seconds), for a ``Resume``."""

    until: U63


@message("left")
@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The session is kept until ``until``; it is settled once ``settle_above`` token units are unsettled."""

    until: U63
    generation: U32
    settle_above: U63


@message("error")
@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """With ``turn``: that turn failed and the session goes on. Without: the session is over."""

    code: WireCode
    detail: Detail = ""
    retry_after_s: Seconds | None = None
    turn: U32 | None = None


ClientMessage: TypeAlias = (
    Open | Resume | Prompt | Credit | Ack | Voucher | Cancel | Leave | Ping | Pong | Close | Error
)
HostMessage: TypeAlias = (
    Challenge | Accept | Refuse | PromptReceived | Quote | Progress | Tokens | Vector | Checkpoint | Done
    | Left | Ping | Pong | Error
)  # fmt: skip
CODEC: Final = Codec(
    Open, Resume, Challenge, Accept, Refuse, Prompt, PromptReceived, Quote, Progress, Tokens, Vector,
    Credit, Ack, Checkpoint, Voucher, Cancel, Done, Leave, Left, Ping, Pong, Close, Error,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of what is said. An image has ``data`` of the type ``mime``."""

    kind: Literal["text", "image"] = "text"
    text: Annotated[str, Size(0, 1 << 24)] = ""
    data: Annotated[bytes, Size(0, 1 << 24)] = b""
    mime: Annotated[str, Size(0, 64)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model made; ``arguments`` is JSON text of an object."""

    id: Name
    name: Name
    arguments: JsonText = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a conversation. A ``tool`` answers the call ``tool_call_id``."""

    role: Role
    content: Annotated[tuple[Part, ...], Size(0, 64)] = ()
    tool_calls: Annotated[tuple[ToolCall, ...], Size(0, TOOLS_MAX)] = ()
    tool_call_id: Name | None = None
    name: Annotated[str, Size(0, 64)] = ""

    @classmethod
    def of(cls, role: Role, text: str) -> ChatMessage:
        """A message of one text."""
        return cls(role=role, content=(Part(text=text),))

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "".join(part.text for part in self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call; ``parameters`` is JSON text of a JSON Schema, "" for any object."""

    name: Name
    description: Annotated[str, Size(0, 1 << 15)] = ""
    parameters: JsonText = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """What the content of the answer is; ``body`` is JSON text of a JSON Schema, or a grammar."""

    kind: Literal["text", "json_object", "json_schema", "grammar"] = "text"
    body: JsonText = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitBias:
    """``bias`` is added to the logit of the token ``id`` before anything is drawn."""

    id: U32
    bias: Annotated[float, Range(-100, 100)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn. Temperature 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off."""

    tokens_max: Annotated[int, Range(1, N_CTX_MAX)] = 512
    temperature: Annotated[float, Range(0, 5)] = 0.7
    top_p: Annotated[float, Range(0, 1)] = 0.95
    top_k: Annotated[int, Range(0, 1 << 20)] = 40
    min_p: Annotated[float, Range(0, 1)] = 0.05
    repeat_penalty: Annotated[float, Range(0.1, 10)] = 1.0
    presence_penalty: Annotated[float, Range(-2, 2)] = 0.0
    frequency_penalty: Annotated[float, Range(-2, 2)] = 0.0
    logit_bias: Annotated[tuple[LogitBias, ...], Size(0, 300)] = ()
    stop: Annotated[tuple[Annotated[str, Size(1, 256)], ...], Size(0, 8)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBody:
    """A whole turn: the whole conversation, and ``prefix``, the ids of a partial answer to go on from.

    ``seed`` is the client's, always: see ``prompt_rules.call_seed``. ``text_bytes`` are those of the partial
    answer's text, in all channels and names of calls, that the client has; all of them where it is absent.
    ``prompt_rules.check_prompt`` checks what the bounds of the fields don't say.
    """

    messages: Annotated[tuple[ChatMessage, ...], Size(0, 1024)] = ()
    embed: Annotated[tuple[Annotated[str, Size(1, 1 << 20)], ...], Size(0, EMBED_MAX)] = ()
    tools: Annotated[tuple[Tool, ...], Size(0, TOOLS_MAX)] = ()
    tool_choice: Annotated[str, Size(0, 70)] = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    sampling: SamplingParams = SamplingParams()
    seed: Annotated[bytes, exactly(16)]
    logprobs: Annotated[int, Range(-1, LOGPROBS_MAX)] = -1
    cache_key: Annotated[bytes, exactly(16)] | None = None
    now: U63 | None = None
    prefix: Annotated[tuple[U32, ...], Size(0, PREFIX_MAX)] = ()
    text_bytes: U63 | None = None

    @property
    def tokens_out_max(self) -> int:
        """Output tokens that it may lead to: none where texts are embedded."""
        return 0 if self.embed else self.sampling.tokens_max


def prompt_bytes_max(n_ctx: int) -> int:
    """The largest ``Prompt.total`` a host with this context takes."""
    return PROMPT_BYTES_PER_CTX * n_ctx + PROMPT_SLACK_BYTES


def detail_of(text: str) -> str:
    """``text`` cut to what a ``detail`` may hold, at a character."""
    return text.encode(errors="replace")[:DETAIL_MAX].decode(errors="ignore")


def retry_of(seconds: float | None) -> float | None:
    """``seconds`` within what ``retry_after_s`` may hold; None for what is no time at all."""
    if seconds is None or not seconds >= 0:
        return None
    return min(float(seconds), float(RETRY_MAX_S))
