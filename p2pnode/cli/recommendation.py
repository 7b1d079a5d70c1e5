"""``p2pnode models recommend``: which models fit this machine, which almost do, and why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.options import DataDirOption, JsonOption, LogOption, blaming, configure, data_of
from p2pnode.cli.output import Output
from p2pnode.cli.quality import known_fields, known_quality, own_qualities, quality_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2pnode.ids import ModelId
    from p2pnode.models.catalogue_entry import CatalogueEntry
    from p2pnode.models.recommendation import Machine, Option, Recommendation
    from p2pnode.node.datadir import DataDir


def recommend(
    task_hint: Annotated[
        str | None,
        typer.Option(help="What it is for, as chat or code: models that are said to suit it go first."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What a model may take, as 8GB; without it what is free now.")
    ] = None,
    n_ctx: Annotated[int, typer.Option(min=1, help="Tokens of the conversations that shall fit.")] = 4096,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Say which models of the catalogue fit this machine, how fast they would be, and what others lack."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.config import size_bytes
        from p2pnode.models.recommendation import recommend

        with blaming("--memory"):
            most = size_bytes(memory) if memory is not None else 0
        machine, options = await look(data_of(data_dir), memory=most)
        _print(output, machine, recommend(options, machine, n_ctx=n_ctx, task=task_hint or ""))

    run_async(run, on_error=output.failed)


async def look(
    data: DataDir, *, memory: int = 0, more: Sequence[CatalogueEntry] = ()
) -> tuple[Machine, list[Option]]:
    """This machine, with so many bytes of memory where its user says so, and the models that can be named.

    ``more`` are entries beside the catalogue's.
    """
    import trio

    from p2pnode.models.hardware import machine_here

    machine = await machine_here(data.root, data.models, memory=memory)
    return machine, await trio.to_thread.run_sync(_options, data, more)


def _options(data: DataDir, more: Sequence[CatalogueEntry]) -> list[Option]:
    from p2pnode.models.catalogue import Catalogue
    from p2pnode.models.catalogue_entry import CatalogueEntry
    from p2pnode.models.engines import available_engines
    from p2pnode.models.hardware import option_of
    from p2pnode.models.local_models import installed

    here = {each.model_id: each for each in installed(data.models)}
    # A model is named once: by the catalogue that ships before any list.
    entries: dict[ModelId, CatalogueEntry] = {}
    for each in (*Catalogue.of(data.models).every_entry(), *more):
        if each.model_id is not None:
            entries.setdefault(each.model_id, each)
    for model in here.values():
        entries.setdefault(model.model_id, CatalogueEntry(name=model.name, manifest=model.manifest))
    own, engines, options = own_qualities(data), available_engines(), []
    for name, each in entries.items():
        option = option_of(each, here.get(name), engines, data.root)
        found = known_quality(own, name, [(each.list_name, one) for one in each.quality])
        options.append(option if found is None else replace(option, quality=found[0], quality_by=found[1]))
    return options


def _print(output: Output, machine: Machine, found: tuple[Recommendation, ...]) -> None:
    from dataclasses import asdict

    if output.as_json:
        output.event("machine", asdict(machine))
        for each in found:
            output.event("recommendation", recommendation_fields(each))
        return
    output.note(f"here: {machine.words}")
    rows = []
    for each in found:
        option = each.option
        known = (option.quality, option.quality_by) if option.quality is not None else None
        rows.append([
            option.name,
            "yes" if each.fits else f"in {each.would_fit}" if each.would_fit else "no",
            f"{option.size_bytes / 1e9:.1f} GB {option.quantisation}",
            option.licence or "unknown licence",
            quality_text(known) if known is not None else "not measured",
            each.why,
        ])  # fmt: skip
    output.table(("model", "fits", "files", "licence", "right answers", "why"), rows, folds="why")
    best = next((each.option for each in found if each.fits and not each.option.is_here), None)
    if best is not None:
        output.note(f"{output.command(f'models pull {best.name}')} fetches the first that isn't here")


def recommendation_fields(each: Recommendation) -> dict[str, Any]:
    """What was found of a model, for scripts."""
    from p2pnode.models.manifest import model_id_text

    option = each.option
    known = (option.quality, option.quality_by) if option.quality is not None else None
    return {
        "name": option.name,
        "id": model_id_text(option.model),
        "fits": each.fits,
        "why": each.why,
        "memory": each.memory,
        "tokens_per_s": round(each.tokens_per_s, 1) if math.isfinite(each.tokens_per_s) else None,
        "would_fit": each.would_fit,
        "here": option.is_here,
        "size_bytes": option.size_bytes,
        "quantisation": option.quantisation,
        "licence": option.licence,
        "tasks": list(option.tasks),
        "quality": known_fields(known) if known is not None else None,
    }
