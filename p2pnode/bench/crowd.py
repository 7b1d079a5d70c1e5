"""Clients of a gateway that are there and do little: some wait for tokens, some don't read what they asked.

Their answers come from scripted hosts of their own, so that they take no slot of the engine that is measured.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.bench.chat_stream import CHAT, chat_request
from p2pnode.bench.processes import child
from p2pnode.bench.usage import cpu_s
from p2pnode.errors import LocalError
from p2pnode.models.child.http import ChildHttp

_IDLE: Final = 64
_STALLED: Final = 32
_AT_A_HOST: Final = 16
"""As many turns as a host takes of one client at once."""
_IDLE_TOKENS_PER_S: Final = 0.1
_STALLED_TOKENS_PER_S: Final = 500.0
_STALLED_TOKENS: Final = 4000
_LOGPROBS: Final = 5
"""Told with each token, so that an answer has more bytes than sockets hold."""
_RECEIVE_BUFFER: Final = 4096
_BEGIN_S: Final = 60.0
_QUIET_S: Final = 0.5
_QUIET_SHARE: Final = 0.25
"""Of a core, that the gateway takes at most once all stalled clients are stalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """``hosts``: peer ids, those that answer slowly and those that answer fast."""

    model: str
    slow: tuple[str, ...]
    fast: tuple[str, ...]
    multiaddrs: tuple[str, ...]

    @property
    def idle(self) -> int:
        """Clients that wait."""
        return len(self.slow) * _AT_A_HOST

    @property
    def stalled(self) -> int:
        """Clients that don't read."""
        return len(self.fast) * _AT_A_HOST

    @asynccontextmanager
    async def gathered(self, http: ChildHttp, pid: int) -> AsyncIterator[None]:
        """Have all of them there until the block ends, at the gateway ``http`` in the process ``pid``.

        Raises ``LocalError`` where one of them is gone before.
        """
        assert isinstance(http.address, int)  # noqa: S101 - a gateway listens on a port
        async with trio.open_nursery() as nursery:
            for number, host in enumerate(each for each in self.fast for _ in range(_AT_A_HOST)):
                logprobs = {"logprobs": True, "top_logprobs": _LOGPROBS}
                body = self._request(f"Stalled {number}.", host, **logprobs)
                await nursery.start(partial(_client, http.address, body, reads=False))
            await _quiet(pid)
            async with trio.open_nursery() as idle:
                for number, host in enumerate(each for each in self.slow for _ in range(_AT_A_HOST)):
                    body = self._request(f"Idle {number}.", host)
                    idle.start_soon(nursery.start, partial(_client, http.address, body, reads=True))
            yield
            await self._check(http)
            nursery.cancel_scope.cancel()

    def _request(self, text: str, host: str, **more: Any) -> Mapping[str, Any]:
        messages = [{"role": "user", "content": text}]
        return chat_request(messages, self.model, _STALLED_TOKENS, p2pnode={"host": host}, **more)

    async def _check(self, http: ChildHttp) -> None:
        told = await http.call("/health", None, deadline_s=_BEGIN_S)
        if told["under_way"] < self.idle + self.stalled:
            msg = f"{told['under_way']} of {self.idle + self.stalled} clients were there at the end"
            raise LocalError(msg)


@asynccontextmanager
async def crowd_hosts(root: Path, *, quick: bool) -> AsyncIterator[Crowd]:
    """The hosts of a crowd; with ``quick`` a quarter of it."""
    kinds = {
        "slow": (_IDLE, _IDLE_TOKENS_PER_S),
        "fast": (_STALLED, _STALLED_TOKENS_PER_S),
    }
    told: dict[str, list[dict[str, Any]]] = {"slow": [], "fast": []}
    async with AsyncExitStack() as stack:
        for name, (clients, tokens_per_s) in kinds.items():
            for _ in range(max(1, clients // _AT_A_HOST // (4 if quick else 1))):
                config = {
                    "engine": "scripted",
                    "slots": _AT_A_HOST,
                    "n_ctx": 2 * _STALLED_TOKENS,
                    "tokens_per_s": tokens_per_s,
                    "data_dir": str(root),
                }
                _, said = await stack.enter_async_context(child("host_process", config))
                told[name].append(said)
        both = [*told["slow"], *told["fast"]]
        yield Crowd(
            model=both[0]["model"],
            slow=tuple(each["peer"] for each in told["slow"]),
            fast=tuple(each["peer"] for each in told["fast"]),
            multiaddrs=tuple(each["multiaddr"] for each in both),
        )


async def _client(
    port: int, body: Mapping[str, Any], *, reads: bool, task_status: trio.TaskStatus[None]
) -> None:
    """Ask for a stream, which has begun when this has started. Raises ``LocalError`` where it doesn't."""
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        if not reads:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        stream = trio.SocketStream(client)
        with trio.fail_after(_BEGIN_S):
            await client.connect(("127.0.0.1", port))
            await stream.send_all(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
            first = bytes(await stream.receive_some(_RECEIVE_BUFFER))
        if not first.startswith(b"HTTP/1.1 200"):
            head, _, said = first.decode(errors="replace").partition("\r\n\r\n")
            msg = f"the gateway took no client more: {head.splitlines()[0]} {said}"
            raise LocalError(msg)
        task_status.started()
        if not reads:
            await trio.sleep_forever()
        async for _ in stream:
            pass


async def _quiet(pid: int) -> None:
    """Wait until a process does little."""
    with trio.fail_after(_BEGIN_S):
        share = 1.0
        while share > _QUIET_SHARE:
            began, before = trio.current_time(), cpu_s(pid, with_children=False)
            await trio.sleep(_QUIET_S)
            share = (cpu_s(pid, with_children=False) - before) / (trio.current_time() - began)
