"""``ModelList``: models that somebody recommends, as one document that is named by its hash.

::

    p2pnode/model-list/1                    the form and its version
    {"created":…,"entries":2,"key":…, …}    what the list is, and whose
    {"aliases":…,"id":"m1…","name":"a", …}  one model on each line, sorted by name
    {"id":"m1…","name":"b", …}

Each line is canonical JSON (keys sorted, no spaces, ASCII, integers only) and ends with a line feed. The
pointer to it is a registry entry of S5 under the curator's key, whose signature covers the hash of all of it
(``models/subscriptions.py``); key and revision stand inside too, so that nobody can sign another's list as
his own, or an old one as a new one.

A list is a stranger's. What breaks its form refuses all of it. A model whose entry is wrong is left out and
named: one that a later version of the form has must not cost an earlier reader all the others. No entry is
used before all of it was checked, and its files are checked by its manifest. Pure.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NoReturn

from p2pnode.errors import ConfigError
from p2pnode.models.catalogue_entry import CatalogueEntry, entry_of, is_model_name
from p2pnode.models.manifest import model_id_text
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.words import count_of, one_line

FORM: Final = b"p2pnode/model-list/1\n"
_FAMILY: Final = b"p2pnode/model-list/"
LIST_BYTES_MAX: Final = 16 << 20
ENTRIES_MAX: Final = 10_000
LINE_BYTES_MAX: Final = 512 << 10
"""A manifest of 1,024 files takes about 320 KiB."""
DESCRIPTION_MAX: Final = 500
REVISION_MAX: Final = 1 << 48
_CREATED_MAX: Final = 1 << 40
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_KEY_PREFIX: Final = "l1"
_KEY_BYTES: Final = 32
_SHOWN: Final = 100
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _no_float(text: str) -> NoReturn:
    msg = f"{text[:_SHOWN]} is no integer"
    raise ValueError(msg)


_STRICT: Final = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListHead:
    """What a list is. ``created`` is its curator's word for when, in seconds since 1970.

    ``name`` is what its curator calls it; ``revision`` is that of the registry entry.
    """

    name: str
    key: EntryKey
    revision: int
    created: int
    description: str = ""

    def __post_init__(self) -> None:
        _require(is_list_name(self.name), "name", "of a-z, 0-9, dots, dashes, underscores, at most 32")
        _require(isinstance(self.key, bytes) and len(self.key) == _KEY_BYTES, "key", "32 bytes")
        _require(_is_count(self.revision, REVISION_MAX), "revision", "from 0 to 2^48")
        _require(_is_count(self.created, _CREATED_MAX), "created", "in seconds since 1970")
        text = self.description
        fits = isinstance(text, str) and len(text) <= DESCRIPTION_MAX and text.isprintable()
        _require(fits, "description", f"at most {DESCRIPTION_MAX} printable characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """A list that was read. ``left_out``: by the name of each model whose entry is wrong, why it is."""

    head: ListHead
    entries: tuple[CatalogueEntry, ...]
    left_out: Mapping[str, str]


def is_list_name(name: object) -> bool:
    """Whether ``name`` may name a list."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def list_key_text(key: EntryKey) -> str:
    """``l1`` and 52 lower-case base32 characters: the form in which people copy the key of a list."""
    return _KEY_PREFIX + base64.b32encode(key).decode("ascii").rstrip("=").lower()


def parse_list_key(text: str) -> EntryKey:
    """The inverse of :func:`list_key_text`. Raises ``ConfigError`` for any other text."""
    try:
        if text.startswith(_KEY_PREFIX):
            raw = EntryKey(base64.b32decode(text[len(_KEY_PREFIX) :].upper() + "===="))
            # The last character carries one spare bit: only the canonical spelling is a key.
            if len(raw) == _KEY_BYTES and list_key_text(raw) == text:
                return raw
    except (binascii.Error, ValueError):
        pass
    raise ConfigError(
        f"{one_line(text, _SHOWN)!r} is no key of a list: it is l1 followed by 52 characters of a-z and 2-7"
    )


# ---- writing


