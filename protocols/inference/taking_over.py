"""Resuming at the host: prove first, then take the session over from whichever stream had it.

Nothing of the session changes before the voucher key's proof holds, so that a stranger (or the client's
own neighbour) can't end a stream that lives. A client that lost its memory can't go on with a session that
lives here: it may only hand over its last voucher, which ends it. It knows nothing of timers and streams.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pnode.ids import PeerId
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import PaidTill
from p2pnode.protocols.inference.commands import Opened, Paid
from p2pnode.protocols.inference.messages import Accept, Checkpoint, Refuse, Resume, SessionTerms
from p2pnode.protocols.inference.payment import resume_digest, resume_holds
from p2pnode.protocols.inference.session import OpenSession


def goes_on(request: Resume, session: OpenSession) -> bool:
    """Does the client stand where this session can go on from?"""
    till = session.till
    if not isinstance(till, PaidTill):
        return False
    # A client asks its next turn only when it has all of the one before.
    next_turn = request.turn == session.turns + 1 and till.sent.answered == session.turns
    begins = request.received == till.sent.count if next_turn else request.turn == session.turns
    return begins and till.sent.since(request.received) is not None


def proved(
    request: Resume, terms: SessionTerms, nonces: Sequence[bytes | None], *, host: PeerId, client: PeerId
) -> bytes | None:
    """Which of the nonces the proof is for, if it holds."""
    for nonce in nonces:
        if nonce is not None and request.proof is not None:
            digest = resume_digest(nonce, request.session, host, client)
            if resume_holds(terms, digest, request.proof):
                return nonce
    return None


def hand_over(request: Resume, session: OpenSession, *, holder: object, effects: Effects) -> Refuse | None:
    """Take the last voucher of a client that lost its memory; the session then ends.

    It pays for no more than was sent and for no less than was paid before. What it leaves unpaid is lost to
    the host, as when the client had not come back, and so nothing more is served.
    """
    till, voucher = session.till, request.voucher
    if not isinstance(till, PaidTill) or voucher is None:
        return _nowhere()
    meter = session.meter
    if (voucher.seq, voucher.tokens_in, voucher.tokens_out) != (
        min(voucher.seq, meter.seq),
        min(voucher.tokens_in, meter.tokens_in),
        min(voucher.tokens_out, meter.tokens_out),
    ):
        return Refuse(code="bad_request", detail="a voucher for more than was sent in this session")
    if (wrong := till.tab.why_not_final(voucher)) != "":
        return Refuse(code="bad_request", detail=wrong)
    effects.emit(Opened(session.session, session.model, resumed=True))
    effects.muted = True
    session.interrupt(effects)
    effects.muted = False
    session.holder = holder
    till.tab.paid = voucher
    effects.emit(Paid(voucher))
    effects.send(accept_of(session))
    return None


def _nowhere() -> Refuse:
    return Refuse(code="bad_request", detail="this session can't go on from there: open a new one")


def take_over(
    request: Resume,
    session: OpenSession,
    *,
    proof_nonce: bytes,
    holder: object,
    nonce: bytes,
    effects: Effects,
) -> None:
    """End what was under way, accept, and say again what the client doesn't have.

    Only where it ``goes_on`` and was ``proved`` over ``proof_nonce``.
    """
    till = session.till
    if not isinstance(till, PaidTill):
        return
    effects.on_send, effects.muted = till.sent.add, True
    session.interrupt(effects)
    if request.turn > session.turns:  # of which nothing arrived here
        session.begin_turn(request.turn)
        session.cancel_unserved(request.turn, effects)
    effects.on_send, effects.muted = None, False
    session.former_nonce = proof_nonce
    session.holder, session.nonce = holder, nonce
    if till.tab.paid is not None:  # the old stream's role may still be writing it down
        effects.emit(Paid(till.tab.paid))
    effects.send(accept_of(session))
    for message in till.sent.since(request.received) or ():
        if isinstance(message, Checkpoint):
            till.issue_again(message, effects)
        else:
            effects.send(message)
    effects.on_send = till.sent.add


def accept_of(session: OpenSession) -> Accept:
    """What tells a client that it has the session."""
    return Accept(
        session=session.session,
        nonce=session.nonce,
        epoch=session.epoch,
        n_ctx=session.granted.n_ctx,
        session_fee=session.till.session_fee,
    )
