"""The market as one client sees it: its hosts in the order in which it would ask them, its models, and why.

Pure. Amounts are token units, prices token units per million tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final

from p2pnode.client.ranking import Candidate, Ranking, is_priced
from p2pnode.ids import ModelId
from p2pnode.models.catalogue import shown_name
from p2pnode.models.manifest import model_id_text
from p2pnode.money import usdc_text
from p2pnode.protocols.adverts.messages import Advert, capability_names
from p2pnode.views.hosts import host_fields
from p2pnode.words import one_line

_REASONS_MAX: Final = 4


def offered(adverts: Iterable[Advert]) -> list[ModelId]:
    """The models that any of these hosts offers, by name."""
    found = {offer.model for each in adverts if not each.withdrawn for offer in each.offers if offer.n_ctx}
    return sorted(found, key=shown_name)


def hosts_table(rankings: Mapping[ModelId, Ranking]) -> list[dict[str, Any]]:
    """A row for each offer of each host: ``place`` is where it stands among those that may be asked for its
    model, from 1, and None where it may not; ``why`` says it in words."""
    rows = []
    for ranking in rankings.values():
        best = ranking.chosen[0] if ranking.chosen else None
        for place, candidate in enumerate(ranking.chosen, 1):
            why = why_here(candidate, place, best)
            rows.append({**host_fields(candidate, None), "place": place, "why": why})
        rows += [
            {**host_fields(each, None), "place": None, "why": f"left out: {one_line(each.excluded)}"}
            for each in ranking.excluded
        ]
    return rows


def why_here(candidate: Candidate, place: int, best: Candidate | None) -> str:
    """Why a host that may be asked stands at this place, by the first of the rules that tells it apart."""
    if place == 1 or best is None or best is candidate:
        return f"asked first: {_merits(candidate)}"
    if best.trusted and not candidate.trusted:
        return f"asked after hosts that you trust; {_merits(candidate)}"
    if candidate.equivalent and not best.equivalent:
        return f"another model that you take for this one; {_merits(candidate)}"
    if is_priced(candidate.offer) and not is_priced(best.offer):
        return f"asked after free hosts; {_merits(candidate)}"
    if best.goes_first and not candidate.goes_first:
        return f"asked after the host with which a session is open; {_merits(candidate)}"
    return f"number {place} by expected time{' and cost' if is_priced(candidate.offer) else ''}; " + _merits(
        candidate
    )


def _merits(candidate: Candidate) -> str:
    known = candidate.known
    said = []
    if candidate.trusted:
        said.append("you trust it")
    if candidate.goes_first:
        said.append("a session with it is open or was left")
    said.append(
        "free" if not is_priced(candidate.offer) else f"about {usdc_text(round(candidate.cost))} an answer"
    )
    said.append(f"{candidate.score:.1f} s for a typical answer")
    if known.ttft_s is None:
        said.append("not measured yet, so a usual speed is assumed")
    else:
        speed = f", {known.tokens_per_s:.0f} tokens/s" if known.tokens_per_s else ""
        said.append(f"measured {known.ttft_s:.2f} s to the first token{speed}")
    if candidate.offer.state != "warm":
        said.append(f"{candidate.offer.warm_in_s} s to load the model")
    return ", ".join(said)


def models_table(adverts: Sequence[Advert], rankings: Mapping[ModelId, Ranking]) -> list[dict[str, Any]]:
    """A row for each model. ``why_not``: why nobody can be asked for it; "" where somebody can."""
    loads = {each.peer: each.load for each in adverts}
    rows = []
    for model, ranking in rankings.items():
        every = (*ranking.chosen, *ranking.excluded)
        offers = [each.offer for each in every]
        prices = [each for each in offers if is_priced(each)]
        caps = 0
        for offer in offers:
            caps |= offer.caps
        hosted_by = [loads[each.advert.peer] for each in every if each.advert.peer in loads]
        rows.append(
            {
                "model": shown_name(model),
                "model_id": model_id_text(model),
                "hosts": len(every),
                "servable": len(ranking.chosen),
                "free": sum(not is_priced(each.offer) for each in ranking.chosen),
                "warm": sum(each.state == "warm" for each in offers),
                "n_ctx": max((each.n_ctx for each in offers), default=0),
                "price_in": _median([each.price_in for each in prices]),
                "price_out": _median([each.price_out for each in prices]),
                "price_out_min": min((each.price_out for each in prices), default=0),
                "price_out_max": max((each.price_out for each in prices), default=0),
                "slots": sum(each.slots for each in hosted_by),
                "active": sum(each.active for each in hosted_by),
                "queued": sum(each.queued for each in hosted_by),
                "can": list(capability_names(caps)),
                "why_not": "" if ranking.chosen else _why_nobody(ranking.excluded),
            }
        )
    return rows


def _why_nobody(excluded: Sequence[Candidate]) -> str:
    if not excluded:
        return "no host offers it now"
    reasons = Counter(one_line(each.excluded) for each in excluded)
    said = "; ".join(
        f"{reason}{f' ({count} hosts)' if count > 1 else ''}"
        for reason, count in reasons.most_common(_REASONS_MAX)
    )
    return f"no host of it may be asked: {said}"


def _median(values: Sequence[int]) -> int:
    return round(median(values)) if values else 0
