"""Saying in the DHT which registry keys this node holds, so that a user with nothing but the key finds it.

Each key once an hour, at most ``announce_keys_max`` of them, the newest first; a new one within seconds.
Records outlive what they say: whoever reads them asks and verifies. It knows no store.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog
import trio

from p2pnode.node.node import Node
from p2pnode.protocols.blob.messages import provider_key
from p2pnode.protocols.s5.entries import EntryKey

log = structlog.get_logger()
Newest = Callable[[int], Awaitable[Sequence[EntryKey]]]
"""Up to so many keys that are held, the newest first."""
_PAUSE_S: Final = 0.5
"""Between two records: a burst of new keys must not take the node's time from its answers."""


class Announcer:
    """``await nursery.start(announcer.run)``; :meth:`arrived` tells it of a key."""

    def __init__(self, node: Node, newest: Newest) -> None:
        self._node, self._newest = node, newest
        self._said: OrderedDict[EntryKey, float] = OrderedDict()
        self._fresh: OrderedDict[EntryKey, None] = OrderedDict()
        self._wake = trio.Event()

    def arrived(self, key: EntryKey) -> None:
        """An entry under this key was kept. One that was said within the hour is not said again."""
        if self._due(key):
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
            fresh = list(reversed(self._fresh))
            self._fresh.clear()
            self._wake = trio.Event()
            held = await self._newest(limits.announce_keys_max)
            for key in dict.fromkeys((*fresh, *held)):
                if self._due(key):
                    await self._say(key)
                    await trio.sleep(_PAUSE_S)
            with trio.move_on_after(self._pause_s()):
                await self._wake.wait()

    def _due(self, key: EntryKey) -> bool:
        said = self._said.get(key)
        return said is None or trio.current_time() - said >= self._node.limits.announce_interval_s

    def _pause_s(self) -> float:
        """Until the next key is due again, but not in steps of seconds."""
        limits = self._node.limits
        oldest = next(iter(self._said.values()), trio.current_time())
        due_s = oldest + limits.announce_interval_s - trio.current_time()
        return max(limits.peers_interval_s, due_s)

    async def _say(self, key: EntryKey) -> None:
        taken = False
        with trio.move_on_after(self._node.limits.dht_deadline_s):
            taken = await self._node.network.provide(provider_key(key))
        if not taken:
            log.debug("entry.not_announced", key=key.hex()[:16])
        # Also when nobody took it: the hour's next round comes soon enough.
        self._said.pop(key, None)
        self._said[key] = trio.current_time()
        if len(self._said) > 2 * self._node.limits.announce_keys_max:
            self._said.popitem(last=False)
