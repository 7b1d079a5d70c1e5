"""``Blocks``: the blocks of an embedded chain as JSON-RPC shows them, with an index of transactions and
logs.

eth-tester finds a transaction by walking through every block, and finding logs takes ever longer. Here each
block is read once, when it is first needed, and forgotten when the chain is reverted below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from p2pnode.chain.deployment_plan import create_address
from p2pnode.chain.dev.embedded import EmbeddedChain
from p2pnode.chain.dev.jsonrpc import TOO_MUCH, RpcRefusedError, hexed

Json: TypeAlias = dict[str, Any]
LOGS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Mined:
    """One block. ``transactions``, ``receipts`` and ``logs`` are as JSON-RPC shows them."""

    block: Any
    transactions: tuple[Json, ...]
    receipts: tuple[Json, ...]
    logs: tuple[Json, ...]

    @property
    def hash(self) -> bytes:
        """The block's hash."""
        return bytes(self.block.hash)

    def shown(self, *, full: bool) -> Json:
        """The block, with its transactions or with their hashes."""
        listed = self.transactions if full else tuple(each["hash"] for each in self.transactions)
        return {**shown_header(self.block.header), "hash": hexed(self.hash), "transactions": list(listed)}


class Blocks:
    """See the module. Call ``read`` after the chain has moved; everything else is answered from what was
    read."""

    def __init__(self, chain: EmbeddedChain) -> None:
        self._chain = chain
        self._mined: list[Mined] = []
        self._numbers: dict[bytes, int] = {}
        self._places: dict[str, tuple[int, int]] = {}

    def __getitem__(self, number: int) -> Mined:
        return self._mined[number]

    @property
    def latest(self) -> Mined:
        """The last block."""
        return self._mined[-1]

    @property
    def height(self) -> int:
        """The last block's number."""
        return len(self._mined) - 1

    def read(self) -> None:
        """Forget reverted blocks, and read new ones."""
        evm, height = self._chain.evm, self._chain.height
        while self._mined and (
            self.height > height or evm.get_canonical_block_hash(self.height) != self.latest.hash
        ):
            self._forget(self._mined.pop())
        for number in range(len(self._mined), height + 1):
            self._add(evm.get_canonical_block_by_number(number))

    def by_hash(self, block_hash: bytes) -> Mined | None:
        """A block of the chain by its hash; None where there is none."""
        number = self._numbers.get(block_hash)
        return None if number is None else self._mined[number]

    def transaction(self, transaction_hash: bytes) -> Json | None:
        """A mined transaction; None where there is none."""
        place = self._places.get(hexed(transaction_hash))
        return None if place is None else self._mined[place[0]].transactions[place[1]]

    def receipt(self, transaction_hash: bytes) -> Json | None:
        """The receipt of a mined transaction; None where there is none."""
        place = self._places.get(hexed(transaction_hash))
        return None if place is None else self._mined[place[0]].receipts[place[1]]

    def logs(
        self, first: int, last: int, addresses: frozenset[str], topics: list[frozenset[str]]
    ) -> list[Json]:
        """The logs of these contracts (of all, if empty) whose topic at each place is among those wanted
        there (any, if empty). Raises ``RpcRefusedError`` above ``LOGS_MAX``."""
        found: list[Json] = []
        for log in self._logs(first, last):
            if addresses and log["address"] not in addresses:
                continue
            if len(topics) > len(log["topics"]):
                continue
            if all(not wanted or log["topics"][at] in wanted for at, wanted in enumerate(topics)):
                found.append(log)
                if len(found) > LOGS_MAX:
                    raise RpcRefusedError(TOO_MUCH, f"query returned more than {LOGS_MAX} results")
        return found

    def _logs(self, first: int, last: int) -> Iterator[Json]:
        for mined in self._mined[max(first, 0) : last + 1]:
            yield from mined.logs

    def _forget(self, mined: Mined) -> None:
        del self._numbers[mined.hash]
        for transaction in mined.transactions:
            del self._places[transaction["hash"]]

    def _add(self, block: Any) -> None:
        receipts = block.get_receipts(self._chain.evm.chaindb)
        transactions = tuple(
            shown_transaction(transaction, block, index)
            for index, transaction in enumerate(block.transactions)
        )
        shown: list[Json] = []
        logs: list[Json] = []
        before = 0
        for index, receipt in enumerate(receipts):
            of_it = [
                _log(log, transactions[index], len(logs) + number) for number, log in enumerate(receipt.logs)
            ]
            logs += of_it
            shown.append(_receipt(receipt, transactions[index], before, of_it))
            before = int(receipt.gas_used)
        mined = Mined(block, transactions, tuple(shown), tuple(logs))
        self._numbers[mined.hash] = len(self._mined)
        for index, transaction in enumerate(transactions):
            self._places[transaction["hash"]] = (len(self._mined), index)
        self._mined.append(mined)


