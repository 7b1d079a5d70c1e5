"""A host, or its client, that is killed while a transaction waits to be mined: the chain forgets nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.checks import (
    check_receipts,
    check_settled,
    wait_settled,
)
from tests.crash.parties import (
    FEE,
    QUESTION,
    TOKENS,
)
from tests.crash.points import Point
from tests.crash.processes import (
    Forge,
)
from tests.crash.support import (
    Asked,
    asking,
    crash_world,
    joined,
    until,
)


async def test_a_deposit_that_is_mined_after_the_host_was_killed_comes_back_at_once_but_for_the_fee(
    tmp_path: Path, forge: Forge
) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        async with forge.process("host", host.config, Point("inside", "chain", "Open")) as process:
            ready = await process.event("ready")
            await w.rpc("evm_setAutomine", False)
            asked = await w.ask(client, ready["multiaddrs"][0])
            await process.killed()
        assert asked.error is not None
        (bought,) = client.purchases()
        async with joined(host):

            async def looked() -> bool:
                return [each.settle_at for each in host.hosted()] == [bought.valid_before + 1]

            await until(looked, "the host finds no deposit on the chain")
            assert await w.opened(bought.session) == 0
            await w.rpc("evm_setAutomine", True)
            await wait_settled(w, host, bought.session)  # not minutes later, when it can't come any more
        (best,) = host.hosted()
        loss = await check_settled(w, host, client, best, 0)
        assert loss.amount == FEE


@pytest.mark.long
async def test_a_close_that_waits_when_the_host_is_killed_is_followed_and_not_sent_twice(
    tmp_path: Path, forge: Forge
) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        asked = Asked()
        async with forge.process("host", host.config, Point("inside", "chain", "Close")) as process:
            ready = await process.event("ready")
            async with asking(client) as chat:
                await chat(asked, ready["multiaddrs"][0], TOKENS)
                await w.rpc("evm_setAutomine", False)
            await process.killed()
        (best,) = host.hosted()
        async with joined(host):
            await w.rpc("evm_setAutomine", True)
            await wait_settled(w, host, best.session)
            assert await w.rpc("eth_getTransactionCount", host.wallet.account, "latest") == "0x2"
        loss = await check_settled(w, host, client, best, len(asked.ids))
        assert (loss.host, loss.unpaid_signature) == (0, 0)
        check_receipts(w, host, best)


@pytest.mark.long
async def test_a_client_killed_while_its_deposit_is_on_its_way_gets_it_back_but_for_the_fee(
    tmp_path: Path, forge: Forge
) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        async with joined(host) as peer:
            await w.rpc("evm_setAutomine", False)
            asks = {"peer": peer, "question": QUESTION, "tokens": TOKENS}
            async with forge.process("client", client.config, None, **asks) as process:

                async def sent() -> bool:
                    return await w.pending(host) == 1

                await until(sent, "the open is on its way")
                await process.kill()
            await w.rpc("evm_setAutomine", True)
            (bought,) = client.purchases()
            await wait_settled(w, host, bought.session)
        (best,) = host.hosted()
        loss = await check_settled(w, host, client, best, 0)
        assert loss.amount == FEE
