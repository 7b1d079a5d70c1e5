"""``EvmNode``: one node's view of the chain, typed. web3's calls run on trio, over ``RpcEndpoints``.

web3's own async transport needs asyncio, so a provider of ours carries its requests, without middleware.
Records (blocks, receipts, logs, transactions) are read here: web3 raises on fields that some chains leave out
or set to null. Values are plain: 20-byte addresses, 32-byte hashes, integers. This module knows nothing of
the marketplace. web3 is imported when a node is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import trio

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.fees import Fees, offer
from p2pnode.chain.evm.rpc import RpcEndpoints
from p2pnode.chain.evm.rpc_answers import RpcError, data_of, listed, quantity, revert_reason, shape_of
from p2pnode.chain.ledger import RevertedError, UnavailableError
from p2pnode.errors import ChainError

BlockTag: TypeAlias = int | Literal["latest", "pending"]

_FEE_BLOCKS: Final = 20
_SECOND_S: Final = 3.0
_FEE_PERCENTILE: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One event as the chain stores it."""

    contract: bytes
    topics: tuple[bytes, ...]
    data: bytes
    block: int
    index: int
    transaction: bytes | None = None
    """None where the node doesn't say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A mined transaction. ``fee_wei`` is all that it cost, with a rollup's fee for the chain below it.

    None stands for what the node does not say.
    """

    hash: bytes
    block: int
    block_hash: bytes | None
    succeeded: bool
    gas_used: int | None
    fee_wei: int | None
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedTransaction:
    """A mined transaction's hash, and the number of its block."""

    transaction: bytes
    block: int


@dataclass(frozen=True, slots=True)
class StorageWord:
    """One 32-byte word of a contract's storage, at a 32-byte slot."""

    contract: bytes
    slot: bytes
    word: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The part of a block's header that is used."""

    number: int
    timestamp: int
    base_fee: int


