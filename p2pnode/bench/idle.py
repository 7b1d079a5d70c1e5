"""``idle.*``: what a node costs while nobody asks it anything, seen from outside its process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final

import psutil
import trio

from p2pnode.bench.figure import compared
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import child, joined
from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import LocalError
from p2pnode.models.manifest import SCRIPTED

_HOSTS: Final = 3
_SLACK_S: Final = 60.0


async def measure_idle(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    settle_s, window_s = (2.0, 2.0) if options.quick else (30.0, 30.0)
    model = SCRIPTED if options.quick else DEFAULT_MODEL
    async with AsyncExitStack() as stack:
        pids: list[int] = []
        first: list[str] = []
        for number in range(_HOSTS):
            arguments = [f"--model={model}", "--threads=1", *(f"--bootstrap={each}" for each in first)]
            host = await stack.enter_async_context(joined(options.scratch, f"host{number}", arguments))
            pids.append(host.pid)
            first = first or [host.multiaddrs[0]]
        await trio.sleep(settle_s)
        ours = await _cpu(pids, window_s)
        plain = await _library_cpu(settle_s / 3, window_s)
        shown = [round(each, 2) for each in ours]
        take("idle.cpu", compared(max(ours), plain, hosts=shown, window_s=window_s, model=model))
        client = await stack.enter_async_context(
            joined(options.scratch, "client", ["--client-only", f"--bootstrap={first[0]}"])
        )
        await trio.sleep(settle_s / 3)
        found = _rss_mb(client.pid)
    async with child("nodes_process", {"library": True, "nodes": 1, "settle_s": 0}) as (nodes, _):
        take("idle.rss", compared(found, _rss_mb(nodes.pid)))


async def _library_cpu(settle_s: float, window_s: float) -> float:
    config = {"library": True, "nodes": _HOSTS, "settle_s": settle_s}
    async with child("nodes_process", config) as (nodes, _):
        told = await nodes.ask({"do": "idle", "seconds": window_s}, deadline_s=window_s + _SLACK_S)
    return float(told["cpu_s"] / window_s / _HOSTS * 100)


async def _cpu(pids: list[int], window_s: float) -> list[float]:
    """Per cent of a core, of each process and its children."""
    began = trio.current_time()
    before = [_cpu_s(pid) for pid in pids]
    await trio.sleep(window_s)
    took = trio.current_time() - began
    return [(_cpu_s(pid) - start) / took * 100 for pid, start in zip(pids, before, strict=True)]


def _cpu_s(pid: int) -> float:
    with _alive(pid) as process:
        family = [process, *process.children(recursive=True)]
        return float(sum(times.user + times.system for times in (each.cpu_times() for each in family)))


def _rss_mb(pid: int) -> float:
    with _alive(pid) as process:
        return float(process.memory_info().rss / 1e6)


@contextmanager
def _alive(pid: int) -> Iterator[psutil.Process]:
    try:
        yield psutil.Process(pid)
    except psutil.Error as error:
        msg = f"a node ended while it was measured ({error}): run `p2pnode join` by hand to see why"
        raise LocalError(msg) from error
