"""How a host is settled with: by acks in a free session, by vouchers in a paid one.

Both tills answer the same questions, so that what serves a turn needn't know which one it has. They
know nothing of prompts, engines or time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

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
from p2pnode.protocols.inference.replay import Outbox, SentLog
from p2pnode.protocols.typed_data import (
    TOKENS_PER_PRICE,
    Domain,
    amount_due,
    authorisation_digest,
    session_id,
    voucher_digest,
)


class FreeTill:
    """Nothing is owed; receipts are signed by the peer key."""

    session_fee = 0
    owed = False

    def __init__(self, sign: Signer) -> None:
        self._sign = sign

    def begin_turn(self, meter: Meter) -> None:
        """A prompt comes."""

    def affordable(self, _meter: Meter) -> int:
        """Output tokens that can still be paid."""
        return N_CTX_MAX

    def cost(self, _meter: Meter) -> int:
        """Token units so far."""
        return 0

    def issue(self, meter: Meter, effects: Effects) -> None:
        """Send a receipt."""
        effects.send(meter.issue(self._sign).checkpoint)

    def credit(self, message: Ack | Voucher, outbox: Outbox, _effects: Effects) -> bool:
        """True when it brings credit. Raises ``ProtocolError`` when it may not be said."""
        if isinstance(message, Voucher):
            msg = "Voucher is out of place in a free session"
            raise ProtocolError(msg)
        return outbox.acknowledge(message.seq)


class PaidTill:
    """Every voucher is made durable before it is served for, every receipt at the latest with its voucher."""

    def __init__(
        self, payment: HostPayment, session: SessionId, terms: SessionTerms, sent: SentLog | None = None
    ) -> None:
        self.payment, self.terms = payment, terms
        self.tab = Tab(payment.market, session, terms)
        self.sent = sent or SentLog()
        self._unpaid: deque[Receipt] = deque()
        self.session_fee = terms.session_fee

    @property
    def owed(self) -> bool:
        """Is a voucher due?"""
        return self.tab.owed

    def begin_turn(self, meter: Meter) -> None:
        """A prompt comes: the client holds all that was said before."""
        self.sent.forget(self.sent.count)
        self._unpaid.clear()
        self.tab.begin_turn(
            self.tab.due(
                seq=meter.seq, tokens_in=meter.tokens_in, tokens_out=meter.tokens_out, root=meter.root
            )
        )

    def affordable(self, meter: Meter) -> int:
        """Output tokens that the deposit still covers."""
        return tokens_affordable(self.terms, meter.tokens_in, meter.tokens_out)

    def cost(self, meter: Meter) -> int:
        """Token units so far."""
        return amount_due(self.terms, meter.tokens_in, meter.tokens_out)

    def issue(self, meter: Meter, effects: Effects) -> None:
        """A receipt, written down in order; its voucher is due from now on."""
        receipt = meter.issue(self.payment.sign)
        told = receipt.checkpoint
        self._unpaid.append(receipt)
        effects.emit(Issued(receipt))
        effects.send(told)
        self.tab.owe(
            self.tab.due(
                seq=told.seq,
                tokens_in=told.tokens_in,
                tokens_out=told.tokens_out,
                root=told.root,
                frames=self.sent.count,
            )
        )

    def issue_again(self, told: Checkpoint, effects: Effects) -> None:
        """Say a receipt of the log once more. Whoever issued it may still be writing it down."""
        for receipt in self._unpaid:
            if receipt.checkpoint == told:
                effects.emit(Issued(receipt))
        effects.send(told)

    def owe_input(self, meter: Meter, billed: int, outbox: Outbox, effects: Effects) -> None:
        """A turn's input was quoted just now. An advance that is exactly right is taken at once."""
        if billed == 0:
            return  # its voucher would say what the last one said
        due = self.tab.due(
            seq=meter.seq,
            tokens_in=meter.tokens_in + billed,
            tokens_out=meter.tokens_out,
            root=meter.root,
            frames=self.sent.count - 1,  # an advance was signed before the quote was seen
        )
        advance = self.tab.owe(due)
        if advance is not None:
            self.credit(advance, outbox, effects)

    def credit(self, message: Ack | Voucher, outbox: Outbox, effects: Effects) -> bool:
        """True when it pays for something. Raises ``ProtocolError`` when it isn't exact."""
        if isinstance(message, Ack):
            msg = "Ack is out of place in a paid session"
            raise ProtocolError(msg)
        paid = self.tab.take(message)
        if paid is None:
            return False
        effects.emit(Paid(message))
        self.sent.forget(paid.frames)
        while self._unpaid and self._unpaid[0].checkpoint.seq <= paid.seq:
            self._unpaid.popleft()
        outbox.acknowledge(paid.tokens_out)
        return True


