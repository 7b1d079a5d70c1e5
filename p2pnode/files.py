"""Files that must not be lost, torn or read by others: the ways in which this package writes files.

A file is written whole or not at all, by renaming a temporary file in the same folder. Anything but a regular
file (a device, a pipe, a link, a folder) is never replaced; the user's umask applies. All of it blocks: with
other tasks running, it is handed to :func:`off_the_loop`.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import structlog

from p2pnode.errors import ConfigError, UsageError
from p2pnode.locks import lock, open_folder
from p2pnode.platforms import BINARY, sync_folder

log = structlog.get_logger()
T = TypeVar("T")
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_NAME_SHOWN: Final = 40
"""How many characters of a file's name its temporary file's name has: that must not get too long."""
_TRIAL_BYTES: Final = 4096
"""Of the file that is written to see whether a folder takes any."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})
_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_KINDS: Final[tuple[tuple[Callable[[int], bool], str], ...]] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file of our own; a regular file at that path is replaced.

    Raises ``ConfigError``, also where something else stands at that path.
    """
    try:
        if kind := special_kind(path):
            msg = f"{path} is {kind}, not a file: move it away, or name another place"
            raise ConfigError(msg)
        _write(path, data, mode, replace=True)
    except OSError as error:
        raise not_writable(path, error) from error


def write_private(path: Path, data: bytes) -> None:
    """Write a secret, in a file that has mode 0600 before its first byte."""
    write_atomic(path, data, mode=0o600)


def write_new(path: Path, data: bytes, *, mode: int = 0o644, force: bool = False) -> None:
    """Write a new file that the user named; with ``force``, a regular file at that path is replaced.

    Raises ``UsageError``. Of two processes that make the same file at once, one gets the error.
    """
    refuse_taken(path, force=force)
    try:
        _write(path, data, mode, replace=force)
    except FileExistsError as error:
        raise UsageError(f"{path} exists: name another file") from error
    except OSError as error:
        raise _unusable(path, error) from error


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder of files that the user named: it is there with all of them, or not at all.

    Its parent folders are made. Raises ``UsageError``, also where something is at that path already, unless
    it is an empty folder.
    """
    _refuse_mount(path)
    temporary = path.with_name(f".{path.name[:_NAME_SHOWN]}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            for name, data in files.items():
                _make(temporary / name, data, 0o644)
            _sync(temporary)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(path.parent)
    except OSError as error:
        if error.errno in _TAKEN:
            raise UsageError(f"{path} exists: name another folder") from error
        raise _unusable(path, error, "folder") from error


def _refuse_mount(path: Path) -> None:
    """A whole folder takes another one's place by a new name, which a mounted file system can't get."""
    if os.path.ismount(path.absolute()):  # pathlib's own is not there on Windows
        msg = f"a file system is mounted at {path}: name a folder in it, such as {path / 'results'}"
        raise UsageError(msg)


def refuse_folder(path: Path) -> None:
    """Raise ``UsageError`` where :func:`write_folder` could not write this folder.

    Its parent folders are made, and tried with a small file. It is to be called before the work whose outcome
    is written there.
    """
    _refuse_mount(path)
    try:
        taken = os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))
    except OSError as error:
        raise _unusable(path, error, "folder") from error
    if taken:
        raise UsageError(f"{path} exists: name another folder")
    trial = path.with_name(f".{path.name[:_NAME_SHOWN]}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(trial, bytes(_TRIAL_BYTES), 0o644)
        trial.unlink()
    except OSError as error:
        raise _unusable(path, error, "folder") from error


def refuse_taken(path: Path, *, force: bool | None = False) -> None:
    """Raise ``UsageError`` where :func:`write_new` would. With ``force`` None, nothing may be overwritten at
    all.

    It is to be called before the work whose outcome is written there.
    """
    try:
        kind = special_kind(path)
        taken = os.path.lexists(path)
        folder = path.absolute().parent
        there = folder.is_dir()
    except OSError as error:
        raise _unusable(path, error) from error
    if kind:
        msg = f"{path} is {kind}, which is never replaced: name a file"
        raise UsageError(msg)
    if taken and not force:
        hint = "" if force is None else ", or overwrite this one with --force"
        msg = f"{path} exists: name another file{hint}"
        raise UsageError(msg)
    if not there:
        msg = f"there is no folder {folder}: make it first"
        raise UsageError(msg)


def special_kind(path: Path) -> str:
    """What stands at a path, in words, where it is no regular file; "" for a regular file and for nothing.

    Raises ``OSError`` when the path can't be looked at.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return next((words for holds, words in _KINDS if holds(mode)), "")


def close_to_others(path: Path, *, silent: bool = False) -> None:
    """Take all permissions on a file or folder of ours from everybody but its owner, and log that.

    Where there is no such file, or others have no permission, nothing happens. ``silent`` logs no success:
    others could not have read a secret.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return  # there is nothing, or nothing that we may look at: whoever reads it raises
    if not mode & OTHERS:
        return
    try:
        path.chmod(mode & ~OTHERS)
        closed = not path.stat().st_mode & OTHERS  # some file systems know no modes
    except OSError:
        closed = False
    if closed and not silent:
        remedy = "it is yours alone now; if somebody may have read a secret in it, make another"
        log.error("private.was_open", path=str(path), mode=f"{mode:04o}", remedy=remedy)
    if not closed:
        remedy = "others on this machine may read it: use a disk that knows permissions, or make it yours"
        log.error("private.is_open", path=str(path), remedy=remedy)


def read_secret_or_none(path: Path) -> str | None:
    """Read a secret as :func:`read_text_or_none` does, and close it to others where they could read it."""
    close_to_others(path)
    # Of letters that are none its reader says that the secret is damaged: nobody saves one in UTF-8.
    return read_text_or_none(path, errors="replace")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time looks whether a file is there. What it made is durable when it lets go."""
    handle = open_folder(folder)
    try:
        lock(handle)
        yield
        os.fsync(handle)
    finally:
        os.close(handle)


async def off_the_loop(work: Callable[[], T], *, in_thread: bool = True) -> T:
    """Do work on a disk in a thread, and return what it returns: a sync may take seconds.

    A caller that is cancelled meanwhile waits for the end of the work, so that nothing is left half done.
    Without ``in_thread`` the work blocks, as simulations need it: a mock clock would not wait for a thread.
    """
    import trio  # here, because commands without an event loop import this module

    if in_thread:
        return await trio.to_thread.run_sync(work)
    await trio.lowlevel.checkpoint()
    return work()


def read_text_or_none(path: Path, *, errors: str = "strict") -> str | None:
    """The text of a file; None where there is none. Raises ``ConfigError`` when it can't be read.

    ``errors``: what becomes of bytes that are no UTF-8, as of ``bytes.decode``.
    """
    try:
        return path.read_text(encoding="utf-8", errors=errors)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder, not a file: move it away, or name another file") from error
    except UnicodeDecodeError as error:
        msg = f"{path} can't be read ({_reason(error)}): save it in UTF-8, or name another file"
        raise ConfigError(msg) from error
    except OSError as error:
        msg = f"{path} can't be read ({_reason(error)}): check its owner and permissions"
        raise ConfigError(msg) from error


def user_path(given: str | Path) -> Path:
    """The absolute path that a user gave, with ``~`` expanded. Raises ``UsageError``."""
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError as error:  # pathlib's word for a user without a home
        msg = f"{given}: there is no such user, or no home folder: write the path in full"
        raise UsageError(msg) from error
    except OSError as error:
        msg = f"{given}: the folder you are in is gone ({_reason(error)}): change to another one"
        raise UsageError(msg) from error


def not_writable(path: Path, error: OSError) -> ConfigError:
    """The error for a path that can't be written."""
    return ConfigError(
        f"{path} can't be written ({_reason(error)}): choose another folder with --data-dir, "
        "or free space and fix its permissions"
    )


def _unusable(path: Path, error: OSError, kind: str = "file") -> UsageError:
    room = "free some space, or " if error.errno in _FULL else ""
    return UsageError(f"{path} can't be written ({_reason(error)}): {room}name another {kind}")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    return getattr(error, "strerror", None) or type(error).__name__


def _write(path: Path, data: bytes, mode: int, *, replace: bool) -> None:
    """Raises ``OSError``; ``FileExistsError`` without ``replace`` where something is."""
    temporary = path.with_name(f".{path.name[:_NAME_SHOWN]}.{secrets.token_hex(8)}")
    try:
        _make(temporary, data, mode)
        if replace:
            temporary.replace(path)
        else:
            _put(temporary, path, data, mode)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make the entries of a folder durable."""
    # It may be written and not read: the system syncs its entry when it likes.
    with suppress(PermissionError):
        sync_folder(folder)


def _put(temporary: Path, path: Path, data: bytes, mode: int) -> None:
    """Give the temporary file its name. Fails where that is taken, which a rename would replace."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _make(path, data, mode)


def _make(path: Path, data: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