def list_blob(head: ListHead, entries: Sequence[CatalogueEntry]) -> bytes:
    """The document. Raises ``ConfigError`` for what no reader would take, and names it."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    about = {
        "created": head.created,
        "description": head.description,
        "entries": len(ordered),
        "key": head.key.hex(),
        "name": head.name,
        "revision": head.revision,
    }
    blob = FORM + b"".join(map(_line, (about, *map(_table_of, ordered))))
    made = parse_list(blob)
    for name, why in made.left_out.items():
        raise ConfigError(f"{name} can't stand in a list: {why}")
    return blob


def same_content(blob: bytes, other: bytes) -> bool:
    """Whether two lists differ in nothing but their revision and when they were made."""
    mine, theirs = parse_list(blob), parse_list(other)
    heads = [(each.head.name, each.head.key, each.head.description) for each in (mine, theirs)]
    return heads[0] == heads[1] and mine.entries == theirs.entries


def revised(
    head: ListHead,
    given: Sequence[CatalogueEntry],
    before: bytes | None,
    *,
    add: bool,
    described: bool,
) -> bytes:
    """The document of the revision that ``head`` names; ``before``, the last one, where nothing has changed.

    ``add`` keeps the entries of the last one but for those of the same names, as none ``given`` at all does.
    Its description stays unless the new one is ``described``. One that can't be read is replaced. Raises
    ``ConfigError`` for what no reader would take, and for ``add`` where ``before`` can't be read.
    """
    old = None
    if before is not None:
        try:
            old = parse_list(before)
        except ConfigError:
            if add:
                raise
    kept = old.entries if old is not None and (add or not given) else ()
    entries = {entry.name: entry for entry in (*kept, *given)}
    if old is not None and not described:
        head = replace(head, description=old.head.description)
    blob = list_blob(head, list(entries.values()))
    return before if before is not None and old is not None and same_content(blob, before) else blob


def _table_of(entry: CatalogueEntry) -> dict[str, Any]:
    if entry.manifest is None or entry.model_id is None:
        raise ConfigError(f"{entry.name} has no manifest yet: `p2pnode models pull` makes it of the files")
    memory = None if entry.memory is None else asdict(entry.memory)
    quality = []
    for each in entry.quality:
        record = each.to_mapping()
        del record["model"]  # it is that of the entry
        quality.append(record)
    table: dict[str, Any] = {
        "name": entry.name,
        "id": model_id_text(entry.model_id),
        "manifest": entry.manifest.to_mapping(),
        "aliases": entry.aliases,
        "description": entry.description,
        "licence": entry.licence,
        "licence_sha256": entry.licence_sha256,
        "licence_url": entry.licence_url,
        "memory": memory,
        "quality": quality,
        "remarks": entry.remarks,
        "source": [source.text for source in entry.sources],
        "tasks": entry.tasks,
    }
    return {key: value for key, value in table.items() if value}


def _line(value: Mapping[str, Any]) -> bytes:
    return _CANONICAL.encode(value).encode("ascii") + b"\n"


# ---- reading


def parse_list(blob: bytes) -> ModelList:
    """The list that ``blob`` is. Raises ``ConfigError`` that says what breaks its form."""
    if len(blob) > LIST_BYTES_MAX:
        _broken(f"it has {len(blob)} bytes, and a list has at most {LIST_BYTES_MAX}")
    if not blob.startswith(FORM):
        if blob.startswith(_FAMILY):
            _broken("it is of another version of the form: update p2pnode, or ask its curator for this one")
        _broken("it is no list of models")
    lines = _lines(blob)
    head, count = _head(next(lines, b""))
    if count > ENTRIES_MAX:
        _broken(f"it has {count} models, and a list has at most {ENTRIES_MAX}")
    entries: list[CatalogueEntry] = []
    left_out: dict[str, str] = {}
    seen: set[str] = set()
    last = ""
    for number, line in enumerate(lines, 1):
        if number > count:
            _broken(f"it has more than the {count_of(count, 'model')} that it says")
        table = _read(line)
        name = table.get("name")
        if not is_model_name(name) or not isinstance(name, str):
            _broken(f"model {number} of it has no name of a-z, 0-9, dots, dashes, underscores")
        if name <= last:
            _broken(f"{name!r} comes after {last!r}: its models are not sorted by name, each once")
        last = name
        try:
            entry = entry_of(name, table, in_list=True)
        except ConfigError as error:
            left_out[name] = one_line(str(error))
            continue
        if taken := seen.intersection((name, *entry.aliases)):
            _broken(f"{min(taken)!r} names two models of it")
        seen.update((name, *entry.aliases))
        entries.append(entry)
    if len(entries) + len(left_out) != count:
        _broken(f"it says that it has {count_of(count, 'model')}, and has {len(entries) + len(left_out)}")
    return ModelList(head=head, entries=tuple(entries), left_out=left_out)


def head_of(blob: bytes) -> ListHead:
    """What a list that was checked before says of itself."""
    return _head(next(_lines(blob), b""))[0]


def entries_with(blob: bytes, word: str) -> Iterator[CatalogueEntry]:
    """The entries of a list that was checked before in which the text ``word`` stands, whatever for.

    Only their lines are read: one of ten thousand models is found without reading the others.
    """
    token = json.dumps(word).encode("ascii")
    lines = _lines(blob)
    next(lines, None)
    for line in lines:
        if token in line:
            table = _read(line)
            try:
                yield entry_of(str(table.get("name")), table, in_list=True)
            except ConfigError:  # it was left out
                continue


def _lines(blob: bytes) -> Iterator[bytes]:
    """The lines after the first, without their ends."""
    at = len(FORM)
    while at < len(blob):
        end = blob.find(b"\n", at, at + LINE_BYTES_MAX + 1)
        if end < 0:
            _broken(f"a line of it has no end, or more than {LINE_BYTES_MAX} bytes")
        yield blob[at:end]
        at = end + 1


def _read(line: bytes) -> dict[str, Any]:
    try:
        value = _STRICT.decode(line.decode("ascii"))
        again = _line(value)[:-1]
    except (ValueError, RecursionError) as error:
        _broken(f"a line of it is no JSON ({str(error)[:_SHOWN]})")
    # One text for one meaning: no key that stands twice, of which readers would take different ones.
    if not isinstance(value, dict) or again != line:
        _broken("a line of it is not written in the one form that it has (canonical JSON)")
    return value


def _head(line: bytes) -> tuple[ListHead, int]:
    table = _read(line)
    count, key = table.get("entries"), table.get("key")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        _broken("it does not say how many models it has")
    try:
        head = ListHead(
            name=table["name"],
            key=EntryKey(bytes.fromhex(key if isinstance(key, str) and key.isascii() else "")),
            revision=table["revision"],
            created=table["created"],
            description=table.get("description", ""),
        )
    except (KeyError, ValueError) as error:
        _broken(f"its first line lacks {error}")
    if head.key.hex() != key:
        _broken("its key is not written in lower-case hex")
    return head, count


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _require(ok: object, field: str, wanted: str) -> None:
    if not ok:
        _broken(f"its {field} must be {wanted}")


def _broken(why: str) -> NoReturn:
    raise ConfigError(f"this list of models is refused: {why}")
