"""A task that runs beside a block, and ends with it. The block's own errors come out as they are.

A bare nursery would wrap them in a group, and ``except ChainError`` miss them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio


@asynccontextmanager
async def beside(run: Callable[..., Awaitable[Any]]) -> AsyncIterator[None]:
    """Start ``run`` (it takes ``task_status``), run the block, cancel it. An error of its own is a group."""
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(run)
            yield
        except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
