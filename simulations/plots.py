"""Plots as SVG, small enough to stand inside a page. Pure: numbers in, text out.

A plot has lines with bands, or bars with whiskers, and one legend. Colours are those of Okabe and Ito, which
people with any colour vision tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "currentColor")
"""The last one is black on paper and white on a dark screen."""
WIDTH: Final = 460
HEIGHT: Final = 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 26, 14, 44
_TICKS: Final = 5
_UNITS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
_ROUNDING: Final = 1e-12
"""Of a mean: what sums of equal numbers may differ by."""
_PLACES_NAMED: Final = 8
"""So many places of points on a logarithmic axis are each a tick; more have ticks at powers of ten."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or the bars of one colour. ``low`` and ``high`` bound its band, where there is one.

    A point whose ``y`` is NaN is a gap in the line.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Axes:
    """What an axis says. ``x_names`` stand for the places 0, 1, … where x is no number."""

    x_label: str
    y_label: str
    x_names: Sequence[str] = ()
    y_from_zero: bool = True
    y_most: float | None = None
    x_by_decades: bool = False
    """Whether x is on a logarithmic axis; all of it is above 0 then."""


def line_plot(series: Sequence[Series], axes: Axes, *, points: bool = False) -> str:
    """Lines, each with its band; with ``points`` each value has a dot and a whisker instead of a band."""
    frame = _Frame(series, axes, margin=0.0)
    drawn: list[str] = []
    for place, each in enumerate(series):
        colour = COLOURS[place % len(COLOURS)]
        if each.low and not points:
            drawn.extend(frame.band(each, colour))
        drawn.extend(frame.path(part, colour) for part in _parts(each))
        if points:
            drawn.extend(frame.dots(each, colour))
    return frame.svg(drawn, [each.label for each in series])


def bar_plot(series: Sequence[Series], axes: Axes) -> str:
    """Bars at the places 0, 1, … of ``axes.x_names``, those of one place side by side."""
    frame = _Frame(series, axes, margin=0.5)
    width = 0.8 / max(1, len(series))
    drawn: list[str] = []
    for place, each in enumerate(series):
        colour = COLOURS[place % len(COLOURS)]
        for number, (x, y) in enumerate(zip(each.x, each.y, strict=True)):
            if math.isnan(y):
                continue
            left = x - 0.4 + place * width
            drawn.append(frame.bar(left, left + width * 0.92, y, colour))
            if each.low:
                drawn.append(
                    frame.whisker(left + width * 0.46, each.low[number], each.high[number], "currentColor")
                )
    return frame.svg(drawn, [each.label for each in series])


