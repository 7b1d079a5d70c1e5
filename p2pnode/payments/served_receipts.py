"""Serves a session's receipts and best voucher again, from the journal, to whoever proves its voucher key.

One page at a time, a few streams a peer. Knows nothing of sessions that are being served.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from p2pnode.errors import StorageError
from p2pnode.ids import SessionId
from p2pnode.net.stream import Stream
from p2pnode.node.channel import MessageChannel
from p2pnode.node.driver import Driver
from p2pnode.node.node import Node
from p2pnode.payments.journal.journal import Journal
from p2pnode.protocols.checkpoint.commands import Found, HostEmission, Look, Served, Unreadable
from p2pnode.protocols.checkpoint.host import no_session, unreadable
from p2pnode.protocols.checkpoint.machine import FetchHost
from p2pnode.protocols.checkpoint.messages import CODEC, PROTOCOL, Refuse
from p2pnode.protocols.inference.messages import SessionTerms

log = structlog.get_logger()
_STREAMS_PER_PEER: Final = 2


def serve_receipts(node: Node, journal: Journal) -> None:
    """Answer ``/p2pnode/checkpoint/1`` while the node runs."""

    async def serve(stream: Stream) -> None:
        await _Served(node, journal, stream).run()

    node.network.serve(PROTOCOL, serve, streams_per_peer=_STREAMS_PER_PEER)


class _Served:
    """One stream."""

    def __init__(self, node: Node, journal: Journal, stream: Stream) -> None:
        self._node, self._journal, self._stream = node, journal, stream
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

    async def run(self) -> None:
        node, peer = self._node, self._stream.peer
        if node.faults.shunned(peer, trio.current_time()):
            await self._stream.reset()
            return
        in_order = False
        try:
            await self._driver.run(self._machine.start(trio.current_time()))
            in_order = self._driver.fault is None
        finally:
            fault = self._fault or self._driver.fault
            if fault is not None:
                node.faults.record(peer, fault, trio.current_time())
            # Who broke the protocol was told so, and a reset could overtake the word.
            await (self._stream.aclose() if in_order else self._stream.reset())

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
