"""NATs: who can be dialled, and which pairs get through by punching holes. ``Nat`` are the parameters.

A class says how a node's router maps its ports (one public port for all destinations, or one for each) and
whom it lets in (anybody, addresses that were sent to, or only their ports). Whether two of them can punch a
hole follows from that; see ``can_punch``. Measured on real routers of the Linux kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from p2pnode.simulations.draws import Draws
from p2pnode.simulations.links import LinkModel
from p2pnode.simulations.parameters import require_shares, require_total

NatClass: TypeAlias = Literal["public", "full_cone", "address_restricted", "port_restricted", "symmetric"]
ATTEMPTS: Final = 3
"""Of one upgrade, as DCUtR's specification has it."""
_SYNC_BYTES: Final = 200
CLASSES: Final[tuple[NatClass, ...]] = get_args(NatClass)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nat:
    """Shares of all nodes by class; they add up to 1. The defaults are a network that is open."""

    public_share: float = 1.0
    full_cone_share: float = 0.0
    address_restricted_share: float = 0.0
    port_restricted_share: float = 0.0
    symmetric_share: float = 0.0
    port_mapping_share: float = 0.0
    """Of the nodes behind a router, those whose router maps a port when it is asked (UPnP, NAT-PMP,
    PCP): they can be dialled like public ones."""

    reset_share: float = 0.22
    """Of the routers, those that answer a SYN that nobody expects with a reset. Ford, Srisuresh and Kegel
    ("Peer-to-peer communication across NATs", 2005) found that 82% of routers map ports alike for all
    destinations, and that 64% let TCP punch holes: the others of the 82% reset it."""

    def __post_init__(self) -> None:
        names = tuple(f"{each}_share" for each in CLASSES)
        require_shares(self, *names, "port_mapping_share", "reset_share")
        require_total(self, 1.0, *names)


class NatModel:
    """Draws each node's class from ``draws("nat")``."""

    def __init__(self, nat: Nat, draws: Draws) -> None:
        self._nat = nat
        self._draw = draws("nat")
        self._punches = draws("punches").random
        self._weights = [getattr(nat, f"{each}_share") for each in CLASSES]

    def drawn(self) -> NatClass:
        """The class of one more node."""
        drawn = self._draw.choices(CLASSES, weights=self._weights)[0]
        mapped = self._draw.random() < self._nat.port_mapping_share
        return "public" if mapped else drawn

    def punch(
        self, a: NatClass, b: NatClass, direct_s: float, relayed_s: float, links: LinkModel
    ) -> int | None:
        """Which of three attempts to punch a hole gets through; None where none does (libp2p's DCUtR).

        ``direct_s`` and ``relayed_s`` are the one-way latencies between the two, and through their relay. One
        side measures a round trip through the relay, says so, waits for half of it, and dials; the other
        dials when it hears. A SYN that comes before the other side has dialled finds no hole: a router that
        is silent lets the next one in, one that resets it ends the attempt.
        """
        if not can_punch(a, b):
            return None
        resets = [self._punches() < self._nat.reset_share for _ in range(2)]
        for attempt in range(1, ATTEMPTS + 1):
            there, back, heard = (_over_relay(relayed_s, links) for _ in range(3))
            late_s = heard - (there + back) / 2  # the listener dials so much later than the one that waits
            late = 0 if late_s < 0 else 1
            if abs(late_s) <= links.travel_s(direct_s) or not resets[late]:
                return attempt
        return None


def _over_relay(relayed_s: float, links: LinkModel) -> float:
    return links.travel_s(relayed_s) + links.retransmission_s(_SYNC_BYTES, relayed_s)


def is_dialable(nat: NatClass) -> bool:
    """Whether strangers reach it by a dial alone: a full cone lets in everybody, but at a port that it must
    tell them first."""
    return nat == "public"


def can_punch(a: NatClass, b: NatClass) -> bool:
    """Whether two nodes that dial one another at once get through.

    Each must hit a port that the other's router has open for it. A symmetric router opens another port than
    the one that was told, so the other side must let in any port of its address; two of them never meet.
    """
    if "public" in {a, b}:
        return True
    symmetric = [each == "symmetric" for each in (a, b)]
    if all(symmetric):
        return False
    if any(symmetric):
        other = b if a == "symmetric" else a
        return other != "port_restricted"
    return True
