"""When nodes come and go: session times and downtimes drawn from a distribution, or read from a trace.

A trace is a text file with a line for each change: ``seconds,node,up`` or ``seconds,node,down``, where node
is a number from 0 and the seconds never fall. Lines that are empty or begin with ``#`` say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal, TypeAlias

from p2pnode.simulations.parameters import require_positive, require_shares
from p2pnode.simulations.world import Node, World

Distribution: TypeAlias = Literal["exponential", "weibull", "lognormal", "fixed"]
Who: TypeAlias = Literal["hosts", "clients", "all"]
_LEAST_S: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """Which share of the nodes comes and goes, and how long it stays.

    ``shape`` is k of a Weibull distribution, sigma of a lognormal one; the mean stays what it is. A node that
    leaves crashes: it says nothing, and comes back with what it had on disk. ``trace`` names a file instead.
    """

    share: float = 0.0
    who: Who = "hosts"
    session: Distribution = "exponential"
    session_mean_s: float = 3600.0
    session_shape: float = 1.0
    downtime: Distribution = "exponential"
    downtime_mean_s: float = 600.0
    downtime_shape: float = 1.0
    trace: str = ""

    def __post_init__(self) -> None:
        require_shares(self, "share")
        require_positive(self, "session_mean_s", "session_shape", "downtime_mean_s", "downtime_shape")


@dataclass(frozen=True, slots=True)
class Change:
    """A node comes up, or goes down, at a time in seconds from the start."""

    at_s: float
    node: int
    up: bool


def drawn(kind: Distribution, mean: float, shape: float, random: Random) -> float:
    """A time in seconds from a distribution with this mean."""
    value = mean
    match kind:
        case "exponential":
            value = random.expovariate(1 / mean)
        case "weibull":
            value = random.weibullvariate(mean / math.gamma(1 + 1 / shape), shape)
        case "lognormal":
            value = random.lognormvariate(math.log(mean) - shape * shape / 2, shape)
        case "fixed":
            pass
    return max(_LEAST_S, value)


def changes(churn: Churn, node: int, random: Random, until_s: float) -> Iterator[Change]:
    """The changes of one node that churns, in order, up to ``until_s``. It is up at first.

    Where times are fixed the first session is cut at random, or all nodes would leave together.
    """
    now = drawn(churn.session, churn.session_mean_s, churn.session_shape, random)
    if churn.session == "fixed":
        now *= random.random()
    while now < until_s:
        yield Change(now, node, up=False)
        now += drawn(churn.downtime, churn.downtime_mean_s, churn.downtime_shape, random)
        if now >= until_s:
            return
        yield Change(now, node, up=True)
        now += drawn(churn.session, churn.session_mean_s, churn.session_shape, random)


def schedule_churn(
    world: World, churn: Churn, *, hosts: Sequence[Node], clients: Sequence[Node], until_s: float
) -> None:
    """Let nodes of a world crash and come back up to ``until_s``, whatever else happens to them.

    A trace numbers the nodes of ``who``, the hosts first. Raises ``ValueError`` for one that can't be read.
    """
    nodes = [*(hosts if churn.who != "clients" else ()), *(clients if churn.who != "hosts" else ())]
    if churn.trace:
        try:
            lines = Path(churn.trace).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"the trace {churn.trace} can't be read ({error}): name a text file with churn.trace"
            raise ValueError(msg) from error
        found: Iterable[Change] = read_trace(lines, len(nodes))
    else:
        random = world.draws("churn")
        chosen = sorted(random.sample(range(len(nodes)), round(churn.share * len(nodes))))
        found = (
            change
            for place in chosen
            for change in changes(churn, place, world.draws("churn", nodes[place].number), until_s)
        )
    for change in found:
        if change.at_s < until_s:
            world.loop.at(change.at_s, world.restart if change.up else world.crash, nodes[change.node])


def read_trace(lines: Iterable[str], nodes: int) -> list[Change]:
    """The changes of a trace for ``nodes`` nodes. Raises ``ValueError`` that names the line."""
    found: list[Change] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found.append(_change(text, number, nodes, found[-1].at_s if found else 0.0))
    return found


def _change(text: str, number: int, nodes: int, after_s: float) -> Change:
    where = f"line {number} of the trace"
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or parts[2] not in ("up", "down"):  # noqa: PLR2004 - the three columns
        msg = f"{where} is {text[:80]!r}: it must be SECONDS,NODE,up or SECONDS,NODE,down"
        raise ValueError(msg)
    try:
        at_s, node = float(parts[0]), int(parts[1])
    except ValueError as error:
        msg = f"{where} is {text[:80]!r}: the seconds and the node must be numbers"
        raise ValueError(msg) from error
    if not (math.isfinite(at_s) and at_s >= after_s):
        msg = f"{where}: {at_s:g} s comes after {after_s:g} s: times must not fall"
        raise ValueError(msg)
    if not 0 <= node < nodes:
        msg = f"{where}: there is no node {node}: this scenario has nodes 0 to {nodes - 1}"
        raise ValueError(msg)
    return Change(at_s, node, up=parts[2] == "up")
