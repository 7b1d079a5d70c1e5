"""Reads what JSON-RPC endpoints answer: results, errors, and what is no answer at all. Pure.

Nodes and the services before them word their errors as they like, so the wordings that matter are collected
here: those of geth and its forks, anvil, py-evm, and the large RPC services.

A service that puts an error page, an incomplete block or another method's result into a well-formed envelope
is at fault like one that is down: ``RpcEndpoints`` then asks the next. ``shape_of`` gives a method's check.
Chains differ in what they leave out, so only what is used is required, and what is missing is named. Null
stands for an empty list where a node's language writes it so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from p2pnode.chain.ledger import NO_REASON
from p2pnode.errors import ChainError
from p2pnode.words import one_line

Usable: TypeAlias = Callable[[Any], str]
"""Names what a result lacks, or what is wrong with it; "" for a result that can be used."""

_INTERNAL: Final = -32603
_LIMIT_EXCEEDED: Final = -32005
_BUSY_CODES: Final = frozenset({429, -32029, -32097})
_BUSY: Final = re.compile(
    r"rate.?limit|too many requests|request count|quota|throttl|overloaded|capacity exceeded", re.IGNORECASE
)
_LAGGING: Final = re.compile(
    r"header not found|unknown block|block not found|missing trie node|not synced|syncing"
    r"|time(?:d )?.?out|temporarily|unavailable",
    re.IGNORECASE,
)
_REVERT: Final = re.compile(r"revert", re.IGNORECASE)
_SHOWN_MAX: Final = 200
_SECRET_MIN: Final = 4


class RpcError(ChainError):
    """The node's answer is an error. ``doubt``: an earlier try of this request may have been acted on."""

    def __init__(self, code: int, message: str, data: Any) -> None:
        super().__init__(f"the node refused: {printable(message)}")
        self.code = code
        self.said = message
        self.data = data
        self.doubt = False


class UnusableError(Exception):
    """The body is no JSON-RPC answer, or says that this endpoint can't answer now."""


def endpoint_name(url: str) -> str:
    """An endpoint as it is shown: without user, path and query, which may hold keys."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
        secret = "/…" if parts.path.strip("/") or parts.query else ""
        named = f"{parts.scheme}://{parts.hostname or '?'}{port}{secret}"
    except ValueError:
        named = "?"
    return named


def secrets_of(url: str) -> tuple[str, ...]:
    """The parts of a URL that no message may repeat, not even one that a server wrote."""
    try:
        parts = urlsplit(url)
        values = (value for _, value in parse_qsl(parts.query))
        found = (*parts.path.split("/"), *values, parts.username or "", parts.password or "")
    except ValueError:
        return (url,)
    return tuple(part for part in found if len(part) >= _SECRET_MIN)


def without(secrets: tuple[str, ...], text: str) -> str:
    """``text`` with each secret as an ellipsis."""
    for secret in secrets:
        text = text.replace(secret, "…")
    return text


def printable(text: str) -> str:
    """A server's or a contract's text, cut, and without characters that control a terminal."""
    return one_line(text, _SHOWN_MAX)


def read_answer(body: bytes, number: int, method: str) -> Any:
    """The ``result`` of request ``number``. Raises ``RpcError`` for an error about the request, and
    ``UnusableError`` for everything else."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        msg = f"answered what is no JSON ({len(body)} bytes)"
        raise UnusableError(msg) from error
    if not isinstance(answer, dict):
        msg = "answered what is no JSON-RPC"
        raise UnusableError(msg)
    if answer.get("error") is not None:
        _raise(answer["error"], method)
    if answer.get("id") != number or isinstance(answer.get("id"), bool) or "result" not in answer:
        msg = "answered another question"
        raise UnusableError(msg)
    return answer["result"]


def _raise(error: Any, method: str) -> None:
    code, said = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, None)
    if not isinstance(code, int) or not isinstance(said, str):
        msg = "answered what is no JSON-RPC"
        raise UnusableError(msg)
    if _REVERT.search(said) is None:
        ranged = code == _LIMIT_EXCEEDED and method == "eth_getLogs"
        busy = code in _BUSY_CODES or (code == _LIMIT_EXCEEDED and not ranged) or _BUSY.search(said)
        lagging = _LAGGING.search(said) and method != "eth_getLogs"
        broken = code == _INTERNAL and method not in _INTERNAL_MEANS_ANSWER
        if busy or lagging or broken:
            msg = f"answered with error {code}: {printable(said)}"
            raise UnusableError(msg)
    raise RpcError(code, said, error.get("data"))


_INTERNAL_MEANS_ANSWER: Final = frozenset(
    {"eth_call", "eth_estimateGas", "eth_sendRawTransaction", "eth_getLogs"}
)
"""For these methods some nodes send their answer as an "internal error"."""

