"""GossipSub 1.0 as its authors simulated it: their simulator's rules once more, to compare the node with.

Source: vyzo/gerbil-simsub, ``simsub/gossipsub-base.ss``, ``gossipsub-v1_0.ss``, ``simulator.ss`` and
``scripts.ss``, in its virtual time. It draws from streams of L'Ecuyer's MRG32k3a, numbered by a pair: (3, 5)
for what is published, (7, 11) for the network, (13 + i, 17 i) for node i, (i, j) for what goes between two
nodes. Gambit's ``random-source-pseudo-randomize!`` sets a stream by its numbers alone, whatever the seed was.
So each size has one run, which can be had again to the last message. Other streams give other runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, Protocol, TypeAlias

DIALS: Final = 20
SOURCES: Final = 5
LATENCY_S: Final = (0.010, 0.150)
JITTER: Final = 0.1
BEFORE_S: Final = 10.0
"""From when heartbeats are set to the first message, and from the last one to the end."""
DEGREE, DEGREE_LOW, DEGREE_HIGH, DEGREE_LAZY, WINDOW = 6, 4, 12, 6, 3
_DRIVER: Final = 0

# MRG32k3a: L'Ecuyer, "Good parameters and implementations for combined multiple recursive random number
# generators" (1999). The matrices are of 3 x 3, row after row, for the generator's first and second part.
_MODULI: Final = (4294967087, 4294944443)
_A_16: Final = (
    (1062452522, 340793741, 2955879160,
     2961816100, 1062452522, 387300998,
     342112271, 2961816100, 736416029),
    (2854655037, 1817134745, 3493477402,
     3321940838, 818368950, 1817134745,
     3542344109, 3790774567, 818368950),
)  # fmt: skip
_A_2_76: Final = (
    (69195019, 3528743235, 3672091415,
     1871391091, 69195019, 3672831523,
     4127413238, 1871391091, 82758667),
    (3708466080, 4292754251, 3859662829,
     3889917532, 1511326704, 4292754251,
     1610795712, 3759209742, 1511326704),
)  # fmt: skip
_A_2_127: Final = (
    (1230515664, 986791581, 1988835001,
     3580155704, 1230515664, 226153695,
     949770784, 3580155704, 2427906178),
    (2093834863, 32183930, 2824425944,
     1022607788, 1464411153, 32183930,
     1610723613, 277697599, 1464411153),
)  # fmt: skip


class Draw(Protocol):
    """One stream of random numbers."""

    def real(self) -> float:
        """Between 0 and 1."""
        ...

    def integer(self, below: int) -> int:
        """From 0 on."""
        ...


Streams: TypeAlias = Callable[[int, int], Draw]


def shuffled(draw: Draw, items: Sequence[int]) -> list[int]:
    """Fisher and Yates, from the front."""
    found = list(items)
    for first in range(len(found)):
        other = first + draw.integer(len(found) - first)
        found[first], found[other] = found[other], found[first]
    return found


class _Gambit:
    """A stream as Gambit's."""

    def __init__(self, state: tuple[Sequence[int], Sequence[int]]) -> None:
        (self._a, self._b, self._c), (self._d, self._e, self._f) = state

    def _next(self) -> int:
        one, two = _MODULI
        first = (1403580 * self._b - 810728 * self._c) % one
        second = (527612 * self._d - 1370589 * self._f) % two
        self._a, self._b, self._c = first, self._a, self._b
        self._d, self._e, self._f = second, self._d, self._e
        return first - second if first >= second else first - second + one

    def real(self) -> float:
        return (1.0 + self._next()) / (_MODULI[0] + 1)

    def integer(self, below: int) -> int:
        each = _MODULI[0] // below
        while (drawn := self._next()) >= below * each:
            pass
        return drawn // each


class _Other:
    """A stream of Python's."""

    def __init__(self, name: str) -> None:
        self.real = Random(name).random

    def integer(self, below: int) -> int:
        return int(self.real() * below)


