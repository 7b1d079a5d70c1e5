"""Which threads and batches are fast on this machine: a small grid, its timings, and the choice. Pure.

A timing is that of a typical question: a prompt of ``PROMPT_TOKENS`` read, and ``ANSWER_TOKENS`` written. Of
all within ``SLACK`` of the fastest, the one with the fewest threads is taken, for other programs run here,
too, and then the smallest batch, within which a cancel takes effect.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

PROMPT_TOKENS: Final = 128
ANSWER_TOKENS: Final = 32
SLACK: Final = 0.05
BATCHES: Final = (32, 63, 16)
"""None above 63: from 64 rows on the numbers depend on what other slots do. The likeliest first."""
_FEW_CORES: Final = 2
_VERSION: Final = 1
_ENTRIES_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What a question took with these settings, in seconds."""

    threads: int
    batch: int
    prefill_s: float
    decode_s: float

    @property
    def total_s(self) -> float:
        """Both."""
        return self.prefill_s + self.decode_s

    @property
    def tokens_per_s(self) -> float:
        """How fast an answer was written."""
        return ANSWER_TOKENS / self.decode_s


def threads_default(cores: int, physical: int | None = None) -> int:
    """The threads on a machine of which this process may use ``cores``; ``physical``: those that it has.

    Two threads on one physical core are no faster than one. A core stays free for the node, whose own work
    was measured as 1.1 ms for a token where the engine's was 19 ms, and for what else runs; but on two cores
    that would be half of the speed.
    """
    found = min(cores, physical or cores)
    return found if found <= _FEW_CORES else found - 1


def grid(cores: int, physical: int | None = None) -> list[tuple[int, int]]:
    """The (threads, batch) to be tried on so many cores, the most promising first."""
    first = threads_default(cores, physical)
    powers = (1 << power for power in range(1, cores.bit_length()))
    counts = {1, first, max(1, cores - 1), cores, *(count for count in powers if count < cores)}
    threads = sorted(counts, key=lambda count: (abs(count - first), count))
    return [(count, batch) for batch in BATCHES for count in threads]


def chosen(timings: Iterable[Timing]) -> Timing:
    """The settings to run with. Raises ``ValueError`` for no timing."""
    tried = list(timings)
    best = min(each.total_s for each in tried)
    good = [each for each in tried if each.total_s <= best * (1 + SLACK)]
    return min(good, key=lambda each: (each.threads, each.batch))


def remembered(text: str | None, key: str) -> Timing | None:
    """The choice under ``key`` in the text of a file; None where there is none, or none that makes sense."""
    try:
        found: Mapping[str, Any] = _entries(text)[key]
        timing = Timing(**found)
        sane = 1 <= timing.threads <= 512 and 1 <= timing.batch <= max(BATCHES)  # noqa: PLR2004
    except (KeyError, TypeError):
        return None
    return timing if sane else None


def with_choice(text: str | None, key: str, choice: Timing) -> str:
    """The text of the file with a choice, the newest last and the oldest dropped."""
    entries = {name: value for name, value in _entries(text).items() if name != key}
    kept = list(entries.items())[-(_ENTRIES_MAX - 1) :]
    return json.dumps({"version": _VERSION, "choices": dict([*kept, (key, asdict(choice))])}, indent=1)


def _entries(text: str | None) -> dict[str, Any]:
    try:
        told = json.loads(text or "{}")
        choices = told.get("choices") if told.get("version") == _VERSION else None
    except (ValueError, AttributeError):
        return {}
    return choices if isinstance(choices, dict) else {}


def table(timings: Sequence[Timing]) -> list[str]:
    """The timings as lines for people, the fastest first."""
    taken, lines = chosen(timings), list[str]()
    for each in sorted(timings, key=lambda each: each.total_s):
        reads, writes = PROMPT_TOKENS / each.prefill_s, each.tokens_per_s
        mark = "*" if each == taken else " "
        lines.append(
            f"{mark} {each.threads} threads, batch {each.batch:2}: {reads:.0f} tokens/s read, "
            f"{writes:.0f} tokens/s written"
        )
    return lines
