"""A session goes on after its host restarted: rebuilt from the journal and from what its client holds.

The client shows the host's own last receipt and a final voucher, exact for what it received. The host checks
both against its key and its journal, and goes on from that receipt's root, under this start's epoch, with the
voucher's counts as delivered and paid. Neither side remembers the ids in between: no receipt will cover them,
and the voucher has paid for them. A client that shows less than it has paid for is refused; one that keeps
its final voucher back costs its host a window, once for each restart. It knows nothing of streams.
"""

from __future__ import annotations

from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import PaidTill
from p2pnode.protocols.inference.commands import Issued, Opened, Paid
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY, N_CTX_MAX, Receipt, Refuse, Resume
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.outbox import Outbox
from p2pnode.protocols.inference.payment import HostPayment
from p2pnode.protocols.inference.receipts import ReceiptChain, receipt_holds
from p2pnode.protocols.inference.replay import SentLog
from p2pnode.protocols.inference.session import LapsedSession, OpenSession
from p2pnode.protocols.inference.taking_over import accept_of


def recover(
    request: Resume,
    lapsed: LapsedSession,
    *,
    payment: HostPayment,
    epoch: int,
    nonce: bytes,
    holder: object,
    effects: Effects,
) -> OpenSession | Refuse:
    """The session, open again under ``epoch``, or why not. Only after the proof held."""
    session, terms = lapsed.session, lapsed.terms
    till = PaidTill(payment, session, terms, SentLog(request.received, request.turn))
    till.tab.paid = lapsed.voucher
    chain = ReceiptChain.begin(session, terms.model, lapsed.salt, epoch)
    if (wrong := _wrong(request, lapsed, till, chain)) != "":
        return Refuse(code="bad_request", detail=f"{wrong}: open a new session")
    receipt, voucher = request.receipt, request.voucher
    if receipt is not None:
        chain.root, chain.seq = receipt.checkpoint.root, receipt.checkpoint.seq
    if voucher is not None:
        chain.tokens_in, chain.tokens_out = voucher.tokens_in, voucher.tokens_out
    till.tab.paid = voucher
    opened = OpenSession(
        session=session,
        model=terms.model,
        granted=lapsed.granted,
        epoch=epoch,
        nonce=nonce,
        meter=Meter(chain),
        till=till,
        outbox=Outbox(chain.tokens_out),
        turns=request.turn,
        holder=holder,
        unheard=True,
    )
    lapsed.rebuilt = opened
    effects.emit(Opened(session, terms.model, resumed=True, recovered=True))
    if receipt is not None and _written(receipt, lapsed) is None:
        effects.emit(Issued(receipt))  # a crash took ours; it completes the chain
    if voucher is not None and voucher != lapsed.voucher:
        effects.emit(Paid(voucher))
    effects.send(accept_of(opened))
    effects.on_send = till.sent.add
    return opened


def _wrong(request: Resume, lapsed: LapsedSession, till: PaidTill, chain: ReceiptChain) -> str:
    """What is wrong with what the client shows, or ""."""
    receipt, voucher = request.receipt, request.voucher
    base = (0, chain.root, 0, 0)
    if receipt is not None:
        told = receipt.checkpoint
        base = (told.seq, told.root, told.tokens_in, told.tokens_out)
        if not receipt_holds(lapsed.session, receipt, lapsed.terms.receipt_key):
            return "this is no receipt of this host"
        if receipt.epoch >= chain.epoch:
            return "this receipt is of no earlier start of this host"
        written = _written(receipt, lapsed)
        if written is not None and written.checkpoint.root != told.root:
            return "this host wrote down another receipt for that place"
    best = lapsed.voucher
    if voucher is None:
        return "" if best is None and receipt is None else "this host was paid more than is shown"
    if (voucher.seq, voucher.root) != base[:2] or voucher.tokens_in < base[2] or voucher.tokens_out < base[3]:
        return "the voucher is not for what followed the receipt"
    known_in, known_out = (
        base[2:] if best is None else (max(base[2], best.tokens_in), max(base[3], best.tokens_out))
    )
    if voucher.tokens_in > known_in + N_CTX_MAX or voucher.tokens_out > known_out + CHECKPOINT_EVERY:
        return "the voucher is for more than one turn's input and what a receipt would cover"
    return till.tab.why_not_final(voucher)


def _written(receipt: Receipt, lapsed: LapsedSession) -> Receipt | None:
    return lapsed.issued(receipt.epoch, receipt.checkpoint.seq)
