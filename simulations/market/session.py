"""A session of a simulated client with one host: its machine, its turns, and one stream after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeAlias

from p2pnode.client.bill import CostShares
from p2pnode.client.failover import PartialAnswer, session_error
from p2pnode.client.resumption import Resumption
from p2pnode.errors import P2PNodeError, UnreachableError
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.inference.channel import ChannelSender, ClientPayment
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import ClientTimes, HeldSession, held_left
from p2pnode.protocols.inference.commands import (
    Accepted,
    Ask,
    Delivered,
    End,
    Ended,
    FirstTurnFinished,
    LeaveSession,
    Quoted,
    Receipted,
    SessionFailed,
    Signed,
    Start,
    TokensTaken,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    READ_CREDIT,
    Accept,
    Left,
    Receipt,
    Tokens,
    Voucher,
)
from p2pnode.protocols.typed_data import amount_due
from p2pnode.simulations.market.surroundings import Surroundings
from p2pnode.simulations.world import Link, Node, Shell, World

PROTOCOL: Final = "inference"
_TAKEN_STEP: Final = READ_CREDIT // 4
_HEARD_S: Final = 3.0
_RECEIPTS_KEPT: Final = 4
Then: TypeAlias = "Callable[[Session | P2PNodeError], None]"


@dataclass(slots=True)
class Bought:
    """A paid session in a client's journal."""

    payment: ClientPayment
    host: PeerId
    salt: bytes
    opened_at: float
    accepted: bool = False
    voucher: Voucher | None = None
    """The last that was signed, for exactly what was received by then."""
    receipts: dict[bytes, Receipt] = field(default_factory=dict)
    """By root: the newest few."""
    delivered: int = -1
    """The amount of the voucher that its host is known to have."""
    is_used: bool = True
    """Whether a process of the client has it."""
    left_until: int = 0
    """Epoch seconds until which its host keeps it, where it was left."""
    generation: int = 0
    """How often it was resumed after it was left."""

    @property
    def held_left(self) -> HeldSession:
        """What is known of it: enough to resume it."""
        voucher = self.voucher
        return held_left(
            ChannelSender(replace(self.payment, authorisation=b"")),
            self.payment.session,
            model=self.payment.terms.model,
            salt=self.salt,
            receipt=self.receipts.get(voucher.root) if voucher is not None else None,
            voucher=voucher,
            generation=self.generation,
        )

    @property
    def billed(self) -> tuple[int, int, int]:
        """What stands on earlier bills: token units, and tokens in and out."""
        if self.voucher is None:
            return self.cost, 0, 0
        return self.voucher.amount, self.voucher.tokens_in, self.voucher.tokens_out

    def is_left(self, now: float) -> bool:
        """Whether its host keeps it, and nobody uses it."""
        return self.left_until > now and not self.is_used

    def covers(self, tokens_in: int, tokens_out: int) -> bool:
        """Whether its deposit is enough for a turn of these sizes."""
        _, used_in, used_out = self.billed
        terms = self.payment.terms
        return amount_due(terms, used_in + tokens_in, used_out + tokens_out) <= terms.deposit

    @property
    def cost(self) -> int:
        """What its host can claim, in token units."""
        if self.voucher is not None:
            return self.voucher.amount
        return self.payment.terms.session_fee if self.accepted else 0

    @property
    def owed(self) -> Voucher | None:
        """What its host may not have."""
        return self.voucher if self.voucher is not None and self.voucher.amount > self.delivered else None


class TurnAsker(Protocol):
    """What a turn needs of the question that asked it."""

    partial: PartialAnswer

    def quoted(self, turn: SessionTurn, quoted: Quoted) -> None:
        """The host counted the input."""
        ...

    def delivered(self, turn: SessionTurn, tokens: Tokens) -> None:
        """Output came."""
        ...

    def turn_done(self, session: Session, turn: SessionTurn, over: TurnDone) -> None:
        """The host ended the turn."""
        ...

    def turn_failed(self, session: Session, turn: SessionTurn, failed: TurnFailed) -> None:
        """The turn failed, and the session lives."""
        ...

    def session_failed(self, session: Session, turn: SessionTurn, error: P2PNodeError) -> None:
        """The session is over under the turn."""
        ...


