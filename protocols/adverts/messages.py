"""Messages of ``/p2pnode/adverts/1`` and of the gossip topics. See ``SPEC.md``."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias

from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.wire import U32, U63, Bytes20, Bytes32, Codec, Key, Range, Size, exactly, message

PROTOCOL: Final = "/p2pnode/adverts/1"
ADVERT_MAX: Final = 1024
"""Largest signed advert in bytes, as it travels."""
ADDRESSES_TOLD: Final = 3
"""Addresses that a host puts into its advert; all of them are in its sheet."""
SAMPLE_MAX: Final = 32
SHEET_MAX: Final = 16 * 1024
"""Largest sheet in bytes."""
KEEP_MAX_S: Final = 432_000
"""The longest time for which a host may keep a session that its client left."""
TURNS_MAX: Final = 64
"""The most turns at once that a session may have."""
RECEIPTS: Final = "receipts/1"
"""A kind of evidence: the receipts of a paid session, by ``/p2pnode/checkpoint/1``."""
RELEASE: Final = 1
"""The number of this release: one more with each that an older one can't talk with in full."""
RELEASE_MIN: Final = 1
"""The oldest release that this one can talk with."""
WARM_IN_MAX: Final = 32_767
"""The longest time to load a model, in seconds, that an offer can tell."""

PeerIdText = Annotated[PeerId, Size(8, 64)]
ModelIdBytes = Annotated[ModelId, exactly(32)]


# An advert must fit ADVERT_MAX with several models and addresses: its keys on the wire are short.


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a host listens. ``direct`` is False for an address behind a relay."""

    multiaddr: Annotated[str, Size(4, 160), Key("a")]
    direct: Annotated[bool, Key("d")] = True


class Capability(enum.IntFlag):
    """What a host can do besides text: the bits of ``Offer.caps``. Bits that are not named here mean nothing
    yet, and are ignored."""

    TOOLS = 1 << 0
    SCHEMA = 1 << 1
    REASONING = 1 << 2
    LOGPROBS = 1 << 3
    EMBEDDINGS = 1 << 4
    VISION = 1 << 5
    PARALLEL_TURNS = 1 << 6
    KEEP_TIME = 1 << 7
    GRAMMAR = 1 << 8
    UPSTREAM = 1 << 9
    """It has the answers of somebody else's server: nobody can hold the weights against a hash."""


# Made once: a client asks for the names with each host that it looks at.
_CAPABILITIES: Final = tuple((each.value, str(each.name).lower().replace("_", "-")) for each in Capability)


