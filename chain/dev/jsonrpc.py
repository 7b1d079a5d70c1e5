"""``JsonRpc``: Ethereum's JSON-RPC as bytes in and bytes out, and the values that its methods take and give.
Synchronous, without sockets; sizes are bounded.

Answers have geth's shape and wording, as far as wallets and our own ledger read them: a revert is error 3
with its data, an unknown method -32601, a transaction that can't be taken -32000 with geth's text.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import structlog

from p2pnode.errors import ChainError

log = structlog.get_logger()

BATCH_MAX: Final = 100

Method: TypeAlias = Callable[..., Any]


class JsonRpc:
    """Answers requests with ``methods``, which are called by name with positional parameters."""

    def __init__(self, methods: dict[str, Method]) -> None:
        self._methods = methods

    def answer(self, body: bytes) -> bytes:
        """The answer to a request or a batch of them. Raises nothing, whatever ``body`` is."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return _encoded(_failed(None, RpcRefusedError(NOT_JSON, "parse error")))
        if not isinstance(asked, list):
            return _encoded(self._one(asked))
        if not 0 < len(asked) <= BATCH_MAX:
            error = RpcRefusedError(BAD_REQUEST, f"a batch holds 1 to {BATCH_MAX} requests")
            return _encoded(_failed(None, error))
        return _encoded([self._one(request) for request in asked])

    def _one(self, request: Any) -> dict[str, Any]:
        if not isinstance(request, dict):
            return _failed(None, RpcRefusedError(BAD_REQUEST, "invalid request"))
        asked_as = request.get("id")
        method, params = request.get("method"), request.get("params", [])
        if not isinstance(method, str) or not isinstance(params, list):
            return _failed(asked_as, RpcRefusedError(BAD_REQUEST, "invalid request"))
        try:
            return {"jsonrpc": "2.0", "id": asked_as, "result": self._call(method, params)}
        except RpcRefusedError as error:
            return _failed(asked_as, error)

    def _call(self, name: str, params: Sequence[Any]) -> Any:
        method = self._methods.get(name)
        if method is None:
            msg = f"the method {name[:64]} does not exist/is not available"
            raise RpcRefusedError(UNKNOWN_METHOD, msg)
        try:
            inspect.signature(method).bind(*params)
        except TypeError as error:
            raise RpcRefusedError(BAD_PARAMETERS, f"{name}: {error}") from error
        try:
            return method(*params)
        except RpcRefusedError:
            raise
        except Exception as error:  # whatever py-evm raises: one bad request must not end the chain
            log.warning("devchain.failed", method=name, reason=f"{type(error).__name__}: {error}"[:300])
            raise RpcRefusedError(FAILED, f"internal error: {type(error).__name__}") from error


def _failed(asked_as: Any, error: RpcRefusedError) -> dict[str, Any]:
    body: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.data is not None:
        body["data"] = error.data
    return {"jsonrpc": "2.0", "id": asked_as, "error": body}


def _encoded(answer: Any) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode()


# ---- values and errors

NOT_JSON: Final = -32700
BAD_REQUEST: Final = -32600
UNKNOWN_METHOD: Final = -32601
BAD_PARAMETERS: Final = -32602
FAILED: Final = -32603
REFUSED: Final = -32000
TOO_MUCH: Final = -32005
REVERTED: Final = 3

ADDRESS_BYTES: Final = 20
WORD_BYTES: Final = 32
_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DATA: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")


class RpcRefusedError(ChainError):
    """A request can't be answered; the answer's ``error`` is made of this."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


def hexed(data: bytes) -> str:
    """Data in hex."""
    return "0x" + bytes(data).hex()


def bytes_of(value: Any, name: str, *, size: int | None = None) -> bytes:
    """The bytes of hex data; exactly ``size`` of them, if given. Raises ``RpcRefusedError``."""
    if isinstance(value, str) and _DATA.fullmatch(value) and size in (None, len(value) // 2 - 1):
        return bytes.fromhex(value[2:])
    wanted = "hex data" if size is None else f"{size} bytes of hex data"
    raise RpcRefusedError(BAD_PARAMETERS, f"invalid argument: {name} must be {wanted} with prefix 0x")


def quantity_of(value: Any, name: str) -> int:
    """A hex quantity of at most 32 bytes, or a plain JSON number. Raises ``RpcRefusedError``."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 256:
        return value
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return int(value, 16)
    raise RpcRefusedError(BAD_PARAMETERS, f"invalid argument: {name} must be a hex quantity with prefix 0x")


def fields_of(value: Any, name: str) -> dict[str, Any]:
    """``value``, where it is an object. Raises ``RpcRefusedError`` for anything else."""
    if isinstance(value, dict):
        return value
    raise RpcRefusedError(BAD_PARAMETERS, f"invalid argument: {name} must be an object")
