"""The development chain's JSON-RPC in this process, for the EVM ledger: no sockets, no threads, so that
trio's mock clock can be in charge; and endpoints in front of it that fail as told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import httpx
import trio

from p2pnode.chain.dev.blocks import Blocks
from p2pnode.chain.dev.embedded import EmbeddedChain, deploy
from p2pnode.chain.dev.jsonrpc import JsonRpc
from p2pnode.chain.dev.methods import EthMethods
from p2pnode.chain.dev.transaction_pool import TransactionPool
from p2pnode.chain.evm.ledger import EvmLedger, EvmLimits
from p2pnode.chain.evm.rpc import RpcLimits
from p2pnode.chain.evm.transaction_sender import SenderLimits
from p2pnode.chain.ledger import RegistryLedger
from tests.chain.contracts.support import ADDRESS, BALANCE, SECRETS, sign

URL = "http://one.invalid/v2/secret-key"
OTHER_URL = "http://two.invalid"
QUICK = EvmLimits(
    rpc=RpcLimits(),
    sender=SenderLimits(poll_first_s=0.01),
)
Fault: TypeAlias = Callable[[str, bytes], Awaitable[httpx.Response]]
"""Method and body of a request, to an answer (or an exception of httpx)."""


class LocalChain:
    """A chain with the contracts deployed and the payers funded. Blocks are mined as transactions come,
    unless ``pool.automine`` is off."""

    def __init__(self) -> None:
        self.chain = EmbeddedChain(SECRETS.values())
        deployer = ADDRESS["deployer"]
        self.made = deploy(self.chain, deployer, treasury=ADDRESS["treasury"], fab_holder=deployer)
        for name in ("payer", "other payer"):
            self.made.usdc.send(deployer, "mint", ADDRESS[name], BALANCE)
        self.pool = TransactionPool(self.chain)
        self.eth = EthMethods(self.chain, Blocks(self.chain), self.pool, lambda: None)
        self.rpc = JsonRpc(self.eth.methods())

    def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            self.pool.mine()


class LocalRpc(httpx.AsyncBaseTransport):
    """Endpoints in front of ``local``, under any host name; ``faults`` replaces what one of them answers."""

    def __init__(self, local: LocalChain) -> None:
        self.local = local
        self.faults: dict[str, Fault] = {}
        self.asked: list[tuple[str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        body = await request.aread()
        method = json.loads(body)["method"]
        host = request.url.host.partition(".")[0]
        self.asked.append((host, method))
        fault = self.faults.get(host)
        return self.answer(body) if fault is None else await fault(method, body)

    def answer(self, body: bytes) -> httpx.Response:
        return httpx.Response(200, stream=Body(self.local.rpc.answer(body)))

    def count(self, method: str) -> int:
        return sum(asked == method for _, asked in self.asked)

    async def connect(self, name: str | None = None, **options: Any) -> EvmLedger:
        """A ledger that sends as an actor. The caller runs and closes it."""
        found = self.local.made.addresses
        fields: dict[str, Any] = {
            "chain_id": self.local.chain.chain_id, "rpc_urls": [URL], "limits": QUICK,
            "job_marketplace": found.job_marketplace, "usdc": found.usdc,
            "node_registry": found.node_registry, "fab": found.fab,
            "model_registry": found.model_registry,
            "jitter": lambda: 0.5, "transport": self,
        }  # fmt: skip
        if name is not None:
            fields |= {"account": ADDRESS[name], "sign": lambda digest: sign(name, digest)}
        return await EvmLedger.connect(**(fields | options))


class Body(httpx.AsyncByteStream):
    """An answer's body, as it comes from a socket."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            await trio.lowlevel.checkpoint()
            yield part


class EvmWorld:
    """A ``LedgerWorld`` (see the conformance suite) on ``local``."""

    def __init__(self, rpc: LocalRpc, nursery: trio.Nursery) -> None:
        self._rpc, self._nursery = rpc, nursery
        self._ledgers: dict[str | None, EvmLedger] = {}

    async def ledger(self, name: str | None) -> RegistryLedger:
        if name not in self._ledgers:
            self._ledgers[name] = await self._rpc.connect(name)
            await self._nursery.start(self._ledgers[name].run)
        return self._ledgers[name]

    async def travel(self, seconds: int) -> None:
        self._rpc.local.chain.travel(seconds)

    async def freeze(self, name: str) -> None:
        self._rpc.local.made.usdc.send(ADDRESS["deployer"], "blacklist", ADDRESS[name])

    async def give_fab(self, name: str, amount: int) -> None:
        self._rpc.local.made.fab.send(ADDRESS["deployer"], "transfer", ADDRESS[name], amount)

    async def aclose(self) -> None:
        for ledger in self._ledgers.values():
            await ledger.aclose()


@asynccontextmanager
async def evm_world(local: LocalChain) -> AsyncIterator[EvmWorld]:
    """A ``LedgerWorld`` on a chain as it stands."""
    async with trio.open_nursery() as nursery:
        world = EvmWorld(LocalRpc(local), nursery)
        yield world
        nursery.cancel_scope.cancel()
    await world.aclose()
