"""What the role and the machine of GossipSub say to one another. See ``SPEC.md``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pnode.ids import PeerId
from p2pnode.protocols.events import Fault


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a topic's validator makes of a message.

    ``reject`` is for what every node judges alike from the bytes alone: whoever forwards that is charged.
    ``ignore`` is for all that hangs on this node's clock, book or bounds.

    ``key`` names what an accepted message says, whatever its id: the same key is delivered and forwarded
    once within ``Parameters.duplicate_s``.
    """

    kind: Literal["accept", "reject", "ignore"]
    key: bytes | None = None


ACCEPT, REJECT, IGNORE = Verdict("accept"), Verdict("reject"), Verdict("ignore")
Validator: TypeAlias = Callable[[PeerId, bytes], Verdict]
"""``(author, data)``, of a message whose author's signature holds. It must not raise or block."""


@dataclass(frozen=True, slots=True)
class PeerUp:
    """Command: this peer is there. Given again where messages can be sent to it from now on.

    ``takes``: messages can be sent to it. ``idontwant``: it speaks 1.2. ``dialled``: we opened the
    connection. ``group`` names where the peer comes from, as far as that can't be had for free; None where
    that says nothing (see ``p2pnode/shares.py``).
    """

    peer: PeerId
    idontwant: bool = True
    dialled: bool = False
    group: str | None = None
    takes: bool = True


@dataclass(frozen=True, slots=True)
class PeerPaused:
    """Command: the peer takes nothing at present. What it told us of topics is kept."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerDown:
    """Command: the peer is gone."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Join:
    """Command: take part in a topic. Of a topic that was joined, only the validator is replaced."""

    topic: str
    validator: Validator


@dataclass(frozen=True, slots=True)
class Leave:
    """Command: leave a topic."""

    topic: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Command: sign and send, whether the topic was joined or not. A joined topic's validator comes first."""

    topic: str
    data: bytes


GossipCommand: TypeAlias = PeerUp | PeerPaused | PeerDown | Join | Leave | Publish


@dataclass(slots=True)
class Delivered:
    """Emitted: an accepted message of a joined topic, our own included."""

    topic: str
    author: PeerId
    data: bytes


FaultName: TypeAlias = Literal["malformed", "refused", "flood", "graft", "promise", "replay"]
FAULT_WEIGHTS: Final[dict[FaultName, float]] = {
    "malformed": 10.0, "refused": 10.0, "flood": 10.0, "graft": 2.0, "promise": 1.0, "replay": 2.0,
}  # fmt: skip
"""What each counts for the role: 1 is what an honest peer may do now and then, 10 what none does."""
GossipEmission: TypeAlias = Delivered | Fault
