"""Resuming at the host: prove first, then take the session over from whichever stream had it.

Nothing of the session changes before the voucher key's proof holds, so that a stranger (or the client's
own neighbour) can't end a stream that lives. It knows nothing of timers and streams.
"""

from __future__ import annotations

from p2pnode.ids import PeerId
from p2pnode.protocols.inference.commands import Issued, Paid
from p2pnode.protocols.inference.effects import Effects
from p2pnode.protocols.inference.messages import Accept, Checkpoint, Refuse, Resume
from p2pnode.protocols.inference.open_session import OpenSession
from p2pnode.protocols.inference.payment import resume_digest, resume_holds
from p2pnode.protocols.inference.till import PaidTill


def why_not(request: Resume, session: OpenSession, client: PeerId) -> Refuse | None:
    """Why this client may not resume from there, or None."""
    till = session.till
    if not isinstance(till, PaidTill):
        return Refuse(code="bad_request", detail="a free session can't be resumed: open a new one")
    if _proved_nonce(request, session, till, client) is None:
        detail = "this is not the voucher key's signature for the session's last nonce and these peers"
        return Refuse(code="bad_request", detail=detail)
    # A client asks its next turn only when it has all of the one before.
    next_turn = request.turn == session.turns + 1 and till.sent.answered == session.turns
    begins = request.received == till.sent.count if next_turn else request.turn == session.turns
    if not begins or till.sent.since(request.received) is None:
        detail = "this session can't go on from there: open a new one"
        return Refuse(code="bad_request", detail=detail)
    return None


def _proved_nonce(request: Resume, session: OpenSession, till: PaidTill, client: PeerId) -> bytes | None:
    """Which nonce the proof is for, if it holds."""
    for nonce in (session.nonce, session.former_nonce):
        if nonce is not None:
            digest = resume_digest(nonce, session.session, till.payment.peer, client)
            if resume_holds(till.terms, digest, request.proof):
                return nonce
    return None


def take_over(
    request: Resume, session: OpenSession, *, client: PeerId, holder: object, nonce: bytes, effects: Effects
) -> None:
    """End what was under way, accept, and say again what the client doesn't have. Only after ``why_not``."""
    till = session.till
    if not isinstance(till, PaidTill):
        return
    effects.on_send, effects.muted = till.sent.add, True
    session.interrupt(effects)
    if request.turn > session.turns:  # of which nothing arrived here
        session.begin_turn(request.turn)
        session.cancel_unserved(request.turn, effects)
    effects.on_send, effects.muted = None, False
    session.former_nonce = _proved_nonce(request, session, till, client)
    session.holder, session.nonce = holder, nonce
    if till.tab.paid is not None:  # the old stream's role may still be writing it down
        effects.emit(Paid(till.tab.paid))
    effects.send(accept_of(session))
    for message in till.sent.since(request.received) or ():
        if isinstance(message, Checkpoint):
            effects.emit(Issued(message))
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
