"""Sessions of one client: opened, paid for, kept open between turns; and the next host, kept ready.

``SessionPool.open`` gives a session that can take a turn. ``Standby`` keeps the next best host connected
while an answer streams. Answers and conversations are unknown here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import structlog
import trio

from p2pnode.client.hosts import HostSearch
from p2pnode.client.kept_sessions import KeptSessions, Lease
from p2pnode.client.ranking import Candidate, is_priced
from p2pnode.client.runtime import Runtime
from p2pnode.client.session import Session
from p2pnode.errors import HostFault, P2PNodeError, ProtocolError, RefusedError, RemoteError, UnreachableError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.limits import Limits
from p2pnode.net.network import Network
from p2pnode.node.driver import ask_once
from p2pnode.node.finder import FoundHost
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.count.messages import CODEC, PROTOCOL, Count, Counted
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.embeddings import embed_tokens_max
from p2pnode.protocols.inference.messages import Refuse, prompt_bytes_max
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.wire import encode

if TYPE_CHECKING:
    from p2pnode.payments.payer import Payer, Purchase

log = structlog.get_logger()
_IN_USE_RETRY_S: Final = 15.0
_WAIT_TOLD_S: Final = 8.0
"""How often the user is told that a deposit is waited for."""


async def _nothing(_session: SessionId) -> None:
    """Nobody is told."""


class SessionPool:
    """The sessions of one client. A paid one is used until its deposit is used up: its fee was paid for all
    of it. Several turns use it at once where its host grants them.

    ``redeliver`` is called between turns: hosts that vanished may be back for their last vouchers.
    """

    def __init__(self, runtime: Runtime, redeliver: Callable[[], None], kept: KeptSessions) -> None:
        self._runtime, self._redeliver, self._kept = runtime, redeliver, kept
        self.on_gone: Callable[[PeerId], None] = lambda _peer: None
        """Told of a host that closed a session which was left with it, before its time."""
        self.on_taken: Callable[[SessionId], Awaitable[None]] = _nothing
        """Told of a session that was left and is used from now on, before anything is signed in it."""
        self.closes = False
        """Whether sessions are closed at the end, and not left with the hosts that keep them."""
        self.wait_s = 0.0
        """How long a session that another process or machine uses is waited for."""
        self._sessions: list[Session] = []
        """Of one host and model the session that was used last comes last: its cache is the warmest."""
        self._wanted: dict[tuple[PeerId, ModelId], list[Ask]] = {}
        """The turns that look for a session with a host."""
        self._openings: dict[tuple[PeerId, ModelId], trio.Event] = {}
        """Hosts with which a session is being opened; set when that is over."""

    def peers(self, model: ModelId) -> Sequence[PeerId]:
        """Hosts with an open session of this model, the one that was used last at the end."""
        open_now = (
            each for each in self._sessions if each.model == model and not (each.over or each.dormant)
        )
        return list(dict.fromkeys(session.host for session in open_now))

    def close(self) -> None:
        """Leave all idle sessions with the hosts that keep them, and end the others in order."""
        for session in self._sessions:
            if self.closes:
                session.close()
            else:
                session.leave()

    async def wait_closed(self) -> None:
        """Until each host has heard of the end of its session, or can't be reached."""
        for session in self._sessions:
            await session.wait_over()

    @property
    def open_sessions(self) -> int:
        """How many sessions with hosts are open now."""
        return sum(not session.over for session in self._sessions)

    def under_way(self, peer: PeerId, model: ModelId) -> int:
        """How many turns a host has now, or is about to be asked."""
        asking = len(self._wanted.get((peer, model), ()))
        return asking + sum(each.under_way for each in self._of(peer, model))

    def has(self, peer: PeerId, model: ModelId) -> bool:
        """Whether there is a session with this host, a dormant one included."""
        return bool(self._of(peer, model))

    def has_left(self, peer: PeerId, model: ModelId) -> bool:
        """Whether a session was left with this host, by this client or another process."""
        return self._kept.has(peer, model)

    def left_hosts(self, model: ModelId) -> Mapping[PeerId, Sequence[str]]:
        """Hosts with which sessions of a model were left that are dialled first, and where they were then."""
        return self._kept.hosts(model)

    def _of(self, peer: PeerId, model: ModelId) -> list[Session]:
        self._sessions = [session for session in self._sessions if not session.over]
        return [session for session in self._sessions if (session.host, session.model) == (peer, model)]

    async def open(self, candidate: Candidate, ask: Ask) -> Session:
        """A session with a host that can pay for a turn, with a place for it: one that is open, or a new one.

        A paid session whose places are taken is waited for: another one would cost another fee. Raises
        ``RemoteError``, and ``LocalError`` when this client can't or may not pay.
        """
        key = (candidate.advert.peer, candidate.offer.model)
        wanted = self._wanted.setdefault(key, [])
        wanted.append(ask)
        try:
            while True:
                session = self._ready(*key, ask)
                if session is None and (busy := self._worth_waiting(*key)) is not None:
                    await busy.wait_changed()
                elif session is None and key in self._openings:
                    await self._openings[key].wait()
                else:
                    session = session or await self._open_one(key, candidate, wanted)
                    session.reserve()
                    return session
        finally:
            wanted.remove(ask)
            if not wanted:
                self._wanted.pop(key, None)

    def _ready(self, peer: PeerId, model: ModelId, ask: Ask) -> Session | None:
        """An open session that can take this turn now. One whose deposit is nearly used up is closed."""
        for session in reversed(self._of(peer, model)):
            if session.places > 0 and session.covers(ask.input_max, ask.body.tokens_out_max):
                self._sessions.remove(session)
                self._sessions.append(session)
                session.reused = True
                return session
            if session.paid and not session.is_busy:
                self._sessions.remove(session)  # a new session brings a new deposit
                session.close()
        return None

    def _worth_waiting(self, peer: PeerId, model: ModelId) -> Session | None:
        """A paid session whose turns are under way: when one is over there is a place."""
        return next((each for each in self._of(peer, model) if each.paid and each.is_busy), None)

    async def _open_one(
        self, key: tuple[PeerId, ModelId], candidate: Candidate, wanted: Sequence[Ask]
    ) -> Session:
        """Open a session whose deposit is enough for all turns that look for one."""
        over = self._openings[key] = trio.Event()
        try:
            session = await self._opened(candidate, wanted)
            self._sessions.append(session)
            return session
        finally:
            del self._openings[key]
            over.set()

    async def _opened(self, candidate: Candidate, wanted: Sequence[Ask]) -> Session:
        peer, model = candidate.advert.peer, candidate.offer.model
        await self._connect(candidate.advert)
        if (left := await self._resume_left(candidate, wanted[0])) is not None:
            return left
        purchase = None
        if self._runtime.payer is not None and is_priced(candidate.offer):
            await self._require_fit(candidate, wanted[0])
            purchase = await self._buy(self._runtime.payer, candidate, list(wanted))
        return await self._begin(candidate, self._kept.new(peer, model, purchase))

    async def _buy(self, payer: Payer, candidate: Candidate, wanted: Sequence[Ask]) -> Purchase:
        """A deposit for all of these turns, or, where a limit forbids that, for as many as it allows."""
        from p2pnode.payments.spending import FundsError, SpendingLimitError

        count = len(wanted)
        while True:
            try:
                return await payer.buy(
                    self._runtime.tasks,
                    candidate.advert,
                    candidate.offer,
                    tokens_in=sum(ask.input_max for ask in wanted[:count]),
                    tokens_out=sum(ask.body.tokens_out_max for ask in wanted[:count]),
                    opened_for=wanted[0],
                    addresses=self._runtime.node.network.addresses_of(candidate.advert.peer),
                )
            except (FundsError, SpendingLimitError):
                if count == 1:
                    raise
                count //= 2

    async def _resume_left(self, candidate: Candidate, ask: Ask) -> Session | None:
        """The session that was left with this host; None where there is none, or the host has it no more."""
        lease = await self._kept.take(candidate, ask)
        if lease is None:
            return None
        try:
            session = await self._resume_or_wait(candidate, lease)
            await self.on_taken(session.accepted.session)
        except P2PNodeError as error:
            log.debug("session.not_resumed", peer=lease.host, reason=str(error))
            if not await lease.not_resumed(error):
                raise
            fields = {"peer": lease.host, "paid": lease.purchase is not None, "reason": str(error)}
            self._runtime.tell("session.gone", fields)
            self.on_gone(lease.host)
            return None
        except BaseException:
            with trio.CancelScope(shield=True):
                await lease.not_resumed(UnreachableError("it was not waited for"))
            raise
        session.reused = True  # its fee is on an earlier bill
        return session

    async def _resume_or_wait(self, candidate: Candidate, lease: Lease) -> Session:
        """Resume it; where another process or machine uses it, wait for that as long as the user said.

        The host is asked rarely and a bounded number of times: who lost must not press it.
        """
        until = trio.current_time() + self.wait_s
        while True:
            try:
                return await self._begin(candidate, lease)
            except RefusedError as error:
                if error.code != "in_use" or trio.current_time() + _IN_USE_RETRY_S > until:
                    raise
            self._runtime.tell("session.in_use", {"peer": lease.host, "wait_s": until - trio.current_time()})
            await trio.sleep(_IN_USE_RETRY_S)

    async def _begin(self, candidate: Candidate, lease: Lease) -> Session:
        """Open a session, or resume one that was left."""
        peer, model = candidate.advert.peer, candidate.offer.model
        session = Session(
            self._runtime.node.network,
            peer,
            model,
            limits=self._runtime.limits,
            holder=self._runtime.holder,
            lease=lease,
            addresses=[address.multiaddr for address in candidate.advert.addresses],
            sleep=self._runtime.node.sleep,
        )
        outcome: list[P2PNodeError] = []
        opened = trio.Event()

        async def run() -> None:
            try:
                await session.run(on_open=opened.set)
            except P2PNodeError as error:
                outcome.append(error)
            except Exception as error:  # noqa: BLE001  a fault with one host: another one can go on with the answer
                self._runtime.node.network.guard.note("session", error)
                outcome.append(UnreachableError("that host made this client fail: its log says how"))
            finally:
                opened.set()

        self._runtime.tasks.start_soon(run)
        try:
            await self._wait_opened(opened, peer, paid=session.paid and lease.resume is None)
        except BaseException:
            session.close()
            raise
        if session.accept is None:
            raise outcome[0] if outcome else session.error()
        return session

    async def _wait_opened(self, opened: trio.Event, peer: PeerId, *, paid: bool) -> None:
        """Until the host accepts. It may take 90 s to bring a deposit to its chain: tell the user."""
        if not paid:
            await opened.wait()
            return
        limits, waited_s = self._runtime.limits, 0.0
        most_s = limits.request_deadline_s + limits.escrow_deadline_s + limits.chain_deadline_s
        while True:
            with trio.move_on_after(_WAIT_TOLD_S):
                await opened.wait()
                return
            waited_s += _WAIT_TOLD_S
            self._runtime.tell("deposit.waiting", {"peer": peer, "waited_s": waited_s, "most_s": most_s})

    async def _require_fit(self, candidate: Candidate, ask: Ask) -> None:
        """Raise where the prompt can't fit the host's context: such a prompt must not cost its fee."""
        peer, offer = candidate.advert.peer, candidate.offer
        patience_s = self._runtime.limits.request_deadline_s
        with trio.move_on_after(patience_s) as scope:
            try:
                await require_fit(self._runtime.node.network, peer, offer.model, offer.n_ctx, ask)
            except ProtocolError as error:
                msg = f"the host broke the protocol: {error}"
                raise HostFault(msg) from error
        if scope.cancelled_caught:
            msg = f"{peer} did not count the conversation within {patience_s:g} s, and is not paid before"
            raise UnreachableError(msg)

    async def _connect(self, advert: Advert) -> None:
        """Connect to a host. One that was found and is gone must cost no more than a moment, and no fee."""
        patience_s = self._runtime.limits.reconnect_patience_s
        with trio.move_on_after(patience_s) as scope:
            await self._runtime.node.network.connect_peer(
                advert.peer, [each.multiaddr for each in advert.addresses]
            )
        if scope.cancelled_caught:
            msg = f"{advert.peer} is not connected any more, and did not answer within {patience_s:g} s"
            raise UnreachableError(msg)

    def keep_ready(self, search: HostSearch) -> trio.CancelScope:
        """Keep the next best host of a search ready until the returned scope is cancelled."""
        scope = trio.CancelScope()
        standby = Standby(
            search,
            contact=self._runtime.node.finder.contact,
            is_connected=self._runtime.node.network.is_connected,
            limits=self._runtime.limits,
        )

        async def run() -> None:
            with scope:
                await standby.run()

        self._runtime.tasks.start_soon(self._runtime.node.network.guard.run, run)
        self._redeliver()
        return scope

    def release(self, session: Session) -> None:
        """A turn is over: keep its session open for the next one with the same host."""
        self._redeliver()
        if session.over or session.paid or session.is_busy:
            return
        for other in self._of(session.host, session.model):  # a second free one would only take a place
            if other is not session and not other.is_busy:
                self._sessions.remove(other)
                other.close()

    def leave(self, session: Session) -> None:
        """A turn was given up before its end: close its session, unless other turns need it."""
        if not session.is_busy or session.over:
            if session in self._sessions:
                self._sessions.remove(session)
            session.close()


