"""One answer: an async iterator of text that finds its host, and another one whenever that fails.

Several hosts may give it, one after another; the reader sees one text, each token once. ``Failover`` decides
what follows when a host's attempt is over; ``Answer`` acts on that, and the pool opens the sessions. Wires
and wallets are unknown here.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Protocol, TypeAlias

import structlog
import trio
import trio.lowlevel

from p2pnode.client import interface
from p2pnode.client.bill import AnswerRecord, BillItem, Usage
from p2pnode.client.failover import (
    HEDGED,
    Attempt,
    AttemptEnd,
    Decision,
    Failover,
    PartialAnswer,
    SessionState,
    cut_short,
    least_pace,
    reason_of,
    turn_error,
)
from p2pnode.client.hedging import HedgeMode
from p2pnode.client.hosts import HostSearch, Searches
from p2pnode.client.pool import SessionPool
from p2pnode.client.prompt_check import PromptRenderers
from p2pnode.client.ranking import Candidate, TurnBound, is_priced
from p2pnode.client.runtime import Runtime
from p2pnode.client.second_host import AskedTurn, Hedge
from p2pnode.client.session import Session, SessionTurn
from p2pnode.client.text_check import TextCheck
from p2pnode.errors import HostFault, NoHostError, P2PNodeError, RefusedError, RemoteError
from p2pnode.ids import PeerId, SessionId
from p2pnode.models.answer import Said
from p2pnode.models.catalogue import shown_name
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.adverts.messages import Offer
from p2pnode.protocols.inference.commands import (
    Ask,
    ClientEmission,
    Delivered,
    Embedded,
    Progressed,
    Quoted,
    Receipted,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import FinishReason, PromptBody, TokenLogprob, Tokens

log = structlog.get_logger()
Shorten: TypeAlias = Callable[[PromptBody], PromptBody | None]
"""Gives a prompt without its oldest messages; None where none may be left out."""


class Answers:
    """The answers of one client that are under way. One whose reader is gone must free its host."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._under_way: weakref.WeakSet[Answer] = weakref.WeakSet()
        self._dropped: deque[Answer] = deque()
        """By their readers, in whatever thread collects garbage."""
        self._token: trio.lowlevel.TrioToken | None = None

    def begin(self, answer: Answer) -> None:
        """An answer is read, perhaps not for the first time."""
        self._under_way.add(answer)
        if self._token is None:
            self._token = trio.lowlevel.current_trio_token()
            self._runtime.tasks.start_soon(self._end_unread)

    def dropped(self, answer: Answer) -> None:
        """Nobody can read it any more. May be called from any thread, and after the end of the client."""
        self._dropped.append(answer)
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end_dropped, idempotent=True)

    def _end_dropped(self) -> None:
        if self._runtime.running:
            while self._dropped:
                self._runtime.tasks.start_soon(self._dropped.popleft().aclose)

    async def _end_unread(self) -> None:
        wait_s = self._runtime.limits.stall_s
        while True:
            await trio.sleep(wait_s)
            wait_s = self._set_aside_unread(trio.current_time())

    def _set_aside_unread(self, now: float) -> float:
        """End the turns of answers that nobody has read for a while; returns seconds until the next look.

        Not in the loop that sleeps: its variables would keep an answer that was dropped alive.
        """
        wait_s = patience_s = self._runtime.limits.stall_s
        for answer in self._under_way:
            unread_s = answer.unread_for(now)
            if unread_s >= patience_s:
                self._runtime.tasks.start_soon(answer.set_aside)
            else:
                wait_s = min(wait_s, patience_s - unread_s)
        return wait_s

    async def finish(self) -> None:
        """End every answer that nobody waits for; those that are read now end with their sessions."""
        idle = {*self._dropped, *(each for each in self._under_way if not each.being_read)}
        self._dropped.clear()
        async with trio.open_nursery() as nursery:
            for answer in idle:
                nursery.start_soon(answer.aclose)


