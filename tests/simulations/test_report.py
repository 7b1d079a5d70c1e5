"""Reports: a page that needs nothing else, and text whose head everybody looks for."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from p2pnode.simulations.metrics import Curve, Measures
from p2pnode.simulations.plots import Axes, Series, bar_plot, interval_text, line_plot, number_text
from p2pnode.simulations.report import About, Group, analysis_text, comparison_text, report_html

ABOUT = About("steady <1>", "What & why.", {"seed": "7"}, 'name = "steady"')
SHARES = tuple(place / 100 for place in range(101))


def one(scale: float = 1.0, *, reliability: float = 1.0) -> Measures:
    curves = {
        "delivery": Curve("cdf", "Delivery", "seconds", "share", tuple(scale * s for s in SHARES), SHARES),
        "hops": Curve("bars", "Hops", "hops", "share", (0.0, 1.0), (0.25, 0.75), ("1", "2")),
        "success": Curve("line", "Success", "time", "share", (0.0, 1.0, 2.0), (1.0, math.nan, 0.5)),
        "income": Curve("lorenz", "Income", "hosts", "income", (0.0, 0.5, 1.0), (0.0, 0.2, 1.0)),
    }
    figures = {"reliability": reliability, "duplicates_per_delivery": 2.5 * scale, "never": None}
    figures |= {f"latency_{word}_s": 0.1 * scale for word in ("mean", "p50", "p95", "p99", "max")}
    return Measures(figures, curves)


def plots(page: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


class Outside(HTMLParser):
    """What a page would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.extend(f"{tag} {name}" for name, _ in attrs if name in {"src", "href", "srcset", "action"})


def test_a_page_needs_no_other_file_and_shows_every_curve() -> None:
    page = report_html(ABOUT, [Group("", [one()])])
    assert Outside(page).found == []
    assert "http" not in page
    assert "url(" not in page
    assert len(plots(page)) == 4
    assert "<h1>steady &lt;1&gt;</h1>" in page
    assert "What &amp; why." in page
    assert "never" not in page


def test_a_curve_has_a_band_only_where_several_runs_are() -> None:
    alone, three = ([one(scale) for scale in scales] for scales in ((1.0,), (1.0, 1.2, 1.4)))
    assert report_html(ABOUT, [Group("", alone)]).count("<polygon") == 0
    page = report_html(ABOUT, [Group("", three)])
    assert page.count("<polygon") >= 1
    assert "95% confidence intervals" in page
    assert "2.5 ± " not in page
    assert "3 ± 1.24" in page  # 2.5, 3 and 3.5: 4.303 x 0.5 / sqrt(3)


def test_a_sweep_over_one_parameter_has_its_figures_over_it() -> None:
    groups = [Group(f"n = {n}", [one(n), one(n + 0.5)], {"n": n}) for n in (1, 2, 3)]
    page = report_html(ABOUT, groups)
    assert "latency p95 s over n" in page
    assert page.count("n = 2") >= 5  # in the table and in each legend


def test_more_points_than_colours_are_in_the_table_and_said_of_the_plots() -> None:
    page = report_html(ABOUT, [Group(f"n = {n}", [one()], {"n": n}) for n in range(11)])
    assert "first 8 of 11 points" in page
    assert "<th>n = 10</th>" in page


def test_the_head_of_the_analysis_is_reliability_latency_and_duplicates() -> None:
    lines = analysis_text(ABOUT, [Group("", [one(reliability=0.9987)])]).splitlines()
    assert lines[0] == "steady <1>"
    assert lines[2:5] == [
        "reliability  99.87% of deliveries",
        "latency      mean 100 ms, p50 100 ms, p95 100 ms, p99 100 ms, max 100 ms",
        "duplicates   2.5 copies a delivery",
    ]
    assert lines[-1] == "seed  7"


def test_without_messages_the_head_says_so() -> None:
    lines = analysis_text(ABOUT, [Group("", [Measures({}, {})])]).splitlines()
    assert lines[2:5] == [
        "reliability  no message was published",
        "latency      no message was delivered",
        "duplicates   none counted",
    ]


def test_two_runs_side_by_side_say_by_how_much_they_differ() -> None:
    a, b = Group("a", [one(1.0)]), Group("b", [one(1.5)])
    rows = {line.split()[0]: line.split()[1:] for line in comparison_text([a, b]).splitlines()}
    assert rows["duplicates_per_delivery"] == ["2.5", "3.75", "+50.0%"]
    assert rows["reliability"] == ["1", "1", "same"]


