"""What the routes share: the store that they serve, the options, who may do what; and checks of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio
from starlette.requests import Request

from p2pnode.errors import ProtocolError
from p2pnode.limits import Limits
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobId, parse_id
from p2pnode.storage.s5.server.accounts import Access, AccountBook
from p2pnode.storage.s5.server.errors import HttpError
from p2pnode.storage.s5.server.options import S5Options
from p2pnode.storage.store import BlobStore, NoBlobError, OwnerKey, Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The parts of one server. ``wall``: epoch seconds. ``stopping`` is set when it is to end."""

    blobs: BlobStore
    registry: WatchedRegistry
    options: S5Options
    limits: Limits
    access: Access
    book: AccountBook | None
    wall: Callable[[], float]
    stopping: trio.Event


def id_of(request: Request) -> BlobId:
    """The content id in the path, with or without an extension. Raises ``ProtocolError``."""
    return parse_id(str(request.path_params["cid"]).partition(".")[0])


async def stored(serving: Serving, blob: BlobId) -> BlobId:
    """The blob with its size.

    Raises ``NoBlobError``, and ``HttpError`` 409 where ``blob`` has another size.
    """
    size = await serving.blobs.size(blob.hash)
    if size is None:
        msg = "this node does not have that blob: upload it, or ask another node"
        raise NoBlobError(msg)
    if blob.size not in (0, size):
        msg = f"the id says {blob.size} bytes, the blob with this hash has {size}: correct the id"
        raise HttpError(409, msg)
    return BlobId(blob.hash, size)


def positive(text: str | None, name: str) -> int:
    """The value of a header that must be a whole number. Raises ``HttpError`` 400."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 18:  # noqa: PLR2004 - < 2^63
        msg = f"the request needs {name} as a whole number of bytes"
        raise HttpError(400, msg)
    return int(text)


def fixed(raw: bytes, length: int, what: str) -> bytes:
    """``raw``, which must have this length. Raises ``ProtocolError``."""
    if len(raw) != length:
        msg = f"{what} has {length} bytes, not {len(raw)}"
        raise ProtocolError(msg)
    return raw


class WatchedRegistry:
    """A ``Registry`` around another, which tells its watchers of each entry that it takes.

    Everything that sets entries must do so through this one object: what is set in the registry behind it
    is not noticed.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._watchers: set[trio.MemorySendChannel[Entry]] = set()

    async def get(self, key: EntryKey) -> Entry | None:
        """See ``Registry``."""
        return await self._registry.get(key)

    async def set(self, entry: Entry, *, owner: OwnerKey) -> None:
        """Keep it and tell the watchers. Raises as the registry does."""
        await self._registry.set(entry, owner=owner)
        for channel in list(self._watchers):
            try:
                channel.send_nowait(entry)
            except trio.WouldBlock:  # it does not read: its channel ends, rather than miss one silently
                self._watchers.discard(channel)
                channel.close()

    @contextmanager
    def watch(self, queue_max: int) -> Iterator[trio.MemoryReceiveChannel[Entry]]:
        """Every entry from now on. The channel of a watcher that falls ``queue_max`` behind ends."""
        send, receive = trio.open_memory_channel[Entry](queue_max)
        self._watchers.add(send)
        try:
            with receive:
                yield receive
        finally:
            self._watchers.discard(send)
            send.close()
