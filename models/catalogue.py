"""``Catalogue``: the models that can be named: from what a user types to a manifest and a source.

A user names a model by its catalogue name, by its model id, or by the path of any GGUF file or model folder,
which gets an entry named after it. This module fetches nothing and hashes nothing.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from p2pnode.errors import ConfigError
from p2pnode.files import user_path
from p2pnode.ids import ModelId
from p2pnode.models.manifest import (
    SCRIPTED,
    Manifest,
    model_id,
    model_id_text,
    parse_model_id,
    scripted_model_id,
)
from p2pnode.models.pull.sources import Source, parse_source

DEFAULT_MODEL: Final = "smollm2-135m-instruct"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHARD: Final = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")
_SOURCES_MAX: Final = 16
_KEYS: Final = frozenset({"description", "licence", "source", "manifest"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One model that can be pulled.

    ``sources`` are tried in turn. What is named by its path has ``path`` and no ``sources``, and no
    ``manifest`` until ``pull`` has hashed its files.
    """

    name: str
    description: str = ""
    licence: str = ""
    sources: tuple[Source, ...] = ()
    manifest: Manifest | None = None
    path: Path | None = None

    @property
    def model_id(self) -> ModelId | None:
        """The model's id; None while its manifest is unknown."""
        return None if self.manifest is None else model_id(self.manifest)


class Catalogue:
    """The models known by name."""

    def __init__(self, entries: dict[str, CatalogueEntry]) -> None:
        self._entries = entries

    @classmethod
    def load(cls, *more: Path) -> Catalogue:
        """The catalogue that ships, and those of the files ``more``, whose entries replace earlier ones of
        the same name."""
        shipped = resources.files(__package__).joinpath("catalogue.toml").read_text(encoding="utf-8")
        entries = parse_catalogue(shipped, "models/catalogue.toml")
        for path in more:
            try:
                entries |= parse_catalogue(path.read_text(encoding="utf-8"), str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: cannot be read ({error}); check the path") from error
        return cls(entries)

    def __iter__(self) -> Iterator[CatalogueEntry]:
        return iter(self._entries.values())

    def find(self, name_or_id_or_path: str) -> CatalogueEntry:
        """The entry that a user named. Raises ``ConfigError`` with the nearest name when there is none."""
        text = name_or_id_or_path
        if found := self._entries.get(text.lower()):
            return found
        if found := self._by_id(text):
            return found
        path = user_path(text)
        kind = _kind_at(path, named="/" in text)
        if kind:
            stem = path.resolve().name if kind == "folder" else _SHARD.sub("", path.stem)
            name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:64] or "model"
            return CatalogueEntry(name=name, description=f"a {kind} on this machine", path=path.resolve())
        if text.endswith(".gguf") or "/" in text:
            raise ConfigError(f"{text}: there is no such file; check the path of the GGUF file or folder")
        near = difflib.get_close_matches(text.lower(), self._entries, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(self._entries))};"
        raise ConfigError(
            f"unknown model {text!r}: {hint} `p2pnode models list` shows all; "
            "the path of a GGUF file or of a model folder works too"
        )

    def _by_id(self, text: str) -> CatalogueEntry | None:
        try:
            wanted = parse_model_id(text)
        except ConfigError:
            return None
        return next((entry for entry in self if entry.model_id == wanted), None)


@cache
def _names() -> dict[ModelId, str]:
    shipped = {entry.model_id: entry.name for entry in Catalogue.load() if entry.model_id is not None}
    return {**shipped, scripted_model_id(): SCRIPTED}


def shown_name(model: ModelId) -> str:
    """What people call a model: its name in the catalogue that ships, else its id."""
    return _names().get(model) or model_id_text(model)


def _kind_at(path: Path, *, named: bool) -> str:
    """What is at ``path``, "" for nothing. ``named``: the user wrote a path, and not just a word."""
    try:
        if path.is_file():
            return "file"
        return "folder" if path.is_dir() and (named or (path / "config.json").is_file()) else ""
    except OSError:
        return ""  # a name that no file can have


def parse_catalogue(text: str, where: str) -> dict[str, CatalogueEntry]:
    """The entries of a catalogue file. Raises ``ConfigError`` that names what is wrong in it."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: {error}; correct the file") from error
    return {name: _entry(name, table, where) for name, table in tables.items()}


def _entry(name: str, table: Any, where: str) -> CatalogueEntry:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} is no model name: use a-z, 0-9, dots, dashes, underscores")
    if not isinstance(table, dict) or not table.keys() <= _KEYS or not {"source", "manifest"} <= table.keys():
        raise ConfigError(f"{where}: [{name}] needs source and manifest, and may have description, licence")
    sources = table["source"] if isinstance(table["source"], list) else [table["source"]]
    texts = [table.get("description", ""), table.get("licence", ""), *sources]
    if not all(isinstance(text, str) for text in texts) or not isinstance(table["manifest"], dict):
        raise ConfigError(
            f"{where}: [{name}] description and licence are texts, source is one or a list of them, and "
            "manifest is a table"
        )
    manifest = Manifest.from_mapping(table["manifest"])
    if not manifest.verified or not 1 <= len(sources) <= _SOURCES_MAX:
        raise ConfigError(f"{where}: [{name}] needs files with hashes, and 1 to {_SOURCES_MAX} sources")
    return CatalogueEntry(
        name=name,
        description=table.get("description", ""),
        licence=table.get("licence", ""),
        sources=tuple(parse_source(text) for text in sources),
        manifest=manifest,
    )
