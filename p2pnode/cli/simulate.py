"""``p2pnode simulate``: run a scenario, sweep over its parameters, compare what came of it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnode.cli.options import Commands, ForceOption, JsonOption, LogOption, blaming, configure
from p2pnode.cli.output import Output
from p2pnode.words import count_of

if TYPE_CHECKING:
    from p2pnode.simulations.scenario import Scenario
    from p2pnode.simulations.sweeps import Sweep

ScenarioArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE",
        help="A scenario of the library (`simulate list`), a TOML file, or the params.json of a run.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value for a parameter. May be repeated."),
]
NodesOption = Annotated[int | None, typer.Option(help="How many nodes; a market keeps its shares.")]
DurationOption = Annotated[float | None, typer.Option(help="How many simulated seconds.")]
_STEPS: Final = 1000
"""Of the bar for one run."""

simulate_app = Commands(
    help="Simulate a network of nodes: `p2pnode simulate NAME|FILE` runs a scenario.",
    no_args_is_help=True,
    default="run",
)


@simulate_app.command("run")
def simulate_run(
    scenario: ScenarioArgument,
    seed: Annotated[int | None, typer.Option(help="All that is random comes of it.  [default: 1]")] = None,
    nodes: NodesOption = None,
    duration: DurationOption = None,
    set_: SetOption = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="KEY=A,B,C", help="Run it at each of these values. May be repeated."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs at each point, with seeds from --seed on.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that make runs side by side.")] = 1,
    cluster: Annotated[
        str | None, typer.Option(help="Run a sweep on Dask: the address of a scheduler, or `local`.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder for the results.  [default: NAME-SEED, or NAME-sweep]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in --out.")] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Of a sweep: keep the tables and the graph of each run, too.")
    ] = False,
    check_determinism: Annotated[
        bool,
        typer.Option(
            "--check-determinism", help="Run twice in two processes, compare all events, keep nothing."
        ),
    ] = False,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Run a scenario, at one point or at many, and keep what came of it in a folder.

    The folder of a run has a report (report.html), its figures (summary.json, analysis.txt), tables in
    Parquet, the graph, and params.json, which runs it again.
    """
    from p2pnode.cli.runner import run_plain

    configure(log_level)
    output = Output(as_json=as_json)

    def work() -> None:
        from p2pnode.errors import UsageError
        from p2pnode.extras import need
        from p2pnode.simulations.scenario import with_size

        need("a simulation", "sim" if cluster is None else "cluster")
        given, held_seed, held_hash = _read(scenario)
        with blaming(""):
            sized = with_size(given, nodes=nodes, duration_s=duration)
        with blaming("--set"):
            wanted = _with(sized, set_ or [])
        first = held_seed if seed is None else seed
        if check_determinism:
            _check(output, wanted, first)
        elif sweep or repeat > 1 or cluster is not None:
            with blaming("--sweep"):
                planned = _planned(wanted, sweep or [], range(first, first + repeat), scenario)
            _sweep(output, planned, jobs, cluster, out, resume=resume, tables=tables)
        elif resume:
            msg = "--resume goes on with a sweep: give --sweep or --repeat as before, and its --out"
            raise UsageError(msg)
        else:
            unchanged = wanted == given and first == held_seed
            _one(output, wanted, first, out, scenario, held_hash if unchanged else "")

    run_plain(work, on_error=output.failed)


@simulate_app.command("list")
def simulate_list(as_json: JsonOption = False) -> None:
    """List the scenarios that come with p2pnode."""
    from p2pnode.cli.runner import run_plain

    output = Output(as_json=as_json)

    def work() -> None:
        from p2pnode.simulations.scenario import load, names

        found = [load(name) for name in names()]
        if as_json:
            for each in found:
                fields = {"nodes": each.nodes, "duration_s": each.duration_s, "description": each.description}
                output.event("scenario", {"scenario": each.name, **fields})
            return
        rows = [(each.name, f"{each.nodes:,}", f"{each.duration_s:g} s", each.description) for each in found]
        output.table(("scenario", "nodes", "time", "what it shows"), rows, folds="what it shows")

    run_plain(work, on_error=output.failed)


