"""A registry that tells who listens of each entry it takes, whoever brought it.

Give the one object to everything that sets entries, so that all of them are told of. What is set behind its
back isn't noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.storage.store import OwnerKey, Registry


class WatchedRegistry:
    """A ``Registry`` around another."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._watchers: set[trio.MemorySendChannel[Entry]] = set()

    async def get(self, key: EntryKey) -> Entry | None:
        """The newest this store knows."""
        return await self._registry.get(key)

    async def set(self, entry: Entry, *, owner: OwnerKey) -> None:
        """Keep it and tell of it; raises as the registry does."""
        await self._registry.set(entry, owner=owner)
        for channel in list(self._watchers):
            try:
                channel.send_nowait(entry)
            except trio.WouldBlock:  # it does not read: it ends, rather than miss one unawares
                self._watchers.discard(channel)
                channel.close()

    @contextmanager
    def watch(self, queue_max: int) -> Iterator[trio.MemoryReceiveChannel[Entry]]:
        """Every entry from now on. The channel ends for a watcher that falls ``queue_max`` behind."""
        send, receive = trio.open_memory_channel[Entry](queue_max)
        self._watchers.add(send)
        try:
            with receive:
                yield receive
        finally:
            self._watchers.discard(send)
            send.close()
