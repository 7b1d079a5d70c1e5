"""The bench's end of the line: processes it starts, talks with, and surely ends.

A child module (see ``lines.py``) ends when its stdin closes; a whole program is held by a leash
(``leash.py``) that does. So nothing is left behind, not even when the bench is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import trio

from p2pnode.bench.lines import LineReader
from p2pnode.errors import LocalError

_READY_DEADLINE_S: Final = 120.0
_END_DEADLINE_S: Final = 15.0
_POLL_S: Final = 0.05
_TAIL: Final = 1500


class Child:
    """A child module that answers commands one by one."""

    def __init__(self, name: str, process: trio.Process, errors: IO[bytes]) -> None:
        self._name, self._process, self._errors = name, process, errors
        assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
        self._lines = LineReader(process.stdout)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def ask(self, command: Mapping[str, Any], *, deadline_s: float) -> dict[str, Any]:
        """Its answer. Raises ``LocalError`` with its last words when it ends, or says nothing in time."""
        assert self._process.stdin is not None  # noqa: S101 - it was opened with a pipe
        try:
            with trio.fail_after(deadline_s):
                await self._process.stdin.send_all(json.dumps(command).encode() + b"\n")
                line = await anext(self._lines, None)
        except trio.TooSlowError:
            msg = f"{self._name} did not answer within {deadline_s:g} s: is the machine very busy?"
            raise LocalError(msg) from None
        except trio.BrokenResourceError:
            line = None
        if line is None:
            msg = f"{self._name} ended unexpectedly; its last words:\n{_tail(self._errors)}"
            raise LocalError(msg)
        told: dict[str, Any] = json.loads(line)
        return told


@asynccontextmanager
async def child(module: str, config: Mapping[str, Any]) -> AsyncIterator[tuple[Child, dict[str, Any]]]:
    """``python -m p2pnode.bench.MODULE``, configured; with it what it said when it was ready."""
    with tempfile.TemporaryFile() as errors:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", f"p2pnode.bench.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            one = Child(module, process, errors)
            yield one, await one.ask(config, deadline_s=_READY_DEADLINE_S)
        finally:
            await _end(process)


@dataclass(frozen=True, slots=True)
class Joined:
    """A ``p2pnode join`` that is ready."""

    pid: int
    multiaddrs: tuple[str, ...]
    data_dir: Path


@asynccontextmanager
async def joined(root: Path, name: str, arguments: Sequence[str]) -> AsyncIterator[Joined]:
    """Run ``p2pnode join`` on loopback, with a data dir of its own under ``root``."""
    ready, log = root / f"{name}.ready", root / f"{name}.log"
    ready.unlink(missing_ok=True)  # of one that was killed
    command = [
        *program("join", f"--data-dir={root / name}", f"--ready-file={ready}"),
        "--listen=/ip4/127.0.0.1/tcp/0",
        "--no-mdns",
        *arguments,
    ]
    with log.open("w+b") as output:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "p2pnode.bench.supervisor", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )
        try:
            with trio.move_on_after(_READY_DEADLINE_S):
                while process.poll() is None and not ready.exists():  # noqa: ASYNC110 - a file tells no event
                    await trio.sleep(_POLL_S)
            if not ready.exists():
                msg = f"`p2pnode join` did not become ready; its last words:\n{_tail(output)}"
                raise LocalError(msg)
            told = json.loads(ready.read_text())
            yield Joined(told["pid"], tuple(told["multiaddrs"]), root / name)
        finally:
            await _end(process)


def program(*arguments: str) -> list[str]:
    """The command line of ``p2pnode`` in this environment."""
    # -P: no file of the working folder may stand in for a module.
    return [sys.executable, "-P", "-m", "p2pnode", *arguments]


def keeping_byte_code() -> dict[str, str]:
    """The environment in which Python keeps compiled modules, as it does for users."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}


async def _end(process: trio.Process) -> None:
    """Close its stdin and wait; terminate, then kill, what doesn't listen."""
    with trio.CancelScope(shield=True):
        if process.stdin is not None:
            await process.stdin.aclose()
        for force in (process.terminate, process.kill, None):
            with trio.move_on_after(_END_DEADLINE_S):
                await process.wait()
            if process.poll() is not None or force is None:
                break
            force()
        if process.stdout is not None:
            await process.stdout.aclose()


def _tail(file: IO[bytes]) -> str:
    file.seek(0, 2)
    file.seek(max(0, file.tell() - _TAIL))
    return file.read().decode(errors="replace").strip() or "(nothing)"
