"""``p2pnode models show``: one model in full: what it is, whether it fits here, how well it answers."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from p2pnode.cli.models import NameArgument
from p2pnode.cli.options import DataDirOption, JsonOption, LogOption, blaming, configure, data_of
from p2pnode.cli.output import Output
from p2pnode.cli.quality import known_fields, own_qualities, print_quality
from p2pnode.cli.recommendation import look, recommendation_fields
from p2pnode.words import count_of, one_line


def show(
    name: NameArgument,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show one model in full: its files and licence, whether it fits here, and how well it answers."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.models.catalogue import Catalogue
        from p2pnode.models.pull.pull import locate
        from p2pnode.models.recommendation import recommend

        data = data_of(data_dir)
        with blaming(""):
            catalogue = Catalogue.of(data.models)
            entry = catalogue.find(name)
            local = await locate(entry, data.models)
        if entry.manifest is None and local is not None:  # it was named by its path
            entry = replace(entry, manifest=local.manifest)
        machine, options = await look(data, more=[entry])
        option = next(each for each in options if each.model == entry.model_id)
        if local is not None and not option.is_here:
            option = replace(option, is_here=True)
        (found,) = recommend([option], machine)
        own = [(each, "") for each in own_qualities(data) if each.model == option.model]
        qualities = [*own, *((each, by) for by, each in catalogue.qualities(option.model))]
        path = str(local.path) if local is not None else None
        if as_json:
            fields = {**recommendation_fields(found), "path": path, "description": entry.description}
            fields["manifest"] = asdict(entry.manifest) if entry.manifest is not None else None
            output.event("model", {**fields, "qualities": [known_fields(each) for each in qualities]})
            return
        _print(output, entry, found, path, qualities)

    run_async(run, on_error=output.failed)


def _print(output: Output, entry: Any, found: Any, path: str | None, qualities: Any) -> None:
    """All that is known of a model, for people."""
    from p2pnode.models.manifest import model_id_text

    manifest, option = entry.manifest, found.option
    pull = output.command(f"models pull {entry.name}")
    size = f"{manifest.size_bytes / 1e6:.0f} MB in {count_of(len(manifest.files), 'file')}"
    lines = {
        "id": model_id_text(option.model),
        "about": one_line(entry.description),
        "model": f"{manifest.architecture} {manifest.quantisation}, {manifest.format}, {size}",
        "context": f"{manifest.n_ctx} tokens",
        "licence": one_line(entry.licence) or "nobody says one",
        "here": path or f"no; {pull} fetches it",
        "fits": f"{'yes' if found.fits else 'no'}: {found.why}",
    }
    output.result(entry.name)
    for name, text in lines.items():
        if text:
            output.result(f"  {name:<8}{text}")
    for quality, by in qualities:
        output.result("")
        output.result(f"right answers, {f'as the list {one_line(by)} says' if by else 'measured here'}:")
        print_quality(output, quality)
    if not qualities:
        output.note(f"{output.command(f'models evaluate {entry.name}')} measures how well it answers")
