"""A network with all that a node serves, in a process of its own, for ``test_churn``.

It prints its port as a line. For each line on its stdin it prints one with its figures as JSON, and it ends
when its stdin does.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import trio

from p2pnode.ids import PeerId
from p2pnode.log import configure_logging
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.shares import Origin
from tests.net.support import ECHO, echo

SEED = hashlib.sha256(b"churn").digest()


def by_prefix(host: str | None, peer: PeerId) -> Origin:
    """Loopback addresses by their /24, as public ones count."""
    prefix = host.rpartition(".")[0] if host is not None else str(peer)
    return Origin(prefix, prefix)


def figures(network: Network) -> dict[str, Any]:
    """Of this process, after a collection."""
    gc.collect()
    stats = network.statistics()
    return {
        "rss": psutil.Process().memory_info().rss,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "connections": stats.connections,
        "streams": stats.streams,
        "failed": dict(stats.tasks_failed),
        "refused": dict(stats.refused),
    }


async def _main() -> None:
    configure_logging("warning")
    network = Network(NetworkConfig(key_seed=SEED, listen=("/ip4/127.0.0.1/tcp/0",), origin_rule=by_prefix))
    network.serve(ECHO, echo, idle_s=30.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        print(network.multiaddrs[0], flush=True)  # noqa: T201  for the test
        while await trio.to_thread.run_sync(sys.stdin.readline):
            print(json.dumps(figures(network)), flush=True)  # noqa: T201
        await network.aclose()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main)
