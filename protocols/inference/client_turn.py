"""One turn at the client: everything that the host says of it is checked before it counts.

A ``ProtocolError`` means that the host broke the protocol. ``HeldSession`` is what the turns need of their
session; both outlive a stream. It knows nothing of opening or closing, or of what other turns do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from p2pnode.errors import ProtocolError
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import ChannelSender, ClientPayment
from p2pnode.protocols.inference.commands import (
    Ask,
    Delivered,
    Embedded,
    Progressed,
    Quoted,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.embeddings import VectorCheck
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    READ_CREDIT,
    TEXT_PER_TOKEN_MAX,
    TEXT_SLACK_BYTES,
    TOOLS_MAX,
    UNCONFIRMED_MAX,
    VECTOR_CREDIT,
    Accept,
    Cancel,
    Credit,
    Done,
    Error,
    Progress,
    Quote,
    Receipt,
    Tokens,
    Vector,
    Voucher,
)
from p2pnode.protocols.inference.meter import Meter, MeteredTurn
from p2pnode.protocols.inference.prompts import PROMPT_RATE_MIN
from p2pnode.protocols.inference.receipts import ReceiptChain
from p2pnode.protocols.typed_data import amount_due

TurnState: TypeAlias = Literal["asked", "quoted", "paid"]
_NO_MODEL: Final = ModelId(bytes(32))
_CACHE_KEYS_MAX: Final = 1024
"""So many cache keys of a session are remembered, 16 bytes each. Beyond, none counts as new."""
UNANSWERED: Final = "the host was paid for a prompt and answered nothing: nothing more is paid to it here"
PREFILL_S_PER_TOKEN: Final = 0.1
"""How much longer a client waits for each prompt token that its host newly reports as read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTimes:
    """How long a client waits, in seconds. ``open_paid_s``: the host takes the deposit to the chain first."""

    open_s: float = 10.0
    open_paid_s: float = 110.0
    first_token_s: float = 120.0
    stall_s: float = 30.0


@dataclass(slots=True, eq=False)
class HeldSession:
    """What a session is to its client besides the stream it is on."""

    accept: Accept
    channel: ChannelSender
    turns: dict[int, ClientTurn] = field(default_factory=dict)
    """Those under way, by number."""
    asked: int = 0
    """The last turn that was asked."""
    received: int = 0
    """How many messages of turns were taken, as a resume counts them."""
    receipt: Receipt | None = None
    """The last one that was checked."""
    from_journal: bool = False
    """Whether it is made of what a journal keeps: the last nonce and what came since are not known then."""
    model: ModelId = _NO_MODEL
    salt: bytes = field(default=b"", repr=False)
    cache_keys: set[bytes] | None = field(default_factory=set)
    """Those of the turns that were asked, empty for one without; None where not all are known."""

    def is_new(self, cache_key: bytes | None) -> bool:
        """Whether the host can reuse nothing for a turn with this cache key: none before had it."""
        return self.cache_keys is not None and (cache_key or b"") not in self.cache_keys

    def note_asked(self, cache_key: bytes | None) -> None:
        """A turn is asked with this cache key."""
        if self.cache_keys is not None:
            self.cache_keys.add(cache_key or b"")
            if len(self.cache_keys) > _CACHE_KEYS_MAX:
                self.cache_keys = None

    @property
    def meter(self) -> Meter:
        """What was received and paid."""
        return self.channel.meter


def held_from_journal(payment: ClientPayment, receipt: Receipt | None, voucher: Voucher) -> HeldSession:
    """What a journal keeps of a session: enough to hand over ``voucher``, the last of it.

    ``receipt`` is the one whose root it names; None for one of the input before the first.
    """
    epoch = receipt.epoch if receipt is not None else 0
    chain = ReceiptChain(
        payment.session,
        epoch,
        voucher.root,
        seq=voucher.seq,
        tokens_in=voucher.tokens_in,
        tokens_out=voucher.tokens_out,
    )
    channel = ChannelSender(payment)
    channel.last_voucher = voucher
    channel.begin(Meter(chain))
    accept = Accept(session=payment.session, nonce=bytes(32), epoch=epoch, n_ctx=1)
    return HeldSession(accept, channel, receipt=receipt, from_journal=True, cache_keys=None)


