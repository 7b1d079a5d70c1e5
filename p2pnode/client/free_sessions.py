"""Free sessions that were left, in a small private file: their hosts still have the prompt cache.

A session is taken out of the file by whoever resumes it, under a lock, so that two processes never resume
one. What the file says costs nothing where it is wrong: the host refuses, and another session is opened. A
damaged file is one without sessions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from p2pnode.errors import ConfigError
from p2pnode.files import locked, read_secret_or_none, write_private
from p2pnode.ids import ModelId, PeerId, SessionId

log = structlog.get_logger()
FREE_MAX: Final = 64
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeSession:
    """A free session that was left with ``host`` until ``until``. ``secret`` is that of its resume key."""

    session: SessionId
    host: PeerId
    model: ModelId
    secret: bytes = field(repr=False)
    until: int
    generation: int
    addresses: tuple[str, ...] = ()
    """Where its host was."""


class FreeSessions:
    """The file at ``path``, or nothing but this process's memory where it is None. All of it blocks."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._here: list[FreeSession] = []
        self._seen: tuple[tuple[int, ...], list[FreeSession]] | None = None
        """What the file held last, and by which of its marks one sees whether it still does: a search asks
        for each host that it finds."""

    def has(self, host: PeerId, model: ModelId, now: int) -> bool:
        """Whether a session with this host may be resumed."""
        return any(_fits(each, host, model, now) for each in self._read())

    def hosts(self, model: ModelId, now: int) -> dict[PeerId, tuple[str, ...]]:
        """The hosts with which sessions of a model were left, those of the last ones first, and where they
        were then."""
        left = [each for each in self._read() if _fits(each, each.host, model, now)]
        return {each.host: each.addresses for each in reversed(left)}

    def take(self, host: PeerId, model: ModelId, now: int) -> FreeSession | None:
        """The session with this host that was left last, taken out; None where there is none."""
        with self._changing() as known:
            found = next((each for each in reversed(known) if _fits(each, host, model, now)), None)
            if found is not None:
                known.remove(found)
        return found

    def put(self, left: FreeSession, now: int) -> None:
        """A session was left. Of too many those that were left first are forgotten."""
        with self._changing() as known:
            known[:] = [each for each in known if each.session != left.session and each.until > now]
            known.append(left)
            del known[:-FREE_MAX]

    @contextmanager
    def _changing(self) -> Iterator[list[FreeSession]]:
        """The sessions, to be changed; no other process changes them meanwhile."""
        path = self._path
        if path is None or not path.parent.is_dir():
            yield self._here
            return
        try:
            with locked(path.parent):
                known = self._read()
                before = list(known)
                yield known
                if known != before:
                    write_private(path, _rows(known))
        except (ConfigError, OSError) as error:  # the next command opens another session
            log.debug("free_sessions.not_written", reason=str(error))

    def _read(self) -> list[FreeSession]:
        path = self._path
        if path is None or not path.parent.is_dir():
            return list(self._here)
        try:
            mark = _mark(path)
            if self._seen is None or self._seen[0] != mark:
                raw = json.loads(read_secret_or_none(path) or "[]")
                self._seen = mark, [_parsed(each) for each in raw]
            return list(self._seen[1])
        except (ConfigError, OSError, ValueError, TypeError, KeyError):
            log.debug("free_sessions.unreadable")
            return []


def _mark(path: Path) -> tuple[int, ...]:
    """Another one after each writing: a file that is written is a new one. Empty where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _rows(known: list[FreeSession]) -> bytes:
    rows = [
        {name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(each).items()}
        for each in known
    ]
    return json.dumps(rows).encode()


def _fits(left: FreeSession, host: PeerId, model: ModelId, now: int) -> bool:
    return (left.host, left.model) == (host, model) and left.until > now


def _parsed(row: dict[str, Any]) -> FreeSession:
    """Raises ``ValueError``, ``TypeError`` and ``KeyError`` where it is none of ours."""
    session, model, secret = (bytes.fromhex(row[name]) for name in ("session", "model", "secret"))
    until, generation, host, addresses = (row[name] for name in ("until", "generation", "host", "addresses"))
    texts = [host, *addresses]
    if type(until) is not int or type(generation) is not int or {*map(type, texts)} != {str}:
        msg = "a damaged row"
        raise TypeError(msg)
    if len(secret) != _SECRET_BYTES:
        msg = "a damaged key"
        raise ValueError(msg)
    return FreeSession(
        session=SessionId(session),
        host=PeerId(host),
        model=ModelId(model),
        secret=secret,
        until=until,
        generation=generation,
        addresses=tuple(addresses),
    )
