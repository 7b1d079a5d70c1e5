"""Announces in the DHT which registry keys this node holds, so that a user who has only the key finds it.

What peers wrote lately is announced within seconds and first. What was held before follows, a page each
``announce_interval_s``, from where the last page ended. In that time no key is announced twice, and never
more than ``announce_keys_max``. It is less than the hour that a record lives. Records may outlive what they
announce: who reads one must ask and verify. No store is known here.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog
import trio

from p2pnode.errors import StorageError
from p2pnode.node.node import Node
from p2pnode.protocols.blob.messages import provider_key
from p2pnode.protocols.s5.entries import Entry, EntryKey

log = structlog.get_logger()
Held = Callable[[EntryKey | None, int], Awaitable[Sequence[Entry]]]
"""Returns up to so many of the entries held, in the order of their keys, from the one after a key."""
_PAUSE_S: Final = 0.5
"""Seconds between two records: a burst of new keys must not take the node's time from its answers."""


class Announcer:
    """Run it with ``await nursery.start(announcer.run)``; :meth:`arrived` gives it a key."""

    def __init__(self, node: Node, held: Held) -> None:
        self._node, self._held = node, held
        self._announced: OrderedDict[EntryKey, float] = OrderedDict()
        self._fresh: OrderedDict[EntryKey, None] = OrderedDict()
        self._after: EntryKey | None = None
        self._page_at = -math.inf
        self._wake = trio.Event()

    def arrived(self, key: EntryKey) -> None:
        """Announce a key whose entry was kept, unless it was announced lately."""
        if self._due(key):
            self._fresh.pop(key, None)
            self._fresh[key] = None
            if len(self._fresh) > self._node.limits.announce_keys_max:
                self._fresh.popitem(last=False)
            self._wake.set()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Announce until cancelled."""
        limits = self._node.limits
        task_status.started()
        while True:
            await trio.sleep(limits.announce_soon_s)
            if not self._node.network.connected_peers():
                await trio.sleep(limits.peers_interval_s)
                continue
            self._wake = trio.Event()
            while self._fresh and self._room():
                await self._announce(self._fresh.popitem()[0])
            if trio.current_time() >= self._page_at + limits.announce_interval_s:
                await self._announce_page()
            with trio.move_on_at(self._page_at + limits.announce_interval_s):
                await self._wake.wait()

    async def _announce_page(self) -> None:
        self._page_at = trio.current_time()
        count = self._room()
        try:
            page = await self._held(self._after, count) if count else []
        except StorageError as error:
            log.warning("entries.not_read", reason=str(error))
            return
        # A short page is the last one: the next begins with the first key again.
        self._after = page[-1].key if count and len(page) == count else None
        for entry in page:
            if self._due(entry.key):
                await self._announce(entry.key)

    def _room(self) -> int:
        """How many more keys may be announced within this interval."""
        since = trio.current_time() - self._node.limits.announce_interval_s
        while self._announced and next(iter(self._announced.values())) <= since:
            self._announced.popitem(last=False)
        return max(0, self._node.limits.announce_keys_max - len(self._announced))

    def _due(self, key: EntryKey) -> bool:
        at = self._announced.get(key)
        return at is None or trio.current_time() - at >= self._node.limits.announce_interval_s

    async def _announce(self, key: EntryKey) -> None:
        taken = False
        with trio.move_on_after(self._node.limits.dht_deadline_s):
            taken = await self._node.network.provide(provider_key(key))
        log.debug("entry.announced", key=key.hex()[:16], taken=taken)
        # Noted also when no node took it: it is announced again with one of the next pages.
        self._announced.pop(key, None)
        self._announced[key] = trio.current_time()
        await trio.sleep(_PAUSE_S)
