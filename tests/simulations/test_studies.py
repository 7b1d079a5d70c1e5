"""The studies of the document: their smaller points come out as it says, by its commands."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

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


@pytest.mark.long
def test_three_hosts_are_known_as_soon_as_the_document_says() -> None:
    assert "p2pnode simulate three-hosts --sweep nodes=50,100,200,400 --repeat 3 --out three" in TEXT
    found = sweep(load("three-hosts"), {"nodes": [50, 100]}, seeds=(1, 2, 3))
    medians = found.groupby("nodes")["hosts_known_p50_s"].mean()
    for nodes, begins in ((50, "50 | 10"), (100, "100 | 20")):
        assert medians[nodes] == pytest.approx(row("Time to three", begins)[0], abs=0.1)


@pytest.mark.long
def test_honest_hosts_stay_in_books_as_the_document_says() -> None:
    result = run(load("book-under-sybils"), 1)
    curve = result.measures.curves["sample_hosts_in_book_share"]
    last = [100 * y for x, y in zip(curve.x, curve.y, strict=True) if x >= 540 and not math.isnan(y)]
    assert math.fsum(last) / len(last) == pytest.approx(row("A book under", "4,096 | 30%")[0], abs=4)
