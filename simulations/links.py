"""Links between nodes: how long a message takes from one to another. ``Links`` are the parameters.

A message waits for its sender's uplink, travels for the latency of the two places, with jitter, and waits for
its receiver's downlink. Messages of one connection stay in order, as TCP has it: a lost packet delays what
comes after it, and loses nothing. Not modelled: congestion inside the network, and TCP's windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pnode.simulations.draws import Draws
from p2pnode.simulations.parameters import (
    require_not_negative,
    require_order,
    require_positive,
    require_shares,
)

LatencyModel: TypeAlias = Literal["regions", "uniform"]
REGIONS: Final = (
    "australia",
    "europe",
    "east-asia",
    "west-asia",
    "na-east",
    "na-west",
    "south-africa",
    "south-america",
)
WEIGHTS: Final = (290, 5599, 1059, 161, 2894, 1240, 47, 36)
"""Nodes of each region. This and the matrix: github.com/libp2p/test-plans, ``gossipsub-interop``, which has
them from a crawl of Ethereum's network and from a measurement between cloud regions."""
_LATENCY_MS: Final = (
    # aus  eu  east west na-e na-w s-af s-am
    (2, 165, 110, 180, 150, 110, 220, 190),
    (165, 2, 125, 60, 70, 110, 95, 140),
    (110, 125, 4, 110, 140, 100, 175, 175),
    (180, 60, 110, 5, 110, 150, 110, 145),
    (150, 70, 140, 110, 2, 60, 130, 100),
    (110, 110, 100, 150, 60, 2, 160, 100),
    (220, 95, 175, 110, 130, 160, 7, 195),
    (190, 140, 175, 145, 100, 100, 195, 7),
)  # fmt: skip
_PACKET_BYTES: Final = 1460
_BITS: Final = 8
_RETRANSMISSION_LEAST_S: Final = 0.2
"""RFC 6298 has one second; Linux and others wait 0.2 s at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Parameters of all links. A bandwidth of 0 is one without a bound."""

    latency: LatencyModel = "regions"
    """``regions``: one way between two of eight parts of the world. ``uniform``: drawn for each pair."""
    latency_min_ms: float = 10.0
    """Of ``uniform``; one way."""
    latency_max_ms: float = 150.0
    jitter_share: float = 0.1
    """Each message takes the latency times 1 to 1 + this, drawn evenly."""
    loss_share: float = 0.0
    """Of packets. A lost one is sent again after a round trip, 0.2 s at least."""
    uplink_mbit_per_s: float = 0.0
    downlink_mbit_per_s: float = 0.0
    overhead_bytes: int = 60
    """Of headers and framing, for each message."""
    handshake_round_trips: float = 4.0
    """From dialling to a connection that carries streams: TCP 1, Noise 2, the muxer 1."""
    stream_round_trips: float = 1.0
    """From opening a stream until something is said on it: its protocol is agreed on (multistream-select)."""
    dial_deadline_s: float = 10.0
    """After which a dial that nobody answers has failed."""

    def __post_init__(self) -> None:
        require_not_negative(
            self, "latency_min_ms", "jitter_share", "uplink_mbit_per_s", "downlink_mbit_per_s",
            "overhead_bytes", "handshake_round_trips", "stream_round_trips",
        )  # fmt: skip
        require_positive(self, "dial_deadline_s")
        require_order(self, "latency_min_ms", "latency_max_ms")
        require_shares(self, "loss_share")
        if self.loss_share > 0.5:  # noqa: PLR2004  a link of that kind carries nothing
            msg = f"loss_share is {self.loss_share}: above 0.5 no connection holds"
            raise ValueError(msg)


class Place:
    """Where a node is, and what its line is busy with."""

    __slots__ = ("downlink_free_at", "number", "region", "uplink_free_at")

    def __init__(self, number: int, region: int) -> None:
        self.number, self.region = number, region
        self.uplink_free_at = self.downlink_free_at = 0.0


class LinkModel:
    """What the parameters make of messages. It draws from ``draws("links")`` and ``draws("places")``."""

    def __init__(self, links: Links, draws: Draws) -> None:
        self.links = links
        self.draw = draws("links").random
        """What is drawn for messages."""
        self._places = draws("places")
        self._seed = draws("pairs").getrandbits(64)
        self._jitter, self._loss = links.jitter_share, links.loss_share
        self._up_s_per_byte = _seconds_per_byte(links.uplink_mbit_per_s)
        self._down_s_per_byte = _seconds_per_byte(links.downlink_mbit_per_s)
        self.is_plain = not (self._up_s_per_byte or self._down_s_per_byte or self._loss)
        """Whether a message's size does not matter."""
        self.latency_s: Callable[[Place, Place], float] = (
            self._between_regions if links.latency == "regions" else self._drawn
        )
        """One way between two places, without jitter: always the same, and the same both ways."""

    def place(self, number: int) -> Place:
        """A place for one more node."""
        return Place(number, self._places.choices(range(len(REGIONS)), weights=WEIGHTS)[0])

    def travel_s(self, latency_s: float) -> float:
        """How long one message takes over a latency, with jitter."""
        return latency_s * (1.0 + self._jitter * self.draw()) if self._jitter else latency_s

    def departs(self, sender: Place, size: int, now: float) -> float:
        """When the last byte of a message has left; takes the time on the sender's uplink."""
        cost = self._up_s_per_byte
        if not cost:
            return now
        at = max(now, sender.uplink_free_at) + cost * (size + self.links.overhead_bytes)
        sender.uplink_free_at = at
        return at

    def lands(self, receiver: Place, size: int, now: float) -> float:
        """When a message that reached the receiver's line now has come in; takes the time on its downlink."""
        cost = self._down_s_per_byte
        if not cost:
            return now
        at = max(now, receiver.downlink_free_at) + cost * (size + self.links.overhead_bytes)
        receiver.downlink_free_at = at
        return at

    def retransmission_s(self, size: int, latency_s: float) -> float:
        """What lost packets of one message add to its way."""
        if not self._loss:
            return 0.0
        packets = max(1, math.ceil(size / _PACKET_BYTES))
        wait_s, lost_again = 0.0, 1.0 - (1.0 - self._loss) ** packets
        while self.draw() < lost_again:
            wait_s += max(_RETRANSMISSION_LEAST_S, 2.0 * latency_s)
            lost_again = self._loss
        return wait_s

    def _between_regions(self, a: Place, b: Place) -> float:
        return _LATENCY_S[a.region][b.region]

    def _drawn(self, a: Place, b: Place) -> float:
        low, high = (a.number, b.number) if a.number < b.number else (b.number, a.number)
        drawn = _mixed(self._seed ^ (low << 32 | high)) / 2.0**64
        links = self.links
        return (links.latency_min_ms + drawn * (links.latency_max_ms - links.latency_min_ms)) / 1000.0


_LATENCY_S: Final = tuple(tuple(ms / 1000.0 for ms in row) for row in _LATENCY_MS)


def _seconds_per_byte(mbit_per_s: float) -> float:
    return _BITS / (mbit_per_s * 1e6) if mbit_per_s else 0.0


def _mixed(value: int) -> int:
    """SplitMix64 (Steele, Lea and Flood, 2014): a draw for a pair that need not be kept."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
