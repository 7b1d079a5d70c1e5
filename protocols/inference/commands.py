"""What the roles tell the inference machines, and what the machines tell the roles. Never on the wire.

``run`` numbers the engine requests of a session: a turn takes several when its credit runs out in
between, and what an earlier run still reports is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from p2pnode.errors import WireCode
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.inference.messages import (
    Accept,
    Checkpoint,
    Done,
    FinishReason,
    Progress,
    PromptBody,
    Quote,
)

# ---- host role -> HostSession


@dataclass(frozen=True, slots=True)
class GenStarted:
    """The engine took the request: ``tokens_in`` prompt tokens, ``reused`` of them cached."""

    run: int
    tokens_in: int
    reused: int


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
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class GenDone:
    """The engine finished by itself."""

    run: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class GenFailed:
    """The engine refused or failed the request."""

    run: int
    code: WireCode
    detail: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new turn; end the session when the present one is over."""


HostCommand: TypeAlias = GenStarted | GenProgress | GenTokens | GenDone | GenFailed | Drain

# ---- HostSession -> host role


@dataclass(frozen=True, slots=True)
class Opened:
    """A session began."""

    session: SessionId
    model: ModelId


@dataclass(frozen=True, slots=True)
class Generate:
    """Run the engine: the rendered messages, then the body's prefix, then ``answer_ids``."""

    run: int
    body: PromptBody
    answer_ids: tuple[int, ...]
    tokens_max: int


@dataclass(frozen=True, slots=True)
class CancelGenerate:
    """Stop the engine request ``run``."""

    run: int


@dataclass(frozen=True, slots=True)
class TurnServed:
    """A turn is over, for the log and the totals."""

    tokens_in: int
    tokens_out: int
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The session is over; flush and close the stream. ``fault`` is True when the peer broke the protocol."""

    reason: str
    fault: bool = False


HostEmission: TypeAlias = Opened | Generate | CancelGenerate | TurnServed | Finished

# ---- client role -> ClientSession


@dataclass(frozen=True, slots=True)
class Start:
    """Open the session."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a turn. ``input_max`` is the largest quote to accept, in tokens."""

    body: PromptBody
    input_max: int


@dataclass(frozen=True, slots=True)
class CancelTurn:
    """The user wants no more of this turn."""


@dataclass(frozen=True, slots=True)
class End:
    """Close the session."""


ClientCommand: TypeAlias = Start | Ask | CancelTurn | End

# ---- ClientSession -> client role


@dataclass(frozen=True, slots=True)
class Accepted:
    """The host took the session."""

    accept: Accept


@dataclass(frozen=True, slots=True)
class Quoted:
    """The host counted the input."""

    quote: Quote


@dataclass(frozen=True, slots=True)
class Progressed:
    """The host reads the prompt."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Delivered:
    """Output tokens, in order, each once. ``seq`` is the session's count before them."""

    seq: int
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Receipted:
    """A checkpoint that was checked against everything received."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class TurnDone:
    """The turn is over and its receipt holds."""

    done: Done


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """The host could not serve this turn; the session lives."""

    code: WireCode
    detail: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """The session is over. ``fault`` is True when the host broke the protocol."""

    code: WireCode
    detail: str
    retry_after_s: float | None = None
    fault: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The session was closed as asked."""


ClientEmission: TypeAlias = (
    Accepted | Quoted | Progressed | Delivered | Receipted | TurnDone | TurnFailed | SessionFailed | Ended
)
