"""A client of a simulated market: people who ask, what they pay with, and what its disk holds.

What is decided is the node's own: ``Search``, ``HostChoice``, ``ClientSession``, ``Failover``,
``CostShares``, ``Resumption``, ``WalletRule``. Here and in ``session.py`` and ``question.py`` is what acts on
it, in place of tasks and streams. A ``ClientDisk`` outlives a crash. Not modelled: dormant sessions, and free
ones that are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from p2pnode.bounded import BoundedMap
from p2pnode.client.ranking import Candidate, Filters, is_priced
from p2pnode.client.reputation import Measured
from p2pnode.client.reuse import PrefixMemory
from p2pnode.errors import P2PNodeError, RefusedError, UnreachableError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.payments.journal.records import Spending
from p2pnode.payments.spending import (
    FundsError,
    SpendingLimitError,
    SpendingLimits,
    WalletRule,
    why_unpayable,
)
from p2pnode.payments.spending import (
    Market as PayMarket,
)
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.inference.channel import ClientPayment
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.messages import (
    ChatMessage,
    PromptBody,
    SamplingParams,
    SessionTerms,
)
from p2pnode.protocols.typed_data import authorisation_digest
from p2pnode.simulations.market.engines import (
    BYTES_PER_TOKEN,
    Engines,
    named_by,
    seed_of_length,
)
from p2pnode.simulations.market.ledger import EPOCH_S
from p2pnode.simulations.market.question import Question, QuestionMarket
from p2pnode.simulations.market.redelivery import Redeliverer
from p2pnode.simulations.market.session import PROTOCOL, Bought, OpenHost, Session, Then
from p2pnode.simulations.parameters import require_not_negative, require_positive, require_shares
from p2pnode.simulations.world import Link, Node, Shell

_EXPIRY_S: Final = 48 * 3600
_VALID_S: Final = 450
_GONE: Final = ("bad_request", "payment_required")
"""How a host refuses a session that it does not have any more."""
_SAVED_MAX: Final = 64
_SAVED_TRIED: Final = 8
_HOSTS_WANTED: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """How many people ask, how often, and how much. Means are those of drawn numbers.

    A conversation has ``turns_mean`` questions, ``think_s`` apart. Each client begins so many an hour;
    between ``surge_at_s`` and ``surge_at_s + surge_s`` so many times as often.
    ``parallel`` questions are asked at once in one session, as a program does. Who has waited ``patience_s``
    for the first token gives up. ``tokenizer_share`` of the clients count their prompts themselves.
    """

    count: int = 100
    conversations_per_hour: float = 4.0
    turns_mean: float = 3.0
    think_s: float = 20.0
    prompt_tokens_mean: float = 120.0
    answer_tokens_mean: float = 200.0
    answer_sigma: float = 0.7
    parallel: int = 1
    patience_s: float = 120.0
    tokenizer_share: float = 0.5
    keep_hours: float = 0.0
    """How long sessions are to be kept that are left at the end of a conversation; 0: they are closed."""
    price_out_max: int = 0
    """What a million tokens of output may cost at most; 0: any price."""
    surge_at_s: float = 0.0
    surge_s: float = 0.0
    surge_factor: float = 1.0

    def __post_init__(self) -> None:
        require_positive(
            self, "count", "turns_mean", "prompt_tokens_mean", "answer_tokens_mean", "parallel", "patience_s",
            "surge_factor",
        )  # fmt: skip
        require_not_negative(
            self,
            "conversations_per_hour",
            "keep_hours",
            "think_s",
            "answer_sigma",
            "price_out_max",
            "surge_at_s",
            "surge_s",
        )
        require_shares(self, "tokenizer_share")
        if self.turns_mean < 1:
            msg = f"turns_mean is {self.turns_mean}: a conversation has at least one question"
            raise ValueError(msg)


@dataclass(slots=True)
class ClientDisk:
    """What a client's disk holds: its journal, and what it knows of hosts."""

    bought: dict[SessionId, Bought] = field(default_factory=dict)
    open: dict[SessionId, None] = field(default_factory=dict)
    """Those that are not settled."""
    finished: set[bytes] = field(default_factory=set)
    """Wallets of hosts that finished a turn."""
    measured: dict[PeerId, Measured] = field(default_factory=dict)
    met: BoundedMap[PeerId, None] = field(default_factory=lambda: BoundedMap(_SAVED_MAX))
    """Peers that answered before."""
    starts: int = 0


class ClientParameters(Protocol):
    """What a client needs of the parameters of its market."""

    @property
    def clients(self) -> Clients:
        """Of all clients."""
        ...

    @property
    def engines(self) -> Engines:
        """Of what answers them."""
        ...


