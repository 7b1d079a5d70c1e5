"""``p2pnode models evaluate``: how well a model answers a small public task set, measured here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.models import NameArgument
from p2pnode.cli.options import DataDirOption, JsonOption, LogOption, blaming, configure, data_of
from p2pnode.cli.output import Output
from p2pnode.cli.quality import keep_quality, print_quality, quality_fields
from p2pnode.words import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2pnode.models.engine import Engine, EngineInfo
    from p2pnode.models.evaluation.evaluation import Answered
    from p2pnode.node.datadir import DataDir


def evaluate(
    name: NameArgument,
    tasks: Annotated[str, typer.Option(help="Only these, with commas between them; all otherwise.")] = "all",
    limit: Annotated[int, typer.Option(min=0, help="Items of each task, at most; 0 asks all.")] = 0,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Which items come first; the figures name it.")
    ] = 0,
    engine: Annotated[str, typer.Option(help="auto, llamacpp, exllama or scripted.")] = "auto",
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Measure how well a model answers: a task set that code checks. Ctrl-C keeps what was done."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        import trio

        from p2pnode.models.evaluation.evaluation import engine_asker
        from p2pnode.models.evaluation.task_set import task_set

        with blaming("--tasks"):
            items = task_set().items([] if tasks == "all" else tasks.split(","), limit=limit, seed=seed)
        data = data_of(data_dir)
        data.prepare()
        model, made = await _engine(data, name, engine)
        answered: list[Answered] = []
        try:
            info = await made.load()
            try:
                await _ask_all(output, items, engine_asker(made, info), answered)
            finally:
                if answered:
                    _finish(output, data, model, info, seed, answered, asked=len(items))
        finally:
            with trio.CancelScope(shield=True):
                await made.aclose()

    run_async(run, on_error=output.failed)


async def _engine(data: DataDir, name: str, asked: str) -> tuple[Any, Engine]:
    """The id of the model that a user named, and an engine for it that is not loaded yet."""
    from p2pnode.files import off_the_loop
    from p2pnode.models.catalogue import Catalogue
    from p2pnode.models.engines import EngineSpec, engine_name_for, make_engine, require_engine
    from p2pnode.models.evaluation.evaluation import N_CTX
    from p2pnode.models.manifest import SCRIPTED, scripted_model_id
    from p2pnode.models.pull.pull import pull

    if name == SCRIPTED:
        return scripted_model_id(), make_engine(EngineSpec(name="scripted", n_ctx=8 * N_CTX, slots=1))
    with blaming(""):
        entry = Catalogue.load().find(name)
    local = await pull(entry, data.models)
    with blaming("--engine"):
        chosen = engine_name_for(local, asked)
    require_engine(chosen)
    spec = EngineSpec(name=chosen, n_ctx=min(N_CTX, local.manifest.n_ctx), slots=1)
    if chosen == "llamacpp":
        from dataclasses import replace

        from p2pnode.models.llamacpp.calibrate import read_choice

        # Threads and batches that are fast here; the numbers are the same with all of them.
        found = await off_the_loop(lambda: read_choice(data.root, local), in_thread=True)
        spec = spec if found is None else replace(spec, threads=found.threads, batch=found.batch)
    return local.model_id, make_engine(spec, local)


async def _ask_all(output: Output, items: Sequence[Any], ask: Any, answered: list[Answered]) -> None:
    from contextlib import aclosing

    from p2pnode.cli.progress import ItemsProgress
    from p2pnode.models.evaluation.evaluation import evaluate as run_items

    with ItemsProgress(output, len(items)) as progress:
        async with aclosing(run_items(items, ask)) as done:
            async for each in done:
                answered.append(each)
                fields = {"task": each.item.task, "index": each.item.index, "right": each.right}
                output.event("item", {**fields, "answer": each.answer, "lost": each.lost})
                progress(len(answered), sum(one.right for one in answered))


def _finish(
    output: Output, data: DataDir, model: Any, info: EngineInfo, seed: int, answered: Sequence[Answered], *,
    asked: int,
) -> None:  # fmt: skip
    """Keep the figures of what was answered, and print them."""
    from datetime import UTC, datetime

    from p2pnode.models.evaluation.evaluation import results
    from p2pnode.models.evaluation.task_set import task_set
    from p2pnode.models.quality import Quality

    quality = Quality(
        model=model,
        task_set=task_set().id,
        seed=seed,
        tasks=results(answered),
        engine=info.engine,
        build=info.build,
        kv_types=info.kv_types,
        measured=datetime.now(UTC).date().isoformat(),
    )
    kept = keep_quality(data, quality)
    lost = sum(each.lost for each in answered)
    if output.as_json:
        more = {"asked": asked, "answered": len(answered), "lost": lost, "kept": kept}
        output.report("evaluated", {**quality.to_mapping(), **quality_fields(quality), **more})
        return
    print_quality(output, quality)
    if len(answered) < asked:
        output.note(f"stopped after {len(answered)} of {count_of(asked, 'item')}: these are their figures")
    if lost:
        output.note(f"at {count_of(lost, 'item')} the engine died; they count as wrong")
    if not kept:
        output.note("an earlier figure of more items is kept instead of this one")
