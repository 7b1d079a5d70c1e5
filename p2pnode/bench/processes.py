"""The processes that the bench starts, and both ends of what it says to them.

A child module runs :func:`run_child`: commands come in on its stdin and answers go out on its stdout, one
JSON line each. A whole program runs under ``supervisor.py``. Both end when their stdin closes, so nothing is
left behind, not even when the bench is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self, TypeAlias

import trio

from p2pnode.errors import LocalError
from p2pnode.log import configure_logging
from p2pnode.node.datadir import DataDir
from p2pnode.sockets import descriptor_stream

_READY_DEADLINE_S: Final = 120.0
_END_DEADLINE_S: Final = 15.0
_POLL_S: Final = 0.05
_TAIL: Final = 1500
LINE_MAX_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16
Command: TypeAlias = dict[str, Any]


class Child:
    """A child module that answers commands one by one."""

    def __init__(self, name: str, process: trio.Process, errors: IO[bytes]) -> None:
        self._name, self._process, self._errors = name, process, errors
        assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
        self._lines = LineReader(process.stdout)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    async def ask(self, command: Mapping[str, Any], *, deadline_s: float) -> dict[str, Any]:
        """Send a command and return its answer.

        Raises ``LocalError`` with the child's last words when it ends, or doesn't answer in time.
        """
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
    """Run ``python -m p2pnode.bench.MODULE`` with a configuration. Yields it and its first answer."""
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
    ready = root / f"{name}.ready"
    command = ["join", f"--data-dir={root / name}", f"--ready-file={ready}", "--listen=/ip4/127.0.0.1/tcp/0"]
    async with _running([*command, "--no-mdns", *arguments], ready, root / f"{name}.log") as told:
        yield Joined(told["pid"], tuple(told["multiaddrs"]), root / name)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A ``p2pnode gateway`` that listens on a port of 127.0.0.1."""

    pid: int
    port: int
    data_dir: Path


@asynccontextmanager
async def gateway(root: Path, name: str, arguments: Sequence[str]) -> AsyncIterator[Gateway]:
    """Run ``p2pnode gateway`` on loopback, with a data dir of its own under ``root``."""
    data = DataDir(root / name)
    command = ["gateway", f"--data-dir={data.root}", "--listen=127.0.0.1:0", "--no-mdns", *arguments]
    async with _running(command, data.gateway_json, root / f"{name}.log") as told:
        yield Gateway(told["pid"], int(told["url"].rpartition(":")[2]), data.root)


@asynccontextmanager
async def _running(command: Sequence[str], ready_file: Path, log: Path) -> AsyncIterator[dict[str, Any]]:
    """Run a command of ``p2pnode`` until the block ends. Yields what it writes into the file."""
    ready = trio.Path(ready_file)
    await ready.unlink(missing_ok=True)  # of one that was killed
    with log.open("w+b") as output:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "p2pnode.bench.supervisor", *program(*command)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )
        try:
            with trio.move_on_after(_READY_DEADLINE_S):
                while process.poll() is None and not await ready.exists():  # noqa: ASYNC110 - a file tells no event
                    await trio.sleep(_POLL_S)
            if not await ready.exists():
                msg = f"`p2pnode {command[0]}` did not become ready; its last words:\n{_tail(output)}"
                raise LocalError(msg)
            yield json.loads(await ready.read_text())
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
    """Close the stdin of a process and wait; then terminate it, and kill it when it still runs."""
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


# ---- the child's end


def run_child(main: Callable[[AsyncIterator[Command]], Awaitable[None]]) -> None:
    """Run ``main`` over the commands from stdin until they end; then the process ends at once."""
    # Ctrl-C goes to the whole group; the bench, which gets it too, decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging("error")  # to stderr: stdout is for answers

    async def whole() -> None:
        async with trio.open_nursery() as nursery:
            commands_in, commands = trio.open_memory_channel[Command](8)
            nursery.start_soon(_read, commands_in, nursery.cancel_scope)
            await main(commands)
            nursery.cancel_scope.cancel()

    trio.run(whole)


def answer(fields: Mapping[str, Any]) -> None:
    """Send the bench one line."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def _read(commands: trio.MemorySendChannel[Command], scope: trio.CancelScope) -> None:
    async with descriptor_stream(os.dup(sys.stdin.fileno())) as stdin:
        async for line in LineReader(stdin):
            await commands.send(json.loads(line))
    scope.cancel()


class LineReader:
    """The whole lines of a stream. It ends where one is longer than ``LINE_MAX_BYTES``."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._rest = b""
        self._whole: deque[bytes] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._whole:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data or len(self._rest) > LINE_MAX_BYTES:
                raise StopAsyncIteration
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._whole.extend(whole)
        return self._whole.popleft()
