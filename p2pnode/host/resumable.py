"""Paid sessions of a host between and on their streams: who has which, and until when one may come back.

A stream that is lost leaves its session for the linger; whoever proves the voucher key takes it over. One
that an earlier start left in the journal can be rebuilt, once in this start and by the same proof. It knows
nothing of engines or of the chain: the escrow settles.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pnode.host.session import ServedSession
from p2pnode.ids import SessionId
from p2pnode.payments.escrow import EscrowIntake
from p2pnode.payments.journal.journal import HostedSession
from p2pnode.protocols.inference.messages import Refuse, Resume
from p2pnode.protocols.inference.session import HostTerms, LapsedSession, OpenSession


class KeptSessions:
    """By session id: the record that outlives streams, and the stream that has it now.

    ``grants`` says what a session from the journal is granted, or None if this host can't speak for it.
    """

    def __init__(
        self,
        escrow: EscrowIntake,
        *,
        epoch: int,
        grants: Callable[[HostedSession], HostTerms | None],
        wall: Callable[[], float],
        linger_s: float,
    ) -> None:
        self._escrow, self._wall, self._linger_s = escrow, wall, linger_s
        self._epoch, self._grants = epoch, grants
        self._records: dict[SessionId, OpenSession] = {}
        self._lapsed: dict[SessionId, LapsedSession] = {}
        """Never forgotten while this start lasts: within an epoch a session is rebuilt once."""
        self._live: dict[SessionId, ServedSession] = {}
        self._waits: dict[SessionId, trio.CancelScope] = {}
        """Whoever waits for the linger of a session whose stream was lost."""

    def find(self, message: Resume) -> OpenSession | LapsedSession | Refuse:
        """The session a client asks for. Whether it is the client's, the machine decides."""
        record = self._records.get(message.session)
        journalled = self._escrow.journal.hosted_one(message.session)
        if journalled is not None and journalled.state in ("open", "over"):
            due = journalled.settle_at is not None and journalled.settle_at <= self._wall()
            found = record or self._find_lapsed(journalled)
            if found is not None and not due:
                return found
        return Refuse(code="bad_request", detail="no such session here: open a new one")

    def _find_lapsed(self, journalled: HostedSession) -> LapsedSession | None:
        """One of an earlier start. What this start served and let go of is never rebuilt."""
        session, journal = journalled.session, self._escrow.journal
        if session not in self._lapsed and journalled.epoch < self._epoch:
            granted = self._grants(journalled)
            if granted is None:
                return None
            self._lapsed[session] = LapsedSession(
                session=session,
                terms=journalled.terms,
                salt=journalled.salt,
                granted=granted,
                voucher=journalled.voucher,
                issued=lambda epoch, seq: journal.issued(session, epoch, seq),
            )
        return self._lapsed.get(session)

    async def recovered(self, record: OpenSession, stream: ServedSession) -> str:
        """A stream rebuilt it from the journal. Why it may take no turn, or ""."""
        self._live[record.session] = stream
        self._records[record.session] = record
        return await self._escrow.recovered(record.session, record.epoch, stream.address)

    async def began(self, record: OpenSession, stream: ServedSession) -> None:
        """A stream has it: the first, or one that resumed it."""
        before = self._live.get(record.session)
        self._live[record.session] = stream
        if record.session in self._records:
            if before is not None and before is not stream:
                before.replaced()
            await self._escrow.resumed(record.session)
        self._records[record.session] = record

    async def ended(self, session: SessionId, stream: ServedSession, *, lingers: bool) -> None:
        """A stream is over. One that was replaced changes nothing."""
        if self._live.get(session) is not stream:
            if session not in self._records:  # it ended before it was accepted
                await self._escrow.over(session, unpaid=0, lingers=False)
            return
        del self._live[session]
        record = self._records[session]
        if not lingers:
            del self._records[session]  # before anything is waited for: nobody may resume it meanwhile
        await self._escrow.over(session, unpaid=unpaid(record), lingers=lingers)

    async def wait_given_up(self, session: SessionId) -> None:
        """Wait for the linger to pass; then it is nobody's, unless it was resumed since.

        However often a stream is lost, one waits: who comes back and leaves all day must not fill our memory.
        """
        until = trio.current_time() + self._linger_s
        if session in self._waits:
            self._waits[session].deadline = until
            return
        with trio.CancelScope(deadline=until) as self._waits[session]:
            await trio.sleep_forever()
        del self._waits[session]
        if session not in self._live:
            self._give_up(session)

    def give_up_all(self) -> None:
        """The host stops: nobody can come back for what lingers."""
        for session in [each for each in self._records if each not in self._live]:
            self._give_up(session)

    def end(self, session: SessionId, why: str, now: bool) -> bool:
        """Its escrow ends: let the present turn finish, or not. False when no stream has it: none may now."""
        stream = self._live.get(session)
        if stream is not None:
            stream.end(why) if now else stream.drain()
            return True
        self._give_up(session)
        return False

    def _give_up(self, session: SessionId) -> None:
        """No stream has it, and none may have it again. The first time only means anything."""
        record = self._records.pop(session, None)
        if record is not None:
            self._escrow.given_up(session, unpaid=unpaid(record))


def unpaid(record: OpenSession) -> int:
    """Token units that were delivered and not signed for."""
    channel = record.channel
    signed = channel.best.amount if channel.best is not None else channel.terms.session_fee
    return max(0, channel.cost(record.meter) - signed)
