"""Which models of a catalogue a search means, and in which order they are shown. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2pnode.models.catalogue_entry import CatalogueEntry
from p2pnode.models.licences import shown_licence


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is looked for. Each word must stand in what is said of a model, whatever the case.

    ``size_max`` is in bytes. Of ``licences`` and ``architectures`` one must be the model's; ``task`` is a
    word that its entry has for it, or a task of which a score was measured.
    """

    words: tuple[str, ...] = ()
    size_max: int | None = None
    licences: frozenset[str] = frozenset()
    architectures: frozenset[str] = frozenset()
    task: str = ""


def found(entries: Iterable[CatalogueEntry], search: Search) -> list[CatalogueEntry]:
    """The entries that are meant: those with the first word in their name, then the best, then the smallest.

    The best are those with the highest lower end of a score's interval, of the task that is looked for or of
    all tasks: a high score of few items does not go before one of many.
    """
    meant = [entry for entry in entries if _is_meant(entry, search)]
    return sorted(meant, key=lambda entry: _rank(entry, search))


def score_of(entry: CatalogueEntry, task: str = "") -> float | None:
    """The lower end of the best 95% interval that was measured of a model, of one task or of all; or None."""
    lows = []
    for each in entry.quality:
        results = [each.overall] if not task else [result for result in each.tasks if result.task == task]
        lows += [result.interval[0] for result in results]
    return max(lows, default=None)


def _is_meant(entry: CatalogueEntry, search: Search) -> bool:
    manifest = entry.manifest
    if manifest is None:
        return False
    if search.size_max is not None and manifest.size_bytes > search.size_max:
        return False
    if search.licences and shown_licence(entry.licence).lower() not in search.licences:
        return False
    if search.architectures and manifest.architecture.lower() not in search.architectures:
        return False
    measured = {result.task for each in entry.quality for result in each.tasks}
    if search.task and search.task not in {*entry.tasks, *measured}:
        return False
    said = " ".join((
        entry.name, *entry.aliases, *entry.tasks, entry.description, entry.remarks, entry.licence,
        manifest.architecture, manifest.quantisation, manifest.format,
    )).casefold()  # fmt: skip
    return all(word.casefold() in said for word in search.words)


def _rank(entry: CatalogueEntry, search: Search) -> tuple[bool, float, int, str]:
    assert entry.manifest is not None  # noqa: S101 - none else is meant
    named = bool(search.words) and search.words[0].casefold() in entry.name
    score = score_of(entry, search.task)
    return not named, -(score if score is not None else -1.0), entry.manifest.size_bytes, entry.name
