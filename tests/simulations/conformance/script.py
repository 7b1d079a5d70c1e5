"""What happens in one small network, moment by moment, and what came of it: for each shell the same.

All moments and latencies are drawn from continuous ranges, so that no two things happen to a node at once:
what is due at the same moment a shell may do in any order.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from p2pnode.node.keys import PeerKey
from p2pnode.simulations.draws import Draws
from p2pnode.simulations.links import Links
from tests.net.memory_world import seed_of

TOPIC: Final = "conformance"
LINKS: Final = Links(latency="uniform", jitter_share=0.0)
"""Each pair has a latency of its own. The model's jitter is drawn in the order in which messages are sent,
and what is sent at one moment has no order; what changes latencies here is the weather."""
WEATHER_S: Final = 0.5
WEATHER_SHARE: Final = 0.2
"""After so many seconds each latency is its pair's times 1 to 1 + this. If it never changed, an offer that is
made a second after a message would reach a node in the moment of its own heartbeat, which is set then."""
FIRST_MESSAGE_S: Final = 10.0
LAST_MESSAGE_S: Final = 40.0
END_S: Final = 60.0
_SIZES: Final = (16, 512, 2000)
"""Bytes of messages; from 1024 on, neighbours say which ones they do not want any more."""
_NUMBER_BYTES: Final = 8

Kind: TypeAlias = Literal["join", "leave", "connect", "cut", "crash", "restart", "publish", "weather"]
Delivery: TypeAlias = tuple[int, int, int]
"""``(microseconds, number of the node, number of the message)``; a publisher's own is one, too."""


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """At ``at_s`` something happens to ``node``.

    ``other``: the node that it dials or leaves, or the number of the message or of the weather.
    """

    at_s: float
    kind: Kind
    node: int
    other: int = 0
    size: int = 0

    @property
    def data(self) -> bytes:
        """Of a message."""
        return self.other.to_bytes(_NUMBER_BYTES, "big").ljust(self.size, b"\0")


@dataclass(frozen=True, slots=True)
class Script:
    """The steps, in order, for nodes 0 to ``nodes - 1``."""

    seed: int
    nodes: int
    steps: tuple[Step, ...]

    @property
    def keys(self) -> list[PeerKey]:
        """Of the nodes, those of real hosts in a memory world."""
        return [PeerKey(seed_of(number)) for number in range(self.nodes)]

    def weather(self, number: int) -> list[list[float]]:
        """The factors of latencies, by sender and receiver."""
        draw = Draws(self.seed)("weather", number).random
        return [[1.0 + WEATHER_SHARE * draw() for _ in range(self.nodes)] for _ in range(self.nodes)]

    @property
    def published(self) -> dict[int, Step]:
        """The messages, by number."""
        return {step.other: step for step in self.steps if step.kind == "publish"}


Pair: TypeAlias = tuple[int, int]
"""Two nodes, of which the first one dials."""


def at_random(nodes: int, *, dials: int) -> Callable[[random.Random], list[Pair]]:
    """Each node dials so many others, but none that dials it."""

    def pairs(draw: random.Random) -> list[Pair]:
        found: dict[Pair, None] = {}
        for node in range(nodes):
            for other in draw.sample([each for each in range(nodes) if each != node], dials):
                if (other, node) not in found:
                    found[node, other] = None
        return list(found)

    return pairs


def in_a_circle(nodes: int) -> Callable[[random.Random], list[Pair]]:
    """Each node is connected with four others, as many as no mesh does without: all are in all meshes."""
    return lambda _draw: [(node, (node + far) % nodes) for node in range(nodes) for far in (1, 5)]


