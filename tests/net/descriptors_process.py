"""A service in a process of its own that is left a handful of file descriptors; see ``test_descriptors``.

``python descriptors_process.py KIND FOLDER``. It prints its port as a line, and ends when its stdin does.
"""

from __future__ import annotations

import hashlib
import resource
import sys
from pathlib import Path

import trio

from p2pnode.chain.dev.jsonrpc_http import serve_http
from p2pnode.log import configure_logging
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.s5.server.options import S5Options
from p2pnode.storage.s5.server.server import S5Server
from p2pnode.storage.store import OwnerKey

KEY = PeerKey(hashlib.sha256(b"few descriptors").digest())
LEFT = 12
"""Descriptors that the service may still open once it runs."""


async def _serve(kind: str, folder: Path, nursery: trio.Nursery) -> int:
    if kind == "rpc":

        async def answer(body: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            return body

        async def rpc(*, task_status: trio.TaskStatus[int]) -> None:
            await serve_http(answer, host="127.0.0.1", port=0, task_status=task_status)

        return int(await nursery.start(rpc))
    if kind == "s5":
        store = MemoryStore(lambda: 0.0)
        options = S5Options(owner=OwnerKey(bytes(33)), folder=folder)
        url = await nursery.start(S5Server(store, store, options).run)
        return int(url.rpartition(":")[2])
    suffix = "/ws" if kind == "ws" else ""
    node = Node(
        NodeSetup(key=KEY, listen=(f"/ip4/127.0.0.1/tcp/0{suffix}",), saved_peers=folder / "peers.json")
    )
    await nursery.start(node.run)
    return int(node.multiaddrs[0].split("/")[4])


async def _main(kind: str, folder: Path) -> None:
    configure_logging("info")
    async with trio.open_nursery() as nursery:
        port = await _serve(kind, folder, nursery)
        used = len(list(Path("/proc/self/fd").iterdir()))  # noqa: ASYNC240  of no disk
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + LEFT, hard))
        print(port, flush=True)  # noqa: T201  for the test
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main, sys.argv[1], Path(sys.argv[2]))
