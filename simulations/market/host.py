"""A host of a simulated market: it admits, counts, generates, journals and settles.

What is decided is the node's own: ``HostSession``, ``Admission``, ``Exposure``, ``settlement_policy``,
``SlotQueue`` and the adverts' machines. Here is what acts on it, in place of tasks, streams and files: a
``HostDisk`` is what its disk holds, and outlives a crash. Sessions are not left with a host here
(``keep_s`` is 0): one whose stream is lost lingers, is resumed, or is settled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from p2pnode.bounded import BoundedMap
from p2pnode.host.admission import Admission, origin_of_payer
from p2pnode.host.held_sessions import HeldSessions
from p2pnode.host.sheet import Grants, capabilities_of
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.models.engine import ANYBODY, EngineInfo
from p2pnode.payments import settlement_policy as policy
from p2pnode.payments.exposure import ExposureLimits
from p2pnode.payments.gas_budget import GasBudget
from p2pnode.payments.journal.records import HostedSession
from p2pnode.protocols.adverts.exchange import Announcement
from p2pnode.protocols.adverts.messages import Address, Load, Offer
from p2pnode.protocols.events import Emit, TimerFired
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.commands import (
    Alive,
    AskAlive,
    CancelGenerate,
    Count,
    Counted,
    CountFailed,
    Drain,
    Escrowed,
    Finished,
    Generate,
    GiveWay,
    InUse,
    Issued,
    Kept,
    Leaving,
    NotEscrowed,
    Opened,
    Paid,
    Probe,
    Relay,
    Replaced,
    TurnServed,
)
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    WINDOW,
    Open,
    PromptBody,
    Receipt,
    Refuse,
    Resume,
    Voucher,
)
from p2pnode.protocols.inference.open_rules import HostPayment, check_open
from p2pnode.protocols.inference.open_session import LapsedSession, OpenSession
from p2pnode.protocols.inference.prompt_rules import cache_scope
from p2pnode.protocols.inference.prompts import TurnPlaces
from p2pnode.protocols.inference.receipts import ids_hash
from p2pnode.protocols.inference.turn_memory import SessionMemory, TurnMemory
from p2pnode.protocols.typed_data import amount_due, session_id
from p2pnode.shares import Origin
from p2pnode.simulations.market.company import Company
from p2pnode.simulations.market.economy import Owner, Prices
from p2pnode.simulations.market.engines import Engines, Run, SimulatedEngine, prompt_ids
from p2pnode.simulations.market.escrow import Escrow, HostDisk
from p2pnode.simulations.market.ledger import EPOCH_S, Chain
from p2pnode.simulations.market.surroundings import Surroundings
from p2pnode.simulations.parameters import require_not_negative, require_positive
from p2pnode.simulations.signatures import sign_with
from p2pnode.simulations.world import Link, Node, Shell

PROTOCOL: Final = "inference"
_PAYERS_MAX: Final = 1024
_LOAD_INTERVAL_S: Final = 10.0
_RETRY_S: Final = 30.0
_EXPIRY_MIN_S: Final = 1800
_VALID_MIN_S: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """How many hosts there are, and how they are set up. ``models``: hosts are shared out evenly among them.

    ``bootstrap`` of them are known to everybody from the start. ``linger_s``: how long a paid session whose
    stream is lost may be resumed before it is settled.
    """

    count: int = 20
    models: int = 1
    bootstrap: int = 3
    dials: int = 8
    """Connections that each host opens to others."""
    sessions_max: int = 64
    sessions_per_peer: int = 8
    turns_per_session: int = 4
    count_s: float = 0.005
    """What counting a prompt takes."""
    linger_s: float = 300.0
    keep_hours: float = 0.0
    """How long a host keeps sessions of clients that left; 0: not at all."""
    book_max: int = 4096

    def __post_init__(self) -> None:
        require_positive(
            self, "count", "models", "bootstrap", "sessions_max", "sessions_per_peer", "turns_per_session",
            "linger_s", "book_max",
        )  # fmt: skip
        require_not_negative(self, "dials", "count_s", "keep_hours")
        if self.bootstrap > self.count:
            msg = f"bootstrap is {self.bootstrap} and count is {self.count}: there are not so many hosts"
            raise ValueError(msg)
        if self.models > self.count:
            msg = f"models is {self.models} and count is {self.count}: each model needs a host"
            raise ValueError(msg)

    @property
    def keep_s(self) -> int:
        """The same in seconds."""
        return round(3600 * self.keep_hours)

    def limits(self) -> Limits:
        """The node's limits with these in place."""
        return replace(
            DEFAULT_LIMITS,
            sessions_max=self.sessions_max,
            sessions_per_peer=self.sessions_per_peer,
            turns_per_session=self.turns_per_session,
            linger_s=self.linger_s,
            book_max=self.book_max,
        )


