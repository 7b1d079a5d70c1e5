"""A user who comes by once a week keeps what he does not touch: through clients, nodes and collections."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.net.virtual_time import wall_clock
from p2pnode.storage.conversations.archive import Archive
from p2pnode.storage.conversations.records import Piece
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.store import DAY_S
from tests.client.machines import machine
from tests.node.world import Member, World, world
from tests.storage.blob_world import serve_store

DAYS = 40
"""Of use: longer than a lease and the grace after it."""


class Calendar:
    """Days pass at once, with a collection each."""

    def __init__(self, stores: list[MemoryStore]) -> None:
        self.days, self.stores = 0, stores

    def wall(self) -> float:
        return wall_clock() + self.days * DAY_S

    def pass_days(self, days: int) -> None:
        for _ in range(days):
            self.days += 1
            for store in self.stores:
                store.gc_step(1000)


async def say(client: Client, text: str) -> bytes:
    """In a conversation of its own."""
    replicator = await client.conversations.replicator()
    await client.conversations.look_for_replicas()
    conversation = await replicator.archive.new(title=text)
    await conversation.append(Piece(role="user", text=text))
    await conversation.append(Piece(role="assistant", text="so it is", finish="stop"))
    return conversation.sid


async def first_after_weeks_of_use(w: World, folder: Path) -> tuple[list[str], set[str]]:
    """The first week's conversation on a machine that never saw it: its turns, and what is lost of it."""
    nodes: list[Member] = [await w.add() for _ in range(2)]
    calendar = Calendar([])
    calendar.stores += [serve_store(each, MemoryStore(calendar.wall)) for each in nodes]
    week = 0
    sid = b""
    while calendar.days <= DAYS:
        async with machine(w, folder / "a", stores=nodes, ip=f"10.0.8.{week}", wall=calendar.wall) as client:
            said = await say(client, f"week {week}")
        sid = sid or said
        week += 1
        calendar.pass_days(7)

    async with machine(w, folder / "b", stores=nodes, ip="10.0.7.1", wall=calendar.wall) as client:
        recovery = await client.conversations.recover()
        assert len(recovery.conversations) == week
        found = await (await client.conversations.replicator()).archive.open(sid)
        return [turn.text for turn in found.turns], {loss.kind for loss in found.losses}


async def test_after_forty_days_of_weekly_use_the_replicas_hold_what_was_not_touched(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        assert await first_after_weeks_of_use(w, tmp_path) == (["week 0", "so it is"], set())


async def test_without_renewal_they_would_not(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def renew(_archive: Archive) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Archive, "renew", renew)
    async with world() as w:
        assert await first_after_weeks_of_use(w, tmp_path) == ([], {"segment"})
