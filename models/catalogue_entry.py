"""``CatalogueEntry``: one model of a catalogue: what it is, where its files are, and what is said of it.

The same table describes it in a file of TOML, as ``catalogue.toml``, and in a list that somebody signed
(``models/model_list.py``). The table may be a stranger's: each value is checked and bounded. This module
fetches nothing and hashes no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId
from p2pnode.models.manifest import Manifest, model_id, model_id_text
from p2pnode.models.pull.sources import Source, parse_source, require_public
from p2pnode.models.quality import Quality

SOURCES_MAX: Final = 16
ALIASES_MAX: Final = 8
TASKS_MAX: Final = 16
QUALITIES_MAX: Final = 16
SOURCE_LETTERS: Final = 1024
_TEXTS: Final = {"description": 200, "licence": 64, "licence_url": 512, "licence_sha256": 64, "remarks": 500}
"""The texts of an entry, and the most characters of each."""
KEYS: Final = frozenset({*_TEXTS, "aliases", "manifest", "memory", "quality", "source", "tasks"})
"""All keys of an entry's table."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TASK: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WEB: Final = re.compile(r"https?://[^\s/]+(?:/\S*)?", re.ASCII)
_COUNT_MAX: Final = 1 << 48


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryHint:
    """What the model took in memory, in bytes, with a context of ``n_ctx`` tokens for one request."""

    bytes: int
    n_ctx: int


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One model that can be pulled.

    ``sources`` are tried in turn; without any it can come from peers only. What is named by its path has
    ``path`` and no ``sources``, and no ``manifest`` until ``pull`` has hashed its files. ``licence`` is an
    SPDX identifier or what its maker calls it, ``licence_url`` and ``licence_sha256`` say where its text is
    and what it hashes to. ``tasks`` are words for what it is good at. ``list_name`` is the subscribed list
    that it stands in, "" for the catalogue that ships; the name begins with it then.
    """

    name: str
    description: str = ""
    licence: str = ""
    licence_url: str = ""
    licence_sha256: str = ""
    remarks: str = ""
    aliases: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    memory: MemoryHint | None = None
    quality: tuple[Quality, ...] = ()
    sources: tuple[Source, ...] = ()
    manifest: Manifest | None = None
    path: Path | None = None
    list_name: str = ""

    @cached_property  # a gateway needs it with each request, and it is a hash of the whole manifest
    def model_id(self) -> ModelId | None:
        """The model's id; None while its manifest is unknown."""
        return None if self.manifest is None else model_id(self.manifest)


def with_quality(entry: CatalogueEntry, measured: Sequence[Quality]) -> CatalogueEntry:
    """The entry with what was measured of its model; a measurement replaces an earlier one of the same."""

    def what(each: Quality) -> tuple[str, ...]:
        return each.task_set, each.engine, each.build, each.kv_types

    new = [each for each in measured if each.model == entry.model_id]
    known = {what(each) for each in new}
    said = [each for each in entry.quality if what(each) not in known]
    return replace(entry, quality=(*new, *said)[:QUALITIES_MAX])


