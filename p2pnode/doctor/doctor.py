"""All checks in order: this machine, the chain, storage, the network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from p2pnode.config import NodeConfig
from p2pnode.doctor.chain import ChainChecks
from p2pnode.doctor.finding import Finding, problem
from p2pnode.doctor.machine import MachineChecks
from p2pnode.doctor.network import NetworkChecks
from p2pnode.doctor.storage import StorageChecks
from p2pnode.errors import P2PNodeError
from p2pnode.node.datadir import DataDir

CHECKS: Final = (
    "data dir", "keys", "disk", "ports", "reach", "model", "engine", "chain", "journal",
    "store", "keeping", "kept", "peers", "clock", "identity",
)  # fmt: skip


async def examine(config: NodeConfig) -> AsyncIterator[Finding]:
    """Examine a data dir and the network around it; each finding comes as soon as it is known."""
    running = DataDir(config.data_dir).running_node()
    machine, network = MachineChecks(config, running), NetworkChecks(config, running)
    chain, storage = ChainChecks(config), StorageChecks(config)
    checks: tuple[Callable[[], Awaitable[Finding]], ...] = (
        machine.data_dir,
        machine.keys,
        machine.disk,
        machine.ports,
        machine.reach,
        machine.model,
        machine.engine,
        chain.chain,
        chain.journal,
        storage.store,
        storage.key,
        storage.replicas,
        network.peers,
        network.clock,
        network.identity,
    )
    for name, check in zip(CHECKS, checks, strict=True):
        try:
            finding = await check()
        except P2PNodeError as error:
            # A check that can't be made must not keep the others from being made.
            finding = problem(name, "check_failed", str(error), "the message says what to change")
        yield finding
