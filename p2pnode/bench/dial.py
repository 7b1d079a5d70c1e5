"""``dial.*``: how long a stranger takes to know what a host offers."""

from __future__ import annotations

from statistics import median
from typing import Final

import trio

from p2pnode.bench.figure import compared
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import child
from p2pnode.client.client import Client
from p2pnode.config import NodeConfig

_DIALS: Final = 20
_RUN_DEADLINE_S: Final = 120.0


async def measure_dial(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    count = 3 if options.quick else _DIALS
    config = NodeConfig(data_dir=options.scratch / "nobody", mdns=False)
    took: list[float] = []
    host = {"engine": "scripted", "slots": 4, "n_ctx": 2048}
    async with child("host_process", host) as (_, told):
        for _ in range(count):
            async with Client(config) as client:
                began = trio.current_time()
                await client.advert_of([told["multiaddr"]])
                took.append(trio.current_time() - began)
    alone = {"library": False, "nodes": 1, "settle_s": 0.5}
    async with child("nodes_process", alone) as (nodes, _):
        plain = (await nodes.ask({"do": "dial", "count": count}, deadline_s=_RUN_DEADLINE_S))["seconds"]
    shown = [round(each * 1e3, 1) for each in took]
    take("dial.to_advert", compared(median(took) * 1e3, median(plain) * 1e3, ms=shown))
