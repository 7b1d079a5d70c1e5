"""``MarketService``: the hosts and clients of a world, their chain, and what is watched and told of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final

from p2pnode.errors import HostFault, P2PNodeError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.payments.exposure import ExposureLimits
from p2pnode.payments.spending import SpendingLimits
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.crypto import public_key_of
from p2pnode.protocols.events import Closed
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import ClientTimes
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import Checkpoint, Prompt, Receipt, Tokens, Voucher
from p2pnode.protocols.inference.open_session import OpenSession
from p2pnode.simulations.faults import Fault, Undo
from p2pnode.simulations.gossip_service import GossipService
from p2pnode.simulations.invariants import Watch
from p2pnode.simulations.keys import Keys
from p2pnode.simulations.market.adverts import PROTOCOL as ADVERTS
from p2pnode.simulations.market.adverts import NodeAdverts, bound, shared_checks
from p2pnode.simulations.market.byzantine import strike
from p2pnode.simulations.market.client import (
    Client,
    ClientProfile,
    Clients,
    Conversation,
)
from p2pnode.simulations.market.economy import Economy, Owner, first_prices, reprice
from p2pnode.simulations.market.engines import Engines, SimulatedEngine, prompt_ids
from p2pnode.simulations.market.host import Host, HostProfile, Hosts, HostStream
from p2pnode.simulations.market.ledger import Chain, SimulatedChain
from p2pnode.simulations.market.question import Asker, Question
from p2pnode.simulations.market.session import Session, SessionTurn
from p2pnode.simulations.market.watch import MarketWatch
from p2pnode.simulations.recorder import Recorder
from p2pnode.simulations.signatures import check
from p2pnode.simulations.world import Answerer, Link, Node, Shell, World

_SHELLS_KEPT: Final = 8
_BOOKS_LOOKED_AT_S: Final = 10.0
_MESSAGE_BYTES: Final = 120
_WIND_UP_STEP_S: Final = 10.0
WIND_UP_S: Final = 1800.0
"""So long after a run sessions may still be settled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """The parameters of a market."""

    hosts: Hosts = field(default_factory=Hosts)
    clients: Clients = field(default_factory=Clients)
    engines: Engines = field(default_factory=Engines)
    economy: Economy = field(default_factory=Economy)
    chain: Chain = field(default_factory=Chain)

    @property
    def nodes(self) -> int:
        """How many nodes it has."""
        return self.hosts.count + self.clients.count

    def scaled(self, nodes: int) -> Market:
        """The same market with so many nodes in all, the shares of hosts and clients unchanged."""
        if nodes < 2:  # noqa: PLR2004 - a host and a client
            msg = f"nodes is {nodes}: a market has at least a host and a client"
            raise ValueError(msg)
        hosts = min(nodes - 1, max(1, round(nodes * self.hosts.count / self.nodes)))
        return replace(
            self,
            hosts=replace(
                self.hosts,
                count=hosts,
                bootstrap=min(self.hosts.bootstrap, hosts),
                models=min(self.hosts.models, hosts),
            ),
            clients=replace(self.clients, count=nodes - hosts),
        )


