"""How a host's session begins: free at once, paid when its deposit is taken, resumed by proof.

Each way gives the session or a refusal; that of a paid ``Open`` comes when the chain has answered, that of a
``Resume`` over no nonce that both sides know after a ``Challenge``.

Nothing of a live session changes before the voucher key's proof holds, so that a stranger (or the client's
own neighbour) can't end a stream that lives. A client that lost its memory can't go on with a session that
lives here: it may only hand over its last voucher, which ends it.

A session of an earlier start is rebuilt from the journal and from what its client holds: the host's own last
receipt and a final voucher, exact for what it received. The host checks both against its key and its journal,
and goes on from that receipt's root, under this start's epoch, with the voucher's counts as delivered and
paid. Neither side remembers the ids in between: no receipt will cover them, and the voucher has paid for
them. A client that shows less than it has paid for is refused; one that keeps its final voucher back costs
its host a window, once for each restart.

It knows nothing of turns, and of time only what it has to wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.crypto import Recover, Signer
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.inference.channel import (
    ChannelReceiver,
    HostTerms,
    free_terms,
    resume_digest,
    resume_holds,
)
from p2pnode.protocols.inference.commands import Issued, Opened, Paid, Probe, Relay
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    N_CTX_MAX,
    TURNS_MAX,
    Accept,
    Challenge,
    Checkpoint,
    Open,
    Receipt,
    Refuse,
    Resume,
    SessionTerms,
    Voucher,
)
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.open_session import Admit, FindSession, LapsedSession, OpenSession
from p2pnode.protocols.inference.receipts import ReceiptChain, receipt_holds
from p2pnode.protocols.inference.replay import ReplayBuffer
from p2pnode.protocols.typed_data import session_id

PROBE_S: Final = 10.0
"""A stream that was heard within this time keeps its session from another process of the client."""


@dataclass(frozen=True, slots=True)
class _Relayed:
    """A paid ``Open`` whose deposit is on its way to the chain."""

    request: Open
    granted: HostTerms
    session: SessionId


class Handshake:
    """The handshake of one stream. ``holder`` is the machine that will hold the session."""

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
        self._probed: tuple[Resume, bytes] | None = None
        """A resume that was proved, over this nonce, while another process may use the session."""
        self._challenge: bytes | None = None
        self.handed_over = False
        """Whether the session was only resumed to be paid. Then it ends."""

    @property
    def challenged(self) -> bool:
        """Whether a proof over our nonce must follow."""
        return self._challenge is not None

    @property
    def probing(self) -> bool:
        """Whether the stream that has the session is asked whether it is still there."""
        return self._probed is not None

    @property
    def relaying(self) -> bool:
        """Whether the deposit is on its way to the chain."""
        return self._relayed is not None

    def request(self, request: Open, now: float) -> OpenSession | Refuse | None:
        """The session, why there is none, or None while the deposit is relayed."""
        verdict = self._admit(request)
        if isinstance(verdict, Refuse):
            return verdict
        self._effects.cancel_timer("open")
        if request.terms is None and verdict.payment is None:
            session = SessionId(self._draw(32))
            return self._accept(request, verdict, session, now)
        if request.terms is None or verdict.payment is None:
            # A paid session must fail loudly rather than run free, and a free one never be billed.
            asked, served = ("paid", "free") if request.terms is not None else ("free", "paid")
            detail = f"this host serves {served} sessions only, not {asked} ones"
            return Refuse(code="bad_request", detail=detail)
        session = session_id(verdict.payment.market, request.terms)
        self._relayed = _Relayed(request, verdict, session)
        self._effects.set_timer("relay", now + verdict.relay_s)
        self._effects.emit(Relay(session, request, verdict.window))
        return None

    def landed(self, now: float) -> OpenSession | None:
        """The deposit was taken: the session. None from the second time on."""
        relayed, self._relayed = self._relayed, None
        if relayed is None:
            return None
        self._effects.cancel_timer("relay")
        return self._accept(relayed.request, relayed.granted, relayed.session, now)

    def resume(self, request: Resume, now: float) -> OpenSession | Refuse | None:
        """The session, taken from whichever stream had it, or why there is none.

        None for a challenge, and while the stream that has it is asked whether it is still there.
        """
        found = self._look_up(request)
        if isinstance(found, Refuse):
            return found
        if isinstance(found, OpenSession) and found.channel.free and not found.granted.keep_s:
            return Refuse(code="bad_request", detail="this free session is not kept: open a new one")
        if self._challenge is None and self._needs_challenge(request, found):
            self._challenge = self._draw(32)
            self._effects.send(Challenge(nonce=self._challenge))
            return None
        proof_nonce = self._proof_nonce(request, found)
        if proof_nonce is None:
            return _unproved()
        if isinstance(found, OpenSession) and self._is_used(request, found):
            if now - found.heard_at < PROBE_S:
                return _in_use()
            self._probed = (request, proof_nonce)
            self._effects.cancel_timer("open")
            self._effects.set_timer("probe", now + PROBE_S)
            self._effects.emit(Probe(found.session))
            return None
        return self._proceed(request, found, proof_nonce, now)

    def in_use(self) -> Refuse | None:
        """The stream that has the session has answered. None where nobody waits for that."""
        probed, self._probed = self._probed, None
        return _in_use() if probed is not None else None

    def unanswered(self, now: float) -> OpenSession | Refuse | None:
        """The stream that has the session did not answer: whoever proved itself gets the session."""
        probed, self._probed = self._probed, None
        if probed is None:
            return None
        request, proof_nonce = probed
        found = self._look_up(request)
        return found if isinstance(found, Refuse) else self._proceed(request, found, proof_nonce, now)

    def _look_up(self, request: Resume) -> OpenSession | LapsedSession | Refuse:
        return _gone() if self._find is None else self._find(request)

    @staticmethod
    def _is_used(request: Resume, session: OpenSession) -> bool:
        """Whether a stream of another process has it, which may be alive."""
        return session.holder is not None and session.holder_id != request.holder

    def _proceed(
        self, request: Resume, found: OpenSession | LapsedSession, proof_nonce: bytes, now: float
    ) -> OpenSession | Refuse:
        """Give the session to this stream. Only after the proof held."""
        knows = self._challenge is None and isinstance(found, OpenSession) and goes_on(request, found)
        if isinstance(found, OpenSession) and not knows and found.granted.keep_s:
            # Its client knows no more of it than what was paid: it goes on as if it had been left.
            found.detach()
            again = self._look_up(request)
            if isinstance(again, Refuse):
                return again
            found = again
        answer: OpenSession | Refuse
        if isinstance(found, LapsedSession):
            answer = self._recover(request, found, now)
        else:
            answer = self._take_over(request, found, proof_nonce, now)
        if isinstance(answer, OpenSession):
            self._effects.cancel_timer("open")
        return answer

    def _needs_challenge(self, request: Resume, found: OpenSession | LapsedSession) -> bool:
        """Whether there is no nonce that both sides know."""
        if request.proof is None or isinstance(found, LapsedSession):
            return True
        return found.unheard and self._proof_nonce(request, found) is None

    def _proof_nonce(self, request: Resume, found: OpenSession | LapsedSession) -> bytes | None:
        payment = found.granted.payment
        host = payment.peer if payment is not None else found.granted.host
        if host is None:
            return None
        if self._challenge is not None:
            nonces: list[bytes | None] = [self._challenge]
        else:
            nonces = [found.nonce, found.former_nonce] if isinstance(found, OpenSession) else []
        terms = found.channel.terms if isinstance(found, OpenSession) else found.terms
        recover = found.granted.recover
        return proved(request, terms, nonces, host=host, client=self._peer, recover=recover)

    def _recover(self, request: Resume, lapsed: LapsedSession, now: float) -> OpenSession | Refuse:
        rebuilt = rebuild(request, lapsed, sign=self._sign, epoch=self._epoch)
        if isinstance(rebuilt, Refuse):
            return rebuilt
        return rebuilt.open(
            request, nonce=self._draw(32), holder=self._holder, effects=self._effects, now=now
        )

    def _take_over(
        self, request: Resume, session: OpenSession, proof_nonce: bytes, now: float
    ) -> OpenSession | Refuse:
        effects = self._effects
        if not goes_on(request, session):
            refusal = hand_over(request, session, holder=self._holder, effects=effects)
            self.handed_over = refusal is None
            return refusal or session
        session.holder_id, session.heard_at = request.holder, now
        # First: the role must know whose session this is before it is given receipts and vouchers of it.
        effects.emit(Opened(session.session, session.model, resumed=True))
        nonce, holder = self._draw(32), self._holder
        take_over(request, session, proof_nonce=proof_nonce, holder=holder, nonce=nonce, effects=effects)
        return session

    def _accept(self, request: Open, granted: HostTerms, session: SessionId, now: float) -> OpenSession:
        chain = ReceiptChain.begin(session, request.model, request.salt, self._epoch)
        opened = OpenSession(
            session=session,
            model=request.model,
            granted=granted,
            epoch=self._epoch,
            nonce=self._draw(32),
            channel=_channel(
                session,
                self._sign,
                Meter(chain),
                granted,
                terms=request.terms or free_terms(request.model, request.resume_key),
            ),
            effects=self._effects,
            holder=self._holder,
            salt=request.salt,
            holder_id=request.holder,
            heard_at=now,
        )
        if not opened.channel.free:
            self._effects.on_send = opened.channel.replay.add
        self._effects.send(accept_of(opened))
        self._effects.emit(Opened(session, request.model))
        return opened


def _channel(
    session: SessionId,
    sign: Signer,
    meter: Meter,
    granted: HostTerms,
    *,
    terms: SessionTerms,
    replay: ReplayBuffer | None = None,
) -> ChannelReceiver:
    """The account of a session: a free one's receipts are signed by the peer key, that is ``sign``."""
    payment = granted.payment
    if payment is None:
        return ChannelReceiver(
            session, sign, meter, terms=terms, window=granted.window, recover=granted.recover
        )
    return ChannelReceiver(
        session,
        payment.sign,
        meter,
        market=payment.market,
        terms=terms,
        replay=replay,
        window=granted.window,
        recover=granted.recover,
    )


