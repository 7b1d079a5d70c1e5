"""``p2pnode hosts``: who serves what, in the order a client would try."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.ask import MinReputationOption, VerifiedOption, verified_of
from p2pnode.cli.client import open_client
from p2pnode.cli.options import (
    BootstrapOption,
    ChainOption,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    ModelOption,
    configure,
    data_of,
    units_of,
)
from p2pnode.cli.output import Output, shorten
from p2pnode.cli.quality import known_fields, known_quality, own_qualities, quality_text
from p2pnode.words import count_of, one_line, span

if TYPE_CHECKING:
    from p2pnode.ids import ModelId
    from p2pnode.node.datadir import DataDir


def hosts(
    model: ModelOption = None,
    why: Annotated[bool, typer.Option("--why", help="Also show who is left out, and why.")] = False,
    max_price_in: Annotated[str | None, typer.Option(help="USDC per million input tokens.")] = None,
    max_price_out: Annotated[str | None, typer.Option(help="USDC per million output tokens.")] = None,
    min_context: Annotated[int, typer.Option(help="Tokens of context a host must offer.")] = 0,
    min_reputation: MinReputationOption = 0.0,
    verified: VerifiedOption = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(
            "--needs",
            help="What a host must be able to do: tools, schema, reasoning, logprobs, embeddings, vision, "
            "parallel-turns, keep-time, grammar. May be repeated.",
        ),
    ] = None,
    bootstrap: BootstrapOption = None,
    chain: ChainOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """List hosts of a model as measured from here; exit code 3 when there is none."""
    from p2pnode.cli.runner import run_async
    from p2pnode.client.ranking import Filters
    from p2pnode.errors import NoHostError

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        filters = Filters(
            price_in_max=None if max_price_in is None else units_of(max_price_in, "--max-price-in"),
            price_out_max=None if max_price_out is None else units_of(max_price_out, "--max-price-out"),
            n_ctx_min=min_context,
            caps=_capabilities(needs or ()),
            reputation_min=min_reputation,
            verified=verified_of(verified),
        )
        async with open_client(output, data_dir, bootstrap, model=model, mdns=mdns, chain=chain) as client:
            ranking = await client.hosts(model, filters)
            failures, alone = client.last_failures, client.alone
            shown = (*ranking.chosen, *(ranking.excluded if why else ()))
            sheets = await client.sheets(each.advert for each in shown)
        print_hosts(output, ranking, sheets, failures if why else {}, why=why)
        if why:
            print_qualities(output, data_of(data_dir), {each.offer.model for each in shown})
        if not ranking.chosen:
            asked = {
                "--max-price-in": max_price_in,
                "--max-price-out": max_price_out,
                "--min-context": min_context,
                "--min-reputation": min_reputation,
                **{f"--needs {name}": name for name in needs or ()},
                "--verified": verified,
            }
            limits = [flag for flag, value in asked.items() if value] if ranking.excluded else []
            raise NoHostError(_nobody(limits, why=why, found=bool(ranking.excluded), alone=alone))

    run_async(run, on_error=output.failed)


def _nobody(limits: Sequence[str], *, why: bool, found: bool, alone: bool) -> str:
    """What helps where no host may be chosen.

    ``found``: some were, and may not be used; ``limits`` are the flags that leave hosts out. ``alone``: no
    other node is known.
    """
    from p2pnode.client.failover import ALONE

    ways = ["start one with `p2pnode join`", "name a first peer with --bootstrap"]
    if not why and not alone:
        ways.append("see --why")
    elif limits:
        ways.append(f"ask for less than {' and '.join(limits)}")
    what = "no host of this model may be chosen" if found else "no host of this model was found"
    text = f"{what}{f' ({ALONE})' if alone else ''}: {', '.join(ways[:-1])}, or {ways[-1]}"
    if "--needs embeddings" in limits:
        text += ". Hosts with llama.cpp make them, unless memory is short or their owner wants none"
    return text


def _capabilities(names: Iterable[str]) -> int:
    """The bits of these names. Raises ``UsageError`` for one that there isn't."""
    from p2pnode.errors import UsageError
    from p2pnode.protocols.adverts.messages import Capability, capability_names

    known = {capability_names(each)[0]: each for each in Capability}
    wanted = 0
    for name in names:
        if name not in known:
            begun = [each for each in known if name and each.startswith(name)]
            near = begun or get_close_matches(name, known, 1)
            meant = f"did you mean {near[0]}? All are" if near else "choose of"
            msg = f"--needs: {name!r} is no capability: {meant} {', '.join(known)}"
            raise UsageError(msg)
        wanted |= known[name]
    return wanted


