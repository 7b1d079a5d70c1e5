"""The paid sessions of a host: which stream has which, and until when a lost one may be resumed.

When a stream is lost, its session lingers for ``linger_s``; whoever proves the voucher key resumes it on
another stream. A session that an earlier start left in the journal can be rebuilt by the same proof, once in
this start. This module knows neither engines nor the chain: ``EscrowIntake`` settles.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pnode.host.served_session import ServedSession
from p2pnode.ids import SessionId
from p2pnode.payments.escrow import EscrowIntake
from p2pnode.payments.journal.journal import HostedSession
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.messages import Refuse, Resume
from p2pnode.protocols.inference.open_session import LapsedSession, OpenSession


class ResumableSessions:
    """Holds, by session id, the record that outlives streams and the stream that has the session now.

    ``grants`` returns what a session from the journal is granted, or None if this host can't sign for it.
    ``on_gone`` is told of each session that no stream has and none can have any more.
    """

    def __init__(
        self,
        escrow: EscrowIntake,
        *,
        epoch: int,
        grants: Callable[[HostedSession], HostTerms | None],
        wall: Callable[[], float],
        linger_s: float,
        on_gone: Callable[[SessionId], None],
    ) -> None:
        self._escrow, self._wall, self._linger_s = escrow, wall, linger_s
        self._on_gone = on_gone
        self._epoch, self._grants = epoch, grants
        self._records: dict[SessionId, OpenSession] = {}
        self._lapsed: dict[SessionId, LapsedSession] = {}
        """Not forgotten while this start lasts: a session is rebuilt once within an epoch, so that no
        place of it ever has two receipts."""
        self._live: dict[SessionId, ServedSession] = {}
        self._waits: dict[SessionId, trio.CancelScope] = {}
        """By session whose stream was lost: the task that waits for the end of its linger."""

    def find(self, message: Resume) -> OpenSession | LapsedSession | Refuse:
        """The session that a client wants to resume, or why there is none to resume.

        The machine checks the client's proof. Raises ``StorageError``.
        """
        record = self._records.get(message.session)
        # The journal has the last word: the chain may have ended a session whose record is still here.
        journalled = self._escrow.journal.hosted_one(message.session)
        if journalled is not None and journalled.state in ("open", "over"):
            due = journalled.settle_at is not None and journalled.settle_at <= self._wall()
            found = record or self._find_lapsed(journalled)
            if found is not None and not due:
                return found
        return Refuse(code="bad_request", detail="no such session here: open a new one")

    def _find_lapsed(self, journalled: HostedSession) -> LapsedSession | None:
        """A session of an earlier start; None for one of this start, which is never rebuilt."""
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
        """Note that a stream rebuilt a session from the journal. Returns why it may take no turn, or ""."""
        # Both before the first await: whoever resumes it from now on must find this record, and not rebuild
        # the session a second time within the epoch.
        self._live[record.session] = stream
        self._records[record.session] = record
        return await self._escrow.recovered(record.session, record.epoch, stream.address)

    async def began(self, record: OpenSession, stream: ServedSession) -> None:
        """Note that a stream has the session. Where it was resumed, the stream before it is replaced."""
        before = self._live.get(record.session)
        # First: the end of the stream before finds here that it was replaced, and leaves the session alone.
        self._live[record.session] = stream
        if record.session in self._records:
            if before is not None and before is not stream:
                before.replaced()
            await self._escrow.resumed(record.session)
        self._records[record.session] = record

    async def ended(self, session: SessionId, stream: ServedSession, *, lingers: bool) -> None:
        """Note that a stream is over. A stream that was replaced changes nothing."""
        if self._live.get(session) is not stream:
            if session not in self._records:  # it ended before it was accepted
                await self._escrow.over(session, unpaid=0, lingers=False)
            return
        del self._live[session]
        record = self._records[session]
        if not lingers:
            # Before the first await: nobody may resume it while the journal is written.
            del self._records[session]
        await self._escrow.over(session, unpaid=unpaid(record), lingers=lingers)

    async def wait_given_up(self, session: SessionId) -> None:
        """Wait until the linger has passed; then give the session up, unless a stream has resumed it.

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
        if session not in self._live:
            self._give_up(session)

    def give_up_all(self) -> None:
        """Give up all sessions that linger: the host stops, and nobody can come back for them."""
        for session in [each for each in self._records if each not in self._live]:
            self._give_up(session)

    def end(self, session: SessionId, why: str, now: bool) -> bool:
        """End a session whose escrow ends: after the present turn or, with ``now``, at once.

        Returns False when no stream has it; then none may resume it either.
        """
        stream = self._live.get(session)
        if stream is not None:
            stream.end(why) if now else stream.drain()
            return True
        self._give_up(session)
        return False

    def _give_up(self, session: SessionId) -> None:
        """Let no stream have the session again. A second call does nothing."""
        record = self._records.pop(session, None)
        if record is not None:
            self._on_gone(session)
            self._escrow.given_up(session, unpaid=unpaid(record))


def unpaid(record: OpenSession) -> int:
    """Token units that this host delivered and no voucher covers."""
    channel = record.channel
    signed = channel.best.amount if channel.best is not None else channel.terms.session_fee
    return max(0, channel.cost - signed)
