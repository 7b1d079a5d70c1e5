"""``p2pnode demo``: three hosts and a client as processes of their own on loopback, for a minute.

Everything runs through the command line a user has. The client knows one bootstrap multiaddr. It
lists the hosts, streams an answer, dials another host with discovery off, and loses a host to
SIGKILL before the first token: the answer then comes from another one by itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.errors import LocalError

READY_DEADLINE_S: Final = 60.0
STEP_DEADLINE_S: Final = 60.0
_POLL_S: Final = 0.1
_LISTEN: Final = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws")
# Long enough to prefill for seconds on one thread: time to lose the host before its first token.
_LONG_QUESTION: Final = (
    "Summarise this log in one sentence. " + "The node answered and the peer agreed. " * 60
)


@dataclass(slots=True)
class HostProcess:
    """A ``p2pnode join`` that is ready."""

    name: str
    process: trio.Process
    peer_id: str
    multiaddrs: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the summary."""

    step: str
    host: str
    tokens_in: int
    tokens_out: int
    ttft_s: float
    tokens_per_s: float


@dataclass(slots=True)
class Asked:
    """What one ``p2pnode ask --json`` said."""

    text: str = ""
    done: dict[str, Any] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)


class Demo:
    """``say`` prints a line, ``stream`` a piece of an answer."""

    def __init__(self, say: Callable[[str], None], stream: Callable[[str], None]) -> None:
        self._say, self._stream = say, stream
        self._hosts: list[HostProcess] = []
        self.rows: list[Row] = []

    async def run(self) -> list[Row]:
        """All steps. Raises ``LocalError`` when one does not come out as it should."""
        with tempfile.TemporaryDirectory(prefix="p2pnode-demo-") as folder:
            root = Path(folder)
            async with self._three_hosts(root) as hosts:
                self._hosts = hosts
                first = hosts[0].multiaddrs[0]
                self._say(f"\nthe client knows one multiaddr: {first}")
                await self._list(root, first)
                await self._ask(root, first)
                await self._dial_directly(root, hosts[1])
                await self._lose_a_host(root, first)
        return self.rows

    @asynccontextmanager
    async def _three_hosts(self, root: Path) -> AsyncIterator[list[HostProcess]]:
        processes: list[trio.Process] = []
        try:
            self._say("starting three hosts of the default model, each a process of its own")
            first = await self._start(root, "A", (), processes)
            more: dict[str, HostProcess] = {}
            async with trio.open_nursery() as nursery:
                for name in ("B", "C"):

                    async def start(name: str = name) -> None:
                        more[name] = await self._start(root, name, (first.multiaddrs[0],), processes)

                    nursery.start_soon(start)
            hosts = [first, more["B"], more["C"]]
            for host in hosts:
                self._say(f"  host {host.name}  {host.peer_id}")
            yield hosts
        finally:
            with trio.CancelScope(shield=True):
                for process in processes:
                    await _end(process)

    async def _start(
        self, root: Path, name: str, bootstrap: Sequence[str], processes: list[trio.Process]
    ) -> HostProcess:
        ready = root / f"{name}.ready"
        log = (root / f"{name}.log").open("wb")
        flags = [f"--listen={each}" for each in _LISTEN] + [f"--bootstrap={each}" for each in bootstrap]
        with log:
            process = await trio.lowlevel.open_process(
                [
                    *_program("join", "--no-mdns", "--threads=1", "--slots=2"),
                    f"--data-dir={root / name}",
                    f"--ready-file={ready}",
                    *flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        processes.append(process)
        with trio.move_on_after(READY_DEADLINE_S):
            while process.poll() is None:
                if ready.exists():
                    told = json.loads(ready.read_text())
                    return HostProcess(name, process, told["peer_id"], told["multiaddrs"])
                await trio.sleep(_POLL_S)
        tail = (root / f"{name}.log").read_text(errors="replace")[-2000:]
        msg = f"host {name} did not start; its last words:\n{tail}"
        raise LocalError(msg)

    # ---- the steps

    async def _list(self, root: Path, bootstrap: str) -> None:
        self._say("\n$ p2pnode hosts --bootstrap …   (found by gossip and DHT, each verified by dialling it)")
        found: list[dict[str, Any]] = []
        with trio.move_on_after(STEP_DEADLINE_S):
            while len(found) < len(self._hosts):
                events: list[dict[str, Any]] = []
                await _each(_program("hosts", *_client(root, bootstrap)), events.append)
                found = [event for event in events if event["event"] == "host"]
        if {event["peer"] for event in found} != {host.peer_id for host in self._hosts}:
            msg = f"the client found {len(found)} hosts of {len(self._hosts)}"
            raise LocalError(msg)
        for event in found:
            self._say(
                f"  {event['model']}  host {self._name(event['peer'])}  {event['addresses'][0][:28]}…  "
                f"{event['n_ctx']} tokens, {event['engine']}"
            )

    async def _ask(self, root: Path, bootstrap: str) -> None:
        question = "What is a peer-to-peer network? Answer in two sentences."
        self._say(f'\n$ p2pnode ask --bootstrap … "{question}"')
        asked = await self._stream_answer([question, "--max-tokens=64", *_client(root, bootstrap)])
        self._record("found and asked", asked)

    async def _dial_directly(self, root: Path, host: HostProcess) -> None:
        question = "Name three colours."
        self._say(f'\n$ p2pnode ask --no-discovery --peer <multiaddr of host {host.name}> "{question}"')
        arguments = [
            question,
            "--max-tokens=32",
            "--no-discovery",
            f"--peer={host.multiaddrs[0]}",
            *_client(root),
        ]
        asked = await self._stream_answer(arguments)
        if asked.done["host"] != host.peer_id:
            msg = "the answer came from another host than the one that was dialled"
            raise LocalError(msg)
        self._record("dialled directly", asked)

    async def _lose_a_host(self, root: Path, bootstrap: str) -> None:
        self._say("\n$ p2pnode ask --bootstrap … <a long question>   (its host is killed while it reads it)")
        killed: list[str] = []

        def on_event(event: dict[str, Any], asked: Asked) -> None:
            # Whichever host the client chose is the one it loses.
            if event["event"] == "prefill" and not killed:
                victim = asked.tried[-1]
                killed.append(victim)
                self._say(f"  SIGKILL to host {self._name(victim)}, before its first token")
                next(h for h in self._hosts if h.peer_id == victim).process.send_signal(signal.SIGKILL)

        arguments = [_LONG_QUESTION, "--max-tokens=32", *_client(root, bootstrap)]
        asked = await self._stream_answer(arguments, on_event)
        if not killed or asked.done["host"] in killed:
            msg = "no host was lost before its first token"
            raise LocalError(msg)
        self._record(f"host {self._name(killed[0])} lost, answered by", asked)

    # ---- helpers

    async def _stream_answer(
        self, arguments: list[str], on_event: Callable[[dict[str, Any], Asked], None] | None = None
    ) -> Asked:
        asked = Asked()

        def take(event: dict[str, Any]) -> None:
            match event["event"]:
                case "host":
                    asked.tried.append(event["peer"])
                case "text":
                    asked.text += event["text"]
                    self._stream(event["text"])
                case "done":
                    asked.done = event
                case "failed" if "exit_code" in event:
                    raise LocalError(event["message"])
                case _:
                    pass
            if on_event is not None:
                on_event(event, asked)

        await _each(_program("ask", "--seed=7", "--temperature=0.3", *arguments), take)
        self._stream("\n")
        if not asked.done or not asked.text:
            msg = "the answer did not come to its end"
            raise LocalError(msg)
        return asked

    def _record(self, step: str, asked: Asked) -> None:
        done = asked.done
        streaming_s = max(done["total_s"] - done["ttft_s"], 1e-9)
        self.rows.append(
            Row(
                step=step,
                host=self._name(done["host"]),
                tokens_in=done["tokens_in"],
                tokens_out=done["tokens_out"],
                ttft_s=done["ttft_s"],
                tokens_per_s=done["tokens_out"] / streaming_s,
            )
        )

    def _name(self, peer: str) -> str:
        return next((host.name for host in self._hosts if host.peer_id == peer), peer[:12])


def _program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "p2pnode", *arguments]


def _client(root: Path, bootstrap: str | None = None) -> list[str]:
    first = [] if bootstrap is None else [f"--bootstrap={bootstrap}"]
    return [f"--data-dir={root / 'client'}", "--no-mdns", "--json", *first]


async def _each(command: list[str], on_event: Callable[[dict[str, Any]], None]) -> None:
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
        msg = f"`p2pnode {command[3]}` took longer than {STEP_DEADLINE_S:g} s"
        raise LocalError(msg) from None
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


async def _end(process: trio.Process) -> None:
    if process.poll() is None:
        process.terminate()
        with trio.move_on_after(5):
            await process.wait()
    if process.poll() is None:
        process.kill()
        await process.wait()
