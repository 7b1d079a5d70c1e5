"""Vouchers that are owed, brought from a data dir's journal; and purchases from elsewhere, put into it.

No wallet is opened and no chain is asked: what is handed over was signed before.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pnode.client.delivery import Delivery, deliver_all, owed
from p2pnode.client.saved_sessions import bought_of
from p2pnode.config import NodeConfig
from p2pnode.node.datadir import DataDir
from p2pnode.node.money import open_journal, profile_of_config
from p2pnode.node.node import Node
from p2pnode.protocols.typed_data import market_domain
from p2pnode.storage.conversations.records import SavedSession


async def pay_debts(config: NodeConfig, node: Node) -> list[Delivery]:
    """Bring what is owed to whoever is back. Empty without a chain, or where nothing is owed.

    Raises ``LocalError``.
    """
    profile, path = profile_of_config(config), DataDir(config.data_dir).journal
    if profile is None or not path.exists():
        return []
    now = int(node.wall())
    async with open_journal(path) as journal:
        if not owed(journal, now):
            return []
        market = market_domain(profile.chain_id, profile.job_marketplace)
        return await deliver_all(journal, market, node.network, limits=node.limits, now=now)


async def restore_purchases(config: NodeConfig, sessions: Sequence[SavedSession], now: int) -> None:
    """Put purchases that were recovered into the journal: caps count them, and debts are paid from here.

    Raises ``StorageError``.
    """
    if not sessions:
        return
    data = DataDir(config.data_dir)
    data.prepare()
    async with open_journal(data.journal) as journal:
        for saved in sessions:
            await journal.bought_restored(bought_of(saved), now, saved.receipt)
