"""A host, as it is told to people and programs. Pure."""

from __future__ import annotations

import math
from typing import Any

from p2pnode.chain.addresses import shown_address
from p2pnode.client.ranking import Candidate
from p2pnode.client.reputation import reputation
from p2pnode.models.catalogue import shown_name
from p2pnode.models.manifest import model_id_text
from p2pnode.protocols.adverts.messages import Sheet, capability_names
from p2pnode.words import one_line


def host_fields(candidate: Candidate, sheet: Sheet | None) -> dict[str, Any]:
    """A host that was found, its offer of the model that was looked for, and what is known of it here."""
    advert, offer = candidate.advert, candidate.offer
    more = sheet.offer(offer.model) if sheet is not None else None
    profile = more.profile if more is not None else None
    known, standing = candidate.known, reputation(candidate.known)
    return {
        "model": shown_name(offer.model),
        "model_id": model_id_text(offer.model),
        "peer": advert.peer,
        "wallet": shown_address(advert.binding.wallet),
        "addresses": [
            one_line(each)
            for each in (sheet.addresses if sheet is not None else (a.multiaddr for a in advert.addresses))
        ],
        "engine": one_line(f"{profile.engine} {profile.build}".rstrip()) if profile is not None else "",
        "quantisation": one_line(more.quantisation) if more is not None else "",
        "can": list(capability_names(offer.caps)),
        "turns_max": more.turns_max if more is not None else 1,
        "keep_s": sheet.keep_s if sheet is not None else 0,
        "evidence": list(map(one_line, sheet.evidence)) if sheet is not None else [],
        "n_ctx": offer.n_ctx,
        "price_in": offer.price_in,
        "price_out": offer.price_out,
        "session_fee": offer.session_fee,
        "state": offer.state,
        "warm_in_s": offer.warm_in_s,
        "slots": advert.load.slots,
        "active": advert.load.active,
        "queued": advert.load.queued,
        "score": round(candidate.score, 4),
        "cost": round(candidate.cost),
        "goes_first": candidate.goes_first,
        "trusted": candidate.trusted,
        "stake": candidate.stake,
        "reputation": {
            "low": round(standing.low, 4),
            "high": round(standing.high, 4),
            "kept": known.kept,
            "broken": known.broken,
            "receipted": known.receipted,
            "faults": known.faults,
            "unanswered": math.ceil(known.unanswered),
            "left_closed": known.left_closed,
            "failures_in_a_row": known.failures_in_a_row,
            "ttft_s": known.ttft_s,
            "tokens_per_s": known.tokens_per_s,
        },
        "excluded": candidate.excluded,
    }
