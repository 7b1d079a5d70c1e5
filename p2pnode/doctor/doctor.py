"""All checks in order: the machine first, then money, then what is kept, then the network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from p2pnode.config import NodeConfig
from p2pnode.doctor.chain import Money
from p2pnode.doctor.finding import Finding, problem
from p2pnode.doctor.machine import Machine
from p2pnode.doctor.network import Neighbours
from p2pnode.doctor.storage import Keeping
from p2pnode.errors import P2PNodeError
from p2pnode.node.datadir import DataDir

CHECKS: Final = (
    "data dir", "keys", "disk", "ports", "reach", "model", "engine", "chain", "journal",
    "store", "keeping", "kept", "peers", "clock", "identity",
)  # fmt: skip


async def examine(config: NodeConfig) -> AsyncIterator[Finding]:
    """Examine a data dir and the network around it; each finding comes as soon as it is known."""
    running = DataDir(config.data_dir).running_node()
    here, around = Machine(config, running), Neighbours(config, running)
    money, keeping = Money(config), Keeping(config)
    checks: tuple[Callable[[], Awaitable[Finding]], ...] = (
        here.data_dir,
        here.keys,
        here.disk,
        here.ports,
        here.reach,
        here.model,
        here.engine,
        money.chain,
        money.journal,
        keeping.store,
        keeping.key,
        keeping.kept,
        around.peers,
        around.clock,
        around.identity,
    )
    for name, check in zip(CHECKS, checks, strict=True):
        try:
            finding = await check()
        except P2PNodeError as error:
            # A check that can't be made must not keep the others from being made.
            finding = problem(name, "check_failed", str(error), "the message says what to change")
        yield finding
