"""The methods of a development chain's JSON-RPC, answered from an embedded chain.

``EthMethods`` are those that wallets and our ledger ask of any node. A call about the latest state runs in
the *next* block, so that on an idle chain its time is now, as it would be on a chain that is never idle.

``DevMethods`` are those that only a development chain has: time travel, mining, snapshots, and the faucet.
They have ganache's names (and so hardhat's and anvil's) where there is one. ``dev_fund`` is ours: a node that
doesn't know it is no development chain, and has no faucet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from p2pnode.chain.dev.blocks import Blocks, Json, Mined, shown_header, shown_transaction
from p2pnode.chain.dev.embedded import BLOCK_GAS, ETHER, Contract, EmbeddedChain, failure_of, revert_reason
from p2pnode.chain.dev.jsonrpc import (
    ADDRESS_BYTES,
    BAD_PARAMETERS,
    REFUSED,
    REVERTED,
    WORD_BYTES,
    RpcRefusedError,
    bytes_of,
    fields_of,
    hexed,
    quantity_of,
)
from p2pnode.chain.dev.transaction_pool import TransactionPool
from p2pnode.chain.ledger import RevertedError
from p2pnode.errors import ChainError

TIP_WEI: Final = 10**6
"""The tip that is suggested, in wei per gas. No miner needs one here."""

Storage: TypeAlias = dict[tuple[bytes, int], int]
"""A contract and a slot, to the word that is to stand there."""
_NOBODY: Final = bytes(ADDRESS_BYTES)
_LATEST: Final = frozenset({"latest", "safe", "finalized", "pending"})
_HISTORY_MAX: Final = 1024
_TOPICS_MAX: Final = 4
_PLAIN_GAS: Final = 21_000


class EthMethods:
    """See the module. ``look`` is called before each answer about the head, and may mine a new block."""

    def __init__(
        self, chain: EmbeddedChain, blocks: Blocks, pool: TransactionPool, look: Callable[[], None]
    ) -> None:
        self._chain, self._blocks, self._pool, self._look = chain, blocks, pool, look

    def methods(self) -> dict[str, Callable[..., Any]]:
        """By their names."""
        chain = self._chain
        return {
            "web3_clientVersion": lambda: "p2pnode-devchain/1",
            "net_version": lambda: str(chain.chain_id),
            "net_listening": lambda: True,
            "eth_chainId": lambda: hex(chain.chain_id),
            "eth_syncing": lambda: False,
            "eth_accounts": lambda: [hexed(account) for account in chain.accounts],
            "eth_blockNumber": lambda: hex(self._head().height),
            "eth_gasPrice": lambda: hex(chain.base_fee + TIP_WEI),
            "eth_maxPriorityFeePerGas": lambda: hex(TIP_WEI),
            "eth_feeHistory": self._fee_history,
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getBalance": self._balance,
            "eth_getCode": self._code,
            "eth_getStorageAt": self._storage,
            "eth_getTransactionCount": self._transaction_count,
            "eth_call": self._call,
            "eth_estimateGas": self._estimate,
            "eth_sendRawTransaction": lambda raw: hexed(self._pool.submit(bytes_of(raw, "transaction"))),
            "eth_getTransactionByHash": self._transaction,
            "eth_getTransactionReceipt": self._receipt,
            "eth_getLogs": self._logs,
        }

    # Blocks

    def _head(self) -> Blocks:
        self._look()
        return self._read()

    def _read(self) -> Blocks:
        self._blocks.read()
        return self._blocks

    def _number(self, tag: Any) -> int | None:
        """A block's number; None for one that doesn't exist."""
        blocks = self._read()
        if isinstance(tag, dict):
            if "blockHash" in tag:
                found = blocks.by_hash(bytes_of(tag["blockHash"], "blockHash", size=WORD_BYTES))
                return None if found is None else int(found.block.number)
            tag = tag.get("blockNumber")
        if tag in _LATEST:
            return self._head().height
        number = 0 if tag == "earliest" else quantity_of(tag, "block")
        return number if number <= blocks.height else None

    def _block_by_number(self, tag: Any, full: Any = False) -> Json | None:
        if tag == "pending":
            header = self._chain.evm.header.copy(timestamp=self._chain.next_timestamp)
            return {**shown_header(header), "hash": None, "transactions": []}
        number = self._number(tag)
        return None if number is None else self._blocks[number].shown(full=full is True)

    def _block_by_hash(self, block_hash: Any, full: Any = False) -> Json | None:
        found = self._read().by_hash(bytes_of(block_hash, "hash", size=WORD_BYTES))
        return None if found is None else found.shown(full=full is True)

    # State

    def _header(self, tag: Any) -> Any:
        """Whose state and time a question is about; None is the next block."""
        if isinstance(tag, str) and tag in _LATEST:
            return None
        number = self._number(tag)
        if number is None:
            raise RpcRefusedError(REFUSED, "header not found")
        return self._blocks[number].block.header

    def _state(self, tag: Any) -> Any:
        header = self._header(tag)
        return self._chain.evm.get_vm(at_header=header or self._chain.evm.header).state

    def _balance(self, account: Any, tag: Any = "latest") -> str:
        return hex(self._state(tag).get_balance(_address(account)))

    def _code(self, account: Any, tag: Any = "latest") -> str:
        return hexed(self._state(tag).get_code(_address(account)))

    def _storage(self, account: Any, slot: Any, tag: Any = "latest") -> str:
        word = self._state(tag).get_storage(_address(account), quantity_of(slot, "slot"))
        return hexed(int(word).to_bytes(WORD_BYTES, "big"))

    def _transaction_count(self, account: Any, tag: Any = "latest") -> str:
        if tag == "pending":
            return hex(self._pool.next_nonce(_address(account)))
        return hex(self._state(tag).get_nonce(_address(account)))

    # Calls

    def _call(self, call: Any, tag: Any = "latest", changed: Any = None) -> str:
        _, computation = self._run(call, tag, None, _changed_storage(changed))
        if computation.is_error:
            raise _failure(computation)
        return hexed(computation.output)

    def _run(self, call: Any, tag: Any, gas: int | None, storage: Storage) -> tuple[int, Any]:
        fields = fields_of(call, "call")
        sender = _address(fields["from"]) if fields.get("from") else _NOBODY
        to = _address(fields["to"]) if fields.get("to") else b""
        data = bytes_of(fields.get("input") or fields.get("data") or "0x", "data")
        value = quantity_of(fields.get("value") or 0, "value")
        if gas is None:
            gas = quantity_of(fields.get("gas") or BLOCK_GAS, "gas")
        header = self._header(tag)
        held = self._state(tag).get_balance(sender)
        if held < value:
            msg = (
                f"insufficient funds for gas * price + value: address {hexed(sender)} "
                f"have {held} want {value}"
            )
            raise RpcRefusedError(REFUSED, msg)
        try:
            return self._chain.execute(
                sender, to, data, gas=min(gas, BLOCK_GAS), value=value, header=header, storage=storage
            )
        except ChainError as error:
            raise RpcRefusedError(REFUSED, str(error)) from error

    def _estimate(self, call: Any, tag: Any = "latest", changed: Any = None) -> str:
        """The least gas that suffices, within 1.5% as in geth. A call may need more than it uses, since an
        inner call gets at most 63/64 of what is left."""
        fields = fields_of(call, "call")
        high = min(quantity_of(fields.get("gas") or BLOCK_GAS, "gas"), BLOCK_GAS)
        storage = _changed_storage(changed)
        used, computation = self._run(call, tag, high, storage)
        if computation.is_error:
            raise _failure(computation)
        low = max(used - 1, _PLAIN_GAS - 1)
        likely = (used + int(computation.get_gas_refund())) * 64 // 63 + 1
        for attempt in (used, likely):
            if low < attempt < high:
                fits = self._suffices(call, tag, attempt, storage)
                low, high = (low, attempt) if fits else (attempt, high)
        while (high - low) * 1000 > high * 15:
            middle = (low + high) // 2
            fits = self._suffices(call, tag, middle, storage)
            low, high = (low, middle) if fits else (middle, high)
        return hex(high)

    def _suffices(self, call: Any, tag: Any, gas: int, storage: Storage) -> bool:
        return not self._run(call, tag, gas, storage)[1].is_error

    # Transactions

    def _transaction(self, transaction_hash: Any) -> Json | None:
        wanted = bytes_of(transaction_hash, "hash", size=WORD_BYTES)
        mined = self._read().transaction(wanted)
        if mined is not None:
            return mined
        waiting = self._pool.find(wanted)
        return None if waiting is None else shown_transaction(waiting)

    def _receipt(self, transaction_hash: Any) -> Json | None:
        return self._read().receipt(bytes_of(transaction_hash, "hash", size=WORD_BYTES))

    def _logs(self, wanted: Any) -> list[Json]:
        fields = fields_of(wanted, "filter")
        topics = [_either(topic, "topic", WORD_BYTES) for topic in fields.get("topics") or []]
        addresses = _either(fields.get("address"), "address", ADDRESS_BYTES)
        if len(topics) > _TOPICS_MAX:
            raise RpcRefusedError(BAD_PARAMETERS, "exceed max topics")
        if "blockHash" in fields:
            number = self._number({"blockHash": fields["blockHash"]})
            if number is None:
                raise RpcRefusedError(REFUSED, "unknown block")
            return self._blocks.logs(number, number, addresses, topics)
        first = self._number(fields.get("fromBlock", "latest"))
        last = self._number(fields.get("toBlock", "latest"))
        if first is None:
            return []
        last = self._blocks.height if last is None else last
        if first > last:
            raise RpcRefusedError(BAD_PARAMETERS, "invalid block range params")
        return self._blocks.logs(first, last, addresses, topics)

    # Fees

    def _fee_history(self, count: Any, newest: Any = "latest", percentiles: Any = None) -> Json:
        number = self._number(newest)
        if number is None:
            raise RpcRefusedError(REFUSED, "request beyond head block")
        wanted = min(quantity_of(count, "blockCount"), _HISTORY_MAX, number + 1)
        shown = [self._blocks[each] for each in range(number + 1 - wanted, number + 1)]
        fees = [mined.block.header.base_fee_per_gas for mined in shown]
        following = number + 1
        fees.append(
            self._chain.base_fee
            if following > self._blocks.height
            else self._blocks[following].block.header.base_fee_per_gas
        )
        history: Json = {
            "oldestBlock": hex(number + 1 - wanted),
            "baseFeePerGas": [hex(fee) for fee in fees],
            "gasUsedRatio": [mined.block.header.gas_used / BLOCK_GAS for mined in shown],
        }
        if percentiles:
            history["reward"] = [[hex(_tip_paid(mined))] * len(percentiles) for mined in shown]
        return history


def _tip_paid(mined: Mined) -> int:
    """What the block's only transaction paid above the base fee; 0 for an empty block."""
    fee = int(mined.block.header.base_fee_per_gas)
    return max((int(each["gasPrice"], 16) - fee for each in mined.transactions), default=0)