@simulate_app.command("show")
def simulate_show(scenario: ScenarioArgument, set_: SetOption = None) -> None:
    """Print a scenario as TOML with all its parameters: a file of your own may begin with it."""
    from p2pnode.cli.runner import run_plain

    output = Output(as_json=False)

    def work() -> None:
        from p2pnode.simulations.scenario import as_toml

        given = _read(scenario)[0]
        with blaming("--set"):
            wanted = _with(given, set_ or [])
        output.result(as_toml(wanted).rstrip())

    run_plain(work, on_error=output.failed)


@simulate_app.command("calibrate")
def simulate_calibrate(as_json: JsonOption = False) -> None:
    """Measure what work costs on this machine, as the [cpu] of a scenario: a scenario without it has none."""
    from p2pnode.cli.runner import run_plain

    output = Output(as_json=as_json)

    def work() -> None:
        from p2pnode.simulations.calibration import calibrate
        from p2pnode.simulations.records import as_mapping

        output.note("five seconds, on one core …")
        costs = as_mapping(calibrate())
        if as_json:
            output.event("cpu", costs)
            return
        output.result("[cpu]")
        for name, value in costs.items():
            output.result(f"{name} = {value:.3g}")

    run_plain(work, on_error=output.failed)


@simulate_app.command("compare")
def simulate_compare(
    one: Annotated[Path, typer.Argument(metavar="A", help="The folder of a run or of a sweep.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    out: Annotated[
        Path | None, typer.Option(help="Write a report of both, with their plots, to this file (HTML).")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show two runs, or two sweeps over seeds, side by side: each figure and by how much it differs."""
    from p2pnode.cli.runner import run_plain

    output = Output(as_json=as_json)

    def work() -> None:
        from p2pnode.files import refuse_taken, write_new
        from p2pnode.simulations.compare import compared

        if out is not None:
            refuse_taken(out, force=force)
        found = compared(one, other)
        if out is not None:
            write_new(out, found.html().encode(), force=force)
        if as_json:
            for name, values in found.figures().items():
                output.event("figure", {"figure": name, "a": values[0], "b": values[1]})
            return
        output.result(found.text())
        if out is not None:
            output.note(f"the report is {out}")

    run_plain(work, on_error=output.failed)


# ---- what was typed


def _read(source: str) -> tuple[Scenario, int, str]:
    """The scenario that was named; the seed and the trace hash that a params.json has with it."""
    from p2pnode.simulations.result import load_params
    from p2pnode.simulations.scenario import load

    if source.endswith(".json"):
        return load_params(Path(source))
    return load(source), 1, ""


def _with(scenario: Scenario, assignments: Sequence[str]) -> Scenario:
    from p2pnode.simulations.scenario import changed

    return changed(scenario, dict(_parted(each, "KEY=VALUE") for each in assignments))


def _planned(scenario: Scenario, assignments: Sequence[str], seeds: Sequence[int], source: str) -> Sweep:
    from p2pnode.errors import ConfigError
    from p2pnode.simulations.sweeps import Sweep

    values: dict[str, list[Any]] = {}
    for key, text in (_parted(each, "KEY=A,B,C") for each in assignments):
        if key in values:
            raise ConfigError(f"{key} is given twice: write all of its values in one, as {key}=A,B,C")
        values[key] = _listed(text)
    return Sweep(scenario, values, seeds=seeds, source=source)


def _parted(text: str, form: str) -> tuple[str, str]:
    from p2pnode.errors import ConfigError

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{text!r} must be {form}")
    return key.strip(), value.strip()


def _listed(text: str) -> list[Any]:
    """The values of ``a,b,c``; those that hold commas themselves are written as TOML does."""
    from p2pnode.errors import ConfigError

    if not set(text) & set("[{\"'"):
        return [each.strip() for each in text.split(",")]
    try:
        found: list[Any] = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{text!r} is no list of values ({error})") from error
    return found


# ---- what is done


def _one(
    output: Output, scenario: Scenario, seed: int, out: Path | None, source: str, held_hash: str
) -> None:
    from p2pnode.errors import LocalError
    from p2pnode.files import refuse_folder
    from p2pnode.simulations.result import REPORT
    from p2pnode.simulations.runs import run

    folder = out or _free(f"{scenario.name}-{seed}")
    refuse_folder(folder)
    reached_s = 0.0

    def tell(now: float) -> None:
        nonlocal reached_s
        reached_s = now
        advance(now / scenario.duration_s)

    try:
        with _bar(output, f"{scenario.name}, seed {seed}") as advance:
            result = run(scenario, seed, progress=tell, source=source)
    except KeyboardInterrupt:
        output.end_echo()
        reached = f"{reached_s:g} of {scenario.duration_s:g} simulated seconds"
        output.note(f"interrupted at {reached}: nothing is kept of a run that did not end")
        raise
    lost: LocalError | None = None
    try:
        result.save(folder)
    except LocalError as error:
        lost = error  # the figures took long to make: they are told first
    told = {"trace_hash": result.trace_hash, "figures": dict(result.figures)}
    if output.as_json:
        output.event("result", {"out": None if lost else str(folder), "seed": seed, **told})
    else:
        output.result(result.analysis().rstrip())
    if lost is not None:
        raise lost
    output.note(f"the report is {folder / REPORT}")
    if held_hash and held_hash != result.trace_hash:
        msg = (
            f"the trace is not that of params.json ({held_hash[:16]}…): another code or Python made it, "
            "or it was edited by hand"
        )
        raise LocalError(msg)
    if held_hash:
        output.note("the trace is the same as in params.json")


def _sweep(
    output: Output,
    planned: Sweep,
    jobs: int,
    cluster: str | None,
    out: Path | None,
    *,
    resume: bool,
    tables: bool,
) -> None:
    from p2pnode.errors import UsageError
    from p2pnode.simulations.result import ANALYSIS, REPORT
    from p2pnode.simulations.sweeps import ANSWER_S, LOCAL, execute, require_cluster

    if cluster is not None:
        with blaming("--cluster"):
            require_cluster(cluster)
    if resume and out is None:
        msg = "--resume needs --out FOLDER: the folder of the sweep to go on with"
        raise UsageError(msg)
    folder = out or _free(f"{planned.scenario.name}-sweep")
    ended = 0
    total = len(planned.tasks)
    duration_s = planned.scenario.duration_s
    if cluster not in (None, LOCAL):
        output.note(f"asking the scheduler at {cluster}, for {ANSWER_S} s at most …")
    try:
        with _bar(output, f"{planned.scenario.name}, {count_of(total, 'run')}") as advance:

            def on_run(done: int, _of: int) -> None:
                nonlocal ended
                ended = done
                output.report("run.ended", {"done": done, "total": total})
                advance(done / total)

            execute(
                planned,
                jobs=jobs,
                cluster=cluster,
                out=folder,
                resume=resume,
                on_run=on_run,
                progress=lambda now: advance((ended + now / duration_s) / total),
                with_tables=tables,
            )
    except KeyboardInterrupt:
        output.end_echo()
        output.note(
            f"interrupted: {ended} of {count_of(total, 'run')} are kept in {folder}. "
            f"The same command with --resume --out {folder} goes on there"
        )
        raise
    if output.as_json:
        output.event("result", {"out": str(folder), "runs": total})
        return
    output.result((folder / ANALYSIS).read_text(encoding="utf-8").rstrip())
    output.note(f"the report is {folder / REPORT}, the table {folder / 'table.csv'}")


def _check(output: Output, scenario: Scenario, seed: int) -> None:
    from p2pnode.errors import LocalError
    from p2pnode.simulations.runs import check_determinism

    output.note("two runs in two processes, whose Python hashes texts otherwise …")
    found = check_determinism(scenario, seed)
    if found.difference:
        raise LocalError(f"two runs of {scenario.name} with seed {seed} differ: {found.difference}")
    output.event(
        "deterministic",
        {"trace_hash": found.trace_hash, "events": found.events},
        text=f"the same: {found.events:,} application events, trace hash {found.trace_hash}",
    )


def _free(name: str) -> Path:
    """A folder of this name that is not there yet."""
    found, number = Path(name), 1
    while found.exists():
        number += 1
        found = Path(f"{name}-{number}")
    return found


Advance = Callable[[float], None]


@contextmanager
def _bar(output: Output, what: str) -> Iterator[Advance]:
    """A bar with an estimate on a terminal, nothing elsewhere. It is told the share that is done."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    shown = not output.as_json and output.console.is_terminal
    with Progress(*columns, console=output.console, transient=True, disable=not shown) as progress:
        task = progress.add_task(what, total=_STEPS)
        yield lambda share: progress.update(task, completed=share * _STEPS)
