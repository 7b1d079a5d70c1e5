"""One answer: an async iterator of text that finds its host, and another one whenever that fails.

Its parts may come from several hosts, one after another; the reader sees one text, each token once. What to
do when a part is over is decided in ``relay.py``, what is held stands in ``partial.py``. It knows neither
wires nor wallets: the pool opens sessions.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import trio
import trio.lowlevel

from p2pnode.client.attempt import Part
from p2pnode.client.bill import Bill, BillItem, Usage
from p2pnode.client.failover import (
    HONEST,
    Held,
    Move,
    Partial,
    Standing,
    after_failure,
    after_turn,
    calls_it_wrong,
    cut_short,
    is_final,
    least_pace,
    nobody,
    nobody_left,
    overflow,
    reason_of,
    too_long,
    turn_error,
)
from p2pnode.client.ranking import is_priced
from p2pnode.errors import HostFault, P2PNodeError, RefusedError, RemoteError, UnreachableError
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.inference.commands import (
    Ask,
    Delivered,
    Progressed,
    Quoted,
    Receipted,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import FinishReason, PromptBody

if TYPE_CHECKING:
    from p2pnode.client.hosts import HostSearch, Searches
    from p2pnode.client.pool import SessionPool
    from p2pnode.client.ranking import Candidate
    from p2pnode.client.runtime import Runtime


class Answers:
    """Those of one client that are under way: a reader that is gone must not keep its host's slot."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._under_way: weakref.WeakSet[Answer] = weakref.WeakSet()
        self._left: deque[Answer] = deque()
        """Dropped by their readers, in whatever thread collects garbage."""
        self._token: trio.lowlevel.TrioToken | None = None

    def begin(self, answer: Answer) -> None:
        """It is read, perhaps not for the first time."""
        self._under_way.add(answer)
        if self._token is None:
            self._token = trio.lowlevel.current_trio_token()
            self._runtime.tasks.start_soon(self._mind)

    def leave(self, answer: Answer) -> None:
        """Nobody can read it any more. May be called from any thread, and after the end of the client."""
        self._left.append(answer)
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end_left, idempotent=True)

    def _end_left(self) -> None:
        if self._runtime.running:
            while self._left:
                self._runtime.tasks.start_soon(self._left.popleft().aclose)

    async def _mind(self) -> None:
        wait_s = self._runtime.limits.stall_s
        while True:
            await trio.sleep(wait_s)
            wait_s = self._set_aside_unread(trio.current_time())

    def _set_aside_unread(self, now: float) -> float:
        """End what nobody has read for a while; seconds until the next look.

        Apart from the sleep: an answer that was dropped would live on in a variable there.
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
        idle = {*self._left, *(each for each in self._under_way if not each.being_read)}
        self._left.clear()
        async with trio.open_nursery() as nursery:
            for answer in idle:
                nursery.start_soon(answer.aclose)


class Watcher(Protocol):
    """Told of an answer's course as it goes; must neither wait nor raise.

    It is given the answer and holds none: a circle would keep one that its reader dropped.
    """

    def took(self, answer: Answer) -> None:
        """Tokens came."""

    def receipted(self, answer: Answer) -> None:
        """The host's receipt over everything so far was checked."""

    def billed(self, answer: Answer, item: BillItem) -> None:
        """A host's part is over, with its item on the bill."""

    def ended(self, answer: Answer, finish: FinishReason | None) -> None:
        """It is whole, was stopped, or (None) cut short."""


