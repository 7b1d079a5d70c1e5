"""Keys a node holds: the peer key (Ed25519) and a host's receipt key (secp256k1)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.errors import ConfigError
from p2pnode.files import read_secret_or_none, write_private
from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import peer_id_of

_SEED_BYTES = 32


class PeerKey:
    """An Ed25519 key and its peer id. ``repr`` shows only the id."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.peer_id: PeerId = peer_id_of(self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, draw: Callable[[int], bytes] = secrets.token_bytes) -> PeerKey:
        """A new key, which is in memory only."""
        return cls(draw(_SEED_BYTES))

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, 64 bytes."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"PeerKey({self.peer_id})"


def load_or_create_seed(path: Path) -> bytes:
    """A 32-byte secret in a 0600 file, made at the first start."""
    text = read_secret_or_none(path)
    if text is None:
        seed = secrets.token_bytes(_SEED_BYTES)
        write_private(path, seed.hex().encode())
        return seed
    try:
        seed = bytes.fromhex(text.strip())
    except ValueError:
        seed = b""
    if len(seed) != _SEED_BYTES:
        msg = f"{path} does not hold a key: restore it from your backup, or move it away for a new identity"
        raise ConfigError(msg)
    return seed
