"""Why a host gets no work, as far as the market around it shows, and what it could earn.

Pure. A client that has measured nobody, and can pay anybody, ranks the hosts of each model: where this host
stands there is where strangers see it. Amounts are token units, prices token units per million tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from p2pnode.client.ranking import Candidate, Filters, is_priced, rank
from p2pnode.contract_rules import TOKENS_PER_PRICE
from p2pnode.ids import ModelId, PeerId
from p2pnode.models.catalogue import shown_name
from p2pnode.money import usdc_text
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.words import count_of, one_line

_DAY_S: Final = 86_400
_REFUSALS_TOLD: Final = 3
CHAIN_AWAY: Final = (
    "can't be reached: until it can, no paid session begins and none is settled; `p2pnode doctor` tells why"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """What only a running host knows: why it is ``paused``, its last ``refusals`` (``at``, ``code``,
    ``detail``), how often each code was ``refused`` since it started, and whether its chain answers."""

    paused: Sequence[str] = ()
    refusals: Sequence[Mapping[str, Any]] = ()
    refused: Mapping[str, int] | None = None
    chain_reachable: bool = True

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> HostState:
        """From all that a running host tells of itself, which is more."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in told.items() if name in known})


def idle_fields(
    peer: PeerId,
    adverts: Sequence[Advert],
    state: HostState,
    *,
    now: float,
    reach: str = "",
    tokens_per_s: float | None = None,
) -> dict[str, Any]:
    """``reasons`` in words, the weightiest first; ``offers``: where the host stands with each of its models.

    ``reach``: a ``ReachCode``. ``tokens_per_s``: what this host was measured to make, of one request.
    """
    own = next((each for each in adverts if each.peer == peer), None)
    offers = [] if own is None else _offers(own, adverts, now, tokens_per_s)
    reasons = [f"it is paused: {one_line(why)}" for why in state.paused]
    if not state.chain_reachable:
        reasons.append(f"its chain {CHAIN_AWAY}")
    if own is None:
        reasons.append("its advert was not seen: it may have just started, or nobody it knows is connected")
    elif own.draining:
        reasons.append("it drains: it takes no new session")
    if reach in ("private_only", "shared_only", "no_network"):
        reasons.append("nobody outside of its network reaches it")
    for offer in offers:
        reasons += _reasons_of(offer)
    reasons += _refused(state)
    return {"reasons": reasons, "offers": offers}


def _offers(
    own: Advert, adverts: Sequence[Advert], now: float, tokens_per_s: float | None
) -> list[dict[str, Any]]:
    made = []
    for offer in own.offers:
        if not offer.n_ctx:
            continue
        ranking = rank(adverts, offer.model, {}, Filters(), now, payable=lambda _advert, _offer: "")
        every = (*ranking.chosen, *ranking.excluded)
        others = [each for each in every if each.advert.peer != own.peer]
        slots = sum(each.advert.load.slots for each in others)
        busy = sum(each.advert.load.active for each in others)
        share = busy / slots if slots else None
        made.append(
            {
                "model": shown_name(offer.model),
                "place": _place(ranking.chosen, own.peer),
                "of": len(every),
                "state": offer.state,
                "warm_in_s": offer.warm_in_s,
                "price_out": offer.price_out,
                "cheaper": sum(_price(each) < offer.price_in + offer.price_out for each in others),
                "dearer": sum(_price(each) > offer.price_in + offer.price_out for each in others),
                "price_percentile": _percentile(offer.price_in + offer.price_out, others),
                "free_beside": sum(not is_priced(each.offer) for each in others),
                "busy": busy,
                "slots": slots,
                "queued": sum(each.advert.load.queued for each in others),
                "could_earn_day": _could_earn(own, offer.model, share, tokens_per_s),
            }
        )
    return made


def _place(chosen: Sequence[Candidate], peer: PeerId) -> int | None:
    return next((place for place, each in enumerate(chosen, 1) if each.advert.peer == peer), None)


def _price(candidate: Candidate) -> int:
    return candidate.offer.price_in + candidate.offer.price_out


def _percentile(price: int, others: Sequence[Candidate]) -> int | None:
    """Which share of the other hosts asks less, in percent; None where there are none."""
    return round(100 * sum(_price(each) < price for each in others) / len(others)) if others else None


def _could_earn(own: Advert, model: ModelId, share: float | None, tokens_per_s: float | None) -> int | None:
    """A day's pay for output if its slots were as busy as those of other hosts; None where that isn't known.

    All slots are taken to be as fast as one: with more of them busy each is slower.
    """
    offer = own.offer(model)
    if share is None or not tokens_per_s or offer is None or not offer.price_out:
        return None
    tokens = share * tokens_per_s * _DAY_S
    return round(tokens * offer.price_out / TOKENS_PER_PRICE)


def _reasons_of(offer: Mapping[str, Any]) -> list[str]:
    name, others = offer["model"], offer["of"] - 1
    said = []
    if others == 0:
        said.append(f"{name}: it is the only host that is seen, so nobody is before it: nobody asks")
        return said
    if offer["place"] is None:
        said.append(f"{name}: strangers leave it out")
    elif offer["place"] > 1:
        said.append(f"{name}: strangers ask {count_of(offer['place'] - 1, 'other host')} first")
    if offer["price_out"] and offer["free_beside"]:
        said.append(
            f"{name}: {count_of(offer['free_beside'], 'other host')} asks for no money, and comes first"
            if offer["free_beside"] == 1
            else f"{name}: {offer['free_beside']} other hosts ask for no money, and come first"
        )
    if offer["cheaper"]:
        said.append(f"{name}: {offer['cheaper']} of {count_of(others, 'other host')} ask less")
    if offer["state"] != "warm":
        said.append(f"{name}: it is not loaded, which takes {offer['warm_in_s']} s")
    if not offer["busy"] and not offer["queued"]:
        said.append(f"{name}: no other host has work now, either")
    else:
        said.append(
            f"{name}: {offer['busy']} of {offer['slots']} slots of other hosts are busy, "
            f"{count_of(offer['queued'], 'request')} waiting"
        )
    if offer["could_earn_day"]:
        said.append(
            f"{name}: as busy as they are it would earn about {usdc_text(offer['could_earn_day'])} a day"
        )
    return said


def _refused(state: HostState) -> list[str]:
    counts = dict(state.refused or {})
    if not counts:
        return []
    total = sum(counts.values())
    kinds = ", ".join(f"{code} {count}" for code, count in sorted(counts.items()))
    last = [f"{each['code']}: {one_line(str(each['detail']))}" for each in state.refusals[:_REFUSALS_TOLD]]
    what = count_of(total, "question or session", "questions and sessions")
    return [f"it refused {what} ({kinds}); the last: {'; '.join(last)}"]
