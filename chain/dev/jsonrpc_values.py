"""What JSON-RPC's parameters and answers are made of: hex quantities, hex data, block tags, errors. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

from p2pnode.errors import ChainError

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
    """A request that can't be answered; becomes the answer's ``error``."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


def hexed(data: bytes) -> str:
    """Data."""
    return "0x" + bytes(data).hex()


def bytes_of(value: Any, name: str, *, size: int | None = None) -> bytes:
    """Hex data, of exactly ``size`` bytes if given."""
    if isinstance(value, str) and _DATA.fullmatch(value) and size in (None, len(value) // 2 - 1):
        return bytes.fromhex(value[2:])
    wanted = "hex data" if size is None else f"{size} bytes of hex data"
    raise RpcRefusedError(BAD_PARAMETERS, f"invalid argument: {name} must be {wanted} with prefix 0x")


def quantity_of(value: Any, name: str) -> int:
    """A hex quantity of at most 32 bytes (a plain JSON number is taken too)."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 256:
        return value
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return int(value, 16)
    raise RpcRefusedError(BAD_PARAMETERS, f"invalid argument: {name} must be a hex quantity with prefix 0x")


def fields_of(value: Any, name: str) -> dict[str, Any]:
    """An object."""
    if isinstance(value, dict):
        return value
    raise RpcRefusedError(BAD_PARAMETERS, f"invalid argument: {name} must be an object")
