"""``sweep``: a scenario at several values of its parameters and several seeds; one table of all runs.

The runs are made by joblib in processes of this machine, or by Dask on a cluster. Each comes back as the
files of its folder, and the table is made of these: it is the same, bit for bit, wherever they were made and
in whatever order they ended. With a folder, each run is kept as soon as it has ended, and a sweep that was
interrupted goes on where it was::

    sweep.json      scenario, parameters, seeds, version
    runs/000-1/     the folder of a run: number of the point, seed
    table.parquet   a row a run; table.csv the same
    analysis.txt    figures by point, with confidence intervals
    report.html
"""

from __future__ import annotations

import errno
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from itertools import islice, product
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

from p2pnode.errors import ConfigError, LocalError, StorageError, UsageError
from p2pnode.extras import need
from p2pnode.files import read_text_or_none, write_atomic, write_folder
from p2pnode.platforms import interrupt_blocked
from p2pnode.simulations.records import as_mapping, value_at
from p2pnode.simulations.report import About, Group, analysis_text, report_html
from p2pnode.simulations.result import ANALYSIS, FORMAT, REPORT, Run, load_run, run_of, source_digest
from p2pnode.simulations.runs import Progress, run
from p2pnode.simulations.scenario import Scenario, as_toml, changed, scenario_from
from p2pnode.words import count_of

if TYPE_CHECKING:
    import pandas as pd

