"""Reports: one page of HTML that needs nothing else, and the text beside it. Pure: measures in, text out.

A report is about groups of runs. The runs of a group differ in their seed only; over them a figure is a mean
with its 95% confidence interval, and a curve has a band. A single run is a group of one, a sweep has a group
for each point, and a comparison two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final

from p2pnode.simulations.estimates import Estimate, estimate
from p2pnode.simulations.metrics import Curve, Measures
from p2pnode.simulations.plots import COLOURS, Axes, Series, bar_plot, interval_text, line_plot

if TYPE_CHECKING:
    from jinja2 import Template

_GROUPS_SHOWN: Final = len(COLOURS)
_DECADES_FROM: Final = 30
"""So many times as much is shown on a logarithmic axis."""
_OVER_A_PARAMETER: Final = (
    "reliability",
    "latency_p95_s",
    "duplicates_per_delivery",
    "lookup_hops_mean",
    "lookup_success",
    "hosts_known_p50_s",
    "hosts_known_p95_s",
    "adverts_published_per_s_mean",
    "adverts_taken_per_s_mean",
    "hosts_in_book_share_mean",
    "book_honest_share_mean",
    "first_token_within_2s",
    "session_success",
    "first_token_p50_s",
    "first_token_p95_s",
    "failover_gap_p95_s",
    "income_gini",
    "fraud_found",
    "messages_sent",
)
"""Figures that are drawn over the parameter that a sweep changes, where the runs have them."""


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seed only. ``values`` are the parameters that other groups have otherwise."""

    label: str
    measures: Sequence[Measures]
    values: Mapping[str, object] = field(default_factory=dict)

    def figure(self, name: str) -> Estimate | None:
        """A figure over the runs."""
        return estimate(run.figures.get(name) for run in self.measures)


@dataclass(frozen=True, slots=True)
class About:
    """What a report says of the runs besides their figures. ``facts`` are lines of a name and a text."""

    title: str
    description: str
    facts: Mapping[str, str]
    parameters: str


def report_html(about: About, groups: Sequence[Group]) -> str:
    """The page. At most eight groups get a colour in the plots; the table has all of them."""
    shown = groups[:_GROUPS_SHOWN]
    plots = [*_over_parameter(groups), *_curves(shown)]
    return _page().render(
        about=about,
        groups=groups,
        rows=[(name, [_interval(group.figure(name)) for group in groups]) for name in figure_names(groups)],
        plots=plots,
        left_out=len(groups) - len(shown),
        repeats=max((len(group.measures) for group in groups), default=0),
    )


def analysis_text(about: About, groups: Sequence[Group]) -> str:
    """The analysis as text. Reliability, latency and duplicates come first, for each group."""
    lines = [about.title, ""]
    for group in groups:
        if group.label:
            lines.append(f"{group.label}:")
        lines.extend(_head(group))
        lines.append("")
    names = figure_names(groups)
    width = max((len(name) for name in names), default=0)
    if len(groups) == 1:
        lines.extend(f"{name:{width}}  {_interval(groups[0].figure(name))}" for name in names)
    else:
        lines.extend(_columns([group.label for group in groups], names, groups))
    lines.append("")
    width = max((len(name) for name in about.facts), default=0)
    lines.extend(f"{name:{width}}  {text}" for name, text in about.facts.items())
    return "\n".join(lines) + "\n"


def comparison_text(groups: Sequence[Group]) -> str:
    """Two groups side by side: each figure, and by how much the second differs from the first."""
    one, other = groups
    rows = [("figure", one.label, other.label, "change")]
    for name in figure_names(groups):
        a, b = one.figure(name), other.figure(name)
        rows.append((name, _interval(a), _interval(b), _change(a, b)))
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def figure_names(groups: Iterable[Group]) -> list[str]:
    """The figures that some run has, in their order."""
    found: dict[str, None] = {}
    for group in groups:
        for run in group.measures:
            found.update(dict.fromkeys(name for name, value in run.figures.items() if value is not None))
    return list(found)


