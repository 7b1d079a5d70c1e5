"""A host that keeps sessions for clients that leave: all streams of one host, and what its role would decide.

Sessions are paid or free; the same code serves both. Streams deliver at once, in order, as bytes. Keys here
guard nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.crypto import verify_peer
from p2pnode.protocols.events import Closed, Command, Effect, Emit, Received, Send, SetTimer, TimerFired
from p2pnode.protocols.inference import commands as c
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import ChannelSender, HostTerms, ResumeKey
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import HeldSession, held_left
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.open_session import LapsedSession, OpenSession
from p2pnode.protocols.inference.replay import Piece
from tests.protocols.inference.paid_pair import NOW, TERMS, VOUCHERS, accepts, client_payment
from tests.protocols.inference.pair import HOST, PROMPT_HASH, SALT, STREAM, ask, text_of, token
from tests.protocols.support import MODEL, Identity

DAY: Final = 86_400
ONE, OTHER = b"one process here", b"another machine."
PEERS: Final = {ONE: Identity("client").peer, OTHER: Identity("other client").peer}
TOKENS_IN: Final = 20


@dataclass(eq=False)
class Wire:
    """A stream: a machine at each end."""

    host: HostSession
    client: ClientSession
    to_host: deque[bytes] = field(default_factory=deque)
    to_client: deque[bytes] = field(default_factory=deque)
    emitted: list[Any] = field(default_factory=list)
    """What the client's machine told its role."""
    ids: list[int] = field(default_factory=list)
    deaf: bool = False
    """The client answers nothing any more."""
    sent: list[Any] = field(default_factory=list)
    """What the host said."""

    def last(self, kind: type[Any]) -> Any:
        return next(each for each in reversed(self.emitted) if isinstance(each, kind))

    @property
    def held(self) -> HeldSession:
        assert self.client.held is not None
        return self.client.held


