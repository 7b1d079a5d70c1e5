"""What happens in one small market, moment by moment, and what its people see: for each shell the same.

Hosts start, ask new prices and crash; clients ask questions of which the lengths are given. Prices of two
hosts differ by half at least, so that no small difference in what was measured decides between two of them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.node.keys import PeerKey
from p2pnode.simulations.draws import Draws
from p2pnode.simulations.links import Links
from tests.net.memory_world import seed_of

LINKS: Final = Links(latency="uniform", jitter_share=0.0)
LIMITS: Final = replace(DEFAULT_LIMITS, turns_per_session=8, dials_at_once=DEFAULT_LIMITS.dials_per_lookup)
"""A search asks all that it hears of at once, so that no draw decides who answers first."""
TOKENS_PER_S: Final = 31.0
"""At 30, every 60 ms would be on the edge between two and three tokens."""
SLOTS: Final = 8
N_CTX: Final = 2048
BLOCK_S: Final = 2.0
REQUEST_S: Final = 0.2
"""Of the chain: between blocks, and what a call takes to reach it."""
PRICE_IN: Final = 1_000_000
PRICE_OUT: Final = 3_000_000
"""Of the cheapest host; the next one asks half as much again, and so on."""
FEE: Final = 20
RICH: Final = 50_000_000
ERAS_S: Final = (20.0, 60.0, 100.0)
"""When hosts ask other prices."""
CALM_S: Final = 6.0
"""Nobody asks for so long after that: who asks while adverts are on their way gets one or another."""
FIRST_QUESTION_S: Final = 30.0
ASKED_EVERY_S: Final = 24.0
"""By one client: an answer takes eight seconds, and as long again where its host fails."""
DOWN_S: Final = 30.0
"""How long a host that crashed is away."""
OPENED_S: Final = 3.6
"""After so long the first question of a client is being answered: its deposit is in a block."""
LONG: Final = 150
"""Output tokens of an answer that a crash cuts off, at least."""
CLOSE_S: Final = 150.0
END_S: Final = 170.0

Kind: TypeAlias = Literal["start", "price", "ask", "crash", "restart", "close"]


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """At ``at_s`` something happens to ``node``.

    ``start`` and ``restart``: a host. ``price``: it is the ``number``th cheapest from now on. ``ask``: a
    client asks question ``number``, of so many tokens each way. ``close``: it ends its sessions.
    """

    at_s: float
    kind: Kind
    node: int
    number: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def prices(self) -> tuple[int, int]:
        """Input and output, for a million tokens."""
        return PRICE_IN * 3**self.number // 2**self.number, PRICE_OUT * 3**self.number // 2**self.number


@dataclass(frozen=True, slots=True)
class MarketScript:
    """The steps, in order. Nodes 0 to ``hosts - 1`` are hosts, the others clients."""

    seed: int
    hosts: int
    clients: int
    steps: tuple[Step, ...]
    known: tuple[int, ...]
    """By client, its first peer."""

    @property
    def nodes(self) -> int:
        """How many there are."""
        return self.hosts + self.clients

    def first_peer(self, client: int) -> int:
        """The host that a client knows."""
        return self.known[client - self.hosts]

    @property
    def keys(self) -> list[PeerKey]:
        """Of the nodes."""
        return [PeerKey(seed_of(number)) for number in range(self.nodes)]


def ip_of(number: int) -> str:
    """Of a node: each has a prefix of its own."""
    return f"20.{number // 250}.{number % 250}.7"


def cache_key_of(step: Step) -> bytes:
    """Of a question: what an engine has of another one in its cache is of no use to it."""
    return step.number.to_bytes(16, "big")


def drawn(seed: int, hosts: int, clients: int, *, questions: int, crash: bool = True) -> MarketScript:
    """Each client asks so many questions, one after another.

    ``crash``: the first peer of a third of the clients is gone in the middle of the last of their answers,
    and back after ``DOWN_S``.
    """
    draw = Draws(seed)("market script")
    steps = [Step(0.1 + 0.4 * number + draw.uniform(0, 0.3), "start", number) for number in range(hosts)]
    for era_s in ERAS_S:
        order = draw.sample(range(hosts), hosts)
        steps += [Step(era_s + draw.uniform(0, 1), "price", host, rank) for rank, host in enumerate(order)]
    unlucky = draw.randrange(1, hosts)  # the first peer of all other hosts has to stay
    others = [host for host in range(hosts) if host != unlucky]
    known: list[int] = []
    crash_s = 0.0
    numbers = itertools.count()
    for client in range(hosts, hosts + clients):
        at_s = FIRST_QUESTION_S + draw.uniform(0, CLOSE_S - FIRST_QUESTION_S - questions * ASKED_EVERY_S)
        is_cut = crash and client % 3 == 0
        known.append(unlucky if is_cut else draw.choice(others))
        for turn in range(questions):
            asked_s = at_s + turn * ASKED_EVERY_S + draw.uniform(0, 3)
            asked_s += sum(CALM_S for era_s in ERAS_S if era_s - 1 < asked_s < era_s + CALM_S)
            tokens_out = draw.randrange(LONG, 240) if is_cut else draw.randrange(10, 240)
            steps.append(Step(asked_s, "ask", client, next(numbers), draw.randrange(20, 200), tokens_out))
            if is_cut:
                begins_s = asked_s + (0.4 if turn else OPENED_S)
                crash_s = max(crash_s, begins_s + 0.3 * tokens_out / TOKENS_PER_S)
        steps.append(Step(CLOSE_S + draw.uniform(0, 1), "close", client))
    if crash_s:
        steps += [Step(crash_s, "crash", unlucky), Step(crash_s + DOWN_S, "restart", unlucky)]
    return MarketScript(seed, hosts, clients, tuple(sorted(steps)), tuple(known))


Seen: TypeAlias = tuple[float, int, str, tuple[int | str, ...]]
"""Seconds, node (-1: the chain), what happened, and its values."""


@dataclass(slots=True)
class MarketOutcome:
    """What the applications of a market saw. Numbers of nodes stand for peers, wallets and sessions.

    ========== ========= ============================================================
    kind       node      values
    ========== ========= ============================================================
    advert     a host    another host and its price, believed for the first time
    host       a client  question, the host that is asked, tokens that it is to go on from
    tokens     a client  question, tokens that it has by now
    receipt    a client  host, place in its session, output tokens
    signed     a client  host, token units, output tokens: a voucher
    paid       a host    client, token units: a voucher was taken
    answer     a client  question, outcome, tokens each way, token units
    opened     the chain client, host
    settled    the chain client, host, token units
    ========== ========= ============================================================
    """

    seen: list[Seen] = field(default_factory=list)

    def note(self, now: float, node: int, kind: str, *values: int | str) -> None:
        """Something happened, before the end."""
        if now <= END_S:
            self.seen.append((now, node, kind, values))

    def of(self, kind: str) -> list[Seen]:
        """All of one kind."""
        return [each for each in self.seen if each[2] == kind]

    @property
    def courses(self) -> dict[tuple[int, str, int], list[Seen]]:
        """What happened, in order: by node, kind, and the question or the other side that it is about.

        Two nodes may act in one moment, and two hosts may settle in one block: that has no order.
        """
        found: dict[tuple[int, str, int], list[Seen]] = {}
        for each in self.seen:
            found.setdefault((each[1], each[2], int(each[3][0])), []).append(each)
        return found

    @property
    def trace_hash(self) -> str:
        """Of all courses, without the times."""
        courses = sorted((key, [each[3] for each in course]) for key, course in self.courses.items())
        return hashlib.blake2b(repr(courses).encode()).hexdigest()

    @property
    def counts(self) -> Counter[str]:
        """How many events of each kind there are."""
        return Counter(kind for _, _, kind, _ in self.seen)


def first_difference(a: MarketOutcome, b: MarketOutcome) -> str:
    """The earliest event in which two outcomes differ, times apart; empty where there is none."""
    differing: list[tuple[float, str]] = []
    ours, theirs = a.courses, b.courses
    for key in sorted({*ours, *theirs}):
        one, other = ours.get(key, []), theirs.get(key, [])
        for number in range(max(len(one), len(other))):
            first = one[number] if number < len(one) else None
            second = other[number] if number < len(other) else None
            if first is None or second is None or first[3] != second[3]:
                at_s = min(each[0] for each in (first, second) if each is not None)
                differing.append((at_s, f"{key[1]} of node {key[0]}: {first} in one, {second} in the other"))
                break
    return min(differing)[1] if differing else ""


def time_differences(a: MarketOutcome, b: MarketOutcome, kind: str, *, from_s: float = 0.0) -> list[float]:
    """Of events of one kind, by how many seconds the second outcome's is later; both have the same.

    Those before ``from_s`` of the first outcome are left out.
    """
    ours, theirs = a.courses, b.courses
    return sorted(
        second[0] - first[0]
        for key, course in ours.items()
        if key[1] == kind
        for first, second in zip(course, theirs[key], strict=True)
        if first[0] >= from_s
    )
