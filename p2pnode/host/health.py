"""Which models are sick: what their last turns and probes say. Pure; times are seconds of a monotonic clock.

A model that failed twice in a row, a turn or a probe, is sick: it is not offered until a probe succeeds. One
of which a turn ended well lately is not probed, so that a busy host asks itself nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from p2pnode.ids import ModelId

PROBE_EVERY_S: Final = 20.0
PROBE_DEADLINE_S: Final = 10.0
FAILURES_MAX: Final = 2
ENGINE_FAILED: Final = frozenset({"internal", "stalled"})
"""How a turn ends that its engine failed."""
ENDED_WELL: Final = frozenset({"stop", "length", "tool_calls"})


@dataclass(slots=True)
class _Known:
    failures: int = 0
    """In a row, up to now."""
    looked_at: float | None = None
    """When a turn or a probe last told something."""
    reason: str = ""


@dataclass(slots=True)
class Health:
    """Of one host's models."""

    _known: dict[ModelId, _Known] = field(default_factory=dict)

    def note_turn(self, model: ModelId, reason: str, now: float) -> bool:
        """A client's turn ended so; True where that makes the model sick, or well again."""
        if reason in ENDED_WELL:
            return self.succeeded(model, now)
        return self.failed(model, f"a turn ended as {reason}", now) if reason in ENGINE_FAILED else False

    def succeeded(self, model: ModelId, now: float) -> bool:
        """A turn or a probe brought an answer; True where the model was sick."""
        known, was_sick = self._of(model), self.is_sick(model)
        known.failures, known.looked_at, known.reason = 0, now, ""
        return was_sick

    def failed(self, model: ModelId, reason: str, now: float) -> bool:
        """A turn or a probe failed; True where that makes the model sick."""
        known, was_sick = self._of(model), self.is_sick(model)
        known.failures, known.looked_at, known.reason = known.failures + 1, now, reason
        return self.is_sick(model) and not was_sick

    def unloaded(self, model: ModelId) -> bool:
        """Its engine is gone, and what was known of it; True where the model was sick."""
        was_sick = self.is_sick(model)
        self.forget(model)
        return was_sick

    def is_sick(self, model: ModelId) -> bool:
        """Whether it is not to be offered."""
        known = self._known.get(model)
        return known is not None and known.failures >= FAILURES_MAX

    def reason(self, model: ModelId) -> str:
        """What failed last; "" where nothing did."""
        known = self._known.get(model)
        return known.reason if known is not None else ""

    def wait_s(self, model: ModelId, now: float) -> float:
        """Seconds until it is to be probed: none after a first failure, which may be chance."""
        known = self._known.get(model)
        if known is None or known.looked_at is None:
            return 0.0
        if known.failures and known.failures < FAILURES_MAX:
            return 0.0
        return max(0.0, known.looked_at + PROBE_EVERY_S - now)

    def forget(self, model: ModelId) -> None:
        """Nothing is known of it any more."""
        self._known.pop(model, None)

    def _of(self, model: ModelId) -> _Known:
        return self._known.setdefault(model, _Known())
