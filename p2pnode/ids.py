"""The names of things. Distinct types, so that one can't be passed for another."""

from __future__ import annotations

from typing import NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in its base58 form, ``12D3Koo…`` for Ed25519 keys."""

ModelId = NewType("ModelId", bytes)
"""SHA-256 of a model's manifest: 32 bytes (see ``models/manifest.py``)."""

SessionId = NewType("SessionId", bytes)
"""32 bytes. Drawn by the host in a free session, the digest of the terms in a paid one."""
