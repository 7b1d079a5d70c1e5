"""The sessions of a host that outlive a stream, in its journal: see ``held_sessions.py``, which decides.

This acts on it: what is decided is written down by ``EscrowIntake``, which settles too, and a task waits for
the end of each linger. It knows neither engines nor the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog
import trio

from p2pnode.host.held_sessions import HeldSessions
from p2pnode.host.served_session import ServedSession
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.payments.escrow import EscrowIntake
from p2pnode.payments.journal.journal import HostedSession
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.messages import Refuse, Resume
from p2pnode.protocols.inference.open_session import LapsedSession, OpenSession

log = structlog.get_logger()


class ResumableSessions:
    """Of one host. ``grants`` and ``on_gone`` are as ``HeldSessions`` has them; without an ``escrow`` all
    sessions are free."""

    def __init__(
        self,
        escrow: EscrowIntake | None,
        *,
        epoch: int,
        grants: Callable[[HostedSession], HostTerms | None],
        wall: Callable[[], float],
        limits: Limits,
        on_gone: Callable[[SessionId], None] = lambda _session: None,
    ) -> None:
        self._escrow, self._linger_s = escrow, limits.linger_s
        self._held: HeldSessions[ServedSession] = HeldSessions(
            escrow, epoch=epoch, grants=grants, wall=wall, limits=limits, on_gone=on_gone
        )
        self._waits: dict[SessionId, trio.CancelScope] = {}
        """By session whose stream was lost: the task that waits for the end of its linger."""

    @property
    def left(self) -> int:
        """How many sessions are left with this host."""
        return self._held.left

    async def prepare(self) -> None:
        """Count what was left at earlier starts. Raises ``StorageError``."""
        if self._escrow is not None:
            for record in self._escrow.journal.hosted("over"):
                if record.left_until is not None:
                    payer, until = record.terms.payer, record.left_until
                    await self._settle(self._held.keep(record.session, payer, record.origin, until))

    # ---- what a client asks for

    def find(self, message: Resume, stream: ServedSession) -> OpenSession | LapsedSession | Refuse:
        """The session that a client wants to resume, or why there is none to resume.

        The machine checks the client's proof. Raises ``StorageError``.
        """
        return self._held.find(message, stream)

    # ---- streams

    async def recovered(self, record: OpenSession, stream: ServedSession) -> str:
        """Note that a stream rebuilt a session. Returns why it may take no turn, or ""."""
        # Before the first await, as in ``began``.
        self._held.has(record, stream)
        if record.channel.free or self._escrow is None:
            return ""
        if record.generation:
            await self._escrow.taken_up(record.session, record.epoch, record.generation)
            return ""
        return await self._escrow.recovered(record.session, record.epoch, stream.address)

    async def began(self, record: OpenSession, stream: ServedSession) -> None:
        """Note that a stream has the session. Where it was resumed, the stream before it is replaced."""
        known = self._held.has(record, stream)
        if known and not record.channel.free and self._escrow is not None:
            await self._escrow.resumed(record.session)

    def probe(self, session: SessionId, stream: ServedSession) -> None:
        """A stream proved that a session is its own which another one has: ask that one whether it lives."""
        self._held.probe(session, stream)

    def alive(self, session: SessionId) -> None:
        """The stream that has a session answered: it keeps it."""
        self._held.alive(session)

    async def leave(self, record: OpenSession, stream: ServedSession, wanted: int) -> int:
        """Keep a session whose client leaves, as long as it wants and this host keeps it; until when.

        Durable when it returns. A time that is past says that it is settled now, because too much is owed to
        wait for. Raises ``StorageError``: then it is as if the stream had been lost.
        """
        session, until = record.session, self._held.until(record, wanted)
        escrow = None if record.channel.free else self._escrow
        if escrow is not None:
            await escrow.note_left(session, until)
        if not self._held.leave(record, stream):  # another stream took it meanwhile
            if escrow is not None:
                await escrow.resumed(session)
            return until
        await self._settle(self._held.remember(record, stream.origin.near, until))
        return until

    async def ended(self, session: SessionId, stream: ServedSession, *, lingers: bool) -> None:
        """Note that a stream is over. A stream that was replaced, or left its session, changes nothing."""
        # Before the first await: nobody may resume a session that is over while the journal is written.
        end = self._held.ended(session, stream, lingers=lingers)
        if end is None or self._escrow is None:
            return
        if end.left_until is not None:
            await self._escrow.note_left(session, end.left_until)
        else:
            await self._escrow.over(session, unpaid=end.unpaid, lingers=end.lingers)

    async def wait_given_up(self, session: SessionId) -> None:
        """Wait until the linger has passed; then the session is left or given up, unless a stream has it.

        One task waits for a session, however often its streams are lost: a client that comes and goes all day
        must not fill this host's memory with waiting tasks.
        """
        until = trio.current_time() + self._linger_s
        if session in self._waits:
            self._waits[session].deadline = until
            return
        with trio.CancelScope(deadline=until) as self._waits[session]:
            await trio.sleep_forever()
        del self._waits[session]
        await self._settle(self._held.lingered(session))

    def give_up_all(self) -> None:
        """Give up all sessions that linger or are left: the host stops, and settles them."""
        self._held.give_up_all()

    def end(self, session: SessionId, why: str, now: bool) -> bool:
        """End a session whose escrow ends: after the present turn or, with ``now``, at once.

        Returns False when no stream has it; then none may resume it either.
        """
        stream = self._held.live_of(session)
        if stream is not None:
            stream.end(why) if now else stream.drain()
            return True
        self._held.give_up(session)
        return False

    def settled(self, session: SessionId) -> None:
        """A session was settled: nobody can resume it any more."""
        self._held.settled(session)

    async def _settle(self, sessions: Iterable[SessionId]) -> None:
        """Settle sessions that give way to another one that is left."""
        for session in sessions:
            log.info("session.gives_way", session=session.hex()[:16])
            if self._escrow is not None:
                await self._escrow.settle(session)
