"""What a host is paid with: the wallet's signer, a ledger that sends from it, and the journal.

The wallet's key stays in memory while a paid host runs: it settles when its clients vanish and its owner
sleeps. A host that asks for nothing opens none of this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from p2pnode.chain.ledger import Ledger
from p2pnode.chain.profile import ChainProfile
from p2pnode.node.datadir import DataDir
from p2pnode.payments.books import open_books
from p2pnode.payments.exposure import ExposureCaps
from p2pnode.payments.fees import GasBudget
from p2pnode.payments.journal.journal import Journal


@dataclass(frozen=True, slots=True)
class HostMoney:
    """What a host is paid with. Both run for longer than the host."""

    ledger: Ledger
    journal: Journal
    caps: ExposureCaps = field(default_factory=ExposureCaps)
    budget: GasBudget = field(default_factory=GasBudget)


@asynccontextmanager
async def open_host_money(
    data: DataDir,
    profile: ChainProfile,
    passphrase: bytes | None = None,
    budget: GasBudget | None = None,
) -> AsyncIterator[HostMoney]:
    """Unlock the wallet, connect, and run until the block ends. Raises ``LocalError``."""
    async with open_books(data, profile, sends=True, passphrase=passphrase) as books:
        yield HostMoney(books.ledger, books.journal, budget=budget or GasBudget())
