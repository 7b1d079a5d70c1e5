"""How an engine's task waits for the slot of a request: ``slots.py`` decides who gets one."""

from __future__ import annotations

import trio

from p2pnode.models.slots import Assignment, QueuedRequest


async def wait_assigned(place: QueuedRequest) -> Assignment:
    """Wait for a slot. Raises ``EngineError`` where the place in the queue is lost to another origin."""
    if place.assignment is None and place.refusal is None:
        decided = trio.Event()
        place.on_decided = decided.set
        await decided.wait()
    if place.refusal is not None:
        raise place.refusal
    assert place.assignment is not None  # noqa: S101 - decided, and not refused
    return place.assignment