def gambit() -> Streams:
    """Those of the published runs."""
    powers: list[tuple[Sequence[int], ...]] = [((1, 0, 0, 0, 1, 0, 0, 0, 1),) * 2]
    columns: list[tuple[Sequence[int], ...]] = [((1, 0, 0),) * 2]

    def stream(i: int, j: int) -> Draw:
        while len(powers) <= i:
            powers.append(tuple(map(_product, powers[-1], _A_2_127, _MODULI)))
        while len(columns) <= j:
            columns.append(tuple(map(_applied, _A_2_76, columns[-1], _MODULI)))
        moved = map(_applied, powers[i], columns[j], _MODULI)
        first, second = map(_applied, _A_16, moved, _MODULI)
        return _Gambit((first, second))

    return stream


def others(seed: int) -> Streams:
    """Any other ones."""
    return lambda i, j: _Other(f"{seed}/{i}/{j}")


def _applied(matrix: Sequence[int], column: Sequence[int], modulus: int) -> list[int]:
    return [sum(map(int.__mul__, matrix[row : row + 3], column)) % modulus for row in (0, 3, 6)]


def _product(a: Sequence[int], b: Sequence[int], modulus: int) -> list[int]:
    columns = [_applied(a, b[place::3], modulus) for place in range(3)]
    return [columns[place][row] for row in range(3) for place in range(3)]


class Network:
    """What is given: who knows whom, how far apart they are, when each begins, and who publishes."""

    def __init__(self, count: int, messages: int, streams: Streams) -> None:
        self.nodes = range(1, count + 1)
        self._streams, self._pairs = streams, dict[tuple[int, int], tuple[float, Draw]]()
        network, script = streams(7, 11), streams(3, 5)
        self.dials = {
            node: shuffled(network, [each for each in self.nodes if each != node])[:DIALS]
            for node in self.nodes
        }
        self.draws = {node: streams(13 + node, 17 * node) for node in self.nodes}
        self.phases_s = {node: draw.real() for node, draw in self.draws.items()}
        """When each beats, in the second."""
        sources = shuffled(script, self.nodes)[:SOURCES]
        drawn = [sources[script.integer(SOURCES)] for _ in range(messages)]
        for node, dialled in self.dials.items():
            for other in dialled:
                self.travel_s(node, other)  # that it dialled
        self.published = [
            (BEFORE_S + number + self.travel_s(_DRIVER, source), source)
            for number, source in enumerate(drawn)
        ]
        """Seconds and node of each message."""
        self.ends_s = BEFORE_S + messages + BEFORE_S

    def latency_s(self, a: int, b: int) -> float:
        """One way, without jitter."""
        return self._pair(a, b)[0]

    def travel_s(self, a: int, b: int) -> float:
        """How long one message takes, with jitter."""
        latency_s, draw = self._pair(a, b)
        return latency_s + draw.real() * JITTER * latency_s

    def _pair(self, a: int, b: int) -> tuple[float, Draw]:
        pair = (a, b) if a < b else (b, a)
        found = self._pairs.get(pair)
        if found is None:
            draw, (least, most) = self._streams(*pair), LATENCY_S
            found = self._pairs[pair] = (least + draw.real() * (most - least), draw)
        return found


@dataclass(frozen=True, slots=True)
class Run:
    """What one run sent, the shares of its deliveries by 100 ms, and the mean degree of its mesh."""

    messages: int
    ihave: int
    iwant: int
    graft: int
    bins: tuple[float, ...]
    degree: float = 0.0


def bins_of(delays_s: Sequence[float]) -> tuple[float, ...]:
    """Per cent of the delays in each of the first four tenths of a second."""
    counted = Counter(int(delay / 0.1) for delay in delays_s)
    return tuple(100 * counted[place] / max(1, len(delays_s)) for place in range(4))


