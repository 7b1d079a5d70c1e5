"""What a node's answers must look like before they are believed to be answers. Pure.

A service that puts an error page, a half-finished block or another method's result into a well-formed
envelope is at fault like one that is down: ``RpcEndpoints`` then asks the next. Chains differ in what they
leave out, so only what is used is asked for, and what is missing is named. Null stands for an empty list
where a node's language writes it so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

Shape = Callable[[Any], str]
"""Names what is wrong with a result; "" for one that can be used."""

_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DATA: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_BYTES_OF: Final = {size: re.compile(rf"0x[0-9a-fA-F]{{{2 * size}}}") for size in (20, 32)}
_WORD_MAX: Final = 1 << 256
_TOPICS_MAX: Final = 4


def quantity(value: Any) -> int | None:
    """A number as nodes write it, in hex or plain; None for what is none."""
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return int(value, 16)
    plain = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _WORD_MAX
    return value if plain else None


def data_of(value: Any) -> bytes | None:
    """Bytes in hex; None for what is none."""
    return bytes.fromhex(value[2:]) if isinstance(value, str) and _DATA.fullmatch(value) else None


def listed(value: Any) -> list[Any] | None:
    """A list, or null for an empty one; None for what is neither."""
    return [] if value is None else value if isinstance(value, list) else None


def _sized(size: int, value: Any) -> bool:
    return isinstance(value, str) and _BYTES_OF[size].fullmatch(value) is not None


def _a_quantity(value: Any) -> str:
    return "" if quantity(value) is not None else "a number"


def _some_data(value: Any) -> str:
    return "" if data_of(value) is not None else "hex data"


def _sent(value: Any) -> str:
    """The hash of what was sent is known here: a node need not say it."""
    return "" if value is None or _sized(32, value) else "a transaction's hash"


def _numbers(value: dict[str, Any], *names: str) -> str:
    return next((name for name in names if quantity(value.get(name)) is None), "")


def _log(value: Any) -> str:
    """Of a log by itself or in a receipt. Its block and place are asked for where nothing else says them."""
    if not isinstance(value, dict):
        return "a log"
    topics = listed(value.get("topics"))
    if not _sized(20, value.get("address")):
        return "a log's address"
    if topics is None or len(topics) > _TOPICS_MAX or not all(_sized(32, topic) for topic in topics):
        return "a log's topics"
    if data_of(value.get("data")) is None:
        return "a log's data"
    return ""


def _logs(value: Any) -> str:
    entries = listed(value)
    if entries is None:
        return "a list of logs"
    for entry in entries:
        if missing := _log(entry) or _numbers(entry, "blockNumber"):
            return missing
    return ""


def _receipt(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        return "a receipt"
    named = value.get("transactionHash")
    if named is not None and not _sized(32, named):
        return "transactionHash"
    entries = listed(value["logs"]) if "logs" in value else None
    if entries is None:
        return "logs"
    # Without a status, logs tell of success: a transaction that failed leaves none.
    status = "" if entries and value.get("status") is None else _numbers(value, "status")
    return status or _numbers(value, "blockNumber") or next(filter(None, map(_log, entries)), "")


def _transaction(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        return "a transaction"
    if not _sized(32, value.get("hash")):
        return "a transaction's hash"
    return "" if value.get("blockNumber") is None else _numbers(value, "blockNumber")


def _block(value: Any) -> str:
    return _numbers(value, "number", "timestamp") if isinstance(value, dict) else "a block"


def _fee_history(value: Any) -> str:
    """What of it can be used is looked at by its reader, who has another way to know the fees."""
    return "" if isinstance(value, dict) else "a history of fees"


_SHAPES: Final[dict[str, Shape]] = {
    "eth_blockNumber": _a_quantity,
    "eth_call": _some_data,
    "eth_chainId": _a_quantity,
    "eth_estimateGas": _a_quantity,
    "eth_feeHistory": _fee_history,
    "eth_gasPrice": _a_quantity,
    "eth_getBalance": _a_quantity,
    "eth_getBlockByNumber": _block,
    "eth_getCode": _some_data,
    "eth_getLogs": _logs,
    "eth_getTransactionByHash": _transaction,
    "eth_getTransactionCount": _a_quantity,
    "eth_getTransactionReceipt": _receipt,
    "eth_sendRawTransaction": _sent,
}


def shape_of(method: str) -> Shape:
    """Of a method's result. Raises ``KeyError`` for a method that is not used here."""
    return _SHAPES[method]
