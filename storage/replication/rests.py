"""Who failed lately and is left in peace for a while, each time longer. Knows names only."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from p2pnode.limits import Limits


@dataclass(slots=True)
class _Rest:
    until: float = 0.0
    span_s: float = 0.0


class Rests:
    """From ``replica_rest_s`` to ``replica_rest_max_s``, doubled with each failure in a row."""

    def __init__(self, limits: Limits) -> None:
        self._least_s, self._most_s = limits.replica_rest_s, limits.replica_rest_max_s
        self._rests: dict[str, _Rest] = {}

    def failed(self, name: str) -> None:
        """It rests from now on."""
        rest = self._rests.setdefault(name, _Rest())
        rest.span_s = min(max(self._least_s, rest.span_s * 2), self._most_s)
        rest.until = trio.current_time() + rest.span_s

    def well(self, name: str) -> None:
        """It did what was asked."""
        self._rests.pop(name, None)

    def rests(self, name: str) -> bool:
        """Does it now?"""
        rest = self._rests.get(name)
        return rest is not None and rest.until > trio.current_time()
