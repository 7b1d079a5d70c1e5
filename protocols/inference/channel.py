"""The payment channel of one session: what a host takes, what a client signs, and what both check.

``ChannelReceiver`` is the host's side, ``ChannelSender`` the client's. A free session has the same two, with
every price 0: it is acknowledged by ``Ack`` and its receipts are signed by the host's peer key. A paid one is
acknowledged by vouchers and its receipts are signed by the receipt key that its terms name.

Pure: keys are injected as signers, time is an argument, and the roles ask the chain. It knows nothing of
prompts, engines or streams. All amounts are token units; only the price of the tokens is rounded, once and up
(``typed_data.amount_due``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from p2pnode.contract_rules import TOKENS_PER_PRICE
from p2pnode.errors import ProtocolError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.protocols.crypto import Recover, Signer, abi_encode, keccak256, recover_address
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.commands import (
    FirstTurnFinished,
    Issued,
    Paid,
    PaidPart,
    Receipted,
    Signed,
)
from p2pnode.protocols.inference.messages import (
    N_CTX_MAX,
    READ_STALL_S,
    WINDOW,
    Accept,
    Ack,
    Checkpoint,
    Open,
    Receipt,
    SessionTerms,
    Voucher,
)
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.open_rules import NOBODY, HostPayment
from p2pnode.protocols.inference.prompts import TurnPlaces
from p2pnode.protocols.inference.receipts import link_root, receipt_digest
from p2pnode.protocols.inference.replay import PayCredit, ReplayBuffer
from p2pnode.protocols.inference.turn_memory import SessionMemory
from p2pnode.protocols.typed_data import Domain, amount_due, session_id, voucher_digest

_RESUME_TAG: Final = keccak256(b"p2pnode/resume/1")
_FREE: Final = SessionTerms(
    payer=NOBODY,
    host=NOBODY,
    voucher_key=NOBODY,
    receipt_key=NOBODY,
    model=ModelId(bytes(32)),
    deposit=0,
    price_in=0,
    price_out=0,
    session_fee=0,
    tip=0,
    expiry=0,
    salt=bytes(32),
)
"""What a free session costs. Never on the wire."""
_INPUTS_UNANSWERED_MAX: Final = 2
_VOUCHERS_MAX: Final = 1024
"""How many of the last vouchers a client can send again; a host that lost more has broken the window."""


def free_terms(model: ModelId, resume_key: bytes | None) -> SessionTerms:
    """What a free session costs, and the key that proves a resume of it, if there is one."""
    return replace(_FREE, model=model, voucher_key=resume_key or NOBODY)


_UNMATCHED: Final = "a voucher that is not for what was delivered"


@dataclass(frozen=True, slots=True)
class ResumeKey:
    """What proves a resume of a free session, as the voucher key does in a paid one."""

    address: bytes
    sign: Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTerms:
    """What this host grants a session of one model. ``payment`` is there for a paid session.

    ``turns_max`` turns may be under way at once, ``window`` output tokens unpaid. ``memory`` is the session's
    share of its host's, ``places`` are shared by the sessions of one payer or origin.
    """

    n_ctx: int
    host: PeerId | None = None
    """This host's own id, which a resume's proof names; that of ``payment`` in a paid session."""
    turns_max: int = 1
    window: int = WINDOW
    keep_s: int = 0
    """For how long the session may be left with this host; 0 for not at all."""
    settle_above: int = 0
    """It is settled, and not kept, when this host is owed more token units than this."""
    stall_s: float = 30.0
    idle_s: float = 900.0
    open_s: float = 10.0
    relay_s: float = 100.0
    read_stall_s: float = READ_STALL_S
    payment: HostPayment | None = None
    memory: SessionMemory = field(default_factory=SessionMemory)
    places: TurnPlaces = field(default_factory=TurnPlaces)
    recover: Recover = recover_address
    """Checks what clients signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPayment:
    """What a client opens a paid session with. ``sign`` is the voucher key: 65 bytes over a digest."""

    market: Domain
    terms: SessionTerms
    valid_before: int
    authorisation: bytes
    sign: Signer
    recover: Recover = recover_address
    """Checks what the host signed."""
    has_finished: bool = False
    """Whether the host has finished a turn for this wallet before, in any session."""

    @property
    def session(self) -> SessionId:
        """The digest of the terms."""
        return session_id(self.market, self.terms)


