"""A wallet's two V3 keystores on disk: the key, and the entropy of its phrase. They are never overwritten.

``wallet.json`` is a plain Web3 Secret Storage (version 3) file that any Ethereum tool opens; one field more,
``p2pnode``, says where its passphrase is. ``phrase.json`` has the same format, around 16 bytes of our own and
the entropy. This module doesn't know where passphrases come from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2pnode.chain.wallet.phrase import ENTROPY_BYTES
from p2pnode.errors import ChainError
from p2pnode.extras import need
from p2pnode.files import not_writable, read_secret_or_none, write_private
from p2pnode.locks import lock, open_folder

OURS: Final = "p2pnode"
_MARK: Final = b"p2pnode bip39 12"
WORK: Final = 1 << 17
"""scrypt's cost for a passphrase that a person chose (with r 8, as OWASP advises): half a second, 128 MB."""
_WORK_DRAWN: Final = 1 << 12
"""For 256 random bits, which nobody will ever guess: 12 ms, 4 MB."""
_ADDRESS_BYTES: Final = 20


@dataclass(frozen=True, slots=True)
class WalletFiles:
    """Where a wallet is: its keystore, its phrase's keystore, and the passphrase file that `join` makes."""

    keystore: Path
    phrase: Path
    passphrase: Path


@dataclass(frozen=True, slots=True)
class Keystore:
    """A V3 keystore as it was read, still locked."""

    path: Path
    body: Mapping[str, Any]

    @property
    def address(self) -> bytes:
        """The 20 bytes of its address."""
        try:
            address = bytes.fromhex(self.body["address"].removeprefix("0x"))
        except (ValueError, KeyError, TypeError, AttributeError):
            address = b""
        if len(address) != _ADDRESS_BYTES:
            msg = f"{self.path} is not a V3 keystore: restore it from your backup, or move it away"
            raise ChainError(msg)
        return address

    @property
    def ours(self) -> Mapping[str, Any]:
        """What this program noted in it; empty for another program's."""
        noted = self.body.get(OURS)
        return noted if isinstance(noted, dict) else {}

    def plain(self) -> bytes:
        """The keystore without our note, as other tools expect it."""
        return json.dumps({key: value for key, value in self.body.items() if key != OURS}).encode()

    def decrypt(self, passphrase: bytes) -> bytes:
        """The 32 bytes in it; takes up to a second. Raises ``ValueError`` for a wrong passphrase or
        damage."""
        need("a wallet", "pay")
        from eth_keyfile.keyfile import decode_keyfile_json

        try:
            secret = bytes(decode_keyfile_json(dict(self.body), passphrase))
        except Exception as error:  # noqa: BLE001
            # The library lets any error through; none of its messages may show what it was given.
            raise ValueError(type(error).__name__) from None
        return secret


def read_keystore(path: Path) -> Keystore | None:
    """The keystore at ``path``; None where there is none. Raises ``ChainError`` for a file that isn't one."""
    text = read_secret_or_none(path)
    if text is None:
        return None
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        msg = f"{path} is not a V3 keystore: restore it from your backup, or move it away"
        raise ChainError(msg)
    return Keystore(path, body)


def encrypt(secret: bytes, passphrase: bytes, *, drawn: bool = False) -> dict[str, Any]:
    """A V3 keystore of 32 bytes; takes up to a second. ``drawn``: the passphrase is random already."""
    need("a wallet", "pay")
    from eth_keyfile.keyfile import create_keyfile_json

    work = _WORK_DRAWN if drawn else WORK
    body: dict[str, Any] = create_keyfile_json(secret, passphrase, kdf="scrypt", iterations=work)
    body["address"] = body["address"].lower()  # as geth writes it
    return body


def sealed_entropy(entropy: bytes, passphrase: bytes, *, drawn: bool) -> dict[str, Any]:
    """The keystore of a phrase. It names no address, for it contains no key."""
    body = encrypt(_MARK + entropy, passphrase, drawn=drawn)
    del body["address"]
    return body


def opened_entropy(keystore: Keystore, passphrase: bytes) -> bytes:
    """The entropy in a phrase's keystore. Raises ``ValueError``."""
    inside = keystore.decrypt(passphrase)
    if len(inside) != len(_MARK) + ENTROPY_BYTES or not inside.startswith(_MARK):
        raise ValueError("no phrase inside")
    return inside[len(_MARK) :]


def refuse_existing(*paths: Path) -> None:
    """Raise ``ChainError`` when one of these files exists."""
    for path in paths:
        if os.path.lexists(path):
            msg = f"{path} exists: move it away first (it may be worth money: never delete it)"
            raise ChainError(msg)


def write_secret(path: Path, data: bytes) -> None:
    """Write a whole file where none exists; of two processes only one can."""
    with one_at_a_time(path.parent):
        refuse_existing(path)
        write_private(path, data)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder."""
    try:
        handle = open_folder(folder)
    except OSError as error:
        raise not_writable(folder, error) from error
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)
