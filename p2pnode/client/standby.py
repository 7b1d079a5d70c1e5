"""The next best host, kept ready while an answer streams: connected, its advert fresh, nothing signed.

One at a time, chosen as a failover would choose. It is asked for its advert now and then, which renews the
advert and shows that it lives; when it is gone, another takes its place. Runs until cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from p2pnode.client.hosts import HostSearch
from p2pnode.client.ranking import Candidate
from p2pnode.errors import RemoteError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.node.finder import FoundHost
from p2pnode.protocols.adverts.messages import Advert

log = structlog.get_logger()
Contact = Callable[[PeerId, Sequence[str]], Awaitable[Advert | None]]
"""Dials where that is needed, and gives the peer's own current advert. Raises ``RemoteError``."""


class Standby:
    """Of one answer. What is ready stands in ``search``, which gives it out first among its equals."""

    def __init__(
        self,
        search: HostSearch,
        *,
        contact: Contact,
        is_connected: Callable[[PeerId], bool],
        limits: Limits,
    ) -> None:
        self._search, self._contact, self._is_connected = search, contact, is_connected
        self._limits = limits

    async def run(self) -> None:
        """Keep one ready."""
        self._search.start()  # a kept session was used without a lookup
        while True:
            candidate = self._search.best()
            if candidate is None:
                await self._wait_for_hosts()
            elif await self._reach(candidate):
                self._search.stand_by(candidate.advert.peer)
                log.debug("standby.ready", peer=candidate.advert.peer)
                await self._watch(candidate)

    async def _wait_for_hosts(self) -> None:
        self._search.stand_by(None)
        with trio.move_on_after(self._limits.standby_look_s):
            await self._search.wait_changed()
            return
        self._search.look_again()

    async def _reach(self, candidate: Candidate) -> bool:
        """Is it there, and still one to choose?"""
        peer = candidate.advert.peer
        addresses = [address.multiaddr for address in candidate.advert.addresses]
        began, reason = trio.current_time(), "serves no model now"
        advert: Advert | None = None
        with trio.move_on_after(self._limits.standby_reach_s) as scope:
            try:
                advert = await self._contact(peer, addresses)
            except RemoteError as error:
                reason = str(error)
        if scope.cancelled_caught:
            reason = "did not answer in time"
        if advert is None:
            log.debug("standby.lost", peer=peer, reason=reason)
            self._search.pass_over(peer, reason)
            return False
        self._search.found(FoundHost(advert, trio.current_time() - began))
        return self._search.fit(peer)

    async def _watch(self, candidate: Candidate) -> None:
        """Until it is no longer ready, in use, or no longer the best."""
        peer, limits = candidate.advert.peer, self._limits
        probe_at = trio.current_time() + limits.standby_probe_s
        while self._is_connected(peer) and self._search.fit(peer):
            await trio.sleep(limits.standby_check_s)
            if trio.current_time() >= probe_at:
                best = self._search.best(ready_first=False) if await self._reach(candidate) else None
                if best is None or best.advert.peer != peer:
                    break
                probe_at = trio.current_time() + limits.standby_probe_s
        self._search.stand_by(None)
