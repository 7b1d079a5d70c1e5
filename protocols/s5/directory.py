"""Directories of S5's file system (FS5), in the form that s5.js writes (DirV1).

::

    5f 5d | CBOR ["S5.pro", {}, {name: directory}, {name: file}]
    directory   {2: link[33], 7: seconds, 8: nanoseconds}
    file        {3: hash[32], 4: size, 6: media type, 7: seconds, 8: nanoseconds, 23: the file before}

Keys that this node has no use for (9 places, 22 more about a file) are kept as they stand, so that writing a
directory back loses nothing. A directory whose entries are elsewhere (sharded, from 1000 on) is an error and
never an empty one: who takes it for empty overwrites it. Of the older msgpack form only the empty directory
is read. Pure; encryption is in ``encryption``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.cbor import dumps, loads
from p2pnode.protocols.s5.ids import HASH_BYTES, BlobHash
from p2pnode.protocols.s5.links import Link, link_bytes, parse_link

DIRECTORY_MAX: Final = 4 << 20
"""Bytes, decrypted."""
NAME_MAX: Final = 1024
"""Bytes of a name's UTF-8."""
LEGACY_EMPTY: Final = b"\x5f\x5d\x80\x80\x80"
_MAGIC: Final = b"\x5f\x5d"
_FORMAT: Final = "S5.pro"
_PARTS: Final = 4
_LINK, _HASH, _SIZE, _MEDIA_TYPE, _SECONDS, _NANOS, _PREVIOUS = 2, 3, 4, 6, 7, 8, 23
_NUMBER_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file: which blob, its size in bytes, and when it was written (epoch seconds, and nanoseconds)."""

    digest: BlobHash
    size: int
    media_type: str | None = None
    seconds: int | None = None
    nanos: int | None = None
    previous: FileRef | None = None
    other: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirRef:
    """A directory inside another."""

    link: Link
    seconds: int | None = None
    nanos: int | None = None
    other: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Names of directories and of files."""

    dirs: Mapping[str, DirRef] = field(default_factory=dict)
    files: Mapping[str, FileRef] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As it is stored, or encrypted: names in the order of their UTF-8, keys in that of their number."""
        dirs = {name: _dir_map(self.dirs[name]) for name in sorted(self.dirs, key=str.encode)}
        files = {name: _file_map(self.files[name]) for name in sorted(self.files, key=str.encode)}
        return _MAGIC + dumps([_FORMAT, {}, dirs, files])


def parse_directory(raw: bytes) -> Directory:
    """A directory from its bytes. Raises ``ProtocolError``."""
    if raw == LEGACY_EMPTY:
        return Directory()
    if raw[:2] != _MAGIC or len(raw) > DIRECTORY_MAX:
        msg = f"not a directory: it begins with 5f5d and has at most {DIRECTORY_MAX} bytes"
        raise ProtocolError(msg)
    parts = loads(raw[2:])
    if type(parts) is not list or len(parts) != _PARTS or parts[0] != _FORMAT:
        msg = 'not a directory of the form "S5.pro": another program, or an older one, wrote it'
        raise ProtocolError(msg)
    if parts[1] != {}:
        msg = "this directory has a header: its entries may be elsewhere (sharded); only s5.js can open it"
        raise ProtocolError(msg)
    return Directory(
        dirs={_name(name): _dir_ref(told) for name, told in _map(parts[2]).items()},
        files={_name(name): _file_ref(told) for name, told in _map(parts[3]).items()},
    )


def _dir_map(ref: DirRef) -> dict[int, Any]:
    return _ordered({**ref.other, _LINK: link_bytes(ref.link), _SECONDS: ref.seconds, _NANOS: ref.nanos})


def _file_map(ref: FileRef) -> dict[int, Any]:
    previous = None if ref.previous is None else _file_map(ref.previous)
    known = {
        _HASH: ref.digest,
        _SIZE: ref.size,
        _MEDIA_TYPE: ref.media_type,
        _SECONDS: ref.seconds,
        _NANOS: ref.nanos,
        _PREVIOUS: previous,
    }
    return _ordered({**ref.other, **known})


def _ordered(told: dict[int, Any]) -> dict[int, Any]:
    return {key: told[key] for key in sorted(told) if told[key] is not None}


def _dir_ref(raw: Any) -> DirRef:
    told = _map(raw)
    return DirRef(
        link=parse_link(_bytes(told.pop(_LINK, None), "a directory's link")),
        seconds=_number(told.pop(_SECONDS, None), "seconds"),
        nanos=_number(told.pop(_NANOS, None), "nanoseconds"),
        other=_numbered(told),
    )


def _file_ref(raw: Any) -> FileRef:
    told = _map(raw)
    digest = _bytes(told.pop(_HASH, None), "a file's hash")
    size = _number(told.pop(_SIZE, None), "a file's size")
    media_type = told.pop(_MEDIA_TYPE, None)
    previous = told.pop(_PREVIOUS, None)
    if len(digest) != HASH_BYTES or size is None or not isinstance(media_type, str | None):
        msg = "a file in a directory has a hash of 32 bytes, a size, and text as its media type"
        raise ProtocolError(msg)
    return FileRef(
        digest=BlobHash(digest),
        size=size,
        media_type=media_type,
        seconds=_number(told.pop(_SECONDS, None), "seconds"),
        nanos=_number(told.pop(_NANOS, None), "nanoseconds"),
        previous=None if previous is None else _file_ref(previous),
        other=_numbered(told),
    )


def _map(raw: Any) -> dict[Any, Any]:
    if type(raw) is not dict:
        msg = "a directory's entries, and each of them, are maps"
        raise ProtocolError(msg)
    return dict(raw)


def _name(raw: Any) -> str:
    if type(raw) is str and 0 < len(raw.encode()) <= NAME_MAX and not _is_path(raw):
        return raw
    msg = f"a name in a directory has 1 to {NAME_MAX} bytes, no slash, and is not a dot or two"
    raise ProtocolError(msg)


def _is_path(name: str) -> bool:
    return name in {".", ".."} or "/" in name or "\0" in name


def _bytes(raw: Any, what: str) -> bytes:
    if type(raw) is not bytes:
        msg = f"{what} must be bytes"
        raise ProtocolError(msg)
    return raw


def _number(raw: Any, what: str) -> int | None:
    """Whole, also where JavaScript wrote a large one as a float."""
    if raw is None:
        return None
    if type(raw) in (int, float) and 0 <= raw <= _NUMBER_MAX and raw == int(raw):
        return int(raw)
    msg = f"{what} must be a whole number from 0"
    raise ProtocolError(msg)


def _numbered(told: dict[Any, Any]) -> dict[int, Any]:
    if all(type(key) is int for key in told):
        return {key: value for key, value in told.items() if value is not None}
    msg = "the keys of a directory's entries are numbers"
    raise ProtocolError(msg)