class MarketService:
    """The market of a world; a ``Service`` of it. Make it, then :meth:`populate`.

    Adverts are gossiped by the hosts alone: who comes for a question asks, as the node's own commands do.
    """

    def __init__(
        self,
        world: World,
        parameters: Market,
        *,
        recorder: Recorder | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.world, self.parameters = world, parameters
        self.recorder = recorder if recorder is not None else Recorder()
        self.limits = parameters.hosts.limits()
        self.keys = Keys(world.draws.seed)
        self.chain = SimulatedChain(world.loop, self.keys, parameters.chain)
        self._watch = watch if watch is not None else Watch()
        self.watch = MarketWatch(self._watch, self.chain)
        self.chain.on_event.append(self._mined)
        self.exposure_limits = ExposureLimits()
        self.spending_limits = SpendingLimits()
        limits = self.limits
        self.client_times = ClientTimes(
            open_s=limits.request_deadline_s,
            open_paid_s=limits.request_deadline_s + limits.escrow_deadline_s + limits.chain_deadline_s,
            first_token_s=limits.first_token_deadline_s,
            stall_s=limits.stall_s,
        )
        self.models = [
            ModelId(sha256(f"model {number}".encode()).digest()) for number in range(parameters.hosts.models)
        ]
        self.checks = shared_checks(self.keys)
        self.host_profiles: dict[int, HostProfile] = {}
        self.client_profiles: dict[int, ClientProfile] = {}
        self.hosts: dict[PeerId, Host] = {}
        """Those that are up."""
        self.clients: dict[PeerId, Client] = {}
        self.adverts: dict[PeerId, NodeAdverts] = {}
        self._plain: set[int] = set()
        self.host_nodes: list[Node] = []
        self.client_nodes: list[Node] = []
        self.is_closing = False
        """Whether nobody asks anything any more."""
        self.dishonest: dict[PeerId, str] = {}
        """Hosts that do wrong, and what."""
        self.tamper: dict[PeerId, Callable[[Any], Any]] = {}
        """What is made of the machine of a session at these hosts."""
        self.answers: dict[PeerId, Answerer] = {}
        """What these hosts answer questions for adverts with, in place of their machine."""
        self.slow: dict[PeerId, float] = {}
        """Hosts that take so many times as long."""
        self.other_model: dict[PeerId, int] = {}
        """Hosts that run another model than they say."""
        self._new: str = ""
        self.gossip = GossipService(world, speaks=self._gossips)
        self._shells: dict[Link, list[Shell]] = {}
        self._numbers: dict[bytes, int] = {}
        """Of nodes, by their wallets."""
        self._questions: dict[int, int] = {}
        """By client's number, what its answers cost so far."""
        self.counts: dict[str, int] = {}
        """Of what happened, by name."""
        self._sessions = self.recorder.appender("sessions")
        world.services.append(self)

    # ---- nodes

    def populate(self) -> None:
        """Make all nodes, connect the hosts, and begin."""
        for _ in range(self.parameters.hosts.count):
            self.add_host()
        hosts, dials = self.host_nodes, self.parameters.hosts.dials
        draw = self.world.draws("market topology")
        for node in hosts:
            others = [each for each in draw.sample(hosts, min(len(hosts), dials + 1)) if each is not node]
            for other in others[:dials]:
                self.world.connect(node, other)
        for _ in range(self.parameters.clients.count):
            self.add_client()
        self._look_at_books()
        economy = self.parameters.economy
        if economy.entry_interval_s:
            self.world.loop.after(economy.entry_interval_s, self._enter)

    def add_host(self, *, key: bytes | None = None, ip: str | None = None) -> Node:
        """One more host; ``key`` and ``ip`` as ``World.add`` has them."""
        self._new = "host"
        return self.world.add(key=key, ip=ip)

    def add_plain(self, ip: str) -> Node:
        """A node that gossips and is no host, at this address."""
        self._new = "plain"
        node = self.world.add(ip=ip)
        self._plain.add(node.number)
        return node

    def gossips(self, peer: PeerId) -> bool:
        """Whether a peer takes part in gossip."""
        return self._gossips(self.world.by_peer[peer])

    def _gossips(self, node: Node) -> bool:
        number = node.number
        return self._new in ("host", "plain") or number in self.host_profiles or number in self._plain

    def strike(self, fault: Fault, nodes: Sequence[Node]) -> Undo:
        """Let hosts do wrong; see ``byzantine.py``."""
        return strike(self, fault, nodes)

    def add_client(self, *, key: bytes | None = None, ip: str | None = None) -> Node:
        """One more client; ``key`` and ``ip`` as ``World.add`` has them."""
        self._new = "client"
        return self.world.add(key=key, ip=ip)

    def started(self, node: Node) -> None:
        """A node is up."""
        new, self._new = self._new, ""
        if new == "host":
            self._found_host(node)
        elif new == "client":
            self._found_client(node)
        if (profile := self.host_profiles.get(node.number)) is not None:
            host = self.hosts[node.peer] = Host(self, node, profile)
            host.engine.slow = self.slow.get(node.peer, 1.0)
            host.engine.model = self.other_model.get(node.peer, 0)
            if (answer := self.answers.get(node.peer)) is not None:
                node.answers[ADVERTS] = answer
        elif (known := self.client_profiles.get(node.number)) is not None:
            self.clients[node.peer] = Client(self, node, known)

    def _found_host(self, node: Node) -> None:
        number, economy = node.number, self.parameters.economy
        wallet, receipt_key = self.keys.address(f"host {number}"), self.keys.address(f"receipts {number}")
        random = self.world.draws("market host", number)
        seed = random.getrandbits(32)

        def engine() -> SimulatedEngine:
            made = self.world.draws("engine", seed)
            return SimulatedEngine(self.world.loop, self.parameters.engines, made)

        known = self.host_nodes[: self.parameters.hosts.bootstrap]
        self.host_profiles[number] = HostProfile(
            model=self.models[len(self.host_nodes) % len(self.models)],
            wallet=wallet,
            receipt_key=receipt_key,
            binding=bound(self.keys, node.peer, wallet, receipt_key, self.chain.domains),
            prices=first_prices(economy, random),
            owner=Owner(self.world.now),
            make_engine=engine,
            peers=tuple(each.peer for each in known),
        )
        self.chain.accounts.append(wallet)
        self.chain.fund(wallet)
        self._numbers[wallet] = number
        self.host_nodes.append(node)
        self.world.loop.after(
            economy.reprice_interval_s * (0.5 + random.random()), self._reprice, node, random
        )

    def _found_client(self, node: Node) -> None:
        number = node.number
        wallet = self.keys.address(f"client {number}")
        random = self.world.draws("market client", number)
        self.chain.accounts.append(wallet)
        self._numbers[wallet] = number
        self.chain.mint(wallet, self.parameters.economy.wallet)
        self.recorder.row(
            "ledger", at_s=self.world.now, kind="mint", payee=number,
            amount=self.parameters.economy.wallet, total=self.chain.minted,
        )  # fmt: skip
        first = self.host_nodes[: self.parameters.hosts.bootstrap]
        self.client_profiles[number] = ClientProfile(
            name=f"client {number}",
            wallet=wallet,
            bootstrap=tuple(random.sample(first, min(2, len(first)))),
            has_tokenizer=random.random() < self.parameters.clients.tokenizer_share,
        )
        self.client_nodes.append(node)
        self._questions[number] = 0

    def stopped(self, node: Node) -> None:
        """A node crashed."""
        self.adverts.pop(node.peer, None)
        if (host := self.hosts.pop(node.peer, None)) is not None:
            host.stop()
        if (client := self.clients.pop(node.peer, None)) is not None:
            client.stop()

    def connected(self, link: Link) -> None:
        """A host may have waited for its first peer."""
        if (host := self.hosts.get(link.sender.peer)) is not None:
            host.company.connected()

    def disconnected(self, link: Link) -> None:
        """The streams of a connection are lost with it."""
        for shell in self._shells.pop(link, ()):
            if not shell.is_over:
                shell.streams.clear()
                shell.give(Closed(link.receiver.peer, 0, "lost"))

    def note_shell(self, link: Link, shell: Shell) -> None:
        """A stream goes over this connection."""
        shells = self._shells.setdefault(link, [])
        if len(shells) >= _SHELLS_KEPT:
            shells[:] = [each for each in shells if not each.is_over]
        shells.append(shell)

    def adverts_of(self, node: Node, *, gossips: bool) -> NodeAdverts:
        """Adverts at a node that starts."""
        profile = self.host_profiles.get(node.number)
        known = self.client_profiles.get(node.number)
        start = profile.disk.starts if profile is not None else known.disk.starts if known is not None else 0

        def believed(at: Node, before: Advert | None, advert: Advert) -> None:
            number = at.number
            self._event(number, "advert", advert.peer, advert.seq)
            self.watch.believed(number, before, advert)

        adverts = self.adverts[node.peer] = NodeAdverts(
            self.world,
            node,
            self.checks,
            gossip=self.gossip if gossips else None,
            on_believed=believed,
            book_max=self.parameters.hosts.book_max,
            start=start,
        )
        return adverts

    def model_name(self, model: ModelId) -> str:
        """What people call a model."""
        return f"model {self.models.index(model)}"

    # ---- machines

    def new_host_session(self, host: Host, **arguments: Any) -> Any:
        """The machine of a stream at a host, or what a dishonest one has in its place."""
        machine = HostSession(**arguments)
        tamper = self.tamper.get(host.node.peer)
        return machine if tamper is None else tamper(machine)

    def new_client_session(self, _owner: object, /, **arguments: Any) -> ClientSession:
        """The machine of a stream at a client."""
        return ClientSession(**arguments)

    @staticmethod
    def verify_peer(peer: str, message: bytes, signature: bytes) -> bool:
        """Whether a peer signed this."""
        return check(public_key_of(peer), message, signature)

    @staticmethod
    def size_of(message: Any) -> int:
        """About how many bytes a message takes."""
        if isinstance(message, Tokens):
            return 40 + 5 * len(message.ids) + len(message.text)
        if isinstance(message, Prompt):
            return 40 + len(message.body)
        if isinstance(message, Checkpoint):
            return 260
        return _MESSAGE_BYTES

    # ---- what is told

    def _event(self, node: int, kind: str, *values: Any) -> None:
        now = self._watch.now = self.world.loop.now
        self.recorder.event(now, node, kind, *values)

    def _count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def note_asked(self, question: Question) -> None:
        """Somebody asks."""
        self._event(question.client.node.number, "asked", question.partial.body.seed)
        self._count("questions")

    def note_turn_asked(self, session: Session, turn: SessionTurn) -> None:
        """A turn is asked in a session."""
        self._event(session.client.node.number, "turn asked", session.host.number, len(turn.ask.body.prefix))
        self.watch.asked(session, len(prompt_ids(turn.ask.body)))

    def note_delivered(self, session: Session, turn: SessionTurn, tokens: Tokens) -> None:
        """Output arrived at a client's machine."""
        del turn
        self._watch.now = self.world.now
        self.watch.delivered(session, len(tokens.ids))

    def note_answer(self, question: Question, ids: tuple[int, ...]) -> None:
        """Output of an answer arrived at whoever asked."""
        if not ids:
            return
        peer = question.hosts[-1] if question.hosts else question.client.node.peer
        fraud = self.dishonest.get(peer, "")
        self._watch.now = self.world.now
        right = self.watch.answered(question, ids, honest=not fraud)
        if not right:
            question.fraud = fraud
        self._count("tokens", len(ids))
        self._event(question.client.node.number, "tokens", len(question.partial.ids), len(ids))

    def note_signed(self, session: Session, voucher: Voucher) -> None:
        """A client signed a voucher."""
        if session.bought is not None:
            client, host = session.client.node.number, session.host.number
            self._event(client, "signed", host, voucher.amount, voucher.tokens_out)
            self.watch.signed(session.bought, voucher)

    def note_receipted(self, session: Session, receipt: Receipt) -> None:
        """A client checked a receipt."""
        made = receipt.checkpoint
        self._event(session.client.node.number, "receipt", session.host.number, made.seq, made.tokens_out)

    def note_paid(self, host: Host, session: SessionId, voucher: Voucher) -> None:
        """A host took a voucher."""
        payer = self._number_of(host.disk.sessions[session].terms.payer)
        self._event(host.node.number, "paid", payer, voucher.amount)
        self.watch.taken(session, voucher)

    def note_unpaid(self, host: Host, record: OpenSession) -> None:
        """A host gave up what a session owes."""
        self._event(host.node.number, "unpaid", record.unpaid)
        self._count("unpaid units", record.unpaid)
        best = record.channel.best
        paid = best.tokens_out if best is not None else 0
        self.watch.unpaid(record.session, record.meter.tokens_out - paid, record.granted.window)

    def note_left_taken(self, session: Session) -> None:
        """A session that was left goes on."""
        self._event(session.client.node.number, "left taken", session.host.number)
        self._count("sessions taken up")

    def note_left(self, host: Host, record: OpenSession) -> None:
        """A client left its session with a host."""
        self._event(host.node.number, "left", self._number_of(record.channel.terms.payer))
        self._count("sessions left")
        host.profile.owner.left += 1

    def note_gas(self, host: Host, wei: int, most: int) -> None:
        """A settlement cost so much gas."""
        self.watch.gas(host.node.number, wei, most)

    def note_gas_too_dear(self, host: Host) -> None:
        """A settlement waits for cheaper gas."""
        self._event(host.node.number, "gas too dear")
        self._count("settlements postponed")
        host.profile.owner.postponed += 1

    def note_client_fault(self, host: Host, stream: HostStream, reason: str) -> None:
        """A host says that a client broke the protocol. All clients are honest."""
        if host.node.peer not in self.dishonest:
            self.watch.fault(f"client {stream.client.number}", reason)

    def note_resumed(self, session: Session) -> None:
        """A session goes on on another stream."""
        self._event(session.client.node.number, "resumed")
        self._count("resumes")

    def note_failover(self, question: Question) -> None:
        """Another host goes on with an answer, or the same one again."""
        self._event(question.client.node.number, "failover", len(question.partial.ids))
        self._count("failovers")

    def note_host_failed(self, question: Question, peer: PeerId, error: P2PNodeError) -> None:
        """A host failed a question."""
        self._event(question.client.node.number, "host failed", peer, type(error).__name__)
        self._count(f"failed: {type(error).__name__}")
        if isinstance(error, HostFault):
            if peer not in self.dishonest:
                self.watch.fault(f"host {self.world.by_peer[peer].number}", str(error))
            question.fraud = question.fraud or self.dishonest[peer]

    def note_lookup(self, client: Asker, seconds: float, asked: int, found: int, failed: int) -> None:
        """A lookup is over."""
        self._event(client.node.number, "lookup", found)
        self.recorder.row(
            "lookups", at_s=self.world.now, node=client.node.number, kind="hosts", seconds=seconds, hops=1,
            asked=asked, found=found, failed=failed,
        )  # fmt: skip

    def note_question(self, question: Question) -> None:
        """A question has its outcome."""
        client, now = question.client.node.number, self.world.now
        items = question.failover.bill.items
        cost, tokens_out = question.cost, len(question.partial.ids)
        self._event(client, "answer", question.outcome, tokens_out, cost)
        self._count(question.outcome)
        if question.outcome == "done":
            self.watch.whole(question)
        self._questions[client] += cost
        host = self.world.by_peer[question.hosts[-1]].number if question.hosts else -1
        first_s = question.first_at - question.asked_at if question.first_at is not None else math.nan
        self._sessions(
            question.asked_at, client, host, question.outcome, first_s, now - question.asked_at,
            sum(item.tokens_in for item in items), tokens_out, len(question.hosts), question.gap_s, cost,
            question.fraud, question.found_fraud,
        )  # fmt: skip

    def note_turn(self, conversation: Conversation, question: Question) -> None:
        """A turn of a conversation is over."""
        self._event(conversation.client.node.number, "turn", question.outcome)

    def _mined(self, event: Any) -> None:
        self._watch.now = self.world.now
        kind, session = type(event).__name__, event.session
        self._event(-1, kind, session)
        self._count(kind)
        self.watch.mined(event)
        amount = getattr(event, "amount", 0)
        terms = getattr(event, "terms", None)
        self.recorder.row(
            "ledger", at_s=self.world.now, kind="deposit" if terms is not None else "settle",
            payer=self._number_of(event.payer), payee=self._number_of(event.host),
            amount=terms.deposit if terms is not None else amount,
            fee=getattr(event, "to_treasury", 0), total=self.chain.minted,
        )  # fmt: skip

    def _number_of(self, account: bytes) -> int:
        return self._numbers.get(account, -1)

    # ---- time goes by

    def _look_at_books(self) -> None:
        self._watch.now = self.world.now
        for node in (*self.host_nodes, *self.client_nodes):
            if (adverts := self.adverts.get(node.peer)) is not None:
                self.watch.book(adverts, node.number)
            if (host := self.hosts.get(node.peer)) is not None:
                self.watch.left(node.number, host.held.left)
        self.world.loop.after(_BOOKS_LOOKED_AT_S, self._look_at_books)

    def _reprice(self, node: Node, random: Any) -> None:
        economy, profile = self.parameters.economy, self.host_profiles[node.number]
        host = self.hosts.get(node.peer)
        if host is not None and not self.is_closing:
            if economy.pricing != "fixed":
                adverts = (entry.advert for entry in host.adverts.book.live(host.wall(), profile.model))
                offers = (advert.offer(profile.model) for advert in adverts if advert.peer != node.peer)
                others = [offer.price_out for offer in offers if offer is not None]
                before = profile.prices
                profile.prices = reprice(economy, before, others_out=others, busy=host.busy_share())
                if profile.prices != before:
                    self._event(node.number, "price", profile.prices.price_out)
                    host.announce()
            if profile.owner.leaves(economy, self.world.now):
                self._event(node.number, "leaves")
                self._count("exits")
                host.drain()
                self.world.loop.after(self.limits.drain_deadline_s, self.world.crash, node)
                return
        self.world.loop.after(
            economy.reprice_interval_s * (1 + 0.1 * random.random()), self._reprice, node, random
        )

    def _enter(self) -> None:
        economy, now = self.parameters.economy, self.world.now
        if self.is_closing:
            return
        profits = [self.host_profiles[number].owner.profit(economy, now) for number in self._up()]
        if profits and sum(profits) > 0:
            node = self.add_host()
            self._count("entries")
            self._event(node.number, "enters")
        self.world.loop.after(economy.entry_interval_s, self._enter)

    def _up(self) -> list[int]:
        return [node.number for node in self.host_nodes if node.peer in self.hosts]

    # ---- the end

    def wind_up(self) -> None:
        """Let everybody finish and settle, with all hosts up; then check the accounts. Time goes on.

        Raises ``InvariantError``.
        """
        self.is_closing = True
        world = self.world
        for node in (*self.host_nodes, *self.client_nodes):
            world.restart(node)
        end = world.now + WIND_UP_S
        while world.now < end and not self._is_quiet():
            for node in self.client_nodes:
                client = self.clients[node.peer]
                client.redeliver()
                client.close_left()
                for session in list(client.sessions):
                    if not session.is_busy:
                        session.close()
            world.run_until(world.now + _WIND_UP_STEP_S)
        self.check_accounts()

    def _is_quiet(self) -> bool:
        return not self.chain.in_escrow and not any(client.sessions for client in self.clients.values())

    def check_accounts(self) -> None:
        """Compare what was billed, signed and settled. Raises ``InvariantError``."""
        self._watch.now = self.world.now
        self.watch.money()
        for node in self.client_nodes:
            profile = self.client_profiles[node.number]
            for session, bought in profile.disk.bought.items():
                closed = self.chain.closed.get(session)
                if closed is not None:
                    self.watch.settled(bought, closed.amount, delivered=bought.owed is None)
            if profile.disk.starts == 1:  # after a crash nobody remembers the bills
                signed = sum(each.cost for each in profile.disk.bought.values())
                self.watch.bill(node.number, self._questions[node.number], signed)

    def columns_of(self, node: Node) -> dict[str, Any]:
        """What the table ``nodes`` tells of a node beside its messages."""
        adverts = self.adverts.get(node.peer)
        found: dict[str, Any] = {"book": len(adverts.book) if adverts is not None else 0}
        if (host := self.host_profiles.get(node.number)) is not None:
            owner = host.owner
            found |= {
                "role": "host", "tokens": owner.tokens_out, "earned": owner.earned,
                "starts": host.disk.starts, "costs": owner.costs(self.parameters.economy, self.world.now),
                "served": sum(each.state == "settled" for each in host.disk.sessions.values()),
                "gas": owner.gas, "left": owner.left, "postponed": owner.postponed,
            }  # fmt: skip
        elif (client := self.client_profiles.get(node.number)) is not None:
            spent = sum(each.cost for each in client.disk.bought.values())
            found |= {"role": "client", "spent": spent, "starts": client.disk.starts}
            found["hosts_known_s"] = client.hosts_known_s
        return found
