"""``p2pnode hosts``: who serves what, in the order a client would try."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from p2pnode.cli.client import make_client
from p2pnode.cli.options import (
    BootstrapOption,
    ChainOption,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    ModelOption,
    check_target,
    configure,
    units_of,
)
from p2pnode.cli.output import Output, shorten
from p2pnode.words import one_line


def hosts(
    model: ModelOption = None,
    why: Annotated[bool, typer.Option("--why", help="Also show who is left out, and why.")] = False,
    max_price_in: Annotated[str | None, typer.Option(help="USDC per million input tokens.")] = None,
    max_price_out: Annotated[str | None, typer.Option(help="USDC per million output tokens.")] = None,
    min_context: Annotated[int, typer.Option(help="Tokens of context a host must offer.")] = 0,
    quantisation: Annotated[str | None, typer.Option(help="As the host names it, e.g. Q4_1.")] = None,
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
        check_target(model, None)
        filters = Filters(
            price_in_max=None if max_price_in is None else units_of(max_price_in, "--max-price-in"),
            price_out_max=None if max_price_out is None else units_of(max_price_out, "--max-price-out"),
            n_ctx_min=min_context,
            quantisation=quantisation,
        )
        async with make_client(output, data_dir, bootstrap, mdns=mdns, discovery=True, chain=chain) as client:
            ranking = await client.hosts(model, filters)
            failures = client.last_failures
        _print(output, ranking, failures if why else {}, why=why)
        if not ranking.chosen:
            msg = (
                "no host of this model may be chosen: start one with `p2pnode join`, name a first peer with "
                f"--bootstrap{', or allow more' if why else ', or see --why'}"
            )
            raise NoHostError(msg)

    run_async(run, on_error=output.failed)


def _print(output: Output, ranking: Any, failures: Any, *, why: bool) -> None:
    left_out = [_fields(candidate) for candidate in ranking.excluded] if why else []
    chosen = [_fields(candidate) for candidate in ranking.chosen]
    if output.as_json:
        for fields in (*chosen, *left_out):
            output.event("host", fields)
        for peer, reason in failures.items():
            output.event("not_found", {"peer": peer, "reason": reason})
        return
    if chosen:
        columns = ("model", "peer", "USDC/M in/out", "fee", "context", "load", "score")
        output.table(columns, map(_row, chosen), folds="model")
    if left_out:
        output.result("left out:")
    for fields in left_out:
        why_not = output.with_data_dir(one_line(fields["excluded"]))
        output.result(f"  {shorten(fields['peer'])}  {why_not}")
    if failures:
        output.result("not reached:")
    for peer, reason in failures.items():
        output.result(f"  {shorten(peer)}  {one_line(reason)}")


def _row(fields: dict[str, Any]) -> list[str]:
    from p2pnode.money import usdc_number

    priced = fields["price_in"] or fields["price_out"]
    return [
        fields["model"],
        shorten(fields["peer"]),
        f"{usdc_number(fields['price_in'])}/{usdc_number(fields['price_out'])}" if priced else "free",
        usdc_number(fields["session_fee"]) if priced else "",
        str(fields["n_ctx"]),
        f"{fields['active']}/{fields['slots']}" if fields["warm"] else "cold",
        f"{fields['score']:.2f}",
    ]


def _fields(candidate: Any) -> dict[str, Any]:
    from p2pnode.models.manifest import model_id_text

    advert, offer = candidate.advert, candidate.offer
    return {
        "model": offer.name,
        "model_id": model_id_text(offer.model),
        "peer": advert.peer,
        "addresses": [address.multiaddr for address in advert.addresses],
        "engine": offer.engine,
        "quantisation": offer.quantisation,
        "n_ctx": offer.n_ctx,
        "price_in": offer.price_in,
        "price_out": offer.price_out,
        "session_fee": offer.session_fee,
        "warm": offer.warm,
        "slots": advert.load.slots,
        "active": advert.load.active,
        "queued": advert.load.queued,
        "score": round(candidate.score, 4),
        "excluded": candidate.excluded,
    }
