"""One turn at the client: everything that the host says of it is checked before it counts.

A ``ProtocolError`` means that the host broke the protocol. ``HeldSession`` is what the turn needs of its
session; both outlive a stream. It knows nothing of opening or closing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import ChannelSender, ClientPayment
from p2pnode.protocols.inference.commands import (
    Ask,
    Delivered,
    Progressed,
    Quoted,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    TEXT_PER_TOKEN_MAX,
    TEXT_SLACK_BYTES,
    Accept,
    Cancel,
    Checkpoint,
    Done,
    Error,
    Progress,
    Quote,
    Receipt,
    Tokens,
    Voucher,
)
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.receipts import ReceiptChain
from p2pnode.protocols.inference.replay import is_counted

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
    meter: Meter
    channel: ChannelSender
    turns: int = 0
    received: int = 0
    """How many messages of turns were taken, as a resume counts them."""
    turn: ClientTurn | None = None
    receipt: Receipt | None = None
    """The last one that was checked."""
    from_journal: bool = False
    """Whether it is made of what a journal keeps: the last nonce and what came since are not known then."""


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
    accept = Accept(session=payment.session, nonce=bytes(32), epoch=epoch, n_ctx=1)
    return HeldSession(accept, Meter(chain), channel, receipt=receipt, from_journal=True)


class ClientTurn:
    """Turn ``number``, which is over when ``outcome`` is set."""

    def __init__(self, number: int, ask: Ask, held: HeldSession, times: ClientTimes) -> None:
        self.number = number
        self.outcome: TurnDone | TurnFailed | None = None
        self.cancelled = False
        self._ask, self._held, self._times = ask, held, times
        self._meter, self._channel = held.meter, held.channel
        self._first_token_by = 0.0
        self._quoted = self._billed = self._carried = False
        self._tokens_in = self._reused = self._tokens_out = self._text_bytes = 0
        self._processed = -1
        self._advanced = False
        self._refused: TurnFailed | None = None

    @property
    def paid_ahead(self) -> bool:
        """Whether it paid for input that the host has not quoted yet."""
        return self._advanced and not self._quoted

    def start(self, request: bytes, effects: Effects, now: float) -> None:
        """Begin: the prompt was sent, and ``request`` is its hash."""
        self._meter.begin_turn(request)
        self._first_token_by = now + self._times.first_token_s
        effects.set_timer("progress", self._first_token_by)
        # Nothing can be reused in a first turn, so its price is known before the host names it.
        if self._ask.input_exact and self.number == 1:
            self._advanced = self._channel.pay_advance(self._meter, self._ask.input_exact, effects)

    def cancel(self, effects: Effects, now: float) -> None:
        """The user wants no more. From here on nothing that the host says gives it more time."""
        if not self.cancelled:
            self.cancelled = True
            effects.send(Cancel(turn=self.number))
            effects.set_timer("progress", now + self._times.stall_s)

    def carry_over(self, effects: Effects, now: float) -> None:
        """The session was resumed on another stream."""
        self._carried = True
        effects.set_timer("progress", now + self._times.stall_s)

    def hear(self, message: object, effects: Effects, now: float) -> None:
        """Take a message of the host's. Raises ``ProtocolError``."""
        match message:
            case Quote() if not self._quoted and message.turn == self.number:
                self._quote(message, effects, now)
            case Progress() if message.turn == self.number:
                self._progress(message, effects)
            case Tokens() if self._billed:
                self._tokens(message, effects, now)
            case Checkpoint():
                self._held.receipt = self._meter.check(message, self._channel.verify)
                self._channel.settle(self._held.receipt, effects)
            case Done() if message.turn == self.number:
                self._done(message)
            case Error(code=code, detail=detail, retry_after_s=retry_after_s) if message.turn == self.number:
                if self._meter.due:
                    msg = "a turn that failed without a receipt for what was delivered"
                    raise ProtocolError(msg)
                self.outcome = self._refused or TurnFailed(code, detail, retry_after_s)
            case _:
                msg = f"{type(message).__name__} is out of place in turn {self.number}"
                raise ProtocolError(msg)
        if is_counted(message):
            self._held.received += 1

    def _quote(self, quote: Quote, effects: Effects, now: float) -> None:
        exact = self._ask.input_exact
        fault = ""
        if quote.tokens_in > self._ask.input_max:
            fault = f"quoted {quote.tokens_in} input tokens; at most {self._ask.input_max} are possible"
        elif exact is not None and quote.tokens_in != exact:
            fault = f"quoted {quote.tokens_in} input tokens; there are {exact}"
        elif quote.reused > quote.tokens_in:
            fault = f"quoted {quote.reused} reused of {quote.tokens_in} input tokens"
        if fault:
            raise ProtocolError(fault)
        self._quoted = True
        effects.emit(Quoted(quote))
        billed, meter = quote.tokens_in - quote.reused, self._meter
        paid_already = self._advanced and quote.reused == 0
        if not self._channel.free and billed and (self.cancelled or self._carried) and not paid_already:
            return  # unpaid input is not billed: the host ends the turn with 0
        if not self._channel.covers(meter.tokens_in + billed, meter.tokens_out):
            detail = (
                f"the turn's {billed} input tokens cost more than is left of the session's deposit: "
                "open another session or shorten the conversation"
            )
            self._refused = TurnFailed("payment_required", detail, cause="foreseen")
            self.cancel(effects, now)
            return
        self._billed = True
        self._tokens_in, self._reused = quote.tokens_in, quote.reused
        meter.bill(billed)
        if billed and not paid_already:
            self._channel.pay_input(meter, effects)

    def _progress(self, message: Progress, effects: Effects) -> None:
        if message.processed > message.total:
            msg = f"processed {message.processed} of {message.total} prompt tokens"
            raise ProtocolError(msg)
        if message.processed <= self._processed:
            return  # says nothing new
        self._processed = message.processed
        if not (self._tokens_out or self.cancelled or self._carried):
            earned_s = min(message.processed, self._ask.input_max) * PREFILL_S_PER_TOKEN
            effects.set_timer("progress", self._first_token_by + earned_s)
        effects.emit(Progressed(message))

    def _tokens(self, message: Tokens, effects: Effects, now: float) -> None:
        if (fault := self._fault_of(message)) is not None:
            raise ProtocolError(fault)
        self._tokens_out += len(message.ids)
        self._text_bytes += len(message.text.encode())
        self._meter.count(message.ids)
        if message.ids and not self.cancelled:
            effects.set_timer("progress", now + self._times.stall_s)
        effects.emit(Delivered(message.seq, message.ids, message.text))

    def _fault_of(self, message: Tokens) -> str | None:
        """What is wrong with these tokens, if anything."""
        meter, count = self._meter, self._tokens_out + len(message.ids)
        text_bytes = self._text_bytes + len(message.text.encode())
        if message.seq != meter.tokens_out:
            return f"tokens from {message.seq} on; {meter.tokens_out} were next"
        if not message.ids and not message.text:
            return "empty tokens"
        if count > self._ask.body.sampling.tokens_max:
            return "more tokens than were asked for"
        if meter.unreceipted + len(message.ids) > CHECKPOINT_EVERY:
            return f"more than {CHECKPOINT_EVERY} tokens without a checkpoint"
        if text_bytes > TEXT_SLACK_BYTES + TEXT_PER_TOKEN_MAX * count:
            return "more text than its tokens can hold"
        if not self._channel.covers(meter.tokens_in, meter.tokens_out + len(message.ids)):
            return "more tokens than the deposit covers"
        return None

    def _done(self, message: Done) -> None:
        meter = self._meter
        if message.reason == "cancelled" and not (self.cancelled or self._carried):
            msg = "a turn that is called cancelled, which nobody cancelled"
            raise ProtocolError(msg)
        claimed = (message.tokens_in, message.reused, message.tokens_out)
        if self._carried and claimed == (0, 0, 0) and self._tokens_out == 0 and meter.due:
            # The voucher for the input was lost with the old stream, and with it the bill.
            meter.waive()
            self._tokens_in = self._reused = 0
        if claimed != (self._tokens_in, self._reused, self._tokens_out) or meter.due:
            msg = "a bill that does not match what was received"
            raise ProtocolError(msg)
        if message.cost != self._channel.cost(meter):
            msg = f"a cost of {message.cost}; what was received costs {self._channel.cost(meter)}"
            raise ProtocolError(msg)
        self.outcome = self._refused or TurnDone(message)
