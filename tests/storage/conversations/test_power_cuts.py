"""The power goes at every single operation of a disk or a replica, before and after it took effect.

After each cut the machine starts again: all that was acknowledged to the caller is there, what replicas show
is never a pointer without its blobs, and the archive goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.protocols.wire import decode_record
from p2pnode.storage.conversations.archive import Archive
from p2pnode.storage.conversations.merge import link_of
from p2pnode.storage.conversations.records import TOMBSTONE, Manifest
from p2pnode.storage.keys import INDEX_SID, LogKeys
from p2pnode.storage.sealing import unseal
from tests.storage.conversations.worlds import (
    KEYS,
    FaultyReplica,
    Machine,
    PowerCutError,
    World,
    answered,
    asked,
    only_cuts,
    run,
    says,
    session,
    texts,
)


class Life:
    """What a user does in one sitting, and what was acknowledged to him."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sids: list[bytes] = []
        self.said: list[str] = []
        self.sessions = 0

    async def live(self, archive: Archive) -> None:
        conversation = await archive.new(title="Numbers")
        self.sids.append(conversation.sid)
        await self._say(lambda: conversation.append(asked("q0")), "q0")
        await archive.flush()
        await archive.save_session(session(1, amount=1))
        self.sessions = 1
        await self._say(lambda: conversation.append(says("assistant", "half ")), "half ")
        await self._say(lambda: conversation.append(says("assistant", "whole", finish="stop")), "whole")
        await archive.flush()

    async def _say(self, append: Callable[[], Awaitable[object]], text: str) -> None:
        await append()
        self.said.append(text)


async def check_pointers(replica: FaultyReplica, keys: LogKeys) -> None:
    """No pointer without its manifest, no manifest without its segments."""
    entry = replica.entry(keys.entry_key)
    if entry is None or link_of(entry).hash == TOMBSTONE:
        return
    blobs = replica.blobs()
    link = link_of(entry)
    manifest = decode_record(Manifest, unseal(keys, link.seq, "M", blobs[link.hash]))
    for ref in manifest.segments:
        assert ref.hash in blobs


async def check_all(world: World, machine: Machine, life: Life) -> None:
    for replica in [machine.own, *world.replicas]:
        await check_pointers(replica, KEYS.index)
        for sid in life.sids:
            await check_pointers(replica, KEYS.conversation(sid))
    async with machine.on() as archive:
        listed = {saved.sid for saved in await archive.conversations()}
        for sid in life.sids:
            assert sid in listed
            conversation = await archive.open(sid)
            assert "".join(texts(conversation.turns)).startswith("".join(life.said))
            assert not conversation.losses
            assert not conversation.branches
            await conversation.append(asked("and on"))
        assert len(await archive.sessions()) >= life.sessions
        status = await archive.flush()
        assert status.kept
        assert not status.losses
    async with world.machine("new").on() as archive:
        recovery = await archive.recover()
        assert len(recovery.sessions) >= life.sessions
        for sid in life.sids:
            again = await archive.open(sid)
            assert texts(again.turns)[-1] == "and on"
            assert "".join(texts(again.turns)).startswith("".join(life.said))


def operations() -> int:
    """Of one sitting that nothing disturbs."""
    found = []

    async def count() -> None:
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder))
            machine = world.machine()
            share_power(world, machine)
            async with machine.on() as archive:
                await Life(world).live(archive)
            found.append(machine.power.operations)

    run(count)
    return found[0]


def share_power(world: World, machine: Machine) -> None:
    """The replicas' operations are counted too: the machine dies while it waits for them."""
    for replica in world.replicas:
        replica.power = machine.power


@pytest.mark.parametrize(
    ("late", "step"),
    [(False, 4), (True, 5), *(pytest.param(late, 1, marks=pytest.mark.long) for late in (False, True))],
)
def test_a_power_cut_at_any_operation_loses_nothing_that_was_acknowledged(late: bool, step: int) -> None:
    total = operations()
    assert total > 60
    for after in range(step, total + 1, step):

        async def one_cut(after: int = after) -> None:
            with tempfile.TemporaryDirectory() as folder:
                world = World(Path(folder))
                machine = world.machine()
                share_power(world, machine)
                machine.power.after, machine.power.late = after, late
                life = Life(world)
                cut = False
                try:
                    async with machine.on() as archive:
                        await life.live(archive)
                except PowerCutError:
                    cut = True
                except BaseExceptionGroup as group:
                    only_cuts(group)
                    cut = True
                machine.power.after = -1
                assert cut or late  # some operations have no "after"
                await check_all(world, machine, life)

        run(one_cut)


def test_a_cut_between_a_conversation_and_its_listing_is_healed(tmp_path: Path) -> None:
    async def cut() -> None:
        world = World(tmp_path)
        machine = world.machine()
        machine.power.after, machine.power.late = 2, True  # manifest, state: then the index would follow
        with pytest.raises(PowerCutError):
            async with machine.on() as archive:
                await archive.new(title="Found again")
        machine.power.after = -1
        async with machine.on() as archive:
            assert [saved.title for saved in await archive.conversations()] == ["Found again"]

    run(cut)


def test_a_pointer_is_written_last_on_every_replica_and_after_a_quorum_of_blobs(tmp_path: Path) -> None:
    async def write() -> None:
        world = World(tmp_path)
        order: list[tuple[str, bytes]] = []
        for replica in world.replicas:
            replica.order = order
        async with world.machine().on() as archive:
            conversation = await archive.new()
            await archive.flush()
            order.clear()
            await conversation.append(asked("one"), answered("two"))
            assert (await archive.flush()).kept
        head = conversation.head
        assert head is not None
        first_pointer = next(at for at, (kind, _) in enumerate(order) if kind == "entry")
        there = [digest for kind, digest in order[:first_pointer] if kind == "blob"]
        assert there.count(BlobHash(head.hash)) >= 2
        assert order.count(("entry", head.hash)) == 3

    run(write)


async def test_no_pointer_moves_anywhere_before_a_quorum_has_the_blobs(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    world = World(tmp_path)
    async with world.machine().on() as archive:
        conversation = await archive.new()
        await archive.flush()
        for replica in world.replicas:
            replica.order.clear()
        free, *others = world.replicas
        for replica in others:
            replica.held = trio.Event()
        await conversation.append(asked("one"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(archive.flush)
            await wait_all_tasks_blocked()
            assert [kind for kind, _ in free.order] == ["blob", "blob"]
            assert others[0].held is not None
            others[0].held.set()
            await wait_all_tasks_blocked()
            assert [kind for kind, _ in free.order] == ["blob", "blob", "entry"]
            assert others[1].held is not None
            others[1].held.set()
        assert [kind for kind, _ in others[1].order] == ["blob", "blob", "entry"]


async def test_a_conversation_is_not_acknowledged_before_an_index_that_names_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    world = World(tmp_path)
    index = KEYS.index.entry_key
    for replica in world.replicas[:2]:
        replica.shown[index] = replace(KEYS.index.entry(1, b""), signature=bytes(64))
    async with world.machine().on() as archive:
        conversation = await archive.new()
        status = await archive.flush()
        written = status.last[conversation.sid].written
        assert written is not None
        assert written.reached
        assert {row.sid for row in status.lagging} == {INDEX_SID, conversation.sid}
        for replica in world.replicas:
            replica.shown.clear()
        assert (await archive.flush()).kept
