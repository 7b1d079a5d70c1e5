"""``p2pnode models list|search|pull|verify|calibrate``: what can be served, and what is on this machine."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

import typer

from p2pnode.cli.client import make_client
from p2pnode.cli.options import (
    BootstrapOption,
    Commands,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    blaming,
    configure,
    data_of,
)
from p2pnode.cli.output import Output
from p2pnode.cli.user_input import confirm
from p2pnode.words import count_of, one_line

models_app = Commands(help="Models: the catalogue, downloads, verification.", no_args_is_help=True)
NameArgument = Annotated[
    str,
    typer.Argument(help="A catalogue name, LIST/NAME, a model id, or the path of a GGUF file or a folder."),
]
_LISTED: Final = 20
"""Models of one list that `models list` shows to people; scripts get all."""
_NOBODY: Final = {"count": 0, "price_in": None, "price_out": None}


@models_app.command("list")
def list_models(
    data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error"
) -> None:
    """List the catalogue, and which of it is on this machine."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.cli.quality import own_qualities
        from p2pnode.models.catalogue import Catalogue
        from p2pnode.models.catalogue_entry import CatalogueEntry
        from p2pnode.models.local_models import LocalModel, installed

        own = own_qualities(data_of(data_dir))
        models_dir = _models_dir(data_dir)
        here = {model.model_id: model for model in installed(models_dir)}
        found = dict(here)
        rows: list[tuple[CatalogueEntry, LocalModel | None]] = []
        shown: dict[str, int] = {}
        for entry in Catalogue.of(models_dir).every_entry():
            if entry.model_id is None:
                continue
            found.pop(entry.model_id, None)
            shown[entry.list_name] = shown.get(entry.list_name, 0) + 1
            if as_json or not entry.list_name or shown[entry.list_name] <= _LISTED:
                rows.append((entry, here.get(entry.model_id)))
        rows += [(CatalogueEntry(name=m.name, manifest=m.manifest), m) for m in found.values()]
        for entry, local in rows:
            known = _known(entry, own)
            row = _row(entry, local, known)
            output.event("model", row)
            if not as_json:
                _print(output, row, known)
        for name, count in shown.items():
            if name and count > _LISTED and not as_json:
                more = output.command(f"models search --list {name}")
                output.result(f"and {count - _LISTED} more of the list {name}: {more} finds them")

    run_async(run, on_error=output.failed)


@models_app.command("search")
def search_models(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]…", help="Words that are all said of the model.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="Bytes of its files at most, as 4GB.")
    ] = None,
    licence: Annotated[
        list[str] | None, typer.Option("--licence", help="A licence, as Apache-2.0. May be repeated.")
    ] = None,
    architecture: Annotated[
        list[str] | None, typer.Option("--architecture", help="As llama or qwen2. May be repeated.")
    ] = None,
    task: Annotated[
        str, typer.Option("--task", help="What it is good at, or a task that was measured; the best first.")
    ] = "",
    in_list: Annotated[str, typer.Option("--list", help="Only the models of this list.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many are shown at most.")] = 50,
    hosts: Annotated[
        bool | None,
        typer.Option(
            "--hosts/--no-hosts",
            help="Ask the network who serves them; without either, where a node runs here.",
        ),
    ] = None,
    bootstrap: BootstrapOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Search the catalogue and all subscribed lists, and say who serves what is found."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.cli.quality import own_qualities
        from p2pnode.config import size_bytes
        from p2pnode.models.catalogue import Catalogue
        from p2pnode.models.local_models import installed
        from p2pnode.models.search import Search, found

        models_dir = _models_dir(data_dir)
        with blaming("--max-size"):
            size_max = size_bytes(max_size) if max_size is not None else None
        catalogue = Catalogue.of(models_dir)
        with blaming("--list"):
            entries = catalogue.every_entry() if not in_list else catalogue.of_list(in_list)
        search = Search(
            words=tuple(word for text in words or () for word in text.split()),
            size_max=size_max,
            licences=frozenset(each.lower() for each in licence or ()),
            architectures=frozenset(each.lower() for each in architecture or ()),
            task=task,
        )
        meant, own = found(entries, search), own_qualities(data_of(data_dir))
        here = {model.model_id: model for model in installed(models_dir)}
        asks = data_of(data_dir).running_node() is not None if hosts is None else hosts
        offers = await _offers(output, data_dir, bootstrap, mdns=mdns) if asks else None
        for entry in meant[:limit]:
            assert entry.model_id is not None  # noqa: S101 - none else is meant
            known = _known(entry, own)
            row = _row(entry, here.get(entry.model_id), known)
            if offers is not None:
                row["hosts"] = offers.get(entry.model_id, _NOBODY)
            output.event("model", row)
            if not as_json:
                _print(output, row, known)
        if len(meant) > limit:
            output.note(
                f"{count_of(len(meant) - limit, 'other model')} fit too: say more, or a higher --limit"
            )
        elif not meant:
            output.note(
                "no model in the catalogue or in a subscribed list fits: ask for less, or subscribe to a "
                "list with `p2pnode models lists subscribe KEY`"
            )

    run_async(run, on_error=output.failed)


