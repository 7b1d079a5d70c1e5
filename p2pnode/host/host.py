"""A host: engines, prices and sessions on a node.

It advertises what it serves, and brings together what decides about a session: ``Admission`` about places,
``EscrowIntake`` about payment, ``ResumableSessions`` about streams that were lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias, TypeVar

import structlog
import trio

from p2pnode.bounded import BoundedMap
from p2pnode.errors import (
    WIRE_CODES,
    EngineError,
    P2PNodeError,
    RefusedError,
    StorageError,
    UnreachableError,
    first_error,
)
from p2pnode.host.admission import Admission, origin_of_payer
from p2pnode.host.count import serve_counts
from p2pnode.host.health import Health
from p2pnode.host.model_pool import Hold, HoldModel, HostedModel, ModelPool, PoolLimits, Report
from p2pnode.host.prompt_filter import PromptFilter
from p2pnode.host.recent_turns import RecentTurns
from p2pnode.host.residency import Memory, State
from p2pnode.host.resumable import ResumableSessions
from p2pnode.host.self_probe import SelfProbe
from p2pnode.host.served_session import ServedSession
from p2pnode.host.session_work import SessionWork
from p2pnode.host.sheet import Grants, Served, capabilities_of, profile_of, sheet_of
from p2pnode.host.totals import HostStatistics, ModelStatistics, Refusal, Refusals, Totals
from p2pnode.host.turn_times import TurnTimes
from p2pnode.host.unpaid_work import CompileTurns, UnpaidWork
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.models.engine import ANYBODY, EngineInfo, EngineStatistics
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
from p2pnode.protocols.adverts.messages import (
    ADDRESSES_TOLD,
    RELEASE_MIN,
    WARM_IN_MAX,
    Address,
    Load,
    Offer,
    Sheet,
)
from p2pnode.protocols.adverts.signatures import profile_hash
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.commands import (
    Alive,
    Kept,
    Leaving,
    NotEscrowed,
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
_LOAD_INTERVAL_S = 10.0
_MEASUREMENTS_MAX = 3
_PROBE_PAUSE_S = 5.0
"""Between two looks at what is to be probed: what is inconclusive is asked again after it."""
_RENEW_AGAIN_S = 3600.0
_PAYERS_MAX = 1024
T = TypeVar("T")
Renew: TypeAlias = Callable[[], Awaitable[HostIdentity]]
"""Gives the identity with a binding that holds for weeks. Raises ``LocalError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTurn:
    """One turn that is over. ``cost`` is what it raised the session's bill by, in token units."""

    model: str
    tokens_in: int
    tokens_out: int
    reason: str
    cost: int
    paid: bool
    times: TurnTimes


