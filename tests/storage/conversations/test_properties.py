"""Whatever happens in whatever order, no acknowledged turn is lost, and what is missing is reported."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.errors import StorageError
from p2pnode.storage.conversations.archive import Archive
from p2pnode.storage.conversations.stored_conversation import StoredConversation
from tests.storage.conversations.worlds import (
    Machine,
    PowerCutError,
    World,
    answered,
    asked,
    only_cuts,
    renewed_after_a_week,
    run,
    says,
    texts,
)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(0, 1)),
        st.tuples(st.just("half"), st.integers(0, 1)),
        st.tuples(st.just("flush"), st.integers(0, 1)),
        st.tuples(st.just("down"), st.integers(0, 2)),
        st.tuples(st.just("up"), st.integers(0, 2)),
        st.tuples(st.just("crash"), st.integers(1, 40)),
        st.tuples(st.just("full"), st.integers(0, 1)),
        st.tuples(st.just("open"), st.integers(0, 1)),
    ),
    max_size=24,
)


async def every_text(conversation: StoredConversation) -> set[str]:
    """Of all turns of all lines, in pieces as they were said."""
    found: set[str] = set()
    waiting = [conversation.head, *conversation.branches]
    seen = set()
    while waiting:
        link = waiting.pop()
        if link is None or link in seen:
            continue
        seen.add(link)
        turns, losses = await conversation.branch(link)
        assert not losses
        for text in texts(turns):
            found.update(text.split())
        waiting += (await conversation.log.reader.manifest(link)).branches
    return found


class Story:
    """Two machines, three replicas, one conversation."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.machines = [world.machine("one"), world.machine("two")]
        self.count = 0
        self.acknowledged: list[set[str]] = [set(), set()]
        self.sid = b""

    async def begin(self) -> None:
        async with self.machines[0].on() as archive:
            conversation = await archive.new()
            await conversation.append(answered("begun"))
            self.acknowledged[0].add("begun")
            self.sid = conversation.sid
            assert (await archive.flush()).kept
        async with self.machines[1].on() as archive:
            await archive.recover()
            await archive.open(self.sid)

    async def tell(self, steps: list[tuple[str, int]]) -> None:
        at = 0
        while at < len(steps):  # each crash begins a new process of both machines
            try:
                async with self.machines[0].on() as one, self.machines[1].on() as two:
                    while at < len(steps):
                        at += 1
                        await self.step(steps[at - 1], [one, two])
            except PowerCutError:
                pass
            except BaseExceptionGroup as group:
                only_cuts(group)
            for machine in self.machines:
                machine.power.after = -1

    async def step(self, step: tuple[str, int], archives: list[Archive]) -> None:
        kind, which = step
        match kind:
            case "say" | "half":
                await self.say(which, archives[which], whole=kind == "say")
            case "flush":
                await archives[which].flush()
            case "down" | "up":
                self.world.replicas[which].down = kind == "down"
            case "crash":
                machine = self.machines[which % 2]
                machine.power.after, machine.power.late = machine.power.operations + which, bool(which % 3)
            case "full":
                self.machines[which].own.full = not self.machines[which].own.full
            case _:
                await archives[which].open(self.sid)

    async def say(self, which: int, archive: Archive, *, whole: bool) -> None:
        self.count += 1
        word = f"w{self.count}"
        try:
            conversation = await archive.open(self.sid, ask=False)
            if whole:
                await conversation.append(asked(f"{word}q "), answered(f"{word}a "))
            else:
                await conversation.append(says("assistant", f"{word}q {word}a "))
        except StorageError as error:
            assert self.machines[which].own.full, error  # noqa: PT017 - nothing else may refuse
            return
        self.acknowledged[which] |= {f"{word}q", f"{word}a"}

    async def end(self) -> None:
        for replica in self.world.replicas:
            replica.down = False
        for machine in self.machines:
            machine.own.full = False
        wanted = self.acknowledged[0] | self.acknowledged[1]
        for _ in range(3):
            for machine in self.machines:
                await self.sync(machine)
        for machine in [*self.machines, self.world.machine("fresh")]:
            async with machine.on() as archive:
                await archive.recover()
                conversation = await archive.open(self.sid)
                assert wanted <= await every_text(conversation)
                assert not conversation.losses
        for only in range(3):
            for number, replica in enumerate(self.world.replicas):
                replica.down = number != only
            async with self.world.machine(f"from {only}").on() as archive:
                await archive.recover()
                assert wanted <= await every_text(await archive.open(self.sid))

    async def sync(self, machine: Machine) -> None:
        async with machine.on() as archive:
            await archive.recover()
            await archive.open(self.sid)
            status = await archive.flush()
            assert status.kept, status
            await renewed_after_a_week(self.world, archive)


def tell(steps: list[tuple[str, int]]) -> None:
    async def story() -> None:
        with tempfile.TemporaryDirectory() as folder:
            told = Story(World(Path(folder)))
            await told.begin()
            await told.tell(steps)
            await told.end()

    run(story)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_any_story_of_two_machines_ends_with_all_that_was_acknowledged(steps: list[tuple[str, int]]) -> None:
    tell(steps)


@pytest.mark.long
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_four_hundred_stories_do(steps: list[tuple[str, int]]) -> None:
    tell(steps)
