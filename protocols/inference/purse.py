"""How a client settles: by acks in a free session, by vouchers in a paid one. The host's is ``till.py``.

A purse signs for what its owner counted and checked, to the unit, and never above the deposit. It knows
nothing of prompts, turns or time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.protocols.crypto import recover_address
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.commands import Receipted, Signed
from p2pnode.protocols.inference.messages import Accept, Ack, Open, Receipt, Voucher
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.payment import ClientPayment, exact_voucher
from p2pnode.protocols.typed_data import amount_due


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
