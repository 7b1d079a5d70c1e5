"""Brings hosts that vanished what they are owed: the final voucher of each session that was left behind.

What is owed stands in the journal: sessions that no running process uses, and whose last voucher their host
is not known to have. A host that is away stays owed, and the next client tries again; one that says it does
not know the session (it is settled, or its journal is gone) is asked again, too, until the chain says what
became of it. Nothing is signed here. Knows nothing of answers, wallets or chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import structlog
import trio

from p2pnode.chain.profile import ChainProfile
from p2pnode.config import NodeConfig
from p2pnode.errors import (
    LocalError,
    P2PNodeError,
    ProtocolError,
    RefusedError,
    RemoteError,
    UnreachableError,
)
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.node.datadir import DataDir
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.node import Node
from p2pnode.payments.books import open_journal, profile_of_config
from p2pnode.payments.checkpoints import FetchedReceipts, fetch_receipts
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.payments.payer import bought_of
from p2pnode.protocols.crypto import sign_digest
from p2pnode.protocols.inference.channel import ClientPayment
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import ClientTimes, held_from_journal
from p2pnode.protocols.inference.commands import Accepted, ClientEmission, End, Ended, SessionFailed, Start
from p2pnode.protocols.inference.messages import CODEC, PROTOCOL, Voucher
from p2pnode.protocols.typed_data import Domain, market_domain, session_id
from p2pnode.storage.conversations.records import SavedSession

log = structlog.get_logger()
_CHALLENGE_S: Final = 86_400
Outcome: TypeAlias = Literal["delivered", "refused", "away"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one. ``detail`` says why not."""

    session: SessionId
    outcome: Outcome
    detail: str = ""


def owed(journal: Journal, now: int) -> list[BoughtSession]:
    """Sessions whose host may lack the last voucher and can still use it, the newest first."""
    left = [
        record
        for record in journal.purchases_left()
        if record.owed is not None and record.terms.expiry + _CHALLENGE_S > now
    ]
    return left[::-1]


async def deliver_all(
    journal: Journal, market: Domain, network: Network, *, limits: Limits, now: int
) -> list[Delivery]:
    """Deliver what is owed on this market, a few at once, each within its deadline. Never raises for a host.

    It ends by itself; a client runs it in its nursery. Raises ``StorageError``.
    """
    limiter = trio.CapacityLimiter(limits.deliveries_at_once)
    done: list[Delivery] = []

    async def bring(record: BoughtSession) -> None:
        async with limiter:
            done.append(await _try(record, journal, market, network, limits))

    records = [each for each in owed(journal, now) if session_id(market, each.terms) == each.session]
    async with trio.open_nursery() as nursery:
        for record in records[: limits.deliveries_max]:
            nursery.start_soon(bring, record)
    return done


async def _try(
    record: BoughtSession, journal: Journal, market: Domain, network: Network, limits: Limits
) -> Delivery:
    outcome: Outcome = "delivered"
    detail = ""
    try:
        with trio.fail_after(limits.delivery_deadline_s):
            await deliver(record, journal, market, network, limits=limits)
    except (RefusedError, ProtocolError) as error:
        outcome, detail = "refused", str(error)
    except trio.TooSlowError:
        outcome, detail = "away", "it did not answer in time"
    except LocalError:
        raise
    except P2PNodeError as error:
        outcome, detail = "away", str(error)
    fields = {"session": record.session.hex()[:16], "host": record.host, "outcome": outcome}
    log.info("voucher.delivery", **fields, reason=detail or None)
    return Delivery(record.session, outcome, detail)


async def deliver(
    record: BoughtSession, journal: Journal, market: Domain, network: Network, *, limits: Limits
) -> None:
    """Hand one session's final voucher to its host, and note it in the journal. Deadlines are the caller's.

    Raises ``UnreachableError`` when the host is away, ``RefusedError`` when it does not take it,
    ``ProtocolError`` when it breaks the protocol, and ``StorageError``.
    """
    voucher = record.owed
    if voucher is None:
        return
    await network.connect_peer(record.host, (), told=record.addresses)
    stream = await network.open_stream(record.host, PROTOCOL)
    handing = _Handing(
        record=record, voucher=voucher, journal=journal, market=market, network=network, limits=limits
    )
    await handing.run(stream)


class _Handing:
    """One stream to one host."""

    def __init__(
        self,
        *,
        record: BoughtSession,
        voucher: Voucher,
        journal: Journal,
        market: Domain,
        network: Network,
        limits: Limits,
    ) -> None:
        secret = record.voucher_secret
        payment = ClientPayment(
            market=market,
            terms=record.terms,
            valid_before=record.valid_before,
            authorisation=b"",
            sign=lambda digest: sign_digest(secret, digest),
        )
        receipt = journal.taken_with_root(record.session, voucher.root)
        self._record, self._voucher, self._journal, self._limits = record, voucher, journal, limits
        self._machine = ClientSession(
            host=record.host,
            stream=0,
            model=record.terms.model,
            salt=b"",
            times=ClientTimes(open_s=limits.request_deadline_s, stall_s=limits.stall_s),
            resume=held_from_journal(payment, receipt, voucher),
            peer=network.peer_id,
        )
        self._failure: SessionFailed | None = None
        self._driver: Driver | None = None
        self._taken = False

    async def run(self, stream: Stream) -> None:
        """To the end."""
        channel, write_deadline_s = MessageChannel(stream, CODEC), self._limits.stall_s
        self._driver = Driver(
            self._machine, channel, on_emit=self._emitted, write_deadline_s=write_deadline_s
        )
        self._driver.command_nowait(Start())
        try:
            await self._driver.run()
        finally:
            await (stream.aclose() if self._taken else stream.reset())
        if not self._taken:
            failure = self._failure
            if failure is not None and failure.fault:
                raise ProtocolError(failure.detail)
            if failure is None or failure.code is None:
                raise UnreachableError(failure.detail if failure is not None else "the host went away")
            raise RefusedError(failure.code, failure.detail, retry_after_s=failure.retry_after_s, said=True)

    async def _emitted(self, value: ClientEmission) -> None:
        if self._driver is None:
            return
        match value:
            case Accepted():
                # The host has written it down before it said so.
                await self._journal.bought_delivered(self._record.session, self._voucher.amount)
                self._taken = True
                self._driver.command_nowait(End())
            case SessionFailed():
                self._failure = value
                self._driver.stop()
            case Ended():
                self._driver.stop()
            case _:
                pass


# What is done with the purchases in a data dir's journal: debts paid, receipts compared, others' put in.
#
# No wallet is opened and no chain is asked: what is handed over was signed before.


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
