"""Several things at a time, of which the first that fails ends the others. Knows nothing of what they do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from p2pnode.errors import P2PNodeError


async def together(works: Sequence[Callable[[], Awaitable[None]]], *, at_once: int) -> None:
    """Await all, ``at_once`` at a time. The first ``P2PNodeError`` is raised as it is, not in a group."""
    if len(works) == 1:
        await works[0]()
        return
    failed: list[P2PNodeError] = []
    slots = trio.CapacityLimiter(at_once)
    async with trio.open_nursery() as nursery:

        async def do(work: Callable[[], Awaitable[None]]) -> None:
            async with slots:
                try:
                    await work()
                except P2PNodeError as error:
                    failed.append(error)
                    nursery.cancel_scope.cancel()

        for work in works:
            nursery.start_soon(do, work)
    if failed:
        raise failed[0]