class Work:
    """The counts and engine requests of one session; they go on while no stream has it."""

    __slots__ = ("origin", "payer", "prompts", "record", "runs", "stream")

    def __init__(self, record: OpenSession, origin: Origin) -> None:
        self.record, self.origin = record, origin
        self.stream: HostStream | None = None
        self.prompts: dict[int, tuple[int, ...]] = {}
        self.runs: dict[int, Run] = {}
        terms = record.channel.terms
        self.payer = origin
        if not record.channel.free:
            self.payer = origin_of_payer(terms)


class HostStream:
    """One client's stream at a host: a place, as ``Admission`` knows it."""

    __slots__ = (
        "address", "client", "finished", "host", "is_draining", "is_yielding", "machine", "origin", "paid",
        "peer", "rests_since", "session", "shell", "work",
    )  # fmt: skip

    def __init__(self, host: Host, client: Node) -> None:
        self.host, self.client, self.peer = host, client, client.peer
        self.origin = client.origin
        self.address: str | None = client.ip
        self.paid = self.is_yielding = self.is_draining = False
        self.rests_since: float | None = host.now
        self.session: SessionId | None = None
        self.finished: Finished | None = None
        self.work: Work | None = None
        self.machine: Any
        """A ``HostSession``, or what a dishonest host has in its place."""
        self.shell: Shell

    @property
    def record(self) -> OpenSession | None:
        """The session that it has; None before it is accepted."""
        record: OpenSession | None = self.machine.session
        return record

    def replaced(self) -> None:
        """Another stream has its session."""
        self.host.later(self.shell.command, Replaced())

    def ask_alive(self) -> None:
        """Somebody claims its session: find out whether its client lives."""
        self.host.later(self.shell.command, AskAlive())

    def in_use(self) -> None:
        """The session that it wants is used by another one that lives."""
        self.host.later(self.shell.command, InUse())

    def drain(self) -> None:
        """End after the present turn."""
        self.is_draining = True
        self.host.later(self.shell.command, Drain())

    def give_way(self) -> None:
        """End now, or after the turn that is served."""
        self.is_yielding = True
        if self.rests_since is None:
            self.drain()
        for key in ("open", "idle", "prompt"):
            if key in self.shell.timers:
                self.host.later(self.shell.give, TimerFired(key))


class HostParameters(Protocol):
    """What a host needs of the parameters of its market."""

    @property
    def hosts(self) -> Hosts:
        """Of all hosts."""
        ...

    @property
    def engines(self) -> Engines:
        """Of what they answer with."""
        ...

    @property
    def chain(self) -> Chain:
        """Of what they are paid on."""
        ...


