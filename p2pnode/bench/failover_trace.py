"""What came for which place of an answer, noted below the answer, and what that says of it.

A place is the number of an output token in the whole answer: the ids that a turn began with, and the
token's number in the turn. ``judge`` compares no text and needs no run without a failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from p2pnode.client.session import Session
from p2pnode.ids import SessionId
from p2pnode.protocols.inference.commands import Ask, ClientEmission, Delivered, Quoted


@dataclass(frozen=True, slots=True)
class Asked:
    """A turn began, with these ids of the answer."""

    at: float
    session: SessionId
    prefix: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """The host quoted its input."""

    at: float
    session: SessionId
    tokens_in: int


@dataclass(frozen=True, slots=True)
class Came:
    """Output; ``seq`` counts over the session."""

    at: float
    session: SessionId
    seq: int
    ids: tuple[int, ...]


Noted: TypeAlias = Asked | Counted | Came


@dataclass(frozen=True, slots=True)
class Verdict:
    """Tokens: that came for one place more than once, for none, and billed as output by several sessions."""

    duplicated: int
    missing: int
    billed_twice: int


@dataclass(slots=True)
class Trace:
    """Of one answer, in order."""

    noted: list[Noted] = field(default_factory=list)

    def turns(self) -> list[Asked]:
        """Those asked."""
        return [each for each in self.noted if isinstance(each, Asked)]

    def places(self) -> Iterator[tuple[SessionId, int, int]]:
        """(session, place, id) of each token that came."""
        came: Counter[SessionId] = Counter()
        base: dict[SessionId, int] = {}
        for each in self.noted:
            if isinstance(each, Asked):
                base[each.session] = len(each.prefix) - came[each.session]
            elif isinstance(each, Came):
                for offset, token in enumerate(each.ids):
                    yield each.session, base[each.session] + each.seq + offset, token
                came[each.session] += len(each.ids)

    def judge(self, ids: Sequence[int], signed: Mapping[SessionId, int]) -> Verdict:
        """``ids`` are the answer's; ``signed`` says how many output tokens each session's voucher pays."""
        times: Counter[int] = Counter()
        wrong: set[int] = set()
        paid: Counter[int] = Counter()
        left = dict(signed)
        for session, place, token in self.places():
            times[place] += 1
            if not (0 <= place < len(ids) and ids[place] == token):
                wrong.add(place)
            if left.get(session, 0) > 0:  # a voucher pays for a session's tokens in their order
                left[session] -= 1
                paid[place] += 1
        for turn in self.turns():
            wrong |= {place for place, token in enumerate(turn.prefix) if ids[place : place + 1] != [token]}
        absent = {place for place in range(len(ids)) if not times[place]}
        return Verdict(
            duplicated=sum(count - 1 for count in times.values()),
            missing=len(absent | wrong),
            billed_twice=sum(count - 1 for count in paid.values() if count > 1),
        )


@contextmanager
def tapped() -> Iterator[Trace]:
    """Note what all sessions of this process ask and receive from here on."""
    trace = Trace()
    ask, receive = Session.ask, Session.receive

    async def noting_ask(session: Session, asked: Ask) -> None:
        if session.accept is not None:
            trace.noted.append(Asked(trio.current_time(), session.accept.session, asked.body.prefix))
        await ask(session, asked)

    async def noting_receive(session: Session) -> ClientEmission:
        value = await receive(session)
        if session.accept is not None:
            match value:
                case Delivered(seq=seq, ids=ids):
                    trace.noted.append(Came(trio.current_time(), session.accept.session, seq, ids))
                case Quoted(quote=quote):
                    noted = Counted(trio.current_time(), session.accept.session, quote.tokens_in)
                    trace.noted.append(noted)
                case _:
                    pass
        return value

    setattr(Session, "ask", noting_ask)  # noqa: B010 - a method, replaced on purpose
    setattr(Session, "receive", noting_receive)  # noqa: B010
    try:
        yield trace
    finally:
        setattr(Session, "ask", ask)  # noqa: B010
        setattr(Session, "receive", receive)  # noqa: B010
