"""Twelve BIP-39 words: the one thing to write down. Their entropy makes the wallet and, later, the storage.

Sources: BIP-39 (English list, as the library ships it), BIP-32, BIP-44 with Ethereum's first account. No
message of this module holds a word of a phrase. Knows nothing of files.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Final

from p2pnode.errors import ConfigError

if TYPE_CHECKING:
    from eth_account.hdaccount.mnemonic import Mnemonic

WORDS: Final = 12
ENTROPY_BYTES: Final = 16
WALLET_PATH: Final = "m/44'/60'/0'/0/0"
_PREFIX: Final = 4
"""Letters that tell every word of the list from all others; steel plates hold no more."""


def new_entropy() -> bytes:
    """16 random bytes."""
    return secrets.token_bytes(ENTROPY_BYTES)


def phrase_of(entropy: bytes) -> str:
    """The twelve words of 16 bytes."""
    return _list().to_mnemonic(entropy)


def entropy_of(phrase: str) -> bytes:
    """The 16 bytes behind twelve words; case, white space and cut words (to 4 letters) are forgiven.

    Raises ``ConfigError`` that says which word is unknown, or that the words don't belong together.
    """
    words = re.sub(r"[\s,]+", " ", phrase).strip().lower().split(" ")
    if len(words) != WORDS:
        count = len([word for word in words if word])
        msg = (
            f"a recovery phrase has {WORDS} words, this has {count}: write them in order, with spaces "
            "between. A longer phrase of another wallet can't be restored here: import the key of its account"
        )
        raise ConfigError(msg)
    known = _list().wordlist
    by_prefix = {word[:_PREFIX]: word for word in known}
    whole = [by_prefix.get(word, word) if len(word) == _PREFIX else word for word in words]
    unknown = [str(place) for place, word in enumerate(whole, 1) if word not in known]
    if unknown:
        which = f"word {unknown[0]} is" if len(unknown) == 1 else f"words {', '.join(unknown)} are"
        msg = f"{which} not in the list of recovery words (BIP-39, English): check the spelling"
        raise ConfigError(msg)
    if not _list().is_mnemonic_valid(" ".join(whole)):
        msg = (
            "each word is in the list, but together they are no phrase: a word is another one than it was, "
            "or two have changed places"
        )
        raise ConfigError(msg)
    bits = 0
    for word in whole:
        bits = bits << 11 | known.index(word)
    return (bits >> WORDS * 11 - ENTROPY_BYTES * 8).to_bytes(ENTROPY_BYTES, "big")


def wallet_secret(entropy: bytes) -> bytes:
    """The 32-byte key of the phrase's first Ethereum account."""
    from eth_account.hdaccount import key_from_seed

    words = _list()
    return bytes(key_from_seed(words.to_seed(phrase_of(entropy)), WALLET_PATH))


def _list() -> Mnemonic:
    from eth_account.hdaccount.mnemonic import Mnemonic

    return Mnemonic()
