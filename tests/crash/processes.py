"""Processes of these tests, as the tests see them. What runs in them is in ``mortal.py``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.crash.points import Point

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0


@contextmanager
def open_forge(folder: Path) -> Iterator[Forge]:
    """It imports while the first test prepares the rest; it ends when nobody can hand it anything."""
    err = folder / "err"
    ours, theirs = socket.socketpair()
    with err.open("wb") as stderr, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.mortal"], stdin=theirs.fileno(), stderr=stderr, cwd=ROOT
        )
    try:
        with ours:
            yield Forge(ours, err)
        process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Forge:
    """Makes processes: see ``mortal.py``."""

    control: socket.socket
    err: Path

    @asynccontextmanager
    async def process(
        self, role: str, config: dict[str, Any], point: Point | None, **rest: Any
    ) -> AsyncIterator[Program]:
        """One that dies at ``point``, or at the end of the block."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [b"!"], [theirs.fileno()])
        made = Program(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), self.err)
        order = {"role": role, "config": config, "point": None if point is None else str(point), **rest}
        try:
            await made.stream.send_all(json.dumps(order).encode() + b"\n")
            await made.begin()
            yield made
        finally:
            with trio.CancelScope(shield=True):
                await made.aclose()


class Program:
    """A process of the tests: it says JSON lines."""

    def __init__(self, stream: trio.SocketStream, err: Path) -> None:
        self.stream, self._err, self._buffer = stream, err, b""
        self._pid: int | None = None
        self._ended = False

    async def event(self, *names: str) -> dict[str, Any]:
        """The next of a name."""
        with trio.fail_after(DEADLINE_S):
            while True:
                while b"\n" not in self._buffer:
                    data = await self.stream.receive_some()
                    assert data, f"ended without {names}: {self._said}"
                    self._buffer += data
                line, _, self._buffer = self._buffer.partition(b"\n")
                found: dict[str, Any] = json.loads(line)
                if found["event"] == "ended":
                    self._ended = True
                    assert "ended" in names, f"ended without {names}: {self._said}"
                if found["event"] in names:
                    return found

    async def all_events(self) -> list[dict[str, Any]]:
        """All that it said until it died."""
        said: list[dict[str, Any]] = []
        with trio.fail_after(DEADLINE_S):
            while data := await self.stream.receive_some():
                self._buffer += data
                *lines, self._buffer = self._buffer.split(b"\n")
                said += map(json.loads, lines)
                if said and said[-1]["event"] == "ended":
                    self._ended = True
                    break
        assert self._ended, self._said
        assert said[-1]["code"] == -signal.SIGKILL, f"{said[-1]}: {self._said}"
        return said

    async def begin(self) -> None:
        """Know whom to kill."""
        self._pid = int((await self.event("began"))["pid"])

    async def killed(self) -> None:
        """It died of SIGKILL: at its point, since nobody else sends one."""
        code = (await self.event("ended"))["code"]
        assert code == -signal.SIGKILL, f"{code}: {self._said}"

    @property
    def _said(self) -> str:
        return self._err.read_text()[-3000:]

    async def end(self) -> None:
        """See that it is dead: by its point, or from outside where it did not come to that."""
        with trio.move_on_after(2.0) as waited:
            await self.killed()
        if waited.cancelled_caught:
            await self.kill()

    async def kill(self) -> None:
        """From outside, wherever it is."""
        assert self._pid is not None
        os.kill(self._pid, signal.SIGKILL)
        await self.killed()

    async def aclose(self) -> None:
        if not self._ended:
            if self._pid is None:
                await self.begin()
            await self.kill()
        await self.stream.aclose()
