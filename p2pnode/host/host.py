"""A host: engines, prices and sessions on a node.

It advertises what it serves, and brings together what decides about a session: ``Admission`` about places,
``EscrowIntake`` about payment, ``ResumableSessions`` about streams that were lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import structlog
import trio

from p2pnode.bounded import BoundedMap
from p2pnode.errors import EngineError, P2PNodeError, StorageError, first_error
from p2pnode.host.admission import Admission, origin_of_payer
from p2pnode.host.count import serve_counts
from p2pnode.host.resumable import ResumableSessions
from p2pnode.host.served_session import ServedSession
from p2pnode.host.session_work import SessionWork
from p2pnode.host.sheet import Grants, Served, capabilities_of, profile_of, sheet_of
from p2pnode.host.totals import Totals
from p2pnode.host.unpaid_work import CompileTurns, UnpaidWork
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.models.engine import ANYBODY, Engine, EngineInfo
from p2pnode.money import price_text
from p2pnode.net.admission import Standing
from p2pnode.net.stream import Stream
from p2pnode.node.identity import HostIdentity, is_due
from p2pnode.node.node import Node
from p2pnode.payments import settlement_policy as policy
from p2pnode.payments.checkpoints import serve_receipts
from p2pnode.payments.escrow import EscrowIntake, HostMoney, Source
from p2pnode.payments.journal.journal import HostedSession
from p2pnode.protocols.adverts.exchange import Announcement
from p2pnode.protocols.adverts.messages import ADDRESSES_TOLD, RELEASE_MIN, Address, Load, Offer, Sheet
from p2pnode.protocols.adverts.signatures import profile_hash
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.commands import (
    Alive,
    Kept,
    Leaving,
    Opened,
    Probe,
    Relay,
    TurnServed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    PROTOCOL,
    WINDOW,
    Open,
    Refuse,
    Resume,
)
from p2pnode.protocols.inference.open_rules import HostPayment
from p2pnode.protocols.inference.open_session import LapsedSession, OpenSession
from p2pnode.protocols.inference.prompts import TurnPlaces
from p2pnode.protocols.inference.turn_memory import SessionMemory, TurnMemory
from p2pnode.protocols.typed_data import amount_due
from p2pnode.shares import Origin

log = structlog.get_logger()
Report: TypeAlias = Callable[[str, dict[str, object]], None]
"""Called with an event's name and fields, for people and for programs that watch."""
_LOAD_INTERVAL_S = 10.0
_MEASUREMENTS_MAX = 3
_RENEW_AGAIN_S = 3600.0
_PAYERS_MAX = 1024
Renew: TypeAlias = Callable[[], Awaitable[HostIdentity]]
"""Gives the identity with a binding that holds for weeks. Raises ``LocalError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedModel:
    """A model and the engine that runs it. Prices are USDC units per million tokens, the fee per session."""

    model: ModelId
    name: str
    engine: Engine
    quantisation: str = ""
    n_ctx: int = 0
    price_in: int = 0
    price_out: int = 0
    session_fee: int = 0

    @property
    def priced(self) -> bool:
        """Whether it costs anything."""
        return bool(self.price_in or self.price_out)


class Host:
    """Serves ``models`` on ``node``. ``start`` it when the node runs; it drains at the node's end."""

    def __init__(
        self,
        node: Node,
        identity: HostIdentity,
        models: Sequence[HostedModel],
        money: HostMoney | None = None,
        report: Report = lambda _name, _fields: None,
        *,
        renew: Renew | None = None,
        grants: Grants | None = None,
    ) -> None:
        self._node, self._identity, self._report, self._renew = node, identity, report, renew
        self._models = {each.model: each for each in models}
        self._warm: dict[ModelId, EngineInfo] = {}
        self._admission: Admission[ServedSession] = Admission(
            node.limits, {each.model: each.name for each in models}
        )
        self._paid_at: BoundedMap[PeerId, float] = BoundedMap(_PAYERS_MAX)
        """Peers whose paid session lost its stream or ended, and when."""
        self._session_ended = trio.Event()
        self._epoch = int(node.wall() * 1000)
        self.escrow: EscrowIntake | None = None
        self._work: dict[SessionId, SessionWork] = {}
        """Of the sessions that outlive a stream, their streams lost or not."""
        self._unpaid, self._compiling = UnpaidWork(), CompileTurns()
        self._turn_memory = TurnMemory()
        self._turn_places: BoundedMap[Origin, TurnPlaces] = BoundedMap(_PAYERS_MAX)
        """By payer or, in free sessions, by origin."""
        self._grants = grants or Grants()
        if money is not None:
            self._epoch = money.journal.next_epoch(self._epoch)
            self.escrow = EscrowIntake(
                money.ledger,
                money.journal,
                identity,
                limits=node.limits,
                wall=node.wall,
                on_ending=self._end,
                on_settled=self._settled,
                exposure_limits=money.exposure_limits,
                budget=money.budget,
            )
        self._resumable = ResumableSessions(
            self.escrow,
            epoch=self._epoch,
            grants=self._granted,
            wall=node.wall,
            limits=node.limits,
            on_gone=self._stop_work,
        )
        self._measurements: Counter[ModelId] = Counter()
        """How often an engine's arithmetic was asked for."""
        self.totals = Totals()

    @property
    def sessions(self) -> int:
        """The number of streams that have, or ask for, a session now."""
        return len(self._admission.places)

    @property
    def sessions_left(self) -> int:
        """The number of sessions that their clients left, and that are kept for them."""
        return self._resumable.left

    def has_session(self, peer: PeerId) -> bool:
        """Whether this peer has a session that is open now."""
        return any(each.peer == peer and each.record is not None for each in self._admission.places)

    def standing_of(self, peer: PeerId) -> Standing:
        """What keeps a peer's connection when places are short: that it pays, or that it is served now.

        A payer whose stream was lost is one until the linger is over.
        """
        places = self._admission.places_of(peer)
        paid_at = self._paid_at.get(peer)
        lingers = paid_at is not None and trio.current_time() < paid_at + self._node.limits.linger_s
        if lingers or any(map(_has_paid, places)):
            return "payer"
        return "served" if any(each.rests_since is None for each in places) else "stranger"

    @property
    def models(self) -> tuple[HostedModel, ...]:
        """The models it serves."""
        return tuple(self._models.values())

    async def start(self) -> None:
        """Serve and advertise; load the engines one after another, and advertise each one as warm."""
        node = self._node
        if self.escrow is not None:
            await self.escrow.prepare(self._epoch)
            await self._resumable.prepare()
            serve_receipts(node, self.escrow.journal)
        node.network.standing_of = self.standing_of
        node.serve(PROTOCOL, self._serve, streams_per_peer=node.limits.sessions_per_peer)
        if any(model.priced for model in self._models.values()):
            serve_counts(node, self._countable, self._unpaid)
        node.before_close(self.drain)
        if self.escrow is not None:
            node.start_soon(self.escrow.run)
        await node.follow(list(self._models))
        await self._advertise()
        for model in self._models.values():
            node.start_soon(node.provide, model.model)
            info = await model.engine.load()
            self._warm[model.model] = info
            turns_max = max(map(self._turns_max, self._warm.values()))
            self._grants = replace(self._grants, turns_max=turns_max)
            self._admission.warm.add(model.model)
            log.info("model.warm", model=model.name, engine=info.engine, n_ctx=info.n_ctx, slots=info.slots)
            await self._advertise()
        node.start_soon(self._watch_load)
        if self._renew is not None:
            node.start_soon(self._keep_bound, self._renew)

    async def _keep_bound(self, renew: Renew) -> None:
        """Have the wallet sign a new binding before the old one expires.

        Without a binding nobody believes this host's advert.
        """
        while True:
            await trio.sleep(self._node.limits.binding_interval_s)
            if not is_due(self._identity, self._node.wall()):
                continue
            try:
                self._identity = await renew()
            except P2PNodeError as error:
                log.warning("binding.not_renewed", reason=str(error))
                await trio.sleep(_RENEW_AGAIN_S)
            else:
                log.info("binding.renewed", expires_at=self._identity.binding.expires_at)
                await self._advertise()

    async def reprice(self, model: ModelId, *, price_in: int, price_out: int) -> None:
        """Ask other prices, in USDC units per million tokens, and advertise them at once."""
        self._models[model] = replace(self._models[model], price_in=price_in, price_out=price_out)
        await self._advertise()

    async def drain(self) -> None:
        """Take no new session or turn, let turns end under a deadline, withdraw the advert, settle."""
        # Before the first await: what asks for a session from now on is refused, and no stream lingers.
        self._admission.is_draining = True
        try:
            await self._advertise()
            for session in self._admission.places:
                session.drain()
            with trio.move_on_after(self._node.limits.drain_deadline_s):
                while self._admission.places:
                    # Nothing runs between the look and the new event, so that no end of a session is missed.
                    self._session_ended = trio.Event()
                    await self._session_ended.wait()
            self._resumable.give_up_all()
            await self._node.adverts.withdraw()
            if self.escrow is not None:
                with trio.move_on_after(self._node.limits.settle_deadline_s):
                    await self.escrow.settler.settle_all()
        finally:
            with trio.move_on_after(self._node.limits.close_deadline_s, shield=True):
                for model in self._models.values():
                    await model.engine.aclose()

    # ---- advertising

    async def _advertise(self) -> None:
        await self._node.adverts.update(
            Announcement(
                binding=self._identity.binding,
                addresses=tuple(Address(multiaddr=each) for each in self._node.advertised(ADDRESSES_TOLD)),
                offers=tuple(self._offer(model) for model in self._models.values()),
                load=self._load(),
                draining=self._admission.is_draining,
                sheet=self._sheet(),
                release_min=RELEASE_MIN,
            )
        )

    def _sheet(self) -> Sheet:
        served = [
            Served(
                model=each.model,
                name=each.name,
                quantisation=each.quantisation,
                info=self._warm.get(each.model),
            )
            for each in self._models.values()
        ]
        return sheet_of(
            self._node.peer_id,
            served,
            self._node.advertised(),
            self._grants,
            paid=self.escrow is not None,
        )

    def _offer(self, model: HostedModel) -> Offer:
        info = self._warm.get(model.model)
        return Offer(
            model=model.model,
            n_ctx=info.n_ctx if info is not None else model.n_ctx,
            price_in=model.price_in,
            price_out=model.price_out,
            session_fee=model.session_fee if model.priced else 0,
            warm=info is not None,
            caps=int(capabilities_of(info, self._grants)),
            profile=profile_hash(profile_of(info)) if info is not None else bytes(8),
        )

    def _load(self) -> Load:
        stats = [model.engine.stats() for model in self._models.values()]
        return Load(
            slots=sum(info.slots for info in self._warm.values()),
            active=sum(each.active for each in stats),
            queued=sum(each.queued for each in stats),
        )

    async def _watch_load(self) -> None:
        idle: set[ModelId] = set()
        """Models that nobody had asked anything when that was looked at last."""
        while True:
            await trio.sleep(_LOAD_INTERVAL_S)
            was_idle, idle = idle, {each.model for each in self._models.values() if _is_idle(each.engine)}
            for model in idle & was_idle & self._warm.keys():
                if self._measurements[model] < _MEASUREMENTS_MAX:
                    await self._measure(model)
            await self._advertise()

    async def _measure(self, model: ModelId) -> None:
        """Have an engine measured that is not needed now: what its profile then says is the engine's own."""
        self._measurements[model] += 1
        engine = self._models[model].engine
        try:
            first, again = await engine.arithmetic(), await engine.arithmetic()
        except EngineError as error:
            log.debug("arithmetic.not_measured", reason=str(error))
            return
        if first != again:  # somebody else was served meanwhile, with whom it was computed together
            log.debug("arithmetic.unsteady", model=self._models[model].name)
            return
        self._measurements[model] = _MEASUREMENTS_MAX
        self._warm[model] = replace(self._warm[model], arithmetic=first)

    # ---- serving

    async def _serve(self, stream: Stream) -> str | None:
        node = self._node
        machine = HostSession(
            peer=stream.peer,
            stream=0,
            admit=lambda message: self._admit(session, message),
            sign=self._identity.key.sign,
            epoch=self._epoch,
            draw=node.draw,
            terms=self._terms(0),
            resume=lambda message: self._find(session, message),
        )
        session = ServedSession(
            machine,
            stream,
            limits=node.limits,
            work_of=lambda opened: self._work_of(session, opened),
            on_opened=lambda opened: self._opened(session, opened),
            on_turn=lambda turn: self._served(session, turn),
            on_relay=lambda order: self._relay(session, order),
            on_leaving=lambda order: self._leave(session, order),
            on_claim=lambda value: self._claimed(session, value),
            escrow=self.escrow,
            sleep=node.sleep,
            origin=node.network.origin_of(stream.peer),
        )
        self._admission.enter(session)
        try:
            await session.run()
        except* P2PNodeError as group:
            log.warning("session.failed", peer=stream.peer, reason=str(first_error(group)))
        finally:
            try:
                await self._put_down(session)
            finally:
                # Only after the journal was written: ``drain`` waits until no place is taken, and then it
                # settles what the journal holds.
                self._admission.leave(session)
                if _has_paid(session):
                    self._paid_at.put(stream.peer, trio.current_time())
                self._session_ended.set()
        log.info(
            "session.closed",
            peer=stream.peer,
            session=session.session.hex()[:16] if session.session is not None else None,
            reason=session.finished.reason if session.finished is not None else "lost",
        )
        return session.fault

    async def _put_down(self, stream: ServedSession) -> None:
        """Write down what a paid session owes when its stream is over, also while this task is cancelled."""
        kept = stream.record is not None and stream.record.granted.keep_s > 0
        if stream.session is None or not (stream.paid or kept):
            return
        if stream.finished is not None and stream.finished.left:
            return  # that is written down already
        lingers = stream.fault is None and (stream.finished is None or stream.finished.lingers)
        lingers = lingers and not self._admission.is_draining
        if not lingers and not (stream.finished is not None and stream.finished.replaced):
            self._stop_work(stream.session)
        with trio.move_on_after(self._node.limits.close_deadline_s, shield=True):
            await self._resumable.ended(stream.session, stream, lingers=lingers)
        if lingers and not self._admission.is_draining:  # draining may have begun during that write
            self._node.start_soon(self._node.network.guard.run, self._resumable.wait_given_up, stream.session)

    def _end(self, session: SessionId, why: str, now: bool) -> bool:
        return self._resumable.end(session, why, now)

    async def _leave(self, stream: ServedSession, order: Leaving) -> Kept:
        record = stream.record
        assert record is not None  # noqa: S101 - only an open session is left
        # A host that goes away keeps nothing: the time is past, and it settles.
        wanted = 0 if self._admission.is_draining else order.until
        return Kept(await self._resumable.leave(record, stream, wanted))

    def _claimed(self, stream: ServedSession, value: Probe | Alive) -> None:
        """Somebody claims a session that another stream has, or that other stream has answered."""
        if isinstance(value, Probe):
            self._resumable.probe(value.session, stream)
        else:
            self._resumable.alive(value.session)

    def _find(self, stream: ServedSession, message: Resume) -> OpenSession | LapsedSession | Refuse:
        if refusal := self._admission.refuses_all():
            return refusal
        if refusal := self._made_room(self._admission.decide_resume(stream, trio.current_time())):
            return refusal
        try:
            return self._resumable.find(message, stream)
        except StorageError as error:
            return _unreadable(error)

    def _granted(self, journalled: HostedSession) -> HostTerms | None:
        """What a session of an earlier start is granted now, at its own prices; None for nothing."""
        terms = journalled.terms
        if self.escrow is None:
            return None
        payment = self.escrow.asks(
            price_in=terms.price_in, price_out=terms.price_out, session_fee=terms.session_fee
        )
        if (payment.wallet, payment.receipt_key) != (terms.host, terms.receipt_key):
            return None
        info = self._warm.get(terms.model)
        keep_s, who = journalled.keep_s, origin_of_payer(terms)
        n_ctx, turns_max = (1, 1) if info is None else (info.n_ctx, self._turns_max(info))
        granted = self._terms(n_ctx, payment, who if info is not None else None, keep_s)
        return replace(granted, turns_max=turns_max, window=journalled.window)

    def _countable(self, model: ModelId) -> tuple[Engine, int] | Refuse:
        refusal = self._admission.refuses_model(model)
        return refusal or (self._models[model].engine, self._warm[model].n_ctx)

    def _admit(self, session: ServedSession, message: Open) -> HostTerms | Refuse:
        refusal = self._admission.refuses_model(message.model)
        if refusal is not None:
            return refusal
        model, info = self._models[message.model], self._warm[message.model]
        payment = None
        if message.terms is not None or model.priced:
            payment = self._payment(model)
            if payment is None:
                return _cannot_be_paid(model)
            if self.escrow is not None and (refusal := self._refuses(self.escrow, message, payment)):
                return refusal
        if refusal := self._made_room(self._admission.decide_open(session, trio.current_time())):
            return refusal
        self.totals.sessions += 1
        turns_max, window = self._turns_max(info), WINDOW
        who = session.origin if message.terms is None else origin_of_payer(message.terms)
        if turns_max > 1:
            window = CHECKPOINT_EVERY * (turns_max + 1)
            if message.terms is not None and self.escrow is not None:
                window = self.escrow.window(message.terms, session.address, window)
        provable = message.terms is not None or message.resume_key is not None
        granted = self._terms(info.n_ctx, payment, who, message.keep_s if provable else 0)
        return replace(granted, turns_max=turns_max, window=window)

    def _turns_max(self, info: EngineInfo) -> int:
        """Turns that one session may have under way: no more than can be served at once."""
        return max(1, min(self._node.limits.turns_per_session, info.slots))

    def _places_of(self, who: Origin) -> TurnPlaces:
        places = self._turn_places.get(who)
        if places is None:
            places = TurnPlaces(self._node.limits.turns_per_origin)
            self._turn_places.put(who, places)
        return places

    @staticmethod
    def _refuses(escrow: EscrowIntake, message: Open, payment: HostPayment) -> Refuse | None:
        try:
            return escrow.refuses(message, payment)
        except StorageError as error:
            return _unreadable(error)

    def _payment(self, model: HostedModel) -> HostPayment | None:
        if self.escrow is None or not model.priced:
            return None
        return self.escrow.asks(
            price_in=model.price_in, price_out=model.price_out, session_fee=model.session_fee
        )

    def _relay(self, stream: ServedSession, order: Relay) -> None:
        model = self._models[order.request.model]
        payment = self._payment(model)
        if self.escrow is not None and payment is not None:
            source = Source(
                stream.peer,
                stream.address,
                self._epoch,
                stream.origin.near,
                min(order.request.keep_s, self._grants.keep_s),
            )
            self.escrow.take(order, payment, source, stream.tell)

    @staticmethod
    def _made_room(decision: Refuse | ServedSession | None) -> Refuse | None:
        if isinstance(decision, ServedSession):
            log.debug("session.gives_way", peer=decision.peer)
            decision.give_way()
            return None
        return decision

    def _terms(
        self, n_ctx: int, payment: HostPayment | None = None, who: Origin | None = None, keep_s: int = 0
    ) -> HostTerms:
        limits = self._node.limits
        return HostTerms(
            n_ctx=n_ctx,
            host=self._node.peer_id,
            keep_s=min(keep_s, self._grants.keep_s),
            settle_above=policy.settle_above(payment.session_fee) if payment is not None else 0,
            stall_s=limits.stall_s,
            memory=SessionMemory(self._turn_memory, who or ANYBODY),
            places=self._places_of(who) if who is not None else TurnPlaces(),
            idle_s=limits.idle_session_s,
            open_s=limits.first_frame_deadline_s,
            relay_s=limits.escrow_deadline_s + limits.chain_deadline_s,
            payment=payment,
        )

    def _work_of(self, stream: ServedSession, opened: Opened) -> SessionWork | None:
        """The work of a session that opens, or that goes on; None where its model is not served any more."""
        if (work := self._work.get(opened.session)) is not None:
            return work
        model, node = self._models.get(opened.model), self._node
        if model is None:
            return None
        work = SessionWork(
            model.engine,
            stream.origin,
            limits=node.limits,
            start_soon=lambda function, *args: node.start_soon(node.network.guard.run, function, *args),
            escrow=self.escrow,
            on_turn=lambda turn: self._served(stream, turn),
            unpaid=self._unpaid,
            compiling=self._compiling,
        )
        if stream.paid or (stream.record is not None and stream.record.granted.keep_s):
            self._work[opened.session] = work
        return work

    def _stop_work(self, session: SessionId) -> None:
        work = self._work.pop(session, None)
        if work is not None:
            work.stop()

    async def _opened(self, stream: ServedSession, opened: Opened) -> None:
        record, model = stream.record, self._models.get(opened.model)
        if record is not None and (stream.paid or record.granted.keep_s):
            if opened.recovered:
                why = await self._resumable.recovered(record, stream)
                if why or opened.model not in self._warm:  # the voucher is taken, and no turn is served
                    log.info("session.not_served", session=opened.session.hex()[:16], reason=why or "cold")
                    stream.drain()
            else:
                await self._resumable.began(record, stream)
        name = model.name if model is not None else opened.model.hex()[:16]
        log.info("session.opened", session=opened.session.hex()[:16], model=name, recovered=opened.recovered)

    def _settled(self, record: HostedSession, amount: int) -> None:
        self._resumable.settled(record.session)
        self._report("settled", {"session": record.session.hex(), "amount": amount})

    def _served(self, stream: ServedSession, turn: TurnServed) -> None:
        self.totals.turns += 1
        self.totals.tokens_in += turn.tokens_in
        self.totals.tokens_out += turn.tokens_out
        self._report(
            "answered",
            {
                "peer": stream.peer,
                "tokens_in": turn.tokens_in,
                "tokens_out": turn.tokens_out,
                "reason": turn.reason,
                "cost": _cost_of(stream.record, turn),
            },
        )
        log.info("turn.served", tokens_in=turn.tokens_in, tokens_out=turn.tokens_out, reason=turn.reason)


