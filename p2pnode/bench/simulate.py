"""``simulate.*``: events a second of simulated networks, against a heapq loop that does nothing else.

Both run in this process, one after the other, in CPU time; the bare loop holds as many events as wait in the
simulation. Building the network and filling the meshes is left out, taking in and out of the garbage
collector is not. What an event is: a message that arrives, or a timer that fires.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from time import process_time
from typing import Any, Final

import trio

from p2pnode.bench.figure import Measurement
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.simulations.gossip import Gossip, Messages
from p2pnode.simulations.world import World, connect_at_random

GOSSIP: Final = Gossip(messages_per_s=5.0)
"""As many as adverts come on one topic, whatever its size, and about as long."""
_FILL_S: Final = 5.0


async def measure_simulate(options: BenchOptions, take: Take) -> None:
    """All figures of the suite. Nothing else of this process runs meanwhile."""
    for name, nodes, seconds in (("simulate.gossip_1k", 1000, 20.0), ("simulate.gossip_10k", 10_000, 4.0)):
        await trio.lowlevel.checkpoint()
        scale = 10 if options.quick else 1
        take(name, gossip(nodes // scale, seconds / (2 if options.quick else 1)))


def gossip(count: int, seconds: float) -> Measurement:
    """So many nodes on one topic, for so many simulated seconds."""
    world = World(1)
    messages = Messages(world, Gossip(publishers=count, messages_per_s=GOSSIP.messages_per_s))
    nodes = [world.add() for _ in range(count)]
    connect_at_random(world, nodes, GOSSIP.dials)
    world.run(_FILL_S)
    messages.start(nodes, _FILL_S, _FILL_S + seconds)
    before = world.loop.done
    began = process_time()
    world.run(_FILL_S + seconds)
    took_s = process_time() - began
    events = world.loop.done - before
    bare_s = bare(events, len(world.loop))
    rate, bare_rate = events / took_s, events / bare_s
    return Measurement(
        value=rate,
        baseline=bare_rate,
        ratio=rate / bare_rate,
        details={
            "nodes": count,
            "events": events,
            "seconds_simulated": seconds,
            "cpu_s": round(took_s, 3),
            "faster_than_real_time": round(seconds / took_s, 3),
            "deliveries": len(messages.delays_s),
        },
    )


def bare(events: int, waiting: int) -> float:
    """CPU seconds that a loop takes for so many events that do nothing, of which so many wait at a time."""
    drawn = random.Random(1).random  # noqa: S311
    due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
    for number in range(max(1, waiting)):
        heapq.heappush(due, (drawn(), number, _nothing, ()))
    number = len(due)
    pop, push = heapq.heappop, heapq.heappush
    began = process_time()
    for _ in range(events):
        now, _, action, arguments = pop(due)
        number += 1
        push(due, (now + drawn(), number, action, arguments))
        action(*arguments)
    return process_time() - began


def _nothing() -> None:
    pass
