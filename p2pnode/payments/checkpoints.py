"""Fetches a session's receipts from its host again, checks each, and compares them with this client's own.

Each receipt that holds is noted in the journal, where a second one for a place becomes evidence. The host is
asked for what it signed; what it leaves out is told, and proves nothing. Knows nothing of what becomes of
evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from p2pnode.errors import ProtocolError, RefusedError, UnreachableError
from p2pnode.limits import Limits
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.node.channel import MessageChannel
from p2pnode.node.driver import Driver
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.protocols.checkpoint.commands import ClientEmission, Fetched, FetchFailed, Shown, Start
from p2pnode.protocols.checkpoint.machine import FetchClient
from p2pnode.protocols.checkpoint.messages import CODEC, PROTOCOL
from p2pnode.protocols.crypto import sign_digest
from p2pnode.protocols.inference.messages import Receipt, Voucher
from p2pnode.protocols.inference.receipts import conflicting
from p2pnode.protocols.typed_data import Domain


@dataclass(slots=True)
class FetchedReceipts:
    """What a host showed of one session, beside what this client holds."""

    same: int = 0
    unknown: list[Receipt] = field(default_factory=list)
    """Signed by the host, and for a place this client has nothing of: lost here, or never received."""
    conflicts: list[tuple[Receipt, Receipt]] = field(default_factory=list)
    """Ours and another for the same place: evidence, and in the journal."""
    withheld: int = 0
    """Receipts this client holds and the host did not show."""
    voucher: Voucher | None = None
    """The best the host says it has."""


async def fetch_receipts(
    record: BoughtSession, journal: Journal, market: Domain, network: Network, *, limits: Limits, now: int
) -> FetchedReceipts:
    """Ask the session's host. Deadlines are the caller's.

    Raises ``UnreachableError``, ``RefusedError``, ``ProtocolError`` for a host that shows what it did not
    sign, and ``StorageError``.
    """
    await network.connect_peer(record.host, (), told=record.addresses)
    stream = await network.open_stream(record.host, PROTOCOL)
    fetch = _Fetch(record=record, journal=journal, market=market, network=network, limits=limits, now=now)
    return await fetch.run(stream)


class _Fetch:
    """One stream to one host."""

    def __init__(
        self,
        *,
        record: BoughtSession,
        journal: Journal,
        market: Domain,
        network: Network,
        limits: Limits,
        now: int,
    ) -> None:
        secret = record.voucher_secret
        self._record, self._journal, self._limits, self._now = record, journal, limits, now
        self._machine = FetchClient(
            host=record.host,
            peer=network.peer_id,
            stream=0,
            market=market,
            session=record.session,
            terms=record.terms,
            sign=lambda digest: sign_digest(secret, digest),
        )
        self._ours = {_place(each): each for each in journal.taken(record.session)}
        self._seen: set[tuple[int, int]] = set()
        self._found = FetchedReceipts()
        self._driver: Driver | None = None
        self._end: Fetched | FetchFailed | None = None

    async def run(self, stream: Stream) -> FetchedReceipts:
        channel, write_deadline_s = MessageChannel(stream, CODEC), self._limits.stall_s
        self._driver = Driver(
            self._machine, channel, on_emit=self._emitted, write_deadline_s=write_deadline_s
        )
        self._driver.command_nowait(Start())
        try:
            await self._driver.run()
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()
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
                if self._driver is not None:
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
        await self._journal.bought_shown(self._record.session, receipt, self._now)


def _place(receipt: Receipt) -> tuple[int, int]:
    return receipt.epoch, receipt.checkpoint.seq