SWEEP: Final = "sweep.json"
LOCAL: Final = "local"
"""The cluster that Dask makes on this machine for one sweep."""
ANSWER_S: Final = 10
"""How long a scheduler may take to answer."""
_SCHEMES: Final = frozenset({"tcp", "tls", "ws", "wss"})
_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})
Files: TypeAlias = Mapping[str, bytes]
RunEnded: TypeAlias = Callable[[int, int], None]
"""Is told how many runs have ended, and of how many."""
_PAGES: Final = (ANALYSIS, REPORT)


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a sweep: number ``point`` of its points, with one seed."""

    point: int
    seed: int
    scenario: Scenario
    source: str = ""

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.point:03d}-{self.seed}"


class Sweep:
    """What is to be run: each combination of values is a point. The last parameter changes first."""

    def __init__(
        self,
        scenario: Scenario,
        parameters: Mapping[str, Sequence[Any]] | None = None,
        *,
        seeds: Sequence[int] = (1,),
        source: str = "",
    ) -> None:
        """Raises ``ConfigError`` for a parameter that is unknown, or a value that can't be.

        ``source`` is the name or file of the scenario, for the command that makes a run again.
        """
        self.scenario, self.seeds, self.source = scenario, list(seeds), source
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            msg = f"seeds are {self.seeds}: give each once, and one at least"
            raise ConfigError(msg)
        given = dict(parameters or {})
        for path, values in given.items():
            if not values:
                raise ConfigError(f"{path} has no values to sweep over")
        self.points = [
            changed(scenario, dict(zip(given, values, strict=True))) for values in product(*given.values())
        ]
        self.values = [{path: value_at(point, path) for path in given} for point in self.points]
        """Of each point: the parameters in which the points differ."""
        for place, each in enumerate(self.values):
            if each in self.values[:place]:
                raise ConfigError(f"{_label(each)} is there twice: give each value once")
        self.tasks = [
            Task(n, seed, point, source) for n, point in enumerate(self.points) for seed in self.seeds
        ]

    def plan(self) -> dict[str, Any]:
        """What ``sweep.json`` says. Two sweeps with the same plan are the same."""
        return {
            "format": FORMAT,
            "scenario": as_mapping(self.scenario),
            "values": self.values,
            "seeds": self.seeds,
            "version": version("p2pnode"),
            "code": source_digest(),
        }

    def groups(self, runs: Sequence[Run]) -> list[Group]:
        """The runs by point, in the order of the tasks."""
        found = []
        for number, values in enumerate(self.values):
            pairs = zip(self.tasks, runs, strict=True)
            mine = [each.measures for task, each in pairs if task.point == number]
            found.append(Group(_label(values), mine, values))
        return found

    def about(self, runs: Sequence[Run]) -> About:
        """What a report says of it."""
        seeds = f"{self.seeds[0]} to {self.seeds[-1]}" if len(self.seeds) > 1 else str(self.seeds[0])
        over = " by ".join(path for path in self.values[0]) or "seeds"
        wall_s = sum(each.wall_s for each in runs)
        return About(
            f"{self.scenario.name}: {count_of(len(runs), 'run')} over {over}",
            self.scenario.description,
            {
                "runs": f"{count_of(len(self.points), 'point')}, seeds {seeds}",
                "events": f"{sum(each.events for each in runs):,} in {wall_s:,.0f} s of one core",
                "version": f"p2pnode {version('p2pnode')}, code {source_digest()}",
            },
            as_toml(self.scenario),
        )

    def frame(self, runs: Sequence[Run]) -> pd.DataFrame:
        """The table: a row a run, with its parameters, its seed, its hashes and its figures."""
        import pandas as pd

        names = list(dict.fromkeys(name for each in runs for name in each.figures))
        rows = [
            {
                **self.values[task.point],
                "seed": task.seed,
                "trace_hash": each.trace_hash,
                "events": each.events,
                **{name: each.figures.get(name) for name in names},
            }
            for task, each in zip(self.tasks, runs, strict=True)
        ]
        return pd.DataFrame(rows)


def sweep(
    scenario: Scenario,
    parameters: Mapping[str, Sequence[Any]] | None = None,
    *,
    seeds: Sequence[int] = (1,),
    jobs: int = 1,
    cluster: Any = None,
    out: Path | str | None = None,
    resume: bool = False,
    on_run: RunEnded | None = None,
) -> pd.DataFrame:
    """Run a scenario at all values of these parameters with all seeds; a row a run.

    ``jobs`` processes of this machine make the runs, or a Dask ``cluster``: ``"local"`` (with as many
    workers), an address, or a ``distributed.Client``. ``out`` is the folder to keep them in; ``resume`` goes
    on in one that is there.

    Raises ``ConfigError`` for what can't be run, ``LocalError`` where no scheduler answers, ``StorageError``
    where a run can't be kept, ``MissingExtraError``, and what a run raises.
    """
    planned = Sweep(scenario, parameters, seeds=seeds)
    folder = None if out is None else Path(out)
    runs = execute(planned, jobs=jobs, cluster=cluster, out=folder, resume=resume, on_run=on_run)
    return planned.frame(runs)


def execute(
    planned: Sweep,
    *,
    jobs: int = 1,
    cluster: Any = None,
    out: Path | None = None,
    resume: bool = False,
    on_run: RunEnded | None = None,
    progress: Progress | None = None,
    with_tables: bool = False,
) -> list[Run]:
    """Make all runs, in the order of the tasks, and the folder's pages.

    ``progress`` hears of runs in this process. ``with_tables`` keeps each run's tables and graph, too.
    """
    need("a sweep of simulations", "sim" if cluster is None else "cluster")
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}: one process at least has to make the runs")
    with _joined(cluster) as workers:
        done = _begun(planned, out, resume=resume) if out is not None else {}
        waiting = [task for task in planned.tasks if task.folder not in done]
        if on_run is not None:
            on_run(len(done), len(planned.tasks))
        with _made(waiting, jobs, workers, progress, with_tables=with_tables) as made:
            for task, files in made:
                found = run_of(files)
                if found.code != source_digest():
                    msg = "a worker has another version of p2pnode: install the same one on the whole cluster"
                    raise LocalError(msg)
                if out is not None:
                    with _to_be_resumed(out):
                        write_folder(out / "runs" / task.folder, files)
                done[task.folder] = found
                if on_run is not None:
                    on_run(len(done), len(planned.tasks))
    runs = [done[task.folder] for task in planned.tasks]
    if out is not None:
        with _to_be_resumed(out):
            for name, data in pages(planned, runs).items():
                write_atomic(out / name, data)
    return runs


def pages(planned: Sweep, runs: Sequence[Run]) -> dict[str, bytes]:
    """The files about all runs, by name."""
    frame, groups, about = planned.frame(runs), planned.groups(runs), planned.about(runs)
    written = BytesIO()
    frame.to_parquet(written, compression="zstd")
    return {
        "table.parquet": written.getvalue(),
        "table.csv": frame.to_csv(index=False).encode(),
        ANALYSIS: analysis_text(about, groups).encode(),
        REPORT: report_html(about, groups).encode(),
    }


def load_sweep(folder: Path) -> tuple[Sweep, list[Run]]:
    """A sweep that was kept in a folder, with all its runs. Raises ``ConfigError``."""
    plan = _read_plan(folder)
    planned = Sweep(scenario_from(plan["scenario"]), seeds=plan["seeds"])
    planned.values = plan["values"]
    planned.points = [changed(planned.scenario, values) for values in planned.values]
    planned.tasks = [Task(n, s, point) for n, point in enumerate(planned.points) for s in planned.seeds]
    return planned, [load_run(folder / "runs" / task.folder) for task in planned.tasks]


# ---- the folder


def _begun(planned: Sweep, out: Path, *, resume: bool) -> dict[str, Run]:
    """Make the folder of a sweep, or find the runs that it holds. Raises ``UsageError``."""
    if not (resume and (out / SWEEP).exists()):
        write_folder(out, {SWEEP: _json(planned.plan())})
        return {}
    there = _read_plan(out)
    wanted = json.loads(_json(planned.plan()))
    apart = [name for name in wanted if there.get(name) != wanted[name]]
    if apart:
        what = {"code": "the code of p2pnode"}.get(apart[0], f"the {apart[0]}")
        raise UsageError(f"{out} holds another sweep: {what} changed since. Name another folder")
    found = {}
    for task in planned.tasks:
        if (out / "runs" / task.folder).exists():
            kept = load_run(out / "runs" / task.folder)
            if (kept.scenario, kept.seed) != (task.scenario, task.seed):
                raise ConfigError(f"{out / 'runs' / task.folder} holds another run: delete it, and resume")
            found[task.folder] = kept
    return found


@contextmanager
def _to_be_resumed(out: Path) -> Iterator[None]:
    """What can't be written in here stops a sweep that has begun: a ``StorageError`` says how it goes on."""
    try:
        yield
    except ConfigError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno in _TAKEN:
            raise
        msg = (
            f"{out} can't be written ({cause.strerror}): free some space, or fix its permissions; the same "
            f"command with --resume --out {out} goes on"
        )
        raise StorageError(msg) from error


