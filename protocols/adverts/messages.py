"""Messages of ``/p2pnode/adverts/1`` and of the gossip topics. See ``SPEC.md``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.wire import U32, U63, Bytes20, Codec, Range, Size, exactly, message

PROTOCOL: Final = "/p2pnode/adverts/1"
ADVERT_MAX: Final = 1024
"""Largest signed advert in bytes, as it travels."""
SAMPLE_MAX: Final = 32

PeerIdText = Annotated[PeerId, Size(8, 64)]
ModelIdBytes = Annotated[ModelId, exactly(32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a host listens. ``direct`` is False for an address behind a relay."""

    multiaddr: Annotated[str, Size(4, 160)]
    direct: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One model a host serves. Prices are USDC units (1e-6 USDC) per million tokens."""

    model: ModelIdBytes
    name: Annotated[str, Size(1, 64)]
    engine: Annotated[str, Size(1, 24)]
    quantisation: Annotated[str, Size(0, 16)]
    n_ctx: U32
    price_in: U63 = 0
    price_out: U63 = 0
    warm: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Slots of the engine, how many are busy, and how many requests wait."""

    slots: U32
    active: U32 = 0
    queued: U32 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The wallet's word that this peer key and receipt key speak for it (EIP-712 ``HostBinding``)."""

    wallet: Bytes20
    receipt_key: Bytes20
    chain_id: U63
    node_registry: Bytes20
    seq: U63
    expires_at: U63
    signature: Annotated[bytes, exactly(65)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """What a host says of itself. Times are epoch seconds; ``instance`` is drawn at each start."""

    peer: PeerIdText
    instance: Annotated[bytes, exactly(8)]
    seq: U63
    issued_at: U63
    expires_at: U63
    binding: Binding
    addresses: Annotated[tuple[Address, ...], Size(0, 8)]
    offers: Annotated[tuple[Offer, ...], Size(0, 8)]
    load: Load
    draining: bool = False

    def offer(self, model: ModelId) -> Offer | None:
        """This host's offer of a model, if it has one."""
        return next((offer for offer in self.offers if offer.model == model), None)


@message("advert")
@dataclass(frozen=True, slots=True, kw_only=True)
class SignedAdvert:
    """``body`` is the msgpack of an ``Advert``; ``signature`` is the peer key's over TAG + body."""

    body: Annotated[bytes, Size(1, ADVERT_MAX)]
    signature: Annotated[bytes, exactly(64)]


@message("get")
@dataclass(frozen=True, slots=True, kw_only=True)
class GetAdvert:
    """Ask for one peer's current advert: the asked peer's own, or one it holds in its book."""

    peer: PeerIdText


@message("sample")
@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAdverts:
    """Ask for up to ``count`` live adverts, of one model or of any (peer exchange)."""

    count: Annotated[int, Range(1, SAMPLE_MAX)] = SAMPLE_MAX
    model: ModelIdBytes | None = None


@message("adverts")
@dataclass(frozen=True, slots=True, kw_only=True)
class Adverts:
    """The answer to either question; empty when there is none. Each advert proves itself."""

    adverts: Annotated[tuple[SignedAdvert, ...], Size(0, SAMPLE_MAX)]


AdvertsMessage: TypeAlias = SignedAdvert | GetAdvert | SampleAdverts | Adverts
CODEC: Final = Codec(GetAdvert, SampleAdverts, Adverts)


def topic_of(model: ModelId) -> str:
    """The gossip topic of one model; its messages are bare ``SignedAdvert`` maps."""
    return f"{PROTOCOL}/{model.hex()}"
