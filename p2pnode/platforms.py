"""What POSIX systems and Windows do differently, once each: processes, signals, limits, files.

Modules that only one of them has are imported in the functions that need them, so that every module of this
package can be imported everywhere. What Windows can't do at all raises ``LocalError``.
Sockets, locks and terminals have modules of their own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from p2pnode.errors import LocalError

BINARY: Final[int] = getattr(os, "O_BINARY", 0)
"""For ``os.open``: without it Windows changes the ends of lines."""
if sys.platform == "win32":
    HANGUP: Final[signal.Signals | None] = None
    KILL: Final = signal.SIGTERM  # there any signal ends a process at once
else:
    HANGUP: Final[signal.Signals | None] = signal.SIGHUP
    """What a process gets when its terminal is closed."""
    KILL: Final = signal.SIGKILL
_BLOCK_BYTES: Final = 512
"""The unit of ``st_blocks``, whatever the disk's own is."""
_one_writer = threading.Lock()


def unsupported(what: str) -> LocalError:
    """The error for ``what`` can't be done on this system, and why."""
    return LocalError(f"{what}, which this system doesn't have: on Windows, run p2pnode in WSL 2")


# ---- processes and signals


def cores_here() -> int:
    """How many this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def user_id() -> int:
    """The number of this user; 0 where users have none."""
    if sys.platform == "win32":
        return 0
    return os.getuid()


def own_group() -> dict[str, Any]:
    """Of a process that is started: Ctrl-C at the terminal does not reach it, nor what it starts."""
    if sys.platform == "win32":
        import subprocess

        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def kill_group(pid: int) -> None:
    """End a process started with :func:`own_group`, and all that it has started. Raises ``OSError``."""
    if sys.platform == "win32":
        os.kill(pid, KILL)  # what it has started goes on
    else:
        os.killpg(pid, signal.SIGKILL)


@contextmanager
def interrupt_blocked() -> Iterator[None]:
    """This thread, and the processes that it starts meanwhile, don't get Ctrl-C."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def require_fork() -> None:
    """Raises ``LocalError`` where no process can be copied and limited."""
    if sys.platform == "win32":
        raise unsupported("a stranger's template runs in a copy of a process, with limits")


def ended_well(pid: int) -> bool | None:
    """Wait for the end of a copy of this process; None where a signal ended it."""
    if sys.platform == "win32":
        raise unsupported("waiting for a copy of a process")
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return None
    return os.WIFEXITED(status) and not os.WEXITSTATUS(status)


def fork() -> int:
    """Copy this process: 0 in the copy."""
    if sys.platform == "win32":
        raise unsupported("a copy of a process")
    return os.fork()


def limit_this_process(*, memory_bytes: int, cpu_s: float) -> None:
    """From now on it gets so much more memory, is killed after so much CPU time, and leaves no core file."""
    if sys.platform == "win32":
        raise unsupported("limits of a process")
    import resource

    size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + memory_bytes, size + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, cpu_s)  # its signal kills, whatever runs


# ---- files


def write_at(handle: int, data: bytes, offset: int) -> None:
    """Write all of it at a place of a file, beside other threads that do so. Raises ``OSError``."""
    view = memoryview(data)
    while view:
        if sys.platform == "win32":
            with _one_writer:
                os.lseek(handle, offset, os.SEEK_SET)
                done = os.write(handle, view)
        else:
            done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done


def bytes_on_disk(path: Path) -> int:
    """How many a file takes there, which are fewer than its size where it has holes. Raises ``OSError``."""
    found = path.stat()
    if sys.platform == "win32":
        return found.st_size
    return found.st_blocks * _BLOCK_BYTES


def sync_folder(path: Path) -> None:
    """Return when a folder's names are on the disk; Windows has no way to wait for it. Raises ``OSError``."""
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
