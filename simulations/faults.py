"""What goes wrong in a run: when, for how long, and with which share of the nodes.

``crash``: the nodes are gone and come back at the end. ``partition``: they reach one another and nobody else.
``disconnect``: all their connections break, and again each ``factor`` seconds. ``slow``: their engines take
``factor`` times as long. ``silent``: they take everything and answer nothing.

Of hosts only: ``forged_adverts`` (they spread adverts in the names of others, with made-up prices),
``replayed_adverts`` (they bring old adverts of others again and again), ``wrong_model`` (their tokens are
another model's), ``over_billing`` (their receipts count more than they sent). ``sybil``: each adds
``factor`` ids that advertise and serve nothing. ``eclipse``: a client's first peers are all of theirs, and
tell of nobody else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias, TypeVar

from p2pnode.simulations.churn import Who
from p2pnode.simulations.parameters import require_not_negative, require_positive, require_shares
from p2pnode.simulations.world import Node, World

T = TypeVar("T")
Undo: TypeAlias = "Callable[[], None]"
Strike: TypeAlias = "Callable[[Fault, Sequence[Node]], Undo]"
"""Lets nodes do wrong from now on, and gives what ends it."""
FaultKind: TypeAlias = Literal[
    "crash",
    "partition",
    "disconnect",
    "slow",
    "silent",
    "forged_adverts",
    "replayed_adverts",
    "wrong_model",
    "over_billing",
    "sybil",
    "eclipse",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. ``duration_s`` 0 lasts to the end; ``share`` is of the nodes that ``who`` names."""

    kind: FaultKind
    at_s: float = 0.0
    duration_s: float = 0.0
    share: float = 0.1
    who: Who = "hosts"
    factor: float = 10.0

    def __post_init__(self) -> None:
        require_not_negative(self, "at_s", "duration_s")
        require_shares(self, "share")
        require_positive(self, "factor")
        if self.who != "hosts" and self.kind in _OF_HOSTS:
            msg = f"who must be 'hosts', not {self.who!r}: a fault of kind {self.kind!r} is a host's"
            raise ValueError(msg)

    @property
    def until_s(self) -> float:
        """When it is over; infinite where it lasts to the end."""
        return self.at_s + self.duration_s if self.duration_s else math.inf


_OF_HOSTS = frozenset(
    {"forged_adverts", "replayed_adverts", "wrong_model", "over_billing", "sybil", "eclipse"}
)


def struck(fault: Fault, nodes: Sequence[T], random: Random) -> list[T]:
    """The nodes that a fault strikes: its share of them, rounded to the nearest, at least one where the share
    is not 0."""
    count = min(len(nodes), max(fault.share > 0, round(fault.share * len(nodes))))
    return random.sample(nodes, count)


def schedule_faults(
    world: World,
    faults: Sequence[Fault],
    *,
    hosts: Sequence[Node],
    clients: Sequence[Node],
    strike: Strike | None = None,
) -> None:
    """Let faults happen in a world. ``strike`` does those that are a market's; ``ValueError`` without one."""
    for number, fault in enumerate(faults):
        of_market = fault.kind in _OF_HOSTS or fault.kind == "slow"
        if of_market and strike is None:
            msg = f"a fault of kind {fault.kind!r} needs a market"
            raise ValueError(msg)
        nodes = [*(hosts if fault.who != "clients" else ()), *(clients if fault.who != "hosts" else ())]
        chosen = struck(fault, nodes, world.draws("fault", number))
        does = strike if of_market and strike is not None else _strike_of(world, number + 1)
        world.loop.at(fault.at_s, _begin, world, fault, chosen, does)


def _begin(world: World, fault: Fault, nodes: Sequence[Node], strike: Strike) -> None:
    undo = strike(fault, nodes)
    if fault.duration_s:
        world.loop.at(fault.until_s, undo)


def _strike_of(world: World, side: int) -> Strike:
    """The faults that know nothing of what runs on the nodes."""

    def strike(fault: Fault, nodes: Sequence[Node]) -> Undo:
        match fault.kind:
            case "crash":
                for node in nodes:
                    world.crash(node)
                return lambda: _restart(world, nodes)
            case "partition":
                world.part(nodes, side)
                return lambda: _heal(world, nodes)
            case "disconnect":
                until = [math.inf]
                _disconnect(world, nodes, fault.factor, until)
                return lambda: until.__setitem__(0, world.now)
            case _:
                for node in nodes:
                    node.is_silent = True
                return lambda: _hear(nodes)

    return strike


def _disconnect(world: World, nodes: Sequence[Node], every_s: float, until: Sequence[float]) -> None:
    if world.now >= until[0]:
        return
    for node in nodes:
        for link in list(node.links.values()):
            world.disconnect(link)
    world.loop.after(every_s, _disconnect, world, nodes, every_s, until)


def _restart(world: World, nodes: Sequence[Node]) -> None:
    for node in nodes:
        world.restart(node)


def _heal(world: World, nodes: Sequence[Node]) -> None:
    for node in nodes:
        world.sides.pop(node.number, None)


def _hear(nodes: Sequence[Node]) -> None:
    for node in nodes:
        node.is_silent = False
