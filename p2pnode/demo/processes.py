"""The demo's processes: each runs the command line that a user has, and prints JSON events."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.errors import LocalError

READY_DEADLINE_S: Final = 180.0
STEP_DEADLINE_S: Final = 180.0
"""Of a command, on a machine that has other work: alone each takes a few seconds."""
_POLL_S: Final = 0.1
_LAST_WORDS: Final = 2000
_LISTEN: Final = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws")


def program(*arguments: str) -> list[str]:
    """The command line that runs p2pnode."""
    # -P: no file of the working folder may stand in for a module.
    return [sys.executable, "-P", "-m", "p2pnode", *arguments]


@dataclass(slots=True)
class NodeProcess:
    """A ``p2pnode join`` that is ready."""

    name: str
    process: trio.Process
    peer_id: str
    multiaddrs: list[str]


class Processes:
    """Starts them in a folder, and ends all that still run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._running: dict[str, trio.Process] = {}

    async def node(
        self, name: str, bootstrap: Sequence[str], *flags: str, listen: Sequence[str] = _LISTEN
    ) -> NodeProcess:
        """Start a node on the data dir ``name``, a second time as well. Raises ``LocalError``."""
        ready = self.root / f"{name}.ready"
        ready.unlink(missing_ok=True)
        process = await self.start(
            name,
            "join",
            "--no-mdns",
            f"--data-dir={self.root / name}",
            f"--ready-file={ready}",
            *(f"--listen={each}" for each in listen),
            *(f"--bootstrap={each}" for each in bootstrap),
            *flags,
        )
        if await self._wait_file(process, ready):
            told = json.loads(ready.read_text())
            return NodeProcess(name, process, told["peer_id"], told["multiaddrs"])
        raise self._not_started(name)

    async def chain(self) -> Path:
        """Start a development chain; the path of its profile. Raises ``LocalError``."""
        profile = self.root / "chain.toml"
        process = await self.start("chain", "chain", "dev", "--port=0", f"--profile={profile}")
        if await self._wait_file(process, profile):
            return profile
        raise self._not_started("chain")

    async def aclose(self) -> None:
        """End all processes, the youngest first."""
        for process in reversed(self._running.values()):
            await end(process)

    def kill(self, name: str) -> None:
        """SIGKILL, as by a power cut."""
        self._running.pop(name).kill()

    def fallen(self) -> str:
        """Which processes ended by themselves, each with its last output; "" when none did."""
        return "\n".join(
            f"{name} ended by itself with {process.returncode}; its last words:\n{self._last_words(name)}"
            for name, process in self._running.items()
            if process.poll() is not None
        )

    async def start(self, name: str, *arguments: str) -> trio.Process:
        """Run a command of p2pnode under this name until :meth:`aclose`. Its output goes to a file."""
        with (self.root / f"{name}.log").open("ab") as file:
            process = await trio.lowlevel.open_process(
                program(*arguments), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self._running[name] = process
        return process

    @staticmethod
    async def _wait_file(process: trio.Process, path: Path) -> bool:
        with trio.move_on_after(READY_DEADLINE_S):
            while process.poll() is None:
                if await trio.Path(path).exists():
                    return True
                await trio.sleep(_POLL_S)
        return False

    def _not_started(self, name: str) -> LocalError:
        return LocalError(f"{name} did not start; its last words:\n{self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(errors="replace")[-_LAST_WORDS:]


async def each_event(command: list[str], on_event: Callable[[dict[str, Any]], None]) -> None:
    """Run a command and hand on the JSON events it prints, as they come."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        buffer = b""
        with trio.fail_after(STEP_DEADLINE_S):
            while process.stdout is not None and (data := await process.stdout.receive_some()):
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    on_event(json.loads(line))
            await process.wait()
    except trio.TooSlowError:
        msg = f"`p2pnode {command[4]}` took longer than {STEP_DEADLINE_S:g} s"
        raise LocalError(msg) from None
    finally:
        with trio.CancelScope(shield=True):
            await end(process)


async def events_of(*arguments: str) -> list[dict[str, Any]]:
    """All events of a command. Raises ``LocalError`` with its message when it failed."""
    events: list[dict[str, Any]] = []
    await each_event(program(*arguments, "--json"), events.append)
    failed = next((event for event in events if event["event"] == "failed"), None)
    if failed is not None:
        raise LocalError(f"`p2pnode {' '.join(arguments[:2])}` failed: {failed['message']}")
    return events


async def end(process: trio.Process) -> None:
    if process.poll() is None:
        process.terminate()
        with trio.move_on_after(5):
            await process.wait()
    if process.poll() is None:
        process.kill()
        await process.wait()
