"""A process at its limit of open files, which connections that stay open have reached."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trio

from tests.net.descriptors_process import KEY, LEFT
from tests.net.support import make_client

HELD_S = 1.0
"""Long enough for trio's own loop to write ten tracebacks."""


async def _is_served(kind: str, port: int) -> None:
    """An honest exchange."""
    if kind in ("tcp", "ws"):
        client = make_client("honest")
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            suffix = "/ws" if kind == "ws" else ""
            await client.connect(f"/ip4/127.0.0.1/tcp/{port}{suffix}/p2p/{KEY.peer_id}")
            await client.aclose()
        return
    async with httpx.AsyncClient(trust_env=False) as http:
        if kind == "rpc":
            answer = await http.post(f"http://127.0.0.1:{port}", json={"id": 1})
        else:
            answer = await http.get(f"http://127.0.0.1:{port}/s5/version")
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "kind", ["tcp", *(pytest.param(each, marks=pytest.mark.long) for each in ("ws", "s5", "rpc"))]
)
async def test_at_the_limit_of_open_files_a_listener_says_so_once_and_serves_again_when_some_are_free(
    kind: str, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("descriptors_process.py")
    root = Path(__file__).parents[2]
    with trio.fail_after(60):
        process = await trio.lowlevel.open_process(
            [sys.executable, str(script), kind, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        said = bytearray()

        async def listen(stream: trio.abc.ReceiveStream) -> None:
            async for piece in stream:
                said.extend(piece)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, process.stderr)
            try:
                line = b""
                while not line.endswith(b"\n"):
                    piece = await process.stdout.receive_some()
                    assert piece, said.decode()
                    line += piece
                port = int(line)
                await _is_served(kind, port)
                async with contextlib.AsyncExitStack() as held:
                    for _ in range(2 * LEFT):
                        held.push_async_exit(await trio.open_tcp_stream("127.0.0.1", port))
                    await trio.sleep(HELD_S)
                await _is_served(kind, port)
                assert process.returncode is None
            finally:
                with trio.move_on_after(10, shield=True):
                    await process.stdin.aclose()
                    await process.wait()
                if process.returncode is None:
                    process.kill()
    words = said.decode()
    assert "Traceback" not in words
    paused = [each for each in words.splitlines() if "listener.paused" in each]
    assert len(paused) == 1, words
    assert "too many open files" in paused[0]
    assert len(words) < 4000, words
