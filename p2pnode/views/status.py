"""A node and what it serves, as it is told to people and programs. All but the journal's part is pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pnode.config import NodeConfig
from p2pnode.models.catalogue import shown_name
from p2pnode.node.datadir import DataDir, RunningNode
from p2pnode.payments.books import profile_of_config
from p2pnode.payments.funds import of_market
from p2pnode.payments.journal.journal import BoughtSession, HostedSession, Journal
from p2pnode.protocols.adverts.messages import Advert, Offer, Sheet
from p2pnode.protocols.typed_data import market_domain
from p2pnode.words import one_line


def status_fields(
    running: RunningNode,
    advert: Advert | None,
    sheet: Sheet | None,
    *,
    served: Mapping[str, Any] | None,
    ether_usd: int,
    money: Mapping[str, int],
) -> dict[str, Any]:
    """A node that runs, by its own advert and sheet. ``served``: see ``read_totals``; ``money``: see
    :func:`host_money`. Prices and amounts are token units."""
    return {
        "peer_id": running.peer_id,
        "pid": running.pid,
        "multiaddrs": list(running.multiaddrs),
        "reach": running.reach,
        "models": [offer_fields(offer, sheet) for offer in advert.offers if offer.n_ctx]
        if advert is not None
        else [],
        "slots": advert.load.slots if advert is not None else 0,
        "active": advert.load.active if advert is not None else 0,
        "queued": advert.load.queued if advert is not None else 0,
        "draining": advert.draining if advert is not None else False,
        "served": served,
        "ether_usd": ether_usd,
        **money,
    }


def offer_fields(offer: Offer, sheet: Sheet | None) -> dict[str, Any]:
    """An offer of this node; ``sheet`` is its own, which has the names."""
    more = sheet.offer(offer.model) if sheet is not None else None
    profile = more.profile if more is not None else None
    return {
        "name": one_line(more.name) if more is not None else shown_name(offer.model),
        "engine": one_line(profile.engine) if profile is not None else "",
        "n_ctx": offer.n_ctx,
        "price_in": offer.price_in,
        "price_out": offer.price_out,
        "session_fee": offer.session_fee,
        "state": offer.state,
        "warm_in_s": offer.warm_in_s,
    }


def host_money(config: NodeConfig) -> dict[str, int]:
    """What this data dir earned as a host, in token units, by its own books. Raises ``LocalError``."""
    hosted = hosted_sessions(config)
    return {
        "earned": sum(each.due for each in hosted if each.state == "settled"),
        "owed": sum(each.due for each in hosted if each.state in ("open", "over")),
    }


def hosted_sessions(config: NodeConfig) -> list[HostedSession]:
    """The paid sessions that this data dir served on the chain that is configured. Raises ``LocalError``."""
    return paid_sessions(config)[0]


def paid_sessions(config: NodeConfig) -> tuple[list[HostedSession], list[BoughtSession]]:
    """The paid sessions of this data dir on the chain that is configured, those served and those bought.

    Blocks on the disk. Raises ``LocalError``.
    """
    path, profile = DataDir(config.data_dir).journal, profile_of_config(config)
    if not path.exists():
        return [], []
    journal = Journal.open(path)
    try:
        hosted, bought = journal.hosted(), journal.purchases()
    finally:
        journal.close()
    if profile is None:
        return hosted, bought
    market = market_domain(profile.chain_id, profile.job_marketplace)
    return of_market(hosted, market), of_market(bought, market)