class ClientMarket(QuestionMarket, Protocol):
    """What a client needs of its market."""

    models: list[ModelId]
    spending_limits: SpendingLimits
    is_closing: bool
    """Whether nobody asks anything any more."""

    @property
    def parameters(self) -> ClientParameters:
        """How it is set up."""
        ...

    def note_asked(self, question: Question) -> None:
        """Somebody asks."""
        ...

    def note_turn(self, conversation: Conversation, question: Question) -> None:
        """A turn of a conversation is over."""
        ...


class Client:
    """One client from a start to its end."""

    def __init__(self, market: ClientMarket, node: Node, profile: ClientProfile) -> None:
        self.market, self.node, self.profile = market, node, profile
        self.world, self.parameters, self.disk = market.world, market.parameters.clients, profile.disk
        self.disk.starts += 1
        self._random = market.world.draws("client", node.number, self.disk.starts)
        self.holder = self.draw(16)
        self.keep_s = round(3600 * self.parameters.keep_hours)
        self.is_over = False
        self.has_tokenizer = profile.has_tokenizer
        self.filters = Filters(price_out_max=self.parameters.price_out_max or None)
        self.adverts = market.adverts_of(node, gossips=False)
        self.prefixes = PrefixMemory()
        self.sessions: list[Session] = []
        self._opening: dict[tuple[PeerId, ModelId], list[tuple[Candidate, Ask, Then]]] = {}
        self._waiting: list[tuple[Candidate, Ask, Then]] = []
        self.questions: dict[int, Question] = {}
        for bought in self.disk.bought.values():
            bought.is_used = False
        self._redeliverer = Redeliverer(self)
        self.later(self.redeliver)
        self._plan_conversation()

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        return self.world.now

    @property
    def measured(self) -> dict[PeerId, Measured]:
        """What it measured of hosts, in this start and before."""
        return self.disk.measured

    @property
    def patience_s(self) -> float:
        """How long people wait for the first token."""
        return self.parameters.patience_s

    def wall(self) -> float:
        """Epoch seconds."""
        return EPOCH_S + self.world.now

    def draw(self, count: int) -> bytes:
        """Random bytes."""
        return self._random.randbytes(count)

    def later(self, action: Callable[..., object], *arguments: Any) -> None:
        """Do it when what is done now is done, unless the client is gone by then."""
        self.world.loop.after(0.0, self._unless_over, action, arguments)

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """The same, later."""
        self.world.loop.after(seconds, self._unless_over, action, arguments)

    def _unless_over(self, action: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if not self.is_over:
            action(*arguments)

    def guarded(self, action: Callable[..., None]) -> Callable[..., None]:
        """``action``, unless the client is gone by then."""
        return lambda *arguments: self._unless_over(action, arguments)

    def stop(self) -> None:
        """It crashed: all but the disk is gone."""
        self.is_over = True
        for session in self.sessions:
            if session.shell is not None:
                session.shell.stop()

    def measure(self, peer: PeerId, change: Callable[[Measured], Measured]) -> None:
        """Note what was measured of a host."""
        measured = self.measured
        measured[peer] = change(measured.get(peer, Measured()))

    # ---- peers and streams

    def first_peers(self) -> list[Node]:
        """Whom a search asks first: the first peers that this client knows, those it is connected to, and
        some that it met before."""
        connected = list(self.node.links)[: self.market.limits.dials_at_once]
        saved = self._random.sample(list(self.disk.met), min(_SAVED_TRIED, len(self.disk.met)))
        peers = dict.fromkeys([*(node.peer for node in self.profile.bootstrap), *connected, *saved])
        return [self.world.by_peer[peer] for peer in peers]

    def met(self, peer: PeerId) -> None:
        """A peer answered."""
        self.disk.met.put(peer, None)

    def searches(self) -> None:
        """A search for hosts begins."""
        if math.isnan(self.profile.searched_at):
            self.profile.searched_at = self.now

    def verified(self, peer: PeerId) -> None:
        """A host was asked for its advert, and that holds."""
        profile = self.profile
        profile.verified.add(peer)
        if math.isnan(profile.hosts_known_s) and len(profile.verified) >= _HOSTS_WANTED:
            profile.hosts_known_s = self.now - profile.searched_at

    def join(
        self, machine: ClientSession, on_emit: Callable[[Any], None], host: OpenHost, link: Link
    ) -> Shell:
        """Run a machine on a new stream to a host."""
        shell = self.world.shell(self.node, PROTOCOL, machine, on_emit=on_emit, size=self.market.size_of)
        stream = host.open_stream(self.node, link.back)
        self.world.join(shell, stream.shell, link)
        self.market.note_shell(link, shell)
        return shell

    def leave_stream(self, shell: Shell) -> None:
        """A stream is not needed any more."""
        self.world.close(shell, code="closed")
        shell.stop()

    # ---- sessions

    def sessions_of(self, peer: PeerId, model: ModelId) -> list[Session]:
        """Those that are not over."""
        return [
            each
            for each in self.sessions
            if each.host.peer == peer and each.model == model and not (each.is_over or each.is_closing)
        ]

    def peers_with_session(self, model: ModelId) -> list[PeerId]:
        """Hosts with a session that can take a turn now, or is worth waiting for."""
        found = (
            each.host.peer
            for each in self.sessions
            if each.model == model
            and each.accept is not None
            and not (each.is_over or each.is_closing)
            and (each.places > 0 or each.paid)
        )
        return list(dict.fromkeys(found))

    def turn_finished(self, wallet: bytes) -> None:
        """A host finished a turn for this client's wallet: the next prompt may be paid with the question."""
        self.disk.finished.add(wallet)

    def session_over(self, session: Session) -> None:
        """It can take no more turns."""
        if session in self.sessions:
            self.sessions.remove(session)
        self.pool_changed()

    def pool_changed(self) -> None:
        """A place became free, or a session is over: who waits looks again."""
        waiting, self._waiting = self._waiting, []
        for candidate, ask, then in waiting:
            self.later(self.open_session, candidate, ask, then)

    def open_session(self, candidate: Candidate, ask: Ask, then: Then) -> None:
        """A session with a host that can pay for a turn, with a place for it: one that is open, or a new one.

        A paid one whose places are taken is waited for: another one would cost another fee.
        """
        key = (candidate.advert.peer, candidate.offer.model)
        sessions = self.sessions_of(*key)
        for session in reversed(sessions):
            if session.accept is None:
                continue  # it is being opened, and waited for below
            sizes = ask.input_max, ask.body.sampling.tokens_max
            if session.places > 0 and session.covers(*sizes):
                session.reused = True
                session.reserved += 1
                then(session)
                return
            if session.paid and not session.is_busy:
                session.close()  # a new session brings a new deposit
        if key in self._opening:
            self._opening[key].append((candidate, ask, then))
            return
        if any(each.paid and each.is_busy for each in self.sessions_of(*key)):
            self._waiting.append((candidate, ask, then))
            return
        self._opening[key] = []
        self._open(key, candidate, ask, then)

    def _open(self, key: tuple[PeerId, ModelId], candidate: Candidate, ask: Ask, then: Then) -> None:
        host = self.world.by_peer.get(key[0])
        patience_s = self.market.limits.reconnect_patience_s
        decided = False

        def over(outcome: Session | P2PNodeError) -> None:
            others = self._opening.pop(key)
            if isinstance(outcome, Session):
                outcome.reserved += 1
            then(outcome)
            for each in others:
                self.later(self.open_session, *each)

        def dialled(link: Link | None) -> None:
            nonlocal decided
            if decided:
                return
            decided = True
            if link is None or host is None:
                over(UnreachableError(f"{key[0]} did not answer within {patience_s:g} s"))
                return
            left = self._left_with(*key, ask) if is_priced(candidate.offer) else None
            if left is not None:
                left.is_used = True
                begin(host, left, lambda outcome: resumed(left, outcome))
            else:
                buy(host)

        def begin(host: Node, bought: Bought | None, then: Then) -> None:
            session = Session(self, host, candidate.offer.model, bought)
            self.sessions.append(session)
            session.begin(then)

        def buy(host: Node) -> None:
            try:
                bought = self._buy(candidate, ask) if is_priced(candidate.offer) else None
            except (FundsError, SpendingLimitError) as error:
                over(error)
                return
            begin(host, bought, over)

        def resumed(left: Bought, outcome: Session | P2PNodeError) -> None:
            if isinstance(outcome, RefusedError) and outcome.code in _GONE and host is not None:
                left.left_until = 0  # its host does not have it any more
                self.measure(key[0], Measured.closed_early)
                buy(host)
                return
            if isinstance(outcome, Session):
                outcome.reused = True  # its fee is on an earlier bill
            over(outcome)

        self.after(patience_s, dialled, None)
        self.world.dial(self.node, host, self.guarded(dialled))

    def has_left(self, peer: PeerId, model: ModelId) -> bool:
        """Whether a session was left with this host."""
        return bool(self._left_sessions(peer, model))

    def _left_sessions(self, peer: PeerId, model: ModelId) -> list[Bought]:
        now = self.wall()
        found = (self.disk.bought[session] for session in self.disk.open)
        return [
            each
            for each in found
            if each.is_left(now) and (each.host, each.payment.terms.model) == (peer, model)
        ]

    def _left_with(self, peer: PeerId, model: ModelId, ask: Ask) -> Bought | None:
        """A session that was left with this host and can pay for a turn."""
        sizes = ask.input_max, ask.body.sampling.tokens_max
        return next((each for each in self._left_sessions(peer, model) if each.covers(*sizes)), None)

    def close_left(self) -> None:
        """Have hosts settle what was left with them: nobody comes back."""
        for session in self.disk.open:
            bought = self.disk.bought[session]
            if bought.is_left(self.wall()):
                bought.left_until = 0
                self._redeliverer.close(bought)

    # ---- money

    def why_unpayable(self, advert: Advert, offer: Offer) -> str:
        """Why an offer can't be paid; "" where it can."""
        domains = self.market.chain.domains
        market = PayMarket(domains.chain_id, domains.node_registry, domains.market.contract)
        return why_unpayable(advert, offer, market, self.market.spending_limits, self.profile.wallet)

    def _spending(self, offer: Offer, wallet: bytes) -> Spending:
        """What is signed away, as the journal has it. A run is shorter than a day."""
        locked = host_locked = outstanding = spent = host_spent = host_ended = 0
        chain = self.market.chain
        for session, bought in self.disk.bought.items():
            terms = bought.payment.terms
            at_host = terms.host == wallet
            spent += bought.cost
            host_spent += bought.cost * at_host
            if session not in self.disk.open:
                host_ended += bought.cost * at_host
                continue
            locked += terms.deposit
            host_locked += terms.deposit * at_host
            if session not in chain.in_escrow:
                outstanding += terms.deposit
        return Spending(
            deposit=0,
            session_fee=offer.session_fee,
            locked=locked,
            day_spent=spent,
            day_reserved=0,
            host_locked=host_locked,
            host_spent=host_spent,
            host_ended=host_ended,
            outstanding=outstanding,
        )

    def _buy(self, candidate: Candidate, ask: Ask) -> Bought:
        """Sign for a session that covers a turn. Raises ``SpendingLimitError``, ``FundsError``."""
        market, offer, advert = self.market, candidate.offer, candidate.advert
        keys, domains = market.keys, market.chain.domains
        self._reconcile()
        spending = self._spending(offer, advert.binding.wallet)
        rule = WalletRule(market.spending_limits, market.chain.usdc(self.profile.wallet), self.profile.name)
        tokens_out = ask.body.sampling.tokens_max
        deposit, tip = rule.deposit(offer, spending, ask.input_max, tokens_out)
        rule.check(replace(spending, deposit=deposit))
        voucher_key = keys.address(f"voucher {self.draw(16).hex()}")
        terms = SessionTerms(
            payer=self.profile.wallet,
            host=advert.binding.wallet,
            voucher_key=voucher_key,
            receipt_key=advert.binding.receipt_key,
            model=offer.model,
            deposit=deposit,
            price_in=offer.price_in,
            price_out=offer.price_out,
            session_fee=offer.session_fee,
            tip=tip,
            expiry=int(self.wall()) + _EXPIRY_S,
            salt=self.draw(32),
        )
        valid_before = int(self.wall()) + _VALID_S
        payment = ClientPayment(
            market=domains.market,
            terms=terms,
            valid_before=valid_before,
            authorisation=b"",
            sign=keys.signer(voucher_key),
            recover=keys.recover,
            has_finished=terms.host in self.disk.finished,
        )
        session = payment.session
        digest = authorisation_digest(
            domains.token,
            payer=terms.payer,
            to=domains.market.contract,
            amount=deposit,
            valid_before=valid_before,
            nonce=session,
        )
        payment = replace(payment, authorisation=keys.signer(self.profile.wallet)(digest))
        bought = Bought(payment, advert.peer, self.draw(32), self.now)
        self.disk.bought[session] = bought
        self.disk.open[session] = None
        return bought

    def _reconcile(self) -> None:
        """Ask the chain what became of sessions that are not known to be over."""
        chain, now = self.market.chain, self.wall()
        for session in list(self.disk.open):
            bought = self.disk.bought[session]
            gone = session not in chain.in_escrow and now > bought.payment.valid_before + 1
            if session in chain.closed or gone:
                del self.disk.open[session]

    def owed(self) -> list[Bought]:
        """Sessions that nobody uses and whose hosts may lack the last voucher, the newest first."""
        self._reconcile()
        found = (self.disk.bought[session] for session in reversed(self.disk.open))
        return [each for each in found if each.owed is not None and not each.is_used]

    def redeliver(self) -> None:
        """Hand hosts that vanished the last vouchers of the sessions that they were left with."""
        self._redeliverer.soon()

    # ---- people

    def _plan_conversation(self) -> None:
        rate = self.parameters.conversations_per_hour / 3600
        if not rate:
            return
        # Thinned (Lewis and Shedler, 1979): drawn at the highest rate, and kept by the rate of the time.
        most = rate * max(1.0, self.parameters.surge_factor)
        wait_s = self._random.expovariate(most)
        keep = self._random.random() * most <= rate * self._factor(self.now + wait_s)
        self.after(wait_s, self._begin_conversation if keep else self._plan_conversation)

    def _factor(self, at: float) -> float:
        parameters = self.parameters
        surges = parameters.surge_at_s <= at < parameters.surge_at_s + parameters.surge_s
        return parameters.surge_factor if surges else 1.0

    def _begin_conversation(self) -> None:
        if self.market.is_closing:
            return
        random, parameters = self._random, self.parameters
        more = 1 - 1 / parameters.turns_mean
        turns = 1
        while random.random() < more:
            turns += 1
        model = self.market.models[random.randrange(len(self.market.models))]
        Conversation(self, model, turns).go_on()

    def conversation_over(self) -> None:
        """People have one conversation at a time."""
        for session in list(self.sessions):
            if not session.is_busy:
                session.leave()
        self._plan_conversation()


class Conversation:
    """Questions, one after another, each with all that was said before."""

    def __init__(self, client: Client, model: ModelId, turns: int) -> None:
        self.client, self.model, self._turns_left = client, model, turns
        self.messages: tuple[ChatMessage, ...] = ()
        self._random = client.world.draws("conversation", client.node.number, client.draw(8).hex())
        self._answers: dict[int, Question] = {}
        self._outstanding = 0

    def go_on(self) -> None:
        """Ask the next question, or several at once, or end."""
        client = self.client
        if not self._turns_left or client.market.is_closing:
            client.conversation_over()
            return
        self._turns_left -= 1
        parameters, random = client.parameters, self._random
        tokens = max(1, round(random.expovariate(1 / parameters.prompt_tokens_mean)))
        mark = random.randbytes(2).hex()
        text = mark + "x" * (BYTES_PER_TOKEN * (tokens - 1))
        self.messages = (*self.messages, ChatMessage.of("user", text))
        self._outstanding = parameters.parallel
        self._answers = {}
        for number in range(parameters.parallel):
            self._ask(number)

    def _ask(self, number: int) -> None:
        client, random, parameters = self.client, self._random, self.client.parameters
        mean, sigma = parameters.answer_tokens_mean, parameters.answer_sigma
        length = max(1, round(random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)))
        most = max(1, client.market.parameters.engines.n_ctx // 4)
        seed = seed_of_length(min(length, most), random.randbytes(12))
        body = PromptBody(
            messages=self.messages,
            sampling=SamplingParams(tokens_max=min(most, 2 * round(mean) + length)),
            seed=seed,
            now=named_by(seed),
        )
        question = Question(client, self.model, body, lambda over: self._answered(number, over))
        client.market.note_asked(question)
        question.begin()

    def _answered(self, number: int, question: Question) -> None:
        self._answers[number] = question
        self._outstanding -= 1
        if self._outstanding:
            return
        first = self._answers[0]
        client = self.client
        if any(each.outcome != "done" for each in self._answers.values()):
            self._turns_left = 0  # people give up, and come back later
        said = first.partial.text
        self.messages = (*self.messages, ChatMessage.of("assistant", said))
        client.market.note_turn(self, first)
        think_s = client.parameters.think_s
        wait_s = self._random.expovariate(1 / think_s) if think_s and self._turns_left else 0.0
        client.after(wait_s, self.go_on)


@dataclass(slots=True)
class ClientProfile:
    """Who a client is, whatever start of it."""

    name: str
    wallet: bytes
    bootstrap: tuple[Node, ...]
    has_tokenizer: bool
    disk: ClientDisk = field(default_factory=ClientDisk)
    verified: set[PeerId] = field(default_factory=set)
    """Hosts that answered with an advert that holds."""
    searched_at: float = math.nan
    """When its first search began."""
    hosts_known_s: float = math.nan
    """From then until there were three of them."""
