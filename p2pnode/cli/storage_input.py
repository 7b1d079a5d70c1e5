"""What is typed for ``p2pnode storage``: ids, files, and a data dir that may have no store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from p2pnode.cli.options import build_config
from p2pnode.cli.output import Output

if TYPE_CHECKING:
    from pathlib import Path

    from p2pnode.protocols.s5.ids import BlobId
    from p2pnode.storage.local.store import LocalStore

STDIO: Final = "-"
_PIECE: Final = 1 << 18


def parse_content_id(text: str) -> BlobId:
    """In either dialect and any base. Raises ``UsageError``."""
    from p2pnode.errors import ProtocolError, UsageError
    from p2pnode.ids import pasted
    from p2pnode.protocols.s5.ids import parse_id

    try:
        return parse_id(pasted(text))
    except ProtocolError as error:
        raise UsageError(f"{text[:80]!r}: {error}") from error


def config_of_a_store(data_dir: Any, output: Output) -> Any:
    """None where nothing was ever stored: looking makes no store."""
    from p2pnode.node.datadir import DataDir

    config = build_config(data_dir)
    if DataDir(config.data_dir).store.exists():
        return config
    if not output.as_json:
        output.result("nothing is stored here yet")
    return None


def config_with(blob: BlobId, data_dir: Any) -> Any:
    """The configuration of the data dir. Raises ``NoBlobError`` where it has no store: asking makes none."""
    from p2pnode.node.datadir import DataDir

    config = build_config(data_dir)
    store = DataDir(config.data_dir).store
    if not store.exists():
        raise _not_here(blob, store)
    return config


def _not_here(blob: BlobId, root: Path) -> Exception:
    from p2pnode.storage.store import NoBlobError

    return NoBlobError(
        f"{blob.text()} is not in the store {root}: see `p2pnode storage ls`, or name another data dir"
    )


async def check_here(store: LocalStore, blob: BlobId) -> None:
    """Raise ``NoBlobError``, or ``UsageError`` for an id that lies about the size."""
    from p2pnode.errors import UsageError

    size = await store.size(blob.hash)
    if size is None:
        raise _not_here(blob, store.root)
    if blob.size not in {0, size}:
        msg = f"the id says {blob.size} bytes, the blob with this hash has {size}: the id was changed"
        raise UsageError(msg)


async def read_whole(store: LocalStore, blob: BlobId) -> bytes:
    """All of it, checked. Raises ``NoBlobError``, ``StorageError`` for a damaged one."""
    from p2pnode.errors import StorageError
    from p2pnode.protocols.s5.ids import hash_of

    await check_here(store, blob)
    data = await store.read(blob.hash)
    if hash_of(data) != blob.hash:
        msg = (
            f"{blob.text()} is damaged in the store {store.root}: its bytes no longer have its hash. "
            "Check the disk's health, remove the file of that name below blobs/, and put it again"
        )
        raise StorageError(msg)
    return data


async def pieces_of_file(name: str) -> AsyncIterator[bytes]:
    """A file or standard input, as it is read. Raises ``UsageError``."""
    import sys

    import trio

    from p2pnode.cli.user_input import read_pieces
    from p2pnode.errors import UsageError

    if name == STDIO:
        async for piece in read_pieces(sys.stdin):
            yield piece
        return
    try:
        async with await trio.open_file(name, "rb") as file:
            while piece := await file.read(_PIECE):
                yield piece
    except OSError as error:
        msg = f"{name} can't be read ({error.strerror}): name a file, or - for standard input"
        raise UsageError(msg) from error
