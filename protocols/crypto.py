"""Verification and hashing shared by the protocols. Signing is injected; no key is ever held here.

Sources: libp2p peer-id spec (identity multihash of the protobuf public key, Ed25519), FIPS 202's
predecessor Keccak-256 as Ethereum uses it, EIP-712 for typed data, EIP-2 for low-s signatures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias

import base58
import coincurve
from Crypto.Hash import keccak
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId

try:
    from sha3 import keccak_256
except ImportError:  # it has wheels for Linux only
    keccak_256 = None

Signer: TypeAlias = Callable[[bytes], bytes]
"""Signs a message: 64 bytes for Ed25519; 65 (r, s, v) over a 32-byte digest for secp256k1."""
Recover: TypeAlias = Callable[[bytes, bytes], "bytes | None"]
"""Gives the 20-byte address that signed a digest, or None: :func:`recover_address`, or a simulator's own."""

_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")
_HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def keccak256(data: bytes) -> bytes:
    """Keccak-256 of ``data``, 32 bytes."""
    # A receipt takes ten of these: 3 microseconds each, and 30 by pycryptodome, which calls C through cffi.
    if keccak_256 is None:
        return _keccak256_anywhere(data)
    found: bytes = keccak_256(data).digest()
    return found


def _keccak256_anywhere(data: bytes) -> bytes:
    found: bytes = keccak.new(digest_bits=256, data=data).digest()
    return found


def word(value: int | bytes) -> bytes:
    """One ABI word: a uint256 big-endian, or up to 32 bytes right-aligned as an address is."""
    if isinstance(value, int):
        return value.to_bytes(32, "big")
    return value.rjust(32, b"\0")


def abi_encode(*values: int | bytes) -> bytes:
    """``abi.encode`` of static types: every value one 32-byte word."""
    return b"".join([word(value) for value in values])


@lru_cache(maxsize=1024)
def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a 32-byte Ed25519 public key."""
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key).decode())


@lru_cache(maxsize=1024)
def public_key_of(peer: str) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id. Raises ``ProtocolError`` for other key types."""
    try:
        raw = base58.b58decode(peer)
    except ValueError as error:
        msg = f"not a base58 peer id: {peer[:64]!r}"
        raise ProtocolError(msg) from error
    if len(raw) != 38 or not raw.startswith(_PEER_ID_PREFIX):  # noqa: PLR2004 - prefix and key
        msg = f"not the peer id of an Ed25519 key: {peer[:64]!r}"
        raise ProtocolError(msg)
    if peer_id_of(raw[6:]) != peer:
        # The decoder forgives trailing white space: one key must not have many names.
        msg = f"not the canonical form of a peer id: {peer[:64]!r}"
        raise ProtocolError(msg)
    return raw[6:]


def verify_peer(peer: str, message: bytes, signature: bytes) -> bool:
    """Whether the key of ``peer`` signed ``message``."""
    try:
        return verify_key(public_key_of(peer), message, signature)
    except ProtocolError:
        return False


def verify_key(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether this 32-byte Ed25519 public key signed ``message``. It takes a third of a millisecond."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def verify_again(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """As :func:`verify_key`, for keys that come again and again: the last 256 are kept ready.

    To make a key ready is a fifth of a check.
    """
    try:
        _ready_key(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=256)
def _ready_key(public_key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public_key)


def recover_address(digest: bytes, signature: bytes) -> bytes | None:
    """The 20-byte address that signed ``digest``, or None. High-s (malleable) signatures are refused."""
    if len(signature) != 65 or signature[64] not in (27, 28):  # noqa: PLR2004 - r, s, v
        return None
    if not 0 < int.from_bytes(signature[32:64], "big") <= _HALF_ORDER:
        return None
    try:
        recoverable = signature[:64] + bytes([signature[64] - 27])
        key = coincurve.PublicKey.from_signature_and_message(recoverable, digest, hasher=None)
    except (ValueError, Exception) as error:  # noqa: BLE001 - coincurve raises bare Exception
        del error
        return None
    return address_of(key.format(compressed=False))


def address_of(public_key: bytes) -> bytes:
    """The 20-byte address of a 65-byte uncompressed secp256k1 public key."""
    return keccak256(public_key[1:])[12:]


def key_address(secret: bytes) -> bytes:
    """The 20-byte address of a 32-byte private key. Raises ``ValueError`` for what is no key of the curve."""
    return address_of(coincurve.PrivateKey(secret).public_key.format(compressed=False))


def sign_digest(secret: bytes, digest: bytes) -> bytes:
    """65 bytes (r, s, v) over a 32-byte digest. The caller owns the secret; nothing is kept."""
    raw = coincurve.PrivateKey(secret).sign_recoverable(digest, hasher=None)
    return raw[:64] + bytes([raw[64] + 27])
