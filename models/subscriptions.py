"""``Subscriptions``: the signed lists that this machine has taken, and which pointer of each is the newest.

The folder ``lists`` in the models directory holds ``lists.json`` and a file for each list, named by its key.
``judge`` is pure: it decides what follows from the pointers that were seen. The rest blocks on the disk.

A pointer counts whose signature is the list's key's. The newest that was ever taken is remembered, for a list
that was given up, too: an older one is never taken again, and of two with the same revision neither replaces
the other. Whoever stores lists can so withhold a newer one, and never bring back an old one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import structlog

from p2pnode.errors import ConfigError, ProtocolError, StorageError
from p2pnode.files import locked, write_atomic
from p2pnode.ids import ModelId
from p2pnode.models.catalogue_entry import CatalogueEntry
from p2pnode.models.manifest import model_id_text
from p2pnode.models.model_list import (
    LIST_BYTES_MAX,
    ModelList,
    entries_with,
    head_of,
    is_list_name,
    list_key_text,
    parse_list,
)
from p2pnode.protocols.s5.entries import Entry, EntryKey, parse_entry
from p2pnode.protocols.s5.ids import BlobHash, hash_of

_FOLDER: Final = "lists"
_INDEX: Final = "lists.json"
_VERSION: Final = 1
_FILE: Final = b"p2pnode/model-list-file/1 "
_POINTER_LINE_MAX: Final = 512
SUBSCRIPTIONS_MAX: Final = 64
_REMEMBERED_MAX: Final = 1024
"""Lists whose newest pointer is known, with those that were given up."""
WITHDRAWN: Final = BlobHash(bytes(32))
"""What the pointer of a list names whose curator has withdrawn it."""

log = structlog.get_logger(__name__)


# ---- what follows from the pointers that were seen


@dataclass(frozen=True, slots=True)
class Take:
    """This pointer is newer than what is known: its list is to be had, checked and kept."""

    pointer: Entry


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The newest that anybody shows is the one that is known."""


@dataclass(frozen=True, slots=True)
class NotTaken:
    """Nothing is taken; ``why`` is for people. ``hostile``: somebody did what no honest one does."""

    why: str
    hostile: bool = False


Verdict: TypeAlias = Take | Unchanged | NotTaken


def judge(key: EntryKey, known: Entry | None, seen: Iterable[Entry]) -> Verdict:
    """What follows from the pointers that places have shown for the list of ``key``."""
    shown = list(seen)
    ours = [entry for entry in shown if entry.key == key and entry.holds()]
    if not ours:
        if shown:
            return NotTaken("a pointer was shown that the list's key did not sign", hostile=True)
        return NotTaken("nobody who was asked has this list")
    newest = max(entry.revision for entry in ours)
    if known is not None and newest < known.revision:
        return NotTaken(
            f"all who answered have revision {newest}, and revision {known.revision} was here before: the "
            "list was rolled back, or they have not heard of the newer one. An older list is not taken",
            hostile=True,
        )
    at_newest = {entry.data: entry for entry in ours if entry.revision == newest}
    if known is not None and newest == known.revision:
        at_newest[known.data] = known
    if len(at_newest) > 1:
        return NotTaken(
            f"its curator signed two different lists as revision {newest}: neither is taken, until one with "
            "a higher revision is there",
            hostile=True,
        )
    (pointer,) = at_newest.values()
    if known is not None and pointer.data == known.data and pointer.revision == known.revision:
        return Unchanged()
    return Take(pointer)


def check_list(pointer: Entry, blob: bytes) -> ModelList:
    """The list to which ``pointer`` points. Raises ``ConfigError`` where ``blob`` is not that list."""
    if pointer.points_at != hash_of(blob):
        raise ConfigError("this list of models is refused: its bytes are not those that its curator signed")
    found = parse_list(blob)
    if found.head.key != pointer.key:
        raise ConfigError(
            f"this list of models is refused: it is the list of {list_key_text(found.head.key)}, and another "
            "key has signed it as its own"
        )
    if found.head.revision != pointer.revision:
        raise ConfigError(
            f"this list of models is refused: it is revision {found.head.revision} of the list, and was "
            f"signed as revision {pointer.revision}"
        )
    return found


def list_file(pointer: Entry, blob: bytes) -> bytes:
    """A list with its signature, as one file: a line of the pointer in hex, and the document."""
    return _FILE + pointer.to_bytes().hex().encode() + b"\n" + blob


def read_list_file(path: Path) -> tuple[Entry, bytes]:
    """The inverse of :func:`list_file`; nothing is checked. Raises ``ConfigError`` for another file."""
    try:
        with path.open("rb") as file:
            content = file.read(LIST_BYTES_MAX + _POINTER_LINE_MAX)
    except OSError as error:
        raise ConfigError(f"it can't be read ({error.strerror}): check the path") from error
    line, end, blob = content.removeprefix(_FILE).partition(b"\n")
    try:
        if content.startswith(_FILE) and end and len(line) < _POINTER_LINE_MAX:
            return parse_entry(bytes.fromhex(line.decode("ascii"))), blob
    except (ValueError, ProtocolError):
        pass
    raise ConfigError("it is no list of models: name a file that `p2pnode models lists export` wrote")


