"""Messages of ``/p2pnode/adverts/1`` and of the gossip topics. See ``SPEC.md``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.wire import U32, U63, Bytes20, Codec, Key, Range, Size, exactly, message

PROTOCOL: Final = "/p2pnode/adverts/1"
ADVERT_MAX: Final = 1024
"""Largest signed advert in bytes, as it travels."""
SAMPLE_MAX: Final = 32

PeerIdText = Annotated[PeerId, Size(8, 64)]
ModelIdBytes = Annotated[ModelId, exactly(32)]


# An advert must fit ADVERT_MAX with several models and addresses: its keys on the wire are short.


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a host listens. ``direct`` is False for an address behind a relay."""

    multiaddr: Annotated[str, Size(4, 160), Key("a")]
    direct: Annotated[bool, Key("d")] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One model a host serves. Prices are USDC units (1e-6 USDC) per million tokens."""

    model: Annotated[ModelIdBytes, Key("m")]
    name: Annotated[str, Size(1, 64), Key("n")]
    engine: Annotated[str, Size(1, 24), Key("e")]
    quantisation: Annotated[str, Size(0, 16), Key("q")]
    n_ctx: Annotated[U32, Key("c")]
    price_in: Annotated[U63, Key("i")] = 0
    price_out: Annotated[U63, Key("o")] = 0
    session_fee: Annotated[U63, Key("f")] = 0
    """What a session costs besides its tokens, in USDC units: the host's gas."""
    warm: Annotated[bool, Key("w")] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Slots of the engine, how many are busy, and how many requests wait."""

    slots: Annotated[U32, Key("s")]
    active: Annotated[U32, Key("a")] = 0
    queued: Annotated[U32, Key("q")] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The wallet's word that this peer key and receipt key speak for it (EIP-712 ``HostBinding``)."""

    wallet: Annotated[Bytes20, Key("w")]
    receipt_key: Annotated[Bytes20, Key("r")]
    chain_id: Annotated[U63, Key("c")]
    node_registry: Annotated[Bytes20, Key("n")]
    seq: Annotated[U63, Key("s")]
    expires_at: Annotated[U63, Key("x")]
    signature: Annotated[bytes, exactly(65), Key("g")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """What a host says of itself. Times are epoch seconds; ``instance`` is drawn at each start."""

    peer: Annotated[PeerIdText, Key("p")]
    instance: Annotated[bytes, exactly(8), Key("i")]
    seq: Annotated[U63, Key("s")]
    issued_at: Annotated[U63, Key("f")]
    expires_at: Annotated[U63, Key("x")]
    binding: Annotated[Binding, Key("b")]
    addresses: Annotated[tuple[Address, ...], Size(0, 8), Key("a")]
    offers: Annotated[tuple[Offer, ...], Size(0, 8), Key("o")]
    load: Annotated[Load, Key("l")]
    draining: Annotated[bool, Key("d")] = False

    @property
    def withdrawn(self) -> bool:
        """Whether it says that the host is gone: it was over when it was made."""
        return self.expires_at <= self.issued_at

    def clock_offset_s(self, now: float) -> float:
        """How far the clock of a host that calls this its current advert is ahead of ours, at least.

        Negative: behind. 0 where the two can't be told apart: a host signs anew when half of the advert's
        life is over, so its clock shows a time between the two.
        """
        newest = (self.issued_at + self.expires_at) / 2
        return max(0.0, self.issued_at - now) + min(0.0, newest - now)

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


def is_topic(name: str) -> bool:
    """Whether this may be the topic of a model."""
    head, _, digits = name.rpartition("/")
    return head == PROTOCOL and len(digits) == 64 and not set(digits) - set("0123456789abcdef")  # noqa: PLR2004
