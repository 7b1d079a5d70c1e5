"""One question of a simulated client: it searches, chooses a host, and fails over to others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from p2pnode.client.failover import (
    Attempt,
    Decision,
    Failover,
    PartialAnswer,
    SessionState,
    least_pace,
    session_error,
    turn_error,
)
from p2pnode.client.ranking import Candidate, Filters, HostChoice, TurnBound
from p2pnode.client.reputation import Measured
from p2pnode.client.reuse import PrefixMemory
from p2pnode.errors import HostFault, P2PNodeError, RefusedError, RemoteError, UnreachableError
from p2pnode.ids import ModelId, PeerId
from p2pnode.models.answer import Said
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.inference.commands import (
    Ask,
    CancelTurn,
    Quoted,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import (
    TEMPLATE_TOKENS_MAX,
    TEMPLATE_TOKENS_PER_MESSAGE_MAX,
    PromptBody,
    Tokens,
)
from p2pnode.protocols.inference.receipts import ids_hash
from p2pnode.protocols.lookup.messages import Contact, Contacted, Exhausted, Found, Hint, SourceDone
from p2pnode.protocols.lookup.search import Search
from p2pnode.simulations.market.adverts import NodeAdverts
from p2pnode.simulations.market.engines import (
    prompt_ids,
)
from p2pnode.simulations.market.session import Session, SessionMarket, SessionOwner, SessionTurn, Then
from p2pnode.simulations.market.standby import Standby
from p2pnode.simulations.world import Node

LOOKUP: Final = "lookup"
_PACE_CHECK_S: Final = 10.0


class QuestionMarket(SessionMarket, Protocol):
    """What a question needs of its market."""

    def note_answer(self, question: Question, ids: tuple[int, ...]) -> None:
        """Output of an answer arrived at whoever asked."""
        ...

    def note_failover(self, question: Question) -> None:
        """Another host goes on with an answer, or the same one again."""
        ...

    def note_host_failed(self, question: Question, peer: PeerId, error: P2PNodeError) -> None:
        """A host failed a question."""
        ...

    def note_lookup(self, client: Asker, seconds: float, asked: int, found: int, failed: int) -> None:
        """A lookup is over."""
        ...

    def note_question(self, question: Question) -> None:
        """A question has its outcome."""
        ...


class Asker(SessionOwner, Protocol):
    """What a question needs of the client that asks it."""

    adverts: NodeAdverts
    filters: Filters
    has_tokenizer: bool
    prefixes: PrefixMemory

    @property
    def market(self) -> QuestionMarket:
        """Where the client is."""
        ...

    @property
    def measured(self) -> dict[PeerId, Measured]:
        """What it measured of hosts."""
        ...

    @property
    def patience_s(self) -> float:
        """How long it waits for the first token."""
        ...

    def measure(self, peer: PeerId, change: Callable[[Measured], Measured]) -> None:
        """Note what was measured of a host."""
        ...

    def first_peers(self) -> list[Node]:
        """Whom a search asks first."""
        ...

    def met(self, peer: PeerId) -> None:
        """A peer answered."""
        ...

    def searches(self) -> None:
        """A search for hosts begins."""
        ...

    def verified(self, peer: PeerId) -> None:
        """A host was asked for its advert, and that holds."""
        ...

    def sessions_of(self, peer: PeerId, model: ModelId) -> list[Session]:
        """Those that are not over."""
        ...

    def peers_with_session(self, model: ModelId) -> list[PeerId]:
        """Hosts with a session that can take a turn now, or is worth waiting for."""
        ...

    def has_left(self, peer: PeerId, model: ModelId) -> bool:
        """Whether a session was left with this host."""
        ...

    def redeliver(self) -> None:
        """Hand hosts that vanished the last vouchers of the sessions that they were left with."""
        ...

    def open_session(self, candidate: Candidate, ask: Ask, then: Then) -> None:
        """A session with a host that can pay for a turn, with a place for it: an open one, or a new one."""
        ...

    def why_unpayable(self, advert: Advert, offer: Offer) -> str:
        """Why an offer can't be paid; "" where it can."""
        ...