class Watcher(Protocol):
    """Is told of an answer's course; its methods must neither wait nor raise.

    It is given the answer and must not hold it: a cycle would keep an answer that its reader dropped.
    """

    def took(self, answer: Answer) -> None:
        """Tokens came."""

    def receipted(self, answer: Answer) -> None:
        """The host's receipt over everything so far was checked."""

    def billed(self, answer: Answer, item: BillItem) -> None:
        """A host's attempt is over, and stands on the bill."""

    def ended(self, answer: Answer, finish: FinishReason | None) -> None:
        """The answer is whole, was stopped, or (None) was cut short."""


class Answer(interface.Answer):
    """An answer of hosts that this client finds and pays itself.

    One that is kept and not read for ``stall_s`` gives its host's place back, and goes on when it is read
    again.
    """

    def __init__(
        self,
        runtime: Runtime,
        pool: SessionPool,
        searches: Searches,
        partial: PartialAnswer,
        *,
        search: Callable[[], Awaitable[HostSearch]],
        make_ask: Callable[[PromptBody], Ask],
        renderers: PromptRenderers,
        answers: Answers,
        watcher: Watcher | None = None,
        trusted: bool = False,
        hedge: HedgeMode = "free",
        shorten: Shorten | None = None,
        vocabulary: Callable[[], Awaitable[Vocabulary | None]] | None = None,
        ids_end: Callable[[], Awaitable[int | None]],
    ) -> None:
        """``vocabulary`` fetches the model's, where it is here: text and calls are checked against the ids.
        ``ids_end`` gives the first id that is none of the model's, where that is known here.
        ``trusted``: a host that the user trusts knows the question already. ``shorten`` leaves the oldest
        messages out of a prompt that fits no host; without it such a question is refused."""
        self._runtime, self._pool, self._searches = runtime, pool, searches
        self._open_search, self._make_ask, self._renderers = search, make_ask, renderers
        self._watcher, self._answers = watcher, answers
        self._failover = Failover(partial, attempts_max=runtime.limits.hosts_per_answer)
        self._partial = partial
        self._fetch_vocabulary, self._fetch_ids_end = vocabulary, ids_end
        self._vocabulary: Vocabulary | None = None
        self._ids_end: int | None = None
        self._asked: Ask | None = None
        """What the attempt that runs asks for."""
        self._check: TextCheck | None = None
        self._search: HostSearch | None = None
        self._candidate: Candidate | None = None
        self._session: Session | None = None
        """That of the attempt that runs, and its turn there."""
        self._turn: SessionTurn | None = None
        self._left: tuple[PeerId, str] | None = None
        """The host of the attempt before, and why that ended."""
        self._standby: trio.CancelScope | None = None
        self._reader = trio.Lock()
        self._read_at = math.inf
        """When the last piece was given out; infinite while one is waited for."""
        self._early = ""
        """Why this side ends the turn that runs: nobody reads, or its host is slow."""
        self._unread: deque[Said] = deque()
        """What came while the turn was ended by this side."""
        self._unread_error: P2PNodeError | None = None
        self._slow_reported = False
        self._shorten = shorten
        self._hedge = Hedge(
            runtime, pool, searches.hedging, mode=hedge, make_ask=make_ask, renderers=renderers
        )
        self._first_events: deque[ClientEmission] = deque()
        """What came of the turn that runs before it was read."""
        self.trusted = trusted
        self.left_out = 0
        self._asked_at: float | None = None
        self._begun_at = math.inf
        """When the host was chosen that is asked now."""
        self._first_at: float | None = None
        self._done = False
        self.host: PeerId | None = None
        self.usage: Usage | None = None
        self.checkpoints = 0
        self.logprobs: list[TokenLogprob] = []

    @property
    def text_checked(self) -> bool:
        return self._vocabulary is not None

    @property
    def vectors(self) -> list[bytes]:
        """Of texts that are embedded: those up to the first one that is missing. Receipts cover them."""
        vectors = self._partial.vectors
        return [vectors[place] for place in itertools.takewhile(vectors.__contains__, itertools.count())]

    @property
    def said_aside(self) -> int:
        """UTF-8 bytes of what it said beside its text: thoughts, and names and arguments of calls."""
        return self._partial.said_aside

    @property
    def being_read(self) -> bool:
        """Whether somebody waits for its next piece."""
        return self._reader.locked()

    @property
    def session(self) -> SessionId | None:
        attempt = self._failover.attempt
        return attempt.session if attempt is not None else None

    @property
    def wallet(self) -> bytes | None:
        return self._candidate.advert.binding.wallet if self._candidate is not None else None

    @property
    def offer(self) -> Offer | None:
        return self._candidate.offer if self._candidate is not None else None

    @property
    def standby(self) -> PeerId | None:
        return self._search.standby if self._search is not None else None

    @property
    def bill(self) -> tuple[BillItem, ...]:
        return self._failover.bill.items

    def rest(self) -> Answer:
        partial = PartialAnswer.of(self._partial.body, self.held)
        return Answer(
            self._runtime,
            self._pool,
            self._searches,
            partial,
            search=self._open_search,
            make_ask=self._make_ask,
            renderers=self._renderers,
            answers=self._answers,
            vocabulary=self._fetch_vocabulary,
            ids_end=self._fetch_ids_end,
            trusted=self.trusted,
            hedge=self._hedge.mode,
            shorten=self._shorten,
        )

    # ---- reading

    async def next_said(self) -> Said:
        self._answers.begin(self)
        try:
            self._reader.acquire_nowait()  # to wait for it would let all other tasks run first
        except trio.WouldBlock:
            await self._reader.acquire()
        try:
            self._read_at = math.inf
            return await self._read()
        finally:
            self._read_at = trio.current_time()
            try:
                if self._done:
                    await self._bill_given_up()
            finally:
                self._reader.release()

    async def _read(self) -> Said:
        while True:
            if self._unread:
                return self._unread.popleft()
            if self._unread_error is not None:
                error, self._unread_error = self._unread_error, None
                raise error
            if not self._done and self._turn is None and self._partial.size and not self._partial.room:
                self._finish("length", "")  # it went on from a whole answer
            if self._done:
                raise StopAsyncIteration
            turn = self._turn
            if turn is not None and self._leaves_slow_host(turn):
                await self._end_early(turn, "slow")
                self._failover.leave_host()
                continue
            try:
                piece = await self._next_piece(turn or await self._next_turn())
            except P2PNodeError as error:
                self._failed(error)
                continue
            if piece is not None:
                return piece

    async def aclose(self) -> None:
        self._failover.cancelled = True
        self._hedge.give_up()
        if self._turn is not None and not self._done:
            self._turn.cancel()
        # Shielded: a cancelled caller must free the host's slot too.
        with trio.move_on_after(self._runtime.limits.close_deadline_s, shield=True):
            async with self._reader:
                while self._turn is not None and not self._done:
                    await self._drain(self._turn)
                await self._bill_given_up()
        turn = self._turn
        if turn is not None and not self._done:
            self._ended(turn.session, self._failover.abandon(self._state(turn.session, turn)))
        self._end("cancelled")

    async def _drain(self, turn: SessionTurn) -> Said | None:
        """The next piece of a turn that this side has cancelled."""
        try:
            return await self._next_piece(turn)
        except P2PNodeError as error:
            self._failed(error)
            return None

    # ---- a reader that is gone

    def __del__(self) -> None:
        """``break``, an error and Ctrl-C leave ``async for`` without telling the iterator."""
        # The attribute is missing where the constructor raised.
        if getattr(self, "_turn", None) is not None and not self._done:
            self._answers.dropped(self)

    def unread_for(self, now: float) -> float:
        """Seconds since the last piece was given out; 0 while one is waited for, and after the end."""
        return 0.0 if self._done or self._turn is None else max(0.0, now - self._read_at)

    async def set_aside(self) -> None:
        """End the turn, so that its host's slot is free. Who reads on asks for the rest."""
        async with self._reader:
            turn = self._turn
            if turn is None or self._done:
                return
            self._failover.spare_attempt()  # its host did nothing wrong
            # A host that does not answer may be lost: whoever reads on is told of it.
            await self._end_early(turn, "cancelled")
            self._left = None  # to ask again is no failover

    async def _end_early(self, turn: SessionTurn, why: str) -> None:
        """Have the turn ended in order; what still comes of it is kept for the reader."""
        self._hedge.give_up()
        turn.cancel()
        self._early = why
        with trio.move_on_after(self._runtime.limits.close_deadline_s):
            try:
                while self._turn is turn and not self._done:
                    if (said := await self._drain(turn)) is not None:
                        self._unread.append(said)
            except P2PNodeError as error:
                self._unread_error = error
        self._early = ""

    # ---- a host that is slow

    def _leaves_slow_host(self, turn: SessionTurn) -> bool:
        """Whether the host is slow, and another one is to go on."""
        runtime, attempt, search = self._runtime, self._failover.attempt, self._search
        limits, now = runtime.limits, trio.current_time()
        if attempt is None or search is None or turn.has_unread:
            return False  # with unread tokens it is the reader who is slow
        pace = attempt.pace(now, limits.pace_window_s)
        if pace is None or runtime.node.sleep.slept_since(now - limits.pace_window_s):
            return False
        measured = self._searches.measured
        usual = [known.tokens_per_s for known in measured.values() if known.tokens_per_s is not None]
        if pace >= least_pace(usual, floor=limits.pace_floor, ceiling=limits.pace_ceiling):
            return False
        other = search.best(resting=False)
        known = measured.get(other.advert.peer) if other is not None else None
        leaves = self._failover.leaves_for(pace, other, known.tokens_per_s if known is not None else None)
        if leaves or not self._slow_reported:
            self._slow_reported = True
            runtime.tell("host.slow", {"peer": attempt.peer, "tokens_per_s": pace, "leaving": leaves})
        if leaves:
            self._searches.note_answer(attempt.peer, attempt.ttft_s(now), pace, whole=False)
        return leaves

    # ---- an attempt

    async def _next_turn(self) -> SessionTurn:
        """Ask the next host, or the same one again, for the rest."""
        if self._search is None:
            if self._asked_at is None:
                self._asked_at = trio.current_time()
            self._search = await self._open_search()
            self._ids_end = await self._fetch_ids_end()
            if self._fetch_vocabulary is not None:
                self._vocabulary = await self._fetch_vocabulary()
            if self.trusted:
                self._search.keep_to_trusted()
        if self._hedge.runs and (second := await self._hedge.take()) is not None:
            return self._read_second(second)
        failover, candidate = self._failover, self._candidate
        ask = self._make_ask(self._partial.next_prompt())
        self._asked, self._check = ask, None
        spent = sum(item.cost for item in self.bill)
        tokens_out = ask.body.tokens_out_max
        self._search.ask_for(TurnBound(tokens_in=ask.input_max, tokens_out=tokens_out, spent=spent))
        if candidate is not None and not self._search.may_ask_again(candidate.advert.peer):
            failover.leave_host()
        anew = failover.wants_next_host
        if anew:
            self._candidate = candidate = await self._search.next()
        if candidate is None:
            search = self._search
            error = failover.no_host(
                search.ranking(), search.failures, see=search.command, alone=search.alone
            )
            if self._shortened(error):
                return await self._next_turn()
            raise error
        peer = candidate.advert.peer
        if anew:
            self._runtime.tell("host", {"peer": peer, "model": shown_name(candidate.offer.model)})
            has_none = not self._pool.has(peer, candidate.offer.model)
            if has_none and self._pool.has_left(peer, candidate.offer.model):
                self._runtime.tell("session.left", {"peer": peer})
        self._keep_trust(self._search, candidate)
        if is_priced(candidate.offer):
            ask = await self._renderers.with_own_count(candidate.offer.model, ask, peer)
        failover.begin()
        self._begun_at = trio.current_time()
        self._session = session = await self._pool.open(candidate, ask)
        failover.opened(
            Attempt(
                peer=session.host,
                session=session.accepted.session,
                paid=session.paid,
                reused=session.reused,
                prefix=len(ask.body.prefix),
                started_at=trio.current_time(),
            )
        )
        self._turn = turn = await session.ask(ask)
        self._searches.hedging.turn()
        self.host = peer
        if self._left is not None:
            left, reason = self._left
            fields = {"from": left, "to": peer, "held": len(self.ids), "reason": reason}
            self._runtime.tell("failover", fields)
        return turn

    def _keep_trust(self, search: HostSearch, candidate: Candidate) -> None:
        """Once a host that is trusted is asked, no stranger is; before that the user is told of one."""
        if candidate.trusted:
            self.trusted = True
            search.keep_to_trusted()
        elif search.trusts_some:
            self._runtime.tell("stranger", {"peer": candidate.advert.peer})

    async def _next_piece(self, turn: SessionTurn) -> Said | None:
        event = await self._receive(turn)
        attempt = self._failover.attempt
        if attempt is None or event is None:
            return None
        match event:
            case Delivered(tokens=tokens):
                return self._delivered(attempt, tokens)
            case Embedded(vector=vector):
                attempt.embedded(trio.current_time())
                self._partial.take_vector(vector.data)
                self._flows()
            case Quoted() as quoted:
                attempt.quoted(quoted)
                if self._vocabulary is not None and self._asked is not None:
                    self._check = TextCheck(self._vocabulary, self._asked.body, quoted.quote)
                body = self._partial.body
                self._searches.note_quote(attempt.peer, attempt.session, body, quoted, attempt.prefix)
            case Receipted():
                self.checkpoints += 1
                attempt.receipted()
                self._partial.receipt()
                if self._watcher is not None:
                    self._watcher.receipted(self)
            case Progressed(progress=progress):
                self._runtime.tell("prefill", {"processed": progress.processed, "total": progress.total})
            case TurnFailed() as failed:
                attempt.failed(failed)
                raise turn.refusal or turn_error(failed)
            case TurnDone() as over:
                if self._check is not None:
                    self._check.finish(over.done.reason)
                self._hedge.give_up()
                await self._bill_given_up()  # before the sums are made
                self._turn_ended(turn, attempt, over)
            case _:
                pass
        return None

    def _delivered(self, attempt: Attempt, tokens: Tokens) -> Said | None:
        if attempt.first_at is None:
            self._hedge.give_up()
            if self._asked is not None and not self._slept_s():
                self._hedge.came(attempt, self._asked)
        attempt.delivered(len(tokens.ids), trio.current_time())
        if tokens.start == "restart":
            # No fault, for the host says so and signs it; a failure all the same, and the text goes on.
            attempt.engine_restarted = True
            self._searches.note_failure(attempt.peer, turn=False)
            self._runtime.tell("engine.restarted", {"peer": attempt.peer, "held": tokens.index})
        if self._ids_end is not None and max(tokens.ids, default=-1) >= self._ids_end:
            # Before anybody sees its text: no other host could go on from it.
            msg = f"the host sent id {max(tokens.ids)}; its model has {self._ids_end} tokens"
            raise HostFault(msg)
        if self._check is not None:
            self._check.take(tokens)
        said = Said(tokens.channel, tokens.text, tokens.call, tokens.name)
        self._partial.take(tokens.ids, said)
        self.logprobs += tokens.logprobs
        if self._watcher is not None:
            self._watcher.took(self)
        self._flows()
        return said if said.text or said.name else None

    def _flows(self) -> None:
        """Output came: from now on the next host is kept ready."""
        if self._first_at is None:
            self._first_at = trio.current_time()
        if self._standby is None and self._search is not None and not self._failover.cancelled:
            self._standby = self._pool.keep_ready(self._search)

    # ---- a second host

    async def _receive(self, turn: SessionTurn) -> ClientEmission | None:
        """The next event of the turn that runs. None where another host's first token came first: then its
        turn is the one that runs."""
        if self._first_events:
            return self._first_events.popleft()
        attempt, asked, candidate, hedge = self._failover.attempt, self._asked, self._candidate, self._hedge
        waits = not (turn.has_unread or turn.is_cancelled) and self._failover.may_ask_second
        if not waits or attempt is None or asked is None or candidate is None or self._search is None:
            return await turn.receive()
        if not hedge.runs:
            with trio.CancelScope(deadline=hedge.late_at(attempt, asked)):
                return await turn.receive()
            if not self._slept_s():
                hedge.ask(self._search, candidate, asked, self._failover)
        with hedge.unless_first():
            return await turn.receive()
        second = await hedge.take()
        if second is not None:
            hedge.came(attempt, asked)
            self._searches.note_late(attempt.peer, trio.current_time() - attempt.started_at)
            hedge.give_up_first(
                AskedTurn(candidate=candidate, ask=asked, session=turn.session, turn=turn, attempt=attempt)
            )
            self._read_second(second)
        return None

    def _read_second(self, second: AskedTurn) -> SessionTurn:
        """Go on with the second host's turn."""
        self._failover.take_over(second.attempt)
        self._candidate, self._session, self._turn = second.candidate, second.session, second.turn
        self._asked, self._check, self._first_events = second.ask, None, second.unread
        self.host, self._left = second.session.host, None
        return second.turn

    async def _bill_given_up(self) -> None:
        """Bill turns of which nothing is in the answer, and remember of second hosts that they failed."""
        turns, failed = await self._hedge.ended()
        for candidate, error, asked in failed:
            state = self._state(asked.session, asked.turn) if asked is not None else None
            attempt, peer = asked.attempt if asked is not None else None, candidate.advert.peer
            decision = self._failover.second_failed(error, attempt, state)
            if self._search is not None:
                self._search.failed(peer, str(error))
            if decision.blames and not self._slept_s():
                fault, took = isinstance(error, HostFault), decision.took_for_nothing
                self._searches.note_failure(peer, turn=asked is not None, fault=fault, took_for_nothing=took)
        for each in turns:
            ended = self._failover.given_up(each.attempt, self._state(each.session, each.turn))
            self._note_end(each.session, ended)

    # ---- when an attempt is over

    def _turn_ended(self, turn: SessionTurn, attempt: Attempt, over: TurnDone) -> None:
        state = self._state(turn.session, turn)
        decision = self._failover.turn_ended(over, state, early=self._early)
        if decision.blames:
            took = decision.took_for_nothing
            self._searches.note_failure(attempt.peer, turn=True, took_for_nothing=took)
        elif decision.move == "finish" and not attempt.engine_restarted:
            now, whole = trio.current_time(), over.done.reason != "cancelled"
            self._searches.note_answer(attempt.peer, attempt.ttft_s(now), attempt.speed(now), whole=whole)
        self._act(turn.session, decision)

    def _failed(self, error: P2PNodeError) -> None:
        """Go on with another host; raises where none can, or should."""
        search, candidate, session = self._search, self._candidate, self._session
        if search is None or candidate is None:
            self._stop(error)
            return
        slept_s = self._slept_s()
        state = self._state(session, self._turn) if session is not None else None
        decision = self._failover.failed(error, state)
        if isinstance(error, RemoteError) and not self._failover.cancelled:
            self._blame(search, candidate, error, decision, slept_s)
        self._act(session, decision)

    def _act(self, session: Session | None, decision: Decision) -> None:
        if session is not None and decision.ended is not None:
            self._ended(session, decision.ended)
        if decision.move == "finish":
            self._finish(decision.finish, decision.stop)
        elif decision.error is not None and not self._shortened(decision.error):
            self._stop(decision.error)

    def _shortened(self, error: P2PNodeError) -> bool:
        """Whether the oldest messages of a prompt that fits no host were left out, to ask all hosts again."""
        overflows = isinstance(error, RefusedError) and error.code == "context_overflow"
        if self._shorten is None or not overflows or self.ids or self._failover.cancelled:
            return False
        before = self._partial.body
        body = self._shorten(before)
        if body is None:
            return False
        self._hedge.give_up()
        left_out = len(before.messages) - len(body.messages)
        self.left_out += left_out
        self._runtime.tell("context.dropped", {"messages": left_out, "left": len(body.messages)})
        self._partial = PartialAnswer(body)
        self._failover.begin_anew(self._partial)
        # All hosts once more: some that the whole prompt did not fit may hold this one.
        self._search, self._candidate = None, None
        return True

    def _blame(
        self,
        search: HostSearch,
        candidate: Candidate,
        error: RemoteError,
        decision: Decision,
        slept_s: float,
    ) -> None:
        """Tell the user of a failure, and remember it of the host unless this machine slept meanwhile."""
        peer = candidate.advert.peer
        search.failed(peer, str(error))
        if slept_s:
            self._runtime.tell("slept", {"peer": peer, "seconds": slept_s, "reason": str(error)})
            return
        if isinstance(error, RefusedError) and error.code == "in_use" and decision.move == "again":
            self._runtime.tell("session.elsewhere", {"peer": peer})
            return
        retrying = decision.move == "again" or (decision.move == "next" and search.may_give_more)
        if decision.blames:
            fault, took = isinstance(error, HostFault), decision.took_for_nothing
            turn, asked_s = decision.ended is not None, trio.current_time() - self._begun_at
            self._searches.note_failure(peer, asked_s=asked_s, turn=turn, fault=fault, took_for_nothing=took)
        if isinstance(error, RefusedError) and error.code == "context_overflow":
            search.need_context(candidate.offer.n_ctx + 1)
        self._runtime.tell("host.failed", {"peer": peer, "reason": str(error), "retrying": retrying})

    def _slept_s(self) -> float:
        """Seconds that this machine slept during the attempt."""
        attempt = self._failover.attempt
        return 0.0 if attempt is None else self._runtime.node.sleep.slept_since(attempt.started_at)

    def _state(self, session: Session, turn: SessionTurn | None) -> SessionState:
        return SessionState(
            cost=session.take_cost(turn),
            n_ctx=session.accepted.n_ctx,
            lost=session.lost,
            covers_more=session.can_pay_more(turn),
            slept=self._slept_s() > 0,
        )

    def _ended(self, session: Session, ended: AttemptEnd) -> None:
        """An attempt is over: its session is kept for another turn, or closed."""
        self._session = self._turn = None
        self._left = ended.item.peer, ended.item.reason
        if ended.context_needed is not None and self._search is not None:
            self._search.need_context(ended.context_needed)
        self._note_end(session, ended)

    def _note_end(self, session: Session, ended: AttemptEnd) -> None:
        """What an attempt that is over proved and cost, and what becomes of its session."""
        proved = ended.attempt.tokens_receipted + ended.attempt.vectors_receipted
        if proved:
            self._searches.note_receipts(ended.item.peer, proved)
        if self._watcher is not None:
            self._watcher.billed(self, ended.item)
        if (ended.attempt.turn_over and not ended.attempt.is_empty) or session.dormant:
            self._pool.release(session)
        else:
            self._pool.leave(session)

    # ---- the end

    def _finish(self, reason: FinishReason, stop: str) -> None:
        self._end(reason)
        failover = self._failover
        if failover.cancelled:
            return
        now = trio.current_time()
        asked = now if self._asked_at is None else self._asked_at
        first = self._first_at if self._first_at is not None else now
        self.usage = failover.bill.usage(
            reason=reason,
            ttft_s=first - asked,
            total_s=now - asked,
            context_used=failover.context_used,
            n_ctx=failover.n_ctx,
            stop=stop,
        )

    def _stop(self, error: P2PNodeError) -> None:
        self._end(None, outcome="no_host" if isinstance(error, NoHostError) else reason_of(error, lost=True))
        if self.ids:
            self._runtime.tell("answer.cut", {"held": len(self.ids), "reason": str(error)})
            if not self._failover.is_disputed:
                error = cut_short(error, len(self.ids))
        raise error

    def _end(self, finish: FinishReason | None, *, outcome: str = "") -> None:
        ended = "cancelled" if self._failover.cancelled else finish
        if self._watcher is not None and not self._done:
            self._watcher.ended(self, ended)
        if self._asked_at is not None and not self._done:
            self._record(ended or outcome, self._asked_at)
        self._done = True
        self._hedge.give_up()
        if self._standby is not None:
            self._standby.cancel()

    def _record(self, outcome: str, asked_at: float) -> None:
        """One line for the log with all that is known of it, and the same for whoever measures."""
        items, now, first = self.bill, trio.current_time(), self._first_at
        record = AnswerRecord(
            model=shown_name(self._candidate.offer.model) if self._candidate is not None else "none",
            outcome=outcome,
            host=self.host,
            attempts=sum(each.reason != HEDGED for each in items),
            tokens_in=sum(each.tokens_in for each in items),
            reused=sum(each.reused for each in items),
            tokens_out=sum(each.tokens_out for each in items),
            cost=sum(each.cost for each in items),
            ttft_s=None if first is None else round(first - asked_at, 3),
            total_s=round(now - asked_at, 3),
            hedge=self._hedge.outcome,
        )
        log.info("answer.ended", **asdict(record))
        self._runtime.observe(record)