Till: TypeAlias = FreeTill | PaidTill


# The host's tab: the exact vouchers it would take now, and the last one it took.
#
# A voucher is right or it is a violation; there is no third case but one. A client that counted its input
# itself pays together with the prompt, before it can know what the host's cache makes free: such an
# *advance* is exact for another count, one per turn is let through, and it is used only if it turns out
# to be the quote's. It knows nothing of streams, text or time.


_UNMATCHED: Final = "a voucher that is not for what was delivered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """One voucher as it must be. ``frames`` were sent before it could be signed."""

    seq: int
    tokens_in: int
    tokens_out: int
    amount: int
    root: bytes
    frames: int = 0

    def is_what(self, voucher: Voucher) -> bool:
        """Does it say exactly this?"""
        told = (voucher.seq, voucher.tokens_in, voucher.tokens_out, voucher.amount, voucher.root)
        return told == (self.seq, self.tokens_in, self.tokens_out, self.amount, self.root)


class Tab:
    """The vouchers of one session."""

    def __init__(self, market: Domain, session: SessionId, terms: SessionTerms) -> None:
        self._market, self._session, self._terms = market, session, terms
        self._due: deque[Due] = deque()
        self._start: Due | None = None  # where the present turn began
        self._advance_open = False
        self._advance: Voucher | None = None
        self.paid: Voucher | None = None
        """The last voucher taken: the best there is."""

    @property
    def owed(self) -> bool:
        """Is there anything the client has not signed for?"""
        return bool(self._due)

    def due(self, *, seq: int, tokens_in: int, tokens_out: int, root: bytes, frames: int = 0) -> Due:
        """These counts, priced."""
        amount = amount_due(self._terms, tokens_in, tokens_out)
        return Due(
            seq=seq, tokens_in=tokens_in, tokens_out=tokens_out, amount=amount, root=root, frames=frames
        )

    def begin_turn(self, start: Due) -> None:
        """A prompt comes; an advance on it would go on from ``start``."""
        self._start, self._advance = start, None
        self.allow_advance()

    def allow_advance(self) -> None:
        """One voucher may be an advance, or what is left of one that a lost stream swallowed."""
        self._advance_open = self._start is not None

    def owe(self, due: Due) -> Voucher | None:
        """From now on this is due. Returns the advance, if it is exactly that: it still has to be taken."""
        self._due.append(due)
        advance, self._advance = self._advance, None
        return advance if advance is not None and due.is_what(advance) else None

    def waive_last(self) -> None:
        """The input that was quoted last is not billed after all."""
        self._advance = None
        if self._due:
            self._due.pop()

    def take(self, voucher: Voucher) -> Due | None:
        """What it pays; None when it changes nothing. Raises ``ProtocolError`` for any that isn't exact."""
        if voucher == self.paid:
            return None
        for place, due in enumerate(self._due):
            if due.is_what(voucher):
                self._check_signature(voucher)
                for _ in range(place + 1):
                    self._due.popleft()
                self.paid = voucher
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
        if not exact.is_what(voucher):
            return f"a voucher of {voucher.amount} for counts that cost {exact.amount}"
        if voucher.amount > self._terms.deposit:
            return f"a voucher of {voucher.amount} above the deposit of {self._terms.deposit}"
        best = self.paid
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
        start = self._start
        if not self._advance_open or start is None or voucher.tokens_in <= start.tokens_in:
            raise ProtocolError(_UNMATCHED)
        other = self.due(
            seq=start.seq, tokens_in=voucher.tokens_in, tokens_out=start.tokens_out, root=start.root
        )
        if not other.is_what(voucher):
            raise ProtocolError(_UNMATCHED)
        self._check_signature(voucher)
        self._advance_open, self._advance = False, voucher

    def _check_signature(self, voucher: Voucher) -> None:
        digest = voucher_digest(self._market, self._session, voucher)
        if recover_address(digest, voucher.signature) != self._terms.voucher_key:
            msg = "a voucher that the voucher key did not sign"
            raise ProtocolError(msg)


