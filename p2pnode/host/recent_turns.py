"""How the last turns of a host went: how they ended, how long they waited, how fast they were. Pure."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

from p2pnode.host.turn_times import TurnTimes
from p2pnode.percentiles import spread

_KEPT: Final = 500


class RecentTurns:
    """``note`` each turn at its end."""

    def __init__(self) -> None:
        self._last: deque[tuple[str, TurnTimes]] = deque(maxlen=_KEPT)

    def note(self, reason: str, times: TurnTimes) -> None:
        """A turn is over; ``reason``: how it ended, as its client was told."""
        self._last.append((reason, times))

    def fields(self) -> dict[str, Any]:
        """Of the last 500: ``outcomes`` by reason; percentiles of the seconds in the engine's queue and to
        the first token, and of tokens a second after it, None where no turn came to that."""
        every = [times for _, times in self._last]
        return {
            "outcomes": dict(Counter(reason for reason, _ in self._last)),
            "queue_s": spread(each.queue_s for each in every if each.queue_s is not None),
            "first_token_s": spread(each.first_token_s for each in every if each.first_token_s is not None),
            "tokens_per_s": spread(1 / each.token_s for each in every if each.token_s),
        }
