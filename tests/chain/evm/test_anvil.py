"""The EVM ledger on anvil: the conformance suite, and what only another implementation can show."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pnode.chain.evm.ledger import EvmLimits
from p2pnode.chain.evm.transaction_sender import SenderLimits
from p2pnode.chain.ledger import Ledger, Outcome, RevertedError, Transfer
from tests.chain.anvil_world import AnvilWorld, anvil_world
from tests.chain.contracts.support import ADDRESS
from tests.chain.ledger_conformance import LedgerConformance, Scene, scene

__all__ = ["scene"]

TO = ADDRESS["stranger"]


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[AnvilWorld]:
    program = request.config.getoption("--anvil")
    if program is None:
        pytest.skip("run `make test-anvil`")
    async with anvil_world(Path(program)) as world:
        yield world


class TestAnvilLedger(LedgerConformance):
    """The whole conformance suite."""


async def test_a_transaction_stuck_in_the_pool_is_replaced_and_mined_once(world: AnvilWorld) -> None:
    quick = EvmLimits(sender=SenderLimits(poll_first_s=0.02, poll_max_s=0.1, replace_after_s=0.5))
    ledger = await world.ledger("payer", quick)
    world.anvil.ask("evm_setAutomine", False)
    done: list[Outcome] = []

    async def give() -> None:
        done.append(await ledger.transact(Transfer(TO, 7)))

    def waiting() -> str:
        pool = world.anvil.ask("txpool_content")["pending"]
        return str(next((each["0"]["hash"] for each in pool.values()), ""))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give)
            first = await until(waiting)
            second = await until(lambda: waiting().replace(first, ""))
            world.anvil.ask("evm_mine")
    assert done[0].transaction.hex() != first[2:]
    assert second
    assert (await ledger.balances(TO)).usdc == 7


async def test_a_reorganisation_has_the_same_transaction_mined_again(world: AnvilWorld) -> None:
    quick = EvmLimits(sender=SenderLimits(poll_first_s=0.02, reorg_poll_s=0.1))
    ledger = await world.ledger("payer", quick)
    before = world.anvil.ask("evm_snapshot")
    outcome = await ledger.transact(Transfer(TO, 7))
    world.anvil.ask("evm_revert", before)
    assert (await ledger.balances(TO)).usdc == 0
    sent = "0x" + outcome.transaction.hex()
    with trio.fail_after(20):
        receipt = await until(lambda: world.anvil.ask("eth_getTransactionReceipt", sent))
    assert receipt["status"] == "0x1"
    assert (await ledger.balances(TO)).usdc == 7


async def test_who_loses_a_race_within_one_block_is_told_the_contracts_reason(
    world: AnvilWorld, scene: Scene
) -> None:
    """Before the block, and so in the estimate, all was well: only the state after it gives the reason."""
    call = await scene.open_call(await scene.terms())
    ends: list[Outcome | RevertedError] = []
    host, rival = await world.ledger("host"), await world.ledger("rival")
    world.anvil.ask("evm_setAutomine", False)

    async def relay(ledger: Ledger) -> None:
        try:
            ends.append(await ledger.transact(call))
        except RevertedError as error:
            ends.append(error)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, host)
            nursery.start_soon(relay, rival)
            await until(lambda: len(world.anvil.ask("txpool_content")["pending"]) == 2)
            world.anvil.ask("evm_mine")
    (lost,) = (end for end in ends if isinstance(end, RevertedError))
    assert lost.reason == "JobMarketplace: exists"
    assert lost.gas_used > 21_000
    assert (await scene.state(call.terms)).status == "open"


async def until(look: Callable[[], Any]) -> Any:
    """What it sees at last; the deadline is the caller's."""
    while True:
        if found := look():
            return found
        await trio.sleep(0.05)
