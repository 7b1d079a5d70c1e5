"""The result of one run, and the folder that keeps it.

::

    params.json     scenario, seed, version, machine, hashes: `p2pnode simulate params.json` runs it again
    summary.json    figures and curves (metrics.py)
    analysis.txt    the same for people: reliability, latency and duplicates first
    report.html     plots; needs no other file
    graph.gml       the nodes and what joins them at the end
    *.parquet       the tables (recorder.py)

A folder is there with all its files or not at all.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2pnode.errors import ConfigError, UsageError
from p2pnode.extras import need
from p2pnode.files import read_text_or_none, write_folder
from p2pnode.simulations.metrics import Curve, Measures
from p2pnode.simulations.plots import number_text
from p2pnode.simulations.recorder import Column, Recorder, Table
from p2pnode.simulations.records import as_mapping
from p2pnode.simulations.report import About, Group, analysis_text, report_html
from p2pnode.simulations.scenario import Scenario, scenario_from
from p2pnode.words import count_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

PARAMS: Final = "params.json"
SUMMARY: Final = "summary.json"
ANALYSIS: Final = "analysis.txt"
REPORT: Final = "report.html"
FORMAT: Final = 1
"""Of ``params.json``."""


@cache
def source_digest() -> str:
    """A hash over the source of this package, in 16 hexadecimal digits."""
    found = blake2b(digest_size=8)
    for path in sorted(_sources()):
        found.update(f"{path[0]}\0".encode())
        found.update(path[1].read_bytes())
    return found.hexdigest()


def _sources() -> Iterator[tuple[str, Path]]:
    """Each module's path below the package. Followed through the links to the areas."""
    package = find_spec("p2pnode")
    for top in (package and package.submodule_search_locations) or ():
        for folder, _, names in os.walk(top, followlinks=True):
            for name in names:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    yield path.relative_to(top).as_posix(), path


@cache
def this_machine() -> Mapping[str, object]:
    """What a reader wants to know of this machine."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What identifies a run, and what came of it. ``wall_s``: the seconds that it took on ``machine``."""

    scenario: Scenario
    seed: int
    trace_hash: str
    tables_hash: str
    events: int
    """Steps of the event loop."""
    wall_s: float
    measures: Measures
    version: str = field(default_factory=lambda: version("p2pnode"))
    code: str = field(default_factory=source_digest)
    """A hash of the source of all that may have a part in a run."""
    machine: Mapping[str, object] = field(default_factory=this_machine)

    @property
    def figures(self) -> Mapping[str, int | float | None]:
        """The figures by name (``metrics.py``)."""
        return self.measures.figures

    def params(self) -> dict[str, Any]:
        """What ``params.json`` says."""
        return {
            "format": FORMAT,
            "scenario": as_mapping(self.scenario),
            "seed": self.seed,
            "trace_hash": self.trace_hash,
            "tables_hash": self.tables_hash,
            "events": self.events,
            "wall_s": round(self.wall_s, 3),
            "version": self.version,
            "code": self.code,
            "machine": dict(self.machine),
        }

    def analysis(self) -> str:
        """What ``analysis.txt`` says."""
        return analysis_text(about_run(self), [Group("", [self.measures])])

    def files(self) -> dict[str, bytes]:
        """The files of a run by name, but for its tables and its graph."""
        about, group = about_run(self), Group("", [self.measures])
        return {
            PARAMS: _json(self.params()),
            SUMMARY: _json(as_json(self.measures)),
            ANALYSIS: self.analysis().encode(),
            REPORT: report_html(about, [group]).encode(),
        }

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from html import escape

        return f"<pre>{escape(self.analysis())}</pre>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Run):
    """A run and all that it told."""

    recorder: Recorder

    def table(self, name: str) -> pd.DataFrame:
        """A table, as :data:`TABLES` of ``recorder.py`` has them. Raises ``KeyError``."""
        need("tables of a simulation", "sim")
        return arrow_table(self.recorder.tables[name]).to_pandas()

    def files(self) -> dict[str, bytes]:
        """All files of its folder by name."""
        found = Run.files(self)
        found["graph.gml"] = graph_gml(self.recorder).encode()
        for name, table in self.recorder.tables.items():
            found[f"{name}.parquet"] = parquet(table)
        return found

    def save(self, folder: Path | str) -> None:
        """Write the folder. Raises ``UsageError`` where it can't be, or is there already."""
        need("the tables of a simulation", "sim")
        write_folder(Path(folder), self.files())


def load_run(folder: Path) -> Run:
    """A run that was kept in a folder. Raises ``ConfigError``."""
    found = {}
    for name in (PARAMS, SUMMARY):
        text = read_text_or_none(folder / name)
        if text is None:
            raise ConfigError(f"there is no {folder / name}: name the folder of a run that ended")
        found[name] = text.encode()
    return run_of(found, folder)


def run_of(files: Mapping[str, bytes], folder: Path = Path()) -> Run:
    """The run that ``params.json`` and ``summary.json`` tell of. Raises ``ConfigError``."""
    params, summary = (_table_of(files[name].decode(), folder / name) for name in (PARAMS, SUMMARY))
    scenario, seed = scenario_and_seed(params, folder / PARAMS)
    with _damage_told(folder, SUMMARY):
        measures = from_json(summary)
    with _damage_told(folder, PARAMS):
        return Run(
            scenario=scenario,
            seed=seed,
            measures=measures,
            **{name: params[name] for name in ("trace_hash", "tables_hash", "events", "wall_s")},
            **{name: params[name] for name in ("version", "code", "machine")},
        )