def _changed_storage(changed: Any) -> Storage:
    """The ``stateDiff`` of each contract in geth's state override set; nothing else can be changed here."""
    storage: Storage = {}
    for address, fields in fields_of(changed or {}, "state override").items():
        diff = fields_of(fields, "state override")
        if diff.keys() - {"stateDiff"}:
            raise RpcRefusedError(BAD_PARAMETERS, "of a contract's state only stateDiff can be changed")
        for slot, word in fields_of(diff.get("stateDiff") or {}, "stateDiff").items():
            storage[_address(address), quantity_of(slot, "slot")] = quantity_of(word, "word")
    return storage


def _address(value: Any) -> bytes:
    return bytes_of(value, "address", size=ADDRESS_BYTES)


def _either(value: Any, name: str, size: int) -> frozenset[str]:
    """A filter's value or list of values. An empty set matches everything."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return frozenset(hexed(bytes_of(each, name, size=size)) for each in listed)


def _failure(computation: Any) -> RpcRefusedError:
    """A failed call, as geth reports it."""
    data = bytes(computation.output)
    if type(computation.error).__name__ != "Revert":
        return RpcRefusedError(REFUSED, failure_of(computation))
    reason = revert_reason(data)
    return RpcRefusedError(REVERTED, "execution reverted" + (f": {reason}" if reason else ""), hexed(data))


# ---- what only a development chain has

MINE_MAX: Final = 1_000
TRAVEL_MAX_S: Final = 10 * 365 * 86_400
SNAPSHOTS_MAX: Final = 64
GIFTS_MAX: Final = 1_000
ORDER_BYTES: Final = 16
USDC_MAX: Final = 10**18
ETHER_MAX: Final = 10_000 * ETHER
FAB_MAX: Final = 100_000_000 * ETHER
"""A tenth of what there is: enough to try votes with."""


class DevClock:
    """The wall clock in whole seconds, plus the seconds that were added by time travel."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self.ahead_s = 0

    def __call__(self) -> int:
        return int(self._wall()) + self.ahead_s


