"""What the roles say to the inference machines, and what the machines say to them. Never on the wire.

``run`` numbers the engine requests of a session: a turn takes several when its credit runs out in
between, and what an earlier run still reports is ignored. Several turns of a session may be under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from p2pnode.errors import WireCode
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.inference.messages import (
    Accept,
    Checkpoint,
    Done,
    FinishReason,
    Left,
    Open,
    Progress,
    PromptBody,
    Quote,
    Receipt,
    Refuse,
    StartCause,
    Tokens,
    Vector,
    Voucher,
)
from p2pnode.protocols.inference.replay import Piece

# ---- host role -> HostSession


@dataclass(frozen=True, slots=True)
class GenProgress:
    """The engine reads the prompt."""

    run: int
    processed: int
    total: int


@dataclass(frozen=True, slots=True)
class GenTokens:
    """Output, coalesced by the shell. A non-empty text completes every id up to here."""

    run: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class GenVector:
    """The vector of the next text of an embeddings turn, as ``embeddings.vector_bytes``."""

    run: int
    data: bytes


@dataclass(frozen=True, slots=True)
class GenDone:
    """The engine ended the request by itself; ``stop`` is the stop string that it came to, if any."""

    run: int
    reason: FinishReason
    stop: str = ""


@dataclass(frozen=True, slots=True)
class GenFailed:
    """The engine refused or failed the request. ``lost``: it died with it, and starts again."""

    run: int
    code: WireCode
    detail: str
    retry_after_s: float | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new turn; end the session when the present one is over."""


@dataclass(frozen=True, slots=True)
class Escrowed:
    """The deposit is in escrow."""


@dataclass(frozen=True, slots=True)
class NotEscrowed:
    """The open failed: before ``Accept`` a refusal, after it the session's end."""

    refusal: Refuse


@dataclass(frozen=True, slots=True)
class Counted:
    """The input of ``turn``: ``tokens_in``, of which the host promises not to bill ``reused``.

    ``prompt_hash`` is ``receipts.ids_hash`` of the rendered ids. ``format``, ``reasons`` and ``thinking`` say
    how the answer's channels are read. ``held`` bytes are kept of the compiled prompt besides its ids.
    """

    turn: int
    tokens_in: int
    reused: int = 0
    prompt_hash: bytes = bytes(32)
    format: str = ""
    reasons: bool = False
    thinking: bool = False
    held: int = 0


@dataclass(frozen=True, slots=True)
class CountFailed:
    """The input of ``turn`` could not be counted."""

    turn: int
    code: WireCode
    detail: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Grown:
    """The compiled prompt of ``turn`` holds ``more`` bytes than ``Counted`` said: it grew with the answer."""

    turn: int
    more: int


@dataclass(frozen=True, slots=True)
class GiveWay:
    """Others have less than their share of this host's memory: end this turn, unless it is served."""

    turn: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A session that its client left is on this host's disk as such: it may be resumed until ``until``."""

    until: int


@dataclass(frozen=True, slots=True)
class AskAlive:
    """Another process of the client has proved that the session is its own: is this one still there?"""


@dataclass(frozen=True, slots=True)
class InUse:
    """The stream that has the session answered: whoever wants to resume it is refused."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """Another stream proved that the session is its own. This one ends, and the session goes on there."""


HostCommand: TypeAlias = (
    GenProgress | GenTokens | GenVector | GenDone | GenFailed | Drain
    | Escrowed | NotEscrowed | Counted | CountFailed | Grown | GiveWay | Kept | AskAlive | InUse | Replaced
)  # fmt: skip

# ---- HostSession -> host role


@dataclass(frozen=True, slots=True)
class Opened:
    """A session began, or, ``resumed``, goes on here: whatever other stream it had is to be ``Replaced``.

    ``recovered``: from what this host keeps of it, under this start's epoch and, if it was left, the next
    generation. That must be durable before anything else is.
    """

    session: SessionId
    model: ModelId
    resumed: bool = False
    recovered: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """Somebody proved that a session is its own which another stream has: ask that stream (``AskAlive``).

    Where it answers, say ``InUse``; this machine waits for that and takes the session over otherwise.
    """

    session: SessionId


@dataclass(frozen=True, slots=True)
class Alive:
    """The client of this stream was heard after ``AskAlive``."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class Leaving:
    """The client leaves the session, all is paid, and it wants it kept until ``until`` (epoch seconds).

    Make that durable, then say ``Kept``.
    """

    until: int