def shown_header(header: Any) -> Json:
    """A block's header as JSON-RPC shows it."""
    return {
        "number": hex(header.block_number),
        "parentHash": hexed(header.parent_hash),
        "nonce": hexed(header.nonce),
        "sha3Uncles": hexed(header.uncles_hash),
        "logsBloom": hexed(header.bloom.to_bytes(256, "big")),
        "transactionsRoot": hexed(header.transaction_root),
        "stateRoot": hexed(header.state_root),
        "receiptsRoot": hexed(header.receipt_root),
        "miner": hexed(header.coinbase),
        "difficulty": "0x0",
        "extraData": hexed(header.extra_data),
        "mixHash": hexed(header.mix_hash),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(header.timestamp),
        "baseFeePerGas": hex(header.base_fee_per_gas),
        "uncles": [],
    }


def shown_transaction(transaction: Any, block: Any = None, index: int = 0) -> Json:
    """A transaction as JSON-RPC shows it, mined in ``block`` or still waiting."""
    kind = transaction.type_id or 0
    price = transaction.max_fee_per_gas
    if block is not None:
        price = min(price, transaction.max_priority_fee_per_gas + block.header.base_fee_per_gas)
    shown: Json = {
        "type": hex(kind),
        "hash": hexed(transaction.hash),
        "nonce": hex(transaction.nonce),
        "from": hexed(transaction.sender),
        "to": hexed(transaction.to) if transaction.to else None,
        "value": hex(transaction.value),
        "gas": hex(transaction.gas),
        "gasPrice": hex(price),
        "input": hexed(transaction.data),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
        "v": hex(transaction.y_parity if kind else transaction.v),
        "blockHash": None if block is None else hexed(block.hash),
        "blockNumber": None if block is None else hex(block.number),
        "transactionIndex": None if block is None else hex(index),
    }
    if kind:
        shown |= {
            "chainId": hex(transaction.chain_id), "accessList": [], "yParity": hex(transaction.y_parity),
            "maxFeePerGas": hex(transaction.max_fee_per_gas),
            "maxPriorityFeePerGas": hex(transaction.max_priority_fee_per_gas),
        }  # fmt: skip
    return shown


def _log(log: Any, transaction: Json, index: int) -> Json:
    return {
        "address": hexed(log.address),
        "topics": [hexed(topic.to_bytes(32, "big")) for topic in log.topics],
        "data": hexed(log.data),
        "blockNumber": transaction["blockNumber"],
        "blockHash": transaction["blockHash"],
        "transactionHash": transaction["hash"],
        "transactionIndex": transaction["transactionIndex"],
        "logIndex": hex(index),
        "removed": False,
    }


def _receipt(receipt: Any, transaction: Json, gas_before: int, logs: list[Json]) -> Json:
    made = None
    if transaction["to"] is None:
        made = hexed(create_address(bytes.fromhex(transaction["from"][2:]), int(transaction["nonce"], 16)))
    return {
        "transactionHash": transaction["hash"],
        "transactionIndex": transaction["transactionIndex"],
        "blockHash": transaction["blockHash"],
        "blockNumber": transaction["blockNumber"],
        "from": transaction["from"],
        "to": transaction["to"],
        "type": transaction["type"],
        "contractAddress": made,
        "status": hex(receipt.state_root == b"\x01"),
        "gasUsed": hex(int(receipt.gas_used) - gas_before),
        "cumulativeGasUsed": hex(receipt.gas_used),
        "effectiveGasPrice": transaction["gasPrice"],
        "logs": logs,
        "logsBloom": hexed(receipt.bloom.to_bytes(256, "big")),
    }
