"""Receipts of a session, shown again: a host serves them from its journal, a client compares them.

Whoever proves the voucher key of a session may ask for its receipts and the best voucher, one page at a time,
a few streams a peer. The client checks each receipt, compares it with its own, and notes it in the journal,
where a second one for a place becomes evidence. What a host leaves out is told, and proves nothing. Knows
nothing of what becomes of evidence, nor of sessions that are being served.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from p2pnode.chain.profile import ChainProfile
from p2pnode.config import NodeConfig
from p2pnode.errors import ProtocolError, RefusedError, RemoteError, StorageError, UnreachableError
from p2pnode.ids import PeerId, SessionId
from p2pnode.limits import Limits
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.node.datadir import DataDir
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.node import Node
from p2pnode.payments.books import open_journal
from p2pnode.payments.evidence import note_shown
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.protocols.checkpoint.client import FetchClient
from p2pnode.protocols.checkpoint.commands import (
    ClientEmission,
    Fetched,
    FetchFailed,
    Found,
    HostEmission,
    Look,
    Served,
    Shown,
    Start,
    Unreadable,
)
from p2pnode.protocols.checkpoint.host import FetchHost, no_session, unreadable
from p2pnode.protocols.checkpoint.messages import CODEC, PROTOCOL, Refuse
from p2pnode.protocols.crypto import sign_digest
from p2pnode.protocols.inference.messages import Receipt, SessionTerms, Voucher
from p2pnode.protocols.inference.receipts import conflicting
from p2pnode.protocols.typed_data import Domain, market_domain, session_id

log = structlog.get_logger()
_STREAMS_PER_PEER: Final = 2


@dataclass(slots=True)
class FetchedReceipts:
    """What a host showed of one session, compared with what this client holds."""

    same: int = 0
    unknown: list[Receipt] = field(default_factory=list)
    """Receipts for places that this client has nothing of: lost here, or never received."""
    conflicts: list[tuple[Receipt, Receipt]] = field(default_factory=list)
    """Ours and another one for the same place: evidence, which is in the journal."""
    withheld: int = 0
    """How many receipts this client holds and the host did not show."""
    voucher: Voucher | None = None
    """The best voucher that the host says it has."""


async def fetch_receipts(
    record: BoughtSession, journal: Journal, market: Domain, network: Network, *, limits: Limits, now: int
) -> FetchedReceipts:
    """Ask the session's host. Deadlines are the caller's.

    Raises ``UnreachableError``, ``RefusedError``, ``ProtocolError`` for a host that shows what it did not
    sign, and ``StorageError``.
    """
    await network.connect_peer(record.host, (), trusted=record.addresses)
    stream = await network.open_stream(record.host, PROTOCOL)
    fetch = _Fetch(
        stream=stream,
        record=record,
        journal=journal,
        market=market,
        self_peer=network.peer_id,
        limits=limits,
        now=now,
    )
    return await fetch.run()


class _Fetch:
    """One stream to one host, as its client."""

    def __init__(
        self,
        *,
        stream: Stream,
        record: BoughtSession,
        journal: Journal,
        market: Domain,
        self_peer: PeerId,
        limits: Limits,
        now: int,
    ) -> None:
        secret = record.voucher_secret
        self._stream, self._record, self._journal, self._now = stream, record, journal, now
        self._market = market
        machine = FetchClient(
            host=record.host,
            peer=self_peer,
            stream=0,
            market=market,
            session=record.session,
            terms=record.terms,
            sign=lambda digest: sign_digest(secret, digest),
        )
        self._driver = Driver(
            machine, MessageChannel(stream, CODEC), on_emit=self._emitted, write_deadline_s=limits.stall_s
        )
        self._ours = {_place(each): each for each in journal.taken(record.session)}
        self._seen: set[tuple[int, int]] = set()
        self._found = FetchedReceipts()
        self._end: Fetched | FetchFailed | None = None

    async def run(self) -> FetchedReceipts:
        self._driver.command_nowait(Start())
        try:
            await self._driver.run()
        finally:
            await self._stream.reset()
        match self._end:
            case Fetched(voucher=voucher):
                self._found.voucher = voucher
                self._found.withheld = len(self._ours.keys() - self._seen)
                return self._found
            case FetchFailed(fault=True, detail=detail):
                raise ProtocolError(detail)
            case FetchFailed(code=code, detail=detail) if code is not None:
                raise RefusedError(code, detail, said=True)
            case failed:
                raise UnreachableError(failed.detail if failed is not None else "the host went away")

    async def _emitted(self, value: ClientEmission) -> None:
        match value:
            case Shown(receipts=receipts):
                for receipt in receipts:
                    await self._take(receipt)
            case Fetched() | FetchFailed():
                self._end = value
                self._driver.stop()

    async def _take(self, receipt: Receipt) -> None:
        place = _place(receipt)
        ours = self._ours.get(place)
        self._seen.add(place)
        if ours is None:
            self._found.unknown.append(receipt)
        elif conflicting(ours, receipt):
            self._found.conflicts.append((ours, receipt))
        else:
            self._found.same += 1
            return
        await note_shown(self._journal, self._market, self._record.session, receipt, self._now)


def _place(receipt: Receipt) -> tuple[int, int]:
    return receipt.epoch, receipt.checkpoint.seq


async def fetch_all(
    config: NodeConfig, profile: ChainProfile, node: Node
) -> list[tuple[SessionId, FetchedReceipts | None, str]]:
    """Ask the host of each paid session of this market for its receipts: what it showed, or why none.

    Hosts are asked a few at once, each within its deadline. Raises ``StorageError``.
    """
    path, found = DataDir(config.data_dir).journal, []
    if not path.exists():
        return []
    limiter = trio.CapacityLimiter(node.limits.redeliveries_at_once)
    market = market_domain(profile.chain_id, profile.job_marketplace)

    async def fetch(record: BoughtSession, journal: Journal) -> None:
        shown, why = None, "its host did not answer in time"
        async with limiter:
            with trio.move_on_after(node.limits.redelivery_deadline_s):
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


# ---- the host's side


def serve_receipts(node: Node, journal: Journal) -> None:
    """Answer ``/p2pnode/checkpoint/1`` while the node runs."""

    async def serve(stream: Stream) -> str | None:
        return await _Served(node, journal, stream).run()

    node.serve(PROTOCOL, serve, streams_per_peer=_STREAMS_PER_PEER)


class _Served:
    """One stream, as its host."""

    def __init__(self, node: Node, journal: Journal, stream: Stream) -> None:
        self._journal, self._stream = journal, stream
        self._machine = FetchHost(
            host=node.peer_id, peer=stream.peer, stream=0, find=self._find, draw=node.draw
        )
        self._driver = Driver(
            self._machine,
            MessageChannel(stream, CODEC),
            on_emit=self._emitted,
            write_deadline_s=node.limits.stall_s,
        )
        self._fault: str | None = None

    async def run(self) -> str | None:
        """Serve to the end. Returns what the peer did against the protocol."""
        await self._driver.run_to_close(self._stream, self._machine.start(trio.current_time()))
        return self._fault or self._driver.fault

    def _find(self, session: SessionId) -> SessionTerms | Refuse:
        try:
            record = self._journal.hosted_one(session)
        except StorageError as error:
            log.warning("receipts.unreadable", reason=str(error))
            return unreadable()
        return no_session() if record is None else record.terms

    def _look(self, session: SessionId, epoch: int, seq: int, limit: int) -> Found | Unreadable:
        try:
            receipts = self._journal.issued_after(session, epoch, seq, limit + 1)
            record = self._journal.hosted_one(session)
        except StorageError as error:
            log.warning("receipts.unreadable", reason=str(error))
            return Unreadable()
        return Found(tuple(receipts), None if record is None else record.voucher)

    async def _emitted(self, value: HostEmission) -> None:
        match value:
            case Look(session=session, epoch=epoch, seq=seq, limit=limit):
                self._driver.command_nowait(self._look(session, epoch, seq, limit))
            case Served(reason=reason, fault=fault):
                self._fault = reason if fault else None
                log.debug("receipts.served", peer=self._stream.peer, reason=reason)
                self._driver.stop()
