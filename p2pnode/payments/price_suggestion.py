"""What to ask: the price of gas now, and what other hosts of the model ask. Advice; nothing is changed."""

from __future__ import annotations

import trio

from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.errors import ConfigError
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.node.finder import FoundHost
from p2pnode.node.invite import read_bootstrap
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.payments.books import open_ledger, profile_of_config
from p2pnode.payments.gas_budget import Suggestion, suggest_price


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
    model = scripted_model_id() if name == SCRIPTED else Catalogue.load().find(name).model_id
    if model is None:
        return []
    found: list[FoundHost] = []
    seeds = tuple(one for each in config.bootstrap for one in read_bootstrap(each))
    setup = NodeSetup(
        key=PeerKey.generate(),
        bootstrap=seeds,
        dht="client",
        gossip=False,
        keep_company=False,
        mdns="browse" if config.mdns else "off",
    )
    async with trio.open_nursery() as nursery:
        node = Node(setup)
        await nursery.start(node.run)
        await node.finder.find(model, seeds=seeds, on_found=found.append)
        await node.aclose()
    offers = (host.advert.offer(model) for host in found)
    return [(offer.price_in, offer.price_out) for offer in offers if offer is not None]
