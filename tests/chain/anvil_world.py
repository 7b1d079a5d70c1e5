"""anvil, another implementation of a chain, as a ``LedgerWorld``: for ``make test-anvil``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from p2pnode.chain.abi import artifact
from p2pnode.chain.deployment_plan import Addresses, plan_deployment
from p2pnode.chain.dev.rpc_chain import running_anvil
from p2pnode.chain.evm.ledger import EvmLedger, EvmLimits
from p2pnode.chain.evm.transaction_sender import SenderLimits
from p2pnode.chain.ledger import RegistryLedger
from tests.chain.contracts.support import ADDRESS, BALANCE, sign

CHAIN_ID = 84_532
WEALTH = 10**21
QUICK = EvmLimits(sender=SenderLimits(poll_first_s=0.02))


class Anvil:
    """A running anvil, its JSON-RPC without waiting, and everything deployed on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(trust_env=False)

    def deploy(self) -> None:
        for address in ADDRESS.values():
            self.ask("anvil_setBalance", "0x" + address.hex(), hex(WEALTH))
        todo = plan_deployment(
            deployer=ADDRESS["deployer"],
            nonce=0,
            treasury=ADDRESS["treasury"],
            fab_holder=ADDRESS["deployer"],
        )
        for step in todo.steps:
            made = self.send("deployer", None, step.initcode)["contractAddress"]
            assert bytes.fromhex(made[2:]) == step.address
        self.addresses: Addresses = todo.addresses
        for name in ("payer", "other payer"):
            self.token("mint", ADDRESS[name], BALANCE)

    def ask(self, method: str, *params: Any) -> Any:
        asked = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = self._client.post(self.url, json=asked).json()
        assert "result" in answer, answer
        return answer["result"]

    def send(self, name: str, to: bytes | None, data: bytes) -> dict[str, Any]:
        order = {"from": "0x" + ADDRESS[name].hex(), "data": "0x" + data.hex(), "gas": hex(8_000_000)}
        if to is not None:
            order["to"] = "0x" + to.hex()
        sent = self.ask("eth_sendTransaction", order)
        deadline = time.monotonic() + 5
        while (receipt := self.ask("eth_getTransactionReceipt", sent)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert receipt["status"] == "0x1"
        return dict(receipt)

    def token(self, name: str, *arguments: Any) -> None:
        data = artifact("USDC").function(name, len(arguments)).encode(arguments)
        self.send("deployer", self.addresses.usdc, data)

    def close(self) -> None:
        self._client.close()


@contextmanager
def deployed_anvil(program: Path) -> Iterator[Anvil]:
    """Run a new anvil with everything deployed."""
    options = ("--chain-id", str(CHAIN_ID), "--auto-impersonate", "--accounts", "1")
    with running_anvil(program, *options) as url:
        anvil = Anvil(url)
        try:
            anvil.deploy()
            yield anvil
        finally:
            anvil.close()


class AnvilWorld:
    """See ``LedgerWorld``."""

    def __init__(self, anvil: Anvil, nursery: trio.Nursery) -> None:
        self.anvil, self._nursery = anvil, nursery
        self._ledgers: dict[str | None, EvmLedger] = {}

    async def ledger(self, name: str | None, limits: EvmLimits = QUICK) -> RegistryLedger:
        if name not in self._ledgers:
            found = self.anvil.addresses
            self._ledgers[name] = ledger = await EvmLedger.connect(
                chain_id=CHAIN_ID, rpc_urls=[self.anvil.url], job_marketplace=found.job_marketplace,
                usdc=found.usdc, node_registry=found.node_registry, fab=found.fab,
                model_registry=found.model_registry, limits=limits,
                account=None if name is None else ADDRESS[name],
                sign=None if name is None else lambda digest: sign(name, digest),
            )  # fmt: skip
            await self._nursery.start(ledger.run)
        return self._ledgers[name]

    async def travel(self, seconds: int) -> None:
        self.anvil.ask("evm_increaseTime", seconds)
        self.anvil.ask("evm_mine")

    async def freeze(self, name: str) -> None:
        self.anvil.token("blacklist", ADDRESS[name])

    async def give_fab(self, name: str, amount: int) -> None:
        transfer = artifact("FAB").function("transfer", 2).encode((ADDRESS[name], amount))
        self.anvil.send("deployer", self.anvil.addresses.fab, transfer)

    async def aclose(self) -> None:
        for ledger in self._ledgers.values():
            await ledger.aclose()


@asynccontextmanager
async def anvil_world(program: Path) -> AsyncIterator[AnvilWorld]:
    """A ``LedgerWorld`` on a new chain."""
    with deployed_anvil(program) as anvil:
        async with trio.open_nursery() as nursery:
            world = AnvilWorld(anvil, nursery)
            yield world
            nursery.cancel_scope.cancel()
        await world.aclose()