def _in_use() -> Refuse:
    return Refuse(code="in_use", detail="another process or machine uses this session now: wait, or open one")


def _gone() -> Refuse:
    return Refuse(code="bad_request", detail="no such session here: open a new one")


def _unproved() -> Refuse:
    detail = "this is not the voucher key's signature for the session's last nonce and these peers"
    return Refuse(code="bad_request", detail=detail)


# ---- resuming a session that lives here


def goes_on(request: Resume, session: OpenSession) -> bool:
    """Whether the client stands where this session can go on from."""
    replay, turns, turns_max = session.channel.replay, request.turns, session.granted.turns_max
    # Bounded before anything is counted up to it.
    if not session.asked <= request.turn <= session.asked + turns_max:
        return False
    if replay.since(request.received) is None:
        return False
    arrived = {turn for turn in turns if turn <= session.asked}
    unasked = tuple(turn for turn in turns if turn > session.asked)
    # Each turn that it has no answer of is under way here, or its answer is sent again, or it never arrived.
    known = {*session.turns, *replay.answered_since(request.received)}
    return (
        turns == tuple(sorted(set(turns)))
        and (arrived == known or session.unheard)  # it may not know yet that a restart ended its turns
        and unasked == tuple(range(session.asked + 1, request.turn + 1))
        and len(turns) <= turns_max
    )


