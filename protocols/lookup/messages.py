"""Commands and emissions of a lookup, and the DHT key of a model. See ``SPEC.md``.

Lookup has no messages of its own on the wire: provider records travel in Kademlia, adverts in
``/p2pnode/adverts/1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.crypto import keccak256

Source: TypeAlias = Literal["book", "bootstrap", "exchange", "dht", "mdns"]
_KEY_TAG: Final = b"p2pnode/provider/1\0"


def provider_key(model: ModelId) -> bytes:
    """The 32-byte key of a model's provider records: keccak256(tag + model id)."""
    return keccak256(_KEY_TAG + model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """A source says this peer may serve the model.

    ``local`` sources (the LAN, our own flags) may name private addresses. ``tellers`` are the origins of
    those who said so, as their connections show them; none where it is what we know ourselves.
    """

    peer: PeerId
    addresses: tuple[str, ...]
    source: Source
    local: bool = False
    tellers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SourceDone:
    """A source has nothing more to say."""

    source: Source


@dataclass(frozen=True, slots=True)
class Contacted:
    """The outcome of a ``Contact``: the peer's own current advert, or why there is none."""

    peer: PeerId
    advert: Advert | None
    failure: str = ""


LookupCommand: TypeAlias = Hint | SourceDone | Contacted


@dataclass(frozen=True, slots=True)
class Contact:
    """Dial this peer and ask for its current advert. ``local`` as in the hint that it comes from."""

    peer: PeerId
    addresses: tuple[str, ...]
    local: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A reachable host whose own advert, verified, offers the model."""

    advert: Advert


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Nothing more will come. ``failures`` says of each peer that was tried why it was not found."""

    failures: dict[PeerId, str]


LookupEmission: TypeAlias = Contact | Found | Exhausted