Contact = Callable[[PeerId, Sequence[str]], Awaitable[Advert | None]]
"""Connects to a peer where that is needed, and returns its current advert. Raises ``RemoteError``."""


class Standby:
    """Keeps the next best host ready while an answer streams: connected, its advert fresh, nothing signed.

    One host at a time, the one that a failover would choose; ``search.standby`` names it. It is asked for its
    advert now and then, which renews the advert and shows that the host lives. When it is gone, another one
    takes its place.
    """

    def __init__(
        self,
        search: HostSearch,
        *,
        contact: Contact,
        is_connected: Callable[[PeerId], bool],
        limits: Limits,
    ) -> None:
        self._search, self._contact, self._is_connected = search, contact, is_connected
        self._limits = limits

    async def run(self) -> None:
        """Keep a host ready until cancelled."""
        await trio.sleep(self._limits.standby_after_s)
        self._search.start(self._limits.standby_check_s)  # an idle session was used without a lookup
        while True:
            candidate = self._search.best()
            if candidate is None:
                await self._wait_for_hosts()
            elif await self._refresh(candidate):
                self._search.standby = candidate.advert.peer
                log.debug("standby.ready", peer=candidate.advert.peer)
                await self._watch(candidate)

    async def _wait_for_hosts(self) -> None:
        self._search.standby = None
        with trio.move_on_after(self._limits.standby_look_s):
            await self._search.wait_changed()
            return
        self._search.look_again(self._limits.standby_check_s)

    async def _refresh(self, candidate: Candidate) -> bool:
        """Fetch a host's advert; whether the host is there, and may still be chosen."""
        peer = candidate.advert.peer
        addresses = [address.multiaddr for address in candidate.advert.addresses]
        began, reason = trio.current_time(), "serves no model now"
        advert: Advert | None = None
        with trio.move_on_after(self._limits.standby_reach_s) as scope:
            try:
                advert = await self._contact(peer, addresses)
            except RemoteError as error:
                reason = str(error)
        if scope.cancelled_caught:
            reason = "did not answer in time"
        if advert is None:
            log.debug("standby.lost", peer=peer, reason=reason)
            self._search.pass_over(peer, reason)
            return False
        self._search.found(FoundHost(advert, trio.current_time() - began))
        return self._search.may_use(peer)

    async def _watch(self, candidate: Candidate) -> None:
        """Until the host is not ready any more, is used, or is not the best any more."""
        peer, limits = candidate.advert.peer, self._limits
        probe_at = trio.current_time() + limits.standby_probe_s
        while self._is_connected(peer) and self._search.may_use(peer):
            await trio.sleep(limits.standby_check_s)
            if trio.current_time() >= probe_at:
                best = self._search.best(standby_first=False) if await self._refresh(candidate) else None
                if best is None or best.advert.peer != peer:
                    break
                probe_at = trio.current_time() + limits.standby_probe_s
        self._search.standby = None


