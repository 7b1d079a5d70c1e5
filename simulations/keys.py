"""Wallets of a simulation: a keyed hash instead of a curve. A signature costs a microsecond.

A real one costs a third of a millisecond with its check, and the sessions of a simulation ask for hundreds a
second. Nobody in a simulation has the hash's key but this object, so nobody signs for another
as long as each node is given its own signers only. Signatures have the sizes and bounds of real ones. What a
real one would cost a node's CPU is modelled in ``cpu.py``.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from p2pnode.protocols.crypto import Signer

_V: Final = b"\x1b"
_ADDRESS: Final = 20
_SIGNATURE: Final = 65


class Keys:
    """All keys of one run; a seed gives the same ones."""

    def __init__(self, seed: object) -> None:
        self._key = blake2b(f"keys of {seed}".encode(), digest_size=32).digest()

    def address(self, name: str) -> bytes:
        """The 20-byte address of whoever is called so; another name has another one."""
        return blake2b(name.encode(), digest_size=_ADDRESS, key=self._key, person=b"address").digest()

    def public_key(self, name: str) -> bytes:
        """The 32 bytes of the peer key of whoever is called so. ``signatures.py`` signs with it."""
        return blake2b(name.encode(), digest_size=32, key=self._key, person=b"peer").digest()

    def signer(self, address: bytes) -> Signer:
        """Signs digests for an address: 65 bytes that :meth:`recover` gives the address of."""
        key = self._key

        def sign(digest: bytes) -> bytes:
            made = blake2b(address + digest, digest_size=32, key=key).digest()
            # s in the lower half of the curve's order, as the token and the contracts want it.
            return address + bytes(12) + bytes((made[0] & 0x3F,)) + made[1:] + _V

        return sign

    def recover(self, digest: bytes, signature: bytes) -> bytes | None:
        """The address that signed a digest, or None, as ``recover_address`` of real signatures."""
        if len(signature) != _SIGNATURE or signature[64:] != _V:
            return None
        address = signature[:_ADDRESS]
        made = blake2b(address + digest, digest_size=32, key=self._key).digest()
        holds = signature[33:64] == made[1:] and signature[32] == made[0] & 0x3F
        return address if holds else None
