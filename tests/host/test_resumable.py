"""Sessions whose streams are lost: how long they wait, and that waiting costs the same however often."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock

from p2pnode.host.resumable import ResumableSessions
from p2pnode.ids import SessionId
from p2pnode.limits import DEFAULT_LIMITS

SESSION = SessionId(bytes(32))
LINGER_S = 300


class Escrow:
    """Writes down what becomes of a session."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.given_up_at: list[float] = []

    async def resumed(self, _session: SessionId) -> None:
        self.told.append("resumed")

    async def over(self, _session: SessionId, *, unpaid: int, lingers: bool) -> None:
        assert unpaid == 0
        self.told.append("lingers" if lingers else "over")

    def given_up(self, _session: SessionId, *, unpaid: int) -> None:
        assert unpaid == 0
        self.given_up_at.append(trio.current_time())


def record() -> Any:
    """An open session that owes nothing."""
    channel = SimpleNamespace(best=None, terms=SimpleNamespace(session_fee=0, expiry=0), cost=0, free=False)
    granted = SimpleNamespace(keep_s=0, settle_above=0)
    return SimpleNamespace(
        session=SESSION, channel=channel, epoch=1, granted=granted, unpaid=0, abandon=lambda _reason: None
    )


def stream() -> Any:
    """A stream, which is told when another one has its session."""
    told: list[str] = []
    return SimpleNamespace(
        told=told,
        replaced=lambda: told.append("replaced"),
        drain=lambda: told.append("drain"),
        end=told.append,
        origin=SimpleNamespace(near="here"),
        record=None,
    )


def resumable(escrow: Any) -> ResumableSessions:
    return ResumableSessions(
        escrow,
        epoch=1,
        grants=lambda _record: None,
        wall=lambda: 0.0,
        limits=replace(DEFAULT_LIMITS, linger_s=LINGER_S),
        on_gone=lambda _session: None,
    )


async def test_a_session_that_is_lost_again_and_again_waits_from_the_last_time_and_in_one_task(
    autojump_clock: MockClock,
) -> None:
    escrow, first = Escrow(), stream()
    sessions = resumable(escrow)
    await sessions.began(record(), first)
    await sessions.ended(SESSION, first, lingers=True)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(sessions.wait_given_up, SESSION)
            await trio.sleep(1)
        assert len(nursery.child_tasks) == 1
        await trio.sleep(250)
        assert escrow.given_up_at == []
    assert [round(at - began) for at in escrow.given_up_at] == [99 + LINGER_S]
    sessions.give_up_all()  # nothing is left
    assert len(escrow.given_up_at) == 1


async def test_one_that_was_resumed_meanwhile_is_not_given_up(autojump_clock: MockClock) -> None:
    escrow, first, second = Escrow(), stream(), stream()
    sessions, held = resumable(escrow), record()
    await sessions.began(held, first)
    await sessions.ended(SESSION, first, lingers=True)
    await sessions.began(held, second)
    await sessions.wait_given_up(SESSION)
    assert (escrow.given_up_at, escrow.told) == ([], ["lingers", "resumed"])
    await sessions.ended(SESSION, second, lingers=True)  # lost once more
    await sessions.wait_given_up(SESSION)
    assert len(escrow.given_up_at) == 1


async def test_a_stream_that_resumes_replaces_the_one_before_whose_end_changes_nothing() -> None:
    escrow, first, second = Escrow(), stream(), stream()
    sessions, held = resumable(escrow), record()
    await sessions.began(held, first)
    await sessions.began(held, second)
    assert (first.told, second.told) == (["replaced"], [])
    await sessions.ended(SESSION, first, lingers=False)
    assert escrow.told == ["resumed"]
    assert sessions.end(SESSION, "the escrow ends", now=True)
    assert second.told == ["the escrow ends"]


async def test_a_session_without_a_stream_ends_at_once_and_one_that_does_not_linger_is_over() -> None:
    escrow, first = Escrow(), stream()
    sessions, held = resumable(escrow), record()
    await sessions.began(held, first)
    await sessions.ended(SESSION, first, lingers=True)
    assert not sessions.end(SESSION, "the escrow ends", now=False)
    assert len(escrow.given_up_at) == 1
    await sessions.began(held, first)
    await sessions.ended(SESSION, first, lingers=False)
    assert escrow.told == ["lingers", "over"]
    assert not sessions.end(SESSION, "the escrow ends", now=False)
    assert len(escrow.given_up_at) == 1
