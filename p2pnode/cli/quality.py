"""What is known of how well models answer: kept in the data dir, and shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2pnode.cli.output import Output
from p2pnode.words import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2pnode.models.quality import Quality
    from p2pnode.node.datadir import DataDir


def print_quality(output: Output, quality: Quality) -> None:
    """A table of what was right in each task, and with what it was measured."""
    from p2pnode.models.evaluation.task_set import task_set
    from p2pnode.models.quality import share

    known = task_set()
    ours = quality.task_set == known.id

    def row(name: str, result: Any, about: str, guess: str) -> list[str]:
        return [name, f"{result.right} of {result.items}", share(result), guess, about]

    rows = []
    for each in quality.tasks:
        task = known.tasks.get(each.task) if ours else None
        guess = f"{task.guess}%" if task is not None else "?"
        rows.append(row(each.task, each, task.about if task is not None else "", guess))
    rows.append(row("all", quality.overall, "", ""))
    output.table(("task", "right", "share (95% interval)", "guessing", "about"), rows, folds="about")
    engine = " ".join(filter(None, (quality.engine, quality.build, quality.kv_types)))
    what = f"task set {quality.task_set[:8]}, seed {quality.seed}"
    output.result(f"{what}, {engine}, {quality.measured}")


def quality_fields(quality: Quality) -> dict[str, Any]:
    """A record's figures for scripts: they follow from its counts."""

    def fields(result: Any) -> dict[str, Any]:
        low, high = result.interval
        return {"score": round(result.score, 4), "low": round(low, 4), "high": round(high, 4)}

    return {
        "scores": {each.task: fields(each) for each in quality.tasks},
        "overall": {"items": quality.overall.items, **fields(quality.overall)},
    }


def known_quality(
    own: Sequence[Quality], model: Any, listed: Sequence[tuple[str, Quality]] = ()
) -> tuple[Quality, str] | None:
    """What is known of how well a model answers, and who says so: "" where it was measured here.

    ``listed`` has records of lists, with the list's name. What was measured here goes before them.
    """
    from p2pnode.models.evaluation.task_set import task_set
    from p2pnode.models.quality import best_known

    if (found := best_known(own, model, task_set().id)) is not None:
        return found, ""
    said = best_known([each for _, each in listed], model, task_set().id)
    return next(((each, by) for by, each in listed if each is said), None)


def quality_text(found: tuple[Quality, str]) -> str:
    """A known figure for people: what it is, of how many items, and who says so."""
    from p2pnode.models.quality import figure

    quality, by = found
    who = f"says the list {one_line(by)}" if by else "measured here"
    return f"{figure(quality)}, {who} on {quality.measured}"


def known_fields(found: tuple[Quality, str]) -> dict[str, Any]:
    """A known figure for scripts."""
    quality, by = found
    return {**quality.to_mapping(), **quality_fields(quality), "by": by}


def own_qualities(data: DataDir) -> list[Quality]:
    """What was measured on this machine, the newest last."""
    from p2pnode.errors import ConfigError
    from p2pnode.files import read_text_or_none
    from p2pnode.models.quality import qualities

    try:
        return qualities(read_text_or_none(data.quality))
    except ConfigError:
        return []  # it can't be read: a figure less, and nothing else


def keep_quality(data: DataDir, quality: Quality) -> bool:
    """Write a record down, unless there is one of more items. Raises ``ConfigError``."""
    from p2pnode.errors import ConfigError
    from p2pnode.files import read_text_or_none, write_atomic
    from p2pnode.models.quality import with_quality

    try:
        text = read_text_or_none(data.quality)
    except ConfigError:
        text = None  # it can't be read, and is written anew
    made, taken = with_quality(text, quality)
    if taken:
        write_atomic(data.quality, made.encode())
    return taken
