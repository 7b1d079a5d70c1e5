"""A host that is killed at any point between a deposit and its settlement, and started again.

Whatever it had written down is settled, once; nobody loses more than a window; nobody is asked anything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.checks import (
    Loss,
    check_receipts,
    check_settled,
    wait_settled,
)
from tests.crash.parties import (
    FEE,
    RICH,
    TOKENS,
    WINDOW_UNITS,
    Party,
)
from tests.crash.points import Point, points
from tests.crash.processes import (
    Forge,
)
from tests.crash.support import (
    Asked,
    CrashWorld,
    crash_world,
    joined,
)

Note = Callable[[Loss], None]
SERVING = (
    *points("journal", "host_open", "before", "inside", "after"),
    *points("send", "Accept", "before", "after"),
    *points("send", "Quote", "before", "after"),
    *points("journal", "host_paid", "before", "inside", "after", nth=(1, 2, 3, 4, 5)),
    *points("send", "Tokens", "before", "after", nth=(1, 2)),
    *points("journal", "host_issuing", "before", "inside", "after", nth=(1, 2, 4)),
    *points("send", "Checkpoint", "before", "after", nth=(1, 2)),
    *points("send", "Done", "before", "after"),
    *points("journal", "host_over", "before", "inside", "after"),
    *points("chain", "Close", "before", "inside", "after"),
    *points("journal", "host_settled", "before", "inside", "after"),
)
"""From the mined deposit on: a session is on the chain, so it ends there."""
OPENING = (*points("chain", "Open", "inside", "after"),)
"""The deposit is taken, and the host doesn't know it yet."""
NEVER = (
    *points("journal", "host_relaying", "before", "inside", "after"),
    *points("chain", "Open", "before"),
)
"""Nothing was sent yet."""
IN_CI = {
    "inside-chain.Open-1", "inside-journal.host_paid-3", "after-journal.host_issuing-2",
    "inside-chain.Close-1", "after-journal.host_relaying-1",
}  # fmt: skip


def _marked(some: tuple[Point, ...]) -> list[object]:
    """All of them in the long run, a few in every one."""
    return [
        pytest.param(point, id=str(point), marks=() if str(point) in IN_CI else pytest.mark.long)
        for point in some
    ]


async def crash(w: CrashWorld, forge: Forge, point: Point) -> tuple[Party, Party, Asked]:
    """A host that dies at ``point`` while, or after, a client asks for its tokens."""
    host, client = await w.host(), await w.client()
    async with forge.process("host", host.config, point) as process:
        ready = await process.event("ready")
        asked = await w.ask(client, ready["multiaddrs"][0])
        await process.killed()
    return host, client, asked


@pytest.mark.parametrize("point", _marked((*OPENING, *SERVING)))
async def test_a_host_killed_at(tmp_path: Path, forge: Forge, point: Point, note: Note) -> None:
    async with crash_world(tmp_path) as w:
        host, client, asked = await crash(w, forge, point)
        died = host.as_it_died(tmp_path / "as it died")
        (best,) = died.hosted()
        async with joined(host):
            await wait_settled(w, host, best.session)
        loss = await check_settled(w, host, client, best, len(asked.ids))
        check_receipts(w, host, best)
        assert host.receipts(best.session) == died.receipts(best.session)
        assert (asked.error is None) == (len(asked.ids) == TOKENS)
        note(loss)


@pytest.mark.parametrize("point", _marked(NEVER))
async def test_a_host_killed_before_the_deposit_was_sent_takes_nothing(
    tmp_path: Path, forge: Forge, point: Point
) -> None:
    async with crash_world(tmp_path) as w:
        host, client, asked = await crash(w, forge, point)
        assert (asked.ids, type(asked.error).__name__) == ([], "UnreachableError")
        (bought,) = client.purchases()
        async with joined(host) as peer:
            again = await w.ask(client, peer)  # the next one is served as if nothing had been
            assert (again.error, len(again.ids)) == (None, TOKENS)
            (served,) = [each for each in host.hosted() if each.session != bought.session]
            await wait_settled(w, host, served.session)
        assert await w.opened(bought.session) == 0
        assert served.voucher is not None
        assert RICH - await w.usdc(client) == served.voucher.amount > FEE
        # What was written down is given up when the deposit can't come any more.
        known = [each for each in host.hosted() if each.session == bought.session]
        assert [each.settle_at for each in known] == [bought.valid_before + 1] * len(known)


async def test_a_host_that_is_not_killed_loses_nothing(tmp_path: Path) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        async with joined(host) as peer:
            asked = await w.ask(client, peer)
            (best,) = host.hosted()
            await wait_settled(w, host, best.session)
        (best,) = host.hosted()
        loss = await check_settled(w, host, client, best, len(asked.ids))
        assert (loss.host, loss.unpaid_signature, loss.fee_only) == (0, 0, 0)
        assert best.voucher is not None
        assert best.voucher.amount > WINDOW_UNITS
