"""What the gateway was asked, as far as it is remembered: the last requests, and sums since it started. Pure.

It has no prompt and no answer, for a record of a request has none.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any, Final

from p2pnode.bounded import BoundedMap
from p2pnode.gateway.app import RequestRecord
from p2pnode.percentiles import spread

_KEPT: Final = 500
_SHOWN: Final = 60
_NAMES_MAX: Final = 64
_ASKING: Final = frozenset({"chat", "completions", "embeddings", "responses", "messages", "dashboard"})
"""Faces whose requests a host answers."""


@dataclass(slots=True)
class Sums:
    """Of requests; cost in token units."""

    requests: int = 0
    failed: int = 0
    tokens_in: int = 0
    reused: int = 0
    tokens_out: int = 0
    cost: int = 0

    def add(self, record: RequestRecord) -> None:
        """One more."""
        self.requests += 1
        self.failed += record.outcome not in ("ok", "left")
        self.tokens_in += record.tokens_in
        self.reused += record.reused
        self.tokens_out += record.tokens_out
        self.cost += record.cost


class Traffic:
    """``note`` each request at its end, with the time in epoch seconds."""

    def __init__(self) -> None:
        self._last: deque[tuple[float, RequestRecord]] = deque(maxlen=_KEPT)
        self._all = Sums()
        self._keys: BoundedMap[str, Sums] = BoundedMap(_NAMES_MAX)
        self._models: BoundedMap[str, Sums] = BoundedMap(_NAMES_MAX)

    def note(self, record: RequestRecord, at: float) -> None:
        """A request ended."""
        if record.face not in _ASKING:
            return
        self._last.append((at, record))
        self._all.add(record)
        for sums, name in ((self._keys, record.key_id or "no key"), (self._models, record.model or "none")):
            sums.use(name, Sums).add(record)

    def fields(self) -> dict[str, Any]:
        """``last``: the newest first; percentiles are over those that are remembered."""
        answered = [each for _, each in self._last if each.ttft_s is not None]
        return {
            "all": asdict(self._all),
            "keys": _rows("key", self._keys),
            "models": _rows("model", self._models),
            "outcomes": dict(Counter(each.outcome for _, each in self._last)),
            "first_token_s": spread(each.ttft_s for each in answered if each.ttft_s is not None),
            "tokens_per_s": spread(speed for each in answered if (speed := _speed(each))),
            "last": [{"at": at, **asdict(record)} for at, record in list(self._last)[: -_SHOWN - 1 : -1]],
        }


def _rows(kind: str, sums: BoundedMap[str, Sums]) -> list[dict[str, Any]]:
    return [{kind: name, **asdict(each)} for name in sums if (each := sums.get(name)) is not None]


def _speed(record: RequestRecord) -> float:
    """Tokens a second after the first one; 0 where that can't be said."""
    took_s = record.total_s - (record.ttft_s or 0.0)
    return (record.tokens_out - 1) / took_s if took_s > 0 and record.tokens_out > 1 else 0.0
