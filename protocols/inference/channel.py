"""How a host is settled with: by acks in a free session, by vouchers in a paid one.

Both tills answer the same questions, so that what serves a turn needn't know which one it has. They
know nothing of prompts, engines or time.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from p2pnode.errors import ProtocolError
from p2pnode.ids import SessionId
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.commands import Issued, Paid
from p2pnode.protocols.inference.messages import (
    N_CTX_MAX,
    Ack,
    Checkpoint,
    Receipt,
    SessionTerms,
    Voucher,
)
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.outbox import Outbox
from p2pnode.protocols.inference.payment import HostPayment, tokens_affordable
from p2pnode.protocols.inference.replay import SentLog
from p2pnode.protocols.inference.tab import Tab
from p2pnode.protocols.typed_data import amount_due


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
