"""``DevChain``: an embedded chain with everything deployed, behind loopback JSON-RPC, and a faucet.

A block is mined for each transaction. Its time is the wall clock's (plus what ``evm_increaseTime`` added) and
never goes back, so that an expiry or a challenge takes real time. A request about a head older than
``block_time_s`` mines an empty block first: so an idle chain's time goes on, and nothing is mined while
nobody asks. With a state file the chain goes on where it ended (without the transactions that waited for a
block); without one it ends with its process. No two chains have the same first block or the same addresses:
what was signed for one is invalid on the next. The accounts' secrets are public: keep nothing of value here.

py-evm is synchronous: one worker thread at a time runs it, and each request runs to its end.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Never, TypeVar

import structlog
import trio

from p2pnode.chain.deployment_plan import Addresses, DeploymentPlan, plan_deployment
from p2pnode.chain.dev.blocks import Blocks
from p2pnode.chain.dev.embedded import Deployment, EmbeddedChain, deploy, deployed
from p2pnode.chain.dev.jsonrpc import JsonRpc
from p2pnode.chain.dev.jsonrpc_http import serve_http
from p2pnode.chain.dev.methods import DevClock, DevMethods, EthMethods
from p2pnode.chain.dev.saved_state import SavedState
from p2pnode.chain.dev.transaction_pool import TransactionPool
from p2pnode.chain.profile import ChainProfile, profile_of
from p2pnode.errors import ConfigError
from p2pnode.extras import need
from p2pnode.protocols.crypto import keccak256, key_address

log = structlog.get_logger()

T = TypeVar("T")
LOOPBACK: Final = "127.0.0.1"
ACCOUNTS: Final = 10
_NONCE_BYTES: Final = 6
_WITHOUT_SESSIONS: Final = frozenset({"NodeRegistry", "ModelRegistry"})
"""A chain that was saved with earlier ones of these goes on: what sessions hold on it must not be lost."""
BLOCK_TIME_S: Final = 2
"""As on Base."""


@dataclass(frozen=True, slots=True)
class DevAccount:
    """An account with a million ether on every development chain. Its secret is public."""

    address: bytes
    secret: bytes = field(repr=False)


def dev_account(number: int) -> DevAccount:
    """An account that is the same on every development chain. Number 0 deploys and mints, 1 is the
    treasury."""
    secret = keccak256(b"p2pnode development account %d" % number)
    return DevAccount(key_address(secret), secret)


class DevChain:
    """See the module. ``run`` it in a nursery (or use ``open_dev_chain``) before anything else is called."""

    def __init__(
        self,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        block_time_s: int | None = None,
        treasury: bytes | None = None,
        wall: Callable[[], float] = time.time,
        state: Path | None = None,
    ) -> None:
        """``block_time_s``: mine an empty block that often, also while nobody asks. ``state``: the file
        that stores the chain; it is made where there is none."""
        self._host, self._port, self._block_time_s = host, port, block_time_s
        self._clock, self._path = DevClock(wall), state
        self._turn = trio.CapacityLimiter(1)
        self.accounts = tuple(dev_account(number) for number in range(ACCOUNTS))
        self.treasury = treasury or self.accounts[1].address

    async def run(self, *, task_status: trio.TaskStatus[DevChain] = trio.TASK_STATUS_IGNORED) -> Never:
        """Deploy, and serve until cancelled. Raises ``ConfigError`` when the address can't be listened on,
        or the state can't be stored."""
        need("a development chain", "dev-chain")
        path = self._path
        state = None if path is None else await self._in_thread(lambda: SavedState(path))
        try:
            await self._run(state, task_status)
        finally:
            if state is not None:
                state.close()

    async def _run(self, state: SavedState | None, task_status: trio.TaskStatus[DevChain]) -> Never:
        await self._in_thread(lambda: self._make(state))
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
        """The seven addresses of a profile."""
        return self.deployment.addresses

    def profile(self) -> ChainProfile:
        """The chain profile that a node needs."""
        return profile_of(
            self.addresses, chain_id=self.chain_id, rpc_urls=(self.url,), name="development",
            genesis=self._chain.genesis,
        )  # fmt: skip

    async def use(self, work: Callable[[EmbeddedChain], T]) -> T:
        """Run ``work`` on the chain itself, in turn with the requests: for tests that change or read its
        state.

        ``deployment`` has the contracts' handles.
        """
        return await self._in_thread(lambda: work(self._chain))

    async def fund(self, address: bytes, *, usdc: int = 0, ether_wei: int = 0) -> None:
        """Mint USDC (in token units) and send ether (in wei)."""
        await self._in_thread(lambda: self._dev.fund(address, usdc, ether_wei))

    async def travel(self, seconds: int) -> None:
        """Move the chain's clock ahead, and mine a block then."""
        await self._in_thread(lambda: self._dev.travel(seconds))

    async def mine(self, count: int = 1) -> None:
        """Mine what waits, and empty blocks, ``count`` times in all."""
        await self._in_thread(lambda: self._dev.mine_many(count))

    def _make(self, state: SavedState | None) -> None:
        first = self.accounts[0].address
        saved = {} if state is None else state.made
        made = saved or {
            "first_nonce": str(int.from_bytes(secrets.token_bytes(_NONCE_BYTES), "big")),
            "treasury": self.treasury.hex(),
        }
        self.treasury = bytes.fromhex(made["treasury"])
        self.went_on = bool(saved)
        nonce = int(made["first_nonce"])
        self._chain = EmbeddedChain(
            (account.secret for account in self.accounts), clock=self._clock, first_nonce=nonce, state=state
        )
        self.chain_id = self._chain.chain_id
        todo = plan_deployment(deployer=first, nonce=nonce, treasury=self.treasury, fab_holder=first)
        code = keccak256(b"".join(step.initcode for step in todo.steps)).hex()
        if saved:
            self._go_on(saved, code, todo)
        else:
            self.deployment: Deployment = deploy(self._chain, first, treasury=self.treasury, fab_holder=first)
            if state is not None:
                state.begin({**made, "contracts": code})
        blocks, pool = Blocks(self._chain), TransactionPool(self._chain)
        blocks.read()  # reading a long chain takes seconds, which no request should wait for
        self._dev = DevMethods(
            self._chain, pool, self._clock, usdc=self.deployment.usdc, fab=self.deployment.fab
        )
        look = self._look_at(pool)
        self._rpc = JsonRpc({**EthMethods(self._chain, blocks, pool, look).methods(), **self._dev.methods()})

    def _go_on(self, saved: dict[str, str], code: str, todo: DeploymentPlan) -> None:
        if saved["contracts"] != code:
            made = (self._chain.creation(number) for number in range(1, len(todo.steps) + 1))
            others = {
                step.contract for step, data in zip(todo.steps, made, strict=True) if data != step.initcode
            }
            if not others <= _WITHOUT_SESSIONS:
                msg = f"{self._path} holds contracts of another version: begin a new chain with --fresh"
                raise ConfigError(msg)
            log.warning("devchain.older_registries", contracts=sorted(others))
        self.deployment = deployed(self._chain, todo.addresses)
        # Seconds that were added before are kept, for the chain's time must never go back.
        self._clock.ahead_s = max(0, self._chain.now - self._clock())

    def _look_at(self, pool: TransactionPool) -> Callable[[], None]:
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
    """Run a development chain in this block. The options are ``DevChain``'s."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(DevChain(**options).run)
        nursery.cancel_scope.cancel()
