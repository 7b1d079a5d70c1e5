"""``p2pnode models evaluate``: how well a model answers a small public task set, measured here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.ask import MaxSpendOption
from p2pnode.cli.client import make_client
from p2pnode.cli.models import NameArgument
from p2pnode.cli.options import (
    ChainOption,
    DataDirOption,
    JsonOption,
    LogOption,
    YesOption,
    blaming,
    check_target,
    configure,
    data_of,
)
from p2pnode.cli.output import Output
from p2pnode.cli.progress import ItemsProgress, PullProgress
from p2pnode.cli.quality import keep_quality, print_quality, quality_fields
from p2pnode.cli.user_input import confirm
from p2pnode.words import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2pnode.client.chat_options import ChatOptions
    from p2pnode.client.client import Client
    from p2pnode.models.engine import Engine, EngineInfo
    from p2pnode.models.evaluation.evaluation import Answered
    from p2pnode.models.evaluation.task_set import Item
    from p2pnode.node.datadir import DataDir


def evaluate(
    name: NameArgument,
    tasks: Annotated[str, typer.Option(help="Only these, with commas between them; all otherwise.")] = "all",
    limit: Annotated[int, typer.Option(min=0, help="Items of each task, at most; 0 asks all.")] = 0,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Which items come first; the figures name it.")
    ] = 0,
    engine: Annotated[str, typer.Option(help="auto, llamacpp, exllama or scripted.")] = "auto",
    peer: Annotated[
        str | None,
        typer.Option("--peer", help="Ask this host instead, a multiaddr; what it can cost is said before."),
    ] = None,
    chain: ChainOption = None,
    max_spend: MaxSpendOption = None,
    yes: YesOption = False,
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
        answered: list[Answered] = []
        if peer is not None:
            check_target(name, peer, data_dir)
            client = make_client(
                output,
                data_dir,
                None,
                mdns=False,
                discovery=False,
                chain=chain,
                spend_session_max=max_spend,
            )
            async with client:
                await _evaluate_host(output, client, name, peer, seed, items, answered, yes=yes)
            return
        data = data_of(data_dir)
        data.prepare()
        model, made = await _engine(output, data, name, engine)
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


async def _engine(output: Output, data: DataDir, name: str, asked: str) -> tuple[Any, Engine]:
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
        entry = Catalogue.of(data.models).find(name)
    with PullProgress(output, entry.name) as progress:
        local = await pull(entry, data.models, progress=progress, on_download=progress.begins)
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


async def _evaluate_host(
    output: Output,
    client: Client,
    name: str,
    peer: str,
    seed: int,
    items: Sequence[Item],
    answered: list[Answered],
    *,
    yes: bool,
) -> None:
    """Ask a host, once its user knows what that can cost.

    Nothing is kept: only the host says which weights it has.
    """
    from dataclasses import replace

    from p2pnode.client.ranking import is_priced
    from p2pnode.errors import NoHostError
    from p2pnode.money import usdc_text
    from p2pnode.protocols.adverts.messages import Capability

    longest = max(items, key=lambda item: len(item.text.encode()))
    roomy = replace(longest, tokens_max=max(item.tokens_max for item in items), schema=None)
    (found, *_) = await client.estimate(roomy.text, _options(roomy, name, peer, Capability.REASONING))
    if found.candidate.excluded:
        raise NoHostError(f"this host may not be asked: {found.candidate.excluded}")
    offer, cost = found.candidate.offer, found.cost
    most = cost.fee + (cost.total - cost.fee) * len(items)
    priced = is_priced(offer)
    what = f"{count_of(len(items), 'item')} cost at most {usdc_text(most)} there" if priced else "it is free"
    output.event("cost", {"items": len(items), "cost_max": most}, text=f"[{what}]")
    if priced:
        await confirm(output, f"{what}: they are asked", yes=yes)

    async def ask(item: Item) -> str:
        async with client.answer(item.text, _options(item, name, peer, offer.caps)) as answer:
            async for _ in answer:
                pass
        return answer.text

    sheets = await client.sheets([found.candidate.advert])
    info = _info(sheets.get(found.candidate.advert.peer), offer.model)
    try:
        await _ask_all(output, items, ask, answered)
    finally:
        if answered:
            _finish(output, None, offer.model, info, seed, answered, asked=len(items))


def _options(item: Item, name: str, peer: str, caps: int) -> ChatOptions:
    """How a host with these capabilities is asked."""
    from p2pnode.client.chat_options import ChatOptions
    from p2pnode.models.evaluation.evaluation import format_of, sampling_of
    from p2pnode.protocols.adverts.messages import Capability
    from p2pnode.protocols.inference.messages import ResponseFormat
    from p2pnode.protocols.inference.prompt_rules import seed_of

    return ChatOptions(
        model=name,
        peer=peer,
        sampling=sampling_of(item, thinks=bool(caps & Capability.REASONING)),
        response_format=format_of(item) if caps & Capability.SCHEMA else ResponseFormat(),
        seed=seed_of(0),
    )


def _info(sheet: Any, model: Any) -> EngineInfo:
    """What a host says of its engine, in letters that a record may hold."""
    from p2pnode.models.engine import EngineInfo

    offer = sheet.offer(model) if sheet is not None else None
    profile = offer.profile if offer is not None else None

    def said(text: str) -> str:
        return "".join(letter for letter in text if letter.isascii() and letter.isprintable())

    return EngineInfo(
        engine=(said(profile.engine) if profile is not None else "") or "unknown",
        build=said(profile.build) if profile is not None else "",
        kv_types=said(profile.kv_types) if profile is not None else "",
        quantisation="",
        n_ctx=0,
        slots=0,
    )


async def _ask_all(output: Output, items: Sequence[Any], ask: Any, answered: list[Answered]) -> None:
    from contextlib import aclosing

    from p2pnode.models.evaluation.evaluation import evaluate as run_items

    with ItemsProgress(output, len(items)) as progress:
        async with aclosing(run_items(items, ask)) as done:
            async for each in done:
                answered.append(each)
                fields = {"task": each.item.task, "index": each.item.index, "right": each.right}
                output.event("item", {**fields, "answer": each.answer, "lost": each.lost})
                progress(len(answered), sum(one.right for one in answered))


def _finish(
    output: Output,
    data: DataDir | None,
    model: Any,
    info: EngineInfo,
    seed: int,
    answered: Sequence[Answered],
    *,
    asked: int,
) -> None:
    """Print the figures of what was answered, and keep them in ``data`` where that is given."""
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
    kept = data is not None and keep_quality(data, quality)
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
    if data is None:
        output.note("not kept: these are this host's answers, and only it says which weights it has")
    elif not kept:
        output.note("an earlier figure of more items is kept instead of this one")
