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
    """A scenario of the library among few nodes, for a short time."""
    return with_size(replace(scenario, warmup_s=1.0, cooldown_s=1.0), nodes=16, duration_s=14.0)
