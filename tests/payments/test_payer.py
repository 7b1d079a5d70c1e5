"""What a client hears of a chain that doesn't answer when it is asked first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Never

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import ChainError
from p2pnode.payments.payer import OpenPayer, Payer
from p2pnode.payments.spending import Market, SpendingLimits

NOBODY: Any = None


async def _told_after(seconds: float) -> list[float]:
    """When a payer told that it waits, of a chain that fails after so many seconds."""
    told: list[float] = []

    @asynccontextmanager
    async def make() -> AsyncIterator[OpenPayer]:
        await trio.sleep(seconds)
        raise ChainError("no endpoint answers")
        yield _never()

    payer = Payer(
        market=Market(1, bytes(20), bytes(20)), limits=SpendingLimits(), make=make,
        on_wait=lambda: told.append(trio.current_time()),
    )  # fmt: skip
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        with pytest.raises(ChainError, match="no endpoint answers"):
            await payer.buy(nursery, NOBODY, NOBODY, tokens_in=1, tokens_out=1)
    return [at - began for at in told]


def _never() -> Never:
    raise AssertionError


async def test_a_chain_that_has_not_answered_for_two_seconds_is_told_of_once(
    autojump_clock: MockClock,
) -> None:
    assert await _told_after(30) == pytest.approx([2.0])


async def test_a_chain_that_answers_at_once_is_not_told_of(autojump_clock: MockClock) -> None:
    assert await _told_after(1.5) == []
