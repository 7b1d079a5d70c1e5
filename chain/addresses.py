"""Addresses as people write them: 0x and 40 hex digits, in mixed case with EIP-55's checksum. Pure."""

from __future__ import annotations

from typing import Final

from p2pnode.ids import pasted
from p2pnode.protocols.crypto import keccak256

ADDRESS_BYTES: Final = 20
_UPPER_FROM: Final = 8


def shown_address(address: bytes) -> str:
    """An address with its checksum (EIP-55: a letter is upper case where the hash of all has a high
    nibble)."""
    digits = address.hex()
    marks = keccak256(digits.encode()).hex()
    return "0x" + "".join(
        digit.upper() if int(mark, 16) >= _UPPER_FROM else digit
        for digit, mark in zip(digits, marks, strict=False)
    )


def address_from(text: str) -> bytes:
    """The 20 bytes of an address. Raises ``ValueError`` that says what is wrong, and repeats no digit.

    A mistyped address must not stand in a message in a form that would be accepted.
    """
    text = pasted(text)
    digits = text.removeprefix("0x")
    if digits == text:
        msg = "an address begins with 0x"
        raise ValueError(msg)
    if len(digits) != 2 * ADDRESS_BYTES:
        msg = f"an address has {2 * ADDRESS_BYTES} digits after 0x, this one has {len(digits)}"
        raise ValueError(msg)
    if not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        msg = "an address has hex digits only"
        raise ValueError(msg)
    address = bytes.fromhex(digits)
    if digits not in (digits.lower(), digits.upper()) and shown_address(address) != text:
        msg = "its checksum is wrong: a digit was mistyped; copy the address again, whole, from its owner"
        raise ValueError(msg)
    return address
