"""The studies of the document: their smaller points come out as it says, by its commands."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest

from p2pnode.simulations.result import Result
from p2pnode.simulations.runs import run
from p2pnode.simulations.scenario import load, with_size
from p2pnode.simulations.sweeps import sweep

TEXT = (Path(__file__).parents[2] / "docs" / "simulations.md").read_text()


def row(study: str, begins: str) -> list[float]:
    """The first number in each cell of a row of a study's table, after the cells that it begins with."""
    _, text = TEXT.split(f"### {study}")
    found = re.search(rf"^\| {re.escape(begins)} \|(.*)\|$", text, re.MULTILINE)
    assert found is not None, begins
    cells = [re.search(r"[\d,]+(?:\.\d+)?", cell) for cell in found[1].split("|")]
    return [float(each[0].replace(",", "")) for each in cells if each is not None]


@pytest.mark.long
@pytest.mark.parametrize("nodes", [100, 1000])
def test_a_topic_carries_as_many_adverts_of_any_number_of_hosts_as_the_document_says(nodes: int) -> None:
    assert "p2pnode simulate adverts-at-scale --sweep nodes=100,1000,10000 --out adverts" in TEXT
    figures = run(with_size(load("adverts-at-scale"), nodes=nodes), 1).figures
    told = row("Adverts of any number", f"{nodes:,}")[:2]
    found = [figures[f"adverts_{what}_per_s_mean"] for what in ("published", "taken")]
    assert found == pytest.approx(told, rel=0.05)
    assert all(rate is not None and rate <= 5 for rate in found)


def over_time(result: Result, name: str, after_s: float, until_s: float) -> float:
    """The mean of a sample between two times."""
    table = result.recorder.tables["samples"]
    rows = zip(table["at_s"].values, table["name"], table["value"].values, strict=True)
    found = [value for at_s, each, value in rows if each == name and after_s < at_s <= until_s]
    return math.fsum(found) / len(found)


@pytest.mark.long
def test_hosts_that_start_at_once_come_down_as_soon_as_the_document_says() -> None:
    assert "p2pnode simulate adverts-cold-start --sweep nodes=100,1000,10000 --out cold-start" in TEXT
    result = run(load("adverts-cold-start"), 1)
    ends_s = [0, 60, 300, 900, 1800, 3600, 7200]
    for what in ("published", "taken"):
        told = row("All hosts start at once", f"1,000 | {what}")
        found = [over_time(result, f"adverts_{what}_per_s", *each) for each in pairwise(ends_s)]
        assert found == pytest.approx(told, rel=0.03, abs=0.06)


@pytest.mark.long
def test_a_long_flood_takes_hosts_out_of_books_as_the_document_says() -> None:
    assert "p2pnode simulate adverts-flood --out flood" in TEXT
    result = run(load("adverts-flood"), 1)
    rows = {"before": 0, "2 h into it": 2, "6 h into it": 6, "12 h into it": 12, "1 h after it": 13}
    for begins, hours in {**rows, "3 h after it": 15, "5 h after it": 17}.items():
        published, held = row("A flood of half a day", begins)
        end_s = 3600.0 * (1 + hours)
        assert over_time(result, "adverts_published_per_s", end_s - 1800, end_s) == pytest.approx(
            published, rel=0.05, abs=0.001
        )
        share = 100 * over_time(result, "hosts_in_book_share", end_s - 1800, end_s)
        assert share == pytest.approx(held, abs=1)


@pytest.mark.long
def test_three_hosts_are_known_as_soon_as_the_document_says() -> None:
    assert "p2pnode simulate three-hosts --sweep nodes=50,100,200,400 --repeat 3 --out three" in TEXT
    found = sweep(load("three-hosts"), {"nodes": [50, 100]}, seeds=(1, 2, 3))
    medians = found.groupby("nodes")["hosts_known_p50_s"].mean()
    for nodes, begins in ((50, "50 | 10"), (100, "100 | 20")):
        assert medians[nodes] == pytest.approx(row("Time to three", begins)[0], abs=0.1)


@pytest.mark.long
def test_honest_hosts_stay_in_books_as_the_document_says() -> None:
    held = 100 * over_time(run(load("book-under-sybils"), 1), "hosts_in_book_share", 535, 600)
    assert held == pytest.approx(row("A book under", "4,096 | 30%")[0], abs=4)


@pytest.mark.long
def test_nothing_is_lost_where_nodes_are_up_for_half_of_the_time_and_some_is_below() -> None:
    assert "--sweep churn.downtime_mean_s=3200,14400,28800,57600,115200" in TEXT
    found = sweep(load("lost-machines"), {"churn.downtime_mean_s": [28800.0, 115200.0]}, seeds=[1, 2], jobs=2)
    whole = found.groupby("churn.downtime_mean_s")["recovered_whole"].mean()
    assert 100 * whole[28800.0] == row("A lost machine", "50%")[0]
    assert 100 * whole[115200.0] == pytest.approx(row("A lost machine", "20%")[0], abs=10)
    assert set(found["turns_kept"]) == {1.0}
    assert found["kept_after_max_s"].max() < 13
