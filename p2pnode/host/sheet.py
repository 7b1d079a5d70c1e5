"""What a host can say of itself: the capabilities of its offers, the profiles of its engines, and its sheet.

Pure: all of it follows from what the loaded engines report and from what the host grants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.ids import ModelId, PeerId
from p2pnode.models.engine import EngineFeature, EngineInfo
from p2pnode.protocols.adverts.messages import RECEIPTS, Capability, Profile, Sheet, SheetOffer

_OF_ENGINES: Final[Mapping[EngineFeature, Capability]] = {
    "tools": Capability.TOOLS,
    "schema": Capability.SCHEMA,
    "reasoning": Capability.REASONING,
    "logprobs": Capability.LOGPROBS,
    "embeddings": Capability.EMBEDDINGS,
    "vision": Capability.VISION,
    "grammar": Capability.GRAMMAR,
}
_ADDRESSES_MAX: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """What a host grants with every session: so many turns at once, and, where a client leaves a session, so
    many seconds for which it is kept. ``settle_above``, in token units: see ``Sheet``."""

    turns_max: int = 1
    keep_s: int = 0
    settle_above: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that a host serves. ``info`` is None until its engine is loaded."""

    model: ModelId
    name: str
    quantisation: str
    info: EngineInfo | None


def capabilities_of(info: EngineInfo | None, grants: Grants) -> Capability:
    """What a host can do with this engine; nothing while it isn't loaded."""
    caps = Capability(0)
    if info is None:
        return caps
    for feature in info.features:
        caps |= _OF_ENGINES[feature]
    if info.remote:
        caps |= Capability.UPSTREAM
    if grants.turns_max > 1:
        caps |= Capability.PARALLEL_TURNS
    if grants.keep_s > 0:
        caps |= Capability.KEEP_TIME
    return caps


def profile_of(info: EngineInfo) -> Profile:
    """How this engine computes."""
    return Profile(
        engine=info.engine,
        build=info.build,
        batch=info.batch,
        kv_types=info.kv_types,
        samplers=info.samplers,
        arithmetic=info.arithmetic or None,
    )


def sheet_of(
    peer: PeerId, models: Iterable[Served], addresses: Sequence[str], grants: Grants, *, paid: bool
) -> Sheet:
    """The sheet of a host; ``addresses`` are all that strangers may learn, best first, without ``/p2p``.

    ``paid``: whether it takes paid sessions, whose receipts it then shows again.
    """
    return Sheet(
        peer=peer,
        offers=tuple(
            SheetOffer(
                model=each.model,
                name=each.name,
                quantisation=each.quantisation,
                profile=profile_of(each.info) if each.info is not None else None,
                slots=each.info.slots if each.info is not None else 0,
                turns_max=grants.turns_max,
            )
            for each in models
        ),
        addresses=tuple(addresses[:_ADDRESSES_MAX]),
        keep_s=grants.keep_s,
        settle_above=grants.settle_above,
        evidence=(RECEIPTS,) if paid else (),
    )
