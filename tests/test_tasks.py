"""A task in the background of a block, and several at a time."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import ChainError, StorageError
from p2pnode.tasks import background_task, gather


async def test_the_task_runs_while_the_block_does_and_no_longer() -> None:
    told: list[str] = []

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        told.append("began")
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            told.append("ended")

    async with background_task(run):
        assert told == ["began"]
    assert told == ["began", "ended"]


async def test_the_blocks_own_error_is_not_wrapped() -> None:
    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    with pytest.raises(ChainError, match="no answer"):
        async with background_task(run):
            raise ChainError("no answer")


async def test_a_task_that_can_not_start_says_why_and_one_that_fails_later_ends_the_block() -> None:
    async def refuses(*, task_status: trio.TaskStatus[None]) -> None:
        raise ChainError("not today")

    with pytest.raises(ChainError, match="not today"):
        async with background_task(refuses):
            pytest.fail("the block ran")

    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        raise ChainError("later")

    with pytest.RaisesGroup(ChainError):
        async with background_task(fails):
            await trio.sleep_forever()


class Works:
    """How many run, and have run."""

    def __init__(self) -> None:
        self.now = self.most = self.done = 0

    async def work(self, error: Exception | None = None, seconds: float = 1) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(seconds)
        finally:
            self.now -= 1
        if error is not None:
            raise error
        self.done += 1


@pytest.mark.parametrize("count", [0, 1, 2, 7])
async def test_all_are_done_and_never_more_at_once(count: int, autojump_clock: MockClock) -> None:
    works = Works()
    await gather([works.work] * count, at_once=3)
    assert (works.done, works.most) == (count, min(count, 3))


@pytest.mark.parametrize("count", [1, 3])
async def test_the_first_failure_ends_the_others_and_is_raised_as_it_is(
    count: int, autojump_clock: MockClock
) -> None:
    works, error = Works(), StorageError("no")
    with pytest.raises(StorageError) as raised:
        await gather([partial(works.work, error), *[partial(works.work, None, 5)] * (count - 1)], at_once=3)
    assert raised.value is error
    assert (works.done, works.now, trio.current_time()) == (0, 0, 1)
