"""A program's own file, changed for as long as the program runs, and put back whatever happens.

What the file was is written down in ``folder`` before the file is changed. Each run that needs the change
holds a lock, which the kernel gives up however the run ends; the last one puts the file back, and after a
crash the next run of anything does. Only what was put in is taken out: what the program or its user changed
meanwhile stays.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from p2pnode.errors import ConfigError
from p2pnode.files import locked, write_atomic, write_private
from p2pnode.launch.programs import merged, unmerged
from p2pnode.launch.users import User, has_users

_RECORD: Final = ".borrowed.json"
_MODE: Final = 0o600
"""Of a file that was not there before: it may name a key."""


@contextmanager
def borrowed(folder: Path, path: Path, ours: Mapping[str, Any]) -> Iterator[None]:
    """``ours`` stands in the JSON file at ``path`` for the block. Blocks on the disk.

    Raises ``ConfigError`` where that file is no JSON object, or other runs need other things in it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
    record = folder / f"{name}{_RECORD}"
    with locked(folder):
        if not has_users(folder, name):
            _put_back(record)
            _change(path, ours, record)
        elif not record.exists() or json.loads(record.read_text())["ours"] != ours:
            raise ConfigError(
                f"another run has changed {path} for itself, with another model or gateway: end it "
                "first, or name the same model"
            )
        user = User(folder, name)
    with user:
        try:
            yield
        finally:
            with locked(folder):
                if user.is_alone():
                    _put_back(record)


def put_back_all(folder: Path) -> list[Path]:
    """Put back the files whose runs have crashed; returns them. Blocks on the disk."""
    if not folder.is_dir():
        return []
    done = []
    with locked(folder):
        for record in sorted(folder.glob(f"*{_RECORD}")):
            in_use = has_users(folder, record.name.removesuffix(_RECORD))
            if not in_use and (path := _put_back(record)) is not None:
                done.append(path)
    return done


def _change(path: Path, ours: Mapping[str, Any], record: Path) -> None:
    text = _read(path)
    before = _object(text or "{}", path)
    write_private(record, json.dumps({"path": str(path), "before": text, "ours": ours}).encode())
    _write(path, _pretty(merged(before, ours)))


def _put_back(record: Path) -> Path | None:
    """Take out what stands in the record; None where there is none."""
    try:
        noted = json.loads(record.read_text())
    except FileNotFoundError:
        return None
    path, text, ours = Path(noted["path"]), noted["before"], noted["ours"]
    before = json.loads(text) if text else {}
    now = _read(path)
    if now is not None:
        if now == _pretty(merged(before, ours)):
            _restore(path, text)
        else:
            # The program wrote its file. One that it broke is left as it is: its user will want to see it.
            with suppress(ConfigError):
                left = unmerged(_object(now, path), ours, before)
                _write(path, _pretty(left)) if left or text is not None else path.unlink()
    record.unlink()
    return path


def _restore(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    else:
        _write(path, text)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read ({error}): see to it first") from error


def _object(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path} is no JSON object, so it is left alone: `p2pnode connect` prints what to write into it"
        )
    return found


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Where it is a link, the file it leads to is written: people keep such files elsewhere."""
    path = path.resolve()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else _MODE
    write_atomic(path, text.encode(), mode=mode)
