"""Every module can be imported where there is no POSIX, and what systems do differently does what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from p2pnode.platforms import (
    HANGUP,
    bytes_on_disk,
    cores_here,
    interrupt_blocked,
    kill_group,
    own_group,
    sync_folder,
    write_at,
)

ROOT = Path(__file__).parent.parent

IMPORTER = """
import builtins, importlib, pkgutil, sys, types, warnings
warnings.simplefilter("ignore")
BLOCKED = {"fcntl", "termios", "resource", "pwd", "grp", "tty", "pty"}
plain = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    # Only of our own modules: other libraries import these on Linux, and others on Windows.
    if name in BLOCKED and str((globals or {}).get("__name__", "")).startswith("p2pnode"):
        raise ImportError(f"{globals['__name__']} imports {name}")
    return plain(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
failed, count = [], 0
def imported(name):
    global count
    try:
        importlib.import_module(name)
        count += 1
    except ImportError as error:
        if "imports" in str(error):
            failed.append(str(error))
"""
ALL = (
    IMPORTER
    + """
import p2pnode
names = [each.name for each in pkgutil.walk_packages(p2pnode.__path__, "p2pnode.")]
for name in names:
    if not name.endswith("__main__"):
        imported(name)
print(count)
sys.exit("; ".join(failed) or 0)
"""
)
OFFENDER = (
    IMPORTER
    + """
import p2pnode
module = types.ModuleType("p2pnode.offender")
try:
    exec("import fcntl", vars(module))
except ImportError as error:
    sys.exit(str(error))
"""
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.long
def test_every_module_is_imported_without_what_only_posix_has() -> None:
    found = run(ALL)
    assert found.returncode == 0, found.stderr[-2000:]
    assert int(found.stdout) > 500


def test_a_module_that_imports_what_only_posix_has_is_found() -> None:
    found = run(OFFENDER)
    assert found.returncode == 1
    assert "p2pnode.offender imports fcntl" in found.stderr


def test_some_cores_are_here_and_a_terminal_can_hang_up() -> None:
    assert 1 <= cores_here() <= (os.cpu_count() or 1)
    assert HANGUP == signal.SIGHUP


def test_writes_of_several_threads_come_to_stand_where_each_belongs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    threads = [threading.Thread(target=write_at, args=(handle, bytes([n]) * 99, n * 99)) for n in range(9)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    os.close(handle)
    assert path.read_bytes() == b"".join(bytes([n]) * 99 for n in range(9))


def test_a_hole_takes_nothing_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 1 << 20)
    assert bytes_on_disk(path) < path.stat().st_size
    path.write_bytes(b"x" * (1 << 16))
    sync_folder(tmp_path)
    assert bytes_on_disk(path) >= 1 << 15


def test_ctrl_c_waits_until_it_may_come_and_no_child_inherits_it(request: pytest.FixtureRequest) -> None:
    # Where tests are shared out over processes these ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - what comes at the end of the inner block
        with interrupt_blocked():
            signal.raise_signal(signal.SIGINT)
            blocked = [sys.executable, "-c", "import signal; print(signal.pthread_sigmask(0, []))"]
            said = subprocess.run(blocked, capture_output=True, text=True, check=True).stdout
            assert "SIGINT" in said
        pytest.fail("it came too late")


def test_a_group_ends_with_what_it_has_started() -> None:
    code = "import subprocess,sys; print(subprocess.Popen(['sleep','99']).pid, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **own_group()
    ) as process:
        assert process.stdout is not None
        started = int(process.stdout.readline())
        assert os.getpgid(started) == process.pid != os.getpgrp()
        kill_group(process.pid)
        assert process.wait() == -signal.SIGKILL
        assert process.stdout.read() == ""  # its end was held by what it has started, too
