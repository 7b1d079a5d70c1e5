"""What a turn costs, whatever the conversation's length; and the bounds of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from p2pnode.storage.conversations import sealed_log as log
from p2pnode.storage.conversations.sealed_log import ConversationFullError
from p2pnode.storage.sealing import SEALED_MAX
from tests.storage.conversations.worlds import (
    World,
    answered,
    asked,
    renewed_after_a_week,
    says,
    session,
    texts,
)

BLOCK = 4096
TEXT = "A line of an answer, as long as they are. " * 12


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_bytes_per_turn_do_not_grow_over_two_thousand_turns(
    world: World, autojump_clock: MockClock
) -> None:
    world.replicas.clear()
    machine = world.machine()
    written: list[int] = []
    async with machine.on() as archive:
        conversation = await archive.new()
        for number in range(2000):
            before = machine.own.written
            await conversation.append(asked(f"{number}?"), answered(f"{number}: {TEXT}"))
            written.append(machine.own.written - before)
        head = conversation.log.head
        assert head is not None
        assert len(machine.own.blobs()[head.link.hash]) == BLOCK
        assert len(head.manifest.segments) < 3 * 16
    windows = [sum(written[at : at + 256]) / 256 for at in range(256, 1792, 256)]
    assert max(windows) < 1.02 * min(windows)
    assert windows[0] < 4 * BLOCK
    assert sorted(written)[1000] == 2 * BLOCK  # most turns write one segment and one manifest


async def test_two_hundred_turns_come_back_with_few_fetches(world: World, autojump_clock: MockClock) -> None:
    async with world.machine().on() as archive:
        conversation = await archive.new()
        for number in range(200):
            await conversation.append(asked(f"{number}?"), answered(f"{number}: {TEXT}"))
        assert (await archive.flush()).kept
    del world.replicas[1:]
    async with world.machine("new").on() as archive:
        await archive.recover()
        before = world.replicas[0].reads
        again = await archive.open(conversation.sid)
        assert len(again.turns) == 400
        assert world.replicas[0].reads - before < 32
    assert texts(again.turns)[398:] == ["199?", f"199: {TEXT}"]


async def test_what_no_pointer_needs_any_more_is_let_go_one_fold_later(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await archive.new()
        for number in range(160):
            await conversation.append(asked(str(number)))
            assert (await archive.flush()).kept
            world.now += 1
        world.now += 2 * 86_400
        for replica in [machine.own, *world.replicas]:
            assert len(replica.blobs()) > 160
            replica.store.gc_step(10_000)
            assert len(replica.blobs()) < 80
        await renewed_after_a_week(world, archive)
        sent = (await archive.status()).last.values()
        assert not any(each.written.mended for each in sent if each.written)


async def test_a_machine_without_replicas_lets_go_too(world: World, autojump_clock: MockClock) -> None:
    world.replicas.clear()
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await archive.new()
        for number in range(160):
            await conversation.append(asked(str(number)))
            status = await archive.flush()
            assert not status.kept
            assert "1 of" in status.counted.weak
        world.now += 2 * 86_400
        machine.own.store.gc_step(10_000)
        assert len(machine.own.blobs()) < 80
    async with machine.on() as archive:
        assert len((await archive.open(conversation.sid)).turns) == 160


async def test_an_acknowledged_pointer_keeps_its_blobs_while_newer_ones_wait(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await archive.new()
        for number in range(20):
            await conversation.append(asked(str(number)))
        assert (await archive.flush()).kept
        for replica in world.replicas:
            replica.down = True
        for number in range(20, 100):
            await conversation.append(asked(str(number)))
            await archive.flush()
    for replica in world.replicas:
        replica.down = False
    world.now += 2 * 86_400
    for replica in world.replicas:
        replica.store.gc_step(10_000)
    async with world.machine("new").on() as archive:
        again = await archive.open(conversation.sid)
        assert texts(again.turns) == [str(number) for number in range(20)]
        assert not again.losses


async def test_several_commits_that_wait_become_one_pointer(world: World, autojump_clock: MockClock) -> None:
    async with world.machine().on() as archive:
        conversation = await archive.new()
        for number in range(10):
            await conversation.append(asked(str(number)))
        await archive.flush()
        keys = conversation.log.keys
        pointers = [at for kind, at in world.replicas[0].order if kind == "entry"]
        assert len(pointers) == 2  # the index's, and one
        entry = world.replicas[0].entry(keys.entry_key)
        assert entry is not None
        assert entry.revision == 11


async def test_a_checkpoint_in_the_middle_of_an_answer_writes_only_what_is_new(
    world: World, autojump_clock: MockClock
) -> None:
    world.replicas.clear()
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await archive.new()
        await conversation.append(says("assistant", "x" * 200_000))
        before = machine.own.written
        await conversation.append(says("assistant", "y" * 100))
        assert machine.own.written - before == 2 * BLOCK
        assert conversation.turns[0].text == "x" * 200_000 + "y" * 100


async def test_noting_a_voucher_costs_the_same_with_hundreds_of_sessions(
    world: World, autojump_clock: MockClock
) -> None:
    world.replicas.clear()
    machine = world.machine()
    async with machine.on() as archive:
        for number in range(1, 401):
            await archive.save_session(session(number))
        before = machine.own.written
        for amount in range(8):
            await archive.save_session(session(1, amount=amount))
        assert machine.own.written - before <= 8 * 2 * BLOCK + SEALED_MAX
        costs = []
        for amount in range(8, 20):
            before = machine.own.written
            await archive.save_session(session(1, amount=amount))
            costs.append(machine.own.written - before)
        assert sorted(costs)[6] == 2 * BLOCK
    async with machine.on() as archive:
        sessions = await archive.sessions()
        assert len(sessions) == 400
        (first,) = [each for each in sessions if each.session[-2:] == b"\x00\x01"]
        assert first.voucher is not None
        assert first.voucher.amount == 19


async def test_sessions_long_expired_leave_the_index_when_it_is_joined(
    world: World, autojump_clock: MockClock
) -> None:
    world.replicas.clear()
    machine = world.machine()
    async with machine.on() as archive:
        await archive.save_session(session(1, expiry=int(world.now) + 100))
        await archive.save_session(session(2, expiry=int(world.now) + 10**8))
        world.now += 60 * 86_400
        for amount in range(20):
            await archive.save_session(session(2, amount=amount, expiry=int(world.now) + 10**8))
    async with machine.on() as archive:
        assert [each.session[-1] for each in await archive.sessions()] == [2]


async def test_a_large_conversation_is_kept_in_segments_below_the_largest_object(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await archive.new()
        for number in range(24):
            await conversation.append(asked(f"{number}" + "z" * 400_000))
        await conversation.append(asked("é" * 3_000_000))
        assert (await archive.flush()).kept
    assert max(len(data) for data in world.replicas[0].blobs().values()) <= SEALED_MAX
    async with world.machine("new").on() as archive:
        again = await archive.open(conversation.sid)
        assert [len(turn.text) for turn in again.turns][-2:] == [400_002, 3_000_000]
        assert len(again.turns) == 25


async def test_a_full_conversation_says_what_to_do_and_keeps_what_it_has(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SEGMENTS_MAX", 3)
    async with world.machine().on() as archive:
        conversation = await archive.new()
        for number in range(3):
            await conversation.append(asked(str(number)))
        with pytest.raises(ConversationFullError, match="begin a new one"):
            await conversation.append(asked("3"))
        assert texts(conversation.turns) == ["0", "1", "2"]


async def test_our_own_disk_keeps_it_for_years_and_replicas_while_leases_are_renewed(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    renewed, lapsed = world.replicas[:2]
    async with machine.on() as archive:
        conversation = await archive.new()
        await conversation.append(asked("one"))
        await conversation.append(asked("two"))
        await archive.flush()
        for _ in range(12):
            world.now += 13 * 86_400
            lapsed.down = True
            await renewed_after_a_week(world, archive)
            for replica in [machine.own, renewed, lapsed]:
                replica.store.gc_step(1000)
    lapsed.down = False
    assert len(lapsed.blobs()) == 2  # what entries point at
    world.replicas[:] = [renewed]
    async with world.machine("new").on() as archive:
        assert texts((await archive.open(conversation.sid)).turns) == ["one", "two"]
    world.replicas.clear()
    world.now += 20 * 365 * 86_400
    machine.own.store.gc_step(1000)
    async with machine.on() as archive:
        assert texts((await archive.open(conversation.sid)).turns) == ["one", "two"]
