"""One node's view of the chain, typed: web3's calls on trio, over ``RpcEndpoints``.

web3's own async transport needs asyncio; a provider of ours carries its requests instead, and no
middleware stands between. Values are plain: 20-byte addresses, 32-byte hashes, integers. This module
knows nothing of the marketplace. web3 is imported when a node is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.fees import Fees, offer
from p2pnode.chain.evm.rpc import RpcEndpoints
from p2pnode.chain.evm.rpc_answers import RpcError, revert_reason
from p2pnode.chain.evm.shapes import shape_of
from p2pnode.chain.ledger import RevertedError
from p2pnode.errors import ChainError

BlockTag: TypeAlias = int | Literal["latest", "pending"]

_FEE_BLOCKS: Final = 5
_FEE_PERCENTILE: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One event as the chain keeps it."""

    contract: bytes
    topics: tuple[bytes, ...]
    data: bytes
    block: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A mined transaction. ``fee_wei`` is all it cost, with what a rollup takes for the chain below."""

    hash: bytes
    block: int
    block_hash: bytes
    succeeded: bool
    gas_used: int
    fee_wei: int
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Its header's part that matters."""

    number: int
    timestamp: int
    base_fee: int


class EvmNode:
    """See the module. Every method may raise ``UnavailableError``, and ``ChainError`` for other refusals."""

    def __init__(self, endpoints: RpcEndpoints) -> None:
        from web3 import AsyncWeb3

        self._eth: Any = AsyncWeb3(_provider(endpoints), middleware=[]).eth

    async def height(self) -> int:
        """The last block's number."""
        return int(await self._eth.block_number)

    async def block(self, which: BlockTag = "latest") -> Block:
        """A block's header."""
        raw = await self._eth.get_block(which)
        return Block(
            number=int(raw["number"]),
            timestamp=int(raw["timestamp"]),
            base_fee=int(raw.get("baseFeePerGas") or 0),
        )

    async def nonce(self, account: bytes, which: BlockTag = "latest") -> int:
        """How many transactions the account has mined (or, ``pending``, sent)."""
        return int(await self._eth.get_transaction_count(shown_address(account), which))

    async def ether(self, account: bytes) -> int:
        """Wei."""
        return int(await self._eth.get_balance(shown_address(account), "latest"))

    async def code(self, account: bytes) -> bytes:
        """Empty for a plain account."""
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
        """What a transaction would return. Raises ``RevertedError``."""
        asked = _transaction(to, data, sender)
        if gas is not None:
            asked["gas"] = gas
        try:
            return bytes(await self._eth.call(asked, which))
        except RpcError as error:
            raise _reverted(error) from error

    async def estimate(self, to: bytes, data: bytes, *, sender: bytes) -> int:
        """Gas it would take. Raises ``RevertedError``."""
        try:
            return int(await self._eth.estimate_gas(_transaction(to, data, sender), "latest"))
        except RpcError as error:
            raise _reverted(error) from error

    async def gas_price(self) -> int:
        """Wei per gas, as the node suggests."""
        return int(await self._eth.gas_price)

    async def fees(self) -> Fees:
        """What to offer for the next block."""
        try:
            past = await self._eth.fee_history(_FEE_BLOCKS, "latest", [_FEE_PERCENTILE])
        except RpcError:
            base = (await self.block()).base_fee
            return offer(base, [max(0, await self.gas_price() - base)])
        tips = [int(row[0]) for row in past.get("reward") or () if row]
        return offer(int(past["baseFeePerGas"][-1]), tips)

    async def send(self, raw: bytes) -> None:
        """Hand a raw transaction over. Raises ``RpcError`` if the node doesn't take it."""
        await self._eth.send_raw_transaction(raw)

    async def receipt(self, transaction: bytes) -> Receipt | None:
        """Of a mined transaction."""
        from web3.exceptions import TransactionNotFound

        try:
            raw = await self._eth.get_transaction_receipt(_hex(transaction))
        except TransactionNotFound:
            return None
        if bytes(raw["transactionHash"]) != transaction:
            msg = "the node gave another transaction's receipt: name another under rpc_urls"
            raise ChainError(msg)
        gas_used = int(raw["gasUsed"])
        below = raw.get("l1Fee") or 0
        return Receipt(
            hash=transaction,
            block=int(raw["blockNumber"]),
            block_hash=bytes(raw["blockHash"]),
            succeeded=int(raw["status"]) == 1,
            gas_used=gas_used,
            fee_wei=gas_used * int(raw.get("effectiveGasPrice") or 0)
            + (int(below, 16) if isinstance(below, str) else int(below)),
            logs=tuple(_log(entry) for entry in raw["logs"]),
        )

    async def logs(self, contract: bytes, kinds: Sequence[bytes], first: int, last: int) -> tuple[Log, ...]:
        """A contract's events with one of these first topics, of blocks ``first`` to ``last``, in order."""
        raw = await self._eth.get_logs(
            {
                "address": shown_address(contract),
                "topics": [[_hex(kind) for kind in kinds]],
                "fromBlock": first,
                "toBlock": last,
            }
        )
        found = (_log(entry) for entry in raw if not entry.get("removed"))
        within = (log for log in found if first <= log.block <= last)
        return tuple(sorted(within, key=lambda log: (log.block, log.index)))


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
    asked: dict[str, Any] = {"to": shown_address(to), "data": _hex(data)}
    if sender is not None:
        asked["from"] = shown_address(sender)
    return asked


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _log(raw: Any) -> Log:
    return Log(
        contract=bytes.fromhex(raw["address"][2:]),
        topics=tuple(bytes(topic) for topic in raw["topics"]),
        data=bytes(raw["data"]),
        block=int(raw["blockNumber"]),
        index=int(raw["logIndex"]),
    )
