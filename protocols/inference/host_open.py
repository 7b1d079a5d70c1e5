"""How a host's session begins: free at once, paid when its deposit is taken, resumed by proof.

Each way gives the session or a refusal; that of a paid ``Open`` comes when the chain has answered, that of a
``Resume`` over no nonce that both sides know after a ``Challenge``. It knows nothing of turns, and of time
only what it has to wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import FreeTill, PaidTill, Till
from p2pnode.protocols.inference.commands import Opened, Relay
from p2pnode.protocols.inference.messages import Challenge, Open, Refuse, Resume
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.receipts import ReceiptChain
from p2pnode.protocols.inference.recovering import recover
from p2pnode.protocols.inference.session import (
    Admit,
    FindSession,
    HostTerms,
    LapsedSession,
    OpenSession,
)
from p2pnode.protocols.inference.taking_over import accept_of, goes_on, hand_over, proved, take_over
from p2pnode.protocols.typed_data import session_id


@dataclass(frozen=True, slots=True)
class _Relayed:
    """A paid ``Open`` that waits for the chain."""

    request: Open
    granted: HostTerms
    session: SessionId
    till: PaidTill


class Opening:
    """One stream's. ``holder`` is the machine that the session will be on."""

    def __init__(
        self,
        *,
        peer: PeerId,
        admit: Admit,
        find: FindSession | None,
        sign: Signer,
        epoch: int,
        draw: Callable[[int], bytes],
        effects: Effects,
        holder: object,
    ) -> None:
        self._peer, self._admit, self._find = peer, admit, find
        self._sign, self._epoch, self._draw = sign, epoch, draw
        self._effects, self._holder = effects, holder
        self._relayed: _Relayed | None = None
        self._challenge: bytes | None = None
        self.handed_over = False
        """Was the session only resumed to be paid? Then it ends."""

    @property
    def challenged(self) -> bool:
        """Must a proof over our nonce follow?"""
        return self._challenge is not None

    @property
    def relaying(self) -> bool:
        """Does a deposit have to land first?"""
        return self._relayed is not None

    def request(self, request: Open, now: float) -> OpenSession | Refuse | None:
        """The session, why there is none, or None while the deposit is relayed."""
        verdict = self._admit(request)
        if isinstance(verdict, Refuse):
            return verdict
        self._effects.cancel_timer("open")
        if request.terms is None and verdict.payment is None:
            return self._accept(request, verdict, SessionId(self._draw(32)), FreeTill(self._sign))
        if request.terms is None or verdict.payment is None:
            # A paid session must fail loudly rather than run free, and a free one never be billed.
            asked, served = ("paid", "free") if request.terms is not None else ("free", "paid")
            detail = f"this host serves {served} sessions only, not {asked} ones"
            return Refuse(code="bad_request", detail=detail)
        session = session_id(verdict.payment.market, request.terms)
        till = PaidTill(verdict.payment, session, request.terms)
        self._relayed = _Relayed(request, verdict, session, till)
        self._effects.set_timer("relay", now + verdict.relay_s)
        self._effects.emit(Relay(session, request))
        return None

    def landed(self) -> OpenSession | None:
        """The deposit was taken. Only the first time means anything."""
        relayed, self._relayed = self._relayed, None
        if relayed is None:
            return None
        self._effects.cancel_timer("relay")
        return self._accept(relayed.request, relayed.granted, relayed.session, relayed.till)

    def resume(self, request: Resume) -> OpenSession | Refuse | None:
        """The session, taken over from whichever stream had it; why not; or None for a challenge."""
        found = _gone() if self._find is None else self._find(request)
        if isinstance(found, LapsedSession) and found.rebuilt is not None:
            found = found.rebuilt
        if isinstance(found, Refuse):
            return found
        if self._challenge is None and self._needs_challenge(request, found):
            self._challenge = self._draw(32)
            self._effects.send(Challenge(nonce=self._challenge))
            return None
        answer = self._recover(request, found) if isinstance(found, LapsedSession) else None
        if answer is None and isinstance(found, OpenSession):
            answer = self._take_over(request, found)
        if isinstance(answer, OpenSession):
            self._effects.cancel_timer("open")
        return answer

    def _needs_challenge(self, request: Resume, found: OpenSession | LapsedSession) -> bool:
        """Is there no nonce that both sides know?"""
        if request.proof is None or isinstance(found, LapsedSession):
            return True
        till = found.till
        known = isinstance(till, PaidTill) and self._proof_nonce(request, found, till) is not None
        return found.unheard and not known

    def _proof_nonce(self, request: Resume, session: OpenSession, till: PaidTill) -> bytes | None:
        nonces = [session.nonce, session.former_nonce] if self._challenge is None else [self._challenge]
        return proved(request, till.terms, nonces, host=till.payment.peer, client=self._peer)

    def _recover(self, request: Resume, lapsed: LapsedSession) -> OpenSession | Refuse:
        payment = lapsed.granted.payment
        if payment is None:
            return _gone()
        if not proved(request, lapsed.terms, [self._challenge], host=payment.peer, client=self._peer):
            return _unproved()
        return recover(
            request,
            lapsed,
            payment=payment,
            epoch=self._epoch,
            nonce=self._draw(32),
            holder=self._holder,
            effects=self._effects,
        )

    def _take_over(self, request: Resume, session: OpenSession) -> OpenSession | Refuse:
        till, effects = session.till, self._effects
        if not isinstance(till, PaidTill):
            return Refuse(code="bad_request", detail="a free session can't be resumed: open a new one")
        proof_nonce = self._proof_nonce(request, session, till)
        if proof_nonce is None:
            return _unproved()
        if not goes_on(request, session):
            refusal = hand_over(request, session, holder=self._holder, effects=effects)
            self.handed_over = refusal is None
            return refusal or session
        effects.emit(Opened(session.session, session.model, resumed=True))
        nonce, holder = self._draw(32), self._holder
        take_over(request, session, proof_nonce=proof_nonce, holder=holder, nonce=nonce, effects=effects)
        return session

    def _accept(self, request: Open, granted: HostTerms, session: SessionId, till: Till) -> OpenSession:
        chain = ReceiptChain.begin(session, request.model, request.salt, self._epoch)
        opened = OpenSession(
            session=session,
            model=request.model,
            granted=granted,
            epoch=self._epoch,
            nonce=self._draw(32),
            meter=Meter(chain),
            till=till,
            holder=self._holder,
        )
        if isinstance(till, PaidTill):
            self._effects.on_send = till.sent.add
        self._effects.send(accept_of(opened))
        self._effects.emit(Opened(session, request.model))
        return opened


def _gone() -> Refuse:
    return Refuse(code="bad_request", detail="no such session here: open a new one")


def _unproved() -> Refuse:
    detail = "this is not the voucher key's signature for the session's last nonce and these peers"
    return Refuse(code="bad_request", detail=detail)