@dataclass(frozen=True, slots=True)
class Generate:
    """Run the engine for a turn: its compiled prompt, with the body's prefix, then ``answer_ids``.

    ``body`` has no messages any more: the role has what they were compiled to.
    ``answer_text_bytes`` of text and names of calls were made of ``answer_ids`` so far: what is missing of
    their text comes first. ``start``: why it is not the turn's first call.
    """

    turn: int
    run: int
    body: PromptBody
    answer_ids: tuple[int, ...]
    tokens_max: int
    answer_text_bytes: int = 0
    start: StartCause = ""


@dataclass(frozen=True, slots=True)
class Embed:
    """Have the engine embed a turn's texts from ``first`` on: a ``GenVector`` for each, then ``GenDone``.

    ``start`` as in ``Generate``.
    """

    turn: int
    run: int
    body: PromptBody
    first: int
    start: StartCause = ""


@dataclass(frozen=True, slots=True)
class CancelGenerate:
    """Stop the engine request ``run``."""

    run: int


@dataclass(frozen=True, slots=True)
class TurnServed:
    """A turn is over, for the log and the totals: the host forgets it."""

    turn: int
    tokens_in: int
    tokens_out: int
    reason: str


@dataclass(frozen=True, slots=True)
class Relay:
    """A paid ``Open`` that was admitted: put it on the chain, then say ``Escrowed`` or ``NotEscrowed``.

    ``window`` is what the session may owe, in output tokens.
    """

    session: SessionId
    request: Open
    window: int


@dataclass(frozen=True, slots=True)
class Count:
    """Count the tokens of a turn's prompt, before anything is generated."""

    turn: int
    body: PromptBody


@dataclass(frozen=True, slots=True)
class Issued:
    """A receipt of a paid session is about to be sent. It must be durable before its voucher's ``Paid``
    is done: within an epoch there is never another one for its place.

    A resume emits it again for each receipt that is replayed, and for the client's copy of one that a crash
    lost.
    """

    receipt: Receipt

    @property
    def checkpoint(self) -> Checkpoint:
        """The receipt as it is sent."""
        return self.receipt.checkpoint


@dataclass(frozen=True, slots=True)
class Paid:
    """A voucher holds. Make it durable before returning: what it pays for is served then.

    A resume emits the last one again.
    """

    voucher: Voucher


@dataclass(frozen=True, slots=True)
class Finished:
    """The stream is over: flush and close it. ``fault`` is True when the peer broke the protocol.

    A paid session that was opened settles now. Where ``lingers``, it settles only if nobody resumes it;
    where ``replaced``, it goes on on another stream; where ``left``, it was left as was made durable.
    """

    reason: str
    fault: bool = False
    lingers: bool = False
    replaced: bool = False
    left: bool = False


HostEmission: TypeAlias = (
    Opened | Relay | Count | Generate | Embed | CancelGenerate | Issued | Paid | TurnServed | Probe | Alive
    | Leaving | Finished
)  # fmt: skip

# ---- client role -> ClientSession


@dataclass(frozen=True, slots=True)
class Start:
    """Open the session."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a turn. ``input_max`` is the largest quote to accept, in tokens.

    ``input_exact`` is what a client counted itself: it then takes that quote only, and pays with the prompt
    where nothing can be reused. ``prompt_hash`` is that of the ids which it rendered itself. ``key`` is the
    role's name for the turn: what is emitted of it says it again.
    """

    body: PromptBody
    input_max: int
    input_exact: int | None = None
    prompt_hash: bytes | None = None
    prompt_tokens: int | None = None
    """How many these ids are: another quote is refused. Unlike ``input_exact`` it pays nothing in advance."""
    key: int = 0
    spend_max: int | None = None
    """What the turn may add to what is spent, in token units: it ends when that is used up. None: any."""
    budget: bytes = b""
    """The role's id of the key whose budget pays for it; empty for none. No machine reads it."""


@dataclass(frozen=True, slots=True)
class SpendMax:
    """The turn may add ``spend_max`` to what is spent in all, whatever it was asked with."""

    spend_max: int
    key: int = 0


@dataclass(frozen=True, slots=True)
class CancelTurn:
    """The user wants no more of this turn."""

    key: int = 0


@dataclass(frozen=True, slots=True)
class TokensTaken:
    """The application has taken the turn's output tokens below ``index``, or so many bytes of its vectors."""

    index: int
    key: int = 0


@dataclass(frozen=True, slots=True)
class LeaveSession:
    """Leave the session: its host keeps it until ``until`` (epoch seconds) for whoever resumes it.

    Only while no turn is under way; otherwise it is closed.
    """

    until: int


