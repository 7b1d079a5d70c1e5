"""What is around the hosts and clients of a simulated market alike: their world, their chain, their adverts.

What only some of them need of their market, they say in their own modules.
"""

from __future__ import annotations

from typing import Any, Protocol

from p2pnode.limits import Limits
from p2pnode.simulations.keys import Keys
from p2pnode.simulations.market.adverts import NodeAdverts
from p2pnode.simulations.market.ledger import SimulatedChain
from p2pnode.simulations.world import Link, Node, Shell, World


class Surroundings(Protocol):
    """What everybody in a market needs of it."""

    world: World
    limits: Limits
    keys: Keys
    chain: SimulatedChain

    def adverts_of(self, node: Node, *, gossips: bool) -> NodeAdverts:
        """Adverts at a node that starts."""
        ...

    def note_shell(self, link: Link, shell: Shell) -> None:
        """A stream goes over this connection."""
        ...

    def size_of(self, message: Any) -> int:
        """About how many bytes a message takes."""
        ...
