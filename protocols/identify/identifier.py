"""``Identifier``: whom to ask who it is, which pushes to read, and what each connected peer said of itself.

It knows the peers that are connected and forgets those that leave. What it keeps of a peer is bounded by
``messages.py``, how often a peer may change it by a rate, so a flood of pushes costs no more than the streams
it comes on. The shell opens streams, reads frames, and has deadlines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from p2pnode.bounded import TokenBucket
from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    Fault,
    HalfClosed,
    Received,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.identify.messages import PUSH, Statement, decode

ASKS_MAX: Final = 3
"""Questions to a peer that doesn't answer."""
RETRY_S: Final = 5.0
"""Before the second question, and twice that before the third."""
PUSHES_BURST: Final = 8
PUSH_EVERY_S: Final = 10.0
"""A peer that starts serving a protocol after another pushes a few times at once, and then hardly ever."""
CHANGES_EVERY_S: Final = 5.0
"""Our own changes are pushed at most so often."""
FAULT_WEIGHTS: Final = {"identify push rate": 1.0, "identify malformed": 10.0}


@dataclass(frozen=True, slots=True)
class Connected:
    """Command: the first connection with a peer is there."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Command: the last connection with a peer is gone."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Command: the peer gave no answer to ``Ask``, in time or at all."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PushCame:
    """Command: the peer opened a stream to push; nothing of it was read."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Changed:
    """Command: our own addresses or protocols have changed."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Emitted: ask this peer who it is, and report the message as ``Received``, or ``Unanswered``."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class ReadPush:
    """Emitted: read one message from the stream of ``PushCame``, and report it as ``Received``."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class RefusePush:
    """Emitted: reset that stream unread."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Push:
    """Emitted: send this peer our message."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Identified:
    """Emitted: this peer has said what it speaks, for the first time or anew."""

    peer: PeerId


IdentifyEmission: TypeAlias = Ask | ReadPush | RefusePush | Push | Identified | Fault


class _Peer:
    __slots__ = ("asked", "pushes", "statement")

    def __init__(self) -> None:
        self.asked = 1
        self.statement: Statement | None = None
        self.pushes = TokenBucket(1 / PUSH_EVERY_S, PUSHES_BURST)


class Identifier:
    """One node's side; see the module."""

    def __init__(self) -> None:
        self._peers: dict[PeerId, _Peer] = {}
        self._effects: list[Effect] = []
        self._pushed_at = -CHANGES_EVERY_S
        self._push_due = False

    def statement_of(self, peer: PeerId) -> Statement | None:
        """What a connected peer said last; None while it has said nothing."""
        known = self._peers.get(peer)
        return known.statement if known is not None else None

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """A message of a peer is the bytes of one frame, whether it was asked for or pushed."""
        match event:
            case Received(peer=peer, message=message):
                self._received(peer, message)
            case TimerFired(key="push"):
                self._push(now)
            case TimerFired(key=key):
                self._ask_again(PeerId(key))
            case Command(value=Connected(peer=peer)):
                if peer not in self._peers:
                    self._peers[peer] = _Peer()
                    self._emit(Ask(peer))
            case Command(value=Disconnected(peer=peer)):
                if self._peers.pop(peer, None) is not None:
                    self._effects.append(CancelTimer(peer))
            case Command(value=Unanswered(peer=peer)):
                self._unanswered(peer, now)
            case Command(value=PushCame(peer=peer)):
                self._push_came(peer, now)
            case Command(value=Changed()):
                self._changed(now)
            case Command() | Closed() | HalfClosed():
                pass  # a stream that ends early is reported as unanswered
            case _:
                assert_never(event)
        effects, self._effects = self._effects, []
        return effects

    def _received(self, peer: PeerId, data: bytes) -> None:
        known = self._peers.get(peer)
        if known is None:
            return
        try:
            known.statement = decode(data)
        except ProtocolError:
            self._fault(peer, "identify malformed")
        else:
            self._emit(Identified(peer))

    def _unanswered(self, peer: PeerId, now: float) -> None:
        known = self._peers.get(peer)
        if known is not None and known.statement is None and known.asked < ASKS_MAX:
            self._effects.append(SetTimer(peer, now + RETRY_S * known.asked))

    def _ask_again(self, peer: PeerId) -> None:
        known = self._peers.get(peer)
        if known is not None and known.statement is None and known.asked < ASKS_MAX:
            known.asked += 1
            self._emit(Ask(peer))

    def _push_came(self, peer: PeerId, now: float) -> None:
        known = self._peers.get(peer)
        if known is None or not known.pushes.take(now):
            self._emit(RefusePush(peer))
            if known is not None:
                self._fault(peer, "identify push rate")
        else:
            self._emit(ReadPush(peer))

    def _changed(self, now: float) -> None:
        if now >= self._pushed_at + CHANGES_EVERY_S:
            self._push(now)
        elif not self._push_due:
            self._push_due = True
            self._effects.append(SetTimer("push", self._pushed_at + CHANGES_EVERY_S))

    def _push(self, now: float) -> None:
        self._pushed_at, self._push_due = now, False
        for peer, known in self._peers.items():
            if known.statement is not None and PUSH in known.statement.protocols:
                self._emit(Push(peer))

    def _fault(self, peer: PeerId, name: str) -> None:
        self._emit(Fault(peer, name, FAULT_WEIGHTS[name]))

    def _emit(self, value: IdentifyEmission) -> None:
        self._effects.append(Emit(value))