def _head(group: Group) -> list[str]:
    """The three lines that everybody looks for."""
    latency = [(word, group.figure(f"latency_{word}_s")) for word in ("mean", "p50", "p95", "p99", "max")]
    spread = ", ".join(f"{word} {1000 * each.mean:,.0f} ms" for word, each in latency if each is not None)
    reliability = group.figure("reliability")
    copies = group.figure("duplicates_per_delivery")
    share = "no message was published" if reliability is None else f"{_percent(reliability)} of deliveries"
    return [
        f"reliability  {share}",
        f"latency      {spread or 'no message was delivered'}",
        f"duplicates   {'none counted' if copies is None else f'{_interval(copies)} copies a delivery'}",
    ]


def _percent(each: Estimate) -> str:
    width = "" if each.half_width is None else f" ± {100 * each.half_width:.2g}"
    return f"{100 * each.mean:.4g}{width}%"


def _interval(each: Estimate | None) -> str:
    if each is None:
        return "none"
    return interval_text(each.mean, each.half_width or 0.0)


def _change(one: Estimate | None, other: Estimate | None) -> str:
    if one is None or other is None or one.mean == other.mean:
        return "same" if one is not None and other is not None else ""
    apart = one.half_width is None or other.half_width is None or _apart(one, other)
    sure = "" if apart else " (intervals overlap)"
    return f"{(other.mean - one.mean) / one.mean:+.1%}{sure}" if one.mean else f"from 0{sure}"


def _apart(one: Estimate, other: Estimate) -> bool:
    return one.high < other.low or other.high < one.low


def _columns(labels: Sequence[str], names: Sequence[str], groups: Sequence[Group]) -> list[str]:
    rows = [("figure", *labels)]
    rows.extend((name, *(_interval(group.figure(name)) for group in groups)) for name in names)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


# ---- plots


@dataclass(frozen=True, slots=True)
class _Plot:
    title: str
    svg: str


def _over_parameter(groups: Sequence[Group]) -> list[_Plot]:
    """Figures over the one parameter in which the groups differ."""
    keys = {key for group in groups for key in group.values}
    if len(keys) != 1 or len(groups) < 2:  # noqa: PLR2004 - a line needs two points
        return []
    (key,) = keys
    values = [group.values[key] for group in groups]
    by_number = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    places = [float(each) if by_number else float(n) for n, each in enumerate(values)]  # type: ignore[arg-type]
    found = []
    for name in _OVER_A_PARAMETER:
        estimates = [group.figure(name) for group in groups]
        if any(each is not None for each in estimates):
            series = _series("", places, estimates)
            names = [] if by_number else [str(each) for each in values]
            axes = Axes(key, name.replace("_", " "), names, x_by_decades=by_number and _by_decades(places))
            found.append(
                _Plot(f"{name.replace('_', ' ')} over {key}", line_plot([series], axes, points=True))
            )
    return found


def _by_decades(values: Sequence[float]) -> bool:
    """Whether the least of these would be at one place with the next ones on an axis with equal steps."""
    return min(values) > 0 and max(values) >= _DECADES_FROM * min(values)


def _series(
    label: str, x: Sequence[float], estimates: Sequence[Estimate | None], *, most: float = math.inf
) -> Series:
    """What is never below 0, and never above ``most``, has no band there: else it would set the scale."""
    means = [math.nan if each is None else each.mean for each in estimates]
    least = 0.0 if all(not mean < 0 for mean in means) else -math.inf
    return Series(
        label,
        x,
        means,
        [math.nan if each is None else max(least, each.low) for each in estimates],
        [math.nan if each is None else min(most, each.high) for each in estimates],
    )


def _curves(groups: Sequence[Group]) -> list[_Plot]:
    names: dict[str, None] = {}
    for group in groups:
        for run in group.measures:
            names.update(dict.fromkeys(run.curves))
    return [_plot([(group.label, _all(group, name)) for group in groups]) for name in names]


def _all(group: Group, name: str) -> list[Curve]:
    return [run.curves[name] for run in group.measures if name in run.curves]


