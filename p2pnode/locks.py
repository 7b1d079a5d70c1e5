"""Locks on files, which the system gives up however a process ends, through the library filelock.

A lock is on the open file, and is released when that is closed. All of this blocks. The library is imported
where it is used, because it takes as long as a small command.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

from p2pnode.platforms import BINARY

_WAIT_S: Final = 0.01
_LOOKS: Final = 3
_LOOK_S: Final = 0.001


def lock(handle: int) -> None:
    """Wait for the lock of an open file. Raises ``OSError`` where there are no locks."""
    from filelock import lock_descriptor

    # The first try needs no wait. Later ones come by themselves: the library doesn't queue.
    lock_descriptor(handle, poll_interval=_WAIT_S)


def try_lock(handle: int) -> bool:
    """Take the lock of an open file if nobody has it, and return whether it was taken.

    Where there are no locks it counts as somebody else's.
    """
    from filelock import lock_descriptor

    for look in range(_LOOKS):
        # Whoever only looks whether a lock is held has it for microseconds: that must not count as held.
        if look:
            time.sleep(_LOOK_S)
        try:
            if lock_descriptor(handle, blocking=False):
                return True
        except OSError:
            return False
    return False


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file. False where there is no such file or it can't be opened."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)


def holder(path: Path) -> int | None:
    """The process that holds the lock of a file and wrote its number there; None where nobody does."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        said = "" if try_lock(handle) else pid_in(handle)
    finally:
        os.close(handle)
    return int(said) if said.isdecimal() and int(said) > 1 else None


def pid_in(handle: int) -> str:
    """What :func:`write_pid` wrote; "" where it can't be read, as a locked file on Windows."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        return os.read(handle, 32).decode(errors="replace").strip()
    except OSError:
        return ""


def write_pid(handle: int) -> None:
    """Write the number of this process into a file that it has locked."""
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, str(os.getpid()).encode())


def open_folder(folder: Path) -> int:
    """A handle by which a folder is locked. Raises ``OSError``."""
    if sys.platform == "win32":  # no folder can be opened there
        return os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | BINARY, 0o600)
    return os.open(folder, os.O_RDONLY)
