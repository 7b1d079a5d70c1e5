"""A data dir's money, opened together: its wallet, the ledger it is on, and the journal.

A chain profile becomes a ledger that runs, a file a journal that is written: for whoever pays or is paid.
web3 is imported when a ledger is opened and not before, so that a free session never loads it.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from p2pnode.chain.evm.order_book import OrderBook
from p2pnode.chain.profile import ChainProfile, load_profile
from p2pnode.chain.wallet.wallet import Wallet, open_wallet
from p2pnode.config import NodeConfig
from p2pnode.durable import SqliteDisk
from p2pnode.errors import ConfigError
from p2pnode.extras import need
from p2pnode.files import off_the_loop, user_path
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import passphrase_of, wallet_files
from p2pnode.node.staked_hosts import StakedHosts
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.journal.orders import WalletOnChain
from p2pnode.payments.orders import JournalOrders, Orders, Tell
from p2pnode.protocols.crypto import Signer
from p2pnode.tasks import background_task

if TYPE_CHECKING:
    from p2pnode.chain.evm.ledger import EvmLedger


@dataclass(frozen=True, slots=True)
class Books:
    """Wallet, ledger, journal and orders, for as long as the block lasts that opened them."""

    wallet: Wallet
    ledger: EvmLedger
    journal: Journal
    orders: Orders


@asynccontextmanager
async def open_books(
    data: DataDir,
    profile: ChainProfile,
    *,
    sends: bool = False,
    passphrase: bytes | None = None,
    tell: Tell = lambda _order: None,
) -> AsyncIterator[Books]:
    """``sends`` unlocks the wallet (a second of CPU). ``tell`` hears of orders not seen yet.

    Raises ``LocalError`` that names what is missing.
    """
    data.prepare()
    wallet = await trio.to_thread.run_sync(open_wallet, wallet_files(data))
    if wallet is None:
        msg = f"there is no wallet in {data.root}: make one with `p2pnode wallet new`"
        raise ConfigError(msg)
    account = sign = None
    if sends:
        given = await passphrase_of(wallet) if passphrase is None else passphrase
        account, sign = wallet.address, await trio.to_thread.run_sync(wallet.unlock, given)
    genesis = profile.genesis or b""
    book: Callable[[Journal], JournalOrders] = partial(JournalOrders, wall=time.time, genesis=genesis)
    mine = WalletOnChain(profile.chain_id, wallet.address, genesis)
    async with (
        open_journal(data.journal) as journal,
        open_ledger(profile, account=account, sign=sign, book=book(journal)) as ledger,
    ):
        yield Books(wallet, ledger, journal, Orders(journal, ledger, mine, tell))


def need_profile(config: NodeConfig) -> ChainProfile:
    """The chain that a configuration names. Raises ``ConfigError`` where it names none."""
    profile = profile_of_config(config)
    if profile is None:
        place = DataDir(config.data_dir).chain
        msg = f"no chain is configured: name a profile with --chain, or put one at {place}"
        raise ConfigError(msg)
    return profile


@asynccontextmanager
async def books_of(
    config: NodeConfig, *, sends: bool = False, tell: Tell = lambda _order: None
) -> AsyncIterator[Books]:
    """What a configuration names. Raises ``ConfigError`` where it names no chain."""
    profile = need_profile(config)
    async with open_books(DataDir(config.data_dir), profile, sends=sends, tell=tell) as books:
        yield books


# ---- one by one


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


def stakes_of(config: NodeConfig, profile: ChainProfile | None = None) -> StakedHosts | None:
    """Who is staked on a data dir's chain, as an earlier run knew it; None where no chain is configured.

    Raises ``ConfigError`` for a profile that can't be read.
    """
    found = profile or profile_of_config(config)
    if found is None:
        return None
    stakes = StakedHosts(
        chain_id=found.chain_id,
        registry=found.node_registry,
        wall=time.time,
        draw=random.SystemRandom().randrange,
    )
    stakes.load(DataDir(config.data_dir).stakes)
    return stakes


@asynccontextmanager
async def open_ledger(
    profile: ChainProfile,
    *,
    account: bytes | None = None,
    sign: Signer | None = None,
    book: OrderBook | None = None,
) -> AsyncIterator[EvmLedger]:
    """Connect, check everything the profile says, and run until the block ends. Raises ``ChainError``."""
    need("a chain", "pay")
    from p2pnode.chain.evm.ledger import EvmLedger
    from p2pnode.chain.profile import verify

    ledger = await EvmLedger.of_profile(profile, account=account, sign=sign, book=book)
    try:
        await verify(profile, ledger.rpc)
        async with background_task(ledger.run):
            yield ledger
    finally:
        with trio.CancelScope(shield=True):
            await ledger.aclose()


@asynccontextmanager
async def open_journal(
    path: Path, *, disk: SqliteDisk | None = None, in_thread: bool = True
) -> AsyncIterator[Journal]:
    """The journal of a data dir, written until the block ends, also while it is being cancelled.

    Raises ``StorageError``. ``disk`` and ``in_thread``: see ``Journal.open``.
    """
    journal = await off_the_loop(
        partial(Journal.open, path, disk=disk, in_thread=in_thread), in_thread=in_thread
    )
    writing = trio.CancelScope(shield=True)  # whoever is being cancelled may still have something to write

    async def write(*, task_status: trio.TaskStatus[None]) -> None:
        with writing:
            await journal.run(task_status=task_status)

    try:
        async with background_task(write):
            try:
                yield journal
            finally:
                writing.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await off_the_loop(journal.close, in_thread=in_thread)