class Host:
    """Serves ``models`` on ``node``. ``start`` it when the node runs; it drains at the node's end.

    ``pool`` bounds what its models take of memory: those that don't fit together are loaded on demand.
    """

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
        pool: PoolLimits | None = None,
        probe: SelfProbe | None = None,
        prompt_filter: PromptFilter | None = None,
    ) -> None:
        self._node, self._identity, self._report, self._renew = node, identity, report, renew
        self._models_changed = trio.Event()
        self._pool = ModelPool(
            pool or PoolLimits(),
            start_soon=node.start_soon,
            on_change=self._note_change,
            report=report,
        )
        self._first_models = tuple(models)
        self._provided: dict[ModelId, trio.CancelScope] = {}
        """The models that this host tells the DHT of."""
        self._admission: Admission[ServedSession] = Admission(
            node.limits, lambda: {each.model: each.name for each in self._well}
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
        self.refusals = Refusals()
        self.recent = RecentTurns()
        self._pauses: dict[str, None] = {}
        self._probe, self._health = probe, Health()
        self._filter = prompt_filter
        self.observe: Callable[[ServedTurn], None] = lambda _turn: None
        """Is told of each turn at its end."""

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
        """The models it offers."""
        return self._pool.models

    @property
    def room(self) -> Memory:
        """What one more model may take: the memory of all models that aren't pinned."""
        return self._pool.room

    @property
    def free(self) -> Memory:
        """The memory that no model takes now."""
        return self._pool.free

    def found_gpus(self, free: int) -> None:
        """Models may take so many bytes of the GPUs' memory, which was not known before."""
        self._pool.found_gpus(free)

    def state_of(self, model: ModelId) -> State:
        """Whether a model is loaded."""
        return self._pool.state(model)

    async def start(self) -> None:
        """Serve and advertise; load each model once, and advertise how that went.

        Raises ``ConfigError`` where a model can never fit into memory, ``EngineError`` where none loads.
        """
        node = self._node
        for model in self._first_models:
            self._pool.offer(model)
        if self.escrow is not None:
            await self.escrow.prepare(self._epoch)
            await self._resumable.prepare()
            serve_receipts(node, self.escrow.journal)
        node.network.standing_of = self.standing_of
        node.serve(PROTOCOL, self._serve, streams_per_peer=node.limits.sessions_per_peer)
        if self.escrow is not None or any(model.priced for model in self._first_models):
            serve_counts(node, self._countable, self._unpaid)
        node.before_close(self.drain)
        if self.escrow is not None:
            node.start_soon(self.escrow.run)
        for model in self._first_models:
            await self._tell_of(model.model)
        await self._advertise()
        node.start_soon(self._advertise_changes)
        await self._pool.prepare()
        node.start_soon(self._pool.run)
        await self._advertise()
        node.start_soon(self._watch_load)
        if self._probe is not None:
            node.start_soon(self._watch_health, self._probe)
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

    async def offer(self, model: HostedModel) -> None:
        """Offer one more model while the host runs, and load it once.

        Raises ``ConfigError`` where it is offered already, or never fits into memory; ``EngineError`` where
        it can't be loaded: then it isn't offered.
        """
        self._pool.offer(model)
        try:
            await self._tell_of(model.model)
            (await self._pool.hold(model.model, patient=True)).release()
        except BaseException:
            self.withdraw(model.model)
            raise

    def withdraw(self, model: ModelId) -> None:
        """Offer a model no longer, and say so at once: turns under way end, then it is unloaded."""
        self._pool.withdraw(model)
        self._health.forget(model)
        if (provided := self._provided.pop(model, None)) is not None:
            provided.cancel()
        self._note_change()

    def pause(self, why: str) -> None:
        """Withdraw all offers, and take nothing new: turns under way end, and then their sessions.

        There may be several reasons; the host serves again once each of them was taken back by
        :meth:`resume`.
        """
        if why in self._pauses:
            return
        self._pauses[why] = None
        self._admission.paused = ", ".join(self._pauses)
        log.info("host.paused", why=why)
        for session in self._admission.places:
            session.drain()
        self._note_change()

    def resume(self, why: str) -> bool:
        """Take one reason back; False where it was none."""
        if why not in self._pauses:
            return False
        del self._pauses[why]
        self._admission.paused = ", ".join(self._pauses)
        log.info("host.resumed", why=why, still=list(self._pauses))
        self._note_change()
        return True

    @property
    def pauses(self) -> tuple[str, ...]:
        """Why nothing is offered now; empty where all is."""
        return tuple(self._pauses)

    async def _tell_of(self, model: ModelId) -> None:
        """Take part in the topic of a model, and have the DHT name this host for it."""
        await self._node.follow([model])
        scope = self._provided[model] = trio.CancelScope()
        self._node.start_soon(self._provide, model, scope)

    async def _provide(self, model: ModelId, scope: trio.CancelScope) -> None:
        with scope:
            await self._node.provide(model)

    async def reprice(self, model: ModelId, *, price_in: int, price_out: int) -> None:
        """Ask other prices, in USDC units per million tokens, and advertise them at once."""
        hosted = self._pool.find(model)
        if hosted is not None:
            self._pool.replace(replace(hosted, price_in=price_in, price_out=price_out))
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
                await self._pool.aclose()

    def statistics(self) -> HostStatistics:
        """What this host does now, and did since it started. Raises ``StorageError`` where the journal can't
        be read."""
        loads = self._pool.statistics().engines
        models = []
        for each in self._pool.models:
            info, load = self._pool.info(each.model), loads.get(each.model, EngineStatistics())
            models.append(
                ModelStatistics(
                    name=each.name,
                    state=self._pool.state(each.model),
                    slots=info.slots if info is not None else 0,
                    active=load.active,
                    queued=load.queued,
                    restarts=load.restarts,
                    tokens_out=load.tokens_out,
                    tokens_per_s=load.tokens_per_s,
                )
            )
        return HostStatistics(
            models=tuple(models),
            streams=len(self._admission.places),
            sessions_left=self._resumable.left,
            memory=self._pool.room,
            memory_free=self._pool.free,
            served=replace(self.totals),
            refused=dict(self.refusals.counts),
            money=self.escrow.statistics() if self.escrow is not None else None,
        )

    # ---- advertising

    def _note_change(self) -> None:
        self._models_changed.set()

    async def _advertise_changes(self) -> None:
        """Say at once what has changed of a model: it is offered or not, it loads, it is loaded or not."""
        while True:
            await self._models_changed.wait()
            self._models_changed = trio.Event()
            await self._advertise()

    async def _advertise(self) -> None:
        infos = [info for each in self._pool.models if (info := self._pool.info(each.model)) is not None]
        if infos:
            self._grants = replace(self._grants, turns_max=max(map(self._turns_max, infos)))
        await self._node.adverts.update(
            Announcement(
                binding=self._identity.binding,
                addresses=tuple(Address(multiaddr=each) for each in self._node.advertised(ADDRESSES_TOLD)),
                offers=tuple(map(self._offer, self._offered)),
                load=self._load(),
                draining=self._admission.is_draining,
                sheet=self._sheet(),
                release_min=RELEASE_MIN,
            )
        )

    @property
    def _offered(self) -> tuple[HostedModel, ...]:
        """What is advertised now."""
        return () if self._pauses else self._well

    @property
    def _well(self) -> tuple[HostedModel, ...]:
        """The models that answer."""
        return tuple(each for each in self._pool.models if not self._health.is_sick(each.model))

    def _is_probe(self, peer: PeerId) -> bool:
        """Whether it is this host that asks itself."""
        return self._probe is not None and peer == self._probe.peer

    def _sheet(self) -> Sheet:
        served = [
            Served(
                model=each.model,
                name=each.name,
                quantisation=each.quantisation,
                info=self._pool.info(each.model),
            )
            for each in self._pool.models
        ]
        return sheet_of(
            self._node.peer_id,
            served,
            self._node.advertised(),
            self._grants,
            paid=self.escrow is not None,
        )

    def _offer(self, model: HostedModel) -> Offer:
        info = self._pool.info(model.model)
        return Offer(
            model=model.model,
            n_ctx=info.n_ctx if info is not None else model.n_ctx,
            price_in=model.price_in,
            price_out=model.price_out,
            session_fee=model.session_fee if model.priced else 0,
            warm_in=_warm_in(self._pool.state(model.model), self._pool.warm_in_s(model.model)),
            caps=int(capabilities_of(info, self._grants)),
            profile=profile_hash(profile_of(info)) if info is not None else bytes(8),
        )

    def _load(self) -> Load:
        loads = self._pool.statistics().engines
        infos = [info for model in loads if (info := self._pool.info(model)) is not None]
        return Load(
            slots=sum(info.slots for info in infos),
            active=sum(each.active for each in loads.values()),
            queued=sum(each.queued for each in loads.values()),
        )

    async def _watch_load(self) -> None:
        idle: set[ModelId] = set()
        """Models that nobody had asked anything when that was looked at last."""
        while True:
            await trio.sleep(_LOAD_INTERVAL_S)
            was_idle = idle
            loads = self._pool.statistics().engines
            idle = {model for model, load in loads.items() if not (load.active or load.queued)}
            for model in idle & was_idle:
                if self._measurements[model] < _MEASUREMENTS_MAX:
                    await self._measure(model)
            await self._advertise()

    async def _watch_health(self, probe: SelfProbe) -> None:
        """Probe what is loaded and idle; a sick model is withdrawn, and offered again once it answers."""
        async with trio.open_nursery() as nursery:
            await nursery.start(probe.run)
            under_way: set[ModelId] = set()
            while True:
                for each in () if self._pauses else self._pool.models:
                    # All at once: one that hangs holds its probe for 10 s, and must not keep another waiting.
                    if each.model not in under_way:
                        nursery.start_soon(self._look_after, probe, each, under_way)
                await trio.sleep(_PROBE_PAUSE_S)

    async def _look_after(self, probe: SelfProbe, model: HostedModel, under_way: set[ModelId]) -> None:
        """Probe a model if it is time to. Its id is ``under_way`` until that is over."""
        load = self._pool.statistics().engines.get(model.model)
        if load is None:
            # To load it only to see whether it can be would cost others their memory. And an engine that is
            # gone is not sick: without an offer nobody would have the next one loaded.
            self._note_health(model, changed=self._health.unloaded(model.model))
        # While it is busy, how its turns end says more.
        elif not (load.active or load.queued or self._health.wait_s(model.model, trio.current_time())):
            under_way.add(model.model)
            try:
                await self._probe_model(probe, model)
            finally:
                under_way.discard(model.model)

    async def _probe_model(self, probe: SelfProbe, model: HostedModel) -> None:
        try:
            failure = await probe.ask(model.model, embeds=model.only_embeds)
        except (UnreachableError, RefusedError) as error:
            log.debug("probe.inconclusive", model=model.name, reason=str(error))
            return
        now = trio.current_time()
        if not failure:
            self._note_health(model, changed=self._health.succeeded(model.model, now))
        else:
            log.info("probe.failed", model=model.name, reason=failure)
            self._note_health(model, changed=self._health.failed(model.model, failure, now))

    def _note_health(self, model: HostedModel, *, changed: bool) -> None:
        """Tell the network and the owner of a model that became sick, or is well again."""
        if not changed:
            return
        sick, reason = self._health.is_sick(model.model), self._health.reason(model.model)
        log.warning("model.sick" if sick else "model.well", model=model.name, reason=reason)
        self._report("model.sick" if sick else "model.well", {"name": model.name, "reason": reason})
        self._note_change()

    async def _measure(self, model: ModelId) -> None:
        """Have an engine measured that is not needed now: what its profile then says is the engine's own."""
        held = self._pool.hold_idle(model)
        if held is None:
            return
        self._measurements[model] += 1
        try:
            first, again = await held.engine.arithmetic(), await held.engine.arithmetic()
        except EngineError as error:
            log.debug("arithmetic.not_measured", reason=str(error))
            return
        finally:
            held.release()
        if first != again:  # somebody else was served meanwhile, with whom it was computed together
            log.debug("arithmetic.unsteady", model=model.hex()[:16])
            return
        self._measurements[model] = _MEASUREMENTS_MAX
        self._pool.note_arithmetic(model, first)

    # ---- serving

    async def _serve(self, stream: Stream) -> str | None:
        node = self._node
        machine = HostSession(
            peer=stream.peer,
            stream=0,
            admit=lambda message: self._noted(stream.peer, self._admit(session, message)),
            sign=self._identity.key.sign,
            epoch=self._epoch,
            draw=node.draw,
            terms=self._terms(0),
            resume=lambda message: self._noted(stream.peer, self._find(session, message)),
        )
        session = ServedSession(
            machine,
            stream,
            limits=node.limits,
            work_of=lambda opened: self._work_of(session, opened),
            on_opened=lambda opened: self._opened(session, opened),
            on_turn=lambda turn, times: self._served(session, turn, times),
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
        info = self._pool.info(terms.model)
        keep_s, who = journalled.keep_s, origin_of_payer(terms)
        n_ctx, turns_max = (1, 1) if info is None else (info.n_ctx, self._turns_max(info))
        granted = self._terms(n_ctx, payment, who if info is not None else None, keep_s)
        return replace(granted, turns_max=turns_max, window=journalled.window)

    def _noted(self, peer: PeerId, decision: T) -> T:
        """The same, and a refusal is counted."""
        if isinstance(decision, Refuse) and not self._is_probe(peer):
            self.refusals.add(Refusal(self._node.wall(), decision.code, decision.detail))
        return decision

    def _countable(self, model: ModelId) -> tuple[HoldModel, int] | Refuse:
        found = self._askable(model)
        return found if isinstance(found, Refuse) else (partial(self._pool.hold, model), found[1].n_ctx)

    def _askable(self, model: ModelId, *, probing: bool = False) -> tuple[HostedModel, EngineInfo] | Refuse:
        """A model that can be asked now, or soon: a cold one begins to load. Else why it can't be."""
        if refusal := self._admission.refuses_all() if probing else self._admission.refuses_model(model):
            return refusal
        hosted, info = self._pool.find(model), self._pool.info(model)
        # A probe wants nothing: it must not keep a model in memory, nor load one.
        not_now = None if probing else self._pool.want(model)
        if not_now is not None:
            return Refuse(code="capacity", detail=not_now.detail, retry_after_s=not_now.retry_after_s)
        if hosted is None or info is None:
            retry_s = self._pool.warm_in_s(model)
            return Refuse(code="capacity", detail="the model is still loading here", retry_after_s=retry_s)
        return hosted, info

    def _admit(self, session: ServedSession, message: Open) -> HostTerms | Refuse:
        probing = self._is_probe(session.peer)
        found = self._askable(message.model, probing=probing)
        if isinstance(found, Refuse):
            return found
        model, info = found
        payment = None
        if message.terms is not None or (model.priced and not probing):
            payment = self._payment(model)
            if payment is None:
                return _cannot_be_paid(model)
            if self.escrow is not None and (refusal := self._refuses(self.escrow, message, payment)):
                return refusal
        decision = self._admission.decide_open(session, trio.current_time())
        if probing and decision is not None:  # nobody gives way to it
            return Refuse(code="capacity", detail="all sessions of this host are taken")
        if refusal := self._made_room(decision):
            return refusal
        self.totals.sessions += not probing
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
        model = self._pool.find(order.request.model)
        if model is None:  # it was withdrawn while the client signed
            detail = "this host does not serve the model any more: use another host"
            stream.tell(NotEscrowed(Refuse(code="model_not_available", detail=detail)))
            return
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
        model, node = opened.model, self._node
        if self._pool.find(model) is None:
            return None
        probing = self._is_probe(stream.peer)
        work = SessionWork(
            partial(self._hold_idle, model) if probing else partial(self._pool.hold, model),
            stream.origin,
            limits=node.limits,
            start_soon=lambda function, *args: node.start_soon(node.network.guard.run, function, *args),
            escrow=self.escrow,
            on_turn=lambda turn, times: self._served(stream, turn, times),
            unpaid=self._unpaid,
            compiling=self._compiling,
            prompt_filter=None if probing else self._filter,
        )
        if stream.paid or (stream.record is not None and stream.record.granted.keep_s):
            self._work[opened.session] = work
        return work

    async def _hold_idle(self, model: ModelId, *, embeds: bool = False) -> Hold:  # noqa: ARG002
        """Hold a model for a probe: that is no work, so it is unloaded after a time without any as ever."""
        held = self._pool.hold_idle(model)
        if held is None:
            raise EngineError("the model is in use, or not loaded", code="capacity")
        return held

    def _stop_work(self, session: SessionId) -> None:
        work = self._work.pop(session, None)
        if work is not None:
            work.stop()

    async def _opened(self, stream: ServedSession, opened: Opened) -> None:
        record, model = stream.record, self._pool.find(opened.model)
        if record is not None and (stream.paid or record.granted.keep_s):
            if opened.recovered:
                why = await self._resumable.recovered(record, stream)
                # Of a model that is not offered any more the voucher is taken, and no turn is served.
                if why or self._pool.info(opened.model) is None:
                    log.info("session.not_served", session=opened.session.hex()[:16], reason=why or "cold")
                    stream.drain()
            else:
                await self._resumable.began(record, stream)
        name = model.name if model is not None else opened.model.hex()[:16]
        log.info("session.opened", session=opened.session.hex()[:16], model=name, recovered=opened.recovered)

    def _settled(self, record: HostedSession, amount: int) -> None:
        self._resumable.settled(record.session)
        self._report("settled", {"session": record.session.hex(), "amount": amount})

    def _served(self, stream: ServedSession, turn: TurnServed, times: TurnTimes) -> None:
        if self._is_probe(stream.peer):
            return
        model = None if stream.record is None else self._pool.find(stream.record.model)
        if model is not None and self._probe is not None:  # nothing but a probe would bring it back
            changed = self._health.note_turn(model.model, turn.reason, trio.current_time())
            self._note_health(model, changed=changed)
        self.totals.turns += 1
        self.totals.tokens_in += turn.tokens_in
        self.totals.tokens_out += turn.tokens_out
        if turn.reason in WIRE_CODES and not turn.tokens_out:
            self.refusals.add(Refusal(self._node.wall(), turn.reason, "a question of an open session"))
        cost, model = _cost_of(stream.record, turn), None
        if stream.record is not None:
            model = self._pool.find(stream.record.model)
        served = ServedTurn(
            model=model.name if model is not None else "withdrawn",
            tokens_in=turn.tokens_in,
            tokens_out=turn.tokens_out,
            reason=turn.reason,
            cost=cost,
            paid=stream.paid,
            times=times,
        )
        self._report(
            "answered",
            {
                "peer": stream.peer,
                "tokens_in": turn.tokens_in,
                "tokens_out": turn.tokens_out,
                "reason": turn.reason,
                "cost": cost,
            },
        )
        self.recent.note(turn.reason, times)
        self.observe(served)
        # One line for each turn, with all that is known of it: whoever looks into a slow one needs no other.
        log.info(
            "turn.served",
            peer=stream.peer,
            session=stream.session.hex()[:16] if stream.session is not None else None,
            turn=turn.turn,
            model=served.model,
            tokens_in=turn.tokens_in,
            tokens_out=turn.tokens_out,
            reason=turn.reason,
            cost=cost,
            paid=served.paid,
            total_s=round(trio.current_time() - times.asked_at, 3),
            first_token_s=None if times.first_token_s is None else round(times.first_token_s, 3),
            **{f"{name}_s": round(seconds, 3) for name, seconds in times.phases.items()},
        )


def _warm_in(state: State, seconds: float) -> int:
    """How an offer tells the time to load a model."""
    told = min(WARM_IN_MAX, math.ceil(seconds))
    return {"warm": 0, "cold": told, "warming": -told}[state]


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