# ---- the host's side


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A receipt that a voucher may name, or where the session began; its place in what was sent."""

    seq: int
    tokens_out: int
    root: bytes
    frames: int = 0
    """Counted messages up to it."""
    receipt: Receipt | None = None


class ChannelReceiver:
    """The vouchers that a host would take now, and the best one it took. Without ``market`` it is free.

    A voucher is exact if it says what the one before it said, plus the input of the one quote that it names,
    and the output of the receipt that it names. Anything else is a violation, with one exception. A client
    that counted its input itself pays together with the prompt, before it can know what the host's cache
    makes free. Such an *advance* is exact for another count. One a turn is let through, one at a time, and it
    is used only if it turns out to be exactly what the quote makes due.

    Every voucher must be durable before anything is served for it, every receipt before its voucher counts.
    """

    def __init__(
        self,
        session: SessionId,
        sign: Signer,
        meter: Meter,
        *,
        market: Domain | None = None,
        terms: SessionTerms = _FREE,
        replay: ReplayBuffer | None = None,
        window: int = WINDOW,
        recover: Recover = recover_address,
    ) -> None:
        self.terms, self.meter = terms, meter
        self._recover = recover
        self.credit = PayCredit(meter.tokens_out, window)
        self.replay = replay if replay is not None else ReplayBuffer()  # an empty one is false
        """Stays empty in a free session, which nobody can resume."""
        self.best: Voucher | None = None
        """The last voucher taken, which no earlier one exceeds."""
        self.last_receipt: Receipt | None = None
        """The last that was issued."""
        self.quoted: dict[int, int] = {}
        """The billed input of quotes that no voucher has paid yet, by turn."""
        self._session, self._sign, self._market = session, sign, market
        self._points = deque([Point(seq=meter.seq, tokens_out=meter.tokens_out, root=meter.root)])
        """The receipt of the last voucher, and those after it."""
        self._advances: dict[int, bool] = {}
        """Turns that may still bring an advance, and whether it could be used: the turn isn't quoted yet."""
        self._advance: Voucher | None = None

    @property
    def free(self) -> bool:
        """Whether nothing is paid: acks bring credit, and the session ends with its stream."""
        return self._market is None

    @property
    def owed(self) -> bool:
        """Whether a receipt was sent that the client has not signed for."""
        return len(self._points) > 1

    @property
    def newest(self) -> Point:
        """The last receipt."""
        return self._points[-1]

    @property
    def cost(self) -> int:
        """Token units of the session so far."""
        return amount_due(self.terms, self.meter.tokens_in, self.meter.tokens_out)

    @property
    def affordable(self) -> int:
        """Output tokens that the deposit still covers when every quote is paid."""
        tokens_in = self.meter.tokens_in + sum(self.quoted.values())
        return tokens_affordable(self.terms, tokens_in, self.meter.tokens_out)

    def needed(self, billed: int, tokens_out: int) -> int:
        """Token units that the session costs with ``billed`` more input and ``tokens_out`` more output."""
        tokens_in = self.meter.tokens_in + sum(self.quoted.values()) + billed
        return amount_due(self.terms, tokens_in, self.meter.tokens_out + tokens_out)

    def begin_turn(self, turn: int, turns_max: int, under_way: Collection[int]) -> None:
        """A prompt comes, perhaps with an advance. Its client has all but ``turns_max`` - 1 answers."""
        if self.free:
            return
        self.replay.forget_answers(turn - turns_max)
        # Of a turn whose answer the client has no voucher can come any more.
        known = {*under_way, *self.replay.answered_since(0)}
        self._advances = {each: open_ for each, open_ in self._advances.items() if each in known}
        self.quoted = {each: billed for each, billed in self.quoted.items() if each in known}
        self._advances[turn] = True

    def end_turn(self, turn: int) -> None:
        """A turn is over, and its quote will not be paid. Its advance may still be on its way."""
        self.quoted.pop(turn, None)
        if turn in self._advances:
            self._advances[turn] = False
        if self._advance is not None and self._advance.turn == turn:
            self._advance = None

    def resumed(self, turns: Collection[int], under_way: Collection[int]) -> None:
        """Another stream has the session. Its client has no answer of these turns, and brings their advances
        once more; only those that are ``under_way`` still need them."""
        if not self.free:
            self._advances = {turn: turn in under_way and turn not in self.quoted for turn in turns}

    def issue(self, effects: Effects) -> None:
        """Send a receipt. In a paid session it is written down first, and its voucher is due from now on."""
        receipt = self.last_receipt = self.meter.issue(self._sign)
        checkpoint = receipt.checkpoint
        if self.free:
            effects.send(checkpoint)
            return
        # In this order: a shell performs effects one after another, so the journal has the receipt before the
        # client can. Two receipts for one place of an epoch would cost the host its stake.
        effects.emit(Issued(receipt))
        effects.send(checkpoint)
        # Counted after it was sent: the client can't have signed before it had the receipt.
        self._points.append(
            Point(
                seq=checkpoint.seq,
                tokens_out=checkpoint.tokens_out,
                root=checkpoint.root,
                frames=self.replay.count,
                receipt=receipt,
            )
        )

    def issue_again(self, checkpoint: Checkpoint, effects: Effects) -> None:
        """Send a receipt of the replay buffer once more. Whoever issued it may still be writing it down."""
        for point in self._points:
            if point.receipt is not None and point.receipt.checkpoint == checkpoint:
                effects.emit(Issued(point.receipt))
        effects.send(checkpoint)

    def quote(self, turn: int, billed: int, effects: Effects) -> bool:
        """``billed`` input tokens of a turn were quoted just now. True where nothing more has to be paid.

        An advance that is exactly right is taken at once.
        """
        advance = self._advance if self._advance is not None and self._advance.turn == turn else None
        if advance is not None:
            self._advance = None
        if turn in self._advances:
            self._advances[turn] = False
        if self.free:
            self.meter.tokens_in += billed
            return True
        if billed == 0:  # its voucher would say what the last one said
            return True
        self.quoted[turn] = billed
        if advance is None:
            return False
        point = self._point(advance.seq)
        if point is None or not self._matches(advance, point, billed):
            return False
        self._take(advance, point, effects)
        return True

    def take(self, message: Ack | Voucher, effects: Effects) -> int | None:
        """Take an ack or a voucher. Returns the turn whose input it pays, or 0; None when it changes nothing.

        Raises ``ProtocolError`` for the one that this session doesn't use, for an ack of more than was sent
        and for a voucher that is not exact.
        """
        if isinstance(message, Ack) != self.free:
            kind = "free" if self.free else "paid"
            msg = f"{type(message).__name__} is out of place in a {kind} session"
            raise ProtocolError(msg)
        if isinstance(message, Ack):
            return 0 if self.credit.acknowledge(message.seq) else None
        if same_voucher(message, self.best) or message == self._advance:
            return None
        point, billed = self._point(message.seq), self.quoted.get(message.turn, 0)
        if point is None:
            raise ProtocolError(_UNMATCHED)
        says_more = bool(billed) if message.turn else point.seq > self._points[0].seq
        if not (says_more and self._matches(message, point, billed)):
            self._hold(message, point)
            return None
        self._check_signature(message)
        self._take(message, point, effects)
        return message.turn

    def why_not_final(self, voucher: Voucher) -> str:
        """What is wrong with a voucher for what a client received in all, or ""."""
        exact = amount_due(self.terms, voucher.tokens_in, voucher.tokens_out)
        if voucher.amount != exact:
            return f"a voucher of {voucher.amount} for counts that cost {exact}"
        if voucher.amount > self.terms.deposit:
            return f"a voucher of {voucher.amount} above the deposit of {self.terms.deposit}"
        best = self.best
        if best is not None and not (
            voucher.seq >= best.seq
            and voucher.tokens_in >= best.tokens_in
            and voucher.tokens_out >= best.tokens_out
        ):
            return "a voucher below one that this host has"
        try:
            self._check_signature(voucher)
        except ProtocolError as error:
            return str(error)
        return ""

    def _point(self, seq: int) -> Point | None:
        return next((point for point in self._points if point.seq == seq), None)

    def _matches(self, voucher: Voucher, point: Point, billed: int) -> bool:
        """Whether a voucher says exactly what it must, naming this receipt and this much more input."""
        tokens_in = self.meter.tokens_in + billed
        amount = amount_due(self.terms, tokens_in, point.tokens_out)
        claimed = (voucher.tokens_in, voucher.tokens_out, voucher.amount, voucher.root)
        return claimed == (tokens_in, point.tokens_out, amount, point.root)

    def _take(self, voucher: Voucher, point: Point, effects: Effects) -> None:
        self.best = voucher
        self.meter.tokens_in = voucher.tokens_in
        self.quoted.pop(voucher.turn, None)
        # It was signed after the quote, so an advance would have come before it.
        self._advances.pop(voucher.turn, None)
        while self._points[0].seq < point.seq:
            self._points.popleft()
        # Before the caller sends anything that this pays for: it is durable by then.
        effects.emit(Paid(voucher))
        self.replay.forget(point.frames)
        self.credit.acknowledge(point.tokens_out)

    def _hold(self, voucher: Voucher, point: Point) -> None:
        """Keep an advance until the quote shows whether it is exact; drop one that can't be any more."""
        more = voucher.tokens_in - self.meter.tokens_in
        if voucher.turn not in self._advances or more <= 0 or not self._matches(voucher, point, more):
            raise ProtocolError(_UNMATCHED)
        self._check_signature(voucher)
        if self._advances.pop(voucher.turn):
            if self._advance is not None:
                msg = "a second advance before the quote that the first one waits for"
                raise ProtocolError(msg)
            self._advance = voucher

    def _check_signature(self, voucher: Voucher) -> None:
        market = self._market
        if market is None or self.terms.voucher_key != self._recover(
            voucher_digest(market, self._session, voucher), voucher.signature
        ):
            msg = "a voucher that the voucher key did not sign"
            raise ProtocolError(msg)