def proved(
    request: Resume,
    terms: SessionTerms,
    nonces: Sequence[bytes | None],
    *,
    host: PeerId,
    client: PeerId,
    recover: Recover,
) -> bytes | None:
    """The one of ``nonces`` that the proof is over; None if it is over none of them."""
    for nonce in nonces:
        if nonce is not None and request.proof is not None:
            digest = resume_digest(nonce, request.session, host, client)
            if resume_holds(terms, digest, request.proof, recover):
                return nonce
    return None


def hand_over(request: Resume, session: OpenSession, *, holder: object, effects: Effects) -> Refuse | None:
    """Take the last voucher of a client that lost its memory; the session then ends.

    It pays for no more than was sent or quoted and for no less than was paid before: a voucher for an input
    may have been lost on its way. What it leaves unpaid is lost to
    the host, as when the client had not come back, and so nothing more is served.
    """
    channel, voucher = session.channel, request.voucher
    if voucher is None:
        return Refuse(code="bad_request", detail="this session can't go on from there: open a new one")
    meter = session.meter
    if (voucher.seq, voucher.tokens_in, voucher.tokens_out) != (
        min(voucher.seq, meter.seq),
        min(voucher.tokens_in, meter.tokens_in + sum(channel.quoted.values())),
        min(voucher.tokens_out, meter.tokens_out),
    ):
        return Refuse(code="bad_request", detail="a voucher for more than was sent in this session")
    if (wrong := channel.why_not_final(voucher)) != "":
        return Refuse(code="bad_request", detail=wrong)
    effects.emit(Opened(session.session, session.model, resumed=True))
    effects.muted, session.effects = True, effects
    session.end_all()
    effects.muted = False
    session.holder = holder
    channel.best = voucher
    effects.emit(Paid(voucher))
    effects.send(accept_of(session))
    return None