def capability_names(caps: int) -> tuple[str, ...]:
    """The names of these bits, as people write them; bits that mean nothing yet have none."""
    return tuple(name for bit, name in _CAPABILITIES if bit & caps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One model a host serves. Prices are USDC units (1e-6 USDC) per million tokens."""

    model: Annotated[ModelIdBytes, Key("m")]
    n_ctx: Annotated[U32, Key("c")]
    """0: the host served it, and does no more. Its readers must hear that on the model's topic."""
    price_in: Annotated[U63, Key("i")] = 0
    price_out: Annotated[U63, Key("o")] = 0
    session_fee: Annotated[U63, Key("f")] = 0
    """What a session costs besides its tokens, in USDC units: the host's gas."""
    warm_in: Annotated[int, Range(-WARM_IN_MAX, WARM_IN_MAX), Key("w")] = 0
    """0: the model is loaded. Else seconds until it is: above 0 from the next request on, which has it
    loaded; below 0 (without the sign) from now on, for that has begun."""
    caps: Annotated[U32, Key("k")] = 0
    """Bits of :class:`Capability`."""
    profile: Annotated[bytes, exactly(8), Key("h")] = bytes(8)
    """The beginning of the hash of the ``Profile`` in the sheet; zero until the model was loaded once."""

    @property
    def state(self) -> Literal["cold", "warming", "warm"]:
        """Whether the model is loaded, or being loaded."""
        return "warm" if not self.warm_in else "cold" if self.warm_in > 0 else "warming"

    @property
    def warm_in_s(self) -> int:
        """The seconds that a request waits for the model to be loaded."""
        return abs(self.warm_in)

    def can(self, caps: int) -> bool:
        """Whether it has all of these capabilities."""
        return self.caps & caps == caps


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
    sheet: Annotated[Bytes32 | None, Key("h")] = None
    """The hash of the host's ``Sheet``; None where it has none."""
    release_min: Annotated[U32, Key("v")] = 0
    """The oldest release that can talk with this host."""

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
        for offer in self.offers:  # no generator: this runs for each advert of a book
            if offer.model == model and offer.n_ctx:
                return offer
        return None

    def names(self, model: ModelId) -> bool:
        """Whether it says anything of a model, be it that it is served no more."""
        return model in [offer.model for offer in self.offers]

    def serves(self, model: ModelId, caps: int = 0) -> bool:
        """Whether it offers a model with all of these capabilities."""
        offer = self.offer(model)
        return offer is not None and offer.can(caps)


# ---- the sheet: what doesn't fit into an advert, fetched from the host itself by the advert's hash of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How a host computes a model. Two hosts of one profile should give the same tokens at temperature 0."""

    engine: Annotated[str, Size(1, 24)]
    build: Annotated[str, Size(0, 64)] = ""
    """The version of what computes; empty where it has none."""
    batch: U32 = 0
    """Tokens that are computed together at most; 0 where that makes no difference."""
    kv_types: Annotated[str, Size(0, 32)] = ""
    """How keys and values are kept, as ``f16/f16``."""
    samplers: Annotated[tuple[Annotated[str, Size(1, 32)], ...], Size(0, 16)] = ()
    """In their order."""
    arithmetic: Bytes32 | None = None
    """A hash of the logits of a fixed prompt, as measured on this host; None where it was not measured. A
    name can't prove how numbers are rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetOffer:
    """More about one offer. ``slots`` is how many requests run at once, ``turns_max`` how many of one
    session."""

    model: ModelIdBytes
    name: Annotated[str, Size(1, 64)]
    quantisation: Annotated[str, Size(0, 16)] = ""
    profile: Profile | None = None
    """None until the model was loaded once."""
    slots: U32 = 0
    turns_max: Annotated[int, Range(1, TURNS_MAX)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What a host says at length. ``keep_s``: how long it keeps a session that its client left, at most; 0 is
    not at all. ``settle_above``: the unsettled pay, in token units, from which it settles such a session."""

    peer: PeerIdText
    offers: Annotated[tuple[SheetOffer, ...], Size(0, 8)] = ()
    addresses: Annotated[tuple[Annotated[str, Size(4, 160)], ...], Size(0, 32)] = ()
    keep_s: Annotated[int, Range(0, KEEP_MAX_S)] = 0
    settle_above: U63 = 0
    evidence: Annotated[tuple[Annotated[str, Size(1, 32)], ...], Size(0, 16)] = ()
    """What it shows of what it did, to whoever may ask. See ``RECEIPTS``."""

    def offer(self, model: ModelId) -> SheetOffer | None:
        """What it says of a model, if anything."""
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
    """Ask for up to ``count`` live adverts, of one model or of any (peer exchange).

    With a model, ``caps`` leaves out offers of it without all of these capabilities.
    """

    count: Annotated[int, Range(1, SAMPLE_MAX)] = SAMPLE_MAX
    model: ModelIdBytes | None = None
    caps: U32 = 0


@message("adverts")
@dataclass(frozen=True, slots=True, kw_only=True)
class Adverts:
    """The answer to either question; empty when there is none. Each advert proves itself."""

    adverts: Annotated[tuple[SignedAdvert, ...], Size(0, SAMPLE_MAX)]


@message("get_sheet")
@dataclass(frozen=True, slots=True, kw_only=True)
class GetSheet:
    """Ask a host for its own sheet of this hash, which its advert has."""

    hash: Bytes32


@message("sheet")
@dataclass(frozen=True, slots=True, kw_only=True)
class SheetAnswer:
    """The answer to ``GetSheet``: the msgpack of a ``Sheet``; empty where that sheet isn't kept any more."""

    body: Annotated[bytes, Size(0, SHEET_MAX)]


AdvertsMessage: TypeAlias = SignedAdvert | GetAdvert | SampleAdverts | Adverts | GetSheet | SheetAnswer
CODEC: Final = Codec(GetAdvert, SampleAdverts, Adverts, GetSheet, SheetAnswer)


def topic_of(model: ModelId) -> str:
    """The gossip topic of one model; its messages are bare ``SignedAdvert`` maps."""
    return f"{PROTOCOL}/{model.hex()}"


def is_topic(name: str) -> bool:
    """Whether this may be the topic of a model."""
    head, _, digits = name.rpartition("/")
    return head == PROTOCOL and len(digits) == 64 and not set(digits) - set("0123456789abcdef")  # noqa: PLR2004