# How a client settles: by acks in a free session, by vouchers in a paid one. The host's is ``till.py``.
#
# A purse signs for what its owner counted and checked, to the unit, and never above the deposit. It knows
# nothing of prompts, turns or time.


class FreePurse:
    """Costs nothing; the host's peer key signs receipts."""

    last_voucher: Voucher | None = None
    final_voucher: Voucher | None = None
    payable = False

    def __init__(self, host: PeerId, verify: Callable[[str, bytes, bytes], bool]) -> None:
        self._host, self._verify = host, verify

    def request(self, model: ModelId, salt: bytes) -> Open:
        """What opens the session."""
        return Open(model=model, salt=salt)

    def fault_of(self, _accept: Accept) -> str | None:
        """What is wrong with what the host accepted, if anything."""
        return None

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Is this the host's signature on a receipt?"""
        return self._verify(self._host, digest, signature)

    def covers(self, _tokens_in: int, _tokens_out: int) -> bool:
        """Is there enough for these cumulative counts?"""
        return True

    def cost(self, _meter: Meter) -> int:
        """Token units so far."""
        return 0

    def advance(self, _meter: Meter, _tokens_in: int, _effects: Effects) -> Voucher | None:
        """Pay for input before the host quoted it."""
        return None

    def pay_input(self, meter: Meter, effects: Effects) -> None:
        """Pay for what the meter holds, before any output."""

    def settle(self, receipt: Receipt, effects: Effects) -> None:
        """Answer a receipt that holds."""
        effects.send(Ack(seq=receipt.checkpoint.tokens_out))
        effects.emit(Receipted(receipt))

    def conclude(self, meter: Meter, effects: Effects) -> None:
        """The host was lost: nothing is owed."""


