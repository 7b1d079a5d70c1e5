"""A host of a simulated market: it admits, counts, generates, journals and settles.

What is decided is the node's own: ``HostSession``, ``Admission``, ``Exposure``, ``settlement_policy``,
``SlotQueue`` and the adverts' machines. Here is what acts on it, in place of tasks, streams and files: a
``HostDisk`` is what its disk holds, and outlives a crash. Sessions are not left with a host here
(``keep_s`` is 0): one whose stream is lost lingers, is resumed, or is settled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from p2pnode.bounded import BoundedMap
from p2pnode.chain.ledger import Close, CloseMany, LedgerEvent, Refund, Release, SessionClosed
from p2pnode.chain.ledger import Open as OpenCall
from p2pnode.errors import ChainError
from p2pnode.host.admission import Admission, origin_of_payer
from p2pnode.host.sheet import Grants, capabilities_of
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.models.engine import ANYBODY, EngineInfo
from p2pnode.payments import settlement_policy as policy
from p2pnode.payments.exposure import Exposure, ExposureLimits
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
    NotEscrowed,
    Opened,
    Paid,
    Probe,
    Relay,
    Replaced,
    TurnServed,
)
from p2pnode.protocols.inference.host import HostSession
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
from p2pnode.simulations.market.adverts import seen_from
from p2pnode.simulations.market.company import Company
from p2pnode.simulations.market.economy import Owner, Prices
from p2pnode.simulations.market.engines import Engines, Run, SimulatedEngine, prompt_ids
from p2pnode.simulations.market.ledger import EPOCH_S
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
    book_max: int = 4096

    def __post_init__(self) -> None:
        require_positive(
            self, "count", "models", "bootstrap", "sessions_max", "sessions_per_peer", "turns_per_session",
            "linger_s", "book_max",
        )  # fmt: skip
        require_not_negative(self, "dials", "count_s")
        if self.bootstrap > self.count:
            msg = f"bootstrap is {self.bootstrap} and count is {self.count}: there are not so many hosts"
            raise ValueError(msg)
        if self.models > self.count:
            msg = f"models is {self.models} and count is {self.count}: each model needs a host"
            raise ValueError(msg)

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


@dataclass(slots=True)
class HostDisk:
    """What a host's disk holds: its journal. It outlives a crash. Amounts are token units."""

    epoch: int = 0
    starts: int = 0
    sessions: dict[SessionId, HostedSession] = field(default_factory=dict)
    unsettled: dict[SessionId, None] = field(default_factory=dict)
    """Of these, the ones that are neither settled nor lost, in the order in which they came."""
    receipts: dict[SessionId, list[Receipt]] = field(default_factory=dict)
    """All that were issued in sessions that are not settled."""

    def put(self, record: HostedSession) -> None:
        """Write a session down."""
        self.sessions[record.session] = record
        if record.state in ("settled", "lost"):
            self.unsettled.pop(record.session, None)
            self.receipts.pop(record.session, None)
        else:
            self.unsettled[record.session] = None

    def change(self, session: SessionId, **changes: Any) -> None:
        """Write down what changed of a session."""
        self.put(replace(self.sessions[session], **changes))

    def issued(self, session: SessionId, epoch: int, seq: int) -> Receipt | None:
        """The receipt of a place."""
        for receipt in reversed(self.receipts.get(session, ())):
            if (receipt.epoch, receipt.checkpoint.seq) == (epoch, seq):
                return receipt
        return None

    def in_state(self, *states: str) -> list[HostedSession]:
        """Sessions that are not settled yet, in one of these states."""
        found = (self.sessions[session] for session in self.unsettled)
        return [record for record in found if record.state in states]


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
        "client", "finished", "host", "is_draining", "is_yielding", "machine", "origin", "paid", "peer",
        "rests_since", "session", "shell", "work",
    )  # fmt: skip

    def __init__(self, host: Host, client: Node) -> None:
        self.host, self.client, self.peer = host, client, client.peer
        self.origin = seen_from(client.ip, client.peer)
        self.paid = self.is_yielding = self.is_draining = False
        self.rests_since: float | None = host.now
        self.session: SessionId | None = None
        self.finished: Finished | None = None
        self.work: Work | None = None
        self.machine: HostSession
        self.shell: Shell

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

    def new_host_session(self, host: Host, **arguments: Any) -> HostSession:
        """The machine of a stream at a host."""
        ...

    def note_paid(self, host: Host, session: SessionId, voucher: Voucher) -> None:
        """A host took a voucher."""
        ...

    def note_unpaid(self, host: Host, record: OpenSession) -> None:
        """A host gave up what a session owes."""
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
        self.exposure = Exposure(market.exposure_limits)
        self.grants = Grants(turns_max=min(self.limits.turns_per_session, self.engine.slots))
        self._info = EngineInfo(
            engine="simulated",
            quantisation="",
            n_ctx=market.parameters.engines.n_ctx,
            slots=self.engine.slots,
        )
        self._memory = TurnMemory()
        self._places: BoundedMap[str, TurnPlaces] = BoundedMap(_PAYERS_MAX)
        self.records: dict[SessionId, OpenSession] = {}
        """Sessions that a stream has, or that linger."""
        self.live: dict[SessionId, HostStream] = {}
        self.work: dict[SessionId, Work] = {}
        self._rebuilt: set[SessionId] = set()
        self._relaying: dict[SessionId, HostStream | None] = {}
        """Deposits on their way, and the stream that waits for each; None where it is gone."""
        self._probes: dict[SessionId, list[HostStream]] = {}
        """Streams that want a session which another one has, and wait whether that one answers."""
        self._settling: set[SessionId] = set()
        self._settles_at: float | None = None
        self._busy_before = (self.now, 0.0)
        for record in disk.in_state("open", "relaying"):
            due_at = policy.due_after_restart(record, int(self.wall()), self.limits)
            disk.change(record.session, state="over", settle_at=due_at)
        self.adverts = market.adverts_of(node, gossips=True)
        self.adverts.follow(profile.model)
        self.announce()
        self.later(self._load_engine)
        self.company = Company(
            self.world, node, self.adverts, limits=self.limits, first=profile.peers, guarded=self.guarded
        )
        self.company.begin()
        self.after(_LOAD_INTERVAL_S, self._watch_load)
        self.look_at_settlements()

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

    def _terms(self, payment: HostPayment | None = None, who: Origin = ANYBODY) -> HostTerms:
        limits = self.limits
        places = self._places.use(who.near, lambda: TurnPlaces(limits.turns_per_origin))
        return HostTerms(
            n_ctx=self._info.n_ctx,
            host=self.node.peer,
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
                if self.exposure.why_not(terms.payer, stream.client.ip, owed, self.wall()):
                    window = WINDOW
        return replace(self._terms(payment, who), turns_max=turns_max, window=window)

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
        gone = Refuse(code="bad_request", detail="no such session here: open a new one")
        record, journalled = self.records.get(request.session), self.disk.sessions.get(request.session)
        if journalled is None or journalled.state not in ("open", "over"):
            return gone
        if journalled.settle_at is not None and journalled.settle_at <= self.wall():
            return gone
        if request.session in self._settling:
            return gone
        if record is not None:
            return record
        return self._lapsed(journalled) or gone

    def _lapsed(self, journalled: HostedSession) -> LapsedSession | None:
        """A session of an earlier start; it is rebuilt once."""
        session, terms = journalled.session, journalled.terms
        if session in self._rebuilt or journalled.epoch >= self.epoch:
            return None
        prices = Prices(terms.price_in, terms.price_out, terms.session_fee)
        granted = replace(
            self._terms(self._payment(prices), origin_of_payer(terms)), turns_max=self.grants.turns_max
        )

        def take(opened: OpenSession) -> Refuse | None:
            self._rebuilt.add(session)
            self.records[session] = opened
            return None

        return LapsedSession(
            session=session,
            model=terms.model,
            terms=terms,
            salt=journalled.salt,
            granted=granted,
            voucher=journalled.voucher,
            issued=lambda epoch, seq: self.disk.issued(session, epoch, seq),
            take=take,
        )

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
            case Probe(session=session):
                self._probes.setdefault(session, []).append(stream)
                if (live := self.live.get(session)) is not None:
                    self.later(live.shell.command, AskAlive())
            case Alive(session=session):
                for waiting in self._probes.pop(session, []):
                    self.later(waiting.shell.command, InUse())
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
        before = self.live.get(session)
        self.live[session], self.records[session] = stream, record
        stream.paid = not record.channel.free
        work = self.work.get(session)
        if work is None or work.record is not record:
            work = self.work[session] = Work(record, stream.origin)
        work.stream, stream.work = stream, work
        record.granted.memory.give_way = lambda turn: self.later(self._report, work, GiveWay(turn))
        if before is not None and before is not stream:
            self.later(before.shell.command, Replaced())
        if record.channel.free:
            return
        journalled = self.disk.sessions[session]
        if recovered or journalled.state == "over":
            self.disk.change(session, state="open", settle_at=None, epoch=self.epoch)
            if recovered:
                owed = amount_due(record.channel.terms, 0, WINDOW) - record.channel.terms.session_fee
                payer = record.channel.terms.payer
                if self.exposure.reserve(session, payer, stream.client.ip, owed, self.wall()):
                    stream.drain()

    # ---- money

    def _relay(self, stream: HostStream, order: Relay) -> None:
        stream.session, stream.paid = order.session, True
        request, terms = order.request, order.request.terms
        assert terms is not None and request.authorisation is not None  # noqa: S101, PT018 - a paid open
        call = OpenCall(terms, request.valid_before, request.authorisation)
        others = sum(
            self.disk.sessions[each].terms.deposit
            for each in self._relaying
            if self.disk.sessions[each].terms.payer == terms.payer
        )
        refusal = None
        if others + terms.deposit > self.market.chain.usdc(terms.payer):
            detail = "the payer's wallet lacks the deposit"
            refusal = Refuse(code="payment_required", detail=detail)
        elif why := self.market.chain.why_refused(self.profile.wallet, call):
            refusal = Refuse(code="payment_required", detail=f"the deposit can't be taken: {why}")
        else:
            owed = amount_due(terms, 0, order.window) - terms.session_fee
            address = stream.client.ip
            why = self.exposure.reserve(order.session, terms.payer, address, owed, self.wall())
            if why:
                refusal = Refuse(code="capacity", detail=why, retry_after_s=_RETRY_S)
        if refusal is not None:
            self.later(stream.shell.command, NotEscrowed(refusal))
            return
        self.disk.put(
            HostedSession(
                session=order.session,
                terms=terms,
                salt=request.salt,
                authorisation=request.authorisation,
                valid_before=request.valid_before,
                epoch=self.epoch,
                peer=stream.peer,
                opened_at=int(self.wall()),
                origin=stream.origin.near,
            )
        )
        self._relaying[order.session] = stream
        self.market.chain.send(
            self.profile.wallet,
            call,
            lambda outcome: self._unless_over(self._landed, (order.session, outcome)),
        )

    def _landed(self, session: SessionId, outcome: list[LedgerEvent] | ChainError) -> None:
        stream = self._relaying.pop(session)
        escrow = self.market.chain.session(session)
        if escrow.status == "open" and escrow.closing_at is None:
            self.disk.change(session, state="open")
            if stream is not None:
                stream.shell.command(Escrowed())
                return
        elif stream is not None:
            detail = f"the deposit can't be taken: {outcome}"
            stream.shell.command(NotEscrowed(Refuse(code="payment_required", detail=detail)))
        self._over(session, 0, linger_s=0.0)

    def _issued(self, stream: HostStream, receipt: Receipt) -> None:
        if stream.session is not None and not self._is_free(stream):
            kept = self.disk.receipts.setdefault(stream.session, [])
            if not kept or kept[-1] != receipt:
                kept.append(receipt)

    def _is_free(self, stream: HostStream) -> bool:
        return stream.session not in self.disk.sessions

    def _paid(self, stream: HostStream, voucher: Voucher) -> None:
        session = stream.session
        if session is None or session not in self.disk.sessions:
            return
        before = self.disk.sessions[session].voucher
        if before is None or voucher.amount > before.amount:
            self.disk.change(session, voucher=voucher)
        self.market.note_paid(self, session, voucher)

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
        session, finished = stream.session, stream.finished
        if session is None or finished is None:
            return
        if session in self._relaying:
            self._relaying[session] = None
            return
        if self.live.get(session) is not stream:
            if session not in self.records and session in self.disk.sessions:
                self._over(session, 0, linger_s=0.0)
            return
        del self.live[session]
        record = self.records[session]
        lingers = finished.lingers and not self.admission.is_draining and not record.channel.free
        if lingers:
            if stream.work is not None:
                stream.work.stream = None
            self._over(session, 0, linger_s=self.limits.linger_s)
            self.after(self.limits.linger_s, self._lingered, session)
            return
        del self.records[session]
        self._stop_work(session)
        if not record.channel.free:
            self.market.note_unpaid(self, record)
            self._over(session, record.unpaid, linger_s=0.0)

    def _lingered(self, session: SessionId) -> None:
        """Nobody came back in time, or somebody did."""
        if session in self.live:
            return
        journalled = self.disk.sessions.get(session)
        if journalled is None or journalled.settle_at is None or journalled.settle_at > self.wall():
            return
        record = self.records.pop(session, None)
        if record is not None:
            record.abandon("given up")
            self._stop_work(session)
            self.market.note_unpaid(self, record)
            self._lost(session, record.unpaid)

    def _lost(self, session: SessionId, units: int) -> None:
        self.exposure.lost(session, units, self.wall())
        self.exposure.release(session)

    def _over(self, session: SessionId, units: int, *, linger_s: float) -> None:
        if not linger_s:
            self._lost(session, units)
        if self.disk.sessions[session].state in ("settled", "lost"):
            return
        self.disk.change(session, state="over", settle_at=int(self.wall() + linger_s))
        self.look_at_settlements()

    # ---- settling

    def look_at_settlements(self) -> None:
        """Plan when to settle what is due first."""
        first = min(self._to_settle(), key=lambda each: each.settle_at or 0, default=None)
        wait_s = policy.due_in_s(first, self.wall())
        if wait_s == math.inf:
            return
        at = self.now + max(0.0, wait_s) + self.limits.settle_batch_s
        if self._settles_at is None or at < self._settles_at:
            self._settles_at = at
            self.after(at - self.now, self._settle, at)

    def _settle(self, planned: float) -> None:
        if self._settles_at != planned:
            return  # an earlier one was planned since
        self._settles_at = None
        chain, wallet = self.market.chain, self.profile.wallet
        for group in policy.batches(
            [each for each in self._to_settle() if (each.settle_at or 0) <= self.wall()]
        ):
            calls = [policy.call_of(record) for record in group]
            held = [
                (record, call)
                for record, call in zip(group, calls, strict=True)
                if not chain.why_refused(wallet, call)
            ]
            claims = [call for _, call in held if isinstance(call, Close)]
            if len(claims) > 1:
                self._send(CloseMany(tuple(claims)), [record for record, _ in held])
            else:
                for record, call in held:
                    self._send(call, [record])
            for record, call in zip(group, calls, strict=True):
                if all(record is not each for each, _ in held):
                    self._refused(record, chain.why_refused(wallet, call))
        self.look_at_settlements()

    def _to_settle(self) -> list[HostedSession]:
        return [each for each in self.disk.in_state("over") if each.session not in self._settling]

    def _send(self, call: Close | CloseMany | Release | Refund, records: list[HostedSession]) -> None:
        self._settling.update(record.session for record in records)
        self.market.chain.send(
            self.profile.wallet, call, lambda outcome: self._unless_over(self._settled, (records, outcome))
        )

    def _settled(self, records: list[HostedSession], outcome: list[LedgerEvent] | ChainError) -> None:
        amounts = {
            event.session: event.amount
            for event in (outcome if isinstance(outcome, list) else ())
            if isinstance(event, SessionClosed)
        }
        for record in records:
            session = record.session
            self._settling.discard(session)
            if session in amounts:
                self.disk.change(session, state="settled", amount=amounts[session])
                self.profile.owner.settled(amounts[session], record.terms.session_fee)
                self.records.pop(session, None)
                self._stop_work(session)
            else:
                self._refused(record, str(outcome))
        self.look_at_settlements()

    def _refused(self, record: HostedSession, reason: str) -> None:
        state = self.market.chain.session(record.session)
        session, wait_s = record.session, self.limits.settle_retry_s
        match policy.after_refusal(record, state, reason, self.wall(), confirmed=True):
            case policy.Settled(amount=amount):
                self.disk.change(session, state="settled", amount=amount)
                self.profile.owner.settled(amount, record.terms.session_fee)
            case policy.Postpone(wait_s=wait):
                wait_s = self.limits.settle_retry_max_s if wait is None else wait
                self.disk.change(session, settle_at=int(self.wall() + max(1.0, wait_s)))
            case policy.WaitUntil(at=at):
                self.disk.change(session, settle_at=at)
            case policy.BringRefund():
                self._send(Refund(record.terms), [record])
            case policy.BringAgain():
                self.disk.change(session, settle_at=int(self.wall() + wait_s))
            case policy.Lost(reason=why):
                self.disk.change(session, state="lost", detail=why)

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
                        self.disk.receipts.setdefault(record.session, []).append(receipt)
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
