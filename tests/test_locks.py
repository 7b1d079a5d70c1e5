"""A lock keeps others out until its file is closed or its process is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from p2pnode.locks import holder, is_held, lock, open_folder, pid_in, try_lock, write_pid

HOLD = """
import os, sys
from p2pnode.locks import lock, write_pid
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
lock(handle); write_pid(handle)
print("held", flush=True)
sys.stdin.read()
"""


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def test_one_has_a_lock_and_the_next_one_gets_it_when_its_file_is_closed(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    assert try_lock(first)
    assert not try_lock(second)
    os.close(first)
    assert try_lock(second)
    os.close(second)


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    lock(first)
    got = threading.Event()

    def wait() -> None:
        lock(second)
        got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.05)
    os.close(first)
    assert got.wait(5)
    thread.join()
    os.close(second)


def test_a_process_that_is_killed_holds_nothing_any_more(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_held(path)
        assert holder(path) == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not is_held(path)
    assert holder(path) is None, "the number of a process that is gone still stands there"


def test_a_lock_without_a_number_has_no_holder(tmp_path: Path) -> None:
    handle = opened(tmp_path / "lock")
    lock(handle)
    assert is_held(tmp_path / "lock")
    assert holder(tmp_path / "lock") is None
    write_pid(handle)
    assert pid_in(handle) == str(os.getpid())
    assert holder(tmp_path / "lock") == os.getpid()
    os.close(handle)


def test_no_file_is_held_by_nobody(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "none")
    assert holder(tmp_path / "none") is None
    assert not (tmp_path / "none").exists(), "a look makes no file"


def test_a_folder_is_locked_for_one(tmp_path: Path) -> None:
    first, second = open_folder(tmp_path), open_folder(tmp_path)
    lock(first)
    assert not try_lock(second)
    os.close(first)
    assert try_lock(second)
    os.close(second)
    with pytest.raises(FileNotFoundError):
        open_folder(tmp_path / "none")
