"""``gossip.*``: what a delivered message costs, by our network and by the library as it comes.

One process each, one after the other, with the same graph, messages and pace. All that the process does
in that time counts: copies, signatures, heartbeats.
"""

from __future__ import annotations

from typing import Any, Final

from p2pnode.bench.figure import compared
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import child
from p2pnode.errors import LocalError

_RUN_DEADLINE_S: Final = 120.0
_LEAST_DELIVERED: Final = 0.99


async def measure_gossip(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    ours = await _run(options, library=False)
    library = await _run(options, library=True)
    if ours["deliveries"] < _LEAST_DELIVERED * ours["expected"]:
        msg = f"{ours['deliveries']} of {ours['expected']} messages were delivered: the rest is lost"
        raise LocalError(msg)
    take("gossip.delivery_cpu", compared(_ms(ours), _ms(library), ours=ours, library=library))


async def _run(options: BenchOptions, *, library: bool) -> dict[str, Any]:
    quick = options.quick
    config = {"library": library, "nodes": 5 if quick else 20, "settle_s": 3 if quick else 10, "seed": 2}
    async with child("nodes_process", config) as (nodes, _):
        command = {"do": "gossip", "messages": 5 if quick else 40, "interval_s": 0.5, "drain_s": 2}
        return await nodes.ask(command, deadline_s=_RUN_DEADLINE_S)


def _ms(run: dict[str, Any]) -> float:
    return float(run["cpu_s"] / max(1, run["deliveries"]) * 1e3)
