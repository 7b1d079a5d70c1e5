"""``p2pnode models lists``: signed lists of models: those that are subscribed here, and this user's own.

A list is named by its key (``l1…``), and called what its subscriber likes. ``publish`` signs with a key that
follows from the recovery phrase and the list's name: another machine with the same twelve words goes on with
the same list.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnode.cli.client import make_client
from p2pnode.cli.options import (
    BootstrapOption,
    Commands,
    DataDirOption,
    ForceOption,
    JsonOption,
    LogOption,
    MdnsOption,
    StoreOption,
    blaming,
    configure,
    data_of,
)
from p2pnode.cli.output import Output
from p2pnode.words import count_of, one_line, span

if TYPE_CHECKING:
    from p2pnode.client.client import Client
    from p2pnode.models.catalogue_entry import CatalogueEntry
    from p2pnode.models.subscriptions import Subscription, Subscriptions
    from p2pnode.protocols.s5.entries import Entry, EntryKey

lists_app = Commands(help="Signed lists of models: those you subscribed to, and those you publish.")
S5Option = Annotated[
    str | None, typer.Option("--s5-url", help="An S5 node that lists are read from and published to.")
]
_LEFT_OUT_SHOWN: Final = 3


@lists_app.callback(invoke_without_command=True)
def lists(
    context: typer.Context,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show the lists that are subscribed: their age, revision and how many models they have."""
    if context.invoked_subcommand is not None:
        return
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        subscriptions, now = _subscriptions(data_dir), time.time()
        known = list(subscriptions)
        for each in known:
            output.event("list", _fields(subscriptions, each))
        if as_json:
            return
        if not known:
            output.result("no list is subscribed: `p2pnode models lists subscribe KEY` takes one")
            return
        columns = ("list", "revision", "models", "made", "asked for", "key")
        output.table(columns, [_row(subscriptions, each, now) for each in known], folds="key")

    run_async(run, on_error=output.failed)


