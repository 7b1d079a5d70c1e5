"""``Quality``: how many items of a task set a model answered rightly, with which engine, and when.

A curator puts such records in a list, and this machine keeps its own in ``quality.json`` in the data dir.
Only counts are written down; a score and its interval are made of them, so that they can't contradict one
another. A record may come from a stranger: it is checked when it is made.

Two figures can be compared where ``task_set`` and ``seed`` are equal and so are the counts of items: then
both models were asked the same. Pure.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from typing import Any, Final

from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId
from p2pnode.models.manifest import model_id_text, parse_model_id
from p2pnode.words import count_of

TASKS_MAX: Final = 32
ITEMS_MAX: Final = 1_000_000
SEED_MAX: Final = 2**32 - 1
_ENTRIES_MAX: Final = 256
_VERSION: Final = 1
_Z: Final = 1.959963984540054
"""Of the normal distribution 95% lies within so many standard deviations."""
_TASK: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WORDS: Final = {"engine": 24, "build": 64, "kv_types": 32}
"""The longest texts that say how it was computed, in characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """``right`` of ``items`` were answered rightly."""

    task: str
    right: int
    items: int

    def __post_init__(self) -> None:
        named = isinstance(self.task, str) and _TASK.fullmatch(self.task)
        _require(named, "a task's name", "a word of a-z, 0-9 and dashes, at most 32 characters long")
        _require(_is_count(self.items, ITEMS_MAX) and self.items, "items", f"from 1 to {ITEMS_MAX}")
        _require(_is_count(self.right, self.items), "right", "a count of at most all items")

    @property
    def score(self) -> float:
        """The share that was right, from 0 to 1."""
        return self.right / self.items

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the score: what the share would be over endlessly many such items."""
        return wilson(self.right, self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A measurement. ``task_set`` is the hash of the items (``models/evaluation``), in hex.

    Of each task the first items in the order of ``seed`` were asked. ``engine``, ``build`` and ``kv_types``
    are those of ``EngineInfo``; the last two may be empty. ``measured`` is the day, as 2026-11-30.
    """

    model: ModelId
    task_set: str
    seed: int
    tasks: tuple[TaskResult, ...]
    engine: str
    build: str = ""
    kv_types: str = ""
    measured: str

    def __post_init__(self) -> None:
        named = isinstance(self.task_set, str) and _SHA256.fullmatch(self.task_set)
        _require(named, "task_set", "64 lower-case hex digits")
        _require(_is_count(self.seed, SEED_MAX), "seed", f"from 0 to {SEED_MAX}")
        _require(1 <= len(self.tasks) <= TASKS_MAX, "tasks", f"1 to {TASKS_MAX} of them")
        names = [each.task for each in self.tasks]
        _require(names == sorted(set(names)), "tasks", "sorted by name, each once")
        for name, longest in _WORDS.items():
            text = getattr(self, name)
            fits = isinstance(text, str) and len(text) <= longest and text.isascii() and text.isprintable()
            _require(fits or text == "", name, f"at most {longest} printable characters of ASCII")
        _require(self.engine, "engine", "given")
        _require(_is_day(self.measured), "measured", "a day, as 2026-11-30")

    @property
    def overall(self) -> TaskResult:
        """All items together, each of equal weight."""
        right, items = sum(each.right for each in self.tasks), sum(each.items for each in self.tasks)
        return TaskResult(task="all", right=right, items=items)

    def to_mapping(self) -> dict[str, Any]:
        """The record for JSON: ``tasks`` maps each name to its right answers and its items."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tasks = {each.task: [each.right, each.items] for each in self.tasks}
        return {**values, "model": model_id_text(self.model), "tasks": tasks}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Quality:
        """The inverse of :meth:`to_mapping`. Raises ``ConfigError`` that names what is wrong."""
        try:
            tasks = sorted(values["tasks"].items())[: TASKS_MAX + 1]
            read = {
                "model": parse_model_id(str(values["model"])),
                "tasks": tuple(
                    TaskResult(task=name, right=right, items=items) for name, (right, items) in tasks
                ),
            }
            return cls(**{**values, **read})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"quality record: {error}; `p2pnode models evaluate` writes one") from error


def wilson(right: int, items: int) -> tuple[float, float]:
    """The 95% interval of a share of which ``right`` of ``items`` were seen.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    share, weight = right / items, _Z * _Z / items
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / items + weight / (4 * items))
    # At the ends the two terms are equal, and what rounding leaves of them is no share.
    return (max(0.0, middle - half) if right else 0.0, min(1.0, middle + half) if right < items else 1.0)


def share(result: TaskResult) -> str:
    """The score for people, with its interval: ``41% (35 to 48%)``."""
    low, high = result.interval
    return f"{result.score:.0%} ({100 * low:.0f} to {high:.0%})"


def figure(quality: Quality) -> str:
    """What a record says on the whole: ``41% (35 to 48%) of 210 items``."""
    return f"{share(quality.overall)} of {count_of(quality.overall.items, 'item')}"


def qualities(text: str | None) -> list[Quality]:
    """What the text of a file holds, the newest last; nothing of what makes no sense."""
    found = []
    for each in _entries(text):
        try:
            found.append(Quality.from_mapping(each))
        except ConfigError:
            continue
    return found


def with_quality(text: str | None, new: Quality) -> tuple[str, bool]:
    """The text of the file with one more record, the oldest dropped, and whether it was taken.

    There is one for each model, task set and engine: a newer one replaces it, unless it has fewer items.
    """
    known = qualities(text)
    old = [each for each in known if _same(each, new)]
    if any(each.overall.items > new.overall.items for each in old):
        return text or "", False
    kept = [each for each in known if not _same(each, new)][-(_ENTRIES_MAX - 1) :]
    records = [each.to_mapping() for each in (*kept, new)]
    return json.dumps({"version": _VERSION, "qualities": records}, indent=1), True


def best_known(found: Iterable[Quality], model: ModelId, task_set: str) -> Quality | None:
    """The record of this model that says most: of this task set first, then of the most items, then the
    newest."""
    of_it = [each for each in found if each.model == model]
    return max(
        of_it,
        key=lambda each: (each.task_set == task_set, each.overall.items, each.measured),
        default=None,
    )


def _same(one: Quality, other: Quality) -> bool:
    return (one.model, one.task_set, one.engine, one.build, one.kv_types) == (
        other.model, other.task_set, other.engine, other.build, other.kv_types,
    )  # fmt: skip


def _entries(text: str | None) -> list[Mapping[str, Any]]:
    try:
        told = json.loads(text or "{}")
        entries = told.get("qualities") if told.get("version") == _VERSION else None
    except (ValueError, AttributeError, RecursionError):
        return []
    return [each for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_day(text: object) -> bool:
    try:
        return isinstance(text, str) and date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _require(ok: object, field: str, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"quality record: {field} must be {wanted}")
