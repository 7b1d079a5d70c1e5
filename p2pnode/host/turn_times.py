"""Where the time of a turn goes at a host, in phases; pure, times are seconds of a monotonic clock.

::

    asked ── count ── pay ── queue ── prefill ── first token ── decode ── over

A turn may be made in several runs of the engine, one after another, as its client pays. Of ``queue`` and
``prefill`` the first run counts, for it is what a client waits for; ``decode`` sums up all of them, without
the pauses between.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TurnTimes:
    """Of one turn, from when its prompt was whole. A phase that it never came to is None."""

    asked_at: float
    count_s: float | None = None
    """To count the prompt; with the time to load the model, where it was cold."""
    pay_s: float | None = None
    """From there until the client had paid for the input and the engine was asked."""
    queue_s: float | None = None
    """Until the engine gave it a slot."""
    prefill_s: float | None = None
    """From there to the first token, or vector."""
    first_token_s: float | None = None
    """From the beginning to the first token."""
    decode_s: float = 0.0
    """While tokens were made, after the first one of each run."""
    decoded: int = 0
    """So many tokens were made in that time."""
    _counted_at: float | None = field(default=None, repr=False)
    _ordered_at: float | None = field(default=None, repr=False)
    _started_at: float | None = field(default=None, repr=False)
    _token_at: float | None = field(default=None, repr=False)
    """When the last tokens of the run came."""

    def counted(self, now: float) -> None:
        """Its prompt was counted."""
        self._counted_at, self.count_s = now, now - self.asked_at

    def ordered(self, now: float) -> None:
        """The engine is asked, for the first time or again."""
        self._token_at = None
        if self._ordered_at is None:
            self._ordered_at = now
            self.pay_s = now - (self._counted_at if self._counted_at is not None else self.asked_at)

    def started(self, now: float) -> None:
        """The engine gave it a slot."""
        if self._started_at is None:
            self._started_at = now
            self.queue_s = now - (self._ordered_at if self._ordered_at is not None else self.asked_at)

    def made(self, count: int, now: float) -> None:
        """So many tokens, or vectors, came."""
        if self.first_token_s is None:
            self.first_token_s = now - self.asked_at
            self.prefill_s = now - (self._started_at if self._started_at is not None else now)
        elif self._token_at is not None and count:
            self.decode_s += now - self._token_at
            self.decoded += count
        self._token_at = now

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase that it came to, by name."""
        found = {
            "count": self.count_s,
            "pay": self.pay_s,
            "queue": self.queue_s,
            "prefill": self.prefill_s,
            "decode": self.decode_s if self.decoded else None,
        }
        return {name: seconds for name, seconds in found.items() if seconds is not None}

    @property
    def token_s(self) -> float | None:
        """Seconds for each token after the first, on average; None where there is none."""
        return self.decode_s / self.decoded if self.decoded else None
