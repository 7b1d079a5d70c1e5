"""The pair with money: what each side may owe is checked at every step, to the unit.

Two more things move only when a test says so: the chain that takes the deposit, and the count of a
prompt. Streams can be lost and sessions resumed. Keys here guard nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.crypto import sign_digest
from p2pnode.protocols.events import Closed, Command, Effect, Emit, Send
from p2pnode.protocols.inference.channel import (
    ChannelReceiver,
    ClientPayment,
    HostTerms,
    exact_voucher,
    same_voucher,
)
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import HeldSession
from p2pnode.protocols.inference.commands import (
    Counted,
    Escrowed,
    Generate,
    Issued,
    Opened,
    Paid,
    Relay,
    Replaced,
    SessionFailed,
    Signed,
    Start,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import (
    TURNS_MAX,
    Checkpoint,
    Open,
    Quote,
    Refuse,
    Resume,
    SessionTerms,
    Tokens,
    Voucher,
)
from p2pnode.protocols.inference.open_rules import HostPayment, check_open
from p2pnode.protocols.inference.open_session import LapsedSession, OpenSession
from p2pnode.protocols.inference.prompts import TurnPlaces
from p2pnode.protocols.inference.turn_memory import SessionMemory
from p2pnode.protocols.typed_data import Domain, amount_due, authorisation_digest, market_domain, session_id
from tests.protocols.inference.pair import HOLDER, HOST, PROMPT_HASH, SALT, STREAM, Pair, ask
from tests.protocols.support import MODEL, Identity

NOW: Final = 1_700_000_000
MARKET: Final = market_domain(31_337, b"\x4d" * 20)
TOKEN: Final = Domain(name="USDC", version="2", chain_id=31_337, contract=b"\x55" * 20)
PAYER, HOST_WALLET, RECEIPTS, VOUCHERS = (
    Identity(name) for name in ("payer", "wallet", "receipts", "voucher")
)
CLIENT_ID: Final = Identity("client")
TERMS: Final = SessionTerms(
    payer=PAYER.wallet,
    host=HOST_WALLET.wallet,
    voucher_key=VOUCHERS.wallet,
    receipt_key=RECEIPTS.wallet,
    model=MODEL,
    deposit=1_000_000,
    price_in=300_000,
    price_out=1_700_000,
    session_fee=2_500,
    tip=1_000,
    expiry=NOW + 86_400,
    salt=b"\x07" * 32,
)
ACCEPTS: Final = HostPayment(
    market=MARKET,
    token=TOKEN,
    peer=HOST.peer,
    wallet=HOST_WALLET.wallet,
    receipt_key=RECEIPTS.wallet,
    sign=RECEIPTS.sign_wallet,
    price_in=TERMS.price_in,
    price_out=TERMS.price_out,
    session_fee=TERMS.session_fee,
)


def authorise(terms: SessionTerms, *, valid_before: int = NOW + 300, secret: bytes | None = None) -> bytes:
    """The payer's signature."""
    digest = authorisation_digest(
        TOKEN,
        payer=terms.payer,
        to=MARKET.contract,
        amount=terms.deposit,
        valid_before=valid_before,
        nonce=session_id(MARKET, terms),
    )
    return sign_digest(secret or PAYER.wallet_secret, digest)


def paid_open(terms: SessionTerms = TERMS, **changes: Any) -> Open:
    """A request any host of ``accepts(terms)`` takes."""
    valid_before = changes.get("valid_before", NOW + 300)
    request = Open(
        model=MODEL,
        salt=SALT,
        holder=HOLDER,
        terms=terms,
        authorisation=authorise(terms, valid_before=valid_before),
        valid_before=valid_before,
    )
    return replace(request, **changes)


def accepts(terms: SessionTerms) -> HostPayment:
    """What a host of these terms asks."""
    return replace(ACCEPTS, price_in=terms.price_in, price_out=terms.price_out, session_fee=terms.session_fee)


def client_payment(terms: SessionTerms = TERMS) -> ClientPayment:
    """What a client opens with."""
    return ClientPayment(
        market=MARKET,
        terms=terms,
        valid_before=NOW + 300,
        authorisation=authorise(terms),
        sign=VOUCHERS.sign_wallet,
    )


