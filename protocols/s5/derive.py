"""The key tree of an S5 user, as s5.js derives it: to read, and to share, accounts made there.

::

    by number   BLAKE3(key | number, 32 bytes LE)
    by text     BLAKE3(key | BLAKE3(text))

    S = BLAKE3(entropy)      main = S/0      public = main/1/0      private = main/64/0
    signing = public/2       accounts = private/65      hidden database = private/66      files = private/67

Our own recovery phrase is another one, with another tree (``storage/``). Of S5's phrase only its arithmetic
is here: 15 numbers of 10 bits, whatever list of words they are looked up in. Everything here is secret but
what it is derived by: nothing is logged or shown. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from p2pnode.errors import ProtocolError

ENTROPY_BYTES: Final = 16
SEED_WORDS: Final = 13
"""Twelve of 10 bits and one of 8."""
PHRASE_WORDS: Final = 15
_WORD_BITS: Final = 10
_LAST_BITS: Final = 8
_MAIN, _PUBLIC, _PRIVATE, _ROTATION = 0, 1, 64, 0
_SIGNING, _ACCOUNTS, _HIDDEN, _FILES = 2, 65, 66, 67
_ROOT_WRITE, _ROOT_ENCRYPT = 1, 1
_PATH, _PATH_WRITE, _PATH_ENCRYPT = 1, 2, 3


def derive_int(key: bytes, number: int) -> bytes:
    """The 32-byte child key of a number from 0 to 2^256-1."""
    return blake3(key + number.to_bytes(32, "little")).digest()


def derive_string(key: bytes, text: bytes) -> bytes:
    """The 32-byte child key of a text."""
    return blake3(key + blake3(text).digest()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A user's keys, 32 bytes each."""

    main: bytes = field(repr=False)
    private: bytes = field(repr=False)
    signing: bytes = field(repr=False)
    """Ed25519 seed of what the user signs in public."""
    accounts: bytes = field(repr=False)
    hidden: bytes = field(repr=False)
    files: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteKeys:
    """Of something that changes: the Ed25519 seed of its registry entry, and the key of its bytes."""

    write: bytes = field(repr=False)
    encrypt: bytes = field(repr=False)


def identity_of(entropy: bytes) -> Identity:
    """The keys that 16 bytes of entropy give."""
    if len(entropy) != ENTROPY_BYTES:
        msg = f"a seed has {ENTROPY_BYTES} bytes of entropy"
        raise ValueError(msg)
    main = derive_int(blake3(entropy).digest(), _MAIN)
    public = derive_int(derive_int(main, _PUBLIC), _ROTATION)
    private = derive_int(derive_int(main, _PRIVATE), _ROTATION)
    return Identity(
        main=main,
        private=private,
        signing=derive_int(public, _SIGNING),
        accounts=derive_int(private, _ACCOUNTS),
        hidden=derive_int(private, _HIDDEN),
        files=derive_int(private, _FILES),
    )


def root_keys(identity: Identity) -> WriteKeys:
    """The keys of the user's root directory."""
    write = derive_int(identity.files, _ROOT_WRITE)
    return WriteKeys(write=write, encrypt=derive_int(write, _ROOT_ENCRYPT))


def child_write_key(parent: bytes, name: str) -> bytes:
    """The Ed25519 seed of a directory inside another. s5.js leaves such a directory in clear."""
    return derive_string(parent, name.encode())


def hidden_keys(identity: Identity, path: str) -> WriteKeys:
    """The keys of a path (``a/b``) of the hidden database."""
    key = hidden_path_key(identity, path)
    return WriteKeys(write=derive_int(key, _PATH_WRITE), encrypt=derive_int(key, _PATH_ENCRYPT))


def hidden_path_key(identity: Identity, path: str) -> bytes:
    """What the keys of a path are derived from."""
    key = identity.hidden
    for segment in path.split("/"):
        if segment.strip():
            key = derive_string(key, segment.strip().encode())
    return derive_int(key, _PATH)


def account_key(accounts: bytes, seed: bytes) -> bytes:
    """The Ed25519 seed of an account on a service; ``seed`` is drawn for it, 32 bytes."""
    return blake3(accounts + seed).digest()


# ---- the phrase


def phrase_numbers(entropy: bytes) -> tuple[int, ...]:
    """The 15 numbers of the phrase for 16 bytes of entropy; the last two are its checksum."""
    if len(entropy) != ENTROPY_BYTES:
        msg = f"a seed has {ENTROPY_BYTES} bytes of entropy"
        raise ValueError(msg)
    bits = int.from_bytes(entropy, "big")
    last = bits & ((1 << _LAST_BITS) - 1)
    bits >>= _LAST_BITS
    words = [bits >> shift & 0x3FF for shift in range(11 * _WORD_BITS, -1, -_WORD_BITS)]
    return (*words, last, *_checksum(entropy))


def phrase_entropy(numbers: Sequence[int]) -> bytes:
    """The 16 bytes of entropy behind 15 numbers. Raises ``ProtocolError`` for what is no phrase."""
    if len(numbers) != PHRASE_WORDS or not all(0 <= each < 1 << _WORD_BITS for each in numbers):
        msg = f"a phrase has {PHRASE_WORDS} words of a list of {1 << _WORD_BITS}"
        raise ProtocolError(msg)
    *words, last = numbers[:SEED_WORDS]
    if last >= 1 << _LAST_BITS:
        msg = f"word {SEED_WORDS} of a phrase is one of the first {1 << _LAST_BITS} of the list: mistyped?"
        raise ProtocolError(msg)
    bits = 0
    for word in words:
        bits = bits << _WORD_BITS | word
    entropy = (bits << _LAST_BITS | last).to_bytes(ENTROPY_BYTES, "big")
    if tuple(numbers[SEED_WORDS:]) != _checksum(entropy):
        msg = "the last two words of the phrase don't fit the others: a word is mistyped, or out of order"
        raise ProtocolError(msg)
    return entropy


def _checksum(entropy: bytes) -> tuple[int, int]:
    """The first 20 bits of the hash, as two numbers."""
    bits = int.from_bytes(blake3(entropy).digest()[:3], "big") >> 4
    return bits >> _WORD_BITS, bits & 0x3FF
