"""Sessions whose streams are lost: how long they wait, and that waiting costs the same however often."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from p2pnode.host import resumable as kept
from p2pnode.host.resumable import ResumableSessions
from p2pnode.ids import SessionId

SESSION = SessionId(bytes(32))


class Books:
    """Only told what became of it."""

    def __init__(self) -> None:
        self.given_up_at: list[float] = []

    def given_up(self, _session: SessionId, *, unpaid: int) -> None:
        assert unpaid == 0
        self.given_up_at.append(trio.current_time())


async def test_a_session_that_is_lost_again_and_again_waits_from_the_last_time_and_in_one_task(
    autojump_clock: MockClock, monkeypatch: Any
) -> None:
    monkeypatch.setattr(kept, "unpaid", lambda _record: 0)
    books: Any = Books()
    sessions = ResumableSessions(books, epoch=1, grants=lambda _record: None, wall=lambda: 0.0, linger_s=300)
    record: Any = object()
    sessions._records[SESSION] = record
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(sessions.wait_given_up, SESSION)
            await trio.sleep(1)
        assert len(nursery.child_tasks) == 1
        await trio.sleep(250)
        assert books.given_up_at == []
    assert [round(at - began) for at in books.given_up_at] == [99 + 300]
    assert sessions._records == {}
    assert sessions._waits == {}


async def test_one_that_was_resumed_meanwhile_is_not_given_up(
    autojump_clock: MockClock, monkeypatch: Any
) -> None:
    monkeypatch.setattr(kept, "unpaid", lambda _record: 0)
    books: Any = Books()
    sessions = ResumableSessions(books, epoch=1, grants=lambda _record: None, wall=lambda: 0.0, linger_s=300)
    anything: Any = object()
    sessions._records[SESSION] = sessions._live[SESSION] = anything
    await sessions.wait_given_up(SESSION)
    assert books.given_up_at == []
    del sessions._live[SESSION]  # lost once more
    await sessions.wait_given_up(SESSION)
    assert len(books.given_up_at) == 1
