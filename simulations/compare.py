"""Two runs side by side, or two sweeps over seeds: their figures, and one report of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2pnode.errors import ConfigError
from p2pnode.simulations.report import About, Group, comparison_text, figure_names, report_html
from p2pnode.simulations.result import load_run
from p2pnode.simulations.scenario import Scenario, as_toml
from p2pnode.simulations.sweeps import SWEEP, load_sweep


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two groups of runs, with the scenarios that they ran."""

    one: Group
    other: Group
    scenarios: tuple[Scenario, Scenario]

    def figures(self) -> dict[str, tuple[float | None, float | None]]:
        """The mean of each figure in both; None where one has none."""
        pair = (self.one, self.other)
        found = {name: [each.figure(name) for each in pair] for name in figure_names(pair)}
        return {name: _means(*both) for name, both in found.items()}

    def text(self) -> str:
        """The figures in columns, with the change from the first to the second."""
        return comparison_text((self.one, self.other))

    def html(self) -> str:
        """A page with the plots of both."""
        one, other = self.scenarios
        about = About(
            f"{self.one.label} and {self.other.label}",
            "Two runs side by side.",
            {self.one.label: one.name, self.other.label: other.name},
            f"# {self.one.label}\n{as_toml(one)}\n# {self.other.label}\n{as_toml(other)}",
        )
        return report_html(about, (self.one, self.other))


def compared(one: Path, other: Path) -> Comparison:
    """Compare what two folders hold. Raises ``ConfigError``."""
    (first, a), (second, b) = _read(one), _read(other)
    return Comparison(first, second, (a, b))


def _read(folder: Path) -> tuple[Group, Scenario]:
    if not (folder / SWEEP).exists():
        run = load_run(folder)
        return Group(str(folder), [run.measures]), run.scenario
    planned, runs = load_sweep(folder)
    if len(planned.points) > 1:
        held = ", ".join(planned.values[0])
        raise ConfigError(f"{folder} is a sweep over {held}: its report shows its points side by side")
    return Group(str(folder), [each.measures for each in runs]), planned.scenario


def _means(one: object, other: object) -> tuple[float | None, float | None]:
    return getattr(one, "mean", None), getattr(other, "mean", None)
