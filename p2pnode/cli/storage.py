"""``p2pnode storage``: the blobs and registry entries that this data dir keeps.

The commands come first, then what is typed for them (ids and files), then how blobs, leases and owners are
shown to people and to scripts. To look at a data dir that has no store makes none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnode.cli.options import (
    Commands,
    DataDirOption,
    ForceOption,
    JsonOption,
    LogOption,
    build_config,
    configure,
)
from p2pnode.cli.output import Output
from p2pnode.words import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from p2pnode.protocols.s5.entries import Entry
    from p2pnode.protocols.s5.ids import BlobId
    from p2pnode.storage.local.index import BlobInfo, Lease, OwnerStatistics, StoreStatistics
    from p2pnode.storage.local.store import LocalStore


storage_app = Commands(help="Blobs and registry entries kept in this data dir.", no_args_is_help=True)
IdArgument = Annotated[str, typer.Argument(help="A content id, in either dialect and any base.")]
DaysOption = Annotated[int, typer.Option(min=0, max=36_500, help="How long it is leased.")]
_DAYS: Final = 31
_DAY_S: Final = 86_400
_SHOWN_MAX: Final = 1000
_STEP: Final = 1000
"""Items of one step of a collection."""
_STDIO: Final = "-"
_PIECE: Final = 1 << 18
_LOCAL: Final = "local"
"""How the owner of what is put by hand is shown."""
_PAGE: Final = 500
_FOREVER: Final = 2**53
"""The end of a lease that never ends, for scripts: JavaScript counts no further."""
_KIB: Final = 1024
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


@storage_app.command("ls")
def list_blobs(
    every: Annotated[
        bool, typer.Option("--all", help="Each blob and each entry by its id, not only how many.")
    ] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Say what is kept and for whom; --all lists blobs with their leases, and registry entries."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.storage.node_store import open_store

        config = _config_of_a_store(data_dir, output)
        if config is None:
            return
        async with open_store(config) as store:
            if as_json:
                async for blob in _all_blobs(store):
                    output.event("blob", _blob_fields(blob))
                async for fields in _all_entries(store):
                    output.event("entry", fields)
                return
            if not every:
                _print_summary(output, await store.statistics(), await store.owners(limit=_SHOWN_MAX))
                return
            rows = [_blob_row(blob) for blob in await store.blobs(limit=_SHOWN_MAX)]
            output.table(("blob", "bytes", "leased by", "entries"), rows)
            entries = await store.entries(limit=_SHOWN_MAX)
            if entries:
                shown = [_entry_fields(each) for each in entries]
                output.table(
                    ("entry", "revision", "points at"),
                    [(each["key"], str(each["revision"]), each["points_at"] or "") for each in shown],
                )
            if _SHOWN_MAX in {len(rows), len(entries)}:
                output.event("", text=f"the first {_SHOWN_MAX} of each; --json lists all")

    run_async(run, on_error=output.failed)


def _print_summary(output: Output, totals: StoreStatistics, owners: Sequence[OwnerStatistics]) -> None:
    kept = f"{count_of(totals.blobs, 'blob')} ({_size_text(totals.bytes)})"
    output.result(f"{kept} and {count_of(totals.keys, 'registry entry', 'registry entries')}")
    if owners:
        rows = [(_owner_text(o.owner), str(o.leases), _size_text(o.charged), str(o.keys)) for o in owners]
        output.table(("for", "blobs", "counted", "entries"), rows)
        output.event("", text="--all lists each")


@storage_app.command("put")
def put_blob(
    file: Annotated[str, typer.Argument(help="The file to keep; - for standard input.")],
    days: DaysOption = _DAYS,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Keep a file, and print its content id. It counts for an owner of its own, called local."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        import time

        from p2pnode.storage.node_store import LOCAL_OWNER, open_store

        async with open_store(build_config(data_dir)) as store:
            blob = await store.put(_pieces_of_file(file), owner=LOCAL_OWNER, lease_s=days * _DAY_S)
        if as_json:
            until = int(time.time()) + days * _DAY_S
            output.event("stored", {"id": blob.text(), "size": blob.size, "until": until})
        else:
            output.result(blob.text())

    run_async(run, on_error=output.failed)


@storage_app.command("get")
def get_blob(
    content_id: IdArgument,
    file: Annotated[str, typer.Argument(help="A new file for it; - for standard output.")] = _STDIO,
    force: ForceOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Write a blob to a file or to standard output, after checking its hash."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.errors import UsageError
        from p2pnode.files import refuse_taken, user_path, write_new
        from p2pnode.storage.node_store import open_store

        blob, path = _parse_content_id(content_id), user_path(file)
        if file != _STDIO:
            refuse_taken(path, force=force)
        if as_json and file == _STDIO:
            msg = "--json has standard output for itself: name a file for the blob"
            raise UsageError(msg)
        async with open_store(_config_with(blob, data_dir)) as store:
            data = await _read_whole(store, blob)
        if file == _STDIO:
            output.raw(data)
        else:
            write_new(path, data, force=force)
            fields = {"id": blob.text(), "size": len(data), "path": file}
            output.event("got", fields, text=f"{file}: {len(data)} bytes")

    run_async(run, on_error=output.failed)


@storage_app.command("pin")
def pin_blob(
    content_id: IdArgument,
    days: DaysOption = _DAYS,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Lease a blob that is here, for the owner called local; a longer lease stays as it is."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        import time

        from p2pnode.storage.node_store import LOCAL_OWNER, open_store

        blob = _parse_content_id(content_id)
        async with open_store(_config_with(blob, data_dir)) as store:
            await _check_here(store, blob)
            await store.pin(blob.hash, owner=LOCAL_OWNER, lease_s=days * _DAY_S)
        until = int(time.time()) + days * _DAY_S
        fields = {"id": blob.text(), "until": until}
        output.event("pinned", fields, text=f"pinned until {_date_text(until)} at least")

    run_async(run, on_error=output.failed)


@storage_app.command("unpin")
def unpin_blob(
    content_id: IdArgument,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """End the lease of the owner called local; what nobody leases goes in a day, or where room is short."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.storage.node_store import LOCAL_OWNER, open_store

        blob = _parse_content_id(content_id)
        async with open_store(_config_with(blob, data_dir)) as store:
            await _check_here(store, blob)
            await store.unpin(blob.hash, owner=LOCAL_OWNER)
        output.event("unpinned", {"id": blob.text()}, text="no longer leased by hand")

    run_async(run, on_error=output.failed)