def held_left(
    channel: ChannelSender,
    session: SessionId,
    *,
    model: ModelId,
    salt: bytes,
    receipt: Receipt | None,
    voucher: Voucher | None,
    generation: int,
) -> HeldSession:
    """A session that was left, as a journal or the sealed index has it: enough to resume it.

    ``receipt`` and ``voucher`` are the last that are known. What came since, by another machine, its host
    shows.
    """
    epoch = receipt.epoch if receipt is not None else 0
    chain = ReceiptChain.begin(session, model, salt, epoch)
    if receipt is not None:
        chain.root, chain.seq = receipt.checkpoint.root, receipt.checkpoint.seq
    channel.go_on_from(voucher, Meter(chain))
    accept = Accept(session=session, nonce=bytes(32), epoch=epoch, n_ctx=1, generation=generation)
    return HeldSession(
        accept, channel, receipt=receipt, from_journal=True, model=model, salt=salt, cache_keys=None
    )


class ClientTurn:
    """Turn ``number``, which is over when ``outcome`` is set. ``total`` is the bytes of its prompt.

    ``is_new``: the host can reuse nothing for it, so that a client which counted its input knows its price.
    """

    def __init__(
        self, number: int, ask: Ask, held: HeldSession, times: ClientTimes, total: int, *, is_new: bool
    ) -> None:
        self.number, self.ask, self.is_new = number, ask, is_new
        self.outcome: TurnDone | TurnFailed | None = None
        self.cancelled = False
        self.spend_max = ask.spend_max
        """What it may add to what is spent; None: any."""
        self.metered = MeteredTurn(number=number)
        self.deadline = math.inf
        """By when the host must do something for it."""
        self._held, self._times, self._total = held, times, total
        self._channel = held.channel
        self._first_token_by = math.inf
        self._quote: Quote | None = None
        self._is_paid = self._carried = False
        self._text_bytes = 0
        self._processed = -1
        self._vectors = VectorCheck(len(ask.body.embed)) if ask.body.embed else None
        self._read_upto = self._read_ahead = VECTOR_CREDIT if ask.body.embed else READ_CREDIT
        self._last_start = 0
        self._billed = 0
        self._restarted = False
        self._refused: TurnFailed | None = None

    @property
    def key(self) -> int:
        """The role's name for it."""
        return self.ask.key

    @property
    def state(self) -> TurnState:
        """Where it stands."""
        if self._quote is None:
            return "asked"
        return "paid" if self._channel.is_paid(self.number) else "quoted"

    def begin(self, now: float) -> None:
        """The first part of its prompt is sent."""
        # A host takes in 16 KiB a second at least; what may be on its way unconfirmed costs no time here.
        upload_s = max(0, self._total - UNCONFIRMED_MAX) / PROMPT_RATE_MIN
        self.deadline = self._first_token_by = now + upload_s + self._times.first_token_s

    def cancel(self, effects: Effects, now: float) -> None:
        """The user wants no more. From here on nothing that the host says gives it more time."""
        if not self.cancelled:
            self.cancelled = True
            effects.send(Cancel(turn=self.number))
            self._channel.cancel_turn(self.number, effects)
            self.deadline = now + self._times.stall_s

    def give_up(self, effects: Effects, now: float) -> None:
        """The host does nothing for it: cancel it, so that the session is not lost with it."""
        detail = "the host stopped making progress"
        self._refused = TurnFailed(None, detail, cause="stuck", key=self.key)
        self.cancel(effects, now)

    @property
    def advance(self) -> int:
        """How many input tokens may be paid with the prompt; 0 where their quote is to be seen first."""
        exact = self.ask.input_exact or 0
        return exact if self.is_new and not self._caps(exact) else 0

    @property
    def is_capped(self) -> bool:
        """Whether the turn might cost more than it may before it could be ended."""
        return self._caps(self._billed)

    def _caps(self, billed: int) -> bool:
        if self.spend_max is None:
            return False
        out, terms = self.metered.tokens_out, self._channel.terms
        # A window past a voucher that is on its way may come after it was told to end.
        unstopped = self._held.accept.window + CHECKPOINT_EVERY
        more = min(unstopped, self.ask.body.tokens_out_max - out)
        cost = amount_due(terms, billed, out + more) - terms.session_fee
        return (more > 0 or not self.is_paid) and cost > self.spend_max

    def cap(self, effects: Effects, now: float) -> None:
        """End the turn: what was delivered is paid, and nothing is closed."""
        detail = (
            "your spending limit for a day is reached (spend_day_max in config.toml): what came is paid, and "
            "nothing was closed"
        )
        self._refused = TurnFailed(None, detail, cause="capped", key=self.key)
        self.cancel(effects, now)

    @property
    def is_wanted(self) -> bool:
        """Whether the user still wanted it, and it ends by what the host does or doesn't do."""
        return not self.cancelled or (self._refused is not None and self._refused.cause == "stuck")

    def refuse_to_pay(self, effects: Effects, now: float) -> None:
        """Give it up if it is quoted and not paid: its host took other input and answered nothing."""
        if self.state == "quoted" and not self.cancelled:
            self._refused = TurnFailed(None, UNANSWERED, cause="stuck", key=self.key)
            self.cancel(effects, now)

    def taken(self, index: int, effects: Effects, now: float) -> None:
        """The application has the ids below ``index``, or so many bytes of vectors: let the host send on, now
        and then."""
        upto = min(index, self._delivered) + self._read_ahead
        if upto - self._read_upto < self._read_ahead // 4:
            return
        if self.deadline == math.inf and self.is_paid and not self.cancelled:
            self.deadline = now + self._times.stall_s
        self._read_upto = upto
        effects.send(Credit(turn=self.number, upto=upto))

    @property
    def _delivered(self) -> int:
        """How much of its output came, as read credit counts it."""
        return self.metered.tokens_out if self._vectors is None else self._vectors.bytes

    @property
    def is_paid(self) -> bool:
        """Whether the host serves it."""
        return self._channel.is_paid(self.number)

    def carry_over(self, effects: Effects, now: float) -> None:
        """The session was resumed on another stream: say again what the old one may have swallowed."""
        self._carried = True
        if self._read_upto > self._read_ahead:
            effects.send(Credit(turn=self.number, upto=self._read_upto))
        if self.cancelled:
            effects.send(Cancel(turn=self.number))
        # One whose prompt was not whole is ended by the host at once.
        self.deadline = (
            now + self._times.stall_s
            if self._quote is None
            else max(self.deadline, now + self._times.stall_s)
        )

    def follow_payment(self, now: float) -> None:
        """Note when its input is paid: the host's time begins then."""
        if self._quote is None or self._is_paid or self.cancelled:
            return
        if self.is_paid:
            self._is_paid = True
            if self.deadline == math.inf:
                self.deadline = self._first_token_by = now + self._times.first_token_s
        else:
            self.deadline = math.inf  # it waits for us

    # ---- what the host says

    def hear(self, message: object, effects: Effects, now: float) -> None:
        """Take a message of the host's. Raises ``ProtocolError``."""
        match message:
            case Quote() if self._quote is None:
                self._take_quote(message, effects, now)
            case Progress():
                self._progress(message, effects)
            case Tokens() if self.is_paid and self._vectors is None:
                self._tokens(message, effects, now)
            case Vector() if self.is_paid and self._vectors is not None:
                self._vector(message, self._vectors, effects, now)
            case Done():
                self._done(message)
            case Error():
                self._error(message)
            case _:
                msg = f"{type(message).__name__} is out of place in turn {self.number}"
                raise ProtocolError(msg)

    def _take_quote(self, quote: Quote, effects: Effects, now: float) -> None:
        exact, rendered = self.ask.input_exact or self.ask.prompt_tokens, self.ask.prompt_hash
        fault = ""
        if quote.tokens_in > self.ask.input_max:
            fault = f"quoted {quote.tokens_in} input tokens; at most {self.ask.input_max} are possible"
        elif exact is not None and quote.tokens_in != exact:
            fault = f"quoted {quote.tokens_in} input tokens; there are {exact}"
        elif rendered is not None and quote.prompt_hash != rendered:
            fault = "quoted another prompt than the one that was rendered here"
        elif quote.reused > quote.tokens_in:
            fault = f"quoted {quote.reused} reused of {quote.tokens_in} input tokens"
        if fault:
            raise ProtocolError(fault)
        self._quote = quote
        self.metered.prompt = quote.prompt_hash
        effects.emit(Quoted(quote, self.key))
        billed = quote.tokens_in - quote.reused
        covered = self._channel.covers(billed, 0)
        self._billed = billed
        capped = covered and self.is_capped
        self._channel.quoted(self.number, billed, effects, wanted=covered and not (capped or self.cancelled))
        if capped and not self.cancelled:
            self.cap(effects, now)
        if not (covered or self.cancelled):
            detail = (
                f"the turn's {billed} input tokens cost more than is left of the session's deposit: "
                "open another session or shorten the conversation"
            )
            self._refused = TurnFailed("payment_required", detail, cause="foreseen", key=self.key)
            self.cancel(effects, now)
        elif not self._channel.trusts:
            self.refuse_to_pay(effects, now)

    def _progress(self, message: Progress, effects: Effects) -> None:
        if message.processed > message.total:
            msg = f"processed {message.processed} of {message.total} prompt tokens"
            raise ProtocolError(msg)
        if message.processed <= self._processed:
            return  # says nothing new
        self._processed = message.processed
        if not (self.metered.tokens_out or self.cancelled) and self._first_token_by < math.inf:
            earned_s = min(message.processed, self.ask.input_max) * PREFILL_S_PER_TOKEN
            self.deadline = max(self.deadline, self._first_token_by + earned_s)
        effects.emit(Progressed(message, self.key))

    def _tokens(self, message: Tokens, effects: Effects, now: float) -> None:
        if (fault := self._fault_of(message)) is not None:
            raise ProtocolError(fault)
        self._text_bytes += len(message.text.encode()) + len(message.name.encode())
        if message.start:
            self._last_start = message.index
            self._restarted = self._restarted or message.start == "restart"
        self._channel.meter.count(self.metered, message)
        if message.ids:
            self._channel.first_token(self.number, effects)
            if not self.cancelled:
                reads = self.metered.tokens_out < self._read_upto
                self.deadline = now + self._times.stall_s if reads else math.inf
        effects.emit(Delivered(message, self.key))

    def _vector(self, message: Vector, vectors: VectorCheck, effects: Effects, now: float) -> None:
        if self.metered.ended is not None:
            msg = "a vector of a turn that a receipt has ended"
            raise ProtocolError(msg)
        if vectors.bytes + len(message.data) > self._read_upto:
            count = vectors.bytes + len(message.data)
            msg = f"vectors of {count} bytes; this client reads up to {self._read_upto}"
            raise ProtocolError(msg)
        vectors.take(message.index, message.data)
        self._channel.meter.count(self.metered, message)
        self._channel.first_token(self.number, effects)
        if not self.cancelled:
            reads = vectors.bytes + len(message.data) <= self._read_upto
            self.deadline = now + self._times.stall_s if reads else math.inf
        effects.emit(Embedded(message, vectors.bytes, self.key))

    def _fault_of(self, message: Tokens) -> str | None:
        """What is wrong with these tokens, if anything."""
        meter, count = self._channel.meter, self.metered.tokens_out + len(message.ids)
        text_bytes = self._text_bytes + len(message.text.encode()) + len(message.name.encode())
        if self.metered.ended is not None:
            return "tokens of a turn that a receipt has ended"
        if message.index != self.metered.tokens_out:
            return f"tokens from {message.index} on; {self.metered.tokens_out} were next"
        if not (message.ids or message.text or message.name):
            return "empty tokens"
        if count > self.ask.body.sampling.tokens_max:
            return "more tokens than were asked for"
        if meter.unreceipted + len(message.ids) > CHECKPOINT_EVERY:
            return f"more than {CHECKPOINT_EVERY} tokens without a checkpoint"
        if count > self._read_upto:
            return f"tokens up to {count}; this client reads up to {self._read_upto}"
        # Text of a partial answer's ids may still come. Without one there is no text before there is an id.
        slack = TEXT_SLACK_BYTES if self.ask.body.prefix else 0
        if text_bytes > slack + TEXT_PER_TOKEN_MAX * count:
            return "more text than its tokens can hold"
        if message.logprobs and (self.ask.body.logprobs < 0 or len(message.logprobs) != len(message.ids)):
            return "as many log-probabilities as ids where they were asked for, else none"
        if (fault := self._fault_of_call(message)) is not None:
            return fault
        if not self._channel.covers(0, len(message.ids)):
            return "more tokens than the deposit covers"
        return self._fault_of_start(message)

    def _fault_of_call(self, message: Tokens) -> str | None:
        """Whether these tokens call a tool that may not be called.

        That is known without the model: a host finds calls of the tools that were offered only.
        """
        if message.channel != "call":
            return "a name outside of a call" if message.name else None
        body = self.ask.body
        tools = {tool.name for tool in body.tools} if body.tool_choice != "none" else set()
        if not tools or (message.name and message.name not in tools):
            return "a call of a tool that was not offered"
        if message.call >= (TOOLS_MAX if body.parallel_tool_calls else 1):
            return f"call {message.call} of one answer"
        return None

    def _fault_of_start(self, message: Tokens) -> str | None:
        """Whether another engine call may begin here: each one is a chance to draw again."""
        if not message.start:
            return None
        if not message.ids or (message.start == "restart" and self._restarted):
            return "an engine call that may not begin here"
        if message.start == "credit" and message.index - self._last_start < CHECKPOINT_EVERY:
            return f"another engine call within {CHECKPOINT_EVERY} tokens"
        return None

    # ---- how it ends

    @property
    def was_paid_and_answered(self) -> bool:
        """Whether its input cost something and its host sent a token or a vector for it.

        Nothing else shows that a host can be trusted with another input: with a turn that costs nothing it
        could not run off.
        """
        return self._is_billed and bool(self._delivered)

    @property
    def _is_billed(self) -> bool:
        quote = self._quote
        return quote is not None and self.is_paid and quote.tokens_in > quote.reused

    def _done(self, message: Done) -> None:
        # Where the stream was lost, a turn ends so whose prompt the host doesn't have.
        if message.reason == "cancelled" and not (self.cancelled or (self._carried and self._quote is None)):
            msg = "a turn that is called cancelled, which nobody cancelled"
            raise ProtocolError(msg)
        if self._vectors is not None and message.reason != "cancelled":
            self._check_whole(self._vectors, message)
        if message.stop and not self._may_stop_at(message):
            msg = "a stop string that was not asked for"
            raise ProtocolError(msg)
        quote = self._quote if self.is_paid else None
        counts = (0, 0) if quote is None else (quote.tokens_in, quote.reused)
        if (message.tokens_in, message.reused, message.tokens_out) != (*counts, self.metered.tokens_out):
            msg = "a bill that does not match what was received"
            raise ProtocolError(msg)
        expected = message.reason if self._is_billed or self.metered.has_frames else None
        if self.metered.ended != expected:
            msg = f"a turn that ended as {message.reason}, and by its receipts as {self.metered.ended}"
            raise ProtocolError(msg)
        self.outcome = self._refused or TurnDone(message, self.key)

    def _may_stop_at(self, message: Done) -> bool:
        body = self.ask.body
        return message.reason == "stop" and not body.embed and message.stop in body.sampling.stop

    @staticmethod
    def _check_whole(vectors: VectorCheck, message: Done) -> None:
        if message.reason != "stop":
            msg = f"an embeddings turn that ended as {message.reason}"
            raise ProtocolError(msg)
        if not vectors.is_whole:
            msg = f"a turn that is called done with {vectors.count} of {vectors.inputs} vectors"
            raise ProtocolError(msg)

    def _error(self, message: Error) -> None:
        ended = "stalled" if message.code == "stalled" else "failed"
        # Of a turn that brought nothing the voucher for its input may have crossed this message.
        unsure = not (self._channel.free or self.metered.has_frames) and self.metered.ended is None
        billed = self._is_billed or self.metered.has_frames
        if self.metered.ended != (ended if billed else None) and not unsure:
            msg = "a turn that failed without a receipt for what was delivered"
            raise ProtocolError(msg)
        self.outcome = self._refused or TurnFailed(
            message.code, message.detail, message.retry_after_s, key=self.key
        )
