"""Several things at a time: all of them, so many at once, and the first failure as it is."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import StorageError
from p2pnode.storage.replication.together import together


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
    await together([works.work] * count, at_once=3)
    assert (works.done, works.most) == (count, min(count, 3))


@pytest.mark.parametrize("count", [1, 3])
async def test_the_first_failure_ends_the_others_and_is_raised_as_it_is(
    count: int, autojump_clock: MockClock
) -> None:
    works, error = Works(), StorageError("no")
    with pytest.raises(StorageError) as raised:
        await together([partial(works.work, error), *[partial(works.work, None, 5)] * (count - 1)], at_once=3)
    assert raised.value is error
    assert (works.done, works.now, trio.current_time()) == (0, 0, 1)