def _plot(labelled: Sequence[tuple[str, Sequence[Curve]]]) -> _Plot:
    """One curve of all groups. Over the runs of a group, the mean of what its kind measures."""
    first = next(curves[0] for _, curves in labelled if curves)
    series = []
    alone = len(labelled) == 1
    labels = list(dict.fromkeys(each for _, curves in labelled for curve in curves for each in curve.labels))
    labels.sort(key=lambda each: (0, int(each), "") if each.isdecimal() else (1, 0, each))
    for label, curves in labelled:
        shown = "" if alone else label
        match first.kind:
            case "cdf":
                series.append(_cdf(shown, curves))
            case "bars":
                series.append(_bars(shown, curves, labels))
            case "line" | "lorenz":
                series.append(_line(shown, curves))
    axes = Axes(first.x_label, first.y_label, labels if first.kind == "bars" else ())
    if first.kind == "bars":
        return _Plot(first.title, bar_plot(series, axes))
    if first.kind == "lorenz":
        series.append(Series("all earn the same", (0.0, 1.0), (0.0, 1.0)))
    return _Plot(first.title, line_plot(series, axes))


def _cdf(label: str, curves: Sequence[Curve]) -> Series:
    """The mean of the values at each share.

    The intervals lie across, in the values; the band goes up and down from one to the other end of them.
    """
    if not curves:
        return Series(label, (), ())
    shares = curves[0].y
    values = [estimate(curve.x[place] for curve in curves) for place in range(len(shares))]
    middle = [0.0 if each is None else each.mean for each in values]
    if len(curves) == 1:
        return Series(label, middle, shares)
    low = _shares_at(middle, [0.0 if each is None else each.high for each in values], shares)
    high = _shares_at(middle, [0.0 if each is None else each.low for each in values], shares)
    return Series(label, middle, shares, low, high)


def _shares_at(values: Sequence[float], of: Sequence[float], shares: Sequence[float]) -> list[float]:
    """For each value, the share of all that lies at or below it on the curve (``of``, ``shares``)."""
    found, place = [], 0
    rising = list(_rising(of))
    for value in _rising(values):
        while place + 1 < len(rising) and rising[place + 1] <= value:
            place += 1
        found.append(shares[place] if rising[place] <= value else 0.0)
    return found


def _rising(values: Iterable[float]) -> Iterable[float]:
    """The values, none below one before it: a bound of an interval may fall a little."""
    highest = -math.inf
    for value in values:
        highest = max(highest, value)
        yield highest


def _line(label: str, curves: Sequence[Curve]) -> Series:
    if not curves:
        return Series(label, (), ())
    x = curves[0].x
    estimates = [estimate(curve.y[place] for curve in curves) for place in range(len(x))]
    series = _series(label, x, estimates, most=1.0 if curves[0].y_label.startswith("share") else math.inf)
    return series if len(curves) > 1 else Series(label, x, series.y)


def _bars(label: str, curves: Sequence[Curve], labels: Sequence[str]) -> Series:
    held = [dict(zip(curve.labels, curve.y, strict=True)) for curve in curves]
    estimates = [estimate(run.get(name, 0.0) for run in held) for name in labels]
    return _series(label, [float(place) for place in range(len(labels))], estimates)


# ---- the page


@cache
def _page() -> Template:
    from jinja2 import Environment

    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)


_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ about.title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 0.15rem 0.9rem 0.15rem 0; text-align: left; white-space: nowrap; }
td.text { white-space: normal; overflow-wrap: anywhere; } th { vertical-align: top; }
tr:nth-child(even) td { background: color-mix(in srgb, currentColor 6%, transparent); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>{{ about.title }}</h1>
<p>{{ about.description }}</p>
{% if repeats > 1 %}
<p>Figures are means over up to {{ repeats }} runs with other seeds; ± and bands are 95% confidence intervals
(Student's t).</p>
{% endif %}
{% if left_out %}
<p>The plots of curves show the first {{ groups | length - left_out }} of {{ groups | length }} points.</p>
{% endif %}
<div class="plots">
{% for plot in plots %}
<figure><figcaption>{{ plot.title }}</figcaption>{{ plot.svg | safe }}</figure>
{% endfor %}
</div>
<h2>Figures</h2>
<div class="wide">
<table>
<tr><th>figure</th>{% for group in groups %}<th>{{ group.label or "value" }}</th>{% endfor %}</tr>
{% for name, cells in rows %}
<tr><td>{{ name }}</td>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
</div>
<h2>The runs</h2>
<div class="wide">
<table>
{% for name, text in about.facts.items() %}
<tr><th>{{ name }}</th><td class="text">{{ text }}</td></tr>
{% endfor %}
</table>
</div>
<h2>Parameters</h2>
<pre>{{ about.parameters }}</pre>
</body>
</html>
"""
