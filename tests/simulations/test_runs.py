"""One run: the same from the same seed, another from another one, the same in other processes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import LocalError
from p2pnode.simulations.experiment import Experiment
from p2pnode.simulations.invariants import InvariantError
from p2pnode.simulations.links import Links
from p2pnode.simulations.recorder import CHECKPOINT_EVENTS
from p2pnode.simulations.runs import BrokenRunError, check_all, check_determinism, difference, run
from p2pnode.simulations.scenario import as_toml, changed, load, names
from tests.simulations.small import SMALL, small


def test_a_run_is_the_same_from_the_same_seed_and_another_from_another() -> None:
    one, again, other = run(SMALL, 5), run(SMALL, 5), run(SMALL, 6)
    assert (one.trace_hash, one.tables_hash) == (again.trace_hash, again.tables_hash)
    assert one.figures == again.figures
    assert one.trace_hash != other.trace_hash
    assert one.figures["reliability"] == 1.0


def test_another_parameter_is_another_trace() -> None:
    changed = replace(SMALL, links=Links(jitter_share=0.3))
    assert run(SMALL, 5).trace_hash != run(changed, 5).trace_hash


def test_progress_is_told_until_the_end() -> None:
    heard: list[float] = []
    run(SMALL, 1, progress=heard.append)
    assert heard == sorted(heard)
    assert len(heard) >= SMALL.duration_s - 1
    assert heard[-1] >= SMALL.duration_s - 1


def test_who_interrupts_a_run_gets_the_interruption() -> None:
    def interrupt(now: float) -> None:
        if now > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SMALL, 1, progress=interrupt)


def test_two_processes_that_hash_otherwise_make_the_same_run_of_every_scenario_there_is() -> None:
    scenarios = [SMALL, *(small(load(name)) for name in names())]
    for scenario, found in zip(scenarios, check_all(scenarios, 5), strict=True):
        assert found.difference == "", scenario.name
        assert found.events > 0, scenario.name
        if scenario is SMALL:
            assert found.trace_hash == run(SMALL, 5).trace_hash


def told(trace: str, digests: str, nodes: str = "1") -> dict[str, Any]:
    """What a process prints: a checkpoint for each letter of ``digests``."""
    checkpoints = [
        {"events": CHECKPOINT_EVENTS * n, "at_s": float(n), "digest": digest}
        for n, digest in enumerate(digests, 1)
    ]
    return {"trace_hash": trace, "tables": {"nodes": nodes, "messages": "m"}, "checkpoints": checkpoints}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (told("a", "xy"), ""),
        (told("b", "xz"), "events 257 to 512, at about 2.000 s, differ"),
        (told("b", "zz"), "events 1 to 256, at about 1.000 s, differ"),
        (told("b", "xy"), "events after number 512 differ"),
        (told("b", "x"), "events after number 256 differ"),
        (told("a", "xy", nodes="2"), "the events are the same, the tables nodes differ"),
    ],
)
def test_what_differs_between_two_runs_is_said_as_near_as_it_is_known(
    other: dict[str, Any], said: str
) -> None:
    assert difference(told("a", "xy"), other) == said


def test_a_process_that_fails_is_told_by_its_last_words() -> None:
    broken = replace(SMALL)
    object.__setattr__(broken, "nodes", 1)  # such a scenario can't be made: the process refuses it
    with pytest.raises(LocalError, match=r"a run for the check failed \(.*nodes is 1"):
        check_determinism(broken, 1)


def test_a_run_that_breaks_a_rule_tells_the_command_that_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "small.toml"
    file.write_text(as_toml(SMALL))

    def broken(_self: Experiment, _progress: object = None) -> None:
        raise InvariantError("a coin is missing", 3.25)

    monkeypatch.setattr(Experiment, "run", broken)
    wanted = changed(SMALL, {"links.jitter_share": 0.5})
    with pytest.raises(BrokenRunError) as raised:
        run(wanted, 7, source=str(file))
    command = f"p2pnode simulate {file} --seed 7 --set links.jitter_share=0.5"
    assert str(raised.value) == f"small, seed 7: at 3.250000 s: a coin is missing. `{command}` shows it again"
    again = pickle.loads(pickle.dumps(raised.value))  # a worker of another process raises it, too
    assert str(again) == str(raised.value)
