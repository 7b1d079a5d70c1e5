"""What must hold in every run, whatever its scenario: an ``InvariantError`` where it does not.

The invariants watch from outside: they count what arrives, what is signed and what the chain does, and ask no
machine whether it did right. Whoever runs a scenario knows the command that replays it, and says it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from p2pnode.errors import LocalError


class InvariantError(LocalError):
    """An invariant does not hold: a defect of a machine, of a policy or a model."""

    def __init__(self, what: str, at_s: float) -> None:
        super().__init__(f"at {at_s:.6f} s: {what}")
        self.what, self.at_s = what, at_s


class Watch:
    """The invariants of one run ask it whether something holds; ``now`` is the time in the run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.checks = 0
        """How many times something was found to hold."""

    def require(self, holds: bool, what: str | Callable[[], str]) -> None:
        """Raise ``InvariantError`` unless the condition holds; words that are asked often are made then."""
        if not holds:
            self.fail(what if isinstance(what, str) else what())
        self.checks += 1

    def fail(self, what: str) -> NoReturn:
        """Raise it."""
        raise InvariantError(what, self.now)