@storage_app.command("gc")
def collect(
    data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error"
) -> None:
    """Sweep what nobody keeps any more, and look through all folders for what a crash left."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.cli.progress import FolderProgress
        from p2pnode.storage.node_store import open_store
        from p2pnode.storage.rules import FOLDERS

        config = _config_of_a_store(data_dir, output)
        if config is None:
            return
        sums = dict.fromkeys(("leases", "blobs", "bytes", "files", "lost"), 0)
        seen, due = 0, True
        async with open_store(config) as store:
            with FolderProgress(output, FOLDERS) as progress:
                while due or seen < FOLDERS:
                    step = await store.gc_step(_STEP)
                    seen, due = seen + step.folders_seen, step.due
                    sums["leases"] += step.leases_ended
                    sums["blobs"] += step.blobs_swept
                    sums["bytes"] += step.bytes_freed
                    sums["files"] += step.files_removed
                    sums["lost"] += step.blobs_lost
                    progress(min(seen, FOLDERS))
        text = (
            f"swept {sums['blobs']} blobs ({_size_text(sums['bytes'])}) and {sums['files']} left-over files; "
            f"{sums['leases']} leases were over"
        )
        if sums["lost"]:
            text += f"\nLOST: the files of {sums['lost']} blobs are gone or cut; check the disk's health"
        output.event("collected", sums, text=text)

    run_async(run, on_error=output.failed)


@storage_app.command("stats")
def show_stats(
    data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error"
) -> None:
    """Show how much is kept, for whom, and how much may be."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.storage.node_store import open_store

        config = _config_of_a_store(data_dir, output)
        if config is None:
            return
        async with open_store(config) as store:
            totals, owners = await store.statistics(), await store.owners(limit=_SHOWN_MAX)
        fields = {
            "path": str(store.root), "blobs": totals.blobs, "bytes": totals.bytes,
            "charged": totals.charged, "bytes_max": config.store_bytes_max, "leases": totals.leases,
            "keys": totals.keys, "owner_bytes_max": config.store_owner_bytes_max,
        }  # fmt: skip
        if as_json:
            output.event("store", fields)
            for each in owners:
                output.event("owner", {"owner": _owner_text(each.owner, in_full=True), **_owner_counts(each)})
            return
        output.result(f"path     {store.root}")
        output.result(f"blobs    {totals.blobs} ({_size_text(totals.bytes)})")
        output.result(f"counted  {_size_text(totals.charged)} of {_size_text(config.store_bytes_max)}")
        output.result(f"leases   {totals.leases}")
        output.result(f"entries  {totals.keys}")
        if owners:
            of = _size_text(config.store_owner_bytes_max)
            output.table(
                ("owner", f"counted, of {of}", "leases", "entries"),
                [(_owner_text(o.owner), _size_text(o.charged), str(o.leases), str(o.keys)) for o in owners],
            )

    run_async(run, on_error=output.failed)


# ---- what is typed


def _parse_content_id(text: str) -> BlobId:
    """A content id that was typed, in either dialect and any base. Raises ``UsageError``."""
    from p2pnode.errors import ProtocolError, UsageError
    from p2pnode.ids import pasted
    from p2pnode.protocols.s5.ids import parse_id

    try:
        return parse_id(pasted(text))
    except ProtocolError as error:
        raise UsageError(f"{text[:80]!r}: {error}") from error


