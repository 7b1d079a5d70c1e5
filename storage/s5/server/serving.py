"""What the routes share: the store they serve, the node's options, who may do what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio
from starlette.requests import Request

from p2pnode.errors import ProtocolError
from p2pnode.limits import Limits
from p2pnode.protocols.s5.ids import BlobId, parse_id
from p2pnode.storage.s5.server.access import Access
from p2pnode.storage.s5.server.accounts import AccountBook
from p2pnode.storage.s5.server.errors import HttpError
from p2pnode.storage.s5.server.options import S5Options
from p2pnode.storage.s5.server.watched import WatchedRegistry
from p2pnode.storage.store import BlobStore, NoBlobError


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One server's parts. ``wall`` is the time of day, in seconds; ``stopping`` is set when it is to end."""

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
    """The blob with the size it has here. Raises ``NoBlobError``, and ``HttpError`` 409 for another size."""
    size = await serving.blobs.size(blob.hash)
    if size is None:
        msg = "this node does not have that blob: upload it, or ask another node"
        raise NoBlobError(msg)
    if blob.size not in (0, size):
        msg = f"the id says {blob.size} bytes, the blob with this hash has {size}: correct the id"
        raise HttpError(409, msg)
    return BlobId(blob.hash, size)


def positive(text: str | None, name: str) -> int:
    """A header that is a whole number. Raises ``HttpError`` 400."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 18:  # noqa: PLR2004 - < 2^63
        msg = f"the request needs {name} as a whole number of bytes"
        raise HttpError(400, msg)
    return int(text)


def fixed(raw: bytes, length: int, what: str) -> bytes:
    """Bytes that must have this length. Raises ``ProtocolError``."""
    if len(raw) != length:
        msg = f"{what} has {length} bytes, not {len(raw)}"
        raise ProtocolError(msg)
    return raw
