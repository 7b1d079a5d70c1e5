"""Events and effects: what goes into a machine and what comes out of it, the same for every protocol.

A machine is ``handle(event, now) -> list[Effect]``. ``now`` is seconds on any monotonic clock; ``at``
in ``SetTimer`` is absolute on that clock, and a key set again replaces. Machines know neither the
clock nor the network: a shell (the node with libp2p, or a simulator) feeds and obeys them.

Nobody changes an event or an effect once it is made. They are not frozen all the same: one that is takes four
times as long to make, and a message of gossip makes several. For the same reason those that are made most
often have their ``__init__`` in the source: where this module is compiled, it is, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from p2pnode.ids import PeerId

StreamRef: TypeAlias = int
"""Names one stream to a machine; the shell knows which."""


@dataclass(slots=True, init=False)
class Received:
    """A decoded message of this protocol arrived."""

    peer: PeerId
    stream: StreamRef
    message: Any

    def __init__(self, peer: PeerId, stream: StreamRef, message: Any) -> None:
        self.peer, self.stream, self.message = peer, stream, message


@dataclass(slots=True)
class HalfClosed:
    """The peer has closed its half of the stream: it says nothing more, and may still read.

    A machine that has nothing to say to such a peer ends. ``Closed`` may follow.
    """

    peer: PeerId
    stream: StreamRef


@dataclass(slots=True)
class Closed:
    """The stream is gone, both ways. ``code`` says why, for the log; ``malformed``: by what the peer sent."""

    peer: PeerId
    stream: StreamRef
    code: str = ""
    malformed: bool = False


@dataclass(slots=True, init=False)
class TimerFired:
    """A timer set earlier came due."""

    key: str

    def __init__(self, key: str) -> None:
        self.key = key


@dataclass(slots=True, init=False)
class Command:
    """The role above wants something, or reports what its I/O gave."""

    value: Any

    def __init__(self, value: Any) -> None:
        self.value = value


Event: TypeAlias = Received | HalfClosed | Closed | TimerFired | Command


@dataclass(slots=True, init=False)
class Send:
    """Write this message. The shell writes all ``Send`` of one ``handle`` at once."""

    peer: PeerId
    stream: StreamRef
    message: Any

    def __init__(self, peer: PeerId, stream: StreamRef, message: Any) -> None:
        self.peer, self.stream, self.message = peer, stream, message


@dataclass(slots=True, init=False)
class SetTimer:
    """Fire ``key`` at ``at``; replaces an earlier setting of the same key."""

    key: str
    at: float

    def __init__(self, key: str, at: float) -> None:
        self.key, self.at = key, at


@dataclass(slots=True)
class CancelTimer:
    """Forget ``key``; no error when it isn't set."""

    key: str


@dataclass(slots=True, init=False)
class Emit:
    """Tell the role above; never the network."""

    value: Any

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass(slots=True)
class Fault:
    """What a machine emits when a peer did wrong: ``Emit(Fault(...))``. The shell charges the peer with it.

    ``name`` says what, for the log and the counts: a few words from our code, never the peer's. Weight 1 is
    what an honest peer may do now and then, weight 10 what no honest implementation sends.
    """

    peer: PeerId
    name: str
    weight: float


Effect: TypeAlias = Send | SetTimer | CancelTimer | Emit


class Machine(Protocol):
    """Anything a shell can drive."""

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take one event, return what to do about it. Never blocks, never raises for a peer's fault."""
        ...
