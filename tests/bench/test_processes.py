"""Processes that the bench starts end with it, whatever ends it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import trio

from p2pnode.bench.cli import run_timed
from p2pnode.bench.processes import child, joined
from p2pnode.errors import LocalError

_PATIENCE_S = 30
_PROGRAM = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.02)


def supervised(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "p2pnode.bench.supervisor", sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def read_pid(path: Path) -> int:
    deadline = time.monotonic() + _PATIENCE_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, "it did not start"
        time.sleep(0.02)
    return int(path.read_text())


def test_a_supervised_program_ends_when_its_stdin_closes(tmp_path: Path) -> None:
    supervisor = supervised(_PROGRAM, str(tmp_path / "pid"))
    pid = read_pid(tmp_path / "pid")
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    assert supervisor.wait(_PATIENCE_S) == 0
    wait_gone(pid)


def test_a_supervised_program_outlives_an_interrupt_that_was_not_for_it(tmp_path: Path) -> None:
    supervisor = supervised(_PROGRAM, str(tmp_path / "pid"))
    pid = read_pid(tmp_path / "pid")
    supervisor.send_signal(2)
    assert psutil.pid_exists(pid)
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    supervisor.wait(_PATIENCE_S)
    wait_gone(pid)


def test_a_supervisor_ends_with_the_code_of_its_program() -> None:
    supervisor = supervised("raise SystemExit(7)")
    assert supervisor.wait(_PATIENCE_S) == 7
    assert supervisor.stdin is not None
    supervisor.stdin.close()


async def test_a_child_answers_and_is_gone_afterwards() -> None:
    config = {"engine": "scripted", "slots": 1, "n_ctx": 512, "tokens_per_s": None}
    with trio.fail_after(60):
        async with child("host_process", config) as (host, told):
            assert told["model"] == "scripted"
            assert "/tcp/" in told["multiaddr"]
            command = {"do": "generate", "questions": ["one", "two"], "tokens": 40}
            streams = (await host.ask(command, deadline_s=30))["streams"]
            assert [stream["tokens"] for stream in streams] == [40, 40]
            pid = host.pid
    assert not psutil.pid_exists(pid)


async def test_a_child_is_gone_when_the_bench_is_cancelled() -> None:
    pids: list[int] = []
    with trio.fail_after(60), trio.CancelScope() as scope:
        async with child("nodes_process", {"library": False, "nodes": 2, "settle_s": 0}) as (nodes, _):
            pids.append(nodes.pid)
            scope.cancel()
            await trio.sleep_forever()
    assert not psutil.pid_exists(pids[0])


async def test_a_child_that_fails_tells_its_last_words() -> None:
    with trio.fail_after(60), pytest.raises(LocalError, match="unknown engine 'abacus'"):
        async with child("host_process", {"engine": "abacus", "slots": 1, "n_ctx": 512}):
            pass


async def test_a_join_that_fails_tells_its_last_words(tmp_path: Path) -> None:
    with trio.fail_after(60), pytest.raises(LocalError, match="unknown model 'gpt-9'"):
        async with joined(tmp_path, "host", ["--model=gpt-9"]):
            pass


async def test_a_program_is_timed_to_its_first_byte_and_to_its_end() -> None:
    first, whole = await run_timed([sys.executable, "-c", "print('x')"])
    assert 0 < first <= whole


async def test_a_program_that_fails_gives_no_figure() -> None:
    with pytest.raises(LocalError, match="exit code 3"):
        await run_timed([sys.executable, "-c", "raise SystemExit(3)"])
