"""A chain profile becomes a ledger that runs, a file a journal that is written: for whoever pays or is paid.

web3 is imported on the way, and only here on the way: a free session never comes by.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from p2pnode.chain.profile import ChainProfile, load_profile
from p2pnode.config import NodeConfig
from p2pnode.files import off_the_loop, user_path
from p2pnode.node.beside import beside
from p2pnode.node.datadir import DataDir
from p2pnode.payments.journal.journal import Journal
from p2pnode.protocols.crypto import Signer

if TYPE_CHECKING:
    from p2pnode.chain.evm.ledger import EvmLedger
    from p2pnode.chain.evm.orders import OrderBook


def profile_path(config: NodeConfig) -> Path | None:
    """The profile that is configured: ``chain``, or ``chain.toml`` in the data dir if it is there."""
    if config.chain:
        return user_path(config.chain)
    path = DataDir(config.data_dir).chain
    return path if path.exists() else None


def profile_of_config(config: NodeConfig) -> ChainProfile | None:
    """The chain this data dir pays on; None without one. Raises ``ConfigError`` that names file and field."""
    path = profile_path(config)
    return None if path is None else load_profile(path)


@asynccontextmanager
async def open_ledger(
    profile: ChainProfile,
    *,
    account: bytes | None = None,
    sign: Signer | None = None,
    book: OrderBook | None = None,
) -> AsyncIterator[EvmLedger]:
    """Connect, check everything the profile says, and run until the block ends. Raises ``ChainError``."""
    from p2pnode.chain.evm.ledger import EvmLedger
    from p2pnode.chain.verify import verify

    ledger = await EvmLedger.of_profile(profile, account=account, sign=sign, book=book)
    try:
        await verify(profile, ledger.rpc)
        async with beside(ledger.run):
            yield ledger
    finally:
        with trio.CancelScope(shield=True):
            await ledger.aclose()


@asynccontextmanager
async def open_journal(path: Path, *, in_thread: bool = True) -> AsyncIterator[Journal]:
    """The journal of a data dir, written until the block ends, also while it is being cancelled.

    Raises ``StorageError``. ``in_thread``: see ``Journal.open``.
    """
    journal = await off_the_loop(partial(Journal.open, path, in_thread=in_thread), in_thread=in_thread)
    writing = trio.CancelScope(shield=True)

    async def write(*, task_status: trio.TaskStatus[None]) -> None:
        with writing:
            await journal.run(task_status=task_status)

    try:
        async with beside(write):
            try:
                yield journal
            finally:
                writing.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await off_the_loop(journal.close, in_thread=in_thread)
