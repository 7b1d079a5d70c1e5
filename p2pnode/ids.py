"""Ids, each of a type of its own, so that one can't be passed for another."""

from __future__ import annotations

import re
from typing import Final, NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in its base58 form, ``12D3Koo…`` for Ed25519 keys."""

ModelId = NewType("ModelId", bytes)
"""SHA-256 of a model's manifest: 32 bytes (see ``models/manifest.py``)."""

SessionId = NewType("SessionId", bytes)
"""32 bytes. Drawn by the host in a free session, the digest of the terms in a paid one."""

_WALLET: Final = re.compile("0[xX][0-9a-fA-F]{40}")
_PEER_ID: Final = re.compile("12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")
_UNSEEN: Final = "\u200b\u200c\u200d\u2060\ufeff\u00ad"


def pasted(text: str) -> str:
    """An id or an address without white space: none has any, and copying from a window adds some."""
    return "".join(each for each in text if not each.isspace() and each not in _UNSEEN)


def host_name(text: str) -> str:
    """The name of a host in the form that is compared: a peer id, or a wallet as 0x and lower-case digits.

    A multiaddr with a peer id names that peer. Raises ``ValueError`` for anything else.
    """
    name = pasted(text).rpartition("/p2p/")[2]
    if _WALLET.fullmatch(name):
        return name.lower()
    if _PEER_ID.fullmatch(name):
        return name
    raise ValueError(
        f"{text[:80]!r} names no host: give its whole peer id (12D3KooW…, as `p2pnode hosts --json` prints "
        "it) or its wallet (0x and 40 digits)"
    )
