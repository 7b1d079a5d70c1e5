"""Runs suites one after another, so that none disturbs another, and turns what they find into figures."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import psutil
import structlog
import trio

from p2pnode.bench.exllama import EXLLAMA, EXLLAMA_GOALS
from p2pnode.bench.figure import GOALS, SUITES, Figure, Goal, Measurement
from p2pnode.bench.options import GAS_DEFAULTS, PAIRS_DEFAULT, BenchOptions, GasOptions, Take
from p2pnode.errors import P2PNodeError, UsageError, first_error

ALL: Final = "all"
PAIRS_MAX: Final = 1000
_SUITE_S: Final[Mapping[str, int]] = {
    "stream": 370, "dial": 5, "gossip": 130, "attacks": 120, "cli": 30, "idle": 180, "gas": 10, "paid": 150,
    "economy": 30, "failover": 330, "storage": 60, "simulate": 90, "engine": 460, "gateway": 400,
    "exllama": 300,
}  # fmt: skip
"""About how long each suite takes with the default number of pairs on two free cores."""
_BUSY: Final = 0.15
"""A share of the cores that others take, from which on figures are not to be trusted."""
_BUSY_WINDOW_S: Final = 1.0
Suite = Callable[[BenchOptions, Take], Awaitable[None]]

log = structlog.get_logger()


def suites_named(name: str) -> tuple[str, ...]:
    """The suites meant by what the user typed. Raises ``UsageError``."""
    if name == ALL:
        return SUITES
    if name in SUITES:
        return (name,)
    msg = f"unknown suite {name!r}: choose {', '.join(SUITES)} or {ALL}"
    raise UsageError(msg)


def seconds_of(names: Sequence[str]) -> int:
    """About how long these suites take without ``quick``."""
    return sum(_SUITE_S[name] for name in names)


async def others_share() -> float | None:
    """The share of this machine's cores that is busy while this process waits; None if it is low.

    Looks for a second.
    """
    psutil.cpu_percent()
    await trio.sleep(_BUSY_WINDOW_S)
    share = psutil.cpu_percent() / 100
    return share if share >= _BUSY else None


def suite(name: str) -> Suite:
    """What measures it; imported late."""
    found: Suite = getattr(import_module(f"p2pnode.bench.{name}"), f"measure_{name}")
    return found


async def run_suites(
    names: Sequence[str],
    report: Callable[[Figure], None],
    *,
    on_suite: Callable[[str], None] = lambda _: None,
    pairs: int = PAIRS_DEFAULT,
    quick: bool = False,
    gas: GasOptions = GAS_DEFAULTS,
    measure: Mapping[str, Suite] | None = None,
    model: str = "",
    device: str = "cuda",
) -> bool:
    """Report a figure for each goal of these suites as it is found; true when all hold.

    ``model`` and ``device`` are the exllama suite's. ``on_suite`` gets the name of each suite as it
    begins. ``measure`` replaces the suites' own functions. A suite that fails costs its own figures only:
    each is reported, with the reason. Raises ``UsageError`` when ``pairs`` makes no sense.
    """
    if not 1 <= pairs <= PAIRS_MAX:
        msg = f"--pairs is {pairs}; it must be from 1 to {PAIRS_MAX}"
        raise UsageError(msg)
    holds = True
    for name in names:
        on_suite(name)
        with tempfile.TemporaryDirectory(prefix="p2pnode-bench-") as scratch:
            options = BenchOptions(
                scratch=Path(scratch), pairs=pairs, quick=quick, gas=gas, model=model, device=device
            )
            goals = EXLLAMA_GOALS if name == EXLLAMA else GOALS
            run = _Run([goal for goal in goals if goal.suite == name], report, quick=quick)
            problem = "the suite did not measure it"
            try:
                await (measure[name] if measure is not None else suite(name))(options, run.take)
            except* P2PNodeError as group:
                problem = str(first_error(group))
                log.debug("bench.failed", suite=name, reason=problem)
            run.end(problem)
            holds = holds and run.holds
    return holds


class _Run:
    """The goals of one suite that are still to be measured."""

    def __init__(self, goals: Sequence[Goal], report: Callable[[Figure], None], *, quick: bool) -> None:
        self._goals = {goal.name: goal for goal in goals}
        self._report, self._quick = report, quick
        self.holds = True

    def take(self, name: str, found: Measurement) -> None:
        details: dict[str, Any] = {**found.details, **({"quick": True} if self._quick else {})}
        found = Measurement(value=found.value, baseline=found.baseline, ratio=found.ratio, details=details)
        self._tell(Figure(goal=self._goals.pop(name), measurement=found))

    def end(self, problem: str) -> None:
        for goal in list(self._goals.values()):
            self._tell(Figure(goal=goal, problem=problem))
        self._goals.clear()

    def _tell(self, figure: Figure) -> None:
        self.holds = self.holds and figure.holds
        self._report(figure)
