"""``Catalogue``: the models that can be named: from what a user types to a manifest and a source.

A user names a model by its name in the catalogue that ships, by ``LIST/NAME`` in a list that is subscribed
(``models/subscriptions.py``), by its model id, or by the path of any GGUF file or model folder, which gets an
entry named after it. A bare name is never that of a list's model: no curator can take over a name that people
type. This module fetches nothing and hashes no models.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import structlog

from p2pnode.errors import ConfigError
from p2pnode.files import user_path
from p2pnode.ids import ModelId
from p2pnode.models.catalogue_entry import KEYS, CatalogueEntry, entry_of
from p2pnode.models.manifest import SCRIPTED, Manifest, model_id_text, parse_model_id, scripted_model_id
from p2pnode.models.quality import Quality
from p2pnode.models.subscriptions import Subscriptions

DEFAULT_MODEL: Final = "smollm2-135m-instruct"
_IN_LIST: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}/[a-z0-9][a-z0-9._-]{0,63}", re.IGNORECASE)
_SHARD: Final = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")

log = structlog.get_logger(__name__)


class Catalogue:
    """The models known by name. Iterating gives those that ship, without any list's."""

    def __init__(self, entries: Mapping[str, CatalogueEntry], lists: Subscriptions | None = None) -> None:
        self._entries, self.lists = entries, lists

    @classmethod
    def of(cls, models_dir: Path) -> Catalogue:
        """The catalogue that ships, and the lists that are subscribed in ``models_dir``, which are read when
        they are needed."""
        return cls(_shipped(), Subscriptions(models_dir))

    @classmethod
    def load(cls, *more: Path) -> Catalogue:
        """The catalogue that ships, and those of the files ``more``, whose entries replace earlier ones of
        the same name."""
        entries = dict(_shipped())
        for path in more:
            try:
                entries |= parse_catalogue(path.read_text(encoding="utf-8"), str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: cannot be read ({error}); check the path") from error
        return cls(entries)

    def __iter__(self) -> Iterator[CatalogueEntry]:
        return iter(self._entries.values())

    def find(self, name_or_id_or_path: str) -> CatalogueEntry:
        """The entry that a user named. Raises ``ConfigError`` with the nearest name when there is none.

        Blocks on the disk, for what is in a list.
        """
        text = name_or_id_or_path
        if found := self._entries.get(text.lower()):
            return found
        if found := self._by_id(text):
            return found
        if found := self.find_in_list(text):
            return found
        path = user_path(text)
        kind = _kind_at(path, named="/" in text)
        if kind:
            stem = path.resolve().name if kind == "folder" else _SHARD.sub("", path.stem)
            name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:64] or "model"
            return CatalogueEntry(name=name, description=f"a {kind} on this machine", path=path.resolve())
        if text.endswith(".gguf") or "/" in text:
            raise ConfigError(
                f"{text}: there is no such file; check the path of the GGUF file or folder. A model of a "
                "list is named LIST/NAME, as `p2pnode models search` shows it"
            )
        near = difflib.get_close_matches(text.lower(), self._entries, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(self._entries))};"
        raise ConfigError(
            f"unknown model {text!r}: {hint} `p2pnode models list` shows all; "
            "the path of a GGUF file or of a model folder works too"
        )

    def find_in_list(self, text: str) -> CatalogueEntry | None:
        """The model ``LIST/NAME`` of a subscribed list; None where there is none. Blocks on the disk."""
        if self.lists is None or _IN_LIST.fullmatch(text) is None:
            return None
        return self.lists.find(text.lower())

    def manifest_of(self, model: ModelId) -> Manifest | None:
        """The manifest of a model by its id, where any catalogue has it. Blocks on the disk."""
        found = self._by_id(model_id_text(model))
        return found.manifest if found is not None else None

    def qualities(self, model: ModelId) -> list[tuple[str, Quality]]:
        """What subscribed lists say of how well a model does, with each list's name. Blocks on the disk."""
        return [(entry.list_name, each) for entry in self._in_lists(model) for each in entry.quality]

    def every_entry(self) -> Iterator[CatalogueEntry]:
        """All models that can be named: those that ship, then those of each list. A damaged list is told in
        the log and passed over. Blocks on the disk."""
        yield from self
        for each in self.lists or ():
            assert self.lists is not None  # noqa: S101 - it is what is walked through
            try:
                yield from self.lists.entries(each)
            except ConfigError as error:
                log.warning("models.list_damaged", name=each.name, reason=str(error))

    def of_list(self, name: str) -> Iterable[CatalogueEntry]:
        """The models of one list, by its name or key. Blocks on the disk. Raises ``ConfigError``."""
        lists = self.lists if self.lists is not None else Subscriptions(Path())
        return lists.entries(lists.named(name))

    def _by_id(self, text: str) -> CatalogueEntry | None:
        try:
            wanted = parse_model_id(text)
        except ConfigError:
            return None
        found = (entry for entry in self if entry.model_id == wanted)
        return next(found, None) or next(iter(self._in_lists(wanted)), None)

    def _in_lists(self, model: ModelId) -> list[CatalogueEntry]:
        return self.lists.with_id(model) if self.lists is not None else []


