"""Another implementation as a process, which gets commands in JSON lines; and our side of each command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import trio

from p2pnode.errors import UnreachableError
from p2pnode.ids import PeerId
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.protocols.kademlia.messages import STANDARD_PROTOCOL
from tests.net.support import make

ECHO, SUM, HOLD = (f"/interop/{name}/1" for name in ("echo", "sum", "hold"))
PING = "/ipfs/ping/1.0.0"
LISTEN = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws")
LINE_MAX = 1 << 20


class ForeignError(Exception):
    """The other side's reason for a command that failed."""


class Foreign:
    """The process. ``call`` sends one command and returns its result; commands may run at the same time."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._results: dict[int, Any] = {}
        self._waiting: dict[int, trio.Event] = {}
        self._ready = trio.Event()
        self._next = 0
        self.peer_id = PeerId("")
        self.addrs: tuple[str, ...] = ()

    def address(self, transport: str) -> str:
        """Where it listens for ``tcp`` or ``ws``, with its peer id."""
        [found] = [a for a in self.addrs if ("/ws" in a) == (transport == "ws")]
        return found if "/p2p/" in found else f"{found}/p2p/{self.peer_id}"

    async def call(self, command: str, deadline_s: float = 20, **arguments: Any) -> Any:
        """The result of ``command``, or ``ForeignError``."""
        self._next += 1
        number, event = self._next, trio.Event()
        self._waiting[number] = event
        line = json.dumps({"id": number, "do": command, **arguments}) + "\n"
        assert self._process.stdin is not None
        with trio.fail_after(deadline_s):
            await self._process.stdin.send_all(line.encode())
            await event.wait()
        answer = self._results.pop(number)
        if "error" in answer:
            raise ForeignError(f"{command}: {answer['error']}")
        return answer.get("result")

    async def until(self, command: str, holds: Any, **arguments: Any) -> Any:
        """Ask again until ``holds(result)``; what is asked for has no event across the processes."""
        with trio.fail_after(15):
            while not holds(result := await self.call(command, **arguments)):  # noqa: ASYNC110
                await trio.sleep(0.05)
        return result

    async def wait_ready(self) -> None:
        """It listens."""
        with trio.fail_after(30):
            await self._ready.wait()

    async def read(self) -> None:
        """Collect answers until the process ends."""
        assert self._process.stdout is not None
        buffer = b""
        async for data in self._process.stdout:
            *lines, buffer = (buffer + data).split(b"\n")
            assert len(buffer) < LINE_MAX
            for line in lines:
                self._take(json.loads(line))

    def _take(self, answer: dict[str, Any]) -> None:
        if (ready := answer.get("ready")) is not None:
            self.peer_id, self.addrs = PeerId(ready["peer_id"]), tuple(ready["addrs"])
            self._ready.set()
        elif (event := self._waiting.pop(answer["id"], None)) is not None:
            self._results[answer["id"]] = answer
            event.set()


@contextlib.asynccontextmanager
async def foreign(
    command: Sequence[str], cwd: Path, *, log: Path, listen: Sequence[str] = LISTEN, seed: str = "foreigner"
) -> AsyncIterator[Foreign]:
    """Run ``command SEED ADDRESS...`` in ``cwd`` until the block ends; its standard error goes to ``log``."""
    with log.open("wb") as errors:
        process = await trio.lowlevel.open_process(
            [*command, seed, *listen],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            async with trio.open_nursery() as nursery:
                peer = Foreign(process)
                nursery.start_soon(peer.read)
                await peer.wait_ready()
                yield peer
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        await pipe.aclose()


class Ours:
    """Our network, with the protocols that the other side's commands need."""

    def __init__(self, name: str = "ours", **settings: Any) -> None:
        self.outcomes: list[str] = []
        self.network = make(
            name,
            listen=LISTEN,
            **{"gossip": True, "dht": "server", "dht_protocol": STANDARD_PROTOCOL, **settings},
        )
        self.network.serve(ECHO, self._echo)
        self.network.serve(SUM, self._sum)
        self.network.serve(HOLD, self._hold)

    def address(self, transport: str) -> str:
        """Where it listens for ``tcp`` or ``ws``."""
        [found] = [a for a in self.network.multiaddrs if ("/ws" in a) == (transport == "ws")]
        return found

    async def _echo(self, stream: Stream) -> None:
        while data := await stream.receive_some():
            await stream.send_all(data)

    async def _sum(self, stream: Stream) -> None:
        digest = hashlib.sha256()
        while data := await stream.receive_some():
            digest.update(data)
        await stream.send_all(digest.hexdigest().encode())

    async def _hold(self, stream: Stream) -> None:
        try:
            while data := await stream.receive_some():
                await stream.send_all(data)
            self.outcomes.append("end")
        except UnreachableError:
            self.outcomes.append("reset")


async def echo_to(network: Network, peer: PeerId, size: int, pause_s: float = 0) -> str:
    """Send ``size`` bytes to the other side's echo, read them slowly; the digest of what came."""
    stream = await network.open_stream(peer, ECHO)
    digest, received = hashlib.sha256(), 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, pattern(size))
        while received < size:
            data = await stream.receive_some()
            assert data, f"it ended after {received} bytes"
            received += len(data)
            digest.update(data)
            await trio.sleep(pause_s)
    await stream.aclose()
    return digest.hexdigest()


async def read_all(stream: Stream) -> bytes:
    """Until the other side has finished."""
    found = b""
    while data := await stream.receive_some():
        found += data
    return found


def pattern(size: int) -> bytes:
    """The bytes that both sides send."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()