# ---- what is on the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A list that was taken. ``name`` is what it is called here; ``taken_at`` and ``asked_at`` are seconds
    since 1970: when this revision came, and when it was last known to be the newest."""

    name: str
    pointer: Entry
    taken_at: int
    asked_at: int
    entries: int
    left_out: int = 0

    @property
    def key(self) -> EntryKey:
        """The list's key."""
        return self.pointer.key


class Subscriptions:
    """The lists of one models directory. Each change is written down before it returns."""

    def __init__(self, models_dir: Path) -> None:
        self._root = models_dir / _FOLDER

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._load()[0])

    def named(self, name: str) -> Subscription:
        """The list that is called ``name`` here, or has this key. Raises ``ConfigError`` with what is."""
        subscribed, _ = self._load()
        for each in subscribed:
            if name in (each.name, list_key_text(each.key)):
                return each
        names = ", ".join(each.name for each in subscribed) or "none: `p2pnode models lists subscribe KEY`"
        raise ConfigError(f"no list is called {name!r} here; subscribed are {names}")

    def pointer_of(self, key: EntryKey) -> Entry | None:
        """The newest pointer of a list that was ever taken, of one that was given up, too."""
        subscribed, given_up = self._load()
        known = {each.key: each.pointer for each in subscribed}
        return known.get(key) or given_up.get(key)

    def take(
        self, pointer: Entry, blob: bytes, now: int, *, name: str = ""
    ) -> tuple[Subscription, ModelList]:
        """Check a list and keep it. ``name``: what it is to be called; else as before, or as it calls itself.

        Raises ``ConfigError`` where it is refused, or its name is another list's, and ``StorageError``.
        """
        found = check_list(pointer, blob)
        with self._changing():
            subscribed, given_up = self._load()
            before = next((each for each in subscribed if each.key == pointer.key), None)
            newest = before.pointer if before is not None else given_up.get(pointer.key)
            match judge(pointer.key, newest, [pointer]):
                case NotTaken(why=why):  # another command took a newer one meanwhile
                    raise ConfigError(f"this list of models is not taken: {why}")
                case _:
                    pass
            called = name or (before.name if before is not None else found.head.name)
            others = [each for each in subscribed if each.key != pointer.key]
            _check_name(called, others)
            taken = Subscription(
                name=called, pointer=pointer, taken_at=now, asked_at=now, entries=len(found.entries),
                left_out=len(found.left_out),
            )  # fmt: skip
            # The list first: after a power cut the index names no list that is not there.
            self._write(self._file(pointer), blob)
            self._save([*others, taken], given_up)
            if before is not None and before.pointer.data != pointer.data:
                self._file(before.pointer).unlink(missing_ok=True)
        return taken, found

    def check_name(self, name: str | None, key: EntryKey) -> None:
        """Raise ``ConfigError`` where the list of ``key`` can't be called ``name`` here; None is none."""
        if name is not None:
            _check_name(name, [each for each in self if each.key != key])

    def note_asked(self, key: EntryKey, now: int) -> None:
        """Note that the list of ``key`` is known to be the newest that anybody shows."""
        with self._changing():
            subscribed, given_up = self._load()
            noted = [replace(each, asked_at=now) if each.key == key else each for each in subscribed]
            self._save(noted, given_up)

    def give_up(self, name: str) -> Subscription:
        """Unsubscribe a list; its newest pointer stays known. Raises ``ConfigError``, ``StorageError``."""
        gone = self.named(name)
        with self._changing():
            subscribed, given_up = self._load()
            given_up.pop(gone.key, None)
            given_up[gone.key] = gone.pointer
            self._save([each for each in subscribed if each.key != gone.key], given_up)
            self._file(gone.pointer).unlink(missing_ok=True)
        return gone

    def blob(self, subscription: Subscription) -> bytes:
        """The list as it was taken. Raises ``ConfigError`` for a file that was changed or lost since."""
        path = self._file(subscription.pointer)
        try:
            with path.open("rb") as file:
                blob = file.read(LIST_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(_damaged(path, error.strerror or "it can't be read")) from error
        if hash_of(blob) != subscription.pointer.points_at:
            raise ConfigError(_damaged(path, "its bytes have changed"))
        return blob

    def entries(self, subscription: Subscription) -> Iterable[CatalogueEntry]:
        """All models of a list, by the names that they have here."""
        found = parse_list(self.blob(subscription))
        return [_called(subscription, entry) for entry in found.entries]

    def find(self, text: str) -> CatalogueEntry | None:
        """The model ``LIST/NAME``, where there is such a list. Raises ``ConfigError`` for a damaged one."""
        list_name, _, name = text.partition("/")
        for each in self:
            if each.name == list_name:
                found = list(entries_with(self.blob(each), name))
                exact = [entry for entry in found if entry.name == name]
                also = [entry for entry in found if name in entry.aliases]
                return _called(each, (exact or also)[0]) if exact or also else None
        return None

    def with_id(self, model: ModelId) -> list[CatalogueEntry]:
        """What each list that has this model says of it. A damaged list is passed over."""
        text = model_id_text(model)
        entries = []
        for each in self:
            try:
                found = [entry for entry in entries_with(self.blob(each), text) if entry.model_id == model]
            except ConfigError as error:
                log.warning("models.list_damaged", name=each.name, reason=str(error))
                continue
            entries += [_called(each, entry) for entry in found]
        return entries

    def created(self, subscription: Subscription) -> int:
        """When the list's curator says that it was made, in seconds since 1970. Raises as :meth:`blob`."""
        return head_of(self.blob(subscription)).created

    # ---- files

    def _file(self, pointer: Entry) -> Path:
        return self._root / f"{pointer.key.hex()}-{pointer.data.hex()[2:18]}.list"

    def _load(self) -> tuple[list[Subscription], dict[EntryKey, Entry]]:
        try:
            data = json.loads((self._root / _INDEX).read_text(encoding="utf-8"))
            if data["version"] != _VERSION:
                raise ConfigError(_unreadable(self._root / _INDEX, "another version of p2pnode wrote it"))
            subscribed = [_subscription(each) for each in data["lists"]]
            entries = [parse_entry(bytes.fromhex(each)) for each in data["given_up"]]
        except FileNotFoundError:
            return [], {}
        except (OSError, ValueError, KeyError, TypeError, ProtocolError, RecursionError) as error:
            # Without it nobody knows which lists were the newest: it is not begun anew by itself.
            raise ConfigError(_unreadable(self._root / _INDEX, str(error) or type(error).__name__)) from error
        return sorted(subscribed, key=lambda each: each.name), {each.key: each for each in entries}

    def _save(self, subscribed: Iterable[Subscription], given_up: dict[EntryKey, Entry]) -> None:
        kept = sorted(subscribed, key=lambda each: each.name)
        known = {each.key for each in kept}
        gone = [entry for key, entry in given_up.items() if key not in known][-_REMEMBERED_MAX:]
        data = {
            "version": _VERSION,
            "lists": [_record(each) for each in kept],
            "given_up": [entry.to_bytes().hex() for entry in gone],
        }
        self._write(self._root / _INDEX, json.dumps(data, indent=1).encode())

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One process at a time reads the index and writes it: a running node refreshes lists, too."""
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self._root):
                yield
        except OSError as error:
            raise StorageError(
                f"{self._root}: cannot be written ({error.strerror or error}); free some space or choose "
                "another --data-dir"
            ) from error

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        try:
            write_atomic(path, data)
        except ConfigError as error:
            raise StorageError(str(error)) from error


def _check_name(name: str, others: Iterable[Subscription]) -> None:
    if not is_list_name(name):
        raise ConfigError(f"{name!r} is no name for a list: use a-z, 0-9, dots, dashes, underscores")
    names = [each.name for each in others]
    if name in names:
        raise ConfigError(f"another list is called {name} here: give this one a name with --as")
    if len(names) >= SUBSCRIPTIONS_MAX:
        raise ConfigError(f"{SUBSCRIPTIONS_MAX} lists are subscribed, which is the most: give one up first")


def _called(subscription: Subscription, entry: CatalogueEntry) -> CatalogueEntry:
    return replace(entry, name=f"{subscription.name}/{entry.name}", list_name=subscription.name)


def _record(each: Subscription) -> dict[str, Any]:
    return {
        "name": each.name,
        "pointer": each.pointer.to_bytes().hex(),
        "taken_at": each.taken_at,
        "asked_at": each.asked_at,
        "entries": each.entries,
        "left_out": each.left_out,
    }


def _subscription(record: dict[str, Any]) -> Subscription:
    return Subscription(
        name=str(record["name"]),
        pointer=parse_entry(bytes.fromhex(record["pointer"])),
        taken_at=int(record["taken_at"]),
        asked_at=int(record["asked_at"]),
        entries=int(record["entries"]),
        left_out=int(record["left_out"]),
    )


def _damaged(path: Path, why: str) -> str:
    return (
        f"{path}: a list of models is damaged here ({why}): `p2pnode models lists refresh` fetches it again"
    )


def _unreadable(path: Path, why: str) -> str:
    return (
        f"{path}: which lists are subscribed can't be read ({why[:200]}): move it away, and subscribe again "
        "to each list (`p2pnode models lists subscribe KEY`)"
    )