class EvmNode:
    """See the module. Every method may raise ``UnavailableError``, and ``ChainError`` for other refusals."""

    def __init__(self, endpoints: RpcEndpoints) -> None:
        from web3 import AsyncWeb3

        self._endpoints = endpoints
        self._eth: Any = AsyncWeb3(_provider(endpoints), middleware=[]).eth

    async def height(self) -> int:
        """The last block's number."""
        return int(await self._eth.block_number)

    async def block(self, which: BlockTag = "latest") -> Block:
        """A block's header."""
        raw = await self._ask("eth_getBlockByNumber", hex(which) if isinstance(which, int) else which, False)
        return Block(
            number=_number(raw["number"]),
            timestamp=_number(raw["timestamp"]),
            base_fee=quantity(raw.get("baseFeePerGas")) or 0,
        )

    async def nonce(self, account: bytes, which: BlockTag = "latest") -> int:
        """How many transactions of the account are mined, up to a block; for ``pending``, mined or sent."""
        return int(await self._eth.get_transaction_count(shown_address(account), which))

    async def ether(self, account: bytes) -> int:
        """An account's ether, in wei."""
        return int(await self._eth.get_balance(shown_address(account), "latest"))

    async def code(self, account: bytes) -> bytes:
        """A contract's code; empty for a plain account."""
        return bytes(await self._eth.get_code(shown_address(account), "latest"))

    async def call(
        self,
        to: bytes,
        data: bytes,
        *,
        sender: bytes | None = None,
        gas: int | None = None,
        which: BlockTag = "latest",
    ) -> bytes:
        """What a transaction would return. Nothing is sent. Raises ``RevertedError``."""
        asked = _transaction(to, data, sender)
        if gas is not None:
            asked["gas"] = gas
        try:
            return bytes(await self._eth.call(asked, which))
        except RpcError as error:
            raise _reverted(error) from error

    async def estimate(
        self, to: bytes, data: bytes, *, sender: bytes, storage: StorageWord | None = None
    ) -> int:
        """The gas that a transaction would take. Raises ``RevertedError``.

        ``storage``: as if a contract's storage had this word. A node that can't do that refuses with another
        ``ChainError``.
        """
        asked: list[Any] = [_transaction(to, data, sender), "latest"]
        if storage is not None:
            words = {_hex(storage.slot): _hex(storage.word)}
            asked.append({shown_address(storage.contract): {"stateDiff": words}})
        try:
            return _number(await self._ask("eth_estimateGas", *asked))
        except RpcError as error:
            raise _reverted(error) from error

    async def gas_price(self) -> int:
        """Wei per gas, as the node suggests."""
        return int(await self._eth.gas_price)

    async def fees(self) -> Fees:
        """What to offer for the next block. Where two endpoints differ, the lower tip is taken."""
        asked = (hex(_FEE_BLOCKS), "latest", [_FEE_PERCENTILE])
        try:
            past = await self._ask("eth_feeHistory", *asked)
        except RpcError:
            past = {}
        found = _offer_of(past)
        if found is None:  # a chain without such a history, or without base fees
            base = (await self.block()).base_fee
            found = offer(base, [max(0, await self.gas_price() - base)])
        if self._endpoints.several:
            with suppress(UnavailableError), trio.move_on_after(_SECOND_S):
                other = await self._endpoints.ask_another("eth_feeHistory", asked, shape_of("eth_feeHistory"))
                second = _offer_of(other)
                if second is not None and second.tip < found.tip:
                    found = Fees(most=found.most - found.tip + second.tip, tip=second.tip)
        return found

    async def send(self, raw: bytes) -> None:
        """Hand a raw transaction over. Raises ``RpcError`` if the node doesn't take it."""
        await self._ask("eth_sendRawTransaction", _hex(raw))

    async def receipt(self, transaction: bytes) -> Receipt | None:
        """The receipt of a mined transaction; None where the node shows none."""
        raw = await self._ask("eth_getTransactionReceipt", _hex(transaction))
        if raw is None:
            return None
        if (data_of(raw.get("transactionHash")) or transaction) != transaction:
            msg = "the node gave another transaction's receipt: name another under rpc_urls"
            raise ChainError(msg)
        block = _number(raw["blockNumber"])
        status, gas_used = quantity(raw.get("status")), quantity(raw.get("gasUsed"))
        price, below = quantity(raw.get("effectiveGasPrice")), quantity(raw.get("l1Fee")) or 0
        logs = tuple(_log(entry, place, block) for place, entry in enumerate(listed(raw["logs"]) or []))
        return Receipt(
            hash=transaction,
            block=block,
            block_hash=data_of(raw.get("blockHash")),
            succeeded=len(logs) > 0 if status is None else status == 1,
            gas_used=gas_used,
            fee_wei=None if price is None or gas_used is None else gas_used * price + below,
            logs=logs,
        )

    async def block_of(self, transaction: bytes) -> int | None:
        """The number of the block that a transaction is in, by the node's index of transactions."""
        raw = await self._ask("eth_getTransactionByHash", _hex(transaction))
        if raw is None or data_of(raw["hash"]) != transaction:
            return None
        return quantity(raw.get("blockNumber"))

    async def holder(self, account: bytes, nonce: int, first: int, last: int) -> MinedTransaction | None:
        """The transaction of ``account`` that used ``nonce``, in one of the blocks ``first`` to ``last``.

        None if the blocks don't show it. Raises ``ChainError`` where the state of old blocks is gone.
        """
        if await self.nonce(account, last) <= nonce:
            return None
        low, high = first, last
        while low < high:
            middle = (low + high) // 2
            if await self.nonce(account, middle) > nonce:
                high = middle
            else:
                low = middle + 1
        block = await self._ask("eth_getBlockByNumber", hex(low), True)
        for each in listed(block.get("transactions")) or []:
            known = isinstance(each, dict) and quantity(each.get("nonce")) == nonce
            if known and data_of(each.get("from")) == account and (hash_ := data_of(each.get("hash"))):
                return MinedTransaction(transaction=hash_, block=low)
        return None

    async def logs_of(self, place: MinedTransaction) -> tuple[Log, ...]:
        """The events of a mined transaction, of all contracts."""
        raw = await self._ask("eth_getLogs", {"fromBlock": hex(place.block), "toBlock": hex(place.block)})
        found = (_log(entry, number, place.block) for number, entry in enumerate(listed(raw) or []))
        return tuple(log for log in found if log.transaction == place.transaction)

    async def logs(
        self, contract: bytes, kinds: Sequence[bytes], first: int, last: int, *more: bytes | None
    ) -> tuple[Log, ...]:
        """A contract's events with one of these first topics, of blocks ``first`` to ``last``, in order.

        ``more`` are the topics after the first; None stands for any.
        """
        wanted = {
            "address": shown_address(contract),
            "topics": [
                [_hex(kind) for kind in kinds],
                *(None if topic is None else _hex(topic) for topic in more),
            ],
            "fromBlock": hex(first),
            "toBlock": hex(last),
        }
        raw = listed(await self._ask("eth_getLogs", wanted)) or []
        found = (_log(entry, place, 0) for place, entry in enumerate(raw) if not entry.get("removed"))
        within = (log for log in found if first <= log.block <= last)
        return tuple(sorted(within, key=lambda log: (log.block, log.index)))

    async def _ask(self, method: str, *params: Any) -> Any:
        return await self._endpoints.request(method, params, shape_of(method))


