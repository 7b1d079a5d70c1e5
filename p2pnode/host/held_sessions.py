"""The sessions of a host that outlive a stream: which stream has which, and which are left until when. Pure.

When a stream is lost, its session lingers with all that is known of it; whoever proves its key resumes it on
another stream. A session that this host keeps is then *left*, and one that its client leaves is so at once: a
paid one is a row of the journal, a free one an entry here. It is rebuilt by the same proof, once a
generation, also after a restart. What an earlier start served and did not keep is rebuilt once in this start.

A free session with a resume key is kept as a paid one is, but for the journal. Which of the sessions that are
left gives way is ``left_sessions.py``'s. Nothing is written here, and nothing waits: ``resumable.py`` and the
simulation's hosts do what is decided. Times are epoch seconds, amounts token units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from p2pnode.host.left_sessions import LeftSession, LeftSessions
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.payments import settlement_policy as policy
from p2pnode.payments.journal.records import HostedSession
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.messages import Receipt, Refuse, Resume, SessionTerms
from p2pnode.protocols.inference.open_session import LapsedSession, OpenSession
from p2pnode.shares import Origin


class HostedJournal(Protocol):
    """What is read of a host's journal. All of it may raise ``StorageError``."""

    def hosted_one(self, session: SessionId, /) -> HostedSession | None:
        """A paid session."""

    def last_issued(self, session: SessionId, /) -> Receipt | None:
        """The newest receipt of a session."""

    def issued(self, session: SessionId, epoch: int, seq: int, /) -> Receipt | None:
        """The receipt of a place."""


class SessionBooks(Protocol):
    """What is owed in sessions, and the journal that tells of them."""

    @property
    def journal(self) -> HostedJournal:
        """Of this host."""

    def given_up(self, session: SessionId, *, unpaid: int) -> None:
        """What a session owes is lost."""

    def readmit(
        self, session: SessionId, terms: SessionTerms, window: int, address: str | None
    ) -> Refuse | None:
        """Let a session that was left owe its window again. Returns why not."""


class HeldStream(Protocol):
    """One client's stream, as far as sessions are concerned."""

    address: str | None
    origin: Origin

    @property
    def record(self) -> OpenSession | None:
        """The session that it has; None before it is accepted."""

    def replaced(self) -> Any:
        """Another stream has its session."""

    def ask_alive(self) -> Any:
        """Somebody claims its session: find out whether its client lives."""

    def in_use(self) -> Any:
        """The session that it wants is used by another one that lives."""


S = TypeVar("S", bound=HeldStream)


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """What follows from the end of a stream for a paid session: it is left until ``left_until``, or it is
    over with so much ``unpaid``."""

    left_until: int | None = None
    unpaid: int = 0
    lingers: bool = False