class _Peer:
    def __init__(self, peers: set[int], draw: Draw) -> None:
        self.peers, self.draw = sorted(peers), draw
        self.mesh: set[int] = set()
        self.seen: set[int] = set()
        self.windows: list[list[int]] = [[]]
        """Messages by heartbeat, those since the last one first."""


class Simsub:
    """One run of the authors' rules. Time is from when heartbeats are set: the first are a second later."""

    def __init__(self, network: Network) -> None:
        self._network, self.counts, self.delays_s = network, Counter[str](), list[float]()
        known = {node: set(dialled) for node, dialled in network.dials.items()}
        for node, dialled in network.dials.items():
            for other in dialled:
                known[other].add(node)
        self._peers = {node: _Peer(known[node], network.draws[node]) for node in network.nodes}
        self._now, self._first = 0.0, dict[int, float]()
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        for node in network.nodes:
            self._at(1.0 + network.phases_s[node], self._beat, node)
        for number, (at_s, source) in enumerate(network.published):
            self._at(at_s, self._message, _DRIVER, source, number)

    def run(self) -> Run:
        while self._due and self._due[0][0] <= self._network.ends_s:
            self._now, _, action, arguments = heappop(self._due)
            action(*arguments)
        degree = sum(len(peer.mesh) for peer in self._peers.values()) / len(self._peers)
        counts = self.counts
        return Run(
            messages=counts["message"],
            ihave=counts["ihave"],
            iwant=counts["iwant"],
            graft=counts["graft"],
            bins=bins_of(self.delays_s),
            degree=degree,
        )

    def _at(self, at_s: float, action: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heappush(self._due, (at_s, self._number, action, arguments))

    def _send(self, kind: str, action: Callable[..., None], node: int, other: int, *more: Any) -> None:
        self.counts[kind] += 1
        self._at(self._now + self._network.travel_s(node, other), action, node, other, *more)

    def _message(self, sender: int, node: int, message: int) -> None:
        peer = self._peers[node]
        if message in peer.seen:
            return
        peer.seen.add(message)
        peer.windows[0].append(message)
        if message in self._first:
            self.delays_s.append(self._now - self._first[message])
        self._first.setdefault(message, self._now)
        for other in shuffled(peer.draw, sorted(peer.mesh)):
            if other != sender:
                self._send("message", self._message, node, other, message)

    def _ihave(self, sender: int, node: int, messages: Sequence[int]) -> None:
        wanted = [message for message in messages if message not in self._peers[node].seen]
        if wanted:
            self._send("iwant", self._iwant, node, sender, wanted)

    def _iwant(self, sender: int, node: int, messages: Sequence[int]) -> None:
        for message in messages:
            self._send("message", self._message, node, sender, message)

    def _graft(self, sender: int, node: int) -> None:
        self._peers[node].mesh.add(sender)

    def _prune(self, sender: int, node: int) -> None:
        self._peers[node].mesh.discard(sender)

    def _beat(self, node: int) -> None:
        peer = self._peers[node]
        size = len(peer.mesh)
        if size < DEGREE_LOW:
            outside = [other for other in shuffled(peer.draw, peer.peers) if other not in peer.mesh]
            for other in outside[: DEGREE - size]:
                self._send("graft", self._graft, node, other)
                peer.mesh.add(other)
        elif size > DEGREE_HIGH:
            for other in shuffled(peer.draw, sorted(peer.mesh))[: size - DEGREE]:
                self._send("prune", self._prune, node, other)
                peer.mesh.remove(other)
        offered = [message for window in peer.windows[:WINDOW] for message in window]
        peer.windows = [[], *peer.windows[: WINDOW - 1]]
        if offered:
            outside = [other for other in shuffled(peer.draw, peer.peers) if other not in peer.mesh]
            for other in outside[:DEGREE_LAZY]:
                self._send("ihave", self._ihave, node, other, offered)
        self._at(self._now + 1.0, self._beat, node)
