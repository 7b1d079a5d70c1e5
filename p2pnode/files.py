"""Files that must not be lost, torn or read by others: the few ways this package writes to disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from p2pnode.errors import ConfigError


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write whole or not at all: a temporary file beside it, fsync, rename, fsync of the folder."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise not_writable(path, error) from error


def write_private(path: Path, data: bytes) -> None:
    """Write a secret: mode 0600 from its first byte on."""
    write_atomic(path, data, mode=0o600)


def read_text_or_none(path: Path) -> str | None:
    """The text of a file; None where there is none. Raises ``ConfigError`` when it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} can't be read ({error}): check its owner and permissions"
        raise ConfigError(msg) from error


def not_writable(path: Path, error: OSError) -> ConfigError:
    """The error for a path the user's node can't write."""
    reason = error.strerror or type(error).__name__
    return ConfigError(
        f"{path} can't be written ({reason}): choose another folder with --data-dir, "
        "or free space and fix its permissions"
    )
