"""Turns of one answer beside the one that is read: of a second host, and of a host that was too late.

When a second host is asked is decided in ``hedging.py``; an ``Answer`` reads from the one whose token comes
first. Nothing here holds the answer: one that its reader dropped must be found.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from p2pnode.client.failover import Attempt, Failover, turn_error
from p2pnode.client.hedging import HedgeMode, Hedging, may_be_second
from p2pnode.client.hosts import HostSearch
from p2pnode.client.pool import SessionPool
from p2pnode.client.prompt_check import PromptRenderers
from p2pnode.client.ranking import Candidate, TurnBound, cost_bound, is_priced
from p2pnode.client.runtime import Runtime
from p2pnode.client.session import Session, SessionTurn
from p2pnode.errors import P2PNodeError
from p2pnode.protocols.inference.commands import (
    Ask,
    ClientEmission,
    Delivered,
    Embedded,
    Quoted,
    Receipted,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import PromptBody

BYTES_PER_TOKEN: Final = 4
"""About so many bytes make a token, as in English with most tokenizers."""


@dataclass(slots=True, kw_only=True)
class AskedTurn:
    """A turn that a host was asked for, and what came of it that nobody has read yet."""

    candidate: Candidate
    ask: Ask
    session: Session
    turn: SessionTurn
    attempt: Attempt
    unread: deque[ClientEmission] = field(default_factory=deque)
    error: P2PNodeError | None = None
    """Why it failed; None where it did not, or was stopped before."""
    over: trio.Event = field(default_factory=trio.Event)
    """Set when nothing more comes of it, and it can be billed."""

    async def receive(self) -> ClientEmission:
        """The next event. Raises as ``SessionTurn.receive``."""
        return self.unread.popleft() if self.unread else await self.turn.receive()

    async def wind_up(self, patience_s: float) -> None:
        """Stop it, and count what it took: its host may have sent tokens, which are paid for and not used."""
        try:
            while self.unread:
                self._count(self.unread.popleft())
            if not self.attempt.turn_over:
                self.turn.cancel()
                with trio.move_on_after(patience_s, shield=True), suppress(P2PNodeError):
                    while not self.attempt.turn_over:
                        self._count(await self.turn.receive())
        finally:
            self.over.set()

    def _count(self, event: ClientEmission) -> None:
        attempt = self.attempt
        match event:
            case Quoted():
                attempt.quoted(event)
            case Delivered(ids=ids):
                attempt.delivered(len(ids), trio.current_time())
            case Receipted():
                attempt.receipted()
            case TurnDone():
                attempt.done(event)
            case TurnFailed():
                attempt.failed(event)
                if not self.turn.is_cancelled:
                    self.error = self.turn.refusal or turn_error(event)
            case _:
                pass


class SecondHost:
    """Asks another host for the same answer: ``run`` it, then :meth:`take` its turn, or :meth:`give_up`.

    ``choose`` gives the host, ``prepare`` the question as it is put to it.
    """

    def __init__(
        self,
        pool: SessionPool,
        *,
        choose: Callable[[], Awaitable[Candidate | None]],
        prepare: Callable[[Candidate], Awaitable[Ask]],
        patience_s: float,
    ) -> None:
        self._pool, self._choose, self._prepare = pool, choose, prepare
        self._patience_s = patience_s
        self._scope, self._reader = trio.CancelScope(), trio.CancelScope()
        self._opened, self._decided = trio.Event(), trio.Event()
        self._given_up = False
        self.candidate: Candidate | None = None
        """The host, once one was chosen."""
        self.asked: AskedTurn | None = None
        """Its turn, once it was asked."""
        self.error: P2PNodeError | None = None
        """Why it could not be asked, or failed before its first token."""
        self.is_first = False
        """Whether its first token is here."""
        self.over = trio.Event()
        """Set when nothing more comes of it, and what it took can be billed."""

    async def run(self) -> None:
        """Until its turn is taken, or was given up and is over."""
        try:
            with self._scope:
                await self._ask()
            self._opened.set()
            if self.is_first:
                self._reader.cancel()
                await self._decided.wait()
            if self.asked is not None and (self._given_up or not self.is_first):
                await self.asked.wind_up(self._patience_s)
        except P2PNodeError as error:
            self.error = error
        finally:
            self._opened.set()
            self.over.set()

    async def _ask(self) -> None:
        self.candidate = candidate = await self._choose()
        if candidate is None:
            return
        ask = await self._prepare(candidate)
        # What is being paid for is opened to its end: a deposit that nobody waits for is locked, and its fee
        # may be gone. Another turn can use the session.
        with trio.CancelScope(shield=is_priced(candidate.offer)):
            session = await self._pool.open(candidate, ask)
        # What a key's budget holds for a turn is held for one that exists.
        with trio.CancelScope(shield=True):
            if self._given_up:
                session.give_back_place()
                return
            attempt = Attempt(
                peer=session.host,
                session=session.accepted.session,
                paid=session.paid,
                reused=session.reused,
                prefix=0,
                started_at=trio.current_time(),
            )
            turn = await session.ask(ask)
        asked = AskedTurn(candidate=candidate, ask=ask, session=session, turn=turn, attempt=attempt)
        self.asked = asked
        self._opened.set()
        while not self.is_first:
            event = await turn.receive()
            asked.unread.append(event)
            if isinstance(event, TurnDone | TurnFailed):
                self._given_up = True  # there is nothing to take
                return
            self.is_first = isinstance(event, Delivered | Embedded)

    def unless_first(self) -> trio.CancelScope:
        """A scope that is cancelled when this host's first token comes."""
        self._reader = trio.CancelScope()
        if self.is_first:
            self._reader.cancel()
        return self._reader

    async def take(self) -> AskedTurn | None:
        """Its turn, to be read from now on: waits until it is asked. None where it can't be."""
        await self._opened.wait()
        if self.asked is None or self.over.is_set() or self._given_up:
            return None
        self.is_first = True  # whoever takes it reads its end, too
        self._decided.set()
        self._scope.cancel()
        with trio.CancelScope(shield=True):  # a step of the other task
            await self.over.wait()
        return self.asked

    def give_up(self) -> None:
        """It is not needed any more."""
        self._given_up = True
        self._decided.set()
        self._scope.cancel()


