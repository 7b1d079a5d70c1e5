"""A development chain: an embedded chain with everything deployed, behind loopback JSON-RPC, and a faucet.

Blocks are mined per transaction, and their time is the wall clock's (plus what ``evm_increaseTime`` added),
never going back, so that an expiry or a challenge means real time. Whoever looks at a head that is older
than ``block_time_s`` finds a fresh empty block: an idle chain's time goes on, and nothing is mined while
nobody looks. All state is in memory. The accounts' secrets are public: nothing of worth belongs here.

py-evm is synchronous: one worker thread at a time runs it, and each request runs to its end.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Never, TypeVar

import structlog
import trio

from p2pnode.chain.deploy import Addresses
from p2pnode.chain.dev.blocks import Blocks
from p2pnode.chain.dev.embedded import Deployment, EmbeddedChain, address_of_secret, deploy
from p2pnode.chain.dev.jsonrpc import JsonRpc
from p2pnode.chain.dev.jsonrpc_dev import Dev
from p2pnode.chain.dev.jsonrpc_eth import Eth
from p2pnode.chain.dev.jsonrpc_http import serve_http
from p2pnode.chain.dev.pool import Pool
from p2pnode.chain.profile import ChainProfile, profile_of
from p2pnode.protocols.crypto import keccak256

log = structlog.get_logger()

T = TypeVar("T")
LOOPBACK: Final = "127.0.0.1"
ACCOUNTS: Final = 10
BLOCK_TIME_S: Final = 2
"""As on Base."""


@dataclass(frozen=True, slots=True)
class DevAccount:
    """An account with a million ether on every development chain, whose secret everybody knows."""

    address: bytes
    secret: bytes = field(repr=False)


def dev_account(number: int) -> DevAccount:
    """The same on every development chain. Number 0 deploys and mints, number 1 is the treasury."""
    secret = keccak256(b"p2pnode development account %d" % number)
    return DevAccount(address_of_secret(secret), secret)


class DevClock:
    """The wall's seconds, and what a test added to them."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self.ahead_s = 0

    def __call__(self) -> int:
        return int(self._wall()) + self.ahead_s


class DevChain:
    """See the module. ``run`` it in a nursery (or use ``open_dev_chain``); all else after it started."""

    def __init__(
        self,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        block_time_s: int | None = None,
        treasury: bytes | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``block_time_s``: mine an empty block that often whether or not anybody looks."""
        self._host, self._port, self._block_time_s = host, port, block_time_s
        self._clock = DevClock(wall)
        self._turn = trio.CapacityLimiter(1)
        self.accounts = tuple(dev_account(number) for number in range(ACCOUNTS))
        self.treasury = treasury or self.accounts[1].address

    async def run(self, *, task_status: trio.TaskStatus[DevChain] = trio.TASK_STATUS_IGNORED) -> Never:
        """Deploy, serve until cancelled. Raises ``ConfigError`` when the address can't be listened on."""
        await self._in_thread(self._make)
        async with trio.open_nursery() as nursery:
            port = await nursery.start(self._serve)
            self.url = f"http://{self._host}:{port}"
            log.info("devchain.started", url=self.url, chain_id=self.chain_id)
            if self._block_time_s is not None:
                nursery.start_soon(self._tick, self._block_time_s)
            task_status.started(self)
        raise AssertionError  # the nursery ends with its cancellation only

    @property
    def addresses(self) -> Addresses:
        """The seven of a profile."""
        return self.deployment.addresses

    def profile(self) -> ChainProfile:
        """What a node needs to know of it."""
        return profile_of(self.addresses, chain_id=self.chain_id, rpc_urls=(self.url,), name="development")

    async def use(self, work: Callable[[EmbeddedChain], T]) -> T:
        """Run something on the chain itself, in turn with the requests: for tests that blacklist or look.

        ``deployment`` has the contracts' handles.
        """
        return await self._in_thread(lambda: work(self._chain))

    async def fund(self, address: bytes, *, usdc: int = 0, ether_wei: int = 0) -> None:
        """The faucet: mint USDC (token units), send ether (wei)."""
        await self._in_thread(lambda: self._dev.fund(address, usdc, ether_wei))

    async def travel(self, seconds: int) -> None:
        """Let the chain's clock jump ahead, and mine a block there."""
        await self._in_thread(lambda: self._dev.travel(seconds))

    async def mine(self, count: int = 1) -> None:
        """Mine what waits, and empty blocks."""
        await self._in_thread(lambda: self._dev.mine_many(count))

    def _make(self) -> None:
        self._chain = EmbeddedChain((account.secret for account in self.accounts), clock=self._clock)
        self.chain_id = self._chain.chain_id
        first = self.accounts[0].address
        self.deployment: Deployment = deploy(self._chain, first, treasury=self.treasury, fab_holder=first)
        blocks, pool = Blocks(self._chain), Pool(self._chain)
        self._dev = Dev(self._chain, pool, self._clock, self.deployment.usdc)
        look = self._look_at(pool)
        self._rpc = JsonRpc({**Eth(self._chain, blocks, pool, look).methods(), **self._dev.methods()})

    def _look_at(self, pool: Pool) -> Callable[[], None]:
        def look() -> None:
            if pool.automine and self._chain.next_timestamp - self._chain.now >= BLOCK_TIME_S:
                pool.mine()

        return look

    async def _serve(self, *, task_status: trio.TaskStatus[int]) -> None:
        await serve_http(self._answer, host=self._host, port=self._port, task_status=task_status)

    async def _answer(self, body: bytes) -> bytes:
        return await self._in_thread(lambda: self._rpc.answer(body))

    async def _tick(self, every_s: int) -> None:
        while True:
            await trio.sleep(every_s)
            await self.mine()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._turn)


@asynccontextmanager
async def open_dev_chain(**options: Any) -> AsyncIterator[DevChain]:
    """A running one (see ``DevChain`` for the options), gone at the end of the block."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(DevChain(**options).run)
        nursery.cancel_scope.cancel()
