"""What is done with the purchases in a data dir's journal: debts paid, receipts compared, others' put in.

No wallet is opened and no chain is asked: what is handed over was signed before.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from p2pnode.chain.profile import ChainProfile
from p2pnode.config import NodeConfig
from p2pnode.errors import RemoteError
from p2pnode.ids import SessionId
from p2pnode.node.datadir import DataDir
from p2pnode.node.node import Node
from p2pnode.payments.checkpoints import FetchedReceipts, fetch_receipts
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.payments.market import open_journal, profile_of_config
from p2pnode.payments.redelivery import Delivery, deliver_all, owed
from p2pnode.payments.saved_sessions import bought_of
from p2pnode.protocols.typed_data import market_domain, session_id
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


async def fetch_all(
    config: NodeConfig, profile: ChainProfile, node: Node
) -> list[tuple[SessionId, FetchedReceipts | None, str]]:
    """Ask the host of each paid session of this market for its receipts; why not where it shows none.

    Hosts are asked a few at once, each within its deadline. Raises ``StorageError``.
    """
    path, found = DataDir(config.data_dir).journal, []
    if not path.exists():
        return []
    limiter = trio.CapacityLimiter(node.limits.deliveries_at_once)
    market = market_domain(profile.chain_id, profile.job_marketplace)

    async def fetch(record: BoughtSession, journal: Journal) -> None:
        shown, why = None, "its host did not answer in time"
        async with limiter:
            with trio.move_on_after(node.limits.delivery_deadline_s):
                try:
                    shown = await fetch_receipts(
                        record, journal, market, node.network, limits=node.limits, now=int(node.wall())
                    )
                    why = ""
                except RemoteError as error:
                    why = str(error)
        found.append((record.session, shown, why))

    async with open_journal(path) as journal, trio.open_nursery() as nursery:
        for record in journal.purchases("open", "over", "settled"):
            if session_id(market, record.terms) == record.session:
                nursery.start_soon(fetch, record, journal)
    return found


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