def _provider(endpoints: RpcEndpoints) -> Any:
    from web3.providers.async_base import AsyncJSONBaseProvider

    class Provider(AsyncJSONBaseProvider):
        """Carries web3's requests over our endpoints. Errors are ours, not web3's."""

        global_ccip_read_enabled = False  # a contract's revert must not make us fetch its URLs

        async def make_request(self, method: Any, params: Any) -> Any:
            result = await endpoints.request(method, params, shape_of(method))
            return {"jsonrpc": "2.0", "id": 0, "result": result}

        async def is_connected(self, show_traceback: bool = False) -> bool:
            del show_traceback
            return any(not endpoint.resting for endpoint in endpoints.status())

    return Provider()


def _reverted(error: RpcError) -> ChainError:
    reason = revert_reason(error)
    return error if reason is None else RevertedError(reason)


def _transaction(to: bytes, data: bytes, sender: bytes | None) -> dict[str, Any]:
    """The fields of a call. Without ``to`` it creates a contract."""
    asked: dict[str, Any] = {"data": _hex(data)} | ({"to": shown_address(to)} if to else {})
    if sender is not None:
        asked["from"] = shown_address(sender)
    return asked


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _offer_of(past: dict[str, Any]) -> Fees | None:
    """The offer by a history of fees; None where the history can't be used."""
    bases = listed(past.get("baseFeePerGas"))
    base = quantity(bases[-1]) if bases else None
    if base is None:
        return None
    rows = [listed(row) for row in listed(past.get("reward")) or []]
    tips = (quantity(row[0]) for row in rows if row)
    return offer(base, [tip for tip in tips if tip is not None])


def _number(value: Any) -> int:
    """A number that the method's shape has checked already."""
    found = quantity(value)
    if found is None:
        msg = "the node gave no number where one must be: name another under rpc_urls"
        raise ChainError(msg)
    return found


def _log(raw: Any, place: int, block: int) -> Log:
    """``place`` and ``block`` are used where the node leaves them out."""
    index, number = quantity(raw.get("logIndex")), quantity(raw.get("blockNumber"))
    return Log(
        contract=bytes.fromhex(raw["address"][2:]),
        topics=tuple(bytes.fromhex(topic[2:]) for topic in listed(raw.get("topics")) or []),
        data=data_of(raw["data"]) or b"",
        block=block if number is None else number,
        index=place if index is None else index,
        transaction=data_of(raw.get("transactionHash")),
    )