def _read_plan(folder: Path) -> dict[str, Any]:
    text = read_text_or_none(folder / SWEEP)
    if text is None:
        raise ConfigError(f"there is no {folder / SWEEP}: name the folder of a sweep")
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{folder / SWEEP} is not JSON: name another folder") from error
    return found


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _label(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} = {_shown(value)}" for path, value in values.items())


def _shown(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


# ---- who makes the runs


def make(task: Task, *, with_tables: bool, progress: Progress | None = None) -> Files:
    """Make one run, in whatever process; the files of its folder."""
    result = run(task.scenario, task.seed, progress=progress, source=task.source)
    return result.files() if with_tables else Run.files(result)


def require_cluster(name: str) -> None:
    """Raise ``ConfigError`` where this is neither ``local`` nor the address of a scheduler."""
    if name == LOCAL:
        return
    try:
        parts = urlsplit(name if "://" in name else f"tcp://{name}")
        meant = parts.scheme in _SCHEMES and bool(parts.hostname and parts.port)
    except ValueError:
        meant = False
    if not meant:
        raise ConfigError(f"{name!r} is no address of a scheduler, such as tcp://HOST:8786, or {LOCAL}")


@contextmanager
def _joined(cluster: Any) -> Iterator[Any]:
    """The client of the scheduler with this address; a ``cluster`` that is no address as it is.

    Raises ``ConfigError``, and ``LocalError`` where nobody answers.
    """
    if not isinstance(cluster, str) or cluster == LOCAL:
        yield cluster
        return
    require_cluster(cluster)
    import asyncio  # noqa: TID251 - Dask's own

    from distributed import Client

    try:
        # Client has a deadline for the connection, and none for the greeting.
        asyncio.run(asyncio.wait_for(_greet(cluster), ANSWER_S))
        client = Client(cluster, timeout=ANSWER_S)
    except TypeError as error:
        msg = f"{cluster} can't be used ({error}): name its certificates in Dask's settings, or use tcp://"
        raise LocalError(msg) from error
    except Exception as error:  # what is no scheduler sends bytes that fail to parse in many ways
        msg = f"no scheduler answers at {cluster} in {ANSWER_S} s: start `dask scheduler` there, or check it"
        raise LocalError(msg) from error
    try:
        yield client
    finally:
        client.close()


async def _greet(address: str) -> None:
    """Connect as a client of Dask does, and hang up."""
    from distributed import Security
    from distributed.comm import connect

    made = await connect(address, timeout=ANSWER_S, **Security().get_connection_args("client"))
    await made.close()


Made: TypeAlias = Iterator[tuple[Task, Files]]


@contextmanager
def _made(
    tasks: Sequence[Task], jobs: int, cluster: Any, progress: Progress | None, *, with_tables: bool
) -> Iterator[Made]:
    """The runs, each as soon as it has ended. Those that are under way are given up when this is left."""
    jobs = min(jobs, len(tasks))
    if not tasks:
        yield iter(())
    elif cluster is not None:
        with _by_dask(tasks, jobs, cluster, with_tables=with_tables) as made:
            yield made
    elif jobs > 1:
        with _by_joblib(tasks, jobs, with_tables=with_tables) as made:
            yield made
    else:
        yield ((each, make(each, with_tables=with_tables, progress=progress)) for each in tasks)


@contextmanager
def _by_joblib(tasks: Sequence[Task], jobs: int, *, with_tables: bool) -> Iterator[Made]:
    from joblib.externals.loky import FIRST_COMPLETED, get_reusable_executor, wait

    # Not ``joblib.Parallel``: it hands out tasks in a thread of its own, which waits for ever if the executor
    # is shut down meanwhile.
    workers = get_reusable_executor(max_workers=jobs, initializer=_ignore_interrupts)
    waiting = iter(tasks)
    under_way = {workers.submit(_made_of, task, with_tables) for task in islice(waiting, jobs)}

    def made() -> Made:
        while under_way:
            ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for each in ended:
                under_way.remove(each)
                if (task := next(waiting, None)) is not None:
                    under_way.add(workers.submit(_made_of, task, with_tables))
                yield each.result()

    try:
        yield made()
    except BaseException:
        # Nobody wants the runs that are under way any more.
        workers.shutdown(wait=True, kill_workers=True)
        raise


@contextmanager
def _by_dask(tasks: Sequence[Task], jobs: int, cluster: Any, *, with_tables: bool) -> Iterator[Made]:
    from distributed import Client, KilledWorker, LocalCluster, as_completed

    local = None
    if cluster == LOCAL:
        with _interrupts_put_off():
            local = LocalCluster(
                n_workers=jobs, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
            )
    client = cluster if local is None else Client(local)
    futures = []
    try:
        futures = [client.submit(_made_of, task, with_tables, pure=False) for task in tasks]
        yield (found for _, found in as_completed(futures, with_results=True))
    except KilledWorker as error:
        msg = "workers died of a run: give them more memory, or let fewer --jobs share it"
        raise LocalError(msg) from error
    finally:
        client.cancel(futures)
        if local is not None:
            client.close()
            local.close()


@contextmanager
def _interrupts_put_off() -> Iterator[None]:
    """Ctrl-C acts at the end of this, and never in the processes that are started in it.

    A terminal sends it to all processes at once, and a child inherits what is blocked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal acts here
        return
    ensure_running()  # multiprocessing's tracker unblocks Ctrl-C where it starts
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        with interrupt_blocked():
            yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _made_of(task: Task, with_tables: bool) -> tuple[Task, Files]:
    return task, make(task, with_tables=with_tables)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal: who started the workers ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