def take_over(
    request: Resume,
    session: OpenSession,
    *,
    proof_nonce: bytes,
    holder: object,
    nonce: bytes,
    effects: Effects,
) -> None:
    """Accept, and send again what the client doesn't have; its turns go on from there.

    Only where it ``goes_on`` and was ``proved`` over ``proof_nonce``.
    """
    channel = session.channel
    # What ends here is not sent but counted: the replay below sends it, if the client doesn't have it.
    effects.on_send, effects.muted, session.effects = channel.replay.add, True, effects
    session.end_prompts()
    session.answer_unasked([turn for turn in request.turns if turn > session.asked], request.turn)
    channel.resumed(request.turns, session.turns)
    effects.on_send, effects.muted = None, False
    session.former_nonce = proof_nonce
    session.holder, session.nonce = holder, nonce
    if channel.best is not None:  # the old stream's role may still be writing it down
        effects.emit(Paid(channel.best))
    effects.send(replace(accept_of(session), voucher=channel.best))
    for message in channel.replay.since(request.received) or ():
        if isinstance(message, Checkpoint):
            channel.issue_again(message, effects)
        else:
            effects.send(message)
    effects.on_send = channel.replay.add


def accept_of(session: OpenSession) -> Accept:
    """The message by which a client learns that it has the session."""
    return Accept(
        session=session.session,
        nonce=session.nonce,
        epoch=session.epoch,
        n_ctx=session.granted.n_ctx,
        window=session.granted.window,
        session_fee=session.channel.terms.session_fee,
        turns_max=session.granted.turns_max,
        keep_s=session.granted.keep_s,
        settle_above=session.granted.settle_above,
        generation=session.generation,
    )


