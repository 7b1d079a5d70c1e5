"""``p2pnode bench``: measure what is promised, each figure against its baseline in the same run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from p2pnode.cli.options import LogOption, configure, units_of
from p2pnode.cli.output import Output
from p2pnode.money import GWEI_DIGITS
from p2pnode.words import count_of

if TYPE_CHECKING:
    from p2pnode.bench.figure import Figure, Goal

_IN_FULL: Final = 1_000
_LONG_S: Final = 120


def bench(
    suite: Annotated[
        str,
        typer.Argument(
            help="stream, dial, gossip, attacks, cli, idle, gas, paid, economy, failover, storage, simulate, "
            "engine, gateway, or all."
        ),
    ] = "all",
    pairs: Annotated[
        int, typer.Option(help="Pairs of runs, ours and the baseline in turn, per stream figure.")
    ] = 10,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few repetitions and no real model: a look, not a verdict.")
    ] = False,
    anvil: Annotated[
        Path | None, typer.Option(help="gas: the anvil program; without it build/anvil, where there is one.")
    ] = None,
    gas_gwei: Annotated[str, typer.Option(help="gas: price of gas for the break-even, in gwei.")] = "0.01",
    ether_usd: Annotated[str, typer.Option(help="gas: price of ether for the break-even, in USDC.")] = "3000",
    price_out: Annotated[
        str, typer.Option(help="gas: price of output for the break-even, in USDC per million tokens.")
    ] = "2",
    engine: Annotated[
        str,
        typer.Option(help="stream: exllama measures that engine on this machine's GPU, and nothing else."),
    ] = "llamacpp",
    model: Annotated[
        str, typer.Option(help="stream --engine exllama: an EXL2, EXL3, GPTQ or safetensors folder.")
    ] = "",
    device: Annotated[str, typer.Option(hidden=True)] = "cuda",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per figure on stdout.")] = False,
    log_level: LogOption = "error",
) -> None:
    """Measure this node on loopback; exit code 0 only if every figure holds. It says how long it takes."""
    from p2pnode.cli.exit_codes import EXIT_FAILED
    from p2pnode.cli.runner import run_async

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
        from p2pnode.bench.options import GasOptions
        from p2pnode.bench.suites import others_share, run_suites, suites_named
        from p2pnode.extras import need

        need("the bench", "host", "dev-chain")
        gas = GasOptions(
            anvil=anvil,
            gas_price_wei=units_of(gas_gwei, "--gas-gwei", GWEI_DIGITS),
            ether_price=units_of(ether_usd, "--ether-usd"),
            price_out=units_of(price_out, "--price-out"),
        )
        names = suites_named(suite)
        if engine != "llamacpp":
            names = _on_a_gpu(names, engine, model, device)
        _announce(output, names, await others_share(), quick=quick)
        begun: list[str] = []

        def on_suite(name: str) -> None:
            begun.append(name)
            output.note(f"{len(begun)} of {len(names)}: {name} {_about([name], quick=quick)}")

        held.append(
            await run_suites(
                names,
                report,
                on_suite=on_suite,
                pairs=pairs,
                quick=quick,
                gas=gas,
                model=model,
                device=device,
            )
        )

    run_async(run, on_error=output.failed)
    if not as_json:
        _print_table(output, figures)
    if not all(held):
        raise typer.Exit(EXIT_FAILED)


def _on_a_gpu(names: Sequence[str], engine: str, model: str, device: str) -> tuple[str, ...]:
    """The suite that measures ``engine``. Raises ``UsageError``, and ``ConfigError`` without a GPU."""
    from p2pnode.bench.exllama import EXLLAMA
    from p2pnode.errors import ConfigError, UsageError
    from p2pnode.models.engines import available_engines

    if engine != EXLLAMA or tuple(names) != ("stream",):
        msg = f"--engine {engine}: it is for `bench stream`, and exllama or llamacpp"
        raise UsageError(msg)
    if device == "cuda":
        if why := available_engines()[EXLLAMA]:
            raise ConfigError(why)
        if not model:
            raise UsageError("--engine exllama needs --model FOLDER")
    return (EXLLAMA,)


def _announce(output: Output, names: Sequence[str], busy: float | None, *, quick: bool) -> None:
    """Say how long it takes, and warn when other programs disturb what is measured."""
    output.note(f"measuring {count_of(len(names), 'suite')} {_about(names, quick=quick)}")
    if busy is not None:
        output.note(
            f"warning: other programs use {busy:.0%} of this machine's processors now, which makes figures "
            "worse and less certain. End them and measure again before you trust a figure that does not hold"
        )


def _about(names: Sequence[str], *, quick: bool) -> str:
    from p2pnode.bench.suites import seconds_of

    if quick:
        return "with --quick (some seconds each, and no verdict)"
    seconds = seconds_of(names)
    return f"(about {seconds} s)" if seconds < _LONG_S else f"(about {round(seconds / 60)} min)"


def _line(figure: Figure) -> str:
    """Progress: a figure as soon as it is taken."""
    found, goal = figure.measurement, figure.goal
    if found is None:
        return f"{goal.name}: not measured: {figure.problem}"
    verdict = "holds" if figure.holds else "DOES NOT HOLD"
    judged = f" = {_shown(found.ratio)} x the baseline" if _by_ratio(goal) else ""
    return f"{goal.name}: {_shown(found.value)} {goal.unit}{judged} ({_target(goal)}): {verdict}"


def _by_ratio(goal: Goal) -> bool:
    """Whether the target is a multiple of the baseline, and the value something else."""
    return goal.judged == "ratio" and goal.unit != "ratio"


def _target(goal: Goal) -> str:
    return f"{goal.bound} {_shown(goal.target)}{' x' if _by_ratio(goal) else ''}"


def _shown(number: float) -> str:
    """Large counts in full, measurements in three digits."""
    return f"{number:,.0f}" if number >= _IN_FULL else f"{number:.3g}"


def _print_table(output: Output, figures: list[Figure]) -> None:
    from rich.table import Column, Table

    table = Table(Column("figure", no_wrap=True), "value", "target", "baseline", "ratio", "holds")
    for figure in figures:
        found, goal = figure.measurement, figure.goal
        table.add_row(
            goal.name,
            f"{_shown(found.value)} {goal.unit}" if found else "none",
            _target(goal),
            _shown(found.baseline) if found else "",
            f"{found.ratio:.2f}" if found else "",
            "yes" if figure.holds else "NO",
        )
    output.show(table)
    for figure in figures:
        for note in figure.measurement.details.get("notes", ()) if figure.measurement else ():
            output.result(f"{figure.goal.name}: {note}")
