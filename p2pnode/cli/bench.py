"""``p2pnode bench``: measure what is promised, each figure against its baseline in the same run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from p2pnode.cli.options import LogOption, configure
from p2pnode.cli.output import Output

if TYPE_CHECKING:
    from p2pnode.bench.figure import Figure


def bench(
    suite: Annotated[str, typer.Argument(help="stream, dial, gossip, cli, idle, or all.")] = "all",
    pairs: Annotated[
        int, typer.Option(help="Pairs of runs, ours and the baseline in turn, per stream figure.")
    ] = 10,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few repetitions and no real model: a look, not a verdict.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per figure on stdout.")] = False,
    log_level: LogOption = "error",
) -> None:
    """Measure this node on loopback; exit code 0 only if every figure holds. Takes about ten minutes."""
    from p2pnode.cli.running import EXIT_FAILED, run_async

    configure(log_level)
    output = Output(as_json=as_json)
    figures: list[Figure] = []
    held: list[bool] = []

    def report(figure: Figure) -> None:
        figures.append(figure)
        if as_json:
            output.result(json.dumps(figure.to_json()))
        else:
            output.event("figure", text=_line(figure))

    async def run() -> None:
        from p2pnode.bench.runner import run_suites, suites_named

        held.append(await run_suites(suites_named(suite), report, pairs=pairs, quick=quick))

    run_async(run, on_error=output.failed)
    if not as_json:
        _print_table(figures)
    if not all(held):
        raise typer.Exit(EXIT_FAILED)


def _line(figure: Figure) -> str:
    """Progress: a figure as soon as it is taken."""
    found, goal = figure.measurement, figure.goal
    if found is None:
        return f"{goal.name}: not measured: {figure.problem}"
    verdict = "holds" if figure.holds else "DOES NOT HOLD"
    return f"{goal.name}: {found.value:.3g} {goal.unit} ({goal.bound} {goal.target:g}): {verdict}"


def _print_table(figures: list[Figure]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("figure", no_wrap=True), "value", "target", "baseline", "ratio", "holds")
    for figure in figures:
        found, goal = figure.measurement, figure.goal
        table.add_row(
            goal.name,
            f"{found.value:.3g} {goal.unit}" if found else "none",
            f"{goal.bound} {goal.target:g}",
            f"{found.baseline:.3g}" if found else "",
            f"{found.ratio:.2f}" if found else "",
            "yes" if figure.holds else "NO",
        )
    Console(highlight=False).print(table)