class HostMarket(Surroundings, Protocol):
    """What a host needs of its market."""

    exposure_limits: ExposureLimits

    @property
    def parameters(self) -> HostParameters:
        """How it is set up."""
        ...

    def gossips(self, peer: PeerId) -> bool:
        """Whether a peer takes part in gossip."""
        ...

    def model_name(self, model: ModelId) -> str:
        """What people call a model."""
        ...

    def new_host_session(self, host: Host, **arguments: Any) -> Any:
        """The machine of a stream at a host."""
        ...

    def note_paid(self, host: Host, session: SessionId, voucher: Voucher) -> None:
        """A host took a voucher."""
        ...

    def note_unpaid(self, host: Host, record: OpenSession) -> None:
        """A host gave up what a session owes."""
        ...

    def note_left(self, host: Host, record: OpenSession) -> None:
        """A client left its session with a host that keeps it."""
        ...

    def note_gas(self, host: Host, wei: int, most: int) -> None:
        """A settlement cost so much gas."""
        ...

    def note_gas_too_dear(self, host: Host) -> None:
        """A settlement waits for cheaper gas."""
        ...

    def note_client_fault(self, host: Host, stream: HostStream, reason: str) -> None:
        """A host says that a client broke the protocol."""
        ...


class Host:
    """One host from a start to its end."""

    def __init__(self, market: HostMarket, node: Node, profile: HostProfile) -> None:
        self.market, self.node, self.profile = market, node, profile
        self.world, self.limits = market.world, market.limits
        disk = self.disk = profile.disk
        disk.starts += 1
        self.epoch = disk.epoch = max(int(self.wall() * 1000), disk.epoch + 1)
        self.is_over = self._is_warm = False
        random = market.world.draws("host", node.number, disk.starts)
        self._random = random
        self.engine = profile.make_engine()
        models = {profile.model: market.model_name(profile.model)}
        self.admission: Admission[HostStream] = Admission(self.limits, lambda: models)
        self.grants = Grants(
            turns_max=min(self.limits.turns_per_session, self.engine.slots),
            keep_s=market.parameters.hosts.keep_s,
        )
        self._info = EngineInfo(
            engine="simulated",
            quantisation="",
            n_ctx=market.parameters.engines.n_ctx,
            slots=self.engine.slots,
        )
        self._memory = TurnMemory()
        self._places: BoundedMap[str, TurnPlaces] = BoundedMap(_PAYERS_MAX)
        self.work: dict[SessionId, Work] = {}
        self.escrow = Escrow(
            self,
            market.chain,
            profile.wallet,
            profile.owner,
            disk,
            limits=self.limits,
            exposure_limits=market.exposure_limits,
            budget=GasBudget(ether_price=market.parameters.chain.ether_price),
        )
        self.held: HeldSessions[HostStream] = HeldSessions(
            self.escrow,
            epoch=self.epoch,
            grants=self._granted,
            wall=self.wall,
            limits=self.limits,
            on_gone=self._stop_work,
        )
        self._linger_over: dict[SessionId, float] = {}
        """Of sessions whose stream was lost: when the linger is over."""
        self._busy_before = (self.now, 0.0)
        self.escrow.prepare()
        for record in disk.in_state("over"):
            if record.left_until is not None:
                left = record.session, record.terms.payer, record.origin, record.left_until
                self._settle_all(self.held.keep(*left))
        self.adverts = market.adverts_of(node, gossips=True)
        self.adverts.follow(profile.model)
        self.announce()
        self.later(self._load_engine)
        self.company = Company(
            self.world, node, self.adverts, limits=self.limits, first=profile.peers, guarded=self.guarded
        )
        self.company.begin()
        self.after(_LOAD_INTERVAL_S, self._watch_load)
        self.escrow.look()

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        return self.world.now

    def wall(self) -> float:
        """Epoch seconds."""
        return EPOCH_S + self.world.now

    def later(self, action: Callable[..., object], *arguments: Any) -> None:
        """Do it when what is done now is done, unless the host is gone by then."""
        self.world.loop.after(0.0, self._unless_over, action, arguments)

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """The same, later."""
        self.world.loop.after(seconds, self._unless_over, action, arguments)

    def guarded(self, action: Callable[..., None]) -> Callable[..., None]:
        """``action``, unless the host is gone by then."""
        return lambda *arguments: self._unless_over(action, arguments)

    def _unless_over(self, action: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if not self.is_over:
            action(*arguments)

    # ---- what it says of itself

    def announce(self) -> None:
        """Say what is offered now."""
        prices, profile = self.profile.prices, self.profile
        self.adverts.update(
            Announcement(
                binding=profile.binding,
                addresses=(Address(multiaddr=f"/ip4/{self.node.ip}/tcp/4001"),),
                offers=(
                    Offer(
                        model=profile.model,
                        n_ctx=self._info.n_ctx,
                        price_in=prices.price_in,
                        price_out=prices.price_out,
                        session_fee=0 if prices.free else prices.session_fee,
                        warm_in=0 if self._is_warm else -1,
                        caps=int(capabilities_of(self._info, self.grants)),
                    ),
                ),
                load=Load(slots=self.engine.slots, active=self.engine.active, queued=self.engine.queued),
                draining=self.admission.is_draining,
            )
        )

    def _load_engine(self) -> None:
        """It has loaded its model, which takes no time here: its offer is warm from now on."""
        self._is_warm = True
        self.announce()

    def _watch_load(self) -> None:
        self.announce()
        self.after(_LOAD_INTERVAL_S * (1 + 0.1 * self._random.random()), self._watch_load)

    def busy_share(self) -> float:
        """The share of its slots that was used since this was asked last."""
        since, before = self._busy_before
        running = sum(
            self.now - max(since, run.begun_at)
            for work in self.work.values()
            for run in work.runs.values()
            if not run.is_over and run.begun_at
        )
        used = self.engine.busy_s - before + running
        self._busy_before = (self.now, self.engine.busy_s)
        return min(1.0, used / max(1e-9, (self.now - since) * self.engine.slots))

    def drain(self) -> None:
        """Take nothing new, end after the present turns, and withdraw the advert."""
        self.admission.is_draining = True
        self.announce()
        for stream in sorted(self.admission.places, key=lambda each: each.peer):
            stream.drain()
        self.adverts.withdraw()

    def stop(self) -> None:
        """It crashed: all but the disk is gone."""
        self.is_over = True
        for stream in self.admission.places:
            stream.shell.stop()

    # ---- streams

    def open_stream(self, client: Node, link: Link) -> HostStream:
        """A client opens a stream; ``link`` leads from this host to it."""
        stream = HostStream(self, client)
        machine = stream.machine = self.market.new_host_session(
            self,
            peer=client.peer,
            stream=0,
            admit=lambda message: self._admit(stream, message),
            sign=sign_with(self.node.public_key),
            epoch=self.epoch,
            draw=self._draw,
            terms=self._terms(),
            resume=lambda message: self._find(stream, message),
        )
        stream.shell = self.world.shell(
            self.node,
            PROTOCOL,
            machine,
            on_emit=lambda value: self._emitted(stream, value),
            size=self.market.size_of,
        )
        self.admission.enter(stream)
        self.market.note_shell(link, stream.shell)
        stream.shell.perform(machine.start(self.now))
        return stream

    def _draw(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def _terms(self, payment: HostPayment | None = None, who: Origin = ANYBODY, keep_s: int = 0) -> HostTerms:
        limits = self.limits
        places = self._places.use(who.near, lambda: TurnPlaces(limits.turns_per_origin))
        return HostTerms(
            n_ctx=self._info.n_ctx,
            host=self.node.peer,
            keep_s=min(keep_s, self.grants.keep_s),
            settle_above=policy.settle_above(payment.session_fee) if payment is not None else 0,
            stall_s=limits.stall_s,
            idle_s=limits.idle_session_s,
            open_s=limits.first_frame_deadline_s,
            relay_s=limits.escrow_deadline_s + limits.chain_deadline_s,
            payment=payment,
            memory=SessionMemory(self._memory, who),
            places=places,
            recover=self.market.keys.recover,
        )

    def _payment(self, prices: Prices) -> HostPayment | None:
        if prices.free:
            return None
        profile, domains = self.profile, self.market.chain.domains
        return HostPayment(
            market=domains.market,
            token=domains.token,
            peer=self.node.peer,
            wallet=profile.wallet,
            receipt_key=profile.receipt_key,
            sign=self.market.keys.signer(profile.receipt_key),
            price_in=prices.price_in,
            price_out=prices.price_out,
            session_fee=prices.session_fee,
            expiry_min_s=_EXPIRY_MIN_S,
            valid_min_s=_VALID_MIN_S,
        )

    def _admit(self, stream: HostStream, request: Open) -> HostTerms | Refuse:
        refusal = self.admission.refuses_model(request.model)
        if refusal is not None:
            return refusal
        payment = self._payment(self.profile.prices)
        if payment is not None:
            refusal = check_open(request, payment, int(self.wall()), recover=self.market.keys.recover)
            if refusal is not None:
                return refusal
            if request.terms is not None and session_id(payment.market, request.terms) in self.disk.sessions:
                return Refuse(code="bad_request", detail="this session was opened before: resume it")
        if (refusal := self._made_room(self.admission.decide_open(stream, self.now))) is not None:
            return refusal
        terms, turns_max, window = request.terms, self.grants.turns_max, WINDOW
        who = origin_of_payer(terms) if terms is not None else stream.origin
        if turns_max > 1:
            window = CHECKPOINT_EVERY * (turns_max + 1)
            if terms is not None:
                owed = amount_due(terms, 0, window) - terms.session_fee
                if self.escrow.exposure.why_not(terms.payer, stream.client.ip, owed, self.wall()):
                    window = WINDOW
        return replace(self._terms(payment, who, request.keep_s), turns_max=turns_max, window=window)

    @staticmethod
    def _made_room(decision: Refuse | HostStream | None) -> Refuse | None:
        if isinstance(decision, HostStream):
            decision.give_way()
            return None
        return decision

    def _find(self, stream: HostStream, request: Resume) -> OpenSession | LapsedSession | Refuse:
        if refusal := self.admission.refuses_all():
            return refusal
        if refusal := self._made_room(self.admission.decide_resume(stream, self.now)):
            return refusal
        return self.held.find(request, stream)

    def _granted(self, journalled: HostedSession) -> HostTerms:
        """What a session of an earlier start is granted now, at its own prices."""
        terms = journalled.terms
        prices = Prices(terms.price_in, terms.price_out, terms.session_fee)
        granted = self._terms(self._payment(prices), origin_of_payer(terms), journalled.keep_s)
        return replace(granted, turns_max=self.grants.turns_max, window=journalled.window)

    # ---- what a session's machine decides

    def _emitted(self, stream: HostStream, value: Any) -> None:
        match value:
            case Issued(receipt=receipt):
                self._issued(stream, receipt)
            case Paid(voucher=voucher):
                self._paid(stream, voucher)
            case Count() | Generate() | CancelGenerate() | TurnServed():
                if stream.work is not None:
                    self._perform(stream.work, value)
                self._note_rest(stream)
            case Opened():
                self._opened(stream, value)
            case Relay():
                self._relay(stream, value)
            case Finished():
                self._finished(stream, value)
            case Leaving():
                self._leave(stream, value)
            case Probe(session=session):
                self.held.probe(session, stream)
            case Alive(session=session):
                self.held.alive(session)
            case _:
                pass

    def _note_rest(self, stream: HostStream) -> None:
        record = stream.machine.session
        if record is not None and any(turn.state == "serving" for turn in record.turns.values()):
            stream.rests_since = None
        elif stream.rests_since is None:
            stream.rests_since = self.now

    def _opened(self, stream: HostStream, opened: Opened) -> None:
        stream.session = opened.session
        record = stream.machine.session
        if record is not None:
            self._has(stream, record, recovered=opened.recovered)

    def _has(self, stream: HostStream, record: OpenSession, *, recovered: bool) -> None:
        session = record.session
        stream.paid = not record.channel.free
        work = self.work.get(session)
        if work is None or work.record is not record:
            work = self.work[session] = Work(record, stream.origin)
        work.stream, stream.work = stream, work
        record.granted.memory.give_way = lambda turn: self.later(self._report, work, GiveWay(turn))
        known = self.held.has(record, stream)
        if record.channel.free:
            return
        if recovered and record.generation:
            self.escrow.taken_up(session, record.epoch, record.generation)
        elif recovered:
            if not self.escrow.recovered(session, record.epoch, stream.client.ip):
                stream.drain()
        elif known:
            self.escrow.resumed(session)

    # ---- money

    def _relay(self, stream: HostStream, order: Relay) -> None:
        stream.session, stream.paid = order.session, True
        self.escrow.take(
            order,
            peer=stream.peer,
            address=stream.client.ip,
            origin=stream.origin.near,
            epoch=self.epoch,
            keep_s=min(order.request.keep_s, self.grants.keep_s),
            then=lambda refusal: self.later(
                stream.shell.command, Escrowed() if refusal is None else NotEscrowed(refusal)
            ),
        )

    def _issued(self, stream: HostStream, receipt: Receipt) -> None:
        if stream.session is not None and stream.session in self.disk.sessions:
            self.disk.issue(stream.session, receipt)

    def _paid(self, stream: HostStream, voucher: Voucher) -> None:
        session = stream.session
        if session is None or session not in self.disk.sessions:
            return
        before = self.disk.sessions[session].voucher
        if before is None or voucher.amount > before.amount:
            self.disk.change(session, voucher=voucher)
        self.market.note_paid(self, session, voucher)

    def settled(self, session: SessionId) -> None:
        """A session is settled: nobody goes on with it."""
        self.held.settled(session)
        if self.held.record_of(session) is not None and self.held.live_of(session) is None:
            self.held.give_up(session)

    def paid_gas(self, wei: int, most: int) -> None:
        """A settlement cost so much gas, and could cost ``most``."""
        self.market.note_gas(self, wei, most)

    def gas_was_too_dear(self) -> None:
        """A settlement waits for cheaper gas."""
        self.market.note_gas_too_dear(self)

    # ---- the end of a stream

    def _leave(self, stream: HostStream, order: Leaving) -> None:
        """Keep a session whose client leaves, as long as it wants and this host keeps it."""
        record = stream.record
        assert record is not None  # noqa: S101 - only an open session is left
        until = self.held.until(record, 0 if self.admission.is_draining else order.until)
        if not record.channel.free:
            self.escrow.note_left(record.session, until)
        if self.held.leave(record, stream):
            self._settle_all(self.held.remember(record, stream.origin.near, until))
        elif not record.channel.free:
            self.escrow.resumed(record.session)
        self.market.note_left(self, record)
        self.later(stream.shell.command, Kept(until))

    def _finished(self, stream: HostStream, finished: Finished) -> None:
        stream.finished = finished
        if finished.fault:
            self.market.note_client_fault(self, stream, finished.reason)
        self.later(self.world.close, stream.shell)
        self.later(self._put_down, stream)

    def _put_down(self, stream: HostStream) -> None:
        """A stream is over: what becomes of its session."""
        stream.shell.stop()
        self.admission.leave(stream)
        session, finished, record = stream.session, stream.finished, stream.record
        if session is None or finished is None or finished.left:
            return
        kept = record is not None and record.granted.keep_s > 0
        if self.escrow.abandon(session) or not (stream.paid or kept):
            if record is not None and self.held.live_of(session) is stream:
                self.held.ended(session, stream, lingers=False)
                self._stop_work(session)
            return
        lingers = finished.lingers and not self.admission.is_draining
        if lingers and stream.work is not None:
            stream.work.stream = None
        elif not finished.replaced:
            self._stop_work(session)
        if not lingers and record is not None and self.held.live_of(session) is stream:
            self.market.note_unpaid(self, record)
        end = self.held.ended(session, stream, lingers=lingers)
        if end is not None and end.left_until is not None:
            self.escrow.note_left(session, end.left_until)
        elif end is not None:
            self.escrow.over(session, unpaid=end.unpaid, lingers=end.lingers)
        if lingers:
            self._linger_over[session] = at = self.now + self.limits.linger_s
            self.after(self.limits.linger_s, self._lingered, session, at)

    def _lingered(self, session: SessionId, planned: float) -> None:
        """Nobody came back in time, or somebody did."""
        if self._linger_over.get(session) != planned:
            return  # it was resumed, and lost again
        del self._linger_over[session]
        record = self.held.record_of(session)
        if record is not None and self.held.live_of(session) is None and not record.channel.free:
            self.market.note_unpaid(self, record)
        self._settle_all(self.held.lingered(session))

    def _settle_all(self, sessions: list[SessionId]) -> None:
        for session in sessions:
            self.escrow.settle(session)

    # ---- work

    def _perform(self, work: Work, value: Count | Generate | CancelGenerate | TurnServed) -> None:
        match value:
            case Count(turn=turn, body=body):
                self.after(self.market.parameters.hosts.count_s, self._count, work, turn, body)
            case Generate(turn=turn, run=number):
                record = work.record
                work.runs[number] = self.engine.generate(
                    value,
                    ids=work.prompts.get(turn, ()),
                    key=cache_scope(record.session, value.body),
                    origin=work.payer,
                    session=record.session,
                    report=lambda report: self._unless_over(self._report, (work, report)),
                )
            case CancelGenerate(run=number):
                if (run := work.runs.pop(number, None)) is not None:
                    self.engine.cancel(run)
            case TurnServed(turn=turn, tokens_in=tokens_in, tokens_out=tokens_out):
                work.prompts.pop(turn, None)
                work.runs = {number: run for number, run in work.runs.items() if not run.is_over}
                self.profile.owner.tokens_in += tokens_in
                self.profile.owner.tokens_out += tokens_out

    def _count(self, work: Work, turn: int, body: PromptBody) -> None:
        ids = prompt_ids(body)
        n_ctx = self._info.n_ctx
        if len(ids) >= n_ctx:
            detail = f"the conversation takes {len(ids)} tokens, this context holds {n_ctx}"
            self._report(work, CountFailed(turn, "context_overflow", detail))
            return
        work.prompts[turn] = ids
        reused = min(self.engine.reusable(cache_scope(work.record.session, body), ids), len(ids))
        self._report(work, Counted(turn, len(ids), reused, prompt_hash=ids_hash(ids)))

    def _report(self, work: Work, report: Any) -> None:
        """Tell whoever has the session."""
        stream = work.stream
        if stream is not None and not stream.shell.is_over:
            stream.shell.command(report)
            return
        record = work.record
        for effect in record.report_detached(report, self.now):
            if isinstance(effect, Emit):
                match effect.value:
                    case Count() | Generate() | CancelGenerate() | TurnServed() as order:
                        self._perform(work, order)
                    case Issued(receipt=receipt):
                        self.disk.issue(record.session, receipt)
                    case _:
                        pass

    def _stop_work(self, session: SessionId) -> None:
        work = self.work.pop(session, None)
        if work is not None:
            work.record.granted.memory.forget_role()
            for run in work.runs.values():
                self.engine.cancel(run)
            work.runs.clear()


@dataclass(slots=True)
class HostProfile:
    """Who a host is, whatever start of it."""

    model: ModelId
    wallet: bytes
    receipt_key: bytes
    binding: Any
    prices: Prices
    owner: Owner
    make_engine: Callable[[], SimulatedEngine]
    disk: HostDisk = field(default_factory=HostDisk)
    peers: tuple[PeerId, ...] = ()