class HostEnd(Protocol):
    """What a client's stream needs of its other end."""

    shell: Shell


class OpenHost(Protocol):
    """What a stream to a host needs of it."""

    def open_stream(self, client: Node, link: Link) -> HostEnd:
        """A client opens a stream; ``link`` leads from this host to it."""
        ...


class SessionMarket(Surroundings, Protocol):
    """What a session needs of its market."""

    client_times: ClientTimes

    @property
    def hosts(self) -> Mapping[PeerId, OpenHost]:
        """Those that are up."""
        ...

    def new_client_session(self, owner: object, /, **arguments: Any) -> ClientSession:
        """The machine of a stream at a client."""
        ...

    def verify_peer(self, peer: str, message: bytes, signature: bytes) -> bool:
        """Whether a peer signed this."""
        ...

    def note_turn_asked(self, session: Session, turn: SessionTurn) -> None:
        """A turn is asked in a session."""
        ...

    def note_delivered(self, session: Session, turn: SessionTurn, tokens: Tokens) -> None:
        """Output arrived at a client's machine."""
        ...

    def note_signed(self, session: Session, voucher: Voucher) -> None:
        """A client signed a voucher."""
        ...

    def note_receipted(self, session: Session, receipt: Receipt) -> None:
        """A client checked a receipt."""
        ...

    def note_left_taken(self, session: Session) -> None:
        """A session that was left goes on."""
        ...

    def note_resumed(self, session: Session) -> None:
        """A session goes on on another stream."""
        ...


class SessionOwner(Protocol):
    """What a session needs of the client that it belongs to."""

    node: Node
    world: World
    holder: bytes
    keep_s: int
    """How long sessions are to be kept that it leaves; 0: it closes them."""

    @property
    def market(self) -> SessionMarket:
        """Where the client is."""
        ...

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        ...

    def wall(self) -> float:
        """Epoch seconds."""
        ...

    def draw(self, count: int) -> bytes:
        """Random bytes."""
        ...

    def later(self, action: Callable[..., object], *arguments: Any) -> None:
        """Do it when what is done now is done, unless the client is gone by then."""
        ...

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """The same, later."""
        ...

    def guarded(self, action: Callable[..., None]) -> Callable[..., None]:
        """``action``, unless the client is gone by then."""
        ...

    def join(
        self, machine: ClientSession, on_emit: Callable[[Any], None], host: OpenHost, link: Link
    ) -> Shell:
        """Run a machine on a new stream to a host."""
        ...

    def leave_stream(self, shell: Shell) -> None:
        """A stream is not needed any more."""
        ...

    def turn_finished(self, wallet: bytes) -> None:
        """A host finished a turn for this client's wallet: the next prompt may be paid with the question."""
        ...

    def session_over(self, session: Session) -> None:
        """It can take no more turns."""
        ...

    def pool_changed(self) -> None:
        """A place became free, or a session is over: who waits looks again."""
        ...


class SessionTurn:
    """One turn of a session, and the question that asked it. ``CostShares`` knows it."""

    __slots__ = ("ask", "cost", "key", "question", "taken", "tokens_in", "tokens_out")

    def __init__(self, ask: Ask, key: int, question: TurnAsker) -> None:
        self.ask, self.key, self.question = ask, key, question
        self.tokens_in = self.tokens_out = self.taken = 0
        self.cost: int | None = None


