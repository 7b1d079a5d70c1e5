"""Deadlines that also hold while everything around is being cancelled: for closing things."""

from __future__ import annotations

import trio


def move_on_after_shielded(seconds: float) -> trio.CancelScope:
    """A shielded cancel scope that gives up after ``seconds``."""
    scope = trio.CancelScope()
    scope.shield = True
    scope.deadline = trio.current_time() + seconds
    return scope
