"""``idle.*``: what a node costs while nobody asks it anything, seen from outside its process.

``left_cpu`` is of two paid hosts side by side on a development chain: the journal of one holds a thousand
sessions that their clients left until tomorrow. None of them is on the chain: that is asked when they are
due.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from p2pnode.bench.figure import compared
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import child, joined
from p2pnode.bench.usage import cpu_s, rss_mb
from p2pnode.chain.dev.devchain import open_dev_chain
from p2pnode.chain.profile import ChainProfile, write_profile
from p2pnode.chain.wallet.wallet import open_or_make_wallet
from p2pnode.config import DEFAULT_MODEL
from p2pnode.ids import PeerId
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import wallet_files
from p2pnode.payments.books import open_journal
from p2pnode.payments.journal.journal import HostedSession
from p2pnode.protocols.inference.messages import SessionTerms, Voucher
from p2pnode.protocols.typed_data import amount_due, market_domain, session_id

_HOSTS: Final = 3
_SLACK_S: Final = 60.0
_LEFT: Final = 1000
_DAY_S: Final = 86_400
_ETHER: Final = 10**18
_PAID_FLAGS: Final = (f"--model={SCRIPTED}", "--price-in=1", "--price-out=2", "--session-fee=0.01")


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
        found = rss_mb(client.pid)
    async with child("nodes_process", {"library": True, "nodes": 1, "settle_s": 0}) as (nodes, _):
        take("idle.rss", compared(found, rss_mb(nodes.pid)))
    await _left_cpu(options.scratch, settle_s, window_s, take)


async def _left_cpu(root: Path, settle_s: float, window_s: float, take: Take) -> None:
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(open_dev_chain())
        profile = replace(chain.profile(), name="bench")
        write_profile(root / "chain.toml", profile)
        pids = []
        for name, count in (("keeps", _LEFT), ("keeps-none", 0)):
            data = DataDir(root / name)
            data.prepare()
            wallet = await trio.to_thread.run_sync(open_or_make_wallet, wallet_files(data))
            await chain.fund(wallet.address, usdc=0, ether_wei=_ETHER)
            await _leave(data, profile, wallet.address, count)
            arguments = [*_PAID_FLAGS, f"--chain={root / 'chain.toml'}"]
            host = await stack.enter_async_context(joined(root, name, arguments))
            pids.append(host.pid)
        await trio.sleep(settle_s)
        keeps, none = await _cpu(pids, window_s)
        rss = [round(rss_mb(pid), 1) for pid in pids]
        take("idle.left_cpu", compared(keeps, none, sessions=_LEFT, window_s=window_s, rss_mb=rss))


async def _leave(data: DataDir, profile: ChainProfile, wallet: bytes, count: int) -> None:
    """Write so many sessions into a host's journal, each of another payer, left until tomorrow."""
    market, now = market_domain(profile.chain_id, profile.job_marketplace), int(time.time())
    async with open_journal(data.journal) as journal, trio.open_nursery() as nursery:
        for number in range(count):
            key = number.to_bytes(20, "big")
            terms = SessionTerms(
                payer=key, host=wallet, voucher_key=key, receipt_key=key, model=scripted_model_id(),
                deposit=100_000, price_in=1_000_000, price_out=2_000_000, session_fee=10_000, tip=0,
                expiry=now + 2 * _DAY_S, salt=bytes(32),
            )  # fmt: skip
            voucher = Voucher(
                seq=1, tokens_in=100, tokens_out=200, amount=amount_due(terms, 100, 200), root=bytes(32),
                signature=bytes(65),
            )  # fmt: skip
            record = HostedSession(
                session=session_id(market, terms), terms=terms, salt=bytes(32), authorisation=bytes(65),
                valid_before=now + 600, epoch=1, peer=PeerId("bench client"), opened_at=now, state="over",
                voucher=voucher, settle_at=now + _DAY_S, left_until=now + _DAY_S, keep_s=_DAY_S,
                origin=f"10.{number // 250}.{number % 250}.0/24",
            )  # fmt: skip
            nursery.start_soon(journal.host_relaying, record)


async def _library_cpu(settle_s: float, window_s: float) -> float:
    config = {"library": True, "nodes": _HOSTS, "settle_s": settle_s}
    async with child("nodes_process", config) as (nodes, _):
        told = await nodes.ask({"do": "idle", "seconds": window_s}, deadline_s=window_s + _SLACK_S)
    return float(told["cpu_s"] / window_s / _HOSTS * 100)


async def _cpu(pids: list[int], window_s: float) -> list[float]:
    """Per cent of a core, of each process and its children."""
    began = trio.current_time()
    before = [cpu_s(pid) for pid in pids]
    await trio.sleep(window_s)
    took = trio.current_time() - began
    return [(cpu_s(pid) - start) / took * 100 for pid, start in zip(pids, before, strict=True)]
