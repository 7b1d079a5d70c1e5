"""``gossip.*``: what a delivered message costs and how soon it is there, by our network and by the library
as it comes; and what a delivered advert costs against the bare check of its signatures.

One process each, one after the other, with the same graph, messages and pace. All that the process does
in that time counts: copies, signatures, heartbeats. Where the time goes is in decisions 088, 089 and 145.
"""

from __future__ import annotations

from typing import Any, Final

from p2pnode.bench.figure import Measurement, compared
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import child
from p2pnode.errors import LocalError

_RUN_DEADLINE_S: Final = 120.0
_LEAST_DELIVERED: Final = 0.99


async def measure_gossip(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    ours = await _run(options, library=False)
    library = await _run(options, library=True)
    if ours["paced"]["deliveries"] < _LEAST_DELIVERED * ours["paced"]["expected"]:
        msg = f"{ours['paced']['deliveries']} of {ours['paced']['expected']} messages were delivered"
        raise LocalError(f"{msg}: the rest is lost")
    take(
        "gossip.delivery_cpu",
        compared(_ms(ours["paced"]), _ms(library["paced"]), ours=ours["paced"], library=library["paced"]),
    )
    take("gossip.p99", compared(ours["paced"]["p99_s"], library["paced"]["p99_s"] or _RUN_DEADLINE_S))
    lost, lost_library = _lost(ours["burst"]), _lost(library["burst"])
    take(
        "gossip.burst",
        Measurement(
            value=lost,
            baseline=lost_library,
            ratio=lost / max(1, lost_library),
            details={"ours": ours["burst"], "library": library["burst"]},
        ),
    )
    adverts = await _run(options, library=False, adverts=True)
    bare = adverts["checks"]
    # A node checks a binding once, however many adverts of its host come.
    bindings = min(adverts["paced"]["expected"], adverts["nodes"] ** 2)
    once = bare["binding"] * bindings / max(1, adverts["paced"]["deliveries"])
    bare_ms = (bare["envelope"] + bare["advert"] + once) * 1e3
    take("gossip.advert_cpu", compared(_ms(adverts["paced"]), bare_ms, bare=bare, adverts=adverts["paced"]))


async def _run(options: BenchOptions, *, library: bool, adverts: bool = False) -> dict[str, Any]:
    quick = options.quick
    count = 5 if quick else 20
    config = {
        "library": library, "nodes": count, "settle_s": 3 if quick else 10, "seed": 2, "adverts": adverts
    }  # fmt: skip
    async with child("nodes_process", config) as (nodes, _):
        paced = {"do": "gossip", "messages": 5 if quick else 40, "interval_s": 0.5, "drain_s": 2}
        found: dict[str, Any] = {"nodes": count, "paced": await nodes.ask(paced, deadline_s=_RUN_DEADLINE_S)}
        if adverts:
            checks = {"do": "checks", "count": 50 if quick else 500}
            found["checks"] = await nodes.ask(checks, deadline_s=_RUN_DEADLINE_S)
        else:
            burst = {"do": "gossip", "messages": 40, "interval_s": 0, "drain_s": 5, "one": True}
            found["burst"] = await nodes.ask(burst, deadline_s=_RUN_DEADLINE_S)
        return found


def _lost(run: dict[str, Any]) -> int:
    return int(run["expected"] - run["deliveries"])


def _ms(run: dict[str, Any]) -> float:
    return float(run["cpu_s"] / max(1, run["deliveries"]) * 1e3)
