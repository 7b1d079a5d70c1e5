"""``Wallet``: a secp256k1 key in a V3 keystore, from twelve words or imported. It is locked except while
it signs.

``join`` makes one with a random passphrase in a 0600 file beside it, so that a host has an address to be paid
at from its first start. Everything here blocks, up to two seconds or for a person: under trio call it from a
worker thread. This module knows nothing of the ledger.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.wallet.files import (
    OURS,
    Keystore,
    WalletFiles,
    encrypt,
    opened_entropy,
    read_keystore,
    refuse_existing,
    sealed_entropy,
    write_secret,
)
from p2pnode.chain.wallet.passphrase import (
    Fresh,
    PassphraseFile,
    PassphraseKeyring,
    PassphrasePrompt,
    PassphraseSource,
)
from p2pnode.chain.wallet.phrase import new_entropy, phrase_of, wallet_secret
from p2pnode.errors import ChainError, ConfigError
from p2pnode.protocols.crypto import Signer, key_address, sign_digest

Origin: TypeAlias = Literal["phrase", "imported", "unknown"]


@dataclass(frozen=True, slots=True)
class Wallet:
    """A wallet on disk, locked. ``address`` is 20 bytes; ``origin`` says whether its phrase makes its key."""

    address: bytes
    keystore: Keystore
    files: WalletFiles
    source: PassphraseSource
    origin: Origin

    @property
    def account(self) -> str:
        """The address as people write it (EIP-55)."""
        return shown_address(self.address)

    def passphrase(self) -> bytes:
        """The passphrase from its source, which may be a person: ask before an event loop runs."""
        return self.source.existing(self.account)

    def unlock(self, passphrase: bytes | None = None) -> Signer:
        """Decrypt the key and return a signer of 32-byte digests. Raises ``ChainError``."""
        secret = self._secret(passphrase)
        return lambda digest: sign_digest(secret, digest)

    def phrase(self, passphrase: bytes | None = None) -> str:
        """The twelve words again. Raises ``ChainError``, also for a wallet that has none."""
        stored = read_keystore(self.files.phrase)
        if stored is None:
            msg = (
                f"this wallet has no recovery phrase here ({self.files.phrase} is missing): restore that "
                "file from your backup, or keep an export of the key with `p2pnode wallet export`"
            )
            raise ChainError(msg)
        try:
            return phrase_of(opened_entropy(stored, self._given(passphrase)))
        except ValueError as error:
            raise self._not_opened(self.files.phrase) from error

    def exported(self, new_passphrase: bytes | None = None, passphrase: bytes | None = None) -> bytes:
        """The V3 keystore for other tools: as it is, or under another passphrase. Checks that it opens."""
        secret = self._secret(passphrase)
        if new_passphrase is None:
            return self.keystore.plain()
        return json.dumps(encrypt(secret, new_passphrase)).encode()

    def _secret(self, passphrase: bytes | None) -> bytes:
        given = self._given(passphrase)
        try:
            secret = self.keystore.decrypt(given)
            address = key_address(secret)
        except ValueError as error:
            raise self._not_opened(self.keystore.path) from error
        if address != self.address:
            msg = f"{self.keystore.path} holds the key of another address than it says: restore your backup"
            raise ChainError(msg)
        return secret

    def _given(self, passphrase: bytes | None) -> bytes:
        if passphrase is not None:
            return passphrase
        try:
            return self.passphrase()
        except ChainError as error:
            if self.source.kind == "file":
                raise self._not_opened(self.keystore.path) from error
            raise

    def _not_opened(self, path: Path) -> ChainError:
        if self.source.kind == "prompt":
            return ChainError(f"{path} can't be opened: the passphrase is wrong, or the file is damaged")
        return ChainError(
            f"the wallet {path} can't be opened with {self.source.words}: "
            "restore both files from your backup, or make the wallet anew from its phrase"
        )


def open_wallet(files: WalletFiles, prompt: PassphraseSource | None = None) -> Wallet | None:
    """The wallet on disk, still locked; None where there is none. ``prompt`` asks the person."""
    keystore = read_keystore(files.keystore)
    if keystore is None:
        return None
    noted = keystore.ours
    origin: Origin = noted["origin"] if noted.get("origin") in {"phrase", "imported"} else "unknown"
    source: PassphraseSource
    match noted.get("passphrase"):
        case "keyring":
            source = PassphraseKeyring()
        case "file":
            named = noted.get("file")
            source = PassphraseFile(Path(named) if isinstance(named, str) else files.passphrase)
        case None if files.passphrase.exists():
            source = PassphraseFile(files.passphrase)
        case _:
            source = prompt or PassphrasePrompt()
    return Wallet(keystore.address, keystore, files, source, origin)


def make_wallet(
    files: WalletFiles, source: PassphraseSource, *, entropy: bytes, secret: bytes | None = None
) -> Wallet:
    """Write a wallet: from a phrase, or with an imported ``secret`` and a phrase for everything else that
    needs one.

    Raises ``ChainError`` rather than overwrite anything.
    """
    refuse_existing(files.keystore, files.phrase)
    key = wallet_secret(entropy) if secret is None else secret
    fresh = source.fresh(shown_address(key_address(key)))
    note: dict[str, Any] = {
        "origin": "phrase" if secret is None else "imported",
        "passphrase": source.kind,
    }
    if isinstance(source, PassphraseFile) and source.path != files.passphrase:
        note["file"] = str(source.path.absolute())
    # The keystore is written last: where it exists, the phrase exists too.
    sealed = sealed_entropy(entropy, fresh.passphrase, drawn=fresh.drawn)
    write_secret(files.phrase, _json(sealed, note))
    return _write_key(files, source, key, fresh, note)


def open_or_make_wallet(files: WalletFiles) -> Wallet:
    """The wallet that is there, or a new one with a random passphrase beside it, as ``join`` needs it."""
    wallet = open_wallet(files)
    if wallet is not None:
        return wallet
    source = PassphraseFile(files.passphrase, draw=True)
    stored = read_keystore(files.phrase)
    if stored is None:
        return make_wallet(files, source, entropy=new_entropy())
    # The first start was cut off between the two files: the phrase makes the same wallet again.
    if (
        stored.ours.get("origin") != "phrase"
        or stored.ours.get("passphrase") != "file"
        or "file" in stored.ours
    ):
        msg = (
            f"{files.phrase} is there but not {files.keystore}: restore that from your backup, "
            "or move the phrase away too"
        )
        raise ChainError(msg)
    fresh = Fresh(source.existing("this node"), drawn=False)
    try:
        entropy = opened_entropy(stored, fresh.passphrase)
    except ValueError:
        msg = f"{files.phrase} can't be opened with {source.words}: restore both from your backup"
        raise ChainError(msg) from None
    return _write_key(files, source, wallet_secret(entropy), fresh, dict(stored.ours))


def _write_key(
    files: WalletFiles, source: PassphraseSource, key: bytes, fresh: Fresh, note: dict[str, Any]
) -> Wallet:
    locked = encrypt(key, fresh.passphrase, drawn=fresh.drawn)
    write_secret(files.keystore, _json(locked, note))
    keystore = read_keystore(files.keystore)
    if keystore is None:
        msg = f"{files.keystore} was taken away while it was made"
        raise ChainError(msg)
    origin: Origin = "imported" if note["origin"] == "imported" else "phrase"
    return Wallet(key_address(key), keystore, files, source, origin)


def _json(body: dict[str, Any], note: dict[str, Any]) -> bytes:
    return json.dumps({**body, OURS: note}).encode()


# ---- private keys

_DIGITS: Final = 64
_KEY: Final = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})")


def parse_key(text: str) -> bytes:
    """Read a private key written in hex. Raises ``ConfigError``, whose message shows no digit of it."""
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
