"""The root secret of the conversations that are kept from a data dir, in a 0600 file of its own.

It is derived from the recovery phrase (``storage/keys.py``), and neither the wallet nor the phrase can be
derived from it: a question needs to open neither. Where the file is missing, nothing is kept.
"""

from __future__ import annotations

from p2pnode.chain.wallet.files import opened_entropy, read_keystore
from p2pnode.chain.wallet.phrase import entropy_of
from p2pnode.chain.wallet.wallet import open_wallet
from p2pnode.errors import ConfigError
from p2pnode.files import read_secret_or_none, write_private
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import wallet_files
from p2pnode.storage.keys import StorageKeys


def load_storage_keys(data: DataDir) -> StorageKeys | None:
    """The keys of this data dir's conversations; None where it has none. Raises ``ConfigError``."""
    text = read_secret_or_none(data.storage_key)
    if text is None:
        return None
    try:
        return StorageKeys(bytes.fromhex(text.strip()))
    except ValueError:
        msg = (
            f"{data.storage_key} does not hold a key: move it away, and `p2pnode wallet show --phrase` "
            "writes it again from the recovery phrase"
        )
        raise ConfigError(msg) from None


def save_storage_key(data: DataDir, entropy: bytes) -> None:
    """Write the key that the 16 bytes of a recovery phrase give, where there is none.

    Raises ``ConfigError``.
    """
    keys, held = StorageKeys.from_entropy(entropy), load_storage_keys(data)
    if held is None:
        write_private(data.storage_key, keys.root.hex().encode())
    elif held.root != keys.root:
        msg = (
            f"{data.storage_key} is of another recovery phrase, and conversations are kept with it: move "
            "it away if you have those twelve words, or use another --data-dir"
        )
        raise ConfigError(msg)


def save_storage_key_of_words(data: DataDir, words: str) -> None:
    """Write the key that the twelve words of a recovery phrase give, as :func:`save_storage_key`."""
    save_storage_key(data, entropy_of(words))


def ensure_storage_key(data: DataDir) -> None:
    """Write the key where it is missing and the wallet's passphrase is in a file, as ``join`` makes it.

    Blocks.
    """
    if data.storage_key.exists():
        return
    wallet, kept = open_wallet(wallet_files(data)), read_keystore(data.phrase)
    if wallet is None or kept is None or wallet.source.kind != "file":
        return
    try:
        entropy = opened_entropy(kept, wallet.passphrase())
    except ValueError:
        return  # the wallet's own commands say what is wrong with it
    save_storage_key(data, entropy)