# ---- the client's side


@dataclass(slots=True)
class _TurnCounts:
    """Billed input and receipted output of one turn, and how much of both vouchers have named."""

    key: int
    tokens_in: int = 0
    tokens_out: int = 0
    named_in: int = 0
    named_out: int = 0
    over: bool = False


class _VoucherParts:
    """Of which turns the counts are that a voucher adds: only then is it known who spends what."""

    def __init__(self) -> None:
        self._turns: dict[int, _TurnCounts] = {}

    def begin(self, turn: int, key: int) -> None:
        self._turns[turn] = _TurnCounts(key)

    def pay_input(self, turn: int, tokens_in: int) -> None:
        if turn in self._turns:
            self._turns[turn].tokens_in = tokens_in

    def receipted(self, counts: Mapping[int, int]) -> None:
        for turn, tokens_out in counts.items():
            if turn in self._turns:
                self._turns[turn].tokens_out = tokens_out

    def end(self, turn: int) -> None:
        """It moves no more. What of it no voucher has named yet the next one does."""
        counts = self._turns.get(turn)
        if counts is None:
            return
        counts.over = True
        if counts.named_in >= counts.tokens_in and counts.named_out >= counts.tokens_out:
            del self._turns[turn]

    def named(self) -> tuple[PaidPart, ...]:
        """A voucher names all counts as they are now: what it adds of each turn."""
        parts = []
        for number, turn in tuple(self._turns.items()):
            # An advance that was not used had named more input than was billed in the end.
            more_in = max(0, turn.tokens_in - turn.named_in)
            more_out = max(0, turn.tokens_out - turn.named_out)
            if more_in or more_out:
                parts.append(PaidPart(turn.key, more_in, more_out))
            turn.named_in += more_in
            turn.named_out += more_out
            if turn.over:
                del self._turns[number]
        return tuple(parts)

    def clear(self) -> None:
        self._turns.clear()


