"""Ids, each of a type of its own, so that one can't be passed for another."""

from __future__ import annotations

from typing import Final, NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in its base58 form, ``12D3Koo…`` for Ed25519 keys."""

ModelId = NewType("ModelId", bytes)
"""SHA-256 of a model's manifest: 32 bytes (see ``models/manifest.py``)."""

SessionId = NewType("SessionId", bytes)
"""32 bytes. Drawn by the host in a free session, the digest of the terms in a paid one."""

_UNSEEN: Final = "\u200b\u200c\u200d\u2060\ufeff\u00ad"


def pasted(text: str) -> str:
    """An id or an address without white space: none has any, and copying from a window adds some."""
    return "".join(each for each in text if not each.isspace() and each not in _UNSEEN)