@dataclass(frozen=True, slots=True)
class End:
    """Close the session."""


ClientCommand: TypeAlias = Start | Ask | SpendMax | CancelTurn | TokensTaken | LeaveSession | End

# ---- ClientSession -> client role


@dataclass(frozen=True, slots=True)
class Accepted:
    """The host took the session."""

    accept: Accept


@dataclass(frozen=True, slots=True)
class Quoted:
    """The host counted the input."""

    quote: Quote
    key: int = 0


@dataclass(frozen=True, slots=True)
class Progressed:
    """The host reads the prompt."""

    progress: Progress
    key: int = 0


@dataclass(frozen=True, slots=True)
class Delivered:
    """Output of a turn, in order, each id once. Its client tells ``TokensTaken`` when it has read it."""

    tokens: Tokens
    key: int = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """The output ids."""
        return self.tokens.ids

    @property
    def text(self) -> str:
        """The text that they complete, whatever its channel."""
        return self.tokens.text


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector of an embeddings turn, in order, each once. ``TokensTaken`` says that it was read."""

    vector: Vector
    taken: int
    """Bytes of the turn's vectors up to this one, with it."""
    key: int = 0


@dataclass(frozen=True, slots=True)
class Receipted:
    """A checkpoint that was checked against everything received. Durable with the voucher that follows.

    ``keys`` names the turns of which something was delivered before it.
    """

    receipt: Receipt
    keys: tuple[int, ...] = ()

    @property
    def checkpoint(self) -> Checkpoint:
        """The receipt as it came."""
        return self.receipt.checkpoint


@dataclass(frozen=True, slots=True)
class Disputed:
    """A receipt that the host signed doesn't hold. With another one for its place it is evidence."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class PaidPart:
    """What a voucher pays of one turn that no voucher before it paid: billed input, and output tokens."""

    key: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Signed:
    """A voucher is about to be sent or, where the host was lost, will be handed to it when it returns.

    Make it durable before returning. ``parts`` has the turns that it pays for.
    """

    voucher: Voucher
    parts: tuple[PaidPart, ...] = ()


@dataclass(frozen=True, slots=True)
class FirstTurnFinished:
    """The host has finished a turn of a paid session, the first for this wallet as far as was known.

    Make it durable: from now on two inputs may be paid ahead, in later sessions with this host, too.
    """


@dataclass(frozen=True, slots=True)
class TurnDone:
    """The turn is over and its receipt holds."""

    done: Done
    key: int = 0


TurnCause: TypeAlias = Literal["answered", "foreseen", "invalid", "restarted", "stuck", "capped"]
"""Why a turn failed. ``answered``: the host said ``code``. ``foreseen``: it would, so it was not asked.
``invalid``: no host takes this prompt. ``restarted``: the host did, in the middle of the turn. ``stuck``: the
host did nothing for it, and ended it when it was told to. ``capped``: it would cost more than it may."""


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """The host could not serve this turn; the session lives. ``code`` is None for what this side knows."""

    code: WireCode | None
    detail: str
    retry_after_s: float | None = None
    cause: TurnCause = "answered"
    key: int = 0


SessionCause: TypeAlias = Literal["answered", "fault", "lost", "silent", "stuck", "broken"]
"""Why a session is over. ``answered``: the host said ``code``. No word of a host leads to another cause: it
broke the protocol (``fault``), the stream broke (``lost``), nothing came of it (``silent``) or nothing
that helps (``stuck``), or this side can't go on (``broken``)."""


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """The session is over. ``code`` is the host's word, and None where it said none."""

    code: WireCode | None
    detail: str
    retry_after_s: float | None = None
    cause: SessionCause = "answered"

    @property
    def fault(self) -> bool:
        """Whether the host broke the protocol."""
        return self.cause == "fault"

    @property
    def resumable(self) -> bool:
        """Whether the host may live, and keep a paid session for a resume. After its ``stalled`` it does."""
        return self.cause in ("lost", "silent") or self.code == "stalled"


@dataclass(frozen=True, slots=True)
class Ended:
    """The session was closed as asked. ``left``: its host keeps it, as it was asked to."""

    left: Left | None = None


ClientEmission: TypeAlias = (
    Accepted | Quoted | Progressed | Delivered | Embedded | Receipted | Disputed | Signed | FirstTurnFinished
    | TurnDone | TurnFailed | SessionFailed | Ended
)  # fmt: skip
