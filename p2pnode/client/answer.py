"""One answer: an async iterator of text that finds its host, and another one if that fails early.

Before the first token a failure costs the user nothing but time: the next host is tried. After it,
the partial answer stays readable in ``text`` and ``ids``, and the error says what happened.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import trio

from p2pnode.client.session import HostFault, Session
from p2pnode.errors import WIRE_CODES, NoHostError, P2PNodeError, RefusedError, RemoteError
from p2pnode.ids import PeerId
from p2pnode.protocols.inference.commands import Ask, Delivered, Progressed, Receipted, TurnDone, TurnFailed

if TYPE_CHECKING:
    from p2pnode.client.client import Client
    from p2pnode.client.ranking import Candidate
    from p2pnode.client.search import HostSearch

# What every host would answer the same way: asking another would only cost time.
_FINAL: Final = frozenset({"bad_request"})
# A host that says one of these did not fail: it is busy, or the question is not for it.
_HONEST: Final[frozenset[str]] = WIRE_CODES - {"internal", "stalled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a turn cost: tokens, and seconds to the first token and in all. ``cost`` is in token units."""

    tokens_in: int
    reused: int
    tokens_out: int
    cost: int
    reason: str
    ttft_s: float
    total_s: float


class Answer:
    """``async for piece in answer``. After the end: ``usage``, ``host``, ``text``, ``ids``."""

    def __init__(
        self,
        client: Client,
        search: Callable[[], Awaitable[HostSearch]],
        ask: Ask,
        on_event: Callable[[str, dict[str, object]], None],
    ) -> None:
        self._client, self._open_search, self._ask, self._on_event = client, search, ask, on_event
        self._search: HostSearch | None = None
        self._session: Session | None = None
        self._candidate: Candidate | None = None
        self._asked_at = self._started_at = 0.0
        self._first_at: float | None = None
        self._done = False
        self._last_error: RemoteError | None = None
        self.text = ""
        self.ids: list[int] = []
        self.host: PeerId | None = None
        self.usage: Usage | None = None
        self.checkpoints = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while not self._done:
            if self._session is None:
                try:
                    await self._next_host()
                except P2PNodeError:
                    self._done = True
                    raise
            try:
                piece = await self._next_piece()
            except RemoteError as error:
                self._failed(error)
                continue
            if piece:
                self.text += piece
                return piece
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the turn if it still runs; what was delivered stays in ``text``."""
        session, self._session = self._session, None
        if session is None or self._done:
            return
        self._done = True
        session.cancel_turn()
        # Shielded: a cancelled caller must free the host's slot too.
        with trio.move_on_after(self._client.limits.close_deadline_s, shield=True) as scope:
            try:
                while not isinstance(await session.receive(), TurnDone | TurnFailed):
                    pass
            except RemoteError:
                return
        if scope.cancelled_caught:
            session.close()
        else:
            self._client.release(session)

    async def _next_host(self) -> None:
        if self._search is None:
            self._asked_at = trio.current_time()
            self._search = await self._open_search()
        candidate = await self._search.next()
        if candidate is None:
            raise self._no_host(self._search)
        self._candidate, peer = candidate, candidate.advert.peer
        self._on_event("host", {"peer": peer, "model": candidate.offer.name})
        try:
            self._session = session = await self._client.open_session(candidate, self._ask)
            await session.ask(self._ask)
        except RemoteError as error:
            self._failed(error)
            return
        self.host = peer
        self._started_at = trio.current_time()

    async def _next_piece(self) -> str:
        if self._session is None:
            return ""
        match await self._session.receive():
            case Delivered(ids=ids, text=text):
                if self._first_at is None:
                    self._first_at = trio.current_time()
                self.ids.extend(ids)
                return text
            case Receipted():
                self.checkpoints += 1
            case Progressed(progress=progress):
                self._on_event("prefill", {"processed": progress.processed, "total": progress.total})
            case TurnFailed(code=code, detail=detail, retry_after_s=retry_after_s):
                self._client.release(self._session)
                self._session = None
                raise RefusedError(code, detail, retry_after_s=retry_after_s)
            case TurnDone() as over:
                self._finish(over)
            case _:
                pass
        return ""

    def _finish(self, over: TurnDone) -> None:
        now = trio.current_time()
        first = self._first_at if self._first_at is not None else now
        done = over.done
        self.usage = Usage(
            tokens_in=done.tokens_in,
            reused=done.reused,
            tokens_out=done.tokens_out,
            cost=done.cost,
            reason=done.reason,
            ttft_s=first - self._asked_at,
            total_s=now - self._asked_at,
        )
        speed = (done.tokens_out - 1) / (now - first) if done.tokens_out > 1 and now > first else None
        if self.host is not None:
            self._client.note_answer(self.host, first - self._started_at, speed)
        if self._session is not None:
            self._client.release(self._session)
        self._session = None
        self._done = True

    def _failed(self, error: RemoteError) -> None:
        """Forget this host if another may do better; raise otherwise."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
        candidate, code = self._candidate, error.code if isinstance(error, RefusedError) else None
        final = bool(self.ids) or code in _FINAL
        if candidate is not None and self._search is not None:
            peer = candidate.advert.peer
            # A session kept from before may have died of age: the same host may take a new one.
            again = session is not None and session.kept and not self.ids
            self._search.failed(peer, str(error), again=again and code not in _HONEST)
            if code not in _HONEST:
                self._client.note_failure(peer, fault=isinstance(error, HostFault))
            retrying = not final and self._search.hopeful
            self._on_event("host.failed", {"peer": peer, "reason": str(error), "retrying": retrying})
        self._last_error = error
        if final:
            self._done = True
            raise error

    def _no_host(self, search: HostSearch) -> RemoteError:
        if self._last_error is not None:
            return self._last_error
        reasons = [f"{c.advert.peer}: {c.excluded}" for c in search.ranking().excluded]
        reasons += [f"{peer}: {reason}" for peer, reason in search.failures.items()]
        tried = "; ".join(reasons[:4]) if reasons else "nobody answered"
        return NoHostError(
            f"no host for this model was found ({tried}). Start one with `p2pnode join`, name a first peer "
            "with --bootstrap, or see `p2pnode hosts --why`"
        )
