"""A host's wallet: a secp256k1 key in a Web3 V3 keystore. The key is in memory only while it signs.

``join`` makes one with a random passphrase in a 0600 file beside it, so that a host has an address
to be paid at from its first start. This module knows nothing of the ledger.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coincurve import PrivateKey
from eth_keyfile.keyfile import create_keyfile_json, decode_keyfile_json

from p2pnode.errors import ChainError
from p2pnode.files import read_text_or_none, write_private
from p2pnode.protocols.crypto import Signer, address_of, sign_digest

_ADDRESS_BYTES: Final = 20


@dataclass(frozen=True, slots=True)
class Wallet:
    """A keystore on disk. ``address`` is 20 bytes; the secret is decrypted when asked for."""

    address: bytes
    keystore: Path
    passphrase_file: Path

    def unlock(self) -> Signer:
        """Decrypt (about a second of CPU) and return a signer of 32-byte digests."""
        try:
            passphrase = self.passphrase_file.read_text().strip()
            secret = decode_keyfile_json(json.loads(self.keystore.read_text()), passphrase.encode())
        except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
            msg = (
                f"the wallet {self.keystore} can't be opened with {self.passphrase_file}: "
                "restore both files from your backup"
            )
            raise ChainError(msg) from error
        return lambda digest: sign_digest(bytes(secret), digest)


def open_wallet(keystore: Path, passphrase_file: Path) -> Wallet | None:
    """The wallet on disk, still locked; None where there is none."""
    text = read_text_or_none(keystore)
    if text is None:
        return None
    try:
        address = bytes.fromhex(json.loads(text)["address"].removeprefix("0x"))
    except (ValueError, KeyError, TypeError, AttributeError):
        address = b""
    if len(address) != _ADDRESS_BYTES:
        msg = f"{keystore} is not a V3 keystore: restore it from your backup, or move it away"
        raise ChainError(msg)
    return Wallet(address, keystore, passphrase_file)


def create_wallet(keystore: Path, passphrase_file: Path) -> Wallet:
    """Make a new key (about a second of CPU). Raises ``ChainError`` rather than overwrite one."""
    if keystore.exists():
        msg = f"{keystore} exists: move it away first"
        raise ChainError(msg)
    passphrase = secrets.token_urlsafe(32)
    key = PrivateKey()
    body = create_keyfile_json(key.secret, passphrase.encode())
    write_private(passphrase_file, passphrase.encode())
    write_private(keystore, json.dumps(body).encode())
    return Wallet(address_of(key.public_key.format(compressed=False)), keystore, passphrase_file)