class _Frame:
    """Where numbers are on the paper."""

    def __init__(self, series: Sequence[Series], axes: Axes, *, margin: float) -> None:
        self.axes = axes
        xs = [x for each in series for x in each.x if math.isfinite(x)] or [0.0, 1.0]
        ys = [y for each in series for y in (*each.y, *each.low, *each.high) if math.isfinite(y)] or [
            0.0,
            1.0,
        ]
        self.x_ticks = [] if axes.x_names else _ticks(min(xs), max(xs))
        if axes.x_by_decades:
            self.x_ticks = sorted(set(xs))
            if len(self.x_ticks) > _PLACES_NAMED:
                first, last = math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs)))
                self.x_ticks = [10.0**place for place in range(first, last + 1)]
        low = min(0.0, *ys) if axes.y_from_zero else min(ys)
        self.y_ticks = _ticks(low, max(ys) if axes.y_most is None else axes.y_most)
        self.x_low, self.x_high = min(xs) - margin, max(xs) + margin
        if self.x_low == self.x_high:
            self.x_low, self.x_high = self.x_low - 0.5, self.x_high + 0.5
        self.y_low, self.y_high = min(low, self.y_ticks[0]), max(*ys, self.y_ticks[-1])

    def x(self, value: float) -> float:
        low, high = self.x_low, self.x_high
        if self.axes.x_by_decades:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        share = (value - low) / (high - low)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def at(self, x: float, y: float) -> str:
        return f"{self.x(x):.1f},{self.y(y):.1f}"

    def path(self, points: Sequence[tuple[float, float]], colour: str) -> str:
        through = " ".join(self.at(x, y) for x, y in points)
        if len(points) == 1:
            return self.dot(*points[0], colour, 2)
        return f'<polyline points="{through}" fill="none" stroke="{colour}" stroke-width="1.8"/>'

    def band(self, each: Series, colour: str) -> Iterable[str]:
        rows = zip(each.x, each.low, each.high, strict=True)
        for part in _runs(rows):
            there = [self.at(x, high) for x, _, high in part]
            back = [self.at(x, low) for x, low, _ in reversed(part)]
            yield f'<polygon points="{" ".join(there + back)}" fill="{colour}" opacity="0.2"/>'

    def dots(self, each: Series, colour: str) -> Iterable[str]:
        for number, (x, y) in enumerate(zip(each.x, each.y, strict=True)):
            if math.isnan(y):
                continue
            yield self.dot(x, y, colour, 3)
            if each.low:
                yield self.whisker(x, each.low[number], each.high[number], colour)

    def dot(self, x: float, y: float, colour: str, radius: int) -> str:
        return f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}" fill="{colour}"/>'

    def whisker(self, x: float, low: float, high: float, colour: str) -> str:
        if math.isnan(low) or low == high:
            return ""
        at, top, foot = self.x(x), self.y(high), self.y(low)
        return (
            f'<path d="M{at - 3:.1f} {top:.1f}h6M{at:.1f} {top:.1f}V{foot:.1f}M{at - 3:.1f} {foot:.1f}h6" '
            f'stroke="{colour}" stroke-width="1.2" fill="none"/>'
        )

    def bar(self, left: float, right: float, y: float, colour: str) -> str:
        x, top, foot = self.x(left), self.y(max(y, 0.0)), self.y(min(y, 0.0))
        size = f'width="{self.x(right) - x:.1f}" height="{foot - top:.1f}"'
        return f'<rect x="{x:.1f}" y="{top:.1f}" {size} fill="{colour}"/>'

    def svg(self, drawn: Iterable[str], labels: Sequence[str]) -> str:
        parts = [*self._grid(), *drawn, *self._words()]
        named = [(place, each) for place, each in enumerate(labels) if each]
        height = HEIGHT + 16 * len(named)
        for line, (place, label) in enumerate(named):
            y = HEIGHT + 10 + 16 * line
            colour = COLOURS[place % len(COLOURS)]
            parts.append(f'<rect x="{_LEFT}" y="{y - 8}" width="12" height="8" fill="{colour}"/>')
            parts.append(f'<text x="{_LEFT + 18}" y="{y}">{escape(label)}</text>')
        title = escape(f"{self.axes.y_label} over {self.axes.x_label}")
        return (
            f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}" font-size="11" '
            f'fill="currentColor">{"".join(parts)}</svg>'
        )

    def _grid(self) -> Iterable[str]:
        left, right = _LEFT, WIDTH - _RIGHT
        for tick in self.y_ticks:
            y = self.y(tick)
            yield f'<path d="M{left} {y:.1f}H{right}" stroke="currentColor" opacity="0.15"/>'
            yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{number_text(tick)}</text>'
        foot = HEIGHT - _BOTTOM
        names = [(float(place), name) for place, name in enumerate(self.axes.x_names)]
        names = names or [(tick, number_text(tick)) for tick in self.x_ticks]
        every = max(1, math.ceil(len(names) / 12))
        for x, name in names[::every]:
            if self.x_low <= x <= self.x_high:
                yield f'<text x="{self.x(x):.1f}" y="{foot + 16}" text-anchor="middle">{escape(name)}</text>'
        yield f'<path d="M{left} {foot}H{right}" stroke="currentColor" opacity="0.6"/>'

    def _words(self) -> Iterable[str]:
        middle, below = (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8
        yield f'<text x="{middle:.0f}" y="{below}" text-anchor="middle">{escape(self.axes.x_label)}</text>'
        centre = (_TOP + HEIGHT - _BOTTOM) / 2
        yield (
            f'<text transform="translate(12 {centre:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.axes.y_label)}</text>"
        )


def _parts(each: Series) -> list[list[tuple[float, float]]]:
    return [[(x, y) for x, y, _ in part] for part in _runs(zip(each.x, each.y, each.y, strict=True))]


def _runs(rows: Iterable[tuple[float, float, float]]) -> list[list[tuple[float, float, float]]]:
    """Rows without a NaN, cut where one has it."""
    found: list[list[tuple[float, float, float]]] = [[]]
    for row in rows:
        if any(math.isnan(value) for value in row):
            found.append([])
        else:
            found[-1].append(row)
    return [part for part in found if part]


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at or below ``low`` to at or above ``high``."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next((unit * each for each in (1, 2, 2.5, 5, 10) if unit * each >= raw), unit * 10)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def number_text(value: float) -> str:
    """A number in at most four digits, with thousands in groups: 0.0123, 12.3, 1,234, 5.6M."""
    if math.isnan(value):
        return "none"
    size = abs(value)
    unit, letter = _unit_of(size)
    if letter:
        return f"{value / unit:.4g}{letter}"
    if size >= 1000 or value == round(value):  # noqa: PLR2004 - digits behind the point would say nothing
        return f"{value:,.0f}"
    return f"{value:.3g}"


def interval_text(mean: float, half_width: float) -> str:
    """A mean and half the width of its interval, both in one unit: 3.244M ± 0.461M. What is there by rounding
    alone is no width."""
    if math.isnan(mean) or half_width <= _ROUNDING * abs(mean):
        return number_text(mean)
    unit, letter = _unit_of(max(abs(mean), half_width))
    if letter:
        return f"{mean / unit:.4g}{letter} ± {half_width / unit:.3g}{letter}"
    return f"{number_text(mean)} ± {number_text(half_width)}"


def _unit_of(size: float) -> tuple[float, str]:
    """A million and more is written in a larger unit."""
    return next(((unit, letter) for unit, letter in _UNITS if size >= unit), (1.0, ""))
