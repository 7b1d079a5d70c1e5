"""``simulate.*``: events a second of simulated networks, against a heapq loop that does nothing else.

Both run in this process, one after the other, in CPU time; the bare loop holds as many events as wait in the
simulation, and runs three times, of which the median counts. Building the network and filling the meshes is
left out, and nothing is recorded but the deliveries. ``compiled`` says whether the machines are: without that
they take three times as long (``p2pnode/compiled.py``).

What an event is: a message that reaches a machine, one for an RPC however many it carries, or a timer that
fires. Timers that were set anew and messages to nodes that are gone do not count.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from statistics import median
from time import process_time
from typing import Any, Final

import trio

from p2pnode.bench.figure import Measurement
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.compiled import is_used
from p2pnode.simulations.experiment import Experiment
from p2pnode.simulations.gossip import Gossip, Messages
from p2pnode.simulations.market.market import Market
from p2pnode.simulations.recorder import Recorder
from p2pnode.simulations.scenario import Scenario
from p2pnode.simulations.world import World, connect_at_random

GOSSIP: Final = Gossip(messages_per_s=5.0)
"""As many as adverts come on one topic, whatever its size, and about as long."""
_HOSTS_SHARE: Final = 0.1
"""Of the nodes of a market; the others ask."""
_FILL_S: Final = 5.0
_MARKET_FILL_S: Final = 30.0
"""After that hosts know one another, and people have sessions."""


async def measure_simulate(options: BenchOptions, take: Take) -> None:
    """All figures of the suite. Nothing else of this process runs meanwhile."""
    scale = 10 if options.quick else 1
    for name, nodes, seconds in (("simulate.gossip_1k", 1000, 20.0), ("simulate.gossip_10k", 10_000, 4.0)):
        await trio.lowlevel.checkpoint()
        take(name, gossip(nodes // scale, seconds / (2 if options.quick else 1)))
    await trio.lowlevel.checkpoint()
    take("simulate.market_1k", market(1000 // scale, 30.0))


def gossip(count: int, seconds: float) -> Measurement:
    """So many nodes on one topic, for so many simulated seconds."""
    world = World(1)
    messages = Messages(world, Gossip(publishers=count, messages_per_s=GOSSIP.messages_per_s))
    nodes = [world.add() for _ in range(count)]
    connect_at_random(world, nodes, GOSSIP.dials)
    world.run(_FILL_S)
    messages.start(nodes, _FILL_S, _FILL_S + seconds)
    events, took_s, bare_s = _timed(world, _FILL_S + seconds)
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
            "compiled": is_used(),
        },
    )


def market(count: int, seconds: float) -> Measurement:
    """A market of so many nodes, once it goes: how many of its seconds pass in one of the CPU's.

    The tenth part are hosts of one model. Everything is recorded, as in any run.
    """
    hosts = max(1, round(count * _HOSTS_SHARE))
    parameters = Market()
    recorder = Recorder()
    experiment = Experiment(
        Scenario(
            name="market",
            nodes=count,
            duration_s=_MARKET_FILL_S + seconds,
            market=replace(
                parameters,
                hosts=replace(
                    parameters.hosts, count=hosts, bootstrap=min(hosts, parameters.hosts.bootstrap)
                ),
                clients=replace(parameters.clients, count=count - hosts),
            ),
        ),
        1,
        recorder,
    )
    experiment.world.run(_MARKET_FILL_S)
    before = dict(recorder.counts)
    events, took_s, bare_s = _timed(experiment.world, _MARKET_FILL_S + seconds)
    told = {name: recorder.counts.get(name, 0) - before.get(name, 0) for name in _TOLD}
    return Measurement(
        value=seconds / took_s,
        baseline=1.0,
        ratio=seconds / took_s,
        details={
            "nodes": count,
            "hosts": hosts,
            "events": events,
            "seconds_simulated": seconds,
            "cpu_s": round(took_s, 3),
            "events_per_s": round(events / took_s),
            "of_bare_loop": round(bare_s / took_s, 4),
            "compiled": is_used(),
            **told,
        },
    )


_TOLD: Final = ("advert", "lookup", "asked", "SessionOpened", "paid", "answer")


def _timed(world: World, until_s: float) -> tuple[int, float, float]:
    """Run a world: its events, its CPU seconds, and those of a bare loop of as many events."""
    before = world.loop.done - world.lapsed
    began = process_time()
    world.run(until_s)
    took_s = process_time() - began
    events = world.loop.done - world.lapsed - before
    return events, took_s, median(bare(events, len(world.loop)) for _ in range(3))


def bare(events: int, waiting: int) -> float:
    """CPU seconds that a loop takes for so many events that do nothing, of which so many wait at a time."""
    drawn = random.Random(1).random  # noqa: S311
    due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
    for number in range(max(1, waiting)):
        heappush(due, (drawn(), number, _nothing, ()))
    number = len(due)
    pop, push = heappop, heappush
    began = process_time()
    for _ in range(events):
        now, _, action, arguments = pop(due)
        number += 1
        push(due, (now + drawn(), number, action, arguments))
        action(*arguments)
    return process_time() - began


def _nothing() -> None:
    pass
