"""Who takes part in these tests, on disk: a data dir with a wallet and a journal in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pnode.chain.wallet.wallet import Wallet
from p2pnode.config import NodeConfig
from p2pnode.ids import SessionId
from p2pnode.node.datadir import DataDir
from p2pnode.payments.journal.journal import BoughtSession, HostedSession, Journal
from p2pnode.protocols.inference.messages import Checkpoint
from tests.crash.mortal import config_of
from tests.host.support import WINDOW

LISTEN = "/ip4/127.0.0.1/tcp/0"
PRICE_IN, PRICE_OUT, FEE = 1_000_000, 3_000_000, 5_000
"""A unit for each token in, three for each token out, half a cent a session."""
WINDOW_UNITS = WINDOW * PRICE_OUT // 1_000_000
RICH = 10_000_000
ETHER = 10**18
TOKENS = 100
QUESTION = "hello"


@dataclass(frozen=True)
class Party:
    """A host or a client. Its journal is read as it lies on the disk, while another process may write it."""

    data: DataDir
    wallet: Wallet
    config: dict[str, Any]

    @property
    def node_config(self) -> NodeConfig:
        return config_of(self.config)

    @contextmanager
    def _journal(self) -> Iterator[Journal]:
        journal = Journal.open(self.data.journal)
        try:
            yield journal
        finally:
            journal.close()

    def hosted(self) -> list[HostedSession]:
        with self._journal() as journal:
            return journal.hosted()

    def receipts(self, session: SessionId) -> list[Checkpoint]:
        with self._journal() as journal:
            return journal.receipts(session)

    def purchases(self) -> list[BoughtSession]:
        if not self.data.journal.exists():
            return []  # it died before it opened its journal
        with self._journal() as journal:
            return journal.purchases()

    def as_it_died(self, folder: Path) -> Party:
        """On a copy of its journal: not even the log of the real one is touched."""
        folder.mkdir()
        copy_journal(self.data.root, folder)
        return Party(DataDir(folder), self.wallet, self.config)


def copy_journal(source: Path, target: Path) -> None:
    """The file and its log; what else lay there of a journal goes."""
    for old in target.glob("journal.sqlite*"):
        old.unlink()
    for each in source.glob("journal.sqlite*"):
        if not each.name.endswith("-shm"):
            shutil.copy(each, target)