class PaidPurse:
    """Every voucher is made durable before it is sent."""

    payable = True

    def __init__(self, payment: ClientPayment) -> None:
        self.payment = payment
        self.session: SessionId = payment.session
        self.last_voucher: Voucher | None = None
        """The last one that was sent."""
        self._unsent: Voucher | None = None

    @property
    def final_voucher(self) -> Voucher | None:
        """What a host that was lost is handed when it returns."""
        return self._unsent or self.last_voucher

    def request(self, model: ModelId, salt: bytes) -> Open:
        """What opens the session."""
        payment = self.payment
        return Open(
            model=model,
            salt=salt,
            terms=payment.terms,
            authorisation=payment.authorisation,
            valid_before=payment.valid_before,
        )

    def fault_of(self, accept: Accept) -> str | None:
        """What is wrong with what the host accepted, if anything."""
        if accept.session != self.session:
            return "accepted another session than the one that was paid for"
        fee = self.payment.terms.session_fee
        if accept.session_fee != fee:
            return f"asks {accept.session_fee} for the session; {fee} was agreed"
        return None

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Is this the receipt key's signature?"""
        return recover_address(digest, signature) == self.payment.terms.receipt_key

    def covers(self, tokens_in: int, tokens_out: int) -> bool:
        """Is there enough for these cumulative counts?"""
        return amount_due(self.payment.terms, tokens_in, tokens_out) <= self.payment.terms.deposit

    def cost(self, meter: Meter) -> int:
        """Token units so far."""
        return amount_due(self.payment.terms, meter.tokens_in, meter.tokens_out)

    def advance(self, meter: Meter, tokens_in: int, effects: Effects) -> Voucher | None:
        """Pay for input before the host quoted it. At most one may be under way."""
        return self._sign(meter.seq, meter.tokens_in + tokens_in, meter.tokens_out, meter.root, effects)

    def pay_input(self, meter: Meter, effects: Effects) -> None:
        """Pay for what the meter holds, before any output."""
        self._sign(meter.seq, meter.tokens_in, meter.tokens_out, meter.root, effects)

    def settle(self, receipt: Receipt, effects: Effects) -> None:
        """Answer a receipt that holds."""
        effects.emit(Receipted(receipt))
        told = receipt.checkpoint
        self._sign(told.seq, told.tokens_in, told.tokens_out, told.root, effects)

    def conclude(self, meter: Meter, effects: Effects) -> None:
        """The host was lost: sign for exactly what came, also for what no receipt covers. It isn't sent.

        A session that goes on forgets it: there the exact vouchers of its receipts follow.
        """
        last = self.final_voucher
        counts = (meter.tokens_in, meter.tokens_out)
        if counts == ((0, 0) if last is None else (last.tokens_in, last.tokens_out)):
            return
        self._unsent = self._exact(meter.seq, *counts, meter.root)
        effects.emit(Signed(self._unsent))

    def handed_over(self) -> None:
        """The host took the final voucher: it is the last one that both sides know."""
        self.last_voucher, self._unsent = self.final_voucher, None

    def _sign(self, seq: int, tokens_in: int, tokens_out: int, root: bytes, effects: Effects) -> Voucher:
        self.last_voucher, self._unsent = self._exact(seq, tokens_in, tokens_out, root), None
        effects.emit(Signed(self.last_voucher))
        effects.send(self.last_voucher)
        return self.last_voucher

    def _exact(self, seq: int, tokens_in: int, tokens_out: int, root: bytes) -> Voucher:
        return exact_voucher(
            self.payment, self.session, seq=seq, tokens_in=tokens_in, tokens_out=tokens_out, root=root
        )


Purse: TypeAlias = FreePurse | PaidPurse


# What a paid session rests on: the terms a host takes, the vouchers a client signs, the proof of a resume.
#
# Pure: keys are injected as signers, time is an argument, the chain is asked by the roles. ``tab.py`` and
# ``purse.py`` keep the running accounts of the two sides. All amounts are token units; nothing is rounded
# but the price of the tokens, and that once, up (``typed_data.amount_due``).


EXPIRY_MAX_S: Final = 432_000
"""As the contract has it: five days."""
EXPIRY_MIN_S: Final = 1_800
"""A session must be able to live for a while before its host must settle it."""
VALID_MAX_S: Final = 600
"""An authorisation lives at most so long."""
VALID_MIN_S: Final = 100
"""So long its relay may take."""
_RESUME_TAG: Final = keccak256(b"p2pnode/resume/1")
_PLAIN_SIGNATURE: Final = 65
_NOBODY: Final = bytes(20)


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
    expiry_max_s: int = EXPIRY_MAX_S
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


# ---- opening


def check_open(request: Open, payment: HostPayment, now: int, *, plain_account: bool = True) -> Refuse | None:
    """Why a host can't take these terms at ``now`` (epoch seconds), or None. The chain isn't asked.

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
    prices, told = (payment.price_in, payment.price_out), (terms.price_in, terms.price_out)
    if told != prices:
        return "payment_required", (
            f"this host asks {prices[0]}/{prices[1]} USDC units per million tokens in/out; "
            f"the terms say {told[0]}/{told[1]}"
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
    """How many more output tokens the deposit pays for, after these cumulative counts."""
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
    """Was it the voucher key that signed?"""
    return recover_address(digest, proof) == terms.voucher_key
