"""Twelve BIP-39 words, which a user writes down. Their entropy makes the wallet, and the storage key.

Sources: BIP-39 (the English list, as the library ships it), BIP-32, BIP-44 with Ethereum's first account. No
message of this module contains a word of a phrase. It knows nothing of files.
"""

from __future__ import annotations

import codecs
import re
import secrets
import unicodedata
from typing import TYPE_CHECKING, Final

from p2pnode.errors import ConfigError

if TYPE_CHECKING:
    from eth_account.hdaccount.mnemonic import Mnemonic

WORDS: Final = 12
ENTROPY_BYTES: Final = 16
WALLET_PATH: Final = "m/44'/60'/0'/0/0"
_LETTERS: Final = re.compile("[a-z]+")
_NUMBERED: Final = re.compile(r"(\d{1,2})[.):]*(.*)")
_AROUND: Final = ".:()[]\"'`*-_#"
_PREFIX: Final = 4
"""Letters that tell every word of the list from all others; steel plates hold no more."""


def new_entropy() -> bytes:
    """16 random bytes."""
    return secrets.token_bytes(ENTROPY_BYTES)


def phrase_of(entropy: bytes) -> str:
    """The twelve words of 16 bytes."""
    return _list().to_mnemonic(entropy)


def entropy_of(phrase: str) -> bytes:
    """The 16 bytes behind twelve words, as :func:`words_in` finds them; words may be cut to 4 letters.

    Raises ``ConfigError`` that says which word is unknown, or that the words don't belong together.
    """
    words = words_in(phrase)
    if len(words) != WORDS:
        msg = (
            f"a recovery phrase has {WORDS} words, this has {len(words)}: write them in order, with spaces "
            "between. A longer phrase of another wallet can't be restored here: import the key of its account"
        )
        raise ConfigError(msg)
    known = _list().wordlist
    by_prefix = {word[:_PREFIX]: word for word in known}
    whole = [by_prefix.get(word, word) if len(word) == _PREFIX else word for word in words]
    strange = [str(place) for place, word in enumerate(whole, 1) if not _LETTERS.fullmatch(word)]
    if strange:
        which = f"word {strange[0]} has" if len(strange) == 1 else f"words {', '.join(strange)} have"
        msg = f"{which} something else in it than the letters a to z, which all words are made of"
        raise ConfigError(msg)
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


def words_in(text: str) -> list[str]:
    """The words of a phrase, in their order, in small letters.

    Taken are the numbered grid that `p2pnode wallet new` prints, line breaks, commas, capitals, spaces and
    letters of any width, and marks that can't be seen.
    """
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(each for each in plain if unicodedata.category(each) != "Cf").lower()
    tokens = [token.strip(_AROUND) for token in re.split(r"[\s,;|]+", plain)]
    found: list[tuple[int, str]] = []
    number = 0
    for token in tokens:
        numbered = _NUMBERED.fullmatch(token)
        digits, word = numbered.groups() if numbered is not None else ("", token)
        number = int(digits) if digits else number
        if word:
            found.append((number, word))
            number = 0
    if sorted(number for number, _ in found) == [*range(1, WORDS + 1)]:
        found.sort()  # by their numbers: a grid may be copied column by column
    return [word for _, word in found]


def text_of(data: bytes) -> str:
    """What an editor wrote, in UTF-8 or UTF-16, with or without a mark of it. Raises ``ConfigError``."""
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        if data[1:2] == b"\0":
            return data.decode("utf-16-le")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = "this is no text in UTF-8 or UTF-16: save it as plain text in UTF-8"
        raise ConfigError(msg) from error


def wallet_secret(entropy: bytes) -> bytes:
    """The 32-byte key of the phrase's first Ethereum account."""
    from eth_account.hdaccount import key_from_seed

    words = _list()
    return bytes(key_from_seed(words.to_seed(phrase_of(entropy)), WALLET_PATH))


def _list() -> Mnemonic:
    from eth_account.hdaccount.mnemonic import Mnemonic

    return Mnemonic()
