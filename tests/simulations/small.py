"""Scenarios that run in a tenth of a second."""

from __future__ import annotations

from dataclasses import replace

from p2pnode.simulations.gossip import Gossip
from p2pnode.simulations.links import Links
from p2pnode.simulations.scenario import Scenario, with_size

SMALL = Scenario(
    name="small",
    nodes=8,
    duration_s=6.0,
    warmup_s=1.0,
    cooldown_s=1.0,
    links=Links(jitter_share=0.2),
    gossip=Gossip(dials=3, publishers=3, messages_per_s=2.0),
)
"""Gossip among a few nodes."""


def small(scenario: Scenario) -> Scenario:
    """A scenario of the library among few nodes, for a short time in which a market is busy."""
    shorter = 10.0 / scenario.duration_s
    faults = tuple(
        replace(each, at_s=each.at_s * shorter, duration_s=each.duration_s * shorter)
        for each in scenario.faults
    )
    market = scenario.market
    if market is not None:
        market = replace(
            market, clients=replace(market.clients, conversations_per_hour=240.0, turns_mean=1.0)
        )
    topic = scenario.topic
    if topic is not None:
        comes_s, ends_s = topic.sybil_at_s * shorter, topic.sybil_until_s * shorter
        topic = replace(topic, start_s=2.0, sybil_at_s=comes_s, sybil_until_s=ends_s)
    conversations = scenario.conversations
    if conversations is not None:
        conversations = replace(
            conversations, turns_per_day=100_000.0, machine_days=0.00005, away_days=0.00001, disk_days=0.0002
        )
    brief = replace(
        scenario,
        warmup_s=0.0,
        cooldown_s=0.0,
        faults=faults,
        market=market,
        topic=topic,
        conversations=conversations,
    )
    return with_size(replace(brief, duration_s=10.0), nodes=12)