@contextmanager
def _damage_told(folder: Path, name: str) -> Iterator[None]:
    """What is missing or wrong in a file of a run is a ``ConfigError`` that says it in words."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        match error:
            case KeyError():
                what = f"{name} has no {error.args[0]}"
            case ValueError():
                what = f"{name}: {error}"
            case _:
                what = f"{name} has another form than a run writes"
        raise ConfigError(f"{folder} is no folder of a run ({what}): run it again") from error


def load_params(path: Path) -> tuple[Scenario, int, str]:
    """The scenario, the seed and the trace hash of a ``params.json``. Raises ``ConfigError``."""
    text = read_text_or_none(path)
    if text is None:
        raise UsageError(f"there is no {path}: name the params.json of a run")
    params = _table_of(text, path)
    scenario, seed = scenario_and_seed(params, path)
    return scenario, seed, str(params.get("trace_hash", ""))


def scenario_and_seed(params: Mapping[str, Any], path: Path) -> tuple[Scenario, int]:
    """Of what ``params.json`` says. Raises ``ConfigError``."""
    held, seed = params.get("scenario"), params.get("seed")
    if params.get("format") != FORMAT:
        wrong = "is not the params.json of a run of this version"
    elif not isinstance(held, dict):
        wrong = "has no table of a scenario"
    elif type(seed) is not int:
        wrong = f"has the seed {seed!r}, which is no whole number"
    else:
        try:
            return scenario_from(held), seed
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    raise ConfigError(f"{path} {wrong}: name the scenario and the seed instead")


def about_run(run: Run) -> About:
    """What a report of one run says of it."""
    from p2pnode.simulations.scenario import as_toml

    scenario = run.scenario
    speed = f" ({number_text(run.events / run.wall_s)}/s)" if run.wall_s > 0 else ""
    nodes = count_of(scenario.nodes, "node")
    return About(
        f"{scenario.name}: {nodes} for {number_text(scenario.duration_s)} s, seed {run.seed}",
        scenario.description,
        {
            "seed": str(run.seed),
            "trace hash": run.trace_hash,
            "events": f"{run.events:,} in {number_text(run.wall_s)} s{speed}",
            "version": f"p2pnode {run.version}, code {run.code}",
            "machine": ", ".join(f"{name} {value}" for name, value in run.machine.items()),
            "run again": "p2pnode simulate params.json",
        },
        as_toml(scenario),
    )


# ---- forms


def as_json(measures: Measures) -> dict[str, Any]:
    """Figures and curves as JSON has them: what is NaN is null."""
    curves = {name: asdict(curve) for name, curve in measures.curves.items()}
    for curve in curves.values():
        curve["y"] = [None if math.isnan(value) else value for value in curve["y"]]
    return {"figures": measures.figures, "curves": curves}


def from_json(values: Mapping[str, Any]) -> Measures:
    """The same read back, bit for bit. Raises ``KeyError``, ``TypeError``, ``ValueError``."""
    figures: dict[str, int | float | None] = {}
    for name, value in values["figures"].items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            msg = f"{name} is {value!r}, which is no figure"
            raise ValueError(msg)
        figures[name] = value
    curves = {}
    for name, held in values["curves"].items():
        y = tuple(math.nan if value is None else float(value) for value in held["y"])
        x = tuple(float(value) for value in held["x"])
        curves[name] = Curve(**{**held, "x": x, "y": y, "labels": tuple(held["labels"])})
    return Measures(figures, curves)


def arrow_table(table: Table) -> pa.Table:
    """A table in Arrow's form: int64, float64, bool, and text by dictionary."""
    import pyarrow as pa

    return pa.table({name: _arrow(column) for name, column in table.columns.items()})


def parquet(table: Table) -> bytes:
    """A table as a Parquet file."""
    import pyarrow.parquet

    written = BytesIO()
    pyarrow.parquet.write_table(arrow_table(table), written, compression="zstd")
    return written.getvalue()


def _arrow(column: Column) -> Any:
    import pyarrow as pa

    kind = pa.float64() if column.kind == "float" else pa.int64()
    values = pa.Array.from_buffers(kind, len(column), [None, pa.py_buffer(column.values)])
    match column.kind:
        case "str":
            return pa.DictionaryArray.from_arrays(
                values.cast(pa.int32()), pa.array(column.words, pa.string())
            )
        case "bool":
            return values.cast(pa.bool_())
        case "int" | "float":
            return values


def graph_gml(recorder: Recorder) -> str:
    """The graph at the end in GML, as networkx, igraph and Gephi read it."""
    return "\n".join(_gml(recorder)) + "\n"


def _gml(recorder: Recorder) -> Iterator[str]:
    nodes = recorder.tables["nodes"]
    rows = zip(nodes["node"], nodes["role"], nodes["region"], nodes["nat"], strict=True)
    yield "graph ["
    yield "  directed 0"
    for node, role, region, nat in rows:
        words = f'role "{_gml_text(role)}" region "{_gml_text(region)}" nat "{_gml_text(nat)}"'
        yield f'  node [ id {node} label "{node}" {words} ]'
    for node, other, kind in recorder.edges:
        yield f'  edge [ source {node} target {other} kind "{_gml_text(kind)}" ]'
    yield "]"


def _gml_text(text: object) -> str:
    return str(text).replace("&", "&amp;").replace('"', "&quot;")


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _table_of(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}): run it again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not the file of a run: run it again")
    return found
