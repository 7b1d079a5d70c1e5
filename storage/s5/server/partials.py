"""Uploads that are not whole yet: two files each in a folder, so that they survive a restart.

``<id>.json`` says how long the blob is to be, its hash and for whom; ``<id>.part`` holds the bytes so far.
There are at most so many, and what nobody touched for a day is swept. Every call blocks on the disk, from any
thread; HTTP is not known here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pnode.errors import ConfigError, StorageError
from p2pnode.files import write_atomic
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.store import DiskFullError, OwnerKey

_ID: Final = re.compile(r"[0-9a-f]{32}")
_REST_S: Final = 600.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class TooManyPartialsError(StorageError):
    """As many uploads are under way as may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """An upload under way; ``offset`` bytes of ``length`` are here."""

    id: str
    length: int
    expected: BlobHash
    owner: OwnerKey
    offset: int = 0


class Partials:
    """Those in one folder, which is made where it isn't."""

    def __init__(self, folder: Path, *, count_max: int, age_max_s: float) -> None:
        self._folder, self._count_max, self._age_max_s = folder, count_max, age_max_s
        self._making = threading.Lock()
        """One that is being made is a half: nobody may sweep or count meanwhile."""
        folder.mkdir(mode=0o700, exist_ok=True)

    def make(self, begun: Partial, now: float, busy: Collection[str] = ()) -> None:
        """Begin one; its id is 32 random hex digits, ``busy`` are those that somebody sends to.

        Where all places are taken, one that was left alone for ten minutes gives way, or one of an owner who
        has more than the newcomer would. Raises ``TooManyPartialsError``.
        """
        with self._making:
            self._make_room(begun.owner, now, busy)
            self._make(begun)

    def _make_room(self, newcomer: OwnerKey, now: float, busy: Collection[str]) -> None:
        self.sweep(now)
        held = [found for path in self._folder.glob("*.part") if (found := self.find(path.stem)) is not None]
        if len(held) >= self._count_max:
            owners = Counter(each.owner for each in held)
            rests_s = {each.id: now - self._part(each.id).stat().st_mtime for each in held}
            may_go = [
                each.id
                for each in held
                if each.id not in busy
                and (rests_s[each.id] >= _REST_S or owners[each.owner] > owners[newcomer] + 1)
            ]
            if not may_go:
                msg = f"{self._count_max} uploads are under way: finish or delete one of them first"
                raise TooManyPartialsError(msg)
            self.remove(max(may_go, key=rests_s.__getitem__))

    def _make(self, begun: Partial) -> None:
        name = begun.id
        told = {"length": begun.length, "expected": begun.expected.hex(), "owner": begun.owner.hex()}
        try:
            self._part(name).touch(mode=0o600)
            write_atomic(self._note(name), json.dumps(told).encode(), mode=0o600)
        except (OSError, ConfigError) as error:
            self.remove(name)
            raise _explained(error) from error

    def find(self, name: str) -> Partial | None:
        """The upload of this id, if it is one."""
        if _ID.fullmatch(name) is None:
            return None
        try:
            told = json.loads(self._note(name).read_text(encoding="utf-8"))
            return Partial(
                id=name,
                length=int(told["length"]),
                expected=BlobHash(bytes.fromhex(told["expected"])),
                owner=OwnerKey(bytes.fromhex(told["owner"])),
                offset=self._part(name).stat().st_size,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def append(self, name: str, data: bytes) -> None:
        """Add to its end. Raises ``DiskFullError`` having added as much as there was room for."""
        try:
            with self._part(name).open("ab", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
        except OSError as error:
            raise _explained(error) from error

    def sync(self, name: str) -> None:
        """Make what was added durable."""
        handle = os.open(self._part(name), os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of what is here."""
        with self._part(name).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def remove(self, name: str) -> None:
        """Forget it."""
        self._note(name).unlink(missing_ok=True)
        self._part(name).unlink(missing_ok=True)

    def sweep(self, now: float) -> None:
        """Remove what was left alone for too long, and halves of what a crash tore."""
        for path in [*self._folder.glob("*.part"), *self._folder.glob("*.json")]:
            name = path.stem
            whole = self._part(name).exists() and self._note(name).exists()
            if not whole or now - self._part(name).stat().st_mtime > self._age_max_s:
                self.remove(name)

    def _part(self, name: str) -> Path:
        return self._folder / f"{name}.part"

    def _note(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _explained(error: OSError | ConfigError) -> StorageError:
    cause = error.__cause__ if isinstance(error, ConfigError) else error
    if isinstance(cause, OSError) and cause.errno in _FULL:
        return DiskFullError("the disk of this node is full: free space on it, then go on with the upload")
    return StorageError(f"this node can't write a partial upload ({error}): look at its disk")
