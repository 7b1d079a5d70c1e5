"""What a node's answers must look like before they are believed to be answers. Pure.

A service that puts an error page, a half-finished block or another method's result into a well-formed
envelope is at fault like one that is down: ``RpcEndpoints`` then asks the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DATA: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_BYTES_OF: Final = {size: re.compile(rf"0x[0-9a-fA-F]{{{2 * size}}}") for size in (20, 32)}
_TOPICS_MAX: Final = 4


def _quantity(value: Any) -> bool:
    return isinstance(value, str) and _QUANTITY.fullmatch(value) is not None


def _data(value: Any) -> bool:
    return isinstance(value, str) and _DATA.fullmatch(value) is not None


def _sized(size: int, value: Any) -> bool:
    return isinstance(value, str) and _BYTES_OF[size].fullmatch(value) is not None


def _log(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _sized(20, value.get("address"))
        and isinstance(value.get("topics"), list)
        and len(value["topics"]) <= _TOPICS_MAX
        and all(_sized(32, topic) for topic in value["topics"])
        and _data(value.get("data"))
        and _quantity(value.get("blockNumber"))
        and _quantity(value.get("logIndex"))
    )


def _logs(value: Any) -> bool:
    return isinstance(value, list) and all(_log(entry) for entry in value)


def _receipt(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and _sized(32, value.get("transactionHash"))
        and _sized(32, value.get("blockHash"))
        and all(_quantity(value.get(name)) for name in ("blockNumber", "gasUsed", "status"))
        and _quantity(value.get("effectiveGasPrice", "0x0"))
        and _logs(value.get("logs"))
    )


def _block(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_quantity(value.get(name)) for name in ("number", "timestamp"))
        and _quantity(value.get("baseFeePerGas", "0x0"))
    )


def _fee_history(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    bases, rewards = value.get("baseFeePerGas"), value.get("reward") or []
    return (
        isinstance(bases, list)
        and len(bases) > 0
        and all(_quantity(base) for base in bases)
        and isinstance(rewards, list)
        and all(isinstance(row, list) and all(_quantity(tip) for tip in row) for row in rewards)
    )


_SHAPES: Final[dict[str, Callable[[Any], bool]]] = {
    "eth_blockNumber": _quantity,
    "eth_call": _data,
    "eth_chainId": _quantity,
    "eth_estimateGas": _quantity,
    "eth_feeHistory": _fee_history,
    "eth_gasPrice": _quantity,
    "eth_getBalance": _quantity,
    "eth_getBlockByNumber": _block,
    "eth_getCode": _data,
    "eth_getLogs": _logs,
    "eth_getTransactionCount": _quantity,
    "eth_getTransactionReceipt": _receipt,
    "eth_sendRawTransaction": partial(_sized, 32),
}


def shape_of(method: str) -> Callable[[Any], bool]:
    """Says if a result has the method's form. Raises ``KeyError`` for a method that is not used here."""
    return _SHAPES[method]