def _is_idle(engine: Engine) -> bool:
    stats = engine.stats()
    return not stats.active and not stats.queued


def _has_paid(session: ServedSession) -> bool:
    """Whether its escrow is open and a voucher came."""
    return session.paid and session.record is not None and session.record.channel.best is not None


def _cost_of(record: OpenSession | None, turn: TurnServed) -> int:
    """By how much a turn raised what its session costs, in token units."""
    if record is None:
        return 0
    terms, meter = record.channel.terms, record.meter
    before = amount_due(terms, meter.tokens_in - turn.tokens_in, meter.tokens_out - turn.tokens_out)
    return amount_due(terms, meter.tokens_in, meter.tokens_out) - before


def _unreadable(error: StorageError) -> Refuse:
    """The refusal where our own journal can't be read; the client did nothing wrong."""
    log.warning("books.unreadable", reason=str(error))
    return Refuse(code="internal", detail="this host can't read its books now: use another host")


def _cannot_be_paid(model: HostedModel) -> Refuse:
    if model.priced:
        asked = price_text(model.price_in, model.price_out, model.session_fee)
        return Refuse(
            code="payment_required",
            detail=f"this host asks {asked}, and can't take payment: use another host",
        )
    return Refuse(code="bad_request", detail="this host serves free sessions only: leave the terms out")