class Question:
    """One question and its answer, of as many hosts as it takes."""

    def __init__(
        self, client: Asker, model: ModelId, body: PromptBody, then: Callable[[Question], None]
    ) -> None:
        self.client, self.model, self._then = client, model, then
        market = client.market
        self.partial = PartialAnswer(body)
        self.failover = Failover(self.partial, attempts_max=market.limits.hosts_per_answer)
        self.choice = HostChoice(
            model,
            client.filters,
            measured=client.measured,
            payable=client.why_unpayable,
            has_session=lambda peer: bool(client.sessions_of(peer, model)),
            has_left=lambda peer: client.has_left(peer, model),
        )
        self.asked_at = client.now
        self.first_at: float | None = None
        self.last_at: float | None = None
        """When output came last."""
        self.gap_s = math.nan
        """The longest wait within the answer that a failure led to."""
        self.outcome = ""
        self.error: P2PNodeError | None = None
        self.hosts: list[PeerId] = []
        self.fraud = ""
        self.found_fraud = False
        self._candidate: Candidate | None = None
        self._session: Session | None = None
        self._turn: SessionTurn | None = None
        self._failed_at: float | None = None
        self._begun_at = math.inf
        """When the host was chosen that is asked now."""
        self._lookup: Lookup | None = None
        self._standby: Standby | None = None
        self._first_found_at: float | None = None
        self._waits = False
        """Whether a host is waited for."""
        self._looked_at_pace = client.now

    @property
    def is_over(self) -> bool:
        """Whether it has its outcome."""
        return bool(self.outcome)

    def begin(self) -> None:
        """Ask."""
        client = self.client
        for peer in client.peers_with_session(self.model):
            entry = client.adverts.book.get(peer, client.wall())
            if entry is not None:
                self.choice.try_first(entry.advert)
        client.after(client.patience_s, self._lose_patience)
        self._next_turn()

    def _lose_patience(self) -> None:
        if self.first_at is None and not self.is_over:
            self.cancel()

    def cancel(self) -> None:
        """Its reader goes away."""
        if self.is_over:
            return
        self.failover.cancelled = True
        if self._turn is not None and self._session is not None:
            self._session.command(CancelTurn(self._turn.key))
            self.client.after(self.client.market.limits.close_deadline_s, self._abandon)
        elif self._session is None:
            self._finish("cancelled")

    def _abandon(self) -> None:
        session, turn = self._session, self._turn
        if self.is_over or session is None or turn is None:
            return
        self.failover.abandon(self._state(session, turn))
        session.turns.pop(turn.key, None)
        self._finish("cancelled")
        session.close()

    # ---- an attempt

    def _next_turn(self) -> None:
        client, failover, choice = self.client, self.failover, self.choice
        if self.is_over:
            return
        ask = self._ask()
        spent = sum(item.cost for item in failover.bill.items)
        tokens_out = ask.body.sampling.tokens_max
        choice.turn = TurnBound(tokens_in=ask.input_max, tokens_out=tokens_out, spent=spent)
        candidate = self._candidate
        if candidate is not None and not choice.may_ask_again(candidate.advert.peer, client.wall()):
            failover.leave_host()
        if not failover.wants_next_host and candidate is not None:
            self._take(candidate)
            return
        first = choice.take_first(client.wall())
        if first is not None:
            self._take(first)
            return
        self._waits = True
        self._start_lookup()
        self._look()

    def _start_lookup(self) -> None:
        """Begin a lookup, once."""
        if self._lookup is None:
            self._look_for_hosts()

    def _look_for_hosts(self) -> None:
        """Begin another one, unless one is under way."""
        if self._lookup is None or self._lookup.is_over:
            self._lookup = Lookup(self.client, self.model, self._host_found, self._lookup_over)
            self._lookup.begin()

    def _ask(self) -> Ask:
        body = self.partial.next_prompt()
        # As the node bounds a prompt for a model of no manifest: a text has no more tokens than bytes.
        most = sum(len(message.text) for message in body.messages) + len(body.prefix)
        most += TEMPLATE_TOKENS_MAX + TEMPLATE_TOKENS_PER_MESSAGE_MAX * len(body.messages)
        if not self.client.has_tokenizer:
            return Ask(body, most)
        ids = prompt_ids(body)
        return Ask(body, most, prompt_hash=ids_hash(ids), prompt_tokens=len(ids))

    def _host_found(self, advert: Advert) -> None:
        self.choice.found(advert)
        if self._first_found_at is None:
            self._first_found_at = self.client.now
            self.client.after(self.client.market.limits.found_grace_s, self._look)
        self._look()
        if self._standby is not None:
            self._standby.changed()

    def _lookup_over(self) -> None:
        self._look()
        if self._standby is not None:
            self._standby.changed()

    def _flows(self) -> None:
        """Output came: from now on the next host is kept ready."""
        if self._standby is None and not self.failover.cancelled:
            limits = self.client.market.limits
            self._standby = Standby(self.client, self.choice, limits, self._look_for_hosts)
            self._start_lookup()
            self._standby.begin()
            self.client.redeliver()

    def _look(self) -> None:
        """Take the best host once it is there; others may follow within a moment."""
        lookup = self._lookup
        if not self._waits or lookup is None or self.is_over:
            return
        client, found_at = self.client, self._first_found_at
        grace_s = client.market.limits.found_grace_s
        if found_at is not None and not lookup.is_over and client.now < found_at + grace_s - 1e-9:
            return
        best = self.choice.take_best(client.wall(), resting=lookup.is_over)
        if best is not None:
            self._waits = False
            self._take(best)
        elif lookup.is_over:
            self._waits = False
            error = self.failover.no_host(self.choice.ranking(client.wall()), lookup.failures)
            self._stop(error)

    def _take(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self.failover.begin()
        self._begun_at = self.client.now
        self.client.open_session(candidate, self._ask(), self._session_ready)

    def _session_ready(self, outcome: Session | P2PNodeError) -> None:
        if self.is_over:
            if isinstance(outcome, Session):
                outcome.reserved = max(0, outcome.reserved - 1)
                self.client.pool_changed()
            return
        if not isinstance(outcome, Session):
            self._failed(outcome, None, None)
            return
        session = self._session = outcome
        ask = self._ask()
        assert session.accept is not None  # noqa: S101 - it is open
        self.failover.opened(
            Attempt(
                peer=session.host.peer,
                session=session.accept.session,
                paid=session.paid,
                reused=session.reused,
                prefix=len(ask.body.prefix),
                started_at=self.client.now,
            )
        )
        turn = self._turn = session.ask(ask, self)
        self.hosts.append(session.host.peer)
        if len(self.hosts) > 1:
            self.client.market.note_failover(self)
        if turn is None:
            self._failed(session_error(session.failure), session, None)
        elif self.failover.cancelled:
            session.command(CancelTurn(turn.key))

    # ---- what comes of it

    def quoted(self, turn: SessionTurn, quoted: Quoted) -> None:
        """The host counted the input."""
        attempt, client = self.failover.attempt, self.client
        if attempt is None or turn is not self._turn:
            return
        attempt.quoted(quoted)
        tokens = quoted.quote.tokens_in - attempt.prefix
        share = client.prefixes.quoted(
            attempt.session, self.partial.body, tokens=tokens, reused=min(quoted.quote.reused, tokens)
        )
        if share is not None:
            client.measure(attempt.peer, partial(Measured.reused, share=share))

    def delivered(self, turn: SessionTurn, tokens: Tokens) -> None:
        """Output came."""
        attempt, now = self.failover.attempt, self.client.now
        if attempt is None or turn is not self._turn:
            return
        if tokens.ids:
            attempt.delivered(len(tokens.ids), now)
            if self.first_at is None:
                self.first_at = now
            if self._failed_at is not None and self.last_at is not None:
                gap_s = now - self.last_at
                self.gap_s = gap_s if math.isnan(self.gap_s) else max(self.gap_s, gap_s)
            self._failed_at, self.last_at = None, now
            if self._standby is None:
                self.client.later(self._flows)
        self.client.market.note_answer(self, tokens.ids)
        self.partial.take(tokens.ids, Said(tokens.channel, tokens.text, tokens.call, tokens.name))
        if now - self._looked_at_pace >= _PACE_CHECK_S:
            self._looked_at_pace = now
            self.client.later(self._look_at_pace)

    def _look_at_pace(self) -> None:
        """Leave a host that is slow where another one is known to be faster."""
        attempt, client, session, turn = self.failover.attempt, self.client, self._session, self._turn
        if attempt is None or session is None or turn is None or self.is_over:
            return
        limits, now = client.market.limits, client.now
        pace = attempt.pace(now, limits.pace_window_s)
        if pace is None:
            return
        measured = client.measured
        usual = [known.tokens_per_s for known in measured.values() if known.tokens_per_s is not None]
        if pace >= least_pace(usual, floor=limits.pace_floor, ceiling=limits.pace_ceiling):
            return
        other = self.choice.best(client.wall(), resting=False)
        known = measured.get(other.advert.peer) if other is not None else None
        if self.failover.leaves_for(pace, other, known.tokens_per_s if known is not None else None):
            self._leaves_slow = True
            session.command(CancelTurn(turn.key))

    _leaves_slow = False

    def turn_done(self, session: Session, turn: SessionTurn, over: TurnDone) -> None:
        """The host ended the turn."""
        attempt = self.failover.attempt
        if turn is not self._turn or attempt is None or self.is_over:
            return
        early = "slow" if self._leaves_slow else ""
        try:
            decision = self.failover.turn_ended(over, self._state(session, turn), early=early)
        except UnreachableError as error:
            self._failed(error, session, turn)
            return
        now = self.client.now
        if decision.move == "finish" and over.done.reason != "cancelled":
            ttft_s, speed = attempt.ttft_s(now), attempt.speed(now)
            self.client.measure(attempt.peer, partial(Measured.answered, ttft_s=ttft_s, tokens_per_s=speed))
        if self._leaves_slow:
            self._leaves_slow = False
            self.failover.leave_host()
        self._act(session, decision)

    def turn_failed(self, session: Session, turn: SessionTurn, failed: TurnFailed) -> None:
        """The turn failed, and the session lives."""
        attempt = self.failover.attempt
        if turn is self._turn and attempt is not None and not self.is_over:
            attempt.failed(failed)
            self._failed(turn_error(failed), session, turn)

    def session_failed(self, session: Session, turn: SessionTurn, error: P2PNodeError) -> None:
        """The session is over under the turn."""
        if turn is self._turn and not self.is_over:
            self._failed(error, session, turn)

    def _failed(self, error: P2PNodeError, session: Session | None, turn: SessionTurn | None) -> None:
        client, candidate = self.client, self._candidate
        self._failed_at = client.now
        state = self._state(session, turn) if session is not None else None
        decision = self.failover.failed(error, state)
        if candidate is not None and isinstance(error, RemoteError) and not self.failover.cancelled:
            peer, fault = candidate.advert.peer, isinstance(error, HostFault)
            if fault:
                self.found_fraud = True
            if decision.blames:
                took = decision.took_for_nothing
                begun = decision.ended is not None
                now = client.wall()
                failed = partial(
                    Measured.failed,
                    now=now,
                    began=now - (client.now - self._begun_at),
                    turn=begun,
                    fault=fault,
                    took_for_nothing=took,
                )
                client.measure(peer, failed)
            if isinstance(error, RefusedError) and error.code == "context_overflow":
                self.choice.need_context(candidate.offer.n_ctx + 1)
            client.market.note_host_failed(self, peer, error)
        self._act(session, decision)

    def _act(self, session: Session | None, decision: Decision) -> None:
        ended = decision.ended
        if ended is not None:
            self._session = self._turn = None
            if ended.context_needed is not None:
                self.choice.need_context(ended.context_needed)
            if session is not None and not ended.attempt.turn_over and not session.is_busy:
                session.close()
            self.client.pool_changed()
            self.client.redeliver()
        if decision.move == "finish":
            self._finish("cancelled" if self.failover.cancelled else "done")
        elif decision.error is not None:
            self._stop(decision.error)
        else:
            self.client.later(self._next_turn)

    def _state(self, session: Session, turn: SessionTurn | None) -> SessionState:
        failure = session.failure
        return SessionState(
            cost=session.shares.take(turn, session.cost),
            n_ctx=session.accept.n_ctx if session.accept is not None else 0,
            lost=failure is not None and failure.cause == "lost",
            covers_more=session.can_pay_more(turn),
        )

    # ---- the end

    def _stop(self, error: P2PNodeError) -> None:
        self.error = error
        if self.partial.ids:
            self._finish("cut")
        elif isinstance(error, RefusedError):
            self._finish("refused")
        elif self.hosts:
            self._finish("failed")
        else:
            self._finish("no_host")

    def _finish(self, outcome: str) -> None:
        self.outcome = outcome
        self._waits = False
        if self._standby is not None:
            self._standby.stop()
        if self._lookup is not None:
            self._lookup.stop()
        self.client.market.note_question(self)
        self._then(self)

    @property
    def cost(self) -> int:
        """Token units that it cost, over all hosts."""
        return sum(item.cost for item in self.failover.bill.items)


class Lookup:
    """One search for hosts: its machine, its sources and its dials."""

    def __init__(
        self, client: Asker, model: ModelId, on_found: Callable[[Advert], None], on_over: Callable[[], None]
    ) -> None:
        self._client, self._model, self._on_found, self._on_over = client, model, on_found, on_over
        limits = client.market.limits
        self.is_over = False
        self.failures: dict[PeerId, str] = {}
        self._began = client.now
        self._asked = self._found = 0
        self._waiting = 0
        self._search = Search(
            model,
            frozenset({"book", "bootstrap", "exchange"}),
            self_peer=client.node.peer,
            dials_max=limits.dials_per_lookup,
            dials_at_once=limits.dials_at_once,
            deadline_s=limits.lookup_deadline_s,
        )
        self._shell = client.world.shell(client.node, LOOKUP, self._search, on_emit=self._emitted)

    def begin(self) -> None:
        """Ask the book, the first peers, and those that they know of."""
        client, shell = self._client, self._shell
        client.searches()
        shell.perform(self._search.start(client.now))
        limits = client.market.limits
        for entry in client.adverts.book.sample(limits.dials_per_lookup, client.wall(), self._model):
            addresses = tuple(each.multiaddr for each in entry.advert.addresses)
            shell.command(Hint(peer=entry.advert.peer, addresses=addresses, source="book"))
        shell.command(SourceDone("book"))
        seeds = client.first_peers()
        self._waiting = len(seeds)
        for other in seeds:
            address = f"/ip4/{other.ip}/tcp/4001"
            shell.command(Hint(peer=other.peer, addresses=(address,), source="bootstrap", local=True))
            client.adverts.sample(
                other,
                self._model,
                limits.exchange_deadline_s,
                partial(self._sampled, other),
            )
        shell.command(SourceDone("bootstrap"))
        if not seeds:
            shell.command(SourceDone("exchange"))

    def _sampled(self, by: Node, adverts: Sequence[Advert] | None) -> None:
        teller = frozenset({by.origin.wide})
        for advert in adverts or ():
            if advert.offer(self._model) is not None:
                addresses = tuple([each.multiaddr for each in advert.addresses])
                self._shell.command(
                    Hint(peer=advert.peer, addresses=addresses, source="exchange", tellers=teller)
                )
        self._waiting -= 1
        if not self._waiting:
            self._shell.command(SourceDone("exchange"))

    def _emitted(self, value: Any) -> None:
        client = self._client
        match value:
            case Contact(peer=peer):
                self._asked += 1
                began = client.now
                limits = client.market.limits

                def answered(advert: Advert | None) -> None:
                    if advert is not None:
                        client.met(peer)
                        took_s = client.now - began
                        client.measure(peer, partial(Measured.connected, seconds=took_s))
                    why = "" if advert is not None else f"no answer within {limits.dial_deadline_s:g} s"
                    self._shell.command(Contacted(peer, advert, why))

                other = client.world.by_peer.get(peer)
                client.adverts.fetch(other, peer, limits.dial_deadline_s, answered)
            case Found(advert=advert):
                self._found += 1
                client.verified(advert.peer)
                client.later(self._on_found, advert)
            case Exhausted(failures=failures):
                self.failures = failures
                client.later(self._exhausted)
            case _:
                return

    def _exhausted(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        client = self._client
        client.market.note_lookup(
            client, client.now - self._began, self._asked, self._found, len(self.failures)
        )
        self._on_over()

    def stop(self) -> None:
        """Nobody waits for it any more; what is found all the same is of use to the next one."""
        self._on_found = lambda _advert: None
        self._on_over = lambda: None