def print_hosts(output: Output, ranking: Any, sheets: Any, failures: Any, *, why: bool) -> None:
    """Print hosts that may be chosen and, with ``why``, what they can do, and those that may not."""

    from p2pnode.views.hosts import host_fields

    def fields_of(candidate: Any) -> dict[str, Any]:
        return host_fields(candidate, sheets.get(candidate.advert.peer))

    left_out = list(map(fields_of, ranking.excluded)) if why else []
    chosen = list(map(fields_of, ranking.chosen))
    if output.as_json:
        for fields in (*chosen, *left_out):
            output.event("host", fields)
        for peer, reason in failures.items():
            output.event("not_found", {"peer": peer, "reason": reason})
        return
    if chosen:
        columns = ("model", "peer", "USDC/M in/out", "fee", "context", "load", "score")
        output.table(columns, map(_row, chosen), folds="model")
        for fields in chosen if why else ():
            peer = shorten(fields["peer"])
            output.lines(f"  {peer}  {_abilities(fields)}")
            output.lines(f"  {'':{len(peer)}}  {_standing(fields['reputation'])}")
    if left_out:
        output.lines("left out:")
    for fields in left_out:
        why_not = output.with_data_dir(one_line(fields["excluded"]))
        output.lines(f"  {shorten(fields['peer'])}  {why_not}")
    if failures:
        output.lines("not reached:")
    for peer, reason in failures.items():
        output.lines(f"  {shorten(peer)}  {one_line(reason)}")


def print_qualities(output: Output, data: DataDir, models: Iterable[ModelId]) -> None:
    """Print what is known of how well these models answer: it is the same at all hosts of a model."""
    from p2pnode.models.catalogue import Catalogue, shown_name

    own, catalogue = own_qualities(data), Catalogue.of(data.models)
    for model in sorted(models):
        if (found := known_quality(own, model, catalogue.qualities(model))) is None:
            continue
        output.event("quality", {**known_fields(found), "name": shown_name(model)})
        if not output.as_json:
            output.lines(f"{shown_name(model)}: right answers {quality_text(found)}")
            output.lines("  no part of the score: all hosts of one id have the same weights")


def _row(fields: dict[str, Any]) -> list[str]:
    from p2pnode.money import usdc_number

    priced = fields["price_in"] or fields["price_out"]
    return [
        fields["model"],
        shorten(fields["peer"]),
        f"{usdc_number(fields['price_in'])}/{usdc_number(fields['price_out'])}" if priced else "free",
        usdc_number(fields["session_fee"]) if priced else "",
        str(fields["n_ctx"]),
        f"{fields['active']}/{fields['slots']}" if fields["state"] == "warm" else _when_warm(fields),
        f"{fields['score']:.2f}",
    ]


def _abilities(fields: dict[str, Any]) -> str:
    """What a host that may be chosen can do, in words."""
    from p2pnode.money import fab_text

    can = ", ".join(fields["can"]) or "text only"
    engine = f" ({fields['engine']})" if fields["engine"] else ""
    kept = f"; keeps a session for {span(fields['keep_s'])} after you left" if fields["keep_s"] else ""
    first = "; asked first: a session with it was left" if fields["goes_first"] else ""
    staked = f"; {fab_text(fields['stake'])} at stake" if fields["stake"] else ""
    loads = {
        "warm": "",
        "warming": f"; is loading the model: {span(fields['warm_in_s'])} more, which its score counts",
        "cold": f"; loads the model when asked: {span(fields['warm_in_s'])}, which its score counts",
    }[fields["state"]]
    return f"can: {can}{engine}{kept}{first}{loads}{staked}"


def _standing(known: dict[str, Any]) -> str:
    """How turns with a host ended, in words."""
    turns = known["kept"] + known["broken"]
    if not turns:
        return "reputation: no turn of it ended here yet"
    said = (
        f"reputation {known['low']:.2f} to {known['high']:.2f}: {known['kept']} of {count_of(turns, 'turn')} "
        f"ended as promised, receipts over {count_of(known['receipted'], 'token')}"
    )
    bad = (
        ("faults", "breach of the protocol", "breaches of the protocol"),
        ("unanswered", "paid question without an answer", "paid questions without an answer"),
        ("left_closed", "session closed before its time", "sessions closed before their time"),
    )
    for key, one, many in bad:
        if known[key]:
            said += f"; {count_of(known[key], one, many)}"
    return said


def _when_warm(fields: dict[str, Any]) -> str:
    return f"{fields['state']}, {fields['warm_in_s']} s"
