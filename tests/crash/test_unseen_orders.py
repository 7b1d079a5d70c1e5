"""A withdrawal whose end no endpoint shows: whatever is pressed, killed or tried again, it is paid once.

The commands are processes, the chain is a development chain behind an endpoint that hides what was mined.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.ledger import EvmLedger
from p2pnode.chain.ledger import Close
from p2pnode.chain.profile import write_profile
from tests.chain.contracts.support import ADDRESS, BALANCE
from tests.chain.ledger_conformance import Scene
from tests.cli.support import Program, start
from tests.crash.parties import ETHER
from tests.crash.rpc_proxy import RpcProxy, hiding, rpc_proxy
from tests.crash.support import CrashWorld, crash_world, until

SOMEBODY = b"\x77" * 20


@dataclass
class Shop:
    """A host's data dir, with earnings in the market, and its commands through the endpoint."""

    w: CrashWorld
    proxy: RpcProxy
    folder: Path
    started: int = 0

    def command(self, *arguments: object) -> Program:
        self.started += 1
        flags = ("--data-dir", self.folder / "host", "--chain", self.folder / "proxied.toml")
        return start(self.folder, f"command{self.started}", [*arguments, *flags])

    def withdraw(self, units: int, *more: object) -> Program:
        given = ("--to", shown_address(SOMEBODY), "--amount", f"0.{units:06d}", "--yes")
        return self.command("funds", "withdraw", *given, *more)

    async def paid(self) -> int:
        return (await self.w.ledger.balances(SOMEBODY)).usdc

    @property
    def sent(self) -> int:
        return self.proxy.asked.count("eth_sendRawTransaction")

    async def until_paid(self, units: int) -> None:
        async def is_paid() -> bool:
            return await self.paid() == units

        await until(is_paid, f"{units} units have left the market")


async def event(program: Program, name: str) -> dict[str, Any]:
    """In a thread: the chain is served by this loop."""
    return await trio.to_thread.run_sync(program.wait_event, name)


async def code(program: Program) -> int:
    return await trio.to_thread.run_sync(program.wait)


@asynccontextmanager
async def shop(folder: Path) -> AsyncIterator[Shop]:
    async with crash_world(folder) as w, rpc_proxy(w.chain.url) as proxy:
        write_profile(folder / "proxied.toml", replace(w.chain.profile(), rpc_urls=(proxy.url,)))
        mine = (await w.party("host", ether=ETHER)).wallet
        await w.chain.fund(ADDRESS["payer"], usdc=BALANCE)
        sign = await trio.to_thread.run_sync(mine.unlock)
        ledger = await EvmLedger.of_profile(w.chain.profile(), account=mine.address, sign=sign)
        async with trio.open_nursery() as nursery:
            await nursery.start(ledger.run)
            scene = Scene(None, ledger)  # type: ignore[arg-type]
            terms = await scene.terms(host=mine.address)
            await ledger.transact(await scene.open_call(terms))
            await ledger.transact(Close(terms, scene.voucher(terms)))
            nursery.cancel_scope.cancel()
        await ledger.aclose()
        yield Shop(w, proxy, folder)


@pytest.mark.long
async def test_a_withdrawal_that_was_interrupted_is_found_again_and_never_paid_twice(tmp_path: Path) -> None:
    async with shop(tmp_path) as s:
        s.proxy.fault = hiding
        with s.withdraw(100) as first:
            await s.until_paid(100)
            first.interrupt()
            told = await event(first, "order.waiting")
            assert await code(first) == 130
        assert told["order"] == f"withdraw 0.0001 USDC to {shown_address(SOMEBODY)}"

        with s.command("funds") as looking:  # the next command says so, too
            assert await event(looking, "order.waiting") == told
            assert await code(looking) == 0

        with s.withdraw(100) as again:
            assert await event(again, "order.waiting") == told
            s.proxy.fault = None
            ended = await event(again, "order.ended")
            assert await code(again) == 0
        assert ended == {"event": "order.ended", "order": told["order"], "ending": "done"}
        assert "withdrawn" not in again.names
        assert (await s.paid(), s.sent) == (100, 1)

        with s.withdraw(100) as another:  # the earlier one has ended: this is an order of its own
            assert await code(another) == 0
        assert (await s.paid(), s.sent) == (200, 2)


@pytest.mark.long
async def test_a_withdrawal_whose_process_was_killed_after_sending_is_waited_for(tmp_path: Path) -> None:
    async with shop(tmp_path) as s:
        s.proxy.fault = hiding
        with s.withdraw(100) as first:
            await s.until_paid(100)
            first.kill()
        s.proxy.fault = None
        with s.withdraw(50) as again:  # another amount: a person must know of the first before
            assert (await event(again, "order.ended"))["ending"] == "done"
            assert await code(again) == 0
        assert (await s.paid(), s.sent) == (100, 1)


@pytest.mark.long
async def test_a_withdrawal_that_never_reached_a_node_is_sent_once_by_the_next_command(
    tmp_path: Path,
) -> None:
    async def deaf(proxy: RpcProxy, body: bytes) -> bytes:
        if b"eth_sendRawTransaction" in body:
            await trio.sleep_forever()
        return await proxy.forward(body)

    async with shop(tmp_path) as s:
        s.proxy.fault = deaf
        with s.withdraw(100) as first:

            async def asked() -> bool:
                return s.sent == 1

            await until(asked, "the withdrawal is on its way to a node that takes nothing")
            first.kill()
        assert await s.paid() == 0
        s.proxy.fault = None
        with s.withdraw(100) as again:
            assert await code(again) == 0
        assert await s.paid() == 100


@pytest.mark.long
async def test_two_commands_at_once_order_one_withdrawal(tmp_path: Path) -> None:
    async with shop(tmp_path) as s:
        s.proxy.fault = hiding
        with s.withdraw(100) as first:
            await s.until_paid(100)
            with s.withdraw(100) as second:
                await event(second, "order.waiting")
                s.proxy.fault = None
                assert await code(second) == 0
            assert await code(first) == 0
        assert (first.names, "order.ended" in second.names) == (["withdrawn"], True)
        assert (await s.paid(), s.sent) == (100, 1)


@pytest.mark.long
async def test_an_owner_may_order_anew_what_nobody_can_find(tmp_path: Path) -> None:
    async with shop(tmp_path) as s:
        s.proxy.fault = hiding
        with s.withdraw(100) as first:
            await s.until_paid(100)
            first.kill()
        s.proxy.fault = None
        with s.withdraw(50, "--anew") as again:
            assert await code(again) == 0
        assert await s.paid() == 150