class Answer:
    """``async for piece in answer``. After the end: ``usage``, ``bill``, ``host``, ``text``, ``ids``.

    When no host can go on, what came stays in ``text`` and ``ids``, and ``Client.go_on`` goes on from there.
    A host that broke the protocol may cost the last ids whose text nobody saw.

    Who leaves the loop ends the turn: at once with ``async with``, soon where the answer is dropped. One
    that is kept and not read for ``stall_s`` gives its host's place back, and goes on when it is read again.
    """

    def __init__(
        self,
        runtime: Runtime,
        pool: SessionPool,
        searches: Searches,
        partial: Partial,
        *,
        search: Callable[[], Awaitable[HostSearch]],
        make_ask: Callable[[PromptBody], Ask],
        answers: Answers,
        watcher: Watcher | None = None,
    ) -> None:
        self._watcher, self._answers = watcher, answers
        self._reader = trio.Lock()
        self._read_at = math.inf
        """When the last piece was given out; infinite while one is waited for."""
        self._ending = ""
        """Why this side ends the present part: nobody reads, or its host crawls."""
        self._unread = ""
        """Came meanwhile."""
        self._slow_told = False
        self._unread_error: P2PNodeError | None = None
        self._runtime, self._pool, self._searches = runtime, pool, searches
        self._open_search, self._make_ask = search, make_ask
        self._partial, self._bill = partial, Bill()
        self._search: HostSearch | None = None
        self._part: Part | None = None
        self._left: tuple[PeerId, str] | None = None
        """Who had the part before, and why it ended."""
        self._candidate: Candidate | None = None
        self._move: Move = "next"
        self._returning = False
        self._standby: trio.CancelScope | None = None
        self._asked_at = 0.0
        self._first_at: float | None = None
        self._context_used = self._n_ctx = 0
        self._parts_left = runtime.limits.hosts_per_answer
        self._fruitless = self._refusals = 0
        self._cancelled = self._done = False
        self._last_error: P2PNodeError | None = None
        self.host: PeerId | None = None
        """The last one."""
        self.usage: Usage | None = None
        """Once the answer is whole."""
        self.checkpoints = 0

    @property
    def text(self) -> str:
        """So far."""
        return self._partial.text

    @property
    def ids(self) -> list[int]:
        """So far; their text may lag."""
        return self._partial.ids

    @property
    def told(self) -> int:
        """How many of ``ids`` have their text."""
        return self._partial.told

    @property
    def being_read(self) -> bool:
        """Whether somebody waits for its next piece."""
        return self._reader.locked()

    @property
    def session(self) -> SessionId | None:
        """That of the present part."""
        accept = self._part.session.accept if self._part is not None else None
        return accept.session if accept is not None else None

    @property
    def held(self) -> Held:
        """To go on from, perhaps in another process: ``Client.chat`` takes it."""
        return self._partial.held

    @property
    def bill(self) -> tuple[BillItem, ...]:
        """What each host was used for, in order; a host's item comes when its part is over."""
        return self._bill.items

    def rest(self) -> Answer:
        """Another answer that goes on from what this one holds."""
        partial = Partial.of(self._partial.body, self.held)
        return Answer(
            self._runtime,
            self._pool,
            self._searches,
            partial,
            search=self._open_search,
            make_ask=self._make_ask,
            answers=self._answers,
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        self._answers.begin(self)
        async with self._reader:
            self._read_at = math.inf
            try:
                return await self._read()
            finally:
                self._read_at = trio.current_time()

    async def _read(self) -> str:
        while True:
            if self._unread:
                unread, self._unread = self._unread, ""
                return unread
            if self._unread_error is not None:
                error, self._unread_error = self._unread_error, None
                raise error
            if not self._done and self._part is None and self.ids and not self._partial.room:
                self._finish("length")  # it went on from a whole one
            if self._done:
                raise StopAsyncIteration
            part = self._part
            if part is not None and self._crawls(part):
                await self._end_early(part, "slow")
                self._move = "next"
                continue
            try:
                piece = await self._next_piece(part or await self._next_part())
            except P2PNodeError as error:
                self._failed(error)
                continue
            if piece:
                return piece

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the turn if it still runs. What was delivered, and is billed, is in ``text`` and ``ids``."""
        self._cancelled = True
        part = self._part
        if part is not None and not self._done:
            part.session.cancel_turn()
        # Shielded: a cancelled caller must free the host's slot too.
        with trio.move_on_after(self._runtime.limits.close_deadline_s, shield=True):
            async with self._reader:
                while self._part is not None and not self._done:
                    await self._drain(self._part)
        if self._part is not None and not self._done:
            self._end_part(self._part, "cancelled")
        self._end("cancelled")

    async def _drain(self, part: Part) -> str:
        """What still comes of a turn that was cancelled."""
        try:
            return await self._next_piece(part)
        except P2PNodeError as error:
            self._failed(error)
            return ""

    # ---- a reader that is gone

    def __del__(self) -> None:
        """``break``, an error and Ctrl-C leave ``async for`` without a word."""
        # Not yet made where the constructor raised.
        if getattr(self, "_part", None) is not None and not self._done:
            self._answers.leave(self)

    def unread_for(self, now: float) -> float:
        """Seconds since the last piece was given out; 0 while one is waited for, and after the end."""
        return 0.0 if self._done or self._part is None else max(0.0, now - self._read_at)

    async def set_aside(self) -> None:
        """End the turn, so that its host's slot is free. Who reads on asks for the rest."""
        async with self._reader:
            part = self._part
            if part is None or self._done:
                return
            self._parts_left += 1  # its host did nothing wrong
            # A host that does not answer may be lost: whoever reads on will hear of it.
            await self._end_early(part, "cancelled")
            self._left = None  # no failover

    async def _end_early(self, part: Part, why: str) -> None:
        """Have the turn ended in order; what still comes of it is kept for the reader."""
        part.session.cancel_turn()
        self._ending = why
        with trio.move_on_after(self._runtime.limits.close_deadline_s):
            try:
                while self._part is part and not self._done:
                    self._unread += await self._drain(part)
            except P2PNodeError as error:
                self._unread_error = error
        self._ending = ""

    def _crawls(self, part: Part) -> bool:
        """Whether its host is much slower than hosts are, and there is another one to go on with."""
        runtime, now = self._runtime, trio.current_time()
        limits = runtime.limits
        pace = part.pace(now, limits.pace_window_s)
        if pace is None or self._search is None or runtime.node.sleep.slept_since(now - limits.pace_window_s):
            return False
        speeds = (known.tokens_per_s for known in self._searches.measured.values())
        usual = [speed for speed in speeds if speed is not None]
        least = least_pace(usual, floor=limits.pace_floor, ceiling=limits.pace_ceiling)
        if pace >= least:
            return False
        other = self._search.best()
        known = self._searches.measured.get(other.advert.peer) if other is not None else None
        speed = known.tokens_per_s if known is not None else None
        leaves = (
            other is not None
            and self._parts_left > 0
            and self._partial.continuable
            and (part.session.paid or not is_priced(other.offer))  # it may be slow because it is free
            and (speed is None or speed > 2 * pace)
        )
        if leaves or not self._slow_told:
            self._slow_told = True
            runtime.tell("host.slow", {"peer": part.peer, "tokens_per_s": pace, "leaving": leaves})
        if leaves and part.first_at is not None:
            self._searches.note_answer(part.peer, part.first_at - part.started_at, pace)
        return leaves

    # ---- a part

    async def _next_part(self) -> Part:
        """Ask the next host, or the same one again, for the rest."""
        if self._search is None:
            self._asked_at = trio.current_time()
            self._search = await self._open_search()
        if self._move == "next":
            self._fruitless = 0
            self._candidate = await self._search.next()
        candidate = self._candidate
        if candidate is None:
            raise self._nobody(self._search)
        peer = candidate.advert.peer
        if self._move == "next":
            self._runtime.tell("host", {"peer": peer, "model": candidate.offer.name})
        self._returning = self._move == "again"
        self._move, self._parts_left = "next", self._parts_left - 1
        ask = self._make_ask(self._partial.rest())
        session = await self._pool.open(candidate, ask)
        self._part = part = Part(session, ask)
        await session.ask(ask)
        self.host = peer
        if self._left is not None:
            left, reason = self._left
            fields = {"from": left, "to": peer, "held": len(self.ids), "reason": reason}
            self._runtime.tell("failover", fields)
        return part

    async def _next_piece(self, part: Part) -> str:
        match await part.session.receive():
            case Delivered(ids=ids, text=text) as delivered:
                part.delivered(delivered)
                self._partial.take(ids, text)
                if self._watcher is not None:
                    self._watcher.took(self)
                self._flows()
                return text
            case Quoted() as quoted:
                part.quoted(quoted)
            case Receipted():
                self.checkpoints += 1
                self._partial.receipt()
                if self._watcher is not None:
                    self._watcher.receipted(self)
            case Progressed(progress=progress):
                self._runtime.tell("prefill", {"processed": progress.processed, "total": progress.total})
            case TurnFailed() as failed:
                part.turn_over, part.restarted = True, failed.cause == "restarted"
                raise turn_error(failed)
            case TurnDone() as over:
                part.done(over)
                self._over(part, over.done.reason)
            case _:
                pass
        return ""

    def _flows(self) -> None:
        """Output came: from now on the next host is kept ready."""
        if self._first_at is None:
            self._first_at = trio.current_time()
        if self._standby is None and self._search is not None and not self._cancelled:
            self._standby = self._pool.keep_ready(self._search)

    # ---- when a part is over

    def _over(self, part: Part, reason: FinishReason) -> None:
        """The host ended its turn."""
        move = after_turn(reason, self._standing(part))
        if reason == "cancelled" and not self._cancelled:
            reason = "length"  # where that is the end, all came
        if move == "stop":
            raise UnreachableError("the connection to the host was lost, and the turn with it")
        if move == "finish":
            now = trio.current_time()
            first = part.first_at if part.first_at is not None else now
            self._searches.note_answer(part.peer, first - part.started_at, part.speed(now))
        self._end_part(part, reason if move == "finish" else self._ending or "lost")
        if move == "finish":
            self._finish(reason)
        self._move = move

    def _failed(self, error: P2PNodeError) -> None:
        """Go on with somebody; raises where nobody can, or nobody should."""
        part, search, candidate = self._part, self._search, self._candidate
        if search is None or candidate is None:
            self._stop(error)
            return
        dropped = self._partial.distrust() if isinstance(error, HostFault) else 0
        self._refusals += calls_it_wrong(error)
        standing = self._standing(part)
        move = after_failure(error, standing)
        if isinstance(error, RemoteError) and not self._cancelled:
            retrying = move == "again" or (move == "next" and search.may_give_more)
            self._blame(search, candidate, error, retrying=retrying)
        if part is not None:
            lost = standing.lost or part.turn_over
            self._end_part(part, reason_of(error, lost=lost), dropped=dropped)
        if part is not None or not self._returning:  # that it can't be reached again says less
            self._last_error = error
        if move == "finish":
            self._finish("length")
        elif move == "stop":
            final = is_final(error, self._refusals)
            self._stop(error if final or not standing.held else too_long(error))
        self._move = move

    def _blame(self, search: HostSearch, candidate: Candidate, error: RemoteError, *, retrying: bool) -> None:
        peer, code = candidate.advert.peer, error.code if isinstance(error, RefusedError) else None
        search.failed(peer, str(error))
        slept_s = self._slept_s()
        if slept_s:
            self._runtime.tell("slept", {"peer": peer, "seconds": slept_s, "reason": str(error)})
            return
        if code not in HONEST or (self._part is not None and self._part.owes_output):
            self._searches.note_failure(peer, fault=isinstance(error, HostFault))
        if code == "context_overflow":
            search.need_context(candidate.offer.n_ctx + 1)
        self._runtime.tell(
            "host.failed",
            {"peer": peer, "reason": str(error), "retrying": retrying},
        )

    def _slept_s(self) -> float:
        """Seconds that this machine slept during the present part: then its host is not to blame."""
        return 0.0 if self._part is None else self._runtime.node.sleep.slept_since(self._part.started_at)

    def _end_part(self, part: Part, reason: str, *, dropped: int = 0) -> None:
        self._part, self._left = None, (part.peer, reason)
        self._fruitless = 0 if part.fruitful else self._fruitless + 1
        if part.messages_tokens is not None and part.session.accept is not None:
            self._n_ctx = part.session.accept.n_ctx
            self._context_used = part.messages_tokens + len(self.ids)
        item = part.item(reason, dropped=dropped)
        if item is not None:
            self._bill.add(item)
            if self._watcher is not None:
                self._watcher.billed(self, item)
        if part.messages_tokens is not None and self._search is not None:
            self._search.need_context(part.messages_tokens + len(self.ids) + 1)
        if part.turn_over or part.session.dormant:
            self._pool.release(part.session)
        else:
            part.session.close()

    def _standing(self, part: Part | None) -> Standing:
        partial = self._partial
        standing = Standing(
            held=len(partial.ids),
            room=partial.room,
            continuable=partial.continuable,
            parts_left=self._parts_left,
            cancelled=self._cancelled,
            refusals=self._refusals,
        )
        if part is None:
            return standing
        return replace(
            standing,
            progressed=part.progressed,
            fruitless=0 if part.fruitful else self._fruitless + 1,
            kept=part.session.kept,
            lost=part.session.lost,
            restarted=part.restarted,
            paid=part.session.paid,
            slept=self._slept_s() > 0,
        )

    # ---- the end

    def _finish(self, reason: FinishReason) -> None:
        self._end(reason)
        if self._cancelled:
            return
        now = trio.current_time()
        asked = self._asked_at if self._search is not None else now
        first = self._first_at if self._first_at is not None else now
        self.usage = self._bill.usage(
            reason=reason,
            ttft_s=first - asked,
            total_s=now - asked,
            context_used=self._context_used,
            n_ctx=self._n_ctx,
        )

    def _stop(self, error: P2PNodeError) -> None:
        self._end(None)
        if self.ids:
            self._runtime.tell("answer.cut", {"held": len(self.ids), "reason": str(error)})
            error = cut_short(error, len(self.ids))
        raise error

    def _end(self, finish: FinishReason | None) -> None:
        if self._watcher is not None and not self._done:
            self._watcher.ended(self, "cancelled" if self._cancelled else finish)
        self._done = True
        if self._standby is not None:
            self._standby.cancel()

    def _nobody(self, search: HostSearch) -> P2PNodeError:
        if self.ids:
            return nobody_left(self._last_error, search.ranking())
        last = self._last_error
        if isinstance(last, RefusedError) and last.code == "context_overflow":
            return overflow(last)
        return last or nobody(search.ranking(), search.failures)