def drawn(
    seed: int,
    nodes: int,
    pairs_of: Callable[[random.Random], list[Pair]],
    *,
    messages: int,
    upsets: int = 0,
) -> Script:
    """Everybody joins, is connected as ``pairs_of`` has it, and publishes now and then.

    ``upsets``: so many nodes leave the topic for a while, as many crash and come back, and as many
    connections are cut and made again.
    """
    draw = Draws(seed)("script")
    steps: list[Step] = []
    pairs = pairs_of(draw)
    steps += [Step(draw.uniform(0.1, 1), "join", node) for node in range(nodes)]
    steps += [Step(draw.uniform(1, 5), "connect", *pair) for pair in pairs]
    for number in range(messages):
        at_s = draw.uniform(FIRST_MESSAGE_S, LAST_MESSAGE_S)
        steps.append(Step(at_s, "publish", draw.randrange(nodes), number, draw.choice(_SIZES)))
    upset = draw.sample(range(nodes), 2 * upsets)
    for node in upset[:upsets]:
        at_s = draw.uniform(12, 25)
        steps += [Step(at_s, "leave", node), Step(at_s + draw.uniform(1, 14), "join", node)]
    down: dict[int, tuple[float, float]] = {}
    for node in upset[upsets:]:
        at_s = draw.uniform(12, 25)
        back_s = at_s + draw.uniform(2, 10)
        down[node] = at_s, back_s
        steps += [Step(at_s, "crash", node), Step(back_s, "restart", node)]
        steps.append(Step(back_s + draw.uniform(0.1, 0.2), "join", node))
        others = sorted({sum(pair) - node for pair in pairs if node in pair})
        steps += [Step(back_s + draw.uniform(0.3, 2), "connect", node, other) for other in others]
    calm = [pair for pair in pairs if not set(pair) & set(upset)]
    for pair in draw.sample(calm, min(upsets, len(calm))):
        at_s = draw.uniform(12, 25)
        steps += [Step(at_s, "cut", *pair), Step(at_s + draw.uniform(1, 10), "connect", *pair)]
    steps += [Step(number * WEATHER_S, "weather", 0, number) for number in range(int(END_S / WEATHER_S))]

    def is_up(node: int, at_s: float) -> bool:
        from_s, to_s = down.get(node, (at_s, at_s))
        return not from_s < at_s < to_s

    possible = [step for step in steps if step.kind != "connect" or is_up(step.other, step.at_s)]
    return Script(seed, nodes, tuple(sorted(possible)))


@dataclass(slots=True)
class Outcome:
    """What the applications saw, and what each node's machines counted."""

    deliveries: list[Delivery] = field(default_factory=list)
    counts: dict[int, Counter[str]] = field(default_factory=dict)

    def delivered(self, now: float, node: int, data: bytes) -> None:
        """Note that a node's application got a message."""
        number = int.from_bytes(data[:_NUMBER_BYTES], "big")
        self.deliveries.append((round(now * 1e6), node, number))

    def counted(self, node: int, counts: dict[str, int]) -> None:
        """Add what a machine of the node counted."""
        self.counts.setdefault(node, Counter()).update(counts)

    def total(self, name: str) -> int:
        """One count, of all nodes together."""
        return sum(counts[name] for counts in self.counts.values())

    @property
    def trace_hash(self) -> str:
        """Of the deliveries, in order."""
        return hashlib.blake2b(repr(sorted(self.deliveries)).encode()).hexdigest()

    def delays_s(self, script: Script) -> list[float]:
        """Of all deliveries but the publishers' own, from the least to the most."""
        published = script.published
        return sorted(
            at_us / 1e6 - published[number].at_s
            for at_us, node, number in self.deliveries
            if published[number].node != node
        )


def first_difference(a: Sequence[Delivery], b: Sequence[Delivery]) -> str:
    """The first delivery that only one of two shells has; empty where both have the same."""
    ours, theirs = Counter(a), Counter(b)
    differing = sorted((ours - theirs) + (theirs - ours))
    if not differing:
        return ""
    at_us, node, number = differing[0]
    where = "first" if differing[0] in ours else "second"
    return f"only the {where} shell delivers message {number} to node {node} at {at_us / 1e6:.6f} s"
