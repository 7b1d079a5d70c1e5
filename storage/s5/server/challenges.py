"""Proving an account's key: a challenge that is good once, for one key, one purpose and a short while.

::

    response   01 register, 02 login | challenge[32] | blake3(host[:port])[32]        signed with the key

The host in it keeps a response that was given to one node from being used at another. Pure: time and
randomness are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.entries import EntryKey

CHALLENGE_BYTES: Final = 32
_RESPONSE_BYTES: Final = 1 + CHALLENGE_BYTES + 32


class Purpose(IntEnum):
    """What a response is for: its first byte."""

    REGISTER = 1
    LOGIN = 2


class ChallengeError(ProtocolError):
    """The response proves nothing."""


@dataclass(frozen=True, slots=True)
class _Open:
    key: EntryKey
    purpose: Purpose
    until: float


class Challenges:
    """Those that are open; beyond ``open_max`` the oldest is dropped."""

    def __init__(self, *, open_max: int, life_s: float) -> None:
        self._open_max, self._life_s = open_max, life_s
        self._open: dict[bytes, _Open] = {}

    def give(self, challenge: bytes, key: EntryKey, purpose: Purpose, now: float) -> None:
        """Open a challenge of 32 random bytes."""
        while len(self._open) >= self._open_max:
            del self._open[next(iter(self._open))]
        self._open[challenge] = _Open(key, purpose, now + self._life_s)

    def check(
        self, response: bytes, signature: bytes, *, key: EntryKey, purpose: Purpose, host: str, now: float
    ) -> None:
        """Take the response to a challenge, which is used up by it. Raises ``ChallengeError``."""
        if len(response) != _RESPONSE_BYTES or response[0] != purpose:
            msg = f"the response is {_RESPONSE_BYTES} bytes: {purpose:02x}, the challenge, the host's hash"
            raise ChallengeError(msg)
        given = self._open.pop(response[1 : 1 + CHALLENGE_BYTES], None)
        if given is None or given.key != key or given.purpose != purpose or now >= given.until:
            msg = "this challenge was not given for that, was answered before, or is too old: ask for another"
            raise ChallengeError(msg)
        if response[1 + CHALLENGE_BYTES :] != blake3(host.encode()).digest():
            msg = f"the response is for another host than {host}: sign the one that is asked"
            raise ChallengeError(msg)
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, response)
        except (InvalidSignature, ValueError) as error:
            msg = "the response is not signed by the account's key"
            raise ChallengeError(msg) from error