class PaidPair(Pair):
    """The stage, with a cash desk."""

    def __init__(
        self, terms: SessionTerms = TERMS, *, answer_tokens: int = 100, tokens_in: int = 20, reused: int = 5
    ) -> None:
        self.money = terms
        self.tokens_in, self.reused = tokens_in, reused
        self.relays: list[Relay] = []
        self.issued: list[Checkpoint] = []
        self.paid: list[Voucher] = []
        self.signed: list[Voucher] = []
        self.opened: list[Opened] = []
        self.billed_in = self.billed_out = 0
        self.sent_of: dict[int, int] = {}
        """Output tokens of each turn that the host has sent, on whatever stream."""
        self.sent_before = 0
        granted = replace(
            self.grants, payment=accepts(terms), memory=SessionMemory(), places=TurnPlaces(TURNS_MAX)
        )
        super().__init__(granted, answer_tokens)

    def cast_sides(self, terms: HostTerms) -> tuple[HostSession, ClientSession]:
        self.granted = terms
        return self.new_host(), paid_client(self.money)

    grants = HostTerms(n_ctx=4096)
    epoch = 3
    _base = 0
    """The place from which the present epoch's receipts count."""

    def new_host(
        self, peer: PeerId = CLIENT_ID.peer, kept: OpenSession | LapsedSession | None = None
    ) -> HostSession:
        """A host of these terms, for a stream of ``peer``; ``kept`` is what a resume finds."""
        payment = self.granted.payment
        assert payment is not None

        def admit(request: Open) -> HostTerms | Refuse:
            return check_open(request, payment, NOW) or self.granted

        def find(request: Resume) -> OpenSession | LapsedSession | Refuse:
            if kept is None or request.session != kept.session:
                return Refuse(code="bad_request", detail="no such session")
            return self.rebuilt if self.rebuilt is not None and isinstance(kept, LapsedSession) else kept

        return HostSession(
            peer=peer,
            stream=STREAM,
            admit=admit,
            sign=HOST.sign,
            epoch=self.epoch,
            draw=self._draw,
            terms=self.granted,
            resume=find,
        )

    rebuilt: OpenSession | None = None
    """What the present start of the host made of a session that lapsed."""

    def rebuilt_as(self, session: OpenSession) -> None:
        """The role's part: from now on this is found."""
        self.rebuilt = session

    _drawn = 0

    def _draw(self, count: int) -> bytes:
        self._drawn += 1
        return bytes([self._drawn]) * count

    # ---- what a test can do

    def chain(self, answer: Any = None) -> bool:
        """The deposit lands (or what ``answer`` says)."""
        if not self.relays:
            return False
        self.relays.clear()
        self.host_does(answer or Escrowed())
        return True

    def count(self) -> bool:
        """The prompt is counted."""
        if not self.counts:
            return False
        order = self.counts.pop(0)
        tokens_in = self.tokens_in + len(order.body.prefix)
        self.host_does(Counted(order.turn, tokens_in, self.reused, PROMPT_HASH))
        return True

    def after_host(self) -> None:
        """Here prompts are counted when a test says so."""

    def host_does(self, command: Any) -> None:
        session = self.host.session
        if session is not None and self.host.state == "over" and session.holder is None:
            self.host_did(session.report_detached(command, self.now))
        else:
            super().host_does(command)

    def move(self, kind: str, count: int, *, hold: bool) -> None:
        if kind == "count":
            self.count()
        else:
            super().move(kind, count, hold=hold)

    def serve(self, heard: int) -> None:
        """Begin a turn whose input is paid, and of which the client hears so many tokens, in frames of 8."""
        self.ask(ask())
        while self.run is None:
            self.moves(0)
        while self.client.held is not None and self.client.held.meter.tokens_out < heard:
            self.engine(8)
            while self.deliver_to_client():
                pass
            while self.deliver_to_host():
                pass

    def moves(self, count: int) -> list[bool]:
        return [self.chain(), self.count(), *super().moves(count)]

    def lose(self, *, host_notices: bool = True) -> None:
        """The stream breaks, with all that was under way on it."""
        self.to_host.clear()
        self.to_client.clear()
        self.client_did(self.client.handle(Closed(HOST.peer, STREAM, "lost"), self.now))
        if host_notices:
            self.host_did(self.host.handle(Closed(CLIENT_ID.peer, STREAM, "lost"), self.now))

    def resume(self) -> None:
        """New machines on a new stream take the session up, to the point where the client was heard."""
        old, kept, held = self.host, self.host.session, self.client.held
        assert kept is not None
        assert held is not None
        self.finished.clear()
        self.to_client.clear()  # of the old stream, which the host may take for living still
        assert isinstance(self.outcomes.pop(), SessionFailed)
        self.host = self.new_host(kept=kept)
        self.client = resumed_client(held)
        self.host_did(self.host.start(self.now))
        self.client_does(Start())
        assert self.deliver_to_host()
        effects = old.handle(Command(Replaced()), self.now)
        assert not [effect for effect in effects if isinstance(effect, Send)]

    # ---- what must hold

    @property
    def channel(self) -> ChannelReceiver:
        """The host's."""
        assert self.host.session is not None
        return self.channel_of(self.host.session)

    def channel_of(self, session: OpenSession) -> ChannelReceiver:
        """A session's."""
        assert not session.channel.free
        return session.channel

    @property
    def sent_out(self) -> int:
        """Output tokens that the host has sent."""
        return self.sent_before + sum(self.sent_of.values())

    @property
    def cost(self) -> int:
        """What the session costs, by the client's count."""
        held = self.client.held
        assert held is not None
        return self.due(held.meter.tokens_in, held.meter.tokens_out)

    def due(self, tokens_in: int, tokens_out: int) -> int:
        """By the formula."""
        return amount_due(self.money, tokens_in, tokens_out)

    def host_did(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Emit(value=Relay() as relay):
                    self.relays.append(relay)
                case Emit(value=Issued(receipt=receipt, checkpoint=checkpoint)):
                    # A replay says it again, a recovery what an earlier start issued.
                    if receipt.epoch == self.epoch and checkpoint not in self.issued:
                        place = self._base + len(self.issued) + 1
                        assert checkpoint.seq == place, "a second receipt for one number"
                        self.issued.append(checkpoint)
                case Emit(value=Paid(voucher=voucher)):
                    if not self.paid or voucher != self.paid[-1]:
                        self._paid(voucher)
                case Emit(value=Opened() as opened):
                    self.opened.append(opened)
                case Emit(value=Generate() as order):
                    assert order.turn not in self.channel.quoted, "served before it was paid"
                case Send(message=Checkpoint() as checkpoint):
                    assert checkpoint in self.issued, "sent before it was durable"
                case Send(message=Tokens(turn=turn, index=index, ids=ids)):
                    self.sent_of[turn] = max(self.sent_of.get(turn, 0), index + len(ids))
                    paid_out = self.paid[-1].tokens_out if self.paid else 0
                    assert self.sent_out - paid_out <= self.window, "past the window"
                    paid_in = self.paid[-1].tokens_in if self.paid else 0
                    assert self.due(paid_in, self.sent_out) <= self.money.deposit, "past the deposit"
                case _:
                    pass
        super().host_did(effects)

    def _paid(self, voucher: Voucher) -> None:
        assert voucher in self.signed, "paid before it was signed"
        assert voucher.amount == self.due(voucher.tokens_in, voucher.tokens_out)
        if self.paid:
            assert voucher.amount >= self.paid[-1].amount
            assert voucher.tokens_out >= self.paid[-1].tokens_out
        self.paid.append(voucher)

    def client_did(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Emit(value=Signed(voucher=voucher)):
                    self.signed.append(voucher)
                    held = self.client.held
                    assert held is not None
                    assert voucher.amount == self.due(voucher.tokens_in, voucher.tokens_out)
                    assert voucher.amount <= self.money.deposit
                    assert voucher.tokens_out <= held.meter.tokens_out
                case Send(message=Voucher() as voucher):
                    assert voucher in self.signed, "sent before it was durable"
                case Emit(value=TurnDone(done=done)):
                    self.billed_in += done.tokens_in - done.reused
                    self.billed_out += done.tokens_out
                case Emit(value=TurnFailed()):  # what was delivered before stays billed
                    held = self.client.held
                    assert held is not None
                    self.billed_in, self.billed_out = held.meter.tokens_in, held.meter.tokens_out
                case _:
                    pass
        super().client_did(effects)

    def settled(self) -> None:
        """At rest: both sides hold the same voucher, and it says exactly what was delivered."""
        session, held = self.host.session, self.client.held
        assert session is not None
        assert held is not None
        assert not session.turns
        assert not held.turns
        host, client = session.meter, held.meter
        assert (host.tokens_in, host.tokens_out) == (client.tokens_in, client.tokens_out)
        assert host.root == client.root
        assert not self.channel.owed
        best = self.channel.best
        if client.tokens_in or client.tokens_out:
            assert best is not None
            last = self.client.last_voucher
            assert last is not None
            assert same_voucher(best, last)
            assert (best.tokens_in, best.tokens_out) == (client.tokens_in, client.tokens_out)
            assert best.amount == self.due(client.tokens_in, client.tokens_out)


def next_voucher(host: HostSession) -> Voucher:
    """The voucher for the oldest unpaid quote of a host and all its receipts."""
    assert host.session is not None
    channel = host.session.channel
    point = channel.newest
    turn, billed = next(iter(channel.quoted.items()), (0, 0))
    return exact_voucher(
        client_payment(channel.terms),
        host.session.session,
        seq=point.seq,
        tokens_in=channel.meter.tokens_in + billed,
        tokens_out=point.tokens_out,
        root=point.root,
        turn=turn,
    )


def paid_client(terms: SessionTerms = TERMS) -> ClientSession:
    """A client of that host."""
    return ClientSession(
        host=HOST.peer,
        stream=STREAM,
        model=MODEL,
        salt=SALT,
        holder=HOLDER,
        payment=client_payment(terms),
    )


def resumed_client(held: HeldSession | None) -> ClientSession:
    """A client that has this session, on a new stream."""
    return ClientSession(
        host=HOST.peer,
        stream=STREAM,
        model=MODEL,
        salt=SALT,
        holder=HOLDER,
        resume=held,
        peer=CLIENT_ID.peer,
    )


def quote_of(tokens_in: int = 20, reused: int = 5, turn: int = 1) -> Quote:
    """As the pair's host gives it."""
    return Quote(turn=turn, tokens_in=tokens_in, prompt_hash=PROMPT_HASH, reused=reused)


SESSION: Final = SessionId(session_id(MARKET, TERMS))
