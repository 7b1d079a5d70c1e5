"""``run(scenario, seed)``: one run, and the check that two of them are the same.

A run happens in one thread, without a clock: the wall's is read before and after it only. As a program
(``python -m p2pnode.simulations.runs``) this module makes the runs that standard input tells in JSON, and
prints their hashes; :func:`check_determinism` starts two of these with other seeds for Python's own hashing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pnode.errors import LocalError
from p2pnode.simulations.experiment import Experiment
from p2pnode.simulations.invariants import InvariantError
from p2pnode.simulations.metrics import measures_of
from p2pnode.simulations.recorder import CHECKPOINT_EVENTS, Recorder
from p2pnode.simulations.records import as_mapping
from p2pnode.simulations.result import Result
from p2pnode.simulations.scenario import Scenario, replay_command, scenario_from

Progress = Callable[[float], None]
"""Is told the simulated time, in seconds, about once a simulated second."""
_HASH_SEEDS: Final = ("1", "2")


class BrokenRunError(LocalError):
    """Something happened in a run that must not in any. The message has the command that makes it again."""


def run(scenario: Scenario, seed: int = 1, *, progress: Progress | None = None, source: str = "") -> Result:
    """Run a scenario. Everything that is drawn comes of ``seed``.

    Raises ``BrokenRunError``. ``source`` is the name or the file in the command that it tells; without one,
    the library's name or a file with the scenario's.
    """
    recorder = Recorder()
    began = time.perf_counter()
    try:
        experiment = Experiment(scenario, seed, recorder)
        experiment.run(progress)
        experiment.finish()
    except InvariantError as error:
        again = replay_command(scenario, seed, source)
        raise BrokenRunError(f"{scenario.name}, seed {seed}: {error}. `{again}` shows it again") from error
    took = time.perf_counter() - began
    return Result(
        scenario=scenario,
        seed=seed,
        recorder=recorder,
        trace_hash=recorder.trace_hash,
        tables_hash=recorder.tables_hash,
        events=experiment.world.loop.done,
        wall_s=took,
        measures=measures_of(
            recorder, begin_s=scenario.warmup_s, end_s=scenario.duration_s - scenario.cooldown_s
        ),
    )


@dataclass(frozen=True, slots=True)
class Determinism:
    """What two runs in processes of their own had in common. ``difference`` is empty where that was all."""

    trace_hash: str
    events: int
    difference: str


def check_determinism(scenario: Scenario, seed: int = 1) -> Determinism:
    """Run a scenario twice, in two processes with other PYTHONHASHSEEDs, one after the other.

    Raises ``LocalError`` where a process fails.
    """
    return check_all([scenario], seed)[0]


def check_all(scenarios: Sequence[Scenario], seed: int = 1) -> list[Determinism]:
    """The same for several scenarios, in two processes for all of them."""
    asked = json.dumps({"scenarios": [as_mapping(each) for each in scenarios], "seed": seed})
    one, other = (_in_a_process(asked, each) for each in _HASH_SEEDS)
    return [
        Determinism(mine["trace_hash"], mine["events"], difference(mine, theirs))
        for mine, theirs in zip(one, other, strict=True)
    ]


def _in_a_process(asked: str, hash_seed: str) -> list[Mapping[str, Any]]:
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "p2pnode.simulations.runs"],
        input=asked,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        said = ran.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        msg = f"a run for the check failed ({said[0]}): run it by itself to see why"
        raise LocalError(msg)
    told: list[Mapping[str, Any]] = json.loads(ran.stdout)
    return told


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Where two runs part, in words; "" where they don't. Of each, what its process prints."""
    if one["trace_hash"] == other["trace_hash"]:
        apart = [name for name, digest in one["tables"].items() if other["tables"][name] != digest]
        return f"the events are the same, the tables {', '.join(apart)} differ" if apart else ""
    for mine, theirs in zip(one["checkpoints"], other["checkpoints"], strict=False):
        if mine != theirs:
            first = mine["events"] - CHECKPOINT_EVENTS + 1
            return f"events {first} to {mine['events']}, at about {mine['at_s']:.3f} s, differ"
    last = min(len(one["checkpoints"]), len(other["checkpoints"])) * CHECKPOINT_EVENTS
    return f"events after number {last} differ"


def main() -> None:
    """The program."""
    asked = json.load(sys.stdin)
    told = [_told(run(scenario_from(each), asked["seed"])) for each in asked["scenarios"]]
    json.dump(told, sys.stdout)


def _told(result: Result) -> dict[str, Any]:
    recorder = result.recorder
    return {
        "trace_hash": result.trace_hash,
        "events": sum(recorder.counts.values()),
        "tables": {name: table.digest().hex() for name, table in recorder.tables.items()},
        "checkpoints": [
            {"events": each.events, "at_s": each.at_s, "digest": each.digest.hex()}
            for each in recorder.checkpoints
        ],
    }


if __name__ == "__main__":
    main()
