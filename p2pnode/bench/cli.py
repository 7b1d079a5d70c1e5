"""``cli.*``: how long a person waits for the program itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import trio

from p2pnode.bench.figure import Measurement, compared
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import gateway, joined, keeping_byte_code, program
from p2pnode.client.client import Client
from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.errors import LocalError
from p2pnode.models.manifest import SCRIPTED
from p2pnode.protocols.inference.messages import SamplingParams

_HELPS: Final = 11
_ASKS: Final = 9
_TOKENS: Final = 8
_RUN_DEADLINE_S: Final = 60.0
_HELP_IMPORTS: Final = "import typer"
_ASK_IMPORTS: Final = "import p2pnode.cli.ask, p2pnode.client.client, p2pnode.net.network"
"""What a start waits for whatever our code does then; the libraries are the most of it."""
_BESIDE_IMPORTS: Final = (
    "import p2pnode.cli.app, p2pnode.cli.runner, p2pnode.models.validation, p2pnode.client.host_rules, "
    "p2pnode.client.chosen, p2pnode.client.proxy.proxy_client"
)
"""The same where a gateway runs on the data dir, which is asked: no network, and no library of one."""


async def measure_cli(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    await _help(options, take)
    await _ask(options, take)


async def _help(options: BenchOptions, take: Take) -> None:
    await run_timed(program("--help"))  # the disk's cache, and byte code where it may be kept
    ours, bare = [], []
    for _ in range(2 if options.quick else _HELPS):
        ours.append((await run_timed(program("--help")))[1])
        bare.append((await run_timed([sys.executable, "-c", _HELP_IMPORTS]))[1])
    take("cli.help", compared(median(ours), median(bare), s=_shown(ours)))


async def _ask(options: BenchOptions, take: Take) -> None:
    model = SCRIPTED if options.quick else DEFAULT_MODEL
    arguments = [f"--model={model}", "--threads=1"]
    async with joined(options.scratch, "host", arguments) as host:
        alone = await _asked(options, model, host.data_dir, _ASK_IMPORTS)
        warm = []
        async with Client(NodeConfig(data_dir=host.data_dir)) as client:
            for number in range(len(alone) + 1):
                began = trio.current_time()
                sampling = SamplingParams(tokens_max=_TOKENS)
                answer = client.chat(_question(100 + number), model=model, sampling=sampling)
                async with answer:
                    await anext(answer)
                    warm.append(trio.current_time() - began)
                    async for _ in answer:
                        pass
        take("cli.ask", _ratio(alone, warm_client_s=round(median(warm[1:]), 3), model=model))
        async with gateway(options.scratch, "gateway", [f"--bootstrap={host.multiaddrs[0]}"]) as running:
            beside = await _asked(options, model, running.data_dir, _BESIDE_IMPORTS)
        take("cli.ask_beside", _ratio(beside, model=model))


async def _asked(
    options: BenchOptions, model: str, data_dir: Path, imports: str
) -> list[tuple[float, float]]:
    """Seconds that ``p2pnode ask`` takes to its first token with this data dir, and its imports, in turn."""

    async def ask(number: int) -> float:
        flags = [f"--model={model}", f"--data-dir={data_dir}", f"--max-tokens={_TOKENS}"]
        return (await run_timed(program("ask", _question(number), *flags)))[0]

    bare = [sys.executable, "-c", imports]
    await ask(0)
    await run_timed(bare)
    count = 1 if options.quick else _ASKS
    return [(await ask(number + 1), (await run_timed(bare))[1]) for number in range(count)]


def _ratio(pairs: list[tuple[float, float]], **details: Any) -> Measurement:
    ours, bare = zip(*pairs, strict=True)
    return compared(median(ours), median(bare), s=_shown(ours), **details)


async def run_timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds to the first byte on stdout, and to the end. Raises ``LocalError`` when it fails."""
    began = trio.current_time()
    first: float | None = None
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=keeping_byte_code(),
    )
    assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
    try:
        with trio.move_on_after(_RUN_DEADLINE_S):
            while await process.stdout.receive_some():
                first = first if first is not None else trio.current_time() - began
            await process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        await process.stdout.aclose()
    took = trio.current_time() - began
    if process.returncode != 0:
        msg = (
            f"`python {' '.join(command[1:5])}` ended with exit code {process.returncode}: run it to see why"
        )
        raise LocalError(msg)
    return (took if first is None else first), took


def _question(number: int) -> str:
    """New each time, so that no cache answers."""
    return f"Number {number}: what is a lighthouse for?"


def _shown(seconds: Sequence[float]) -> list[float]:
    return [round(each, 3) for each in seconds]