# ---- reverts and refusals

_ERROR_STRING: Final = bytes.fromhex("08c379a0")
_PANIC: Final = bytes.fromhex("4e487b71")
_HEX: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_WORD: Final = 32
_EXECUTION: Final = re.compile(
    r"(?:execution reverted|vm execution error|vm exception|transaction reverted|reverted)", re.IGNORECASE
)
_PREFIX: Final = re.compile(r"^.*?execution reverted(?:: |$)", re.IGNORECASE | re.DOTALL)


def revert_reason(error: RpcError) -> str | None:
    """Why the contract reverted, fit to print; None if the error is about something else."""
    found = _HEX.search(error.data) if isinstance(error.data, str) else None
    data = bytes.fromhex(found[0][2:]) if found is not None else b""
    if data[:4] == _ERROR_STRING:
        return _text(data[4:])
    if data[:4] == _PANIC:
        return f"panic {int.from_bytes(data[4:], 'big'):#x}"
    if _EXECUTION.search(error.said) is None:
        return None
    rest = _PREFIX.sub("", error.said).strip().strip('"')
    if not rest or rest.startswith(("0x", "custom error")) or _EXECUTION.match(rest):
        return NO_REASON
    return printable(rest)


def _text(encoded: bytes) -> str:
    """An ABI string, as far as it is there."""
    size = int.from_bytes(encoded[_WORD : 2 * _WORD], "big")
    text = encoded[2 * _WORD : 2 * _WORD + min(size, len(encoded))].decode(errors="replace")
    return printable(text) or NO_REASON


Refusal: TypeAlias = Literal["known", "nonce_used", "nonce_taken", "fee_too_low", "no_ether", "other"]

_WORDINGS: Final[dict[Refusal, str]] = {
    "known": "already known|known transaction|already imported|already in mempool|already_exists",
    "nonce_taken": "replacement transaction underpriced|replacement.*(low|fee)|could not replace",
    "nonce_used": "nonce (is )?too low|nonce.*already|old ?nonce|invalid.*nonce",
    "fee_too_low": "underpriced|max fee per gas less|fee too low|(fee cap|tip).*(less|below|lower)",
    "no_ether": "insufficient (funds|balance)|enough (funds|balance)|upfront cost",
}
_REFUSALS: Final = {kind: re.compile(words, re.IGNORECASE) for kind, words in _WORDINGS.items()}


def refusal_of(error: RpcError) -> Refusal:
    """Why a node refused a raw transaction."""
    return next((kind for kind, words in _REFUSALS.items() if words.search(error.said)), "other")


# ---- the shapes of results

_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DATA: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_BYTES_OF: Final = {size: re.compile(rf"0x[0-9a-fA-F]{{{2 * size}}}") for size in (20, 32)}
_WORD_MAX: Final = 1 << 256
_TOPICS_MAX: Final = 4


def quantity(value: Any) -> int | None:
    """A number as nodes write it, in hex or plain; None for anything else."""
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return int(value, 16)
    plain = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _WORD_MAX
    return value if plain else None


def data_of(value: Any) -> bytes | None:
    """The bytes of hex data; None for anything else."""
    return bytes.fromhex(value[2:]) if isinstance(value, str) and _DATA.fullmatch(value) else None


def listed(value: Any) -> list[Any] | None:
    """A list, where null stands for an empty one; None for anything else."""
    return [] if value is None else value if isinstance(value, list) else None


def _sized(size: int, value: Any) -> bool:
    return isinstance(value, str) and _BYTES_OF[size].fullmatch(value) is not None


def _a_quantity(value: Any) -> str:
    return "" if quantity(value) is not None else "a number"


def _some_data(value: Any) -> str:
    return "" if data_of(value) is not None else "hex data"


def _sent(value: Any) -> str:
    """A node may leave the hash out: the sender knows it."""
    return "" if value is None or _sized(32, value) else "a transaction's hash"


def _numbers(value: dict[str, Any], *names: str) -> str:
    return next((name for name in names if quantity(value.get(name)) is None), "")


def _log(value: Any) -> str:
    """A log by itself or in a receipt. Its block is required only where nothing else tells it (``_logs``)."""
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
    # Without a status, logs show success: a transaction that failed leaves none.
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
    """The reader checks the rest, for it has another way to learn the fees."""
    return "" if isinstance(value, dict) else "a history of fees"


_SHAPES: Final[dict[str, Usable]] = {
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


def shape_of(method: str) -> Usable:
    """The check of a method's result. Raises ``KeyError`` for a method that is not used here."""
    return _SHAPES[method]
