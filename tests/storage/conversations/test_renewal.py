"""Leases are renewed while their user comes by once a week; nothing else keeps what is not touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.storage.conversations.archive import Archive
from p2pnode.storage.conversations.schedule import RENEW_S, to_renew
from p2pnode.storage.store import DAY_S, GRACE_S, LEASE_S
from tests.storage.conversations.worlds import Machine, World, answered, asked, texts

WEEKS = 6
SAID = ["one", "1"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def begin(machine: Machine) -> bytes:
    """A conversation of some segments that is never touched again."""
    async with machine.on() as archive:
        conversation = await archive.new(title="Numbers")
        for piece in (asked(SAID[0]), answered(SAID[1])):
            await conversation.append(piece)
            assert (await archive.flush()).kept
        return conversation.sid


async def come_by(archive: Archive, week: int, *, renew: bool) -> None:
    """Another conversation is begun, as users do."""
    conversation = await archive.new(title=f"week {week}")
    await conversation.append(asked("something else"))
    assert (await archive.flush()).kept
    if renew:
        await archive.renew()


def pass_days(world: World, days: float) -> None:
    """With a collection each day."""
    until = world.now + days * DAY_S
    while world.now < until:
        world.now = min(until, world.now + DAY_S)
        for replica in world.replicas:
            replica.store.gc_step(100_000)


@pytest.mark.parametrize("renew", [True, False])
async def test_what_was_not_touched_for_six_weeks_is_there_only_if_its_leases_were_renewed(
    world: World, renew: bool, autojump_clock: MockClock
) -> None:
    assert WEEKS * RENEW_S > LEASE_S + GRACE_S + RENEW_S
    machine = world.machine()
    sid = await begin(machine)
    for week in range(WEEKS):
        pass_days(world, 7.1)
        async with machine.on() as archive:
            await come_by(archive, week, renew=renew)
    async with world.machine("fresh").on() as archive:
        assert len((await archive.recover()).conversations) == WEEKS + 1
        found = await archive.open(sid)
        # A pointer keeps the manifest it points at, and no more.
        assert texts(found.turns) == (SAID if renew else [])
        assert bool(found.losses) is not renew


async def test_a_machine_that_recovered_renews_what_it_never_opened(
    world: World, autojump_clock: MockClock
) -> None:
    sid = await begin(world.machine("stolen"))
    machine = world.machine("bought")
    async with machine.on() as archive:
        await archive.recover()
    for week in range(WEEKS):
        pass_days(world, 7.1)
        async with machine.on() as archive:
            await come_by(archive, week, renew=True)
    async with world.machine("fresh").on() as archive:
        await archive.recover()
        assert texts((await archive.open(sid)).turns) == SAID


async def lease_days(world: World, archive: Archive, sid: bytes) -> float:
    """How long the last replica keeps all of a conversation from now on."""
    head = (await archive.open(sid, ask=False)).log.head
    assert head is not None
    needed = [head.link.hash, *(ref.hash for ref in head.manifest.segments)]
    held = world.replicas[-1].store.blobs
    return min(until - world.now for digest in needed for until in held[digest].leases.values()) / DAY_S


async def renewals_due(machine: Machine) -> list[bytes]:
    """Logs that the next renewal would begin with."""
    async with machine.on():
        assert machine.state is not None
        return to_renew(await machine.state.renewals(), machine.world.now)


async def test_leases_are_renewed_after_a_week_and_not_before_and_no_blob_travels(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    sid = await begin(machine)
    replica = world.replicas[-1]
    reads, puts = replica.reads, replica.puts
    async with machine.on() as archive:
        for days, left in ((6.9, 24.1), (0.2, 31), (6.9, 24.1), (0.2, 31)):
            world.now += days * DAY_S
            await archive.renew()
            assert await lease_days(world, archive, sid) == pytest.approx(left)
    assert (replica.reads, replica.puts) == (reads, puts)


async def test_a_replica_that_lost_blobs_gets_them_again_with_the_renewal(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    await begin(machine)
    lost = list(world.replicas[1].blobs())[:2]
    world.replicas[1].lose(*lost)
    world.now += 8 * DAY_S
    async with machine.on() as archive:
        await archive.renew()
    assert set(lost) <= set(world.replicas[1].blobs())


async def test_without_a_quorum_it_stays_due(world: World, autojump_clock: MockClock) -> None:
    machine = world.machine()
    sid = await begin(machine)
    world.replicas[0].down = world.replicas[1].down = True
    async with machine.on() as archive:
        # The replica that is up renews each time, until a quorum did: then it is left alone for a week.
        for days, down, left in ((8, True, 31), (1, False, 31), (1, False, 30)):
            world.now += days * DAY_S
            world.replicas[0].down = down
            await archive.renew()
            assert await lease_days(world, archive, sid) == left


async def test_it_gives_way_to_what_is_said_and_to_who_opens_one_and_goes_on_afterwards(
    world: World, autojump_clock: MockClock
) -> None:
    sid = await begin(world.machine("stolen"))
    machine = world.machine("bought")
    async with machine.on() as archive, trio.open_nursery() as nursery:
        await archive.recover()
        for replica in world.replicas:
            replica.hangs = True
        nursery.start_soon(archive.renew)
        await trio.sleep(0.1)  # it fetches
        for replica in world.replicas:
            replica.hangs = False
        with trio.fail_after(0.1):
            assert texts((await archive.open(sid)).turns) == SAID
    world.now += 8 * DAY_S
    async with machine.on() as archive, trio.open_nursery() as nursery:
        conversation = await archive.open(sid)
        for replica in world.replicas:
            replica.hangs = True
        nursery.start_soon(archive.renew)
        await trio.sleep(0.1)  # it waits for replicas
        assert sid in await renewals_due(machine)
        for replica in world.replicas:
            replica.hangs = False
        await conversation.append(asked("two"))
        with trio.fail_after(0.1):
            assert (await archive.flush()).kept
    assert await renewals_due(machine) == []
