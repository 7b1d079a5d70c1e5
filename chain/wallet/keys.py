"""Private keys: as people write them, and the address of one. Pure."""

from __future__ import annotations

import re
from typing import Final

from coincurve import PrivateKey

from p2pnode.errors import ConfigError
from p2pnode.protocols.crypto import address_of

_DIGITS: Final = 64
_KEY: Final = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})")


def key_address(secret: bytes) -> bytes:
    """The 20-byte address of a 32-byte key. Raises ``ValueError`` for what is no key of the curve."""
    return address_of(PrivateKey(secret).public_key.format(compressed=False))


def parse_key(text: str) -> bytes:
    """A private key written in hex. Raises ``ConfigError`` without a digit of it."""
    found = _KEY.fullmatch(text.strip())
    if found is None:
        msg = f"a private key is {_DIGITS} hex digits, with or without 0x before them: check what was given"
        raise ConfigError(msg)
    secret = bytes.fromhex(found[1])
    try:
        key_address(secret)
    except ValueError:
        msg = "these digits are no private key of Ethereum's curve (zero, or too large): check what was given"
        raise ConfigError(msg) from None
    return secret
