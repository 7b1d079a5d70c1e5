"""Signatures for simulations: they cost a hash, and everybody who looks at one again has the answer at once.

A signature is a hash of the message with the signer's public key as its key. Whoever knows the public key
could sign, which no model here does: forgers are modelled by bytes that are wrong. ``check`` has the form of
``verify_key``, and takes its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

_CHECKED_MAX = 1 << 16


def sign_with(public_key: bytes) -> Callable[[bytes], bytes]:
    """A signer whose 64-byte signatures ``check`` takes."""
    return lambda message: hashlib.blake2b(message, key=public_key).digest()


@lru_cache(_CHECKED_MAX)
def check(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``sign_with`` of this key made the signature."""
    return hashlib.blake2b(message, key=public_key).digest() == signature
