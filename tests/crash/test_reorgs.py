"""A reorganisation that takes a transaction of the host's away: it is brought again, and settled once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from p2pnode.chain.evm import ledger as evm
from p2pnode.chain.evm.ledger import EvmLimits
from tests.crash.checks import (
    check_receipts,
    check_settled,
    wait_settled,
)
from tests.crash.parties import (
    TOKENS,
)
from tests.crash.points import Point
from tests.crash.processes import (
    Forge,
)
from tests.crash.support import (
    Asked,
    CrashWorld,
    asking,
    crash_world,
    joined,
    until,
)
from tests.crash.test_chain_outages import PROMPT


@pytest.fixture(autouse=True)
def _prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender looks every fifth of a second, not every six seconds."""
    # Every chain here answers: the deadlines of a request stay long, for a busy machine.
    monkeypatch.setattr(evm, "EvmLimits", lambda: EvmLimits(sender=PROMPT.sender))


@asynccontextmanager
async def reorganised_away(w: CrashWorld) -> AsyncIterator[None]:
    """What happens on the chain in this block didn't."""
    before = await w.rpc("evm_snapshot")
    yield
    assert await w.rpc("evm_revert", before) is True


@pytest.mark.long
async def test_a_session_whose_open_was_reorganised_away_goes_on_and_is_settled(tmp_path: Path) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        asked = Asked()
        async with joined(host) as peer:
            async with asking(client) as chat:
                async with reorganised_away(w):
                    await chat(asked, peer, TOKENS)
                (record,) = host.hosted()
                assert await w.opened(record.session) == 0
                await chat(asked, peer, TOKENS)  # the host doesn't even know yet

                async def again() -> bool:
                    return await w.opened(record.session) == 1

                await until(again, "the open is brought again")
            await wait_settled(w, host, record.session)
        (best,) = host.hosted()
        assert (asked.error, len(asked.ids)) == (None, 2 * TOKENS)
        loss = await check_settled(w, host, client, best, len(asked.ids))
        assert (loss.host, loss.unpaid_signature) == (0, 0)
        check_receipts(w, host, best)


async def test_a_session_that_ends_while_its_open_waits_to_be_mined_again_is_settled_when_it_is(
    tmp_path: Path,
) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        asked = Asked()
        async with joined(host) as peer:
            async with asking(client) as chat:
                async with reorganised_away(w):
                    await chat(asked, peer, TOKENS)
                    await w.rpc("evm_setAutomine", False)

                async def waits() -> bool:
                    return await w.pending(host) >= 1

                await until(waits, "the open is sent again")
            # Over and due: the host brings the open itself, beside the one that waits.

            async def twice() -> bool:
                return await w.pending(host) >= 2

            await until(twice, "the host brings it too")
            await w.rpc("evm_setAutomine", True)
            (record,) = host.hosted()
            await wait_settled(w, host, record.session)
        (best,) = host.hosted()
        loss = await check_settled(w, host, client, best, len(asked.ids))
        assert (loss.host, loss.unpaid_signature) == (0, 0)


@pytest.mark.long
async def test_a_host_that_was_killed_before_its_open_was_reorganised_away_brings_it_again(
    tmp_path: Path, forge: Forge
) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        async with forge.process("host", host.config, Point("after", "journal", "host_paid", 4)) as process:
            ready = await process.event("ready")
            async with reorganised_away(w):
                asked = await w.ask(client, ready["multiaddrs"][0])
                await process.killed()
        (best,) = host.hosted()
        assert await w.opened(best.session) == 0
        async with joined(host):
            await wait_settled(w, host, best.session)
        await check_settled(w, host, client, best, len(asked.ids))
        check_receipts(w, host, best)


@pytest.mark.long
async def test_a_settlement_that_was_reorganised_away_is_brought_again(tmp_path: Path) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        asked = Asked()
        async with joined(host) as peer:
            async with asking(client) as chat:
                await chat(asked, peer, TOKENS)
                before = await w.rpc("evm_snapshot")
            (record,) = host.hosted()
            await wait_settled(w, host, record.session)
            assert await w.rpc("evm_revert", before) is True
            assert (await w.ledger.session(record.session)).status == "open"
            await wait_settled(w, host, record.session)
        (best,) = host.hosted()
        await check_settled(w, host, client, best, len(asked.ids))
