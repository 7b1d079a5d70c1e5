"""``paid.*``: what it costs to be paid.

``voucher_cpu`` runs both sides of a session in this process, message by message, with the journals a host
and a client keep, against the bare signatures and one commit; ``throughput`` streams from two hosts, one of
which is paid on a development chain.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from p2pnode.bench.figure import Measurement, compared, paired
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import joined
from p2pnode.bench.session_cpu import SessionCpu, bare_cpu, checkpoint_cpu
from p2pnode.bench.token_clock import Clocked, question
from p2pnode.chain.dev.devchain import open_dev_chain
from p2pnode.chain.profile import write_profile
from p2pnode.chain.wallet.wallet import open_or_make_wallet
from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.errors import LocalError
from p2pnode.models.manifest import SCRIPTED
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import wallet_files
from p2pnode.protocols.inference.messages import SamplingParams

_STREAMS: Final = 4
_TOKENS_PER_S: Final = 500
_TOKENS: Final = 1501
_CHECKPOINTS: Final = 400
_RUN_DEADLINE_S: Final = 120.0
_SETTLED_S: Final = 4.0
"""After a paid run its sessions are settled: that must not disturb the next."""
_PRICES: Final = ("--price-in=1", "--price-out=2", "--session-fee=0.001")
_SHORTEST: Final = 0.9


async def measure_paid(options: BenchOptions, take: Take) -> None:
    """Both figures."""
    checkpoints = 40 if options.quick else _CHECKPOINTS
    free = await checkpoint_cpu(options.scratch / "free", checkpoints, paid=False)
    paid = await checkpoint_cpu(options.scratch / "paid", checkpoints, paid=True)
    bare_ms = await trio.to_thread.run_sync(bare_cpu, options.scratch / "bare", checkpoints)
    take("paid.voucher_cpu", _dearer(paid, free, bare_ms))
    tokens = 101 if options.quick else _TOKENS
    async with _hosts(options) as hosts:
        await hosts.pair(-1, tokens)
        pairs = [await hosts.pair(number, tokens) for number in range(options.pairs)]
        take("paid.throughput", paired(pairs, tokens=tokens - 1, streams=_STREAMS))


def _dearer(paid: SessionCpu, free: SessionCpu, bare_ms: float) -> Measurement:
    sides = {"host": (paid.host_ms, free.host_ms), "client": (paid.client_ms, free.client_ms)}
    return compared(
        max(paid.host_ms, paid.client_ms),
        bare_ms,
        **{f"{side}_ms": round(ms, 4) for side, (ms, _) in sides.items()},
        **{f"{side}_free_ms": round(ms, 4) for side, (_, ms) in sides.items()},
        machines_alone_ms=round(max(paid.host_machine_ms, paid.client_machine_ms), 4),
    )


@dataclass(frozen=True, slots=True)
class _Hosts:
    """A free host and a paid one, and a client's data dir with money in it."""

    free: str
    paid: str
    data_dir: Path
    chain: Path

    async def pair(self, number: int, tokens: int) -> tuple[float, float]:
        """(tokens/s paid, tokens/s free), all streams together. Who goes first alternates."""
        if number % 2:
            free = await self._run(self.free, number, tokens)
            return await self._run(self.paid, number, tokens), free
        paid = await self._run(self.paid, number, tokens)
        return paid, await self._run(self.free, number, tokens)

    async def _run(self, multiaddr: str, number: int, tokens: int) -> float:
        config = NodeConfig(
            data_dir=self.data_dir, chain=str(self.chain), mdns=False,
            spend_day_max=10**10, spend_host_max=10**10,
        )  # fmt: skip
        clocks = [Clocked(trio.current_time()) for _ in range(_STREAMS)]
        async with Client(config, discovery=False, remember=False) as client:
            with trio.fail_after(_RUN_DEADLINE_S):
                async with trio.open_nursery() as nursery:
                    for stream, clock in enumerate(clocks):
                        text = question(number + 1, stream)
                        nursery.start_soon(self._ask, client, multiaddr, text, tokens, clock)
        if multiaddr == self.paid:
            await trio.sleep(_SETTLED_S)
        if min(clock.tokens for clock in clocks) < tokens * _SHORTEST:
            msg = f"an answer ended after {min(clock.tokens for clock in clocks)} tokens of {tokens}"
            raise LocalError(msg)
        return sum(clock.tokens_per_s for clock in clocks)

    @staticmethod
    async def _ask(client: Client, multiaddr: str, text: str, tokens: int, clock: Clocked) -> None:
        sampling = SamplingParams(tokens_max=tokens, temperature=0.0)
        async with client.chat(text, model=SCRIPTED, peer=multiaddr, sampling=sampling) as answer:
            async for _ in answer:
                clock.came(len(answer.ids))


@asynccontextmanager
async def _hosts(options: BenchOptions) -> AsyncIterator[_Hosts]:
    root = options.scratch
    engine = ("--model=scripted", f"--scripted-tokens-per-s={_TOKENS_PER_S}", "--slots=4", "--n-ctx=4096")
    async with open_dev_chain() as chain:
        profile = root / "chain.toml"
        write_profile(profile, replace(chain.profile(), name="bench"))
        for name, usdc, ether_wei in (("paid-host", 0, 10**18), ("client", 10**9, 0)):
            data = DataDir(root / name)
            data.prepare()
            wallet = await trio.to_thread.run_sync(open_or_make_wallet, wallet_files(data))
            await chain.fund(wallet.address, usdc=usdc, ether_wei=ether_wei)
        paid_flags = (*engine, *_PRICES, f"--chain={profile}")
        async with joined(root, "free-host", engine) as free, joined(root, "paid-host", paid_flags) as paid:
            yield _Hosts(free.multiaddrs[0], paid.multiaddrs[0], root / "client", profile)