@lists_app.command()
def subscribe(
    key: Annotated[str, typer.Argument(help="The list's key (l1…), as its curator gives it.")],
    name: Annotated[
        str | None, typer.Option("--as", help="What it is to be called here; else as its curator calls it.")
    ] = None,
    bootstrap: BootstrapOption = None,
    store: StoreOption = None,
    s5_url: S5Option = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Fetch a list, check it, and have its models in the catalogue as LIST/NAME."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.errors import ConfigError, LocalError
        from p2pnode.ids import pasted
        from p2pnode.models.model_list import parse_list_key
        from p2pnode.storage.model_lists import Refused

        with blaming("KEY"):
            wanted = parse_list_key(pasted(key))
        data_of(data_dir).prepare()
        subscriptions = _subscriptions(data_dir)
        with blaming("--as"):
            subscriptions.check_name(name, wanted)
        async with _network(output, data_dir, bootstrap, store, s5_url, mdns) as client:
            outcome = await _take(client, subscriptions, wanted, name=name or "")
        if isinstance(outcome, Refused):
            kind = ConfigError if outcome.hostile else LocalError
            raise kind(f"not subscribed: {outcome.why}")
        _tell(output, subscriptions, wanted, outcome)

    run_async(run, on_error=output.failed)


@lists_app.command()
def refresh(
    name: Annotated[str | None, typer.Argument(help="One list, by its name or key; else all.")] = None,
    bootstrap: BootstrapOption = None,
    store: StoreOption = None,
    s5_url: S5Option = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Ask for newer revisions; an older one is never taken. A node that runs does so once a day."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.errors import LocalError
        from p2pnode.storage.model_lists import Refused

        subscriptions = _subscriptions(data_dir)
        with blaming(""):
            wanted = [subscriptions.named(name)] if name is not None else list(subscriptions)
        if not wanted:
            output.note("no list is subscribed: `p2pnode models lists subscribe KEY` takes one")
            return
        failed = []
        async with _network(output, data_dir, bootstrap, store, s5_url, mdns) as client:
            for each in wanted:
                outcome = await _take(client, subscriptions, each.key)
                if isinstance(outcome, Refused):
                    failed.append(each.name)
                    fields = {"name": each.name, "reason": outcome.why, "hostile": outcome.hostile}
                    text = (
                        f"{each.name}: revision {each.pointer.revision} stays: {one_line(outcome.why, 1000)}"
                    )
                    output.event("list.stays", fields, text=text)
                else:
                    _tell(output, subscriptions, each.key, outcome)
        if failed:
            raise LocalError(f"{count_of(len(failed), 'list')} stayed as here before: {', '.join(failed)}")

    run_async(run, on_error=output.failed)


@lists_app.command()
def unsubscribe(
    name: Annotated[str, typer.Argument(help="The list, by its name or key.")],
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Give a list up. Models that were pulled stay, and its newest revision is remembered."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.models.model_list import list_key_text

        with blaming(""):
            gone = _subscriptions(data_dir).give_up(name)
        fields = {"name": gone.name, "key": list_key_text(gone.key)}
        output.event("list.given_up", fields, text=f"{gone.name}: given up; {fields['key']} takes it again")

    run_async(run, on_error=output.failed)


@lists_app.command()
def publish(
    name: Annotated[str, typer.Argument(help="The list's name; with the recovery phrase it makes its key.")],
    file: Annotated[
        Path | None, typer.Argument(help="Models in the form of models/catalogue.toml; see `draft`.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--from", help="A model by its name, id or path. May be repeated."),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Keep the models that the list has; same names are replaced.")
    ] = False,
    description: Annotated[str | None, typer.Option(help="What the list is, in a sentence.")] = None,
    bootstrap: BootstrapOption = None,
    store: StoreOption = None,
    s5_url: S5Option = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Sign a list of models and put it where others find it, with the quality that was measured here."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.errors import UsageError

        if file is None and not models and description is None:
            msg = "name a FILE with models, or models with --from: a list is published as a whole"
            raise UsageError(msg)
        given = await _given(data_dir, file, models or ())
        await _publish(
            output, data_dir, _network(output, data_dir, bootstrap, store, s5_url, mdns, writes=True),
            name, given, add=add, description=description,
        )  # fmt: skip

    run_async(run, on_error=output.failed)


@lists_app.command("withdraw")
def withdraw_list(
    name: Annotated[str, typer.Argument(help="The list's name, as it was published.")],
    bootstrap: BootstrapOption = None,
    store: StoreOption = None,
    s5_url: S5Option = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Say that a list of yours is no more. Who has subscribed keeps what he has, and is told."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        await _publish(
            output, data_dir, _network(output, data_dir, bootstrap, store, s5_url, mdns, writes=True),
            name, None, add=False, description=None,
        )  # fmt: skip

    run_async(run, on_error=output.failed)


@lists_app.command()
def draft(
    models: Annotated[list[str], typer.Argument(help="Models by their names, ids or paths.")],
    data_dir: DataDirOption = None,
    log_level: LogOption = "error",
) -> None:
    """Print models as a file for `publish`, to be edited: manifests, sources, measured quality."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=False, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.models.catalogue import catalogue_text

        output.result(catalogue_text(await _given(data_dir, None, models)).rstrip("\n"))

    run_async(run, on_error=output.failed)


@lists_app.command("export")
def export_list(
    name: Annotated[str, typer.Argument(help="A subscribed list, by its name or key.")],
    file: Annotated[Path, typer.Argument(help="A new file for it.")],
    force: ForceOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Write a list and its signature into a file, for a machine without a network."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.files import user_path, write_new
        from p2pnode.models.subscriptions import list_file

        subscriptions = _subscriptions(data_dir)
        with blaming(""):
            each = subscriptions.named(name)
        content = list_file(each.pointer, subscriptions.blob(each))
        write_new(user_path(file), content, force=force)
        fields = {"name": each.name, "path": str(file), "size": len(content)}
        output.event("list.exported", fields, text=f"{file}: {each.name}, {len(content)} bytes")

    run_async(run, on_error=output.failed)


@lists_app.command("import")
def import_list(
    file: Annotated[Path, typer.Argument(help="A file that `export` wrote.")],
    name: Annotated[str | None, typer.Option("--as", help="What the list is to be called here.")] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Subscribe to a list from a file, by the same rules: its signature counts, and no older revision."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.models.subscriptions import read_list_file
        from p2pnode.storage.model_lists import Taken

        with blaming(str(file)):
            pointer, blob = read_list_file(file)
            data_of(data_dir).prepare()
            subscriptions = _subscriptions(data_dir)
            taken = subscriptions.take(pointer, blob, int(time.time()), name=name or "")
        _tell(output, subscriptions, pointer.key, Taken(*taken))

    run_async(run, on_error=output.failed)


# ---- the network


@asynccontextmanager
async def _network(
    output: Output,
    data_dir: Path | None,
    bootstrap: list[str] | None,
    store: list[str] | None,
    s5_url: str | None,
    mdns: bool | None,
    *,
    writes: bool = False,
) -> AsyncIterator[Client]:
    """A client that has met its first peers. ``writes``: the data dir is made where there is none."""
    if writes:
        data_of(data_dir).prepare()
    async with make_client(
        output, data_dir, bootstrap, mdns=mdns, discovery=True, stores=store, s5_url=s5_url
    ) as client:
        await client.searches.connect_first_peers()
        await client.searches.connect_neighbours()
        yield client


async def _take(client: Client, subscriptions: Subscriptions, key: EntryKey, *, name: str = "") -> Any:
    from p2pnode.storage.model_lists import list_places, take_list

    config, node = client.runtime.config, client.node
    async with list_places(config, node, key) as places:
        return await take_list(
            places, subscriptions, key, now=int(time.time()), limits=node.limits, name=name
        )


async def _publish(
    output: Output,
    data_dir: Path | None,
    network: Any,
    name: str,
    given: Sequence[CatalogueEntry] | None,
    *,
    add: bool,
    description: str | None,
) -> None:
    """Publish ``given`` as the next revision of the list; None withdraws it."""
    from p2pnode.errors import ConfigError, StorageError, UsageError
    from p2pnode.models.model_list import ListHead, is_list_name, list_key_text, revised
    from p2pnode.storage.key_file import load_storage_keys
    from p2pnode.storage.model_lists import OWN, publish_revision, published

    with blaming("NAME"):
        if not is_list_name(name):
            raise ConfigError(f"{name!r} is no name for a list: use a-z, 0-9, dots, dashes, underscores")
    keys = load_storage_keys(data_of(data_dir))
    if keys is None:
        raise ConfigError(
            "a list is signed with a key that follows from twelve words, and there are none here yet: "
            "`p2pnode wallet new` makes them, `wallet restore` takes yours"
        )
    key = keys.model_list(name)
    async with network as client:
        config, node = client.runtime.config, client.node
        before = await published(config, node, key.entry_key)
        blob, revision = None, before.revision + 1
        if given is None:
            if before.pointer is None:
                raise UsageError(f"NAME: no list of yours called {name} was published")
        elif add and before.pointer is not None and before.blob is None:
            msg = f"--add: revision {before.revision} of {name} can't be had now: publish it as a whole"
            raise UsageError(msg)
        else:
            head = ListHead(
                name=name,
                key=key.entry_key,
                revision=revision,
                created=int(time.time()),
                description=description or "",
            )
            blob = revised(head, given, before.blob, add=add, described=description is not None)
            if blob == before.blob:
                revision = before.revision
        pointer, outcomes = await publish_revision(config, node, keys, key, revision=revision, blob=blob)
    if outcomes[OWN]:
        raise StorageError(f"not published: {outcomes[OWN]}")
    _tell_published(output, name, list_key_text(key.entry_key), pointer, blob, outcomes)


async def _given(data_dir: Path | None, file: Path | None, models: Sequence[str]) -> list[CatalogueEntry]:
    """The models of a file and those that were named, with the quality that was measured here."""
    from p2pnode.cli.quality import own_qualities
    from p2pnode.errors import ConfigError
    from p2pnode.files import read_text_or_none, user_path
    from p2pnode.models.catalogue import parse_catalogue
    from p2pnode.models.list_draft import drafted

    data = data_of(data_dir)
    entries: list[CatalogueEntry] = []
    if file is not None:
        with blaming("FILE"):
            path = user_path(file)
            text = read_text_or_none(path)
            if text is None:
                raise ConfigError(f"{path}: there is no such file")
            entries += parse_catalogue(text, str(path), sources_needed=False).values()
    with blaming("--from"):
        return await drafted(
            entries, models, data.models, measured=own_qualities(data), before_pull=data.prepare
        )


# ---- what is shown


def _subscriptions(data_dir: Path | None) -> Subscriptions:
    from p2pnode.models.subscriptions import Subscriptions

    return Subscriptions(data_of(data_dir).models)


def _fields(subscriptions: Subscriptions, each: Subscription) -> dict[str, Any]:
    """A list, for scripts; ``created`` and ``description`` are null where its file is damaged."""
    from p2pnode.errors import ConfigError
    from p2pnode.models.model_list import head_of, list_key_text

    try:
        head = head_of(subscriptions.blob(each))
    except ConfigError:
        head = None
    return {
        "name": each.name,
        "key": list_key_text(each.key),
        "revision": each.pointer.revision,
        "entries": each.entries,
        "left_out": each.left_out,
        "created": head.created if head is not None else None,
        "description": head.description if head is not None else None,
        "taken_at": each.taken_at,
        "asked_at": each.asked_at,
    }


def _row(subscriptions: Subscriptions, each: Subscription, now: float) -> tuple[str, ...]:
    fields = _fields(subscriptions, each)
    created = fields["created"]
    made = "damaged: refresh" if created is None else _ago(now - created)
    return (
        each.name, str(each.pointer.revision), str(each.entries), made, _ago(now - each.asked_at),
        fields["key"],
    )  # fmt: skip


def _ago(seconds: float) -> str:
    return f"{span(seconds)} ago" if seconds >= 0 else "in the future"


def _tell(output: Output, subscriptions: Subscriptions, key: EntryKey, outcome: Any) -> None:
    """Say what became of a list that was taken, or is unchanged."""
    from p2pnode.models.model_list import list_key_text
    from p2pnode.storage.model_lists import Taken

    each = subscriptions.named(list_key_text(key))
    fields = _fields(subscriptions, each)
    if not isinstance(outcome, Taken):
        text = f"{each.name}: revision {each.pointer.revision} is the newest"
        output.event("list.unchanged", fields, text=text)
        return
    left_out = dict(outcome.found.left_out)
    fields["reasons"] = left_out
    models, made = count_of(each.entries, "model"), _ago(time.time() - fields["created"])
    lines = [f"{each.name}: revision {each.pointer.revision}, {models}, made {made}"]
    if fields["description"]:
        lines.append(f"  {one_line(fields['description'])}")
    for model, why in list(left_out.items())[:_LEFT_OUT_SHOWN]:
        lines.append(f"  left out: {model}: {one_line(why)}")
    if len(left_out) > _LEFT_OUT_SHOWN:
        lines.append(
            f"  and {count_of(len(left_out) - _LEFT_OUT_SHOWN, 'other model')} left out (--json has all)"
        )
    lines.append(f"  {output.command(f'models search --list {each.name}')} shows them")
    output.event("list.taken", fields, text="\n".join(lines))


def _tell_published(
    output: Output, name: str, key: str, pointer: Entry, blob: bytes | None, outcomes: dict[str, str]
) -> None:
    from p2pnode.models.model_list import parse_list

    count = len(parse_list(blob).entries) if blob is not None else 0
    fields = {
        "name": name, "key": key, "revision": pointer.revision, "entries": count,
        "size": len(blob) if blob is not None else 0, "places": outcomes,
    }  # fmt: skip
    if blob is None:
        lines = [f"{name}: withdrawn, with revision {pointer.revision}"]
    else:
        lines = [f"{name}: revision {pointer.revision}, {count_of(count, 'model')}, {len(blob)} bytes"]
    lines += [f"  {one_line(place)}: {one_line(why) or 'has it'}" for place, why in outcomes.items()]
    if sum(not why for why in outcomes.values()) == 1:
        lines.append(
            "  only this machine has it: others find it while `p2pnode join` runs here, or name a place that "
            "stores with --store or --s5-url"
        )
    if blob is not None:
        lines.append(f"  others take it with `p2pnode models lists subscribe {key}`")
    output.event(
        "list.published", fields, text=output.with_data_dir("\n".join(lines[:-1])) + "\n" + lines[-1]
    )


__all__ = ["lists_app"]
