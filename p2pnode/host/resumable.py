"""The sessions of a host that outlive a stream: which stream has which, and which are left until when.

When a stream is lost, its session lingers for ``linger_s`` with all that is known of it; whoever proves its
key resumes it on another stream. A session that this host keeps is then *left*, and one that its client
leaves is so at once: a paid one is a row of the journal, a free one an entry here. It is rebuilt by the same
proof, once a generation, also after a restart. What an earlier start served and did not keep is rebuilt once
in this start.

A free session with a resume key is kept as a paid one is, but for the journal. Which of the sessions that are
left gives way is ``left_sessions.py``'s. This module knows neither engines nor the chain: ``EscrowIntake``
settles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog
import trio

from p2pnode.host.left_sessions import LeftSession, LeftSessions
from p2pnode.host.served_session import ServedSession
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.payments import settlement_policy as policy
from p2pnode.payments.escrow import EscrowIntake
from p2pnode.payments.journal.journal import HostedSession
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.messages import Receipt, Refuse, Resume
from p2pnode.protocols.inference.open_session import LapsedSession, OpenSession

log = structlog.get_logger()


class ResumableSessions:
    """Holds, by session id, the record that outlives streams and the stream that has the session now.

    ``grants`` returns what a session from the journal is granted, or None if this host can't sign for it.
    ``on_gone`` is told of each session that no stream has any more, and none can have as it was. Without an
    ``escrow`` all sessions are free.
    """

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
        self._escrow, self._wall, self._on_gone = escrow, wall, on_gone
        self._linger_s, self._margin_s = limits.linger_s, limits.expiry_margin_s
        self._epoch, self._grants = epoch, grants
        self._records: dict[SessionId, OpenSession] = {}
        self._rebuilt: set[SessionId] = set()
        """Sessions of earlier starts that were not left. Not forgotten while this start lasts: such a session
        is rebuilt once within an epoch, so that no place of it ever has two receipts."""
        self._live: dict[SessionId, ServedSession] = {}
        self._waits: dict[SessionId, trio.CancelScope] = {}
        """By session whose stream was lost: the task that waits for the end of its linger."""
        self._origins: dict[SessionId, str] = {}
        """Where the clients of sessions that linger came from."""
        self._left = LeftSessions()
        self._free: dict[SessionId, LapsedSession] = {}
        """The free ones of those that are left."""
        self._probes: dict[SessionId, list[ServedSession]] = {}
        """Streams that want a session which another one has, and wait whether that one answers."""

    @property
    def left(self) -> int:
        """How many sessions are left with this host."""
        return len(self._left)

    async def prepare(self) -> None:
        """Count what was left at earlier starts. Raises ``StorageError``."""
        if self._escrow is not None:
            for record in self._escrow.journal.hosted("over"):
                if record.left_until is not None:
                    await self._keep(record.session, record.terms.payer, record.origin, record.left_until)

    # ---- what a client asks for

    def find(self, message: Resume, stream: ServedSession) -> OpenSession | LapsedSession | Refuse:
        """The session that a client wants to resume, or why there is none to resume.

        The machine checks the client's proof. Raises ``StorageError``.
        """
        record = self._records.get(message.session)
        found: OpenSession | LapsedSession | None
        if record is not None and record.channel.free:
            found = self._lapsed_here(message, record, stream)
        elif record is None and message.session in self._free:
            free = self._free[message.session]
            found = replace(free, take=lambda opened: self._take(opened, None, stream))
            if self._left.is_over(message.session, self._wall()):
                found = None
        else:
            found = self._find_paid(message, record, stream)
        return found or Refuse(code="bad_request", detail="no such session here: open a new one")

    def _find_paid(
        self, message: Resume, record: OpenSession | None, stream: ServedSession
    ) -> OpenSession | LapsedSession | None:
        # The journal has the last word: the chain may have ended a session whose record is still here.
        journalled = self._escrow.journal.hosted_one(message.session) if self._escrow is not None else None
        if journalled is None or journalled.state not in ("open", "over"):
            return None
        if journalled.settle_at is not None and journalled.settle_at <= self._wall():
            return None
        if record is not None:
            return self._lapsed_here(message, record, stream)
        return self._lapsed_in_journal(journalled, stream)

    def _lapsed_here(
        self, message: Resume, record: OpenSession, stream: ServedSession
    ) -> OpenSession | LapsedSession:
        """A session that is in memory. One that no stream has goes on as if it had been left, for a client
        that knows nothing of what came since."""
        knows = message.received or message.turn
        if record.holder is not None or not record.granted.keep_s or knows:
            return record
        return record.lapse(lambda opened: self._take(opened, record, stream), self._issued(record.session))

    def _lapsed_in_journal(self, journalled: HostedSession, stream: ServedSession) -> LapsedSession | None:
        """A session that was left or is of an earlier start; None for another one of this start."""
        session, escrow = journalled.session, self._escrow
        left = journalled.left_until is not None
        granted = self._grants(journalled)
        again = session in self._rebuilt or journalled.epoch >= self._epoch
        if escrow is None or granted is None or (again and not left):
            return None
        return LapsedSession(
            session=session,
            model=journalled.terms.model,
            terms=journalled.terms,
            salt=journalled.salt,
            granted=granted,
            voucher=journalled.voucher,
            receipt=escrow.journal.last_issued(session) if left else None,
            generation=journalled.generation,
            left=left,
            issued=self._issued(session),
            take=lambda opened: self._take(opened, None, stream),
        )

    def _issued(self, session: SessionId) -> Callable[[int, int], Receipt | None]:
        escrow = self._escrow
        return lambda epoch, seq: None if escrow is None else escrow.journal.issued(session, epoch, seq)

    def _take(self, opened: OpenSession, before: OpenSession | None, stream: ServedSession) -> Refuse | None:
        """Give a session that no stream has to one that proved itself; why not, where too much is unpaid.

        Nothing is awaited here: whoever asks for the session from now on finds this record, and does not
        rebuild it a second time.
        """
        session, escrow = opened.session, self._escrow
        if before is not None:
            before.abandon("its client resumed it without its memory")
            self._on_gone(session)
        if escrow is not None and not opened.channel.free:
            if before is not None:  # what its client did not pay is lost, as when nobody had come back
                escrow.given_up(session, unpaid=before.unpaid)
            if opened.generation:
                refusal = escrow.readmit(session, opened.channel.terms, opened.granted.window, stream.address)
                if refusal is not None:
                    return refusal
            else:
                self._rebuilt.add(session)
        self._left.remove(session)
        self._free.pop(session, None)
        self._records[session] = opened
        return None

    # ---- streams

    async def recovered(self, record: OpenSession, stream: ServedSession) -> str:
        """Note that a stream rebuilt a session. Returns why it may take no turn, or ""."""
        # Before the first await, as in ``began``.
        self._has(record, stream)
        if record.channel.free or self._escrow is None:
            return ""
        if record.generation:
            await self._escrow.taken_up(record.session, record.epoch, record.generation)
            return ""
        return await self._escrow.recovered(record.session, record.epoch, stream.address)

    def _has(self, record: OpenSession, stream: ServedSession) -> None:
        """A stream has a session from now on; the one before is replaced."""
        before = self._live.get(record.session)
        # First: the end of the stream before finds here that it was replaced, and leaves the session alone.
        self._live[record.session] = stream
        self._records[record.session] = record
        if before is not None and before is not stream:
            before.replaced()

    async def began(self, record: OpenSession, stream: ServedSession) -> None:
        """Note that a stream has the session. Where it was resumed, the stream before it is replaced."""
        known = record.session in self._records
        self._has(record, stream)
        if known and not record.channel.free and self._escrow is not None:
            await self._escrow.resumed(record.session)

    def probe(self, session: SessionId, stream: ServedSession) -> None:
        """A stream proved that a session is its own which another one has: ask that one whether it lives."""
        self._probes.setdefault(session, []).append(stream)
        live = self._live.get(session)
        if live is not None:
            live.ask_alive()

    def alive(self, session: SessionId) -> None:
        """The stream that has a session answered: it keeps it."""
        for stream in self._probes.pop(session, []):
            stream.in_use()

    async def leave(self, record: OpenSession, stream: ServedSession, wanted: int) -> int:
        """Keep a session whose client leaves, as long as it wants and this host keeps it; until when.

        Durable when it returns. A time that is past says that it is settled now, because too much is owed to
        wait for. Raises ``StorageError``: then it is as if the stream had been lost.
        """
        session, until = record.session, self._until(record, wanted)
        paid = not record.channel.free and self._escrow is not None
        if self._escrow is not None and paid:
            await self._escrow.note_left(session, until)
        if self._live.get(session) is not stream:  # another stream took it meanwhile
            if self._escrow is not None and paid:
                await self._escrow.resumed(session)
            return until
        del self._live[session], self._records[session]
        self._on_gone(session)
        if self._escrow is not None and paid:
            self._escrow.given_up(session, unpaid=record.unpaid)
        await self._remember(record, stream.origin.near, until)
        return until

    async def ended(self, session: SessionId, stream: ServedSession, *, lingers: bool) -> None:
        """Note that a stream is over. A stream that was replaced, or left its session, changes nothing."""
        for waiting in self._probes.values():
            if stream in waiting:
                waiting.remove(stream)
        if self._live.get(session) is not stream:
            # It ended before it was accepted, or it has another's session.
            if stream.record is None and session not in self._records and self._escrow is not None:
                await self._escrow.over(session, unpaid=0, lingers=False)
            return
        del self._live[session]
        record = self._records[session]
        if not lingers:
            # Before the first await: nobody may resume it while the journal is written.
            del self._records[session]
            record.abandon("ended")
        else:
            self._origins[session] = stream.origin.near
        if record.channel.free or self._escrow is None:
            return
        until = self._until(record, int(self._wall()) + record.granted.keep_s)
        if lingers and until > self._wall():
            # From now on a crash leaves it, too. What it owes is counted when it has lingered.
            await self._escrow.note_left(session, until)
        else:
            await self._escrow.over(session, unpaid=record.unpaid, lingers=lingers)

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
        if session not in self._live:
            await self._lingered(session)

    async def _lingered(self, session: SessionId) -> None:
        """Nobody came back in time: of a session that this host keeps nothing stays in memory."""
        record = self._records.get(session)
        origin = self._origins.pop(session, "")
        if record is None:
            return
        until = self._until(record, int(self._wall()) + record.granted.keep_s)
        self._give_up(session)
        if until > self._wall():
            record.abandon("its client did not come back in time")
            await self._remember(record, origin, until)

    def give_up_all(self) -> None:
        """Give up all sessions that linger or are left: the host stops, and settles them."""
        for session in [*(each for each in self._records if each not in self._live), *self._left]:
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

    def settled(self, session: SessionId) -> None:
        """A session was settled: nobody can resume it any more."""
        self._left.remove(session)

    def _give_up(self, session: SessionId) -> None:
        """Let no stream have the session again. A second call does nothing."""
        self._left.remove(session)
        self._free.pop(session, None)
        record = self._records.pop(session, None)
        if record is None:
            return
        record.abandon("given up")  # what its turns hold of this host is free
        self._on_gone(session)
        if not record.channel.free and self._escrow is not None:
            self._escrow.given_up(session, unpaid=record.unpaid)

    # ---- sessions that are left

    def _until(self, record: OpenSession, wanted: int) -> int:
        """Until when a session is kept; now, where it is not."""
        now, granted = int(self._wall()), record.granted
        if record.channel.free:
            return max(now, min(wanted, now + granted.keep_s))
        best = record.channel.best
        if best is not None and best.amount > granted.settle_above:
            return now
        return policy.left_until(record.channel.terms, wanted, granted.keep_s, now, self._margin_s)

    async def _remember(self, record: OpenSession, origin: str, until: int) -> None:
        """Note that a session is left. Of a free one this is all there is."""
        if until <= self._wall():
            return
        payer = record.channel.terms.payer
        if record.channel.free:
            payer = record.channel.terms.voucher_key
            self._free[record.session] = record.lapse(_nobody, lambda _epoch, _seq: None)
        await self._keep(record.session, payer, origin, until)

    async def _keep(self, session: SessionId, payer: bytes, origin: str, until: int) -> None:
        for over in self._left.take_expired(self._wall()):  # the settler knows of the paid ones by itself
            self._free.pop(over, None)
        victims = self._left.add(LeftSession(session=session, payer=payer, origin=origin, until=until))
        for victim in victims:
            if self._free.pop(victim, None) is None and self._escrow is not None:
                log.info("session.gives_way", session=victim.hex()[:16])
                await self._escrow.settle(victim)


def _nobody(_opened: OpenSession) -> Refuse | None:
    """In place of the role's last word, which is set for each stream that asks."""
    return Refuse(code="internal", detail="this session can't be resumed now")
