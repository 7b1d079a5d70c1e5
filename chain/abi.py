"""The contracts as they ship: their ABI and bytecode, calls encoded, answers and events decoded, and the
inference protocol's messages as the tuples that the contracts take.

Addresses are 20 bytes. The only I/O is reading the package's own JSON. ``eth_abi`` is imported when first
used, so that a free session doesn't load it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from p2pnode.errors import ChainError
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.inference.messages import Receipt, SessionTerms, Voucher

CONTRACTS: Final = ("FAB", "JobMarketplace", "ModelRegistry", "NodeRegistry", "ProofSystem", "USDC")


def type_of(field: dict[str, Any]) -> str:
    """The canonical type of an ABI field; structs become tuples."""
    kind: str = field["type"]
    if not kind.startswith("tuple"):
        return kind
    inner = ",".join(type_of(part) for part in field["components"])
    return f"({inner}){kind.removeprefix('tuple')}"


def _plain(value: Any) -> Any:
    """A value with addresses as 20 bytes: ``eth_abi`` gives them as hex text."""
    if isinstance(value, str) and value.startswith("0x"):
        return bytes.fromhex(value[2:])
    if isinstance(value, tuple | list):
        return tuple(_plain(part) for part in value)
    return value


@dataclass(frozen=True, slots=True)
class Function:
    """A contract's function: its name and types."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def selector(self) -> bytes:
        """The first four bytes of calldata."""
        return keccak256(f"{self.name}({','.join(self.inputs)})".encode())[:4]

    def encode(self, arguments: Sequence[Any]) -> bytes:
        """The calldata of a call. Raises ``ChainError`` for arguments that don't fit."""
        from eth_abi.abi import encode
        from eth_abi.exceptions import EncodingError

        try:
            return self.selector + encode(self.inputs, tuple(arguments))
        except (EncodingError, ValueError, TypeError) as error:
            msg = f"{self.name} takes ({', '.join(self.inputs)}): {error}"
            raise ChainError(msg) from error

    def decode(self, data: bytes) -> Any:
        """What a call returned: one value, a tuple of several, or None. Raises ``ChainError``."""
        from eth_abi.abi import decode
        from eth_abi.exceptions import DecodingError

        try:
            values = tuple(_plain(value) for value in decode(self.outputs, data))
        except (DecodingError, ValueError, OverflowError) as error:
            msg = f"what {self.name} answered is not ({', '.join(self.outputs)}): {error}"
            raise ChainError(msg) from error
        return values[0] if len(values) == 1 else values or None


@dataclass(frozen=True, slots=True)
class Event:
    """A decoded log."""

    contract: bytes
    name: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Artifact:
    """One contract of ``chain/artifacts``."""

    name: str
    abi: tuple[dict[str, Any], ...]
    bytecode: bytes

    def function(self, name: str, arguments: int) -> Function:
        """The function with this name and number of arguments. Overloads differ in that number."""
        for entry in self.abi:
            if entry["type"] == "function" and entry["name"] == name and len(entry["inputs"]) == arguments:
                inputs = tuple(type_of(field) for field in entry["inputs"])
                return Function(name, inputs, tuple(type_of(field) for field in entry["outputs"]))
        msg = f"{self.name} has no function {name} of {arguments} arguments"
        raise ChainError(msg)

    def event(self, contract: bytes, topics: Sequence[bytes], data: bytes) -> Event | None:
        """A log of this contract, decoded; None if it isn't one of the contract's events."""
        from eth_abi.abi import decode

        for entry in self.abi:
            if entry["type"] != "event" or not topics:
                continue
            kinds = ",".join(type_of(field) for field in entry["inputs"])
            if keccak256(f"{entry['name']}({kinds})".encode()) != topics[0]:
                continue
            indexed = [field for field in entry["inputs"] if field["indexed"]]
            plain = [field for field in entry["inputs"] if not field["indexed"]]
            found = {
                field["name"]: _plain(decode((type_of(field),), topic)[0])
                for field, topic in zip(indexed, topics[1:], strict=True)
            }
            values = decode(tuple(type_of(field) for field in plain), data)
            found |= {field["name"]: _plain(value) for field, value in zip(plain, values, strict=True)}
            return Event(contract, entry["name"], found)
        return None


@cache
def artifact(name: str) -> Artifact:
    """Read one of ``CONTRACTS`` from the package."""
    raw = json.loads(files("p2pnode.chain").joinpath("artifacts", f"{name}.json").read_text())
    return Artifact(name, tuple(raw["abi"]), bytes.fromhex(raw["bytecode"].removeprefix("0x")))


# ---- messages as tuples

NO_VOUCHER: Final = (0, 0, 0, 0, bytes(32), b"")
"""What ``request_close`` takes from a payer who never signed a voucher."""


def terms_tuple(terms: SessionTerms) -> tuple[Any, ...]:
    """The contract's ``SessionTerms``: the message's fields stand in the same order."""
    return astuple(terms)


def voucher_tuple(voucher: Voucher) -> tuple[Any, ...]:
    """The contract's ``Voucher``: it doesn't know of the turn that the message names."""
    v = voucher
    return v.seq, v.tokens_in, v.tokens_out, v.amount, v.root, v.signature


def claim_tuple(terms: SessionTerms, voucher: Voucher) -> tuple[Any, ...]:
    """The contract's ``Claim``, which ``close`` and ``close_many`` take."""
    return terms_tuple(terms), voucher_tuple(voucher)


def receipt_tuple(receipt: Receipt) -> tuple[Any, ...]:
    """NodeRegistry's ``Receipt``, which ``slash`` takes. Its epoch and seq are arguments of their own."""
    signed = receipt.checkpoint
    counts = (signed.tokens_in, signed.tokens_out)
    return receipt.previous, *counts, signed.token_hash, signed.fingerprint_hash, signed.signature
