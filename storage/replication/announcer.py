"""Saying in the DHT which registry keys this node holds, so that a user with nothing but the key finds it.

What peers wrote lately is said within seconds and goes first; what was held before follows, a page an hour,
from where the last page ended. No key twice within the hour, and never more than ``announce_keys_max`` in
it. Records outlive what they say: whoever reads them asks and verifies. It knows no store.
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
"""Up to so many of the entries held, in the order of their keys, from the one after a key."""
_PAUSE_S: Final = 0.5
"""Between two records: a burst of new keys must not take the node's time from its answers."""


class Announcer:
    """``await nursery.start(announcer.run)``; :meth:`arrived` tells it of a key."""

    def __init__(self, node: Node, held: Held) -> None:
        self._node, self._held = node, held
        self._said: OrderedDict[EntryKey, float] = OrderedDict()
        self._fresh: OrderedDict[EntryKey, None] = OrderedDict()
        self._after: EntryKey | None = None
        self._page_at = -math.inf
        self._wake = trio.Event()

    def arrived(self, key: EntryKey) -> None:
        """An entry under this key was kept. One that was said within the hour is not said again."""
        if self._due(key):
            self._fresh.pop(key, None)
            self._fresh[key] = None
            if len(self._fresh) > self._node.limits.announce_keys_max:
                self._fresh.popitem(last=False)
            self._wake.set()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        limits = self._node.limits
        task_status.started()
        while True:
            await trio.sleep(limits.announce_soon_s)
            if not self._node.network.connected_peers():
                await trio.sleep(limits.peers_interval_s)
                continue
            self._wake = trio.Event()
            while self._fresh and self._room():
                await self._say(self._fresh.popitem()[0])
            if trio.current_time() >= self._page_at + limits.announce_interval_s:
                await self._say_page()
            with trio.move_on_at(self._page_at + limits.announce_interval_s):
                await self._wake.wait()

    async def _say_page(self) -> None:
        self._page_at = trio.current_time()
        count = self._room()
        try:
            page = await self._held(self._after, count) if count else []
        except StorageError as error:
            log.warning("entries.not_read", reason=str(error))
            return
        # The end of the table: the next page begins anew.
        self._after = page[-1].key if count and len(page) == count else None
        for entry in page:
            if self._due(entry.key):
                await self._say(entry.key)

    def _room(self) -> int:
        """How many more may be said within this hour."""
        since = trio.current_time() - self._node.limits.announce_interval_s
        while self._said and next(iter(self._said.values())) <= since:
            self._said.popitem(last=False)
        return max(0, self._node.limits.announce_keys_max - len(self._said))

    def _due(self, key: EntryKey) -> bool:
        said = self._said.get(key)
        return said is None or trio.current_time() - said >= self._node.limits.announce_interval_s

    async def _say(self, key: EntryKey) -> None:
        taken = False
        with trio.move_on_after(self._node.limits.dht_deadline_s):
            taken = await self._node.network.provide(provider_key(key))
        log.debug("entry.announced", key=key.hex()[:16], taken=taken)
        # Also when nobody took it: the next round comes soon enough.
        self._said.pop(key, None)
        self._said[key] = trio.current_time()
        await trio.sleep(_PAUSE_S)
