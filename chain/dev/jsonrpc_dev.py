"""What only a development chain can do: time travel, mining at will, snapshots, and the faucet.

The names are ganache's (and so hardhat's and anvil's) where there is one. ``dev_fund`` is ours: a node that
doesn't know it is no development chain, and has nothing to give.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from p2pnode.chain.dev.embedded import ETHER, Contract, EmbeddedChain
from p2pnode.chain.dev.jsonrpc_values import ADDRESS_BYTES, REFUSED, RpcRefusedError, bytes_of, quantity_of
from p2pnode.chain.dev.pool import Pool
from p2pnode.chain.ledger import RevertedError

MINE_MAX: Final = 1_000
TRAVEL_MAX_S: Final = 10 * 365 * 86_400
SNAPSHOTS_MAX: Final = 64
GIFTS_MAX: Final = 1_000
ORDER_BYTES: Final = 16
USDC_MAX: Final = 10**18
ETHER_MAX: Final = 10_000 * ETHER


class Clock(Protocol):
    """What time travel moves."""

    ahead_s: int

    def __call__(self) -> int:
        """Now, in epoch seconds."""


class Dev:
    """The first account of ``chain`` mints ``usdc``."""

    def __init__(self, chain: EmbeddedChain, pool: Pool, clock: Clock, usdc: Contract) -> None:
        self._chain, self._pool, self._clock, self._usdc = chain, pool, clock, usdc
        self._snapshots: list[tuple[str, bytes, int]] = []
        self._given: deque[str] = deque(maxlen=GIFTS_MAX)
        self._taken = 0

    def methods(self) -> dict[str, Callable[..., Any]]:
        """By their names."""
        return {
            "evm_increaseTime": self._increase_time,
            "evm_setNextBlockTimestamp": self._set_time,
            "evm_mine": self._mine,
            "evm_setAutomine": self._set_automine,
            "evm_snapshot": self._snapshot,
            "evm_revert": self._revert,
            "dev_fund": self._fund,
        }

    def fund(self, address: bytes, usdc: int, ether_wei: int) -> None:
        """Mint and send. Raises ``RpcRefusedError`` beyond what a faucet gives."""
        if not 0 <= usdc <= USDC_MAX or not 0 <= ether_wei <= ETHER_MAX:
            msg = f"the faucet gives at most {USDC_MAX} units of USDC and {ETHER_MAX} wei at once"
            raise RpcRefusedError(REFUSED, msg)
        giver = self._chain.accounts[0]
        if usdc:
            self._usdc.send(giver, "mint", address, usdc)
        if ether_wei:
            self._chain.send(giver, address, b"", value=ether_wei)

    def travel(self, seconds: int) -> None:
        """Move the clock ahead, and mine."""
        self._increase_time(seconds)
        self._pool.mine()

    def mine_many(self, count: int) -> None:
        """What waits, then empty blocks."""
        if not 1 <= count <= MINE_MAX:
            raise RpcRefusedError(REFUSED, f"1 to {MINE_MAX} blocks at once")
        for _ in range(count):
            self._pool.mine()

    def _increase_time(self, seconds: Any) -> str:
        ahead = quantity_of(seconds, "seconds")
        if ahead > TRAVEL_MAX_S:
            raise RpcRefusedError(REFUSED, f"at most {TRAVEL_MAX_S} seconds at once")
        self._clock.ahead_s += ahead
        return hex(self._clock.ahead_s)

    def _set_time(self, timestamp: Any) -> None:
        wanted = quantity_of(timestamp, "timestamp")
        if not self._chain.now <= wanted <= self._clock() + TRAVEL_MAX_S:
            raise RpcRefusedError(
                REFUSED, f"timestamp {wanted} is before the last block's, {self._chain.now}"
            )
        self._clock.ahead_s += wanted - self._clock()

    def _mine(self, count: Any = 1) -> str:
        self.mine_many(quantity_of(count, "blocks"))
        return "0x0"

    def _set_automine(self, on: Any) -> bool:
        self._pool.automine = on is True
        if self._pool.automine:
            self._pool.mine_ready()
        return True

    def _snapshot(self) -> str:
        self._taken += 1
        name = hex(self._taken)
        self._snapshots = [*self._snapshots, (name, self._chain.snapshot(), self._clock.ahead_s)][
            -SNAPSHOTS_MAX:
        ]
        return name

    def _revert(self, name: Any) -> bool:
        """Later snapshots go with it, as everywhere; waiting transactions are dropped."""
        names = [taken for taken, _, _ in self._snapshots]
        if name not in names:
            return False
        at = names.index(name)
        _, block, self._clock.ahead_s = self._snapshots[at]
        del self._snapshots[at:]
        self._chain.revert(block)
        self._pool.clear()
        return True

    def _fund(self, address: Any, usdc: Any = 0, ether_wei: Any = 0, order: Any = None) -> bool:
        """``order`` numbers a gift: who asks again, for the answer was lost, is given once."""
        account = bytes_of(address, "address", size=ADDRESS_BYTES)
        number = None if order is None else bytes_of(order, "order", size=ORDER_BYTES).hex()
        if number is not None and number in self._given:
            return True
        try:
            self.fund(account, quantity_of(usdc, "usdc"), quantity_of(ether_wei, "ether"))
        except RevertedError as error:
            raise RpcRefusedError(REFUSED, str(error)) from error
        if number is not None:
            self._given.append(number)
        return True