class Hedge:
    """The turns of one answer beside the one that is read. At most one second host is asked.

    ``make_ask`` gives a question as it is put to any host, ``renderers`` count it for one that is paid.
    """

    def __init__(
        self,
        runtime: Runtime,
        pool: SessionPool,
        hedging: Hedging,
        *,
        mode: HedgeMode,
        make_ask: Callable[[PromptBody], Ask],
        renderers: PromptRenderers,
    ) -> None:
        self._runtime, self._pool, self._hedging = runtime, pool, hedging
        self.mode, self._make_ask, self._renderers = mode, make_ask, renderers
        self._second: SecondHost | None = None
        self._given_up: list[AskedTurn] = []
        self._seconds_over: list[SecondHost] = []
        self._asked = False
        self.outcome = ""
        """What the second host was good for; see ``AnswerRecord``."""

    @property
    def runs(self) -> bool:
        """Whether a second host is asked now."""
        return self._second is not None

    def late_at(self, attempt: Attempt, ask: Ask) -> float:
        """When an attempt's first token is late, by trio's clock; infinite where nobody else is asked."""
        if self.mode == "never" or self._asked:
            return math.inf
        late_s = self._hedging.first_tokens.late_after_s(attempt.peer, _input(attempt, ask))
        return math.inf if late_s is None else attempt.started_at + late_s

    def came(self, attempt: Attempt, ask: Ask) -> None:
        """An attempt's first token came now, or has not come up to now."""
        waited_s = trio.current_time() - attempt.started_at
        self._hedging.first_tokens.note(attempt.peer, _input(attempt, ask), waited_s)

    def ask(self, search: HostSearch, first: Candidate, ask: Ask, failover: Failover) -> None:
        """Ask another host for the same as the first one, if there is one that may be asked."""
        self._asked = True
        hedging, mode, make_ask, renderers = self._hedging, self.mode, self._make_ask, self._renderers
        if not hedging.take():
            return
        body, tell, spent = ask.body, self._runtime.tell, sum(item.cost for item in failover.bill.items)
        turn = TurnBound(tokens_in=ask.input_max, tokens_out=body.tokens_out_max, spent=spent)
        # What the first one may still bill counts, too: the user's bound is for both.
        most = cost_bound(first.offer, turn, fee_paid=True).total
        search.ask_for(replace(turn, spent=spent + most))

        async def choose() -> Candidate | None:
            found = await search.second(lambda other: may_be_second(first, other, mode))
            if found is None:
                hedging.give_back()
            else:
                failover.second_asked()
                tell("hedge", {"from": first.advert.peer, "to": found.advert.peer})
            return found

        async def prepare(candidate: Candidate) -> Ask:
            made = make_ask(body)
            if is_priced(candidate.offer):
                made = await renderers.with_own_count(candidate.offer.model, made, candidate.advert.peer)
            return made

        patience_s = self._runtime.limits.close_deadline_s
        self._second = SecondHost(self._pool, choose=choose, prepare=prepare, patience_s=patience_s)
        self._start(self._second.run)

    def _start(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        self._runtime.tasks.start_soon(self._runtime.node.network.guard.run, function, *args)

    def unless_first(self) -> trio.CancelScope:
        """A scope that is cancelled when the second host's first token comes."""
        return self._second.unless_first() if self._second is not None else trio.CancelScope()

    async def take(self) -> AskedTurn | None:
        """The second host's turn, which is read from now on. None where there is none: its error is kept."""
        asked = await self._second.take() if self._second is not None else None
        if asked is None:
            self.give_up()
        else:
            self._second, self.outcome = None, "won"
        return asked

    def give_up(self) -> None:
        """Only the turn that is read is needed from now on."""
        if self._second is not None:
            self._second.give_up()
            self._seconds_over.append(self._second)
            self._second = None

    def give_up_first(self, asked: AskedTurn) -> None:
        """The turn that was read up to now is not needed any more."""
        self._given_up.append(asked)
        self._start(asked.wind_up, self._runtime.limits.close_deadline_s)

    async def ended(self) -> tuple[list[AskedTurn], list[tuple[Candidate, P2PNodeError, AskedTurn | None]]]:
        """Turns that were given up and are over, each once, and second hosts that failed: why, and in which
        turn.

        All are stopped already. A cancelled reader waits for them, too: nothing that was read of its answer
        must be lost here.
        """
        ends = [*(each.over for each in self._seconds_over), *(each.over for each in self._given_up)]
        with trio.move_on_after(self._runtime.limits.close_deadline_s, shield=True):
            for each in ends:
                await each.wait()
        turns, failed = self._given_up, list[tuple[Candidate, P2PNodeError, AskedTurn | None]]()
        for second in self._seconds_over:
            asked = second.asked
            error = second.error or (asked.error if asked is not None else None)
            if second.candidate is not None:
                self.outcome = "lost" if error is None else "failed"
                failed += [] if error is None else [(second.candidate, error, asked)]
            turns += [] if asked is None else [asked]
        self._given_up, self._seconds_over = [], []
        return turns, failed


def _input(attempt: Attempt, ask: Ask) -> int:
    """How many tokens a host reads before its first one; about how many, until it has counted."""
    if attempt.messages_tokens is None:
        return ask.input_max // BYTES_PER_TOKEN
    return attempt.tokens_in - attempt.tokens_cached