@dataclass(frozen=True, slots=True)
class _Advance:
    """A voucher for input that the host has not quoted yet, and the one before it."""

    turn: int
    voucher: Voucher
    before: Voucher | None


class ChannelSender:
    """The vouchers that a client signed, each for what it counted and checked, never above the deposit.

    Without ``payment`` the session is free: then ``verify(digest, signature)`` checks its receipts, which the
    host's peer key signs. A voucher must be durable before it is sent.

    Input is paid in the order of the quotes. Until a host has finished a turn for this wallet, in whatever
    session, only one input is paid whose first token has not come, later two: so much a host can take without
    giving anything. That of a turn which the host ended without a token, by an error or in order, stays
    counted until it finishes one that brought something, or none is under way.
    """

    def __init__(
        self,
        payment: ClientPayment | None,
        *,
        verify: Callable[[bytes, bytes], bool] | None = None,
        resume_key: ResumeKey | None = None,
        keep_s: int = 0,
    ) -> None:
        """``resume_key`` proves a resume of a free session; ``keep_s`` asks for how long it may be left."""
        self.payment = payment
        self.terms = payment.terms if payment is not None else _FREE
        self.prove = payment.sign if payment is not None else resume_key.sign if resume_key else None
        """Signs the proof of a resume; None where nothing is ever resumed."""
        self._resume_key, self._keep_s = resume_key, keep_s
        self.last_voucher: Voucher | None = None
        """The last one that was sent."""
        self.has_finished = payment is not None and payment.has_finished
        """Whether the host has finished a turn for this wallet."""
        self._verify = verify
        self._session = payment.session if payment is not None else SessionId(b"")
        self._unsent: Voucher | None = None
        self._meter: Meter | None = None
        self._receipt = (0, 0, b"")
        """Of the last receipt: its number, the output that a voucher of it pays for, and its root."""
        self._sent: deque[Voucher] = deque(maxlen=_VOUCHERS_MAX)
        self._waiting: dict[int, int] = {}
        """The billed input of quotes that are to be paid, by turn, in their order."""
        self._paid_turns: set[int] = set()
        """Turns under way whose input was paid, or costs nothing."""
        self._unanswered: set[int] = set()
        """Those that cost something, and whose first token has not come."""
        self._lost = 0
        """Turns that cost something, and that the host ended without a token since it last finished one."""
        self._advance: _Advance | None = None
        self._owes = False
        """Whether a receipt holds that no voucher names yet."""
        self._parts = _VoucherParts()

    def begin(self, meter: Meter) -> None:
        """The session is open; ``meter`` counts what it costs."""
        self._meter = meter
        self._receipt = (meter.seq, meter.tokens_out, meter.root)

    @property
    def free(self) -> bool:
        """Whether nothing is paid."""
        return self.payment is None

    @property
    def meter(self) -> Meter:
        """What the session costs so far: input that was paid, and all output."""
        assert self._meter is not None  # noqa: S101 - only after the session was accepted
        return self._meter

    @property
    def final_voucher(self) -> Voucher | None:
        """What a host that was lost is handed when it returns."""
        return self._unsent or self.last_voucher

    @property
    def _unanswered_max(self) -> int:
        return _INPUTS_UNANSWERED_MAX if self.has_finished else 1

    @property
    def trusts(self) -> bool:
        """Whether the host may be paid for more input: not one that took some and gave nothing for it."""
        return self._lost < self._unanswered_max

    @property
    def paid_ahead(self) -> bool:
        """Whether input was paid that the host has not quoted yet."""
        return self._advance is not None

    def request(self, model: ModelId, salt: bytes, holder: bytes) -> Open:
        """What opens the session."""
        payment = self.payment
        if payment is None:
            key = self._resume_key.address if self._resume_key is not None else None
            return Open(model=model, salt=salt, holder=holder, keep_s=self._keep_s, resume_key=key)
        return Open(
            model=model,
            salt=salt,
            holder=holder,
            terms=payment.terms,
            authorisation=payment.authorisation,
            valid_before=payment.valid_before,
            keep_s=self._keep_s,
        )

    def go_on_from(self, voucher: Voucher | None, meter: Meter) -> None:
        """The session was left, and goes on from what its host showed; ``meter`` counts from there."""
        self.begin(meter)
        self.last_voucher, self._unsent = voucher, None
        self._sent.clear()
        if voucher is not None:
            self._sent.append(voucher)
        self._waiting.clear()
        self._unanswered.clear()
        self._paid_turns.clear()
        self._parts.clear()
        self._advance, self._owes = None, False

    def fault_of_left(self, accept: Accept, session: SessionId) -> str | None:
        """What is wrong with what a host shows of a session that was left: both must be signed, and agree.

        It may be newer than what this client knows, for another machine may have used the session since.
        """
        receipt, voucher = accept.receipt, accept.voucher
        if accept.session != session:
            return "resumed another session than the one that was asked for"
        if receipt is not None and (
            receipt.epoch > accept.epoch
            or link_root(receipt.previous, receipt.checkpoint) != receipt.checkpoint.root
            or not self.verify(
                receipt_digest(session, receipt.epoch, receipt.checkpoint.root), receipt.checkpoint.signature
            )
        ):
            return "showed a receipt that it did not sign"
        payment = self.payment
        if payment is None or voucher is None:
            return None if voucher is None else "showed a voucher of a free session"
        seq = receipt.checkpoint.seq if receipt is not None else 0
        amount = amount_due(self.terms, voucher.tokens_in, voucher.tokens_out)
        if (
            voucher.seq > seq
            or voucher.amount != amount
            or amount > self.terms.deposit
            or payment.recover(voucher_digest(payment.market, session, voucher), voucher.signature)
            != self.terms.voucher_key
        ):
            return "showed a voucher that this client did not sign"
        return None

    def fault_of(self, accept: Accept) -> str | None:
        """What is wrong with what the host accepted, if anything."""
        if self.free:
            return None
        if accept.session != self._session:
            return "accepted another session than the one that was paid for"
        fee = self.terms.session_fee
        if accept.session_fee != fee:
            return f"asks {accept.session_fee} for the session; {fee} was agreed"
        return None

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Whether this is the host's signature on a receipt."""
        if self.payment is None:
            return self._verify is not None and self._verify(digest, signature)
        return self.payment.recover(digest, signature) == self.terms.receipt_key

    def covers(self, tokens_in: int, tokens_out: int) -> bool:
        """Whether the deposit is enough for so much more than was delivered and quoted."""
        meter = self.meter
        tokens_in += meter.tokens_in + sum(self._waiting.values())
        return amount_due(self.terms, tokens_in, meter.tokens_out + tokens_out) <= self.terms.deposit

    def accepts_total(self, tokens_in: int) -> bool:
        """Whether a receipt may name this input: a total of our vouchers, and never less than before."""
        meter = self.meter
        if self.free:
            return tokens_in == meter.tokens_in
        totals = {meter.receipted[0], *(voucher.tokens_in for voucher in self._sent)}
        return tokens_in in totals and tokens_in >= meter.receipted[0]

    # ---- paying

    def begin_turn(self, turn: int, key: int) -> None:
        """A turn is asked that the role knows as ``key``."""
        if not self.free:
            self._parts.begin(turn, key)

    def advance(self, turn: int, tokens_in: int, effects: Effects) -> None:
        """Pay for input before the host quoted it, where nothing else stands out."""
        if self.free or self._advance is not None or self._waiting or self._unanswered:
            return
        before = self.last_voucher
        voucher = self._sign(turn, self.meter.tokens_in + tokens_in, effects)
        if voucher is not None:
            self._advance = _Advance(turn, voucher, before)

    def quoted(self, turn: int, billed: int, effects: Effects, *, wanted: bool) -> None:
        """Pay for a turn's input as soon as not too much stands out, if it is ``wanted``."""
        advance, meter = self._advance, self.meter
        if self.free:
            meter.tokens_in += billed
            billed = 0
        elif advance is not None and advance.turn == turn:
            if advance.voucher.tokens_in == meter.tokens_in + billed:
                self._advance = None
                self._paid(turn, advance.voucher)
                billed = 0
            else:
                self._drop(advance)
        if not billed:
            self._paid_turns.add(turn)
        elif wanted:
            self._waiting[turn] = billed
        self._pay(effects)

    def is_paid(self, turn: int) -> bool:
        """Whether a turn may be served: it was quoted, and its input was paid or costs nothing."""
        return turn in self._paid_turns

    def first_token(self, turn: int, effects: Effects) -> None:
        """The host has begun to answer: the next input may be paid."""
        if turn in self._unanswered:
            self._unanswered.discard(turn)
            self._pay(effects)

    def finished(self, effects: Effects) -> None:
        """The host has finished a turn and given something for it."""
        if not (self.has_finished or self.free):
            effects.emit(FirstTurnFinished())
        self.has_finished, self._lost = True, 0

    def begin_anew(self) -> None:
        """No turn is under way: inputs that brought nothing are forgotten."""
        self._lost = 0

    def cancel_turn(self, turn: int, effects: Effects) -> None:
        """A turn is not wanted any more: what was not paid of it is not paid."""
        self._waiting.pop(turn, None)
        self._pay(effects)

    def end_turn(self, turn: int, effects: Effects, *, wanted: bool) -> None:
        """A turn is over; it was still ``wanted``, so that its end is the host's doing."""
        self._waiting.pop(turn, None)
        self._lost += wanted and turn in self._unanswered
        self._unanswered.discard(turn)
        self._paid_turns.discard(turn)
        self._parts.end(turn)
        if self._advance is not None and self._advance.turn == turn:
            self._drop(self._advance)
        self._pay(effects)

    def settle(
        self, receipt: Receipt, keys: tuple[int, ...], effects: Effects, counts: Mapping[int, int]
    ) -> None:
        """Answer a receipt that holds: by an ack where it is free, otherwise by its exact voucher.

        ``counts`` has the output so far of the turns that moved, by their numbers.
        """
        checkpoint = receipt.checkpoint
        self._parts.receipted(counts)
        if self.free:
            effects.send(Ack(seq=checkpoint.tokens_out))
        effects.emit(Receipted(receipt, keys))
        self._receipt = (checkpoint.seq, checkpoint.tokens_out, checkpoint.root)
        self._owes = not self.free
        self._pay(effects)

    def conclude(self, effects: Effects, counts: Mapping[int, int]) -> None:
        """The host was lost: sign for exactly what came, also for what no receipt covers. It isn't sent.

        ``counts`` has the output of the turns under way, by their numbers.

        A session that goes on forgets it: the exact vouchers of its receipts follow there. After an advance
        that was not quoted the last voucher says more: a final one, below it, would be refused.
        """
        if self.payment is None or self.paid_ahead:
            return
        last, meter = self.final_voucher, self.meter
        totals = (meter.tokens_in, meter.tokens_out)
        if totals == ((0, 0) if last is None else (last.tokens_in, last.tokens_out)):
            return
        seq, _, root = self._receipt
        self._unsent = exact_voucher(
            self.payment, self._session, seq=seq, tokens_in=totals[0], tokens_out=totals[1], root=root
        )
        self._parts.receipted(counts)
        effects.emit(Signed(self._unsent, self._parts.named()))

    def rejoin(self, best: Voucher | None, effects: Effects) -> str | None:
        """Send again what follows ``best``, the last voucher that the host took. Returns why it can't be."""
        sent = list(self._sent)
        if best is not None:
            places = [place for place, each in enumerate(sent) if same_voucher(each, best)]
            if not places:
                return "goes on from a voucher that this client did not send"
            sent = sent[places[0] + 1 :]
        for voucher in sent:
            effects.send(voucher)
        return None

    def handed_over(self) -> None:
        """The host took the final voucher: it is the last one that both sides know."""
        self.last_voucher, self._unsent = self.final_voucher, None
        last = self.last_voucher
        self._sent.clear()
        self._waiting.clear()
        self._unanswered.clear()
        self._paid_turns.clear()
        self._parts.clear()
        self._advance, self._owes = None, False
        if last is not None:
            self._sent.append(last)
        seq, _, root = self._receipt
        self._receipt = (seq, 0 if last is None else last.tokens_out, root)

    def _pay(self, effects: Effects) -> None:
        """Sign what is due. Nothing is signed on top of an advance that may not count."""
        if self._advance is not None:
            return
        while self._waiting and len(self._unanswered) + self._lost < self._unanswered_max:
            turn, billed = next(iter(self._waiting.items()))
            del self._waiting[turn]
            voucher = self._sign(turn, self.meter.tokens_in + billed, effects)
            if voucher is not None:
                self._paid(turn, voucher)
        if self._owes:
            self._sign(0, self.meter.tokens_in, effects)

    def _paid(self, turn: int, voucher: Voucher) -> None:
        self.meter.tokens_in = voucher.tokens_in
        self._paid_turns.add(turn)
        self._unanswered.add(turn)

    def _drop(self, advance: _Advance) -> None:
        self._advance, self.last_voucher = None, advance.before
        self._sent.remove(advance.voucher)

    def _sign(self, turn: int, tokens_in: int, effects: Effects) -> Voucher | None:
        """Sign and send the exact voucher. None in a free session, where there is none."""
        if self.payment is None:
            return None
        seq, tokens_out, root = self._receipt
        self._parts.pay_input(turn, tokens_in - self.meter.tokens_in)
        voucher = exact_voucher(
            self.payment,
            self._session,
            seq=seq,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            root=root,
            turn=turn,
        )
        self.last_voucher, self._unsent, self._owes = voucher, None, False
        self._sent.append(voucher)
        # In this order: no host may hold a voucher that our journal doesn't know. One that a crash kept from
        # being sent is in the journal, and a resume sends it.
        effects.emit(Signed(voucher, self._parts.named()))
        effects.send(voucher)
        return voucher


