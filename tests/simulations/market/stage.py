"""A small market for tests."""

from __future__ import annotations

from collections.abc import Sequence

from p2pnode.simulations.churn import Churn, schedule_churn
from p2pnode.simulations.faults import Fault, schedule_faults
from p2pnode.simulations.market.client import Clients
from p2pnode.simulations.market.host import Hosts
from p2pnode.simulations.market.market import Market, MarketService
from p2pnode.simulations.recorder import Recorder
from p2pnode.simulations.world import World

BUSY = Clients(count=8, conversations_per_hour=60, parallel=2)


def market(
    parameters: Market | None = None,
    *,
    seed: int = 7,
    until_s: float = 200.0,
    churn: Churn | None = None,
    faults: Sequence[Fault] = (),
) -> MarketService:
    """A market that was let run, wound up and checked."""
    world = World(seed)
    if parameters is None:
        parameters = Market(hosts=Hosts(count=5), clients=BUSY)
    made = MarketService(world, parameters, recorder=Recorder())
    made.populate()
    if churn is not None:
        schedule_churn(world, churn, hosts=made.host_nodes, clients=made.client_nodes, until_s=until_s)
    schedule_faults(world, faults, hosts=made.host_nodes, clients=made.client_nodes, strike=made.strike)
    world.run(until_s)
    made.wind_up()
    return made


if __name__ == "__main__":
    print(market(until_s=60.0).recorder.trace_hash)  # noqa: T201 - for another process to compare