async def require_fit(network: Network, host: PeerId, model: ModelId, n_ctx: int, ask: Ask) -> None:
    """Return if the prompt leaves room in the host's context for one token at least. It has no deadline.

    Asked before anything is signed: a fee that was paid is gone. What the number of bytes says for sure is
    decided here; otherwise the host that is to be paid is asked to count.


    Raises ``RefusedError``: ``context_overflow`` where it doesn't, ``capacity`` and the like where the host
    can't say now; ``UnreachableError``; ``ProtocolError`` for an answer that breaks the protocol.
    """
    raw = encode(ask.body)
    bytes_max = prompt_bytes_max(n_ctx)
    if len(raw) > bytes_max:
        msg = f"the conversation takes {len(raw)} bytes; a context of {n_ctx} tokens takes {bytes_max}"
        raise RefusedError("context_overflow", msg)
    if max((embed_tokens_max([text]) for text in ask.body.embed), default=ask.input_max) < n_ctx:
        return  # no token of a text spans less than one of its bytes
    question = [Count(model=model, total=len(raw)), *prompt_parts(1, raw)]
    match await ask_once(network, host, PROTOCOL, CODEC, question):
        case Counted(tokens_in=tokens_in) if tokens_in < n_ctx or ask.body.embed:
            return  # a host that counts texts to embed has held each against its context
        case Counted(tokens_in=tokens_in):
            msg = f"the conversation takes {tokens_in} tokens, this host's context is {n_ctx}"
            raise RefusedError("context_overflow", msg)
        case Refuse(code=code, detail=detail, retry_after_s=retry_after_s):
            raise RefusedError(code, detail, retry_after_s=retry_after_s, said=True)
        case _:
            msg = "the host did not say how many tokens the conversation takes, and is not paid before"
            raise UnreachableError(msg)