class HeldSessions(Generic[S]):
    """By session id, the record that outlives streams and the stream that has the session now.

    ``grants`` returns what a session from the journal is granted, or None if this host can't sign for it.
    ``on_gone`` is told of each session that no stream has any more, and none can have as it was. Without
    ``books`` all sessions are free.
    """

    def __init__(
        self,
        books: SessionBooks | None,
        *,
        epoch: int,
        grants: Callable[[HostedSession], HostTerms | None],
        wall: Callable[[], float],
        limits: Limits,
        on_gone: Callable[[SessionId], None] = lambda _session: None,
    ) -> None:
        self._books, self._wall, self._on_gone = books, wall, on_gone
        self._margin_s = limits.expiry_margin_s
        self._epoch, self._grants = epoch, grants
        self._records: dict[SessionId, OpenSession] = {}
        self._rebuilt: set[SessionId] = set()
        """Sessions of earlier starts that were not left. Not forgotten while this start lasts: such a session
        is rebuilt once within an epoch, so that no place of it ever has two receipts."""
        self._live: dict[SessionId, S] = {}
        self._origins: dict[SessionId, str] = {}
        """Where the clients of sessions that linger came from."""
        self._left = LeftSessions()
        self._free: dict[SessionId, LapsedSession] = {}
        """The free ones of those that are left."""
        self._probes: dict[SessionId, list[S]] = {}
        """Streams that want a session which another one has, and wait whether that one answers."""

    @property
    def left(self) -> int:
        """How many sessions are left with this host."""
        return len(self._left)

    def record_of(self, session: SessionId) -> OpenSession | None:
        """The session that a stream has, or that lingers."""
        return self._records.get(session)

    def live_of(self, session: SessionId) -> S | None:
        """The stream that has a session."""
        return self._live.get(session)

    # ---- what a client asks for

    def find(self, message: Resume, stream: S) -> OpenSession | LapsedSession | Refuse:
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
        self, message: Resume, record: OpenSession | None, stream: S
    ) -> OpenSession | LapsedSession | None:
        # The journal has the last word: the chain may have ended a session whose record is still here.
        journalled = self._books.journal.hosted_one(message.session) if self._books is not None else None
        if journalled is None or journalled.state not in ("open", "over"):
            return None
        if journalled.settle_at is not None and journalled.settle_at <= self._wall():
            return None
        if record is not None:
            return self._lapsed_here(message, record, stream)
        return self._lapsed_in_journal(journalled, stream)

    def _lapsed_here(self, message: Resume, record: OpenSession, stream: S) -> OpenSession | LapsedSession:
        """A session that is in memory. One that no stream has goes on as if it had been left, for a client
        that knows nothing of what came since."""
        knows = message.received or message.turn
        if record.holder is not None or not record.granted.keep_s or knows:
            return record
        return record.lapse(lambda opened: self._take(opened, record, stream), self._issued(record.session))

    def _lapsed_in_journal(self, journalled: HostedSession, stream: S) -> LapsedSession | None:
        """A session that was left or is of an earlier start; None for another one of this start."""
        session, books = journalled.session, self._books
        left = journalled.left_until is not None
        granted = self._grants(journalled)
        again = session in self._rebuilt or journalled.epoch >= self._epoch
        if books is None or granted is None or (again and not left):
            return None
        return LapsedSession(
            session=session,
            model=journalled.terms.model,
            terms=journalled.terms,
            salt=journalled.salt,
            granted=granted,
            voucher=journalled.voucher,
            receipt=books.journal.last_issued(session) if left else None,
            generation=journalled.generation,
            left=left,
            issued=self._issued(session),
            take=lambda opened: self._take(opened, None, stream),
        )

    def _issued(self, session: SessionId) -> Callable[[int, int], Receipt | None]:
        books = self._books
        return lambda epoch, seq: None if books is None else books.journal.issued(session, epoch, seq)

    def _take(self, opened: OpenSession, before: OpenSession | None, stream: S) -> Refuse | None:
        """Give a session that no stream has to one that proved itself; why not, where too much is unpaid.

        Whoever asks for the session from now on finds this record, and does not rebuild it a second time.
        """
        session, books = opened.session, self._books
        if before is not None:
            before.abandon("its client resumed it without its memory")
            self._on_gone(session)
        if books is not None and not opened.channel.free:
            if before is not None:  # what its client did not pay is lost, as when nobody had come back
                books.given_up(session, unpaid=before.unpaid)
            if opened.generation:
                refusal = books.readmit(session, opened.channel.terms, opened.granted.window, stream.address)
                if refusal is not None:
                    return refusal
            else:
                self._rebuilt.add(session)
        self._left.remove(session)
        self._free.pop(session, None)
        self._records[session] = opened
        return None

    # ---- streams

    def has(self, record: OpenSession, stream: S) -> bool:
        """A stream has a session from now on; the one before is replaced. Returns whether the session was
        known, so that it was resumed."""
        known = record.session in self._records
        before = self._live.get(record.session)
        # First: the end of the stream before finds here that it was replaced, and leaves the session alone.
        self._live[record.session] = stream
        self._records[record.session] = record
        if before is not None and before is not stream:
            before.replaced()
        return known

    def probe(self, session: SessionId, stream: S) -> None:
        """A stream proved that a session is its own which another one has: ask that one whether it lives."""
        self._probes.setdefault(session, []).append(stream)
        live = self._live.get(session)
        if live is not None:
            live.ask_alive()

    def alive(self, session: SessionId) -> None:
        """The stream that has a session answered: it keeps it."""
        for stream in self._probes.pop(session, []):
            stream.in_use()

    def leave(self, record: OpenSession, stream: S) -> bool:
        """A client has left its session, which is written down. Returns False where another stream took it
        meanwhile: then it goes on."""
        session = record.session
        if self._live.get(session) is not stream:
            return False
        del self._live[session], self._records[session]
        self._on_gone(session)
        if self._books is not None and not record.channel.free:
            self._books.given_up(session, unpaid=record.unpaid)
        return True

    def ended(self, session: SessionId, stream: S, *, lingers: bool) -> StreamEnd | None:
        """A stream is over. A stream that was replaced, or left its session, changes nothing: None.

        From now on nobody resumes a session that does not linger.
        """
        for waiting in self._probes.values():
            if stream in waiting:
                waiting.remove(stream)
        if self._live.get(session) is not stream:
            # It ended before it was accepted, or it has another's session.
            return StreamEnd() if stream.record is None and session not in self._records else None
        del self._live[session]
        record = self._records[session]
        if not lingers:
            del self._records[session]
            record.abandon("ended")
        else:
            self._origins[session] = stream.origin.near
        if record.channel.free or self._books is None:
            return None
        until = self.until(record, int(self._wall()) + record.granted.keep_s)
        if lingers and until > self._wall():
            # From now on a crash leaves it, too. What it owes is counted when it has lingered.
            return StreamEnd(left_until=until)
        return StreamEnd(unpaid=record.unpaid, lingers=lingers)

    def lingered(self, session: SessionId) -> list[SessionId]:
        """The linger has passed: unless a stream has it, the session is left or given up, and nothing of it
        stays in memory. Returns the paid ones that give way to it."""
        if session in self._live:
            return []
        record = self._records.get(session)
        origin = self._origins.pop(session, "")
        if record is None:
            return []
        until = self.until(record, int(self._wall()) + record.granted.keep_s)
        self.give_up(session)
        if until <= self._wall():
            return []
        record.abandon("its client did not come back in time")
        return self.remember(record, origin, until)

    def give_up_all(self) -> None:
        """Give up all sessions that linger or are left: the host stops, and settles them."""
        for session in [*(each for each in self._records if each not in self._live), *self._left]:
            self.give_up(session)

    def settled(self, session: SessionId) -> None:
        """A session was settled: nobody can resume it any more."""
        self._left.remove(session)

    def give_up(self, session: SessionId) -> None:
        """Let no stream have the session again. A second call does nothing."""
        self._left.remove(session)
        self._free.pop(session, None)
        record = self._records.pop(session, None)
        if record is None:
            return
        record.abandon("given up")  # what its turns hold of this host is free
        self._on_gone(session)
        if not record.channel.free and self._books is not None:
            self._books.given_up(session, unpaid=record.unpaid)

    # ---- sessions that are left

    def until(self, record: OpenSession, wanted: int) -> int:
        """Until when a session is kept; now, where it is not."""
        now, granted = int(self._wall()), record.granted
        if record.channel.free:
            return max(now, min(wanted, now + granted.keep_s))
        best = record.channel.best
        if best is not None and best.amount > granted.settle_above:
            return now
        return policy.left_until(record.channel.terms, wanted, granted.keep_s, now, self._margin_s)

    def remember(self, record: OpenSession, origin: str, until: int) -> list[SessionId]:
        """Note that a session is left. Of a free one this is all there is. Returns the paid ones that give
        way: they are to be settled."""
        if until <= self._wall():
            return []
        payer = record.channel.terms.payer
        if record.channel.free:
            payer = record.channel.terms.voucher_key
            self._free[record.session] = record.lapse(_nobody, lambda _epoch, _seq: None)
        return self.keep(record.session, payer, origin, until)

    def keep(self, session: SessionId, payer: bytes, origin: str, until: int) -> list[SessionId]:
        """The same of one that is in the journal."""
        for over in self._left.take_expired(self._wall()):  # the settler knows of the paid ones by itself
            self._free.pop(over, None)
        victims = self._left.add(LeftSession(session=session, payer=payer, origin=origin, until=until))
        return [victim for victim in victims if self._free.pop(victim, None) is None]


def _nobody(_opened: OpenSession) -> Refuse | None:
    """In place of the role's last word, which is set for each stream that asks."""
    return Refuse(code="internal", detail="this session can't be resumed now")
