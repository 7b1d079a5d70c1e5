"""A data dir's money, opened together: its wallet, the ledger it is on, and the journal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from p2pnode.chain.ledger import Ledger
from p2pnode.chain.profile import ChainProfile
from p2pnode.chain.wallet.wallet import Wallet, open_wallet
from p2pnode.config import NodeConfig
from p2pnode.errors import ConfigError
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import wallet_files
from p2pnode.node.journal import Journal
from p2pnode.node.money import open_journal, open_ledger, profile_of_config


@dataclass(frozen=True, slots=True)
class Books:
    """All three, for as long as the block lasts that opened them."""

    wallet: Wallet
    ledger: Ledger
    journal: Journal


@asynccontextmanager
async def open_books(
    data: DataDir, profile: ChainProfile, *, sends: bool = False, passphrase: bytes | None = None
) -> AsyncIterator[Books]:
    """``sends`` unlocks the wallet (a second of CPU). Raises ``LocalError`` that names what is missing."""
    data.prepare()
    wallet = await trio.to_thread.run_sync(open_wallet, wallet_files(data))
    if wallet is None:
        msg = f"there is no wallet in {data.root}: make one with `p2pnode wallet new`"
        raise ConfigError(msg)
    account = sign = None
    if sends:
        # A person is asked here, in the main thread: nowhere else could Ctrl-C interrupt it.
        given = wallet.passphrase() if passphrase is None else passphrase
        account, sign = wallet.address, await trio.to_thread.run_sync(wallet.unlock, given)
    async with (
        open_journal(data.journal) as journal,
        open_ledger(profile, account=account, sign=sign) as ledger,
    ):
        yield Books(wallet, ledger, journal)


def need_profile(config: NodeConfig) -> ChainProfile:
    """The chain that a configuration names. Raises ``ConfigError`` where it names none."""
    profile = profile_of_config(config)
    if profile is None:
        place = DataDir(config.data_dir).chain
        msg = f"no chain is configured: name a profile with --chain, or put one at {place}"
        raise ConfigError(msg)
    return profile


@asynccontextmanager
async def books_of(config: NodeConfig, *, sends: bool = False) -> AsyncIterator[Books]:
    """What a configuration names. Raises ``ConfigError`` where it names no chain."""
    profile = need_profile(config)
    async with open_books(DataDir(config.data_dir), profile, sends=sends) as books:
        yield books
