"""The control socket of a running node: commands of its owner, who is told how each goes on.

A unix socket in a folder that nobody else may enter; ``node.json`` in the data dir names it. One connection
is one command: a line of JSON to the node (``{"do": NAME, …}``), then lines of JSON back, an event each
(``{"event": NAME, "fields": {…}}``), the last one ``{"done": true}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

import structlog
import trio

from p2pnode.errors import ConfigError, LocalError, P2PNodeError
from p2pnode.host.model_pool import Report
from p2pnode.private_socket import PrivateSocket, connect_private

log = structlog.get_logger()
Handler: TypeAlias = Callable[[Mapping[str, Any], Report], Awaitable[None]]
"""Carries out one command. What it reports is told to whoever asked; a ``P2PNodeError`` ends it in words."""
LINE_MAX: Final = 65_536
_WAIT_S: Final = 10.0
"""For a command to come whole, and for one line of the answer to be taken."""
_LEFT: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)
"""Whoever asked has gone, or takes nothing any more."""


class ControlSocket:
    """Listens from the beginning; ``run`` serves, one task a connection, and ends it."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._socket = PrivateSocket("control.sock")
        self.path = self._socket.path

    async def run(self) -> None:
        """Serve until cancelled; then the socket is gone."""
        await self._socket.run(self._serve)

    def close(self) -> None:
        """As ``run`` does when it ends, for one that never ran."""
        self._socket.close()

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                try:
                    command = await _command(stream)
                    handler = self._handlers.get(str(command.get("do")))
                    if handler is None:
                        raise ConfigError(
                            "the running node doesn't know this command: restart it with this version"
                        )
                    await self._carry_out(stream, handler, command)
                except P2PNodeError as error:
                    await _say(stream, {"error": str(error)})
            except _LEFT:
                log.debug("control.left")

    async def _carry_out(
        self, stream: trio.SocketStream, handler: Handler, command: Mapping[str, Any]
    ) -> None:
        to_tell, told = trio.open_memory_channel[dict[str, Any]](1024)

        def report(name: str, fields: dict[str, object]) -> None:
            try:
                to_tell.send_nowait({"event": name, "fields": fields})
            except trio.WouldBlock:
                log.debug("control.not_told", name=name)  # whoever asked reads too slowly for all progress

        async def tell() -> None:
            # Whoever asked may leave: the command goes on, and its node with it.
            with suppress(*_LEFT):
                async for line in told:
                    await _say(stream, line)

        failure: str | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            try:
                await handler(command, report)
            except P2PNodeError as error:
                failure = str(error)
            to_tell.close()
        await _say(stream, {"done": True} if failure is None else {"error": failure})


async def _command(stream: trio.SocketStream) -> dict[str, Any]:
    """Raises ``ConfigError`` for what is no command, ``TooSlowError``."""
    data = b""
    with trio.fail_after(_WAIT_S):
        while not data.endswith(b"\n") and len(data) < LINE_MAX:
            piece = await stream.receive_some()
            if not piece:
                break
            data += piece
    try:
        command = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError("that is no command") from error
    if not isinstance(command, dict):
        raise ConfigError("that is no command")
    return command


async def _say(stream: trio.SocketStream, line: dict[str, Any]) -> None:
    with trio.fail_after(_WAIT_S):
        await stream.send_all(json.dumps(line, default=str).encode() + b"\n")


async def ask_running(path: str, command: Mapping[str, Any], report: Report) -> None:
    """Have the node that listens there carry out a command, and report what it tells.

    Raises ``ConfigError`` with the node's words where it can't, ``LocalError`` where the node is gone.
    """
    try:
        stream = await connect_private(path)
    except OSError as error:
        msg = f"the running node can't be asked ({error.strerror}): is it ending just now?"
        raise LocalError(msg) from error
    async with stream:
        await stream.send_all(json.dumps(dict(command)).encode() + b"\n")
        data = b""
        while piece := await stream.receive_some():
            *lines, data = (data + piece).split(b"\n")
            for line in lines:
                told = json.loads(line)
                if "error" in told:
                    raise ConfigError(told["error"])
                if "done" in told:
                    return
                report(told["event"], told["fields"])
    raise LocalError("the node ended before it was done: start it again, and repeat the command")