# ---- paying


def exact_voucher(
    payment: ClientPayment,
    session: SessionId,
    *,
    seq: int,
    tokens_in: int,
    tokens_out: int,
    root: bytes,
    turn: int = 0,
) -> Voucher:
    """The one voucher that is right for these cumulative counts."""
    unsigned = Voucher(
        seq=seq,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        amount=amount_due(payment.terms, tokens_in, tokens_out),
        root=root,
        signature=b"",
        turn=turn,
    )
    return replace(unsigned, signature=payment.sign(voucher_digest(payment.market, session, unsigned)))


def same_voucher(one: Voucher, other: Voucher | None) -> bool:
    """Whether the key signed the same in both. The turn that a voucher names is not signed."""
    return other is not None and replace(one, turn=0) == replace(other, turn=0)


def tokens_affordable(terms: SessionTerms, tokens_in: int, tokens_out: int) -> int:
    """How many more output tokens the deposit pays for after these cumulative counts."""
    if terms.price_out == 0:
        return N_CTX_MAX if amount_due(terms, tokens_in, tokens_out) <= terms.deposit else 0
    left = (terms.deposit - terms.session_fee) * TOKENS_PER_PRICE - tokens_in * terms.price_in
    return max(0, left // terms.price_out - tokens_out)


# ---- resuming


def resume_digest(nonce: bytes, session: SessionId, host: PeerId, client: PeerId) -> bytes:
    """What the voucher key signs to take a session to a stream between these two peers."""
    peers = (keccak256(host.encode()), keccak256(client.encode()))
    return keccak256(abi_encode(_RESUME_TAG, nonce, session, *peers))


def resume_holds(
    terms: SessionTerms, digest: bytes, proof: bytes, recover: Recover = recover_address
) -> bool:
    """Whether ``proof`` is the voucher key's signature."""
    return recover(digest, proof) == terms.voucher_key
