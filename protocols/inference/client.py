"""The client's side of a session: it checks everything before it counts. It holds no key and no host list.

States (``SPEC.md`` has the whole tables, those of a turn too)::

    fresh --Start--> opening --Accept--> idle --Ask--> busy --the last turn's Done or Error--> idle
    any --violation, Refuse, silence, Closed--> over

A host that sends more than was asked, out of order, or a receipt that doesn't match what arrived
has broken the protocol: the session ends with ``fault`` and the role remembers the host. Several turns may be
under way. Each ends in exactly one ``TurnDone``, ``TurnFailed`` or (with the session) ``SessionFailed`` or
``Ended``.

A paid session whose stream was lost can be resumed: a new machine takes ``held`` of the old one, which
must be over, says ``Resume`` instead of ``Open``, and its turns go on. A host that restarted answers by a
``Challenge``: it is shown its own last receipt and the final voucher, which was signed when it was lost, and
the session goes on from there under the host's new epoch, without the turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Literal, TypeAlias, assert_never

from p2pnode.errors import ProtocolError, WireCode
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.crypto import verify_peer
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.events import (
    Closed,
    Command,
    Effect,
    Event,
    HalfClosed,
    Received,
    StreamRef,
    TimerFired,
)
from p2pnode.protocols.inference.channel import ChannelSender, ClientPayment, ResumeKey, resume_digest
from p2pnode.protocols.inference.client_turn import ClientTimes, ClientTurn, HeldSession
from p2pnode.protocols.inference.commands import (
    Accepted,
    Ask,
    CancelTurn,
    ClientCommand,
    Disputed,
    End,
    Ended,
    LeaveSession,
    SessionCause,
    SessionFailed,
    SpendMax,
    Start,
    TokensTaken,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import (
    Accept,
    Challenge,
    Checkpoint,
    Close,
    Done,
    Error,
    Leave,
    Left,
    Ping,
    Pong,
    Progress,
    PromptBody,
    PromptReceived,
    Quote,
    Receipt,
    Refuse,
    Resume,
    Tokens,
    Vector,
    Voucher,
    detail_of,
    prompt_bytes_max,
)
from p2pnode.protocols.inference.meter import Meter, MeteredTurn, MisstatedError
from p2pnode.protocols.inference.prompts import Upload
from p2pnode.protocols.inference.receipts import ReceiptChain, request_hash
from p2pnode.protocols.inference.replay import is_counted
from p2pnode.protocols.wire import decode_record, encode

State: TypeAlias = Literal["fresh", "opening", "idle", "busy", "leaving", "over"]
_PINGS_UNANSWERED: Final = 2  # and the silence before the first: three thirds of the stall time


class ClientSession:
    """One session with one host over one stream.

    ``payment`` makes it a paid one. ``holder`` is what this process drew for all its sessions. ``resume``
    (the ``held`` of an earlier machine) needs ``peer``, the id this client has on the new stream; ``model``,
    ``salt`` and ``payment`` mean nothing then.
    """

    def __init__(
        self,
        *,
        host: PeerId,
        stream: StreamRef,
        model: ModelId,
        salt: bytes,
        holder: bytes,
        times: ClientTimes | None = None,
        verify: Callable[[str, bytes, bytes], bool] = verify_peer,
        payment: ClientPayment | None = None,
        resume: HeldSession | None = None,
        peer: PeerId | None = None,
        resume_key: ResumeKey | None = None,
        keep_s: int = 0,
    ) -> None:
        self._host, self._peer, self._model, self._salt = host, peer, model, salt
        self._holder = holder
        self._times = times or ClientTimes()
        self._effects = Effects(host, stream)
        if resume is not None and (peer is None or resume.channel.prove is None):
            msg = "only sessions with a key can be resumed, and only by a peer with an id"
            raise ValueError(msg)
        self._channel = (
            resume.channel
            if resume is not None
            else ChannelSender(payment, verify=partial(verify, host), resume_key=resume_key, keep_s=keep_s)
        )
        self._held = resume
        self._challenged = False
        self._phase: Literal["fresh", "opening", "open", "leaving", "over"] = "fresh"
        self._pings = 0
        self._upload = Upload()
        self._progress_at = 0.0

    @property
    def state(self) -> State:
        """Where the session stands."""
        if self._phase != "open":
            return self._phase
        return "busy" if self._held is not None and self._held.turns else "idle"

    @property
    def held(self) -> HeldSession | None:
        """What outlives this stream, once the session is open."""
        return self._held

    @property
    def last_voucher(self) -> Voucher | None:
        """The last one signed: the most the host can ask for."""
        return self._channel.last_voucher

    @property
    def final_voucher(self) -> Voucher | None:
        """What a host that was lost is handed when it returns: for exactly what was received."""
        return self._channel.final_voucher

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are the host's; commands are ``ClientCommand``; timers are open, silence, progress."""
        if self._phase != "over":
            match event:
                case Received(message=message):
                    self._received(message, now)
                case Command(value=value):
                    self._command(value, now)
                case TimerFired(key=key):
                    self._timer(key, now)
                case HalfClosed():
                    self._over(None, "the connection to the host was lost (closed)", cause="lost")
                case Closed(code=code, malformed=malformed):
                    if malformed:
                        self._over(None, f"the host broke the protocol: {code}", cause="fault")
                    else:
                        why = "" if code == "lost" else f" ({code or 'closed'})"
                        self._over(None, f"the connection to the host was lost{why}", cause="lost")
                case _:
                    assert_never(event)
        if self._phase == "open" and self._held is not None:
            self._go_on(self._held, now)
        return self._effects.take()

    # ---- what the role says

    def _command(self, command: ClientCommand, now: float) -> None:
        match command:
            case Start():
                if self._phase == "fresh":
                    self._start(now)
            case Ask():
                self._ask(command, now)
            case SpendMax(key=key, spend_max=spend_max):
                if (turn := self._turn_of(key)) is not None:
                    turn.spend_max = spend_max
            case CancelTurn(key=key):
                if (turn := self._turn_of(key)) is not None:
                    self._upload.drop(turn.number)
                    turn.cancel(self._effects, now)
            case TokensTaken(key=key, index=index):
                if (turn := self._turn_of(key)) is not None:
                    turn.taken(index, self._effects, now)
            case LeaveSession(until=until) if self.state == "idle":
                self._effects.send(Leave(until=until))
                self._phase = "leaving"
                self._effects.cancel_timers()
                self._effects.set_timer("open", now + self._times.open_s)
            case LeaveSession() | End():
                self._effects.send(Close())
                self._end(None)
            case _:
                assert_never(command)

    def _end(self, left: Left | None) -> None:
        self._phase = "over"
        self._effects.cancel_timers()
        self._effects.emit(Ended(left))

    def _turn_of(self, key: int) -> ClientTurn | None:
        if self._phase != "open" or self._held is None:
            return None
        return next((turn for turn in self._held.turns.values() if turn.key == key), None)

    def _start(self, now: float) -> None:
        self._phase = "opening"
        patience_s = self._times.open_s
        if self._held is not None:
            nonce = None if self._held.from_journal else self._held.accept.nonce
            self._effects.send(self._resume(self._held, nonce))
        else:
            self._effects.send(self._channel.request(self._model, self._salt, self._holder))
            patience_s = self._times.open_paid_s if not self._channel.free else patience_s
        self._effects.set_timer("open", now + patience_s)

    def _resume(self, held: HeldSession, nonce: bytes | None) -> Resume:
        request = Resume(
            session=held.accept.session,
            holder=self._holder,
            received=held.received,
            turn=held.asked,
            turns=tuple(sorted(held.turns)),
        )
        prove = self._channel.prove
        if nonce is None or prove is None or self._peer is None:
            return request
        digest = resume_digest(nonce, held.accept.session, self._host, self._peer)
        return replace(request, proof=prove(digest))

    def _answer(self, challenge: Challenge, held: HeldSession) -> None:
        """The host knows no nonce of ours. It may have restarted: show it our last receipt and voucher."""
        self._challenged = True
        request = self._resume(held, challenge.nonce)
        self._effects.send(replace(request, receipt=held.receipt, voucher=self._channel.final_voucher))

    def _ask(self, ask: Ask, now: float) -> None:
        held = self._held
        if self._phase != "open" or held is None or len(held.turns) >= held.accept.turns_max:
            detail = f"the session can't take a turn while {self.state}"
            self._effects.emit(TurnFailed(None, detail, cause="invalid", key=ask.key))
            return
        raw = encode(ask.body)
        if (failure := self._why_not(held, ask, raw)) is not None:
            self._effects.emit(failure)
            return
        held.asked += 1
        is_new = held.is_new(ask.body.cache_key)
        held.note_asked(ask.body.cache_key)
        turn = held.turns[held.asked] = ClientTurn(
            held.asked, ask, held, self._times, len(raw), is_new=is_new
        )
        self._channel.begin_turn(turn.number, turn.key)
        turn.metered.request = request_hash(raw)
        self._upload.add(turn.number, raw)
        self._heard(now)

    def _why_not(self, held: HeldSession, ask: Ask, raw: bytes) -> TurnFailed | None:
        """Why every host would refuse this turn, one round trip later; None if it may be sent."""
        bytes_max = prompt_bytes_max(held.accept.n_ctx)
        if len(raw) > bytes_max:
            detail = (
                f"the conversation takes {len(raw)} bytes; this host's context of {held.accept.n_ctx} "
                f"tokens takes {bytes_max}"
            )
            return TurnFailed("context_overflow", detail, cause="foreseen", key=ask.key)
        try:
            decode_record(PromptBody, raw)
        except ProtocolError as error:
            return TurnFailed(None, f"no host takes this prompt: {error}", cause="invalid", key=ask.key)
        # What the host's cache holds isn't billed. That it holds nothing is known of a new cache key only.
        least_in = (ask.input_exact or 0) if held.is_new(ask.body.cache_key) else 0
        if not self._channel.covers(least_in, min(1, ask.body.tokens_out_max)):
            detail = "the session's deposit is used up: open another session"
            return TurnFailed("payment_required", detail, cause="foreseen", key=ask.key)
        return None

    def _send_prompts(self, held: HeldSession, now: float) -> None:
        """Send the parts of prompts that the host has room for."""
        for part in self._upload.parts():
            self._effects.send(part)
            turn = held.turns.get(part.turn)
            if turn is None:
                continue
            if part.part == 0:
                turn.begin(now)
            # Nothing can be reused under a new cache key, so the price is known before the host names it.
            if part.last and turn.advance:
                self._channel.advance(turn.number, turn.advance, self._effects)

    # ---- what the host says

    def _received(self, message: object, now: float) -> None:
        self._heard(now)
        match message:
            case Ping(nonce=nonce):
                self._effects.send(Pong(nonce=nonce))
            case Pong():
                pass
            case Accept() if self._phase == "opening":
                self._accepted(message, now)
            case Challenge() if self._phase == "opening" and self._held is not None and not self._challenged:
                self._answer(message, self._held)
            case Refuse(code=code, detail=detail, retry_after_s=retry_after_s) if self._phase == "opening":
                self._over(code, detail, retry_after_s)
            case Error(turn=None, code=code, detail=detail, retry_after_s=retry_after_s):
                self._over(code, detail, retry_after_s)
            case Left() if self._phase == "leaving":
                self._end(message)
            case _ if self._phase == "open" and self._held is not None:
                try:
                    self._in_session(self._held, message, now)
                except ProtocolError as error:
                    if isinstance(error, MisstatedError):
                        self._dispute(error.receipt)
                    self._violation(str(error))
            case _:
                self._out_of_place(message)

    def _in_session(self, held: HeldSession, message: object, now: float) -> None:
        match message:
            case PromptReceived():
                self._upload.confirm(message)
            case Checkpoint():
                self._checkpoint(held, message)
                for each in held.turns.values():
                    if each.is_capped and not each.cancelled:
                        each.cap(self._effects, now)
            case Quote() | Progress() | Tokens() | Vector() | Done() | Error():
                turn = held.turns.get(message.turn or 0)
                if turn is None:
                    self._out_of_place(message)
                    return
                turn.hear(message, self._effects, now)
                if turn.outcome is not None:
                    self._end_turn(held, turn, turn.outcome, now)
            case _:
                self._out_of_place(message)
                return
        held.received += is_counted(message)

    def _checkpoint(self, held: HeldSession, message: Checkpoint) -> None:
        meter, channel = held.meter, self._channel
        if not channel.accepts_total(message.tokens_in):
            msg = f"a receipt for {message.tokens_in} input tokens; our vouchers paid for other counts"
            raise MisstatedError(msg, meter.signed(message, channel.verify))

        def metered(number: int) -> MeteredTurn | None:
            turn = held.turns.get(number)
            return turn.metered if turn is not None else None

        moved = {
            number: turn.metered.tokens_out for number, turn in held.turns.items() if number in meter.moved
        }
        held.receipt = meter.check(message, metered, channel.verify)
        keys = tuple(held.turns[number].key for number in moved)
        channel.settle(held.receipt, keys, self._effects, moved)

    def _end_turn(
        self, held: HeldSession, turn: ClientTurn, outcome: TurnDone | TurnFailed, now: float
    ) -> None:
        del held.turns[turn.number]
        self._upload.drop(turn.number)
        whole = isinstance(outcome, TurnDone) and outcome.done.reason != "cancelled"
        if whole and turn.was_paid_and_answered:
            self._channel.finished(self._effects)
        self._channel.end_turn(turn.number, self._effects, wanted=turn.is_wanted)
        self._effects.emit(outcome)
        if not self._channel.trusts:
            for other in held.turns.values():
                other.refuse_to_pay(self._effects, now)
        if not held.turns:  # what is asked from now on, the role asks knowing how these ended
            self._channel.begin_anew()

    def _out_of_place(self, message: object) -> None:
        if isinstance(message, Checkpoint) and self._held is not None:
            self._dispute(self._held.meter.signed(message, self._channel.verify))
        self._violation(f"{type(message).__name__} is out of place while {self.state}")

    def _accepted(self, accept: Accept, now: float) -> None:
        held = self._held
        fault = self._channel.fault_of(accept)
        if held is not None and fault is None and accept.generation > held.accept.generation:
            self._resumed_left(held, accept)
            return
        recovered = held is not None and self._challenged and accept.epoch > held.accept.epoch
        if held is not None and accept.epoch != held.accept.epoch and not recovered:
            fault = "resumed a session under another epoch"
        if fault is not None:
            self._violation(fault)
            return
        self._effects.cancel_timer("open")
        self._phase = "open"
        if held is None:
            chain = ReceiptChain.begin(accept.session, self._model, self._salt, accept.epoch)
            self._channel.begin(Meter(chain))
            self._held = HeldSession(accept, self._channel, model=self._model, salt=self._salt)
            self._effects.emit(Accepted(accept))
            return
        held.accept = accept
        self._effects.emit(Accepted(accept))
        if recovered:
            self._recovered(held)
            return
        if not held.from_journal:  # the old stream may have swallowed what was sent last
            fault = self._channel.rejoin(accept.voucher, self._effects)
            if fault is not None:
                self._violation(fault)
                return
        for turn in held.turns.values():
            turn.carry_over(self._effects, now)
        self._heard(now)

    def _resumed_left(self, held: HeldSession, accept: Accept) -> None:
        """The session was left, and goes on from the voucher and the receipt that the host shows.

        Messages and turns are counted anew on both sides. What was under way is over.
        """
        fault = self._channel.fault_of_left(accept, held.accept.session)
        if fault is not None:
            self._violation(fault)
            return
        self._effects.cancel_timer("open")
        self._phase = "open"
        receipt, voucher = accept.receipt, accept.voucher
        chain = ReceiptChain.begin(accept.session, held.model, held.salt, accept.epoch)
        if receipt is not None:
            shown = receipt.checkpoint
            chain.root, chain.seq = shown.root, shown.seq
            chain.tokens_in, chain.tokens_out = shown.tokens_in, shown.tokens_out
        if not self._channel.free:
            counts = (0, 0) if voucher is None else (voucher.tokens_in, voucher.tokens_out)
            chain.tokens_in, chain.tokens_out = counts
        self._channel.go_on_from(voucher, Meter(chain))
        turns, held.turns = held.turns, {}
        held.accept, held.receipt, held.received, held.asked = accept, receipt, 0, 0
        held.from_journal, held.cache_keys = False, None
        self._upload = Upload()
        self._effects.emit(Accepted(accept))
        for turn in turns.values():
            detail = "the host had left this session meanwhile; what came of the turn is paid: ask again"
            self._effects.emit(TurnFailed(None, detail, cause="restarted", key=turn.key))

    def _recovered(self, held: HeldSession) -> None:
        """The host goes on from our last receipt, and from what the final voucher says is paid."""
        final = self._channel.final_voucher
        counts = (0, 0) if final is None else (final.tokens_in, final.tokens_out)
        held.meter.rebase(held.accept.epoch, *counts)
        self._channel.handed_over()
        turns, held.turns = held.turns, {}
        for turn in turns.values():
            detail = "the host restarted in the middle of this turn; what came of it is paid: ask again"
            self._effects.emit(TurnFailed(None, detail, cause="restarted", key=turn.key))

    def _dispute(self, receipt: Receipt | None) -> None:
        if receipt is not None and not self._channel.free:
            self._effects.emit(Disputed(receipt))

    # ---- time

    def _go_on(self, held: HeldSession, now: float) -> None:
        """Send what may be sent, and wait for what must come."""
        self._send_prompts(held, now)
        for turn in held.turns.values():
            turn.follow_payment(now)
        at = min((turn.deadline for turn in held.turns.values()), default=math.inf)
        if at == math.inf:
            self._effects.cancel_timer("progress")
        elif at != self._progress_at or not self._effects.armed("progress"):
            self._effects.set_timer("progress", at)
        self._progress_at = at
        if not held.turns:
            self._effects.cancel_timer("silence")

    def _heard(self, now: float) -> None:
        self._pings = 0
        if self.state == "busy":
            self._effects.set_timer("silence", now + self._times.stall_s / 3)

    def _timer(self, key: str, now: float) -> None:
        if not self._effects.fired(key):
            return
        if key == "open":
            cause: SessionCause = "lost" if self._phase == "leaving" else "stuck"
            self._over(None, "the host did not answer", cause=cause)
        elif self._pings >= _PINGS_UNANSWERED or (key == "progress" and self._pings):
            self._over(None, "the host went silent", cause="silent")
        elif key == "progress":
            self._give_up(now)
        else:
            self._pings += 1
            self._effects.send(Ping(nonce=self._pings))
            self._effects.set_timer("silence", now + self._times.stall_s / 3)

    def _give_up(self, now: float) -> None:
        """Cancel the turns for which nothing is done; leave a host that doesn't end them either."""
        for turn in tuple(self._held.turns.values() if self._held is not None else ()):
            if turn.deadline > max(now, self._progress_at):
                continue
            if turn.cancelled:
                self._over(None, "the host stopped making progress", cause="stuck")
                return
            self._upload.drop(turn.number)
            turn.give_up(self._effects, now)

    # ---- endings

    def _violation(self, detail: str) -> None:
        self._effects.send(Error(code="bad_request", detail=detail_of(detail)))
        self._over(None, f"the host broke the protocol: {detail}", cause="fault")

    def _over(
        self,
        code: WireCode | None,
        detail: str,
        retry_after_s: float | None = None,
        *,
        cause: SessionCause = "answered",
    ) -> None:
        if self._held is not None and self._phase == "open" and cause != "fault":
            counts = {turn.number: turn.metered.tokens_out for turn in self._held.turns.values()}
            self._channel.conclude(self._effects, counts)
        self._phase = "over"
        self._effects.cancel_timers()
        self._effects.emit(SessionFailed(code, detail, retry_after_s, cause))