def test_a_difference_within_the_intervals_is_said_to_be_none_that_is_sure() -> None:
    a, b = Group("a", [one(1.0), one(1.4)]), Group("b", [one(1.1), one(1.5)])
    assert "(intervals overlap)" in comparison_text([a, b])
    far = Group("b", [one(90.0), one(90.1)])
    assert "(intervals overlap)" not in comparison_text([Group("a", [one(1.0), one(1.1)]), far])


def test_a_line_is_cut_where_nothing_was_measured() -> None:
    plot = line_plot([Series("", (0, 1, 2, 3, 4), (1, 2, math.nan, 3, 4))], Axes("x", "y"))
    assert plot.count("<polyline") == 2


@pytest.mark.parametrize("values", [(), (0.0,), (5.0, 5.0), (1e-9, 1e12), (-3.0, 3.0), (math.nan,)])
def test_any_values_make_a_plot_whose_points_are_on_the_paper(values: tuple[float, ...]) -> None:
    places = tuple(float(place) for place in range(len(values)))
    for plot in (
        line_plot([Series("a <b>", places, values)], Axes("x", "y")),
        bar_plot([Series("a", places, values)], Axes("x", "y", [str(place) for place in places])),
    ):
        ET.fromstring(plot)
        assert "nan" not in plot
        assert "inf" not in plot


def test_ticks_are_round_numbers_around_the_values() -> None:
    plot = ET.fromstring(line_plot([Series("", (0.0, 10.0), (0.0, 0.93))], Axes("x", "y")))
    texts = [each.text for each in plot.iter("text")]
    assert texts[:6] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert texts[6:12] == ["0", "2", "4", "6", "8", "10"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (12.34, "12.3"), (1234.5, "1,234"), (5.6e6, "5.6M"), (7e9, "7G")],
)
def test_numbers_have_few_digits(value: float, text: str) -> None:
    assert number_text(value) == text


def test_points_that_are_decades_apart_are_on_a_logarithmic_axis() -> None:
    places = (100.0, 1000.0, 10_000.0)
    plot = ET.fromstring(
        line_plot([Series("", places, (1, 2, 3))], Axes("x", "y", x_by_decades=True), points=True)
    )
    xs = [float(each.get("cx", "")) for each in plot.iter("circle")]
    assert len(xs) == 3
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])
    assert {"100", "1,000", "10,000"} <= {each.text for each in plot.iter("text")}
    groups = [Group(f"nodes = {nodes}", [one()], {"nodes": nodes}) for nodes in (100, 1000, 10_000)]
    over = plots(report_html(ABOUT, groups))[0]
    xs = [float(each.get("cx", "")) for each in over.iter("circle")]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])


@pytest.mark.parametrize(
    ("mean", "half_width", "text"),
    [
        (3_244_000, 461_018, "3.244M ± 0.461M"),
        (120_000, 2_500_000, "0.12M ± 2.5M"),
        (21_050, 27_596, "21,050 ± 27,596"),
        (0.984, 1.27, "0.984 ± 1.27"),
        (10, 2.05e-14, "10"),
        (10, 0.0, "10"),
        (math.nan, 1.0, "none"),
    ],
)
def test_a_mean_and_its_interval_are_in_one_unit(mean: float, half_width: float, text: str) -> None:
    assert interval_text(mean, half_width) == text


def test_the_legend_has_the_colour_of_its_line() -> None:
    for labels in (["", "second"], ["first", "second"]):
        drawn = line_plot([Series(each, (0, 1), (0, 1)) for each in labels], Axes("x", "y"))
        (plot,) = plots(drawn)
        lines = [each.get("stroke") for each in plot.iter("polyline")]
        squares = [each.get("fill") for each in plot.iter("rect")]
        assert squares == [line for label, line in zip(labels, lines, strict=True) if label]


def test_the_band_of_a_share_stays_where_shares_are() -> None:
    runs = [one(), one()]
    runs[1].curves["success"] = Curve("line", "Success", "time", "share", (0.0, 1.0, 2.0), (0.0, 0.1, 1.0))
    page = report_html(ABOUT, [Group("", runs)])
    success = plots(page)[2]
    ticks = [float(each.text or "") for each in success.iter("text") if each.get("text-anchor") == "end"]
    assert (min(ticks), max(ticks)) == (0.0, 1.0)