def is_shipped_template(source: str) -> bool:
    """Whether a model of the catalogue that ships has this chat template. We have read it, and it ends."""
    return hashlib.sha256(source.encode()).hexdigest() in _shipped_templates()


@cache
def _shipped_templates() -> frozenset[str]:
    return frozenset(each.manifest.chat_template for each in _shipped().values() if each.manifest is not None)


@cache  # a gateway looks names up with each request, and reading the file takes milliseconds
def _shipped() -> Mapping[str, CatalogueEntry]:
    text = resources.files(__package__).joinpath("catalogue.toml").read_text(encoding="utf-8")
    return parse_catalogue(text, "models/catalogue.toml")


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


def parse_catalogue(text: str, where: str, *, sources_needed: bool = True) -> dict[str, CatalogueEntry]:
    """The entries of a catalogue file. Raises ``ConfigError`` that names what is wrong in it.

    ``sources_needed``: a model without a source, which can only come from peers, is refused.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: {error}; correct the file") from error
    return {name: _entry(name, table, where, sources_needed) for name, table in tables.items()}


def _entry(name: str, table: Any, where: str, sources_needed: bool) -> CatalogueEntry:
    if not isinstance(table, dict) or not table.keys() <= KEYS:
        raise ConfigError(f"{where}: [{name}] is a table of {', '.join(sorted(KEYS))}")
    try:
        return entry_of(name, table, sources_needed=sources_needed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def catalogue_text(entries: Iterable[CatalogueEntry]) -> str:
    """The entries as a file that :func:`parse_catalogue` reads. Raises ``ConfigError`` for one without a
    manifest."""
    return "\n".join(map(_text_of, entries))


def _text_of(entry: CatalogueEntry) -> str:
    if entry.manifest is None:
        raise ConfigError(f"{entry.name} has no manifest yet: `p2pnode models pull` makes it of the files")
    name = f'"{entry.name}"'
    lines = [f"[{name}]"]
    said = ("description", "licence", "licence_url", "licence_sha256", "remarks")
    lines += [f"{key} = {_toml(text)}" for key in said if (text := getattr(entry, key))]
    texts = {
        "aliases": entry.aliases,
        "tasks": entry.tasks,
        "source": [source.text for source in entry.sources],
    }
    lines += [f"{key} = {_toml(list(value))}" for key, value in texts.items() if value]
    if entry.memory is not None:
        lines.append(f"memory = {{ bytes = {entry.memory.bytes}, n_ctx = {entry.memory.n_ctx} }}")
    table = entry.manifest.to_mapping()
    files, overhead = table.pop("files"), table.pop("template_overhead")
    lines += ["", f"[{name}.manifest]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    lines.append(f"template_overhead = {_inline(overhead)}")
    for file in files:
        hashes = [f"{key} = {_toml(value)}" for key, value in file.items()]
        lines += ["", f"[[{name}.manifest.files]]", *hashes]
    for each in entry.quality:
        record = each.to_mapping()
        tasks = record.pop("tasks")
        del record["model"]
        lines += ["", f"[[{name}.quality]]", *(f"{key} = {_toml(value)}" for key, value in record.items())]
        lines.append(f"tasks = {_inline(tasks)}")
    return "\n".join(lines) + "\n"


def _toml(value: str | int | list[str] | list[int]) -> str:
    # A JSON text without escapes of its own is one of TOML: all texts here are printable.
    return json.dumps(value, ensure_ascii=False)


def _inline(table: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{_toml(key)} = {_toml(value)}" for key, value in table.items()) + " }"
