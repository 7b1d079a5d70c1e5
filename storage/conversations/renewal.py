"""Leases elsewhere are renewed before they lapse: weekly, a log at a time, behind everything else.

When each log's were is on our disk, so that clients that live for seconds get through all of them, run by
run. What is listed and not on our disk is fetched: else nobody renewed it once its machine is lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog
import trio

from p2pnode.errors import P2PNodeError
from p2pnode.storage.conversations.log import Rim
from p2pnode.storage.conversations.sender import Sender
from p2pnode.storage.store import DAY_S

log = structlog.get_logger()
RENEW_S: Final = 7 * DAY_S
"""A lease lasts 31 days: three renewals may fail."""


class Renewal:
    """``fetch`` brings a log to our disk that is not there."""

    def __init__(self, rim: Rim, sender: Sender, *, fetch: Callable[[bytes], Awaitable[None]]) -> None:
        self._rim, self._sender, self._fetch = rim, sender, fetch
        self._fetching: trio.CancelScope | None = None

    def give_way(self) -> None:
        """Somebody waits for what is being fetched, or for another: it is fetched the next time."""
        if self._fetching is not None:
            self._fetching.cancel()

    async def run(self, listed: Iterable[bytes]) -> None:
        """Fetch what is ``listed`` and not here, then renew what is due, the longest ago first.

        What can't be done now stays due. Raises ``StorageError`` when our own disk fails.
        """
        outbox = self._rim.outbox
        here = {row.sid for row in await outbox.heads()}
        for sid in listed:
            if sid not in here:
                await self._try_to_fetch(sid)
        for sid in await outbox.renewed_before(int(self._rim.wall() - RENEW_S)):
            sent = await self._sender.renew(sid)
            if sent is not None and sent.kept:
                await outbox.renewed(sid, int(self._rim.wall()))

    async def _try_to_fetch(self, sid: bytes) -> None:
        with trio.CancelScope() as self._fetching:
            try:
                await self._fetch(sid)
            except P2PNodeError as error:
                log.info("archive.not_fetched", sid=sid.hex(), reason=str(error))