# ---- rebuilding one that no stream has


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A session as it goes on: from the root of ``receipt``, with what ``voucher`` says as paid."""

    lapsed: LapsedSession
    chain: ReceiptChain
    sign: Signer
    receipt: Receipt | None
    voucher: Voucher | None

    def open(
        self, request: Resume, *, nonce: bytes, holder: object, effects: Effects, now: float
    ) -> OpenSession | Refuse:
        """The session, open again, or why the role does not take it. What is counted begins anew where it was
        left; otherwise its client counts on."""
        lapsed, chain = self.lapsed, self.chain
        counts = (0, 0) if lapsed.left else (request.received, request.turn)
        channel = _channel(
            lapsed.session,
            self.sign,
            Meter(chain),
            lapsed.granted,
            terms=lapsed.terms,
            replay=ReplayBuffer(*counts),
        )
        channel.best, channel.last_receipt = self.voucher, self.receipt
        opened = OpenSession(
            session=lapsed.session,
            model=lapsed.model,
            granted=lapsed.granted,
            epoch=chain.epoch,
            nonce=nonce,
            channel=channel,
            effects=effects,
            asked=counts[1],
            holder=holder,
            unheard=True,
            salt=lapsed.salt,
            holder_id=request.holder,
            heard_at=now,
            generation=lapsed.generation + lapsed.left,
        )
        if (refusal := lapsed.take(opened)) is not None:
            return refusal
        # First: that this start's epoch has the session must be durable before a receipt of the epoch can be.
        effects.emit(Opened(lapsed.session, lapsed.model, resumed=True, recovered=True))
        if self.receipt is not None and not channel.free and _written(self.receipt, lapsed) is None:
            effects.emit(Issued(self.receipt))  # a crash took ours; it completes the chain
        if self.voucher is not None and self.voucher != lapsed.voucher:
            effects.emit(Paid(self.voucher))
        accept = accept_of(opened)
        if lapsed.left:
            accept = replace(accept, voucher=self.voucher, receipt=self.receipt)
        effects.send(accept)
        if not channel.free:
            effects.on_send = channel.replay.add
        return opened


def rebuild(request: Resume, lapsed: LapsedSession, *, sign: Signer, epoch: int) -> Rebuilt | Refuse:
    """The session as it goes on under ``epoch``, or why it can't. Only after the proof held."""
    chain = ReceiptChain.begin(lapsed.session, lapsed.model, lapsed.salt, epoch)
    known = _channel(lapsed.session, sign, Meter(chain), lapsed.granted, terms=lapsed.terms)
    known.best = lapsed.voucher
    wrong = _wrong(request, lapsed, known, chain)
    if wrong and not lapsed.left:
        return Refuse(code="bad_request", detail=f"{wrong}: open a new session")
    receipt, voucher = request.receipt, request.voucher
    if lapsed.left:
        # What this host has is enough: its client goes on from an old journal, too. What the client has and
        # this host lacks (a crash took it, or it came while nobody listened) counts where it holds.
        ours, best = lapsed.receipt, lapsed.voucher
        receipt = ours if wrong or receipt is None or (ours and _place(receipt) < _place(ours)) else receipt
        voucher = best if wrong or voucher is None or (best and voucher.amount <= best.amount) else voucher
    if receipt is not None:
        shown = receipt.checkpoint
        chain.root, chain.seq = shown.root, shown.seq
        chain.tokens_in, chain.tokens_out = shown.tokens_in, shown.tokens_out
    if not known.free:
        counts = (0, 0) if voucher is None else (voucher.tokens_in, voucher.tokens_out)
        chain.tokens_in, chain.tokens_out = counts
    return Rebuilt(lapsed, chain, sign, receipt, voucher)


def _wrong(request: Resume, lapsed: LapsedSession, channel: ChannelReceiver, chain: ReceiptChain) -> str:
    """What is wrong with what the client shows, or ""."""
    receipt, voucher = request.receipt, request.voucher
    base = (0, chain.root, 0, 0)
    if channel.free:
        return "" if receipt is None and voucher is None else "a free session has no vouchers"
    if receipt is not None:
        shown = receipt.checkpoint
        base = (shown.seq, shown.root, shown.tokens_in, shown.tokens_out)
        recover = lapsed.granted.recover
        if not receipt_holds(lapsed.session, receipt, lapsed.terms.receipt_key, recover):
            return "this is no receipt of this host"
        written = _written(receipt, lapsed)
        if receipt.epoch >= chain.epoch and (written is None or not lapsed.left):
            return "this receipt is of no earlier start of this host"
        if written is not None and written.checkpoint.root != shown.root:
            return "this host wrote down another receipt for that place"
    best = lapsed.voucher
    if voucher is None:
        return "" if best is None and receipt is None else "this host was paid more than is shown"
    if (voucher.seq, voucher.root) != base[:2] or voucher.tokens_in < base[2] or voucher.tokens_out < base[3]:
        return "the voucher is not for what followed the receipt"
    known_in, known_out = (
        base[2:] if best is None else (max(base[2], best.tokens_in), max(base[3], best.tokens_out))
    )
    if (
        voucher.tokens_in > known_in + TURNS_MAX * N_CTX_MAX
        or voucher.tokens_out > known_out + CHECKPOINT_EVERY
    ):
        return "the voucher is for more than the input of all turns and what a receipt would cover"
    return channel.why_not_final(voucher)


def _place(receipt: Receipt) -> tuple[int, int]:
    return receipt.epoch, receipt.checkpoint.seq


def _written(receipt: Receipt, lapsed: LapsedSession) -> Receipt | None:
    return lapsed.issued(receipt.epoch, receipt.checkpoint.seq)
