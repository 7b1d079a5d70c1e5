"""The control socket: whoever asks may leave or say anything, and the node goes on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import trio

from p2pnode.errors import ConfigError
from p2pnode.host.control import LINE_MAX, ControlSocket, ask_running
from p2pnode.host.model_pool import Report


async def test_a_command_goes_on_when_who_gave_it_has_left() -> None:
    left, ended = trio.Event(), trio.Event()

    async def long(_command: Mapping[str, Any], report: Report) -> None:
        await left.wait()
        for number in range(2000):
            report("progress", {"number": number, "words": "x" * 1000})
            await trio.lowlevel.checkpoint()
        ended.set()

    control = ControlSocket({"long": long})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.run)
        stream = await trio.open_unix_socket(str(control.path))
        await stream.send_all(b'{"do": "long"}\n')
        await stream.aclose()
        left.set()
        with trio.fail_after(10):
            await ended.wait()
        with pytest.raises(ConfigError, match="doesn't know this command"):
            await ask_running(str(control.path), {"do": "other"}, lambda _name, _fields: None)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("said", [b"", b"\n", b"\xff\n", b"7\n", b"[" * (LINE_MAX - 1) + b"\n"])
async def test_what_is_no_command_is_refused_in_words(said: bytes) -> None:
    control = ControlSocket({})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.run)
        async with await trio.open_unix_socket(str(control.path)) as stream:
            await stream.send_all(said)
            await stream.send_eof()
            answer = b""
            with trio.fail_after(10):
                async for piece in stream:
                    answer += piece
        assert b"no command" in answer
        asked = partial(ask_running, str(control.path), {"do": "x"}, lambda _name, _fields: None)
        with pytest.raises(ConfigError, match="doesn't know"):
            await asked()
        nursery.cancel_scope.cancel()
