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
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from p2pnode.contract_rules import DURATION_MAX_S, TOKENS_PER_PRICE
from p2pnode.errors import ProtocolError, WireCode
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.protocols.crypto import Signer, abi_encode, keccak256, recover_address
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.commands import Issued, Paid, Receipted, Signed
from p2pnode.protocols.inference.messages import (
    N_CTX_MAX,
    Accept,
    Ack,
    Checkpoint,
    Open,
    Receipt,
    Refuse,
    SessionTerms,
    Voucher,
)
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.replay import ReplayBuffer, SendQueue
from p2pnode.protocols.typed_data import (
    Domain,
    amount_due,
    authorisation_digest,
    session_id,
    voucher_digest,
)

EXPIRY_MIN_S: Final = 1_800
"""A session must be able to live for a while before its host must settle it."""
VALID_MAX_S: Final = 600
"""How long an authorisation may still be valid, at most."""
VALID_MIN_S: Final = 100
"""How long it must still be valid: the host may take this long to bring it to the chain."""
_RESUME_TAG: Final = keccak256(b"p2pnode/resume/1")
_PLAIN_SIGNATURE: Final = 65
_NOBODY: Final = bytes(20)
_FREE: Final = SessionTerms(
    payer=_NOBODY,
    host=_NOBODY,
    voucher_key=_NOBODY,
    receipt_key=_NOBODY,
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
_UNMATCHED: Final = "a voucher that is not for what was delivered"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPayment:
    """What a host asks of a paid session, and what its machine needs to serve one.

    ``peer`` is this host's own peer id, ``sign`` its receipt key (65 bytes over a digest). Prices are
    token units per million tokens.
    """

    market: Domain
    token: Domain
    peer: PeerId
    wallet: bytes
    receipt_key: bytes
    sign: Signer
    price_in: int
    price_out: int
    session_fee: int
    deposit_min: int = 0
    expiry_min_s: int = EXPIRY_MIN_S
    expiry_max_s: int = DURATION_MAX_S
    valid_min_s: int = VALID_MIN_S
    valid_max_s: int = VALID_MAX_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPayment:
    """What a client opens a paid session with. ``sign`` is the voucher key: 65 bytes over a digest."""

    market: Domain
    terms: SessionTerms
    valid_before: int
    authorisation: bytes
    sign: Signer

    @property
    def session(self) -> SessionId:
        """The digest of the terms."""
        return session_id(self.market, self.terms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """One voucher as it must be. ``frames`` counted messages were sent before it could be signed."""

    seq: int
    tokens_in: int
    tokens_out: int
    amount: int
    root: bytes
    frames: int = 0

    def matches(self, voucher: Voucher) -> bool:
        """Whether the voucher says exactly this."""
        claimed = (voucher.seq, voucher.tokens_in, voucher.tokens_out, voucher.amount, voucher.root)
        return claimed == (self.seq, self.tokens_in, self.tokens_out, self.amount, self.root)


# ---- the host's side


class ChannelReceiver:
    """The vouchers that a host would take now, and the best one it took. Without ``market`` it is free.

    A voucher that is not exactly a due one is a violation, with one exception. A client that counted its
    input itself pays together with the prompt, before it can know what the host's cache makes free. Such an
    *advance* is exact for another count. One per turn is let through, and it is used only if it turns out
    to be exactly what the quote makes due.

    Every voucher must be durable before anything is served for it, every receipt before its voucher counts.
    """

    def __init__(
        self,
        session: SessionId,
        sign: Signer,
        *,
        market: Domain | None = None,
        terms: SessionTerms = _FREE,
        replay: ReplayBuffer | None = None,
    ) -> None:
        self.terms = terms
        self.replay = replay if replay is not None else ReplayBuffer()  # an empty one is false
        """Stays empty in a free session, which nobody can resume."""
        self.best: Voucher | None = None
        """The last voucher taken, which no earlier one exceeds."""
        self.dues: deque[Due] = deque()
        """The vouchers that are due, oldest first."""
        self._session, self._sign, self._market = session, sign, market
        self._unpaid: deque[Receipt] = deque()
        self._start: Due | None = None  # where the present turn began
        self._advance_open = False
        self._advance: Voucher | None = None

    @property
    def free(self) -> bool:
        """Whether nothing is paid: acks bring credit, and the session ends with its stream."""
        return self._market is None

    @property
    def owed(self) -> bool:
        """Whether anything is due that the client has not signed for."""
        return bool(self.dues)

    def cost(self, meter: Meter) -> int:
        """Token units of the session so far."""
        return amount_due(self.terms, meter.tokens_in, meter.tokens_out)

    def affordable(self, meter: Meter) -> int:
        """Output tokens that the deposit still covers."""
        return tokens_affordable(self.terms, meter.tokens_in, meter.tokens_out)

    def begin_turn(self, meter: Meter) -> None:
        """A prompt comes. Its client holds all that was sent before, and may pay an advance."""
        self.replay.forget(self.replay.count)
        self._unpaid.clear()
        self._start = self.due(
            seq=meter.seq, tokens_in=meter.tokens_in, tokens_out=meter.tokens_out, root=meter.root
        )
        self._advance = None
        self.allow_advance()

    def allow_advance(self) -> None:
        """Let one advance through, or the one that a lost stream swallowed once more."""
        self._advance_open = self._start is not None

    def issue(self, meter: Meter, effects: Effects) -> None:
        """Send a receipt. In a paid session it is written down first, and its voucher is due from now on."""
        receipt = meter.issue(self._sign)
        if self.free:
            effects.send(receipt.checkpoint)
            return
        self._unpaid.append(receipt)
        # In this order: a shell performs effects one after another, so the journal has the receipt before the
        # client can. Two receipts for one place of an epoch would cost the host its stake.
        effects.emit(Issued(receipt))
        effects.send(receipt.checkpoint)
        # Counted after it was sent: the client can't have signed before it had the receipt.
        self.owe(
            self.due(
                seq=meter.seq,
                tokens_in=meter.tokens_in,
                tokens_out=meter.tokens_out,
                root=meter.root,
                frames=self.replay.count,
            )
        )

    def issue_again(self, checkpoint: Checkpoint, effects: Effects) -> None:
        """Send a receipt of the replay buffer once more. Whoever issued it may still be writing it down."""
        for receipt in self._unpaid:
            if receipt.checkpoint == checkpoint:
                effects.emit(Issued(receipt))
        effects.send(checkpoint)

    def owe_input(self, meter: Meter, billed: int, queue: SendQueue, effects: Effects) -> None:
        """``billed`` input tokens were quoted just now. An advance that is exactly right is taken at once."""
        if billed == 0:
            return  # its voucher would say what the last one said
        due = self.due(
            seq=meter.seq,
            tokens_in=meter.tokens_in + billed,
            tokens_out=meter.tokens_out,
            root=meter.root,
            frames=self.replay.count - 1,  # an advance was signed before the quote was seen
        )
        advance = self.owe(due)
        if advance is not None:
            self.credit(advance, queue, effects)

    def credit(self, message: Ack | Voucher, queue: SendQueue, effects: Effects) -> bool:
        """Take an ack or a voucher; True when it brings credit.

        Raises ``ProtocolError`` for the one that this session doesn't use, for an ack of more than was sent
        and for a voucher that is not exact.
        """
        if isinstance(message, Ack) != self.free:
            kind = "free" if self.free else "paid"
            msg = f"{type(message).__name__} is out of place in a {kind} session"
            raise ProtocolError(msg)
        if isinstance(message, Ack):
            return queue.acknowledge(message.seq)
        due = self.take(message)
        if due is None:
            return False
        # Before the caller sends anything that this pays for: it is durable by then.
        effects.emit(Paid(message))
        self.replay.forget(due.frames)
        while self._unpaid and self._unpaid[0].checkpoint.seq <= due.seq:
            self._unpaid.popleft()
        queue.acknowledge(due.tokens_out)
        return True

    # ---- which vouchers are exact

    def due(self, *, seq: int, tokens_in: int, tokens_out: int, root: bytes, frames: int = 0) -> Due:
        """The voucher for these counts."""
        amount = amount_due(self.terms, tokens_in, tokens_out)
        return Due(
            seq=seq, tokens_in=tokens_in, tokens_out=tokens_out, amount=amount, root=root, frames=frames
        )

    def owe(self, due: Due) -> Voucher | None:
        """From now on this is due. Returns the advance if it is exactly that; it still has to be taken."""
        self.dues.append(due)
        advance, self._advance = self._advance, None
        return advance if advance is not None and due.matches(advance) else None

    def waive_last(self) -> None:
        """The input that was quoted last is not billed after all."""
        self._advance = None
        if self.dues:
            self.dues.pop()

    def take(self, voucher: Voucher) -> Due | None:
        """What it pays; None when it changes nothing. Raises ``ProtocolError`` for any that isn't exact."""
        if voucher == self.best:
            return None
        for place, due in enumerate(self.dues):
            if due.matches(voucher):
                self._check_signature(voucher)
                for _ in range(place + 1):
                    self.dues.popleft()
                self.best = voucher
                # It was signed after the quote, so an advance would have come before it.
                self._advance_open, self._advance = False, None
                return due
        self._hold(voucher)
        return None

    def why_not_final(self, voucher: Voucher) -> str:
        """What is wrong with a voucher for what a client received in all, or ""."""
        exact = self.due(
            seq=voucher.seq, tokens_in=voucher.tokens_in, tokens_out=voucher.tokens_out, root=voucher.root
        )
        if not exact.matches(voucher):
            return f"a voucher of {voucher.amount} for counts that cost {exact.amount}"
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

    def _hold(self, voucher: Voucher) -> None:
        """Keep an advance until the quote shows whether it is exact."""
        start = self._start
        if not self._advance_open or start is None or voucher.tokens_in <= start.tokens_in:
            raise ProtocolError(_UNMATCHED)
        other = self.due(
            seq=start.seq, tokens_in=voucher.tokens_in, tokens_out=start.tokens_out, root=start.root
        )
        if not other.matches(voucher):
            raise ProtocolError(_UNMATCHED)
        self._check_signature(voucher)
        self._advance_open, self._advance = False, voucher

    def _check_signature(self, voucher: Voucher) -> None:
        market = self._market
        if market is None or self.terms.voucher_key != recover_address(
            voucher_digest(market, self._session, voucher), voucher.signature
        ):
            msg = "a voucher that the voucher key did not sign"
            raise ProtocolError(msg)


# ---- the client's side


class ChannelSender:
    """The vouchers that a client signed, each for what it counted and checked, never above the deposit.

    Without ``payment`` the session is free: then ``verify(digest, signature)`` checks its receipts, which the
    host's peer key signs. A voucher must be durable before it is sent.
    """

    def __init__(
        self,
        payment: ClientPayment | None,
        *,
        verify: Callable[[bytes, bytes], bool] | None = None,
    ) -> None:
        self.payment = payment
        self.terms = payment.terms if payment is not None else _FREE
        self.last_voucher: Voucher | None = None
        """The last one that was sent."""
        self._verify = verify
        self._session = payment.session if payment is not None else SessionId(b"")
        self._unsent: Voucher | None = None

    @property
    def free(self) -> bool:
        """Whether nothing is paid."""
        return self.payment is None

    @property
    def final_voucher(self) -> Voucher | None:
        """What a host that was lost is handed when it returns."""
        return self._unsent or self.last_voucher

    def request(self, model: ModelId, salt: bytes) -> Open:
        """What opens the session."""
        payment = self.payment
        if payment is None:
            return Open(model=model, salt=salt)
        return Open(
            model=model,
            salt=salt,
            terms=payment.terms,
            authorisation=payment.authorisation,
            valid_before=payment.valid_before,
        )

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
        if self.free:
            return self._verify is not None and self._verify(digest, signature)
        return recover_address(digest, signature) == self.terms.receipt_key

    def covers(self, tokens_in: int, tokens_out: int) -> bool:
        """Whether the deposit is enough for these cumulative counts."""
        return amount_due(self.terms, tokens_in, tokens_out) <= self.terms.deposit

    def cost(self, meter: Meter) -> int:
        """Token units of the session so far."""
        return amount_due(self.terms, meter.tokens_in, meter.tokens_out)

    def pay_advance(self, meter: Meter, tokens_in: int, effects: Effects) -> bool:
        """Pay for input before the host quoted it, at most once a turn. False where nothing is to be paid."""
        return self._pay(meter.seq, meter.tokens_in + tokens_in, meter.tokens_out, meter.root, effects)

    def pay_input(self, meter: Meter, effects: Effects) -> None:
        """Pay for what the meter holds, before any output."""
        self._pay(meter.seq, meter.tokens_in, meter.tokens_out, meter.root, effects)

    def settle(self, receipt: Receipt, effects: Effects) -> None:
        """Answer a receipt that holds: by an ack where it is free, otherwise by its exact voucher."""
        checkpoint = receipt.checkpoint
        if self.free:
            effects.send(Ack(seq=checkpoint.tokens_out))
        effects.emit(Receipted(receipt))
        self._pay(checkpoint.seq, checkpoint.tokens_in, checkpoint.tokens_out, checkpoint.root, effects)

    def conclude(self, meter: Meter, effects: Effects) -> None:
        """The host was lost: sign for exactly what came, also for what no receipt covers. It isn't sent.

        A session that goes on forgets it: the exact vouchers of its receipts follow there.
        """
        last = self.final_voucher
        counts = (meter.tokens_in, meter.tokens_out)
        if self.payment is None or counts == ((0, 0) if last is None else (last.tokens_in, last.tokens_out)):
            return
        self._unsent = exact_voucher(
            self.payment,
            self._session,
            seq=meter.seq,
            tokens_in=counts[0],
            tokens_out=counts[1],
            root=meter.root,
        )
        effects.emit(Signed(self._unsent))

    def handed_over(self) -> None:
        """The host took the final voucher: it is the last one that both sides know."""
        self.last_voucher, self._unsent = self.final_voucher, None

    def _pay(self, seq: int, tokens_in: int, tokens_out: int, root: bytes, effects: Effects) -> bool:
        """Sign and send the exact voucher. False in a free session, where there is none."""
        if self.payment is None:
            return False
        voucher = exact_voucher(
            self.payment, self._session, seq=seq, tokens_in=tokens_in, tokens_out=tokens_out, root=root
        )
        self.last_voucher, self._unsent = voucher, None
        # In this order: no host may hold a voucher that our journal doesn't know. One that a crash kept from
        # being sent is in the journal, and a resume sends it.
        effects.emit(Signed(voucher))
        effects.send(voucher)
        return True


# ---- opening


def check_open(request: Open, payment: HostPayment, now: int, *, plain_account: bool = True) -> Refuse | None:
    """Why a host can't take these terms at ``now`` (epoch seconds), or None. It doesn't ask the chain.

    A 65-byte authorisation must be the payer's own signature; one of another length, and any where
    ``plain_account`` is False, is a contract's to judge: the role lets the ledger try it.
    """
    terms = request.terms
    if terms is None:
        detail = (
            f"this host asks {payment.price_in}/{payment.price_out} USDC units per million tokens in/out "
            f"and {payment.session_fee} a session: open a paid one"
        )
        return Refuse(code="payment_required", detail=detail)
    if request.authorisation is None:
        return Refuse(code="bad_request", detail="the terms came without the payer's authorisation")
    found = (
        _wrong_parties(request, terms, payment)
        or _wrong_price(terms, payment)
        or _wrong_times(request, terms, payment, now)
    )
    if found is not None:
        code, detail = found
        return Refuse(code=code, detail=detail)
    if plain_account and len(request.authorisation) == _PLAIN_SIGNATURE:
        digest = authorisation_digest(
            payment.token,
            payer=terms.payer,
            to=payment.market.contract,
            amount=terms.deposit,
            valid_before=request.valid_before,
            nonce=session_id(payment.market, terms),
        )
        if recover_address(digest, request.authorisation) != terms.payer:
            detail = "the authorisation is not the payer's signature for these terms on this chain"
            return Refuse(code="bad_request", detail=detail)
    return None


_Wrong = tuple[WireCode, str]


def _wrong_parties(request: Open, terms: SessionTerms, payment: HostPayment) -> _Wrong | None:
    wrong = ""
    if terms.model != request.model:
        wrong = "name another model than the request"
    elif terms.host != payment.wallet:
        wrong = f"pay 0x{terms.host.hex()}; this host's wallet is 0x{payment.wallet.hex()}"
    elif terms.receipt_key != payment.receipt_key:
        wrong = f"name another receipt key than this host's, 0x{payment.receipt_key.hex()}"
    elif any(
        party in (_NOBODY, payment.market.contract)
        for party in (terms.payer, terms.host, terms.voucher_key, terms.receipt_key)
    ):
        wrong = "name the zero address or the marketplace itself as a party"
    elif terms.payer == terms.host or terms.voucher_key in (terms.host, terms.payer):
        wrong = "need three different addresses for payer, host and voucher key"
    return ("bad_request", f"the terms {wrong}") if wrong else None


def _wrong_price(terms: SessionTerms, payment: HostPayment) -> _Wrong | None:
    prices, offered = (payment.price_in, payment.price_out), (terms.price_in, terms.price_out)
    if offered != prices:
        return "payment_required", (
            f"this host asks {prices[0]}/{prices[1]} USDC units per million tokens in/out; "
            f"the terms say {offered[0]}/{offered[1]}"
        )
    if terms.session_fee != payment.session_fee:
        return "payment_required", (
            f"this host asks {payment.session_fee} USDC units a session; the terms say {terms.session_fee}"
        )
    if terms.tip > terms.session_fee:
        return "bad_request", f"a tip of {terms.tip}; the contract takes at most the session fee"
    needed = max(terms.session_fee, payment.deposit_min, 1)
    if terms.deposit < needed:
        return "payment_required", f"a deposit of {terms.deposit} USDC units; at least {needed} are needed"
    return None


def _wrong_times(request: Open, terms: SessionTerms, payment: HostPayment, now: int) -> _Wrong | None:
    left = terms.expiry - now
    if not payment.expiry_min_s <= left <= payment.expiry_max_s:
        bounds = f"{payment.expiry_min_s} to {payment.expiry_max_s} s"
        return "bad_request", f"the terms expire in {left} s; this host takes {bounds}: check the clock"
    left = request.valid_before - now
    if not payment.valid_min_s <= left <= payment.valid_max_s:
        bounds = f"{payment.valid_min_s} to {payment.valid_max_s} s"
        return "bad_request", f"the authorisation ends in {left} s; this host takes {bounds}: check the clock"
    return None


# ---- paying


def exact_voucher(
    payment: ClientPayment, session: SessionId, *, seq: int, tokens_in: int, tokens_out: int, root: bytes
) -> Voucher:
    """The one voucher that is right for these cumulative counts."""
    amount = amount_due(payment.terms, tokens_in, tokens_out)
    unsigned = Voucher(
        seq=seq, tokens_in=tokens_in, tokens_out=tokens_out, amount=amount, root=root, signature=b""
    )
    return replace(unsigned, signature=payment.sign(voucher_digest(payment.market, session, unsigned)))


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


def resume_holds(terms: SessionTerms, digest: bytes, proof: bytes) -> bool:
    """Whether ``proof`` is the voucher key's signature."""
    return recover_address(digest, proof) == terms.voucher_key