def is_model_name(name: object) -> bool:
    """Whether ``name`` may name a model in a catalogue."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def entry_of(
    name: str, table: Mapping[str, Any], *, in_list: bool = False, sources_needed: bool = True
) -> CatalogueEntry:
    """The entry that a decoded table describes; keys that aren't known are left alone.

    ``in_list``: the table is a stranger's, and stands in a list. It has an ``id``, which must be its
    manifest's, and its sources are places on the public internet. Without ``sources_needed``, and in a list,
    it may have none: then the model comes from peers.
    Raises ``ConfigError`` that says what is wrong.
    """
    if not is_model_name(name):
        raise ConfigError(f"{name!r} is no model name: use a-z, 0-9, dots, dashes, underscores")
    given = table.get("manifest")
    _require(isinstance(given, Mapping), name, "manifest", "a table")
    manifest = Manifest.from_mapping(table["manifest"])
    _require(manifest.verified, name, "manifest", "one with files and their hashes")
    source = table.get("source", ())
    sources = [source] if isinstance(source, str) else source
    _require(_are_texts(sources, SOURCES_MAX, SOURCE_LETTERS), name, "source", f"up to {SOURCES_MAX} texts")
    _require(sources or in_list or not sources_needed, name, "source", "at least one")
    read = tuple(parse_source(text) for text in sources)
    identity = model_id(manifest)
    if in_list:
        _require(table.get("id") == model_id_text(identity), name, "id", "the hash of its manifest")
        for each in read:
            require_public(each)
    texts = _texts(name, table)
    return CatalogueEntry(
        name=name,
        description=texts["description"],
        licence=texts["licence"],
        licence_url=texts["licence_url"],
        licence_sha256=texts["licence_sha256"],
        remarks=texts["remarks"],
        aliases=_aliases(name, table.get("aliases", ())),
        tasks=_tasks(name, table.get("tasks", ())),
        memory=_memory(name, table.get("memory")),
        quality=_quality(name, table.get("quality", ()), identity),
        sources=read,
        manifest=manifest,
    )


def _texts(name: str, table: Mapping[str, Any]) -> dict[str, str]:
    texts = {}
    for key, longest in _TEXTS.items():
        text = table.get(key, "")
        # What is not printable could command a terminal, or turn the direction of writing.
        fits = isinstance(text, str) and len(text) <= longest and text.isprintable()
        _require(fits, name, key, f"at most {longest} printable characters")
        texts[key] = text
    digest, url = texts["licence_sha256"], texts["licence_url"]
    _require(not digest or _SHA256.fullmatch(digest), name, "licence_sha256", "64 lower-case hex digits")
    _require(not url or _WEB.fullmatch(url), name, "licence_url", "an http(s) address")
    return texts


def _aliases(name: str, given: Any) -> tuple[str, ...]:
    _require(_are_texts(given, ALIASES_MAX, 64), name, "aliases", f"up to {ALIASES_MAX} names")
    for alias in given:
        _require(is_model_name(alias), name, "aliases", "names of a-z, 0-9, dots, dashes, underscores")
    _require(len({name, *given}) == len(given) + 1, name, "aliases", "other names, each once")
    return tuple(given)


def _tasks(name: str, given: Any) -> tuple[str, ...]:
    _require(_are_texts(given, TASKS_MAX, 32), name, "tasks", f"up to {TASKS_MAX} words")
    for task in given:
        _require(_TASK.fullmatch(task), name, "tasks", "words of a-z, 0-9 and dashes")
    return tuple(given)


def _memory(name: str, given: Any) -> MemoryHint | None:
    if given is None:
        return None
    _require(isinstance(given, Mapping), name, "memory", "a table of bytes and n_ctx")
    counts = [given.get("bytes"), given.get("n_ctx")]
    for count in counts:
        ok = isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= _COUNT_MAX
        _require(ok, name, "memory", "bytes and n_ctx, both at least 1")
    return MemoryHint(bytes=given["bytes"], n_ctx=given["n_ctx"])


def _quality(name: str, given: Any, model: ModelId) -> tuple[Quality, ...]:
    fits = isinstance(given, (list, tuple)) and len(given) <= QUALITIES_MAX
    _require(fits, name, "quality", f"up to {QUALITIES_MAX} records")
    for each in given:
        _require(isinstance(each, Mapping), name, "quality", "a list of tables")
    return tuple(Quality.from_mapping({**each, "model": model_id_text(model)}) for each in given)


def _are_texts(given: object, count: int, longest: int) -> bool:
    if not isinstance(given, (list, tuple)) or len(given) > count:
        return False
    return all(isinstance(text, str) and len(text) <= longest for text in given)


def _require(ok: object, name: str, key: str, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"[{name}] {key} must be {wanted}")
