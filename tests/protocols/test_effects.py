"""Effects come out in order, and a timer fires only while it is armed."""

from __future__ import annotations

from p2pnode.ids import PeerId
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.events import CancelTimer, Emit, Send, SetTimer


def test_effects_come_in_order_and_once() -> None:
    effects = Effects(PeerId("peer"), 4)
    effects.send("message")
    effects.set_timer("key", 3.0)
    effects.emit("value")
    assert effects.take() == [Send(PeerId("peer"), 4, "message"), SetTimer("key", 3.0), Emit("value")]
    assert effects.take() == []


def test_a_timer_fires_only_while_it_is_armed() -> None:
    effects = Effects(PeerId("peer"), 4)
    effects.set_timer("key", 3.0)
    assert effects.fired("key")
    assert not effects.fired("key")
    effects.set_timer("key", 4.0)
    effects.cancel_timer("key", "other")
    assert effects.take()[-1] == CancelTimer("key")
    assert not effects.fired("key")
