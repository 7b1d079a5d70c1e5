"""A task beside a block: it ends with the block, and whose error it is stays clear."""

from __future__ import annotations

import pytest
import trio

from p2pnode.errors import ChainError
from p2pnode.node.beside import beside


async def test_the_task_runs_while_the_block_does_and_no_longer() -> None:
    told: list[str] = []

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        told.append("began")
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            told.append("ended")

    async with beside(run):
        assert told == ["began"]
    assert told == ["began", "ended"]


async def test_the_blocks_own_error_is_not_wrapped() -> None:
    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    with pytest.raises(ChainError, match="no answer"):
        async with beside(run):
            raise ChainError("no answer")


async def test_a_task_that_can_not_start_says_why_and_one_that_fails_later_ends_the_block() -> None:
    async def refuses(*, task_status: trio.TaskStatus[None]) -> None:
        raise ChainError("not today")

    with pytest.raises(ChainError, match="not today"):
        async with beside(refuses):
            pytest.fail("the block ran")

    async def fails(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        raise ChainError("later")

    with pytest.RaisesGroup(ChainError):
        async with beside(fails):
            await trio.sleep_forever()
