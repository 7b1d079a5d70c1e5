"""What a host might ask: the session fee that gas costs now, and the median of what other hosts ask.

It is advice; no setting is changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.contract_rules import SESSION_FEE_MAX
from p2pnode.errors import ConfigError
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.node.datadir import DataDir
from p2pnode.node.finder import FoundHost
from p2pnode.node.invite import read_bootstrap
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.payments.books import open_ledger, profile_of_config
from p2pnode.payments.gas_budget import SESSION_GAS, session_fee_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """``price_in`` and ``price_out`` are the market's medians over ``asked`` offers (None: nobody asks for
    money). ``session_fee`` covers ``gas_cost``, unless that is above what the contract allows."""

    price_in: int | None
    price_out: int | None
    asked: int
    session_fee: int
    gas_cost: int

    @property
    def fee_covers_gas(self) -> bool:
        """False where gas is so dear that a short session loses money."""
        return self.session_fee >= self.gas_cost


def suggest_price(
    offers: Iterable[tuple[int, int]],
    *,
    gas_price_wei: int,
    ether_price_usdc_units: int,
    gas: int = SESSION_GAS,
) -> Suggestion:
    """From the offers seen for a model (price in, price out) and what a session's gas costs. Free offers are
    left out: they say nothing of a price."""
    paid = [offer for offer in offers if offer != (0, 0)]
    price_in, price_out = median_price(paid) or (None, None)
    cost = session_fee_for(gas, gas_price_wei, ether_price_usdc_units)
    return Suggestion(
        price_in=price_in,
        price_out=price_out,
        asked=len(paid),
        session_fee=min(cost, SESSION_FEE_MAX),
        gas_cost=cost,
    )


async def suggest(config: NodeConfig, ether_price_usdc_units: int) -> Suggestion:
    """Ask the chain and the network. Raises ``ConfigError`` without a profile, ``ChainError``."""
    profile = profile_of_config(config)
    if profile is None:
        msg = "a price is suggested for a chain: name its profile with --chain"
        raise ConfigError(msg)
    async with open_ledger(profile) as ledger:
        head = await ledger.head()
    return suggest_price(
        await _offers(config),
        gas_price_wei=head.gas_price_wei,
        ether_price_usdc_units=ether_price_usdc_units,
    )


async def _offers(config: NodeConfig) -> list[tuple[int, int]]:
    name = (config.models or (DEFAULT_MODEL,))[0]
    catalogue = Catalogue.of(DataDir(config.data_dir).models)
    model = scripted_model_id() if name == SCRIPTED else catalogue.find(name).model_id
    if model is None:
        return []
    found: list[FoundHost] = []
    seeds = tuple(one for each in config.bootstrap for one in read_bootstrap(each))
    setup = NodeSetup(
        key=PeerKey.generate(),
        bootstrap=seeds,
        dht="client",
        gossip=False,
        keep_connected=False,
        mdns="browse" if config.mdns else "off",
    )
    async with trio.open_nursery() as nursery:
        node = Node(setup)
        await nursery.start(node.run)
        await node.finder.find(model, seeds=seeds, on_found=found.append)
        await node.aclose()
    offers = (host.advert.offer(model) for host in found)
    return [(offer.price_in, offer.price_out) for offer in offers if offer is not None]


def median_price(offers: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """The medians of what is asked for input and output; None where nobody asks for money."""
    paid = [offer for offer in offers if offer != (0, 0)]
    return (_median([each[0] for each in paid]), _median([each[1] for each in paid])) if paid else None


def _median(values: list[int]) -> int:
    """Of an even number, the mean of the two in the middle, rounded down."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2
