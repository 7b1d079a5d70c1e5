"""Registering at an S5 service, and logging in: a signed answer to its challenge.

::

    response   1 to register, 2 to log in | challenge[32] | BLAKE3(host, or host:port as in the URL)

The service checks all three parts and forgets the challenge: what was signed for another host, or for the
other purpose, or once before, is worth nothing. Pure: signing is injected, challenges are the caller's.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.ids import hash_of

CHALLENGE_BYTES: Final = 32
RESPONSE_BYTES: Final = 1 + CHALLENGE_BYTES + 32


class Purpose(IntEnum):
    """What an account's key signs for."""

    REGISTER = 1
    LOGIN = 2


def challenge_response(purpose: Purpose, challenge: bytes, host: str) -> bytes:
    """The 65 bytes to sign. ``host`` is as the URL has it, for example ``s5.example:5050``."""
    if len(challenge) != CHALLENGE_BYTES:
        msg = f"a challenge has {CHALLENGE_BYTES} bytes, not {len(challenge)}"
        raise ProtocolError(msg)
    return bytes([purpose]) + challenge + hash_of(host.encode())