def _config_of_a_store(data_dir: Any, output: Output) -> Any:
    """The configuration; None where nothing was ever stored, which is told. No store is made."""
    from p2pnode.node.datadir import DataDir

    config = build_config(data_dir)
    if DataDir(config.data_dir).store.exists():
        return config
    if not output.as_json:
        output.result("nothing is stored here yet")
    return None


def _config_with(blob: BlobId, data_dir: Any) -> Any:
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


async def _check_here(store: LocalStore, blob: BlobId) -> None:
    """Raise ``NoBlobError``, or ``UsageError`` for an id that lies about the size."""
    from p2pnode.errors import UsageError

    size = await store.size(blob.hash)
    if size is None:
        raise _not_here(blob, store.root)
    if blob.size not in {0, size}:
        msg = f"the id says {blob.size} bytes, the blob with this hash has {size}: the id was changed"
        raise UsageError(msg)


async def _read_whole(store: LocalStore, blob: BlobId) -> bytes:
    """A whole blob, checked. Raises ``NoBlobError``, and ``StorageError`` for a damaged one."""
    from p2pnode.errors import StorageError
    from p2pnode.protocols.s5.ids import hash_of

    await _check_here(store, blob)
    data = await store.read(blob.hash)
    if hash_of(data) != blob.hash:
        msg = (
            f"{blob.text()} is damaged in the store {store.root}: its bytes no longer have its hash. "
            "Check the disk's health, remove the file of that name below blobs/, and put it again"
        )
        raise StorageError(msg)
    return data


async def _pieces_of_file(name: str) -> AsyncIterator[bytes]:
    """The bytes of a file, or of standard input, piece by piece. Raises ``UsageError``."""
    import sys

    import trio

    from p2pnode.cli.user_input import read_pieces
    from p2pnode.errors import UsageError

    if name == _STDIO:
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


# ---- what is shown


async def _all_blobs(store: LocalStore) -> AsyncIterator[BlobInfo]:
    """Every blob, read page by page."""
    page = await store.blobs(limit=_PAGE)
    while page:
        for each in page:
            yield each
        page = await store.blobs(page[-1].id.hash, limit=_PAGE)


async def _all_entries(store: LocalStore) -> AsyncIterator[dict[str, Any]]:
    """Every registry entry, read page by page, for scripts."""
    page = await store.entries(limit=_PAGE)
    while page:
        for each in page:
            yield _entry_fields(each)
        page = await store.entries(page[-1].key, limit=_PAGE)


def _blob_fields(blob: BlobInfo) -> dict[str, Any]:
    """A blob, for scripts."""
    return {
        "id": blob.id.text(),
        "size": blob.id.size,
        "leases": [_lease_fields(each) for each in blob.leases],
        "entries": [key.hex() for key in blob.entries],
    }


def _lease_fields(lease: Lease) -> dict[str, Any]:
    until = int(min(lease.until, _FOREVER))
    return {"owner": _owner_text(lease.owner, in_full=True), "until": until, "pointed": lease.pointed}


def _blob_row(blob: BlobInfo) -> tuple[str, str, str, str]:
    """A blob, for people."""
    leases = ", ".join(
        f"{_owner_text(each.owner)} {'by entry' if each.pointed else 'until ' + _date_text(each.until)}"
        for each in blob.leases
    )
    return blob.id.text(), str(blob.id.size), leases or "nobody", str(len(blob.entries))


def _entry_fields(entry: Entry) -> dict[str, Any]:
    """A registry entry, for scripts."""
    from p2pnode.protocols.s5.ids import BlobId

    target = entry.points_at
    points_at = None if target is None else BlobId(target).text()
    return {"key": entry.key.hex(), "revision": entry.revision, "points_at": points_at}


def _owner_counts(owner: OwnerStatistics) -> dict[str, int]:
    """What is counted for an owner, for scripts."""
    return {"charged": owner.charged, "leases": owner.leases, "keys": owner.keys}


def _owner_text(owner: bytes, *, in_full: bool = False) -> str:
    """An owner's key in hex; for people its beginning, or ``local``."""
    from p2pnode.storage.node_store import LOCAL_OWNER

    if in_full:
        return owner.hex()
    return _LOCAL if owner == LOCAL_OWNER else f"{owner.hex()[:8]}…"


def _date_text(until: float) -> str:
    """The day on which a lease ends, in UTC."""
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(until, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "ever"


def _size_text(count: int) -> str:
    """A count of bytes in binary units."""
    value, unit = float(count), 0
    while value >= _KIB and unit + 1 < len(_UNITS):
        value, unit = value / _KIB, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value.is_integer() else f"{value:.1f} {_UNITS[unit]}"