class KeepingHost:
    """One start after another of one host."""

    def __init__(self, *, paid: bool) -> None:
        self.paid = paid
        self.granted = HostTerms(
            n_ctx=4096,
            host=HOST.peer,
            keep_s=DAY,
            settle_above=400_000,
            payment=accepts(TERMS) if paid else None,
        )
        self.epoch, self.now, self.draws = 3, 0.0, 0
        self.records: dict[SessionId, OpenSession] = {}
        self.live: dict[SessionId, Wire] = {}
        self.left: dict[SessionId, LapsedSession] = {}
        self.probing: list[Wire] = []
        self.refusal: m.Refuse | None = None
        """What the role says to a resume that was proved."""
        self.receipts: dict[tuple[int, int], m.Receipt] = {}
        self.vouchers: list[m.Voucher] = []
        self.wires: dict[int, Wire] = {}

    # ---- what a test does

    def open(self, holder: bytes = ONE) -> Wire:
        key = ResumeKey(VOUCHERS.wallet, VOUCHERS.sign_wallet)
        return self.wire(
            holder,
            payment=client_payment() if self.paid else None,
            resume_key=None if self.paid else key,
            keep_s=DAY,
        )

    def resume(self, held: HeldSession, holder: bytes = ONE) -> Wire:
        return self.wire(holder, resume=held)

    def wire(self, holder: bytes, **how: Any) -> Wire:
        client = ClientSession(
            host=HOST.peer, stream=STREAM, model=MODEL, salt=SALT, holder=holder, verify=verify_peer,
            peer=PEERS[holder], **how,
        )  # fmt: skip
        wire = Wire(self.machine(PEERS[holder]), client)
        self.wires[id(wire.host)] = wire
        self.host_did(wire, wire.host.start(self.now))
        self.client_does(wire, c.Start())
        return wire

    def machine(self, peer: PeerId) -> HostSession:
        return HostSession(
            peer=peer, stream=STREAM, admit=lambda _open: self.granted, sign=HOST.sign, epoch=self.epoch,
            draw=self.draw, terms=self.granted, resume=self.find,
        )  # fmt: skip

    def answer(self, wire: Wire, tokens: int = 40) -> list[int]:
        """One turn; its ids."""
        before = len(wire.ids)
        self.client_does(wire, ask(tokens_max=tokens))
        assert isinstance(wire.emitted[-1], c.TurnDone), wire.emitted[-1]
        return wire.ids[before:]

    def leave(self, wire: Wire, until: int = NOW + DAY) -> m.Left:
        self.client_does(wire, c.LeaveSession(until))
        left: m.Left | None = wire.last(c.Ended).left
        assert left is not None
        return left

    def lose(self, wire: Wire) -> None:
        """The stream breaks, and both notice."""
        self.client_did(wire, wire.client.handle(Closed(HOST.peer, STREAM, "lost"), self.now))
        wire.to_host.clear()
        self.host_did(wire, wire.host.handle(Closed(PEERS[ONE], STREAM, "lost"), self.now))

    def restart(self) -> None:
        """The host is killed: what it holds in memory is gone, and what its journal has is left."""
        for session, record in self.records.items():
            if record.granted.keep_s and self.paid:
                self.left[session] = record.lapse(self.taker(session), self.issued)
        self.records.clear()
        self.live.clear()
        self.epoch += 1

    def fire(self, wire: Wire, key: str) -> None:
        self.host_did(wire, wire.host.handle(TimerFired(key), self.now))
        self.run(wire)

    # ---- the role

    def draw(self, count: int) -> bytes:
        self.draws += 1
        return self.draws.to_bytes(count, "big")

    def issued(self, epoch: int, seq: int) -> m.Receipt | None:
        return self.receipts.get((epoch, seq))

    def find(self, request: m.Resume) -> OpenSession | LapsedSession | m.Refuse:
        session = request.session
        record = self.records.get(session)
        if record is not None and record.holder is None and record.granted.keep_s and not request.received:
            return record.lapse(self.taker(session), self.issued)
        gone = m.Refuse(code="bad_request", detail="no such session here")
        return record or self.left.get(session) or gone

    def taker(self, session: SessionId) -> Any:
        def take(opened: OpenSession) -> m.Refuse | None:
            if self.refusal is not None:
                return self.refusal
            self.left.pop(session, None)
            self.records[session] = opened
            return None

        return take

    def host_did(self, wire: Wire, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message):
                    wire.sent.append(message)
                    wire.to_client.append(m.CODEC.encode(message))
                case Emit(value=value):
                    self.role(wire, value)
                case _:
                    pass

    def role(self, wire: Wire, value: Any) -> None:
        match value:
            case c.Probe() | c.Alive() | c.Leaving() | c.Finished():
                self.claimed(wire, value)
            case c.Relay():
                self.host_does(wire, c.Escrowed())
            case c.Opened(session=session):
                before = self.live.get(session)
                self.live[session] = wire
                record = wire.host.session
                if record is not None:
                    self.records[session] = record
                if before is not None and before is not wire:
                    self.host_does(before, c.Replaced())
            case c.Count(turn=turn):
                self.host_does(wire, c.Counted(turn, TOKENS_IN, prompt_hash=PROMPT_HASH))
            case c.Generate():
                self.generate(wire, value)
            case c.Issued(receipt=receipt):
                place = (receipt.epoch, receipt.checkpoint.seq)
                assert self.receipts.setdefault(place, receipt) == receipt, "two receipts for one place"
            case c.Paid(voucher=voucher):
                self.vouchers.append(voucher)
            case _:
                pass

    def claimed(self, wire: Wire, value: Any) -> None:
        """Who has a session, and who wants it."""
        match value:
            case c.Leaving(until=until):
                session = wire.host.session
                assert session is not None
                self.left[session.session] = session.lapse(self.taker(session.session), self.issued)
                del self.records[session.session], self.live[session.session]
                self.host_does(wire, c.Kept(min(until, NOW + DAY)))
            case c.Probe(session=session):
                self.probing.append(wire)
                if session in self.live:
                    self.host_does(self.live[session], c.AskAlive())
                    self.run(self.live[session])
            case c.Alive():
                for each in self.probing:
                    self.host_does(each, c.InUse())
                self.probing.clear()
            case c.Finished() if wire.host.session is not None:
                name = wire.host.session.session
                if self.live.get(name) is wire:
                    del self.live[name]
                    if not value.lingers:
                        self.records.pop(name, None)
            case _:
                pass

    def generate(self, wire: Wire, order: c.Generate) -> None:
        for position in range(order.tokens_max):
            piece = Piece(ids=(token(order.turn, position),), text=text_of(order.turn, position))
            self.host_does(wire, c.GenTokens(order.run, piece))
        self.host_does(wire, c.GenDone(order.run, "length"))

    def host_does(self, wire: Wire, command: Any) -> None:
        self.host_did(wire, wire.host.handle(Command(command), self.now))

    # ---- the client

    def client_does(self, wire: Wire, command: Any) -> None:
        self.client_did(wire, wire.client.handle(Command(command), self.now))
        self.run(wire)

    def client_did(self, wire: Wire, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message):
                    wire.to_host.append(m.CODEC.encode(message))
                case Emit(value=value):
                    wire.emitted.append(value)
                    if isinstance(value, c.Delivered):
                        wire.ids.extend(value.ids)
                        taken = c.TokensTaken(len(wire.ids), value.key)
                        self.client_did(wire, wire.client.handle(Command(taken), self.now))
                case SetTimer():
                    pass
                case _:
                    pass

    def run(self, wire: Wire) -> None:
        while wire.to_host or wire.to_client:
            while wire.to_host:
                message = m.CODEC.decode(wire.to_host.popleft())
                self.host_did(wire, wire.host.handle(Received(PEERS[ONE], STREAM, message), self.now))
            while wire.to_client:
                message = m.CODEC.decode(wire.to_client.popleft())
                if not wire.deaf:
                    self.client_did(wire, wire.client.handle(Received(HOST.peer, STREAM, message), self.now))


@dataclass(frozen=True)
class Notes:
    """What a journal or the sealed index has of a session: ``voucher`` and ``receipt`` may be old."""

    session: SessionId
    voucher: m.Voucher | None
    receipt: m.Receipt | None
    generation: int
    paid: bool

    @classmethod
    def of(cls, wire: Wire, *, paid: bool) -> Notes:
        held = wire.held
        return cls(held.accept.session, wire.client.final_voucher, held.receipt, held.accept.generation, paid)

    def held(self) -> HeldSession:
        """What another process makes of them."""
        key = ResumeKey(VOUCHERS.wallet, VOUCHERS.sign_wallet)
        channel = ChannelSender(
            replace(client_payment(), authorisation=b"") if self.paid else None,
            verify=lambda digest, signature: verify_peer(HOST.peer, digest, signature),
            resume_key=None if self.paid else key,
        )
        return held_left(
            channel, self.session, model=MODEL, salt=SALT, receipt=self.receipt, voucher=self.voucher,
            generation=self.generation,
        )  # fmt: skip
