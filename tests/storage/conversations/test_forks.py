"""Two machines of one user that write at once: one line goes on, the other is a branch, nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from p2pnode.storage.conversations.archive import Archive
from p2pnode.storage.conversations.records import BRANCHES_MAX
from p2pnode.storage.conversations.replication_state import MovedError
from p2pnode.storage.conversations.stored_conversation import StoredConversation
from tests.storage.conversations.worlds import World, answered, asked, says, texts


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def all_texts(conversation: StoredConversation) -> set[str]:
    """Of the main line and of all branches, and their branches."""
    found = set(texts(conversation.turns))
    for link in conversation.branches:
        turns, losses = await conversation.branch(link)
        assert not losses
        found.update(texts(turns))
    return found


async def both_open(one: Archive, two: Archive) -> tuple[StoredConversation, StoredConversation]:
    first = await one.new()
    await first.append(answered("shared"))
    await one.flush()
    await two.recover()
    return first, await two.open(first.sid)


async def test_what_the_other_machine_wrote_meanwhile_is_taken_over_without_a_branch(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine("one").on() as one, world.machine("two").on() as two:
        first, second = await both_open(one, two)
        await second.append(answered("by two"))
        await two.flush()
        assert await one.open(first.sid) is first
        assert texts(first.turns) == ["shared", "by two"]
        assert (first.branches, first.moved) == ((), True)
        await first.append(asked("by one"))
        assert (await one.flush()).kept


async def test_the_losing_turn_is_kept_as_a_branch_and_shown(world: World, autojump_clock: MockClock) -> None:
    async with world.machine("one").on() as one, world.machine("two").on() as two:
        first, second = await both_open(one, two)
        await first.append(answered("by one"))
        await second.append(answered("by two"))
        assert (await one.flush()).kept
        assert (await two.flush()).kept
        await one.open(first.sid)
        assert first.turns == second.turns
        assert len(first.branches) == 1
        assert await all_texts(first) == {"shared", "by one", "by two"}
        assert await all_texts(second) == {"shared", "by one", "by two"}
        assert (await one.flush()).kept
    async with world.machine("third").on() as third:
        await third.recover()
        assert await all_texts(await third.open(first.sid)) == {"shared", "by one", "by two"}


async def test_both_see_the_same_winner_at_one_revision_whoever_comes_first(
    world: World, autojump_clock: MockClock
) -> None:
    for late in (0, 1):
        async with world.machine(f"a{late}").on() as one, world.machine(f"b{late}").on() as two:
            first, second = await both_open(one, two)
            await first.append(answered("by one"))
            await second.append(answered("by two"))
            order = (one, two) if late else (two, one)
            for archive in (*order, *order):
                assert (await archive.flush()).kept
            await one.open(first.sid)
            await two.open(first.sid)
            assert first.turns == second.turns
            assert first.head == second.head


async def test_a_fork_is_not_settled_in_the_middle_of_an_answer(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine("one").on() as one, world.machine("two").on() as two:
        first, second = await both_open(one, two)
        for number in range(5):
            await second.append(asked(f"q{number}"), answered(f"a{number}"))
        await two.flush()
        await first.append(asked("mine?"))
        await first.append(says("assistant", "half "))
        await one.flush()
        assert texts(first.turns) == ["shared", "mine?", "half "]
        await first.append(says("assistant", "whole", finish="stop"))
        assert (await one.flush()).kept
        assert texts(first.turns)[-1] == "a4"
        assert first.moved
        (lost,) = first.branches
        turns, _ = await first.branch(lost)
        assert texts(turns) == ["shared", "mine?", "half whole"]


async def test_a_fork_that_was_waiting_when_the_process_died_is_settled_after_it(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine("one")
    async with machine.on() as one, world.machine("two").on() as two:
        first, second = await both_open(one, two)
        await second.append(asked("q"), answered("a"))
        await second.append(asked("q2"), answered("a2"))
        await two.flush()
        await first.append(asked("mine?"))
        await first.append(says("assistant", "half"))
        await one.flush()
    async with machine.on() as one:
        again = await one.open(first.sid)
        assert (await one.flush()).kept
        assert await all_texts(again) == {"shared", "q", "a", "q2", "a2", "mine?", "half"}


async def test_more_branches_than_a_manifest_lists_stay_reachable(
    world: World, autojump_clock: MockClock
) -> None:
    count = BRANCHES_MAX + 3
    async with world.machine("one").on() as one, world.machine("two").on() as two:
        first, second = await both_open(one, two)
        for number in range(count):
            await first.append(answered(f"one {number}"))
            await second.append(answered(f"two {number}"))
            assert (await one.flush()).kept
            assert (await two.flush()).kept
            await one.open(first.sid)
        assert len(first.branches) <= BRANCHES_MAX + 1
        assert first.log.head is not None
        reader = first.log.reader
        waiting, found = [first.log.head.link], set()
        seen = set()
        while waiting:
            link = waiting.pop()
            if link in seen:
                continue
            seen.add(link)
            found.update(texts((await first.branch(link))[0]))
            waiting += (await reader.manifest(link)).branches
        wanted = {f"{who} {number}" for who in ("one", "two") for number in range(count)}
        assert wanted <= found
        blobs, losses = await reader.reachable(first.log.head.link, first.log.head.manifest)
        assert not losses
        assert set(blobs) <= set(world.replicas[0].blobs())


async def test_two_processes_on_one_data_dir_do_not_overwrite_each_other(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    async with machine.on() as one, machine.on() as two:
        first = await one.new()
        await first.append(asked("one"))
        second = await two.open(first.sid)
        await second.append(answered("two"))
        with pytest.raises(MovedError, match="open it again"):
            await first.append(answered("lost?"))
        again = await one.open(first.sid)
        await again.append(asked("three"))
        assert texts(again.turns) == ["one", "two", "three"]
        assert len(await two.conversations()) == 1
        other = await two.new(title="other")
        assert {saved.sid for saved in await one.conversations()} == {first.sid, other.sid}


async def test_on_a_full_disk_a_fork_can_still_be_opened_and_is_settled_later(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine("two")
    async with world.machine("one").on() as one, machine.on() as two:
        first, second = await both_open(one, two)
        await first.append(answered("by one"), answered("more"))
        await one.flush()
        await second.append(answered("by two"))
        machine.own.full = True
        assert texts((await two.open(first.sid)).turns) == ["shared", "by two"]
        assert not (await two.flush()).kept
        machine.own.full = False
        assert (await two.flush()).kept
        assert await all_texts(second) == {"shared", "by one", "more", "by two"}


async def test_a_branch_stays_readable_when_all_around_it_was_joined_and_swept(
    world: World, autojump_clock: MockClock
) -> None:
    moved = set()
    for at in range(4):
        machine = world.machine(f"one {at}")
        two_machine = world.machine(f"two {at}")
        async with machine.on() as one, two_machine.on() as two:
            first, second = await both_open(one, two)
            await first.append(answered("by one"))
            await second.append(answered("by two"))
            assert (await one.flush()).kept
            assert (await two.flush()).kept
            moved.add(second.moved)
            for number in range(40):
                await second.append(answered(str(number)))
                assert (await two.flush()).kept
                if number >= 28:  # what is let go is swept at once, wherever it is
                    world.now += 1.1 * 86_400
                    for replica in [machine.own, two_machine.own, *world.replicas]:
                        replica.store.gc_step(1000)
        async with world.machine(f"new {at}").on() as archive:
            again = await archive.open(first.sid)
            assert len(again.branches) == 1
            assert {"shared", "by one", "by two", "39"} <= await all_texts(again)
    assert moved == {True, False}  # both ways were tried
