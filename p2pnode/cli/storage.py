"""``p2pnode storage``: the blobs and registry entries that this data dir keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from p2pnode.cli.commands import Commands
from p2pnode.cli.options import (
    DataDirOption,
    ForceOption,
    JsonOption,
    LogOption,
    build_config,
    configure,
)
from p2pnode.cli.output import Output
from p2pnode.cli.storage_input import (
    STDIO,
    check_here,
    config_of_a_store,
    config_with,
    parse_content_id,
    pieces_of_file,
    read_whole,
)
from p2pnode.cli.storage_words import (
    all_blobs,
    all_entries,
    blob_fields,
    blob_row,
    date_text,
    entry_fields,
    owner_counts,
    owner_text,
    size_text,
)
from p2pnode.words import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2pnode.storage.local.index import OwnerStats, StoreStats

storage_app = Commands(help="Blobs and registry entries kept in this data dir.", no_args_is_help=True)
IdArgument = Annotated[str, typer.Argument(help="A content id, in either dialect and any base.")]
DaysOption = Annotated[int, typer.Option(min=0, max=36_500, help="How long it is leased.")]
_DAYS: Final = 31
_DAY_S: Final = 86_400
_SHOWN_MAX: Final = 1000
_STEP: Final = 1000


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
    output = Output(as_json=as_json)

    async def run() -> None:
        from p2pnode.storage.node_store import open_store

        config = config_of_a_store(data_dir, output)
        if config is None:
            return
        async with open_store(config) as store:
            if as_json:
                async for blob in all_blobs(store):
                    output.event("blob", blob_fields(blob))
                async for fields in all_entries(store):
                    output.event("entry", fields)
                return
            if not every:
                _print_summary(output, await store.stats(), await store.owners(limit=_SHOWN_MAX))
                return
            rows = [blob_row(blob) for blob in await store.blobs(limit=_SHOWN_MAX)]
            output.table(("blob", "bytes", "leased by", "entries"), rows)
            entries = await store.entries(limit=_SHOWN_MAX)
            if entries:
                shown = [entry_fields(each) for each in entries]
                output.table(
                    ("entry", "revision", "points at"),
                    [(each["key"], str(each["revision"]), each["points_at"] or "") for each in shown],
                )
            if _SHOWN_MAX in {len(rows), len(entries)}:
                output.event("", text=f"the first {_SHOWN_MAX} of each; --json lists all")

    run_async(run, on_error=output.failed)


def _print_summary(output: Output, totals: StoreStats, owners: Sequence[OwnerStats]) -> None:
    kept = f"{count_of(totals.blobs, 'blob')} ({size_text(totals.bytes)})"
    output.result(f"{kept} and {count_of(totals.keys, 'registry entry', 'registry entries')}")
    if owners:
        rows = [(owner_text(o.owner), str(o.leases), size_text(o.charged), str(o.keys)) for o in owners]
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
    output = Output(as_json=as_json)

    async def run() -> None:
        import time

        from p2pnode.storage.node_store import LOCAL_OWNER, open_store

        async with open_store(build_config(data_dir)) as store:
            blob = await store.put(pieces_of_file(file), owner=LOCAL_OWNER, lease_s=days * _DAY_S)
        if as_json:
            until = int(time.time()) + days * _DAY_S
            output.event("stored", {"id": blob.text(), "size": blob.size, "until": until})
        else:
            output.result(blob.text())

    run_async(run, on_error=output.failed)


@storage_app.command("get")
def get_blob(
    content_id: IdArgument,
    file: Annotated[str, typer.Argument(help="A new file for it; - for standard output.")] = STDIO,
    force: ForceOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Write a blob to a file or to standard output, after checking its hash."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        from p2pnode.errors import UsageError
        from p2pnode.files import refuse_taken, user_path, write_new
        from p2pnode.storage.node_store import open_store

        blob, path = parse_content_id(content_id), user_path(file)
        if file != STDIO:
            refuse_taken(path, force=force)
        if as_json and file == STDIO:
            msg = "--json has standard output for itself: name a file for the blob"
            raise UsageError(msg)
        async with open_store(config_with(blob, data_dir)) as store:
            data = await read_whole(store, blob)
        if file == STDIO:
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
    output = Output(as_json=as_json)

    async def run() -> None:
        import time

        from p2pnode.storage.node_store import LOCAL_OWNER, open_store

        blob = parse_content_id(content_id)
        async with open_store(config_with(blob, data_dir)) as store:
            await check_here(store, blob)
            await store.pin(blob.hash, owner=LOCAL_OWNER, lease_s=days * _DAY_S)
        until = int(time.time()) + days * _DAY_S
        fields = {"id": blob.text(), "until": until}
        output.event("pinned", fields, text=f"pinned until {date_text(until)} at least")

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
    output = Output(as_json=as_json)

    async def run() -> None:
        from p2pnode.storage.node_store import LOCAL_OWNER, open_store

        blob = parse_content_id(content_id)
        async with open_store(config_with(blob, data_dir)) as store:
            await check_here(store, blob)
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
    output = Output(as_json=as_json)

    async def run() -> None:
        from p2pnode.cli.progress import FolderProgress
        from p2pnode.storage.node_store import open_store
        from p2pnode.storage.rules import FOLDERS

        config = config_of_a_store(data_dir, output)
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
            f"swept {sums['blobs']} blobs ({size_text(sums['bytes'])}) and {sums['files']} left-over files; "
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
    output = Output(as_json=as_json)

    async def run() -> None:
        from p2pnode.storage.node_store import open_store

        config = config_of_a_store(data_dir, output)
        if config is None:
            return
        async with open_store(config) as store:
            totals, owners = await store.stats(), await store.owners(limit=_SHOWN_MAX)
        fields = {
            "path": str(store.root), "blobs": totals.blobs, "bytes": totals.bytes,
            "charged": totals.charged, "bytes_max": config.store_bytes_max, "leases": totals.leases,
            "keys": totals.keys, "owner_bytes_max": config.store_owner_bytes_max,
        }  # fmt: skip
        if as_json:
            output.event("store", fields)
            for each in owners:
                output.event("owner", {"owner": owner_text(each.owner, in_full=True), **owner_counts(each)})
            return
        output.result(f"path     {store.root}")
        output.result(f"blobs    {totals.blobs} ({size_text(totals.bytes)})")
        output.result(f"counted  {size_text(totals.charged)} of {size_text(config.store_bytes_max)}")
        output.result(f"leases   {totals.leases}")
        output.result(f"entries  {totals.keys}")
        if owners:
            of = size_text(config.store_owner_bytes_max)
            output.table(
                ("owner", f"counted, of {of}", "leases", "entries"),
                [(owner_text(o.owner), size_text(o.charged), str(o.leases), str(o.keys)) for o in owners],
            )

    run_async(run, on_error=output.failed)
