"""``p2pnode models list|pull|verify|calibrate``: what can be served, and what is on this machine."""

from __future__ import annotations

import sys
from typing import Annotated, Any

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

models_app = Commands(help="Models: the catalogue, downloads, verification.", no_args_is_help=True)
NameArgument = Annotated[
    str, typer.Argument(help="A catalogue name, a model id, or the path of a GGUF file or a folder.")
]


@models_app.command("list")
def list_models(
    data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error"
) -> None:
    """List the catalogue, and which of it is on this machine."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.cli.quality import known_fields, known_quality, own_qualities, quality_text
        from p2pnode.models.catalogue import Catalogue
        from p2pnode.models.local_models import installed
        from p2pnode.models.manifest import parse_model_id

        own = own_qualities(data_of(data_dir))
        here = {model.model_id: model for model in installed(_models_dir(data_dir))}
        rows: list[dict[str, Any]] = []
        for entry in Catalogue.load():
            if entry.model_id is None or entry.manifest is None:
                continue
            local = here.pop(entry.model_id, None)
            rows.append(_row(entry.name, entry.model_id, entry.manifest, local, entry.licence))
        rows += [_row(m.name, m.model_id, m.manifest, m, "") for m in here.values()]
        qualities = {row["id"]: known_quality(own, parse_model_id(row["id"])) for row in rows}
        if as_json:
            for row in rows:
                known = qualities[row["id"]]
                output.event("model", {**row, "quality": known_fields(known) if known else None})
            return
        for row in rows:
            facts = [f"{row['size_bytes'] / 1e6:.0f} MB", row["quantisation"], f"{row['n_ctx']} tokens"]
            output.result(f"{row['name']}  ({', '.join([*facts, row['licence']]).rstrip(', ')})")
            output.result(f"  id    {row['id']}")
            pull = output.command(f"models pull {row['name']}")
            where = row["path"] or f"no; {pull} fetches it"
            output.result(f"  here  {where}")
            if found := qualities[row["id"]]:
                output.result(f"  right {quality_text(found)}")

    run_async(run, on_error=output.failed)


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
            entry = _entry(name)
            if entry.licence:
                fields = {"name": entry.name, "licence": entry.licence}
                output.report("licence", fields, text=f"{entry.name}: its licence is {entry.licence}")
            with PullProgress(output, name) as progress:
                return await pull(entry, models_dir, progress=progress, licences=licences)

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

        local = await verify(_entry(name), _models_dir(data_dir))
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

        from p2pnode.extras import need
        from p2pnode.models.calibration import table
        from p2pnode.models.engines import engine_name_for
        from p2pnode.models.pull.pull import pull

        need("`p2pnode models calibrate`", "host")
        from p2pnode.models.llamacpp.calibrate import keep_choice, timings_of

        local = await pull(_entry(name), _models_dir(data_dir, make=True))
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
            return await pull_from_network(client, name, _models_dir(data_dir), progress, licences)


def _entry(name: str) -> Any:
    from p2pnode.models.catalogue import Catalogue

    with blaming(""):
        return Catalogue.load().find(name)


def _models_dir(data_dir: Any, *, make: bool = False) -> Any:

    data = data_of(data_dir)
    if make:
        data.prepare()
    return data.models


def _row(name: str, model: Any, manifest: Any, local: Any, licence: str) -> dict[str, Any]:
    from p2pnode.models.manifest import model_id_text

    return {
        "name": name,
        "id": model_id_text(model),
        "size_bytes": manifest.size_bytes,
        "quantisation": manifest.quantisation,
        "n_ctx": manifest.n_ctx,
        "licence": licence,
        "path": str(local.path) if local is not None else None,
    }