class Session:
    """A session with one host: its machine and its turns, over one stream after another."""

    def __init__(self, client: SessionOwner, host: Node, model: ModelId, bought: Bought | None) -> None:
        self.client, self.host, self.model, self.bought = client, host, model, bought
        terms = bought.payment.terms if bought is not None else None
        self._left = bought is not None and bought.left_until > 0
        """Whether it was left, and is resumed when it begins."""
        self.shares = CostShares(terms, bought.billed) if self._left and bought else CostShares(terms)
        self.resumption = Resumption()
        self.accept: Accept | None = None
        self.failure: SessionFailed | None = None
        self.turns: dict[int, SessionTurn] = {}
        self.reserved = self.keys = 0
        self.is_over = self.is_closing = self.is_resuming = self.reused = False
        self.machine: Any = None
        self.shell: Shell | None = None
        self.on_open: Then | None = None
        self._attempt = 0
        self._resumes_until = math.inf
        self._began = 0.0
        """When the attempt to resume it began that runs."""
        self._waiting: list[SessionTurn] = []
        """Turns that were asked while it was being resumed."""

    # ---- its stream

    def begin(self, then: Then) -> None:
        """Open it; ``then`` gets the session, or why there is none."""
        self.on_open = then
        if self._left and self.bought is not None:
            self._drive(payment=None, salt=b"", resume=self.bought.held_left)
            return
        salt = self.bought.salt if self.bought is not None else self.client.draw(32)
        self._drive(payment=self.bought.payment if self.bought is not None else None, salt=salt, resume=None)

    def _drive(self, *, payment: ClientPayment | None, salt: bytes, resume: HeldSession | None) -> bool:
        """Run a machine on a new stream; False where the connection is gone by now."""
        client, market = self.client, self.client.market
        link = client.node.links.get(self.host.peer)
        host = market.hosts.get(self.host.peer)
        if link is None or not link.is_open or host is None:
            if resume is None or self._left:
                self._opened(UnreachableError(f"the connection to {self.host.peer} is gone"))
            return False
        self.machine = market.new_client_session(
            self,
            host=self.host.peer,
            stream=0,
            model=self.model,
            salt=salt,
            holder=client.holder,
            times=market.client_times,
            verify=market.verify_peer,
            payment=payment,
            keep_s=client.keep_s if self.paid else 0,
            resume=resume,
            peer=client.node.peer,
        )
        self.shell = client.join(self.machine, self._emitted, host, link)
        client.after(client.world.stream_s(link), self.shell.command, Start())
        return True

    def _opened(self, outcome: Session | P2PNodeError) -> None:
        then, self.on_open = self.on_open, None
        if then is not None:
            self.client.later(then, outcome)

    @property
    def paid(self) -> bool:
        """Whether it costs anything."""
        return self.bought is not None

    @property
    def cost(self) -> int:
        """Token units that its host can claim."""
        return self.bought.cost if self.bought is not None else 0

    @property
    def held(self) -> HeldSession | None:
        """What outlives a stream."""
        held: HeldSession | None = self.machine.held if self.machine is not None else None
        return held

    @property
    def places(self) -> int:
        """How many more turns it can take now."""
        if self.accept is None or self.is_over or self.is_closing:
            return 0
        return self.accept.turns_max - len(self.turns) - self.reserved

    @property
    def is_busy(self) -> bool:
        """Whether turns are under way, or about to be asked, or it is being opened."""
        return bool(self.turns or self.reserved or self.on_open is not None)

    def covers(self, tokens_in: int, tokens_out: int) -> bool:
        """Whether its deposit is enough for a turn of these sizes besides those under way."""
        held = self.held
        if self.bought is None or held is None:
            return True
        terms = self.bought.payment.terms
        tokens_in += held.meter.tokens_in
        tokens_out += held.meter.tokens_out
        for turn in self.turns.values():
            if not turn.tokens_in:
                tokens_in += turn.ask.input_max
            tokens_out += max(0, turn.ask.body.sampling.tokens_max - turn.tokens_out)
        return amount_due(terms, tokens_in, tokens_out) <= terms.deposit

    def can_pay_more(self, turn: SessionTurn | None) -> bool:
        """Whether its deposit is enough for a turn's input and what one receipt covers."""
        held = self.held
        if self.bought is None or held is None:
            return True
        terms = self.bought.payment.terms
        tokens_in = held.meter.tokens_in + (turn.ask.input_max if turn is not None else 0)
        return amount_due(terms, tokens_in, held.meter.tokens_out + CHECKPOINT_EVERY) <= terms.deposit

    # ---- turns

    def ask(self, ask: Ask, question: TurnAsker) -> SessionTurn | None:
        """Begin a turn in a place that was reserved; None where the session is over."""
        self.reserved = max(0, self.reserved - 1)
        if self.is_over or self.shell is None:
            return None
        held = self.held
        if self.paid and held is not None and held.channel.has_finished:
            ask = replace(ask, input_exact=ask.prompt_tokens)  # as the node's session: it spares a round trip
        self.keys += 1
        turn = self.turns[self.keys] = SessionTurn(replace(ask, key=self.keys), self.keys, question)
        self.shares.begin(turn)
        self.client.market.note_turn_asked(self, turn)
        if self.is_resuming:  # until now nobody waited for that
            self._waiting.append(turn)
            self._give_up_after(self.client.market.limits.reconnect_patience_s)
        else:
            self.command(turn.ask)
        return turn

    def command(self, value: Any) -> None:
        """Tell its machine."""
        if self.shell is not None and not self.is_over:
            self.shell.command(value)

    def close(self) -> None:
        """End it in order."""
        if self.is_over or self.is_closing:
            return
        self.is_closing = True
        if self.is_resuming or self.accept is None:
            self._over()
        else:
            self.command(End())

    def leave(self) -> None:
        """Leave it with its host, where that keeps it and no turn is under way; else close it."""
        accept = self.accept
        if accept is None or not accept.keep_s or self.is_busy or self.is_resuming or self.is_closing:
            self.close()
            return
        self.is_closing = True
        self.command(LeaveSession(int(self.client.wall()) + accept.keep_s))

    # ---- what its machine says

    def _emitted(self, value: Any) -> None:
        match value:
            case Delivered(tokens=tokens, key=key):
                if (turn := self.turns.get(key)) is not None:
                    self._delivered(turn, tokens)
            case Quoted(quote=quote, key=key):
                if (turn := self.turns.get(key)) is not None:
                    turn.tokens_in = quote.tokens_in - quote.reused
                    turn.question.quoted(turn, value)
            case Signed(voucher=voucher):
                assert self.bought is not None  # noqa: S101 - only paid sessions have vouchers
                self.bought.voucher = voucher
                self.client.market.note_signed(self, voucher)
            case Receipted(receipt=receipt, keys=keys):
                self._receipted(receipt, keys)
            case TurnDone(key=key) | TurnFailed(key=key):
                if (turn := self.turns.pop(key, None)) is not None:
                    self._turn_over(turn, value)
            case Accepted(accept=accept):
                self._accepted(accept)
            case FirstTurnFinished():
                assert self.bought is not None  # noqa: S101 - only paid sessions are told of it
                self.bought.payment = replace(self.bought.payment, has_finished=True)
                self.client.turn_finished(self.bought.payment.terms.host)
            case SessionFailed():
                self.client.later(self._failed, value)
            case Ended(left=left):
                self.client.later(self._ended, left)
            case _:
                return  # prefill, and receipts that are disputed

    def _delivered(self, turn: SessionTurn, tokens: Tokens) -> None:
        turn.tokens_out += len(tokens.ids)
        self.client.market.note_delivered(self, turn, tokens)
        index = tokens.index + len(tokens.ids)
        if index - turn.taken >= _TAKEN_STEP:  # sooner the machine would say nothing
            turn.taken = index
            self.client.later(self.command, TokensTaken(index, turn.key))
        turn.question.delivered(turn, tokens)

    def _receipted(self, receipt: Receipt, keys: tuple[int, ...]) -> None:
        self.client.market.note_receipted(self, receipt)
        if self.bought is not None:
            kept = self.bought.receipts
            kept[receipt.checkpoint.root] = receipt
            if len(kept) > _RECEIPTS_KEPT:
                del kept[next(iter(kept))]
        for key in keys:
            if (turn := self.turns.get(key)) is not None:
                turn.question.partial.receipt()

    def _turn_over(self, turn: SessionTurn, over: TurnDone | TurnFailed) -> None:
        if isinstance(over, TurnDone):
            turn.tokens_in = over.done.tokens_in - over.done.reused
            self.client.later(turn.question.turn_done, self, turn, over)
        else:
            self.client.later(turn.question.turn_failed, self, turn, over)
        self.client.pool_changed()

    def _accepted(self, accept: Accept) -> None:
        self.accept = accept
        if self.bought is not None:
            self.bought.accepted = True
            self.bought.left_until, self.bought.generation = 0, accept.generation
            if self._left:
                self._left = False
                self.client.market.note_left_taken(self)
        if self.is_resuming:
            self.is_resuming = False
            held = self.held
            self.resumption.resumed(held.received if held is not None else 0)
            self.client.market.note_resumed(self)
            waiting, self._waiting = self._waiting, []
            for turn in waiting:
                self.command(turn.ask)
            self.client.pool_changed()
        self._opened(self)

    def _ended(self, left: Left | None) -> None:
        """It was closed or left as asked: its host has the last voucher unless the connection breaks now."""
        if left is not None and (kept := self.bought) is not None:
            kept.generation = left.generation
            if left.until > self.client.wall():
                kept.left_until = left.until
            if kept.voucher is not None:
                kept.delivered = max(kept.delivered, kept.voucher.amount)
        link = self.client.node.links.get(self.host.peer)
        self._over()
        bought = self.bought
        if bought is None or link is None:
            return

        def heard() -> None:
            if link.is_open and bought.voucher is not None:
                bought.delivered = max(bought.delivered, bought.voucher.amount)

        self.client.after(_HEARD_S, heard)

    def _failed(self, failure: SessionFailed) -> None:
        self._stop_stream()
        was_resuming = self.is_resuming
        if was_resuming:
            # Why a resume was refused is no verdict on the turns.
            lost = failure.cause == "lost"
            if lost and self.resumption.tries_at_once(0.0, reached=True):
                self._resume()
                return
            self.failure = failure if failure.fault else self.failure
            self._over()
            return
        self.failure = failure
        self._opened(session_error(failure))
        idle = failure.resumable and failure.cause != "lost" and not self.turns
        held = self.held
        can = (
            self.paid
            and failure.resumable
            and not idle
            and not self.is_closing
            and held is not None
            and self.resumption.is_fruitful(held.received)
        )
        if can:
            self.resumption.lost()
            self._resume()
        else:
            self._over()

    def _stop_stream(self) -> None:
        if self.shell is not None:
            self.client.leave_stream(self.shell)

    def _resume(self) -> None:
        client, limits = self.client, self.client.market.limits
        self.is_resuming = True
        self._attempt = number = self._attempt + 1
        self._began, self._resumes_until = client.now, math.inf
        held = self.held
        self.resumption.begin(held.received if held is not None else 0)

        def dialled(link: Link | None) -> None:
            if self._attempt != number or not self.is_resuming or self.is_over:
                return
            if link is None or not self._drive(payment=None, salt=b"", resume=held):
                self._not_resumed()

        self._give_up_after(limits.reconnect_patience_s if self.turns else limits.dial_deadline_s)
        client.world.dial(client.node, self.host, client.guarded(dialled))

    def _give_up_after(self, seconds: float) -> None:
        """Let the attempt to resume it that runs take so long from now on, unless it ends sooner anyway."""
        until = self.client.now + seconds
        if until < self._resumes_until:
            self._resumes_until = until
            self.client.after(seconds, self._too_late, self._attempt)

    def _too_late(self, number: int) -> None:
        if self._attempt == number and self.is_resuming and not self.is_over:
            self._stop_stream()
            self._not_resumed()

    def _not_resumed(self) -> None:
        self._attempt += 1
        if self.resumption.tries_at_once(self.client.now - self._began, reached=False):
            self._resume()
        else:
            self._over()

    def _over(self) -> None:
        """No turn can be asked any more; those under way fail."""
        if self.is_over:
            return
        self.is_over, self.is_resuming = True, False
        self._stop_stream()
        self._opened(session_error(self.failure))
        if self.bought is not None:
            self.bought.is_used = False
        turns, self.turns = self.turns, {}
        error = session_error(self.failure)
        for turn in turns.values():
            self.client.later(turn.question.session_failed, self, turn, error)
        self.client.session_over(self)