class DevMethods:
    """See the module. The first account of ``chain`` must be the one that may mint ``usdc`` and has all of
    ``fab``."""

    def __init__(
        self,
        chain: EmbeddedChain,
        pool: TransactionPool,
        clock: DevClock,
        *,
        usdc: Contract,
        fab: Contract,
    ) -> None:
        self._chain, self._pool, self._clock, self._usdc, self._fab = chain, pool, clock, usdc, fab
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

    def fund(self, address: bytes, usdc: int, ether_wei: int, fab: int = 0) -> None:
        """Mint USDC, send ether and FAB. Raises ``RpcRefusedError`` for more than the faucet gives."""
        if not (0 <= usdc <= USDC_MAX and 0 <= ether_wei <= ETHER_MAX and 0 <= fab <= FAB_MAX):
            msg = (
                f"the faucet gives at most {USDC_MAX} units of USDC, {ETHER_MAX} wei and {FAB_MAX // ETHER} "
                "FAB at once"
            )
            raise RpcRefusedError(REFUSED, msg)
        giver = self._chain.accounts[0]
        if usdc:
            self._usdc.send(giver, "mint", address, usdc)
        if ether_wei:
            self._chain.send(giver, address, b"", value=ether_wei)
        if fab:
            self._fab.send(giver, "transfer", address, fab)

    def travel(self, seconds: int) -> None:
        """Move the clock ahead, and mine a block."""
        self._increase_time(seconds)
        self._pool.mine()

    def mine_many(self, count: int) -> None:
        """Mine ``count`` times: what waits, then empty blocks."""
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
        """Later snapshots are dropped, as on other development chains, and so are waiting transactions."""
        names = [taken for taken, _, _ in self._snapshots]
        if name not in names:
            return False
        at = names.index(name)
        _, block, self._clock.ahead_s = self._snapshots[at]
        del self._snapshots[at:]
        self._chain.revert(block)
        self._pool.clear()
        return True

    def _fund(self, address: Any, usdc: Any = 0, ether_wei: Any = 0, order: Any = None, fab: Any = 0) -> bool:
        """``order`` numbers a gift, so that one who asks again because the answer was lost is given once."""
        account = bytes_of(address, "address", size=ADDRESS_BYTES)
        number = None if order is None else bytes_of(order, "order", size=ORDER_BYTES).hex()
        if number is not None and number in self._given:
            return True
        try:
            wei = quantity_of(ether_wei, "ether")
            self.fund(account, quantity_of(usdc, "usdc"), wei, quantity_of(fab, "fab"))
        except RevertedError as error:
            raise RpcRefusedError(REFUSED, str(error)) from error
        if number is not None:
            self._given.append(number)
        return True