async def _offers(
    output: Output, data_dir: Any, bootstrap: list[str] | None, *, mdns: bool | None
) -> dict[Any, dict[str, Any]]:
    """By model, how many hosts offer it now, and the lowest prices, as first peers and neighbours know."""
    async with make_client(output, data_dir, bootstrap, mdns=mdns, discovery=True) as client:
        adverts = await client.known_adverts()
    offers: dict[Any, dict[str, Any]] = {}
    for advert in adverts:
        for offer in advert.offers:
            if offer.n_ctx:
                best = offers.setdefault(offer.model, {**_NOBODY, "price_in": None, "price_out": None})
                best["count"] += 1
                for price in ("price_in", "price_out"):
                    asked = getattr(offer, price)
                    best[price] = asked if best[price] is None else min(best[price], asked)
    return offers


@models_app.command("pull")
def pull_model(
    name: NameArgument,
    from_peers: Annotated[
        bool, typer.Option("--from-peers", help="Take the files from peers that share them, by their hashes.")
    ] = False,
    accept_licence: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-licence",
            help="A licence that you have read and accept; free ones need no word. May be repeated.",
        ),
    ] = None,
    bootstrap: BootstrapOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Download a model and verify its SHA-256; an interrupted download goes on where it stopped."""
    from p2pnode.cli.progress import PullProgress
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.models.licences import LicenceError
        from p2pnode.models.manifest import model_id_text
        from p2pnode.models.pull.pull import pull

        models_dir = _models_dir(data_dir, make=True)

        async def fetch(licences: list[str]) -> Any:
            if from_peers:
                return await _pull_from_peers(output, name, data_dir, bootstrap, mdns=mdns, licences=licences)
            entry = _entry(name, data_dir)
            with PullProgress(output, name) as progress:
                return await pull(
                    entry, models_dir, progress=progress, licences=licences, on_download=progress.begins
                )

        accepted = accept_licence or []
        try:
            local = await fetch(accepted)
        except LicenceError as error:
            if not sys.stdin.isatty() or as_json:
                raise
            await confirm(output, f"you accept the licence {error.licence} of {name}", yes=False)
            local = await fetch([*accepted, error.licence])
        fields = {"name": local.name, "path": str(local.path), "id": model_id_text(local.model_id)}
        output.event("model", fields, text=f"{local.name}: verified, {local.path}\n{fields['id']}")

    run_async(run, on_error=output.failed)


@models_app.command("verify")
def verify_model(
    name: NameArgument,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Hash a model's files again and compare them with the manifest."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.models.pull.pull import verify

        local = await verify(_entry(name, data_dir), _models_dir(data_dir))
        files = [
            {"path": str(local.paths[each.path]), "sha256": each.sha256} for each in local.manifest.files
        ]
        fields = {"name": local.name, "path": str(local.path), "files": files}
        hashes = "\n".join(f"  {each['sha256']}  {each['path']}" for each in files)
        output.event("verified", fields, text=f"{local.name}: the weights are right\n{hashes}")

    run_async(run, on_error=output.failed)


@models_app.command("calibrate")
def calibrate_model(
    name: NameArgument,
    seconds: Annotated[float, typer.Option(help="About how long this may take.")] = 60.0,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Find the threads and the batch with which llama.cpp is fast here; `join` uses them from then on."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from dataclasses import asdict

        from p2pnode.cli.progress import PullProgress
        from p2pnode.extras import need
        from p2pnode.models.calibration import table
        from p2pnode.models.engines import engine_name_for
        from p2pnode.models.pull.pull import pull

        need("`p2pnode models calibrate`", "host")
        from p2pnode.models.llamacpp.calibrate import keep_choice, timings_of

        entry, models_dir = _entry(name, data_dir), _models_dir(data_dir, make=True)
        with PullProgress(output, name) as progress:
            local = await pull(entry, models_dir, progress=progress, on_download=progress.begins)
        engine_name_for(local, "llamacpp")
        output.note(f"timing {local.name} with several settings: end what else runs here")
        timings = await timings_of(local, seconds=seconds)
        choice = keep_choice(data_of(data_dir).root, local, timings)
        if as_json:
            output.event("calibrated", {"name": local.name, **asdict(choice)})
            return
        for line in table(timings):
            output.result(line)

    run_async(run, on_error=output.failed)


async def _pull_from_peers(
    output: Output,
    name: str,
    data_dir: Any,
    bootstrap: list[str] | None,
    *,
    mdns: bool | None,
    licences: list[str],
) -> Any:
    from p2pnode.cli.progress import PullProgress
    from p2pnode.client.model_files import pull_from_network

    async with make_client(output, data_dir, bootstrap, mdns=mdns, discovery=True) as client:
        with PullProgress(output, name) as progress:
            return await pull_from_network(
                client,
                name,
                _models_dir(data_dir),
                progress=progress,
                licences=licences,
                on_download=progress.begins,
            )


def _entry(name: str, data_dir: Any) -> Any:
    from p2pnode.models.catalogue import Catalogue

    with blaming(""):
        return Catalogue.of(_models_dir(data_dir)).find(name)


def _models_dir(data_dir: Any, *, make: bool = False) -> Any:

    data = data_of(data_dir)
    if make:
        data.prepare()
    return data.models


def _known(entry: Any, own: Any) -> Any:
    """What is known of how well a model answers: measured here, else as its list says."""
    from p2pnode.cli.quality import known_quality

    return known_quality(own, entry.model_id, [(entry.list_name, each) for each in entry.quality])


def _row(entry: Any, local: Any, known: Any) -> dict[str, Any]:
    """A model, for scripts; ``path`` where it is on this machine."""
    from p2pnode.cli.quality import known_fields
    from p2pnode.models.manifest import model_id_text

    return {
        "name": entry.name,
        "id": model_id_text(entry.model_id),
        "list": entry.list_name,
        "aliases": list(entry.aliases),
        "description": entry.description,
        "remarks": entry.remarks,
        "architecture": entry.manifest.architecture,
        "size_bytes": entry.manifest.size_bytes,
        "quantisation": entry.manifest.quantisation,
        "n_ctx": entry.manifest.n_ctx,
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "licence_sha256": entry.licence_sha256,
        "tasks": list(entry.tasks),
        "memory": None
        if entry.memory is None
        else {"bytes": entry.memory.bytes, "n_ctx": entry.memory.n_ctx},
        "quality": known_fields(known) if known is not None else None,
        "path": str(local.path) if local is not None else None,
    }


def _print(output: Output, row: dict[str, Any], known: Any) -> None:
    """A model, for people."""
    from p2pnode.cli.quality import quality_text

    facts = [
        f"{row['size_bytes'] / 1e6:.0f} MB",
        row["quantisation"],
        f"{row['n_ctx']} tokens",
        row["licence"],
    ]
    output.result(f"{row['name']}  ({', '.join(fact for fact in facts if fact)})")
    output.result(f"  id    {row['id']}")
    if row["list"]:
        said = [row["description"], row["remarks"], ", ".join(row["tasks"])]
        for text in filter(None, said):
            output.result(f"  said  {one_line(text)}")
        if row["memory"]:
            needed, n_ctx = row["memory"]["bytes"], row["memory"]["n_ctx"]
            output.result(f"  takes {needed / 1e9:.1f} GB of memory with {n_ctx} tokens, as the list says")
    if (served := row.get("hosts")) is not None:
        output.result(f"  hosts {_hosts_text(served)}")
    pull = output.command(f"models pull {row['name']}")
    where = row["path"] or f"no; {pull} fetches it"
    output.result(f"  here  {where}")
    if known is not None:
        output.result(f"  right {quality_text(known)}")


def _hosts_text(served: dict[str, Any]) -> str:
    from p2pnode.money import usdc_text

    if not served["count"]:
        return "nobody is known who serves it now"
    prices = f"{usdc_text(served['price_in'])} in, {usdc_text(served['price_out'])} out per million tokens"
    return f"{count_of(served['count'], 'host')}, from {prices}"
