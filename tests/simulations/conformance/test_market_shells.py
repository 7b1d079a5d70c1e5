"""Whole nodes and the simulation play one script of a market: adverts, lookups, sessions, payment, a crash.

Both see the same events in the same order and, but for adverts, within some microseconds of one another. The
times of adverts differ because no two meshes are alike.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from p2pnode.net.virtual_time import virtual_time
from tests.simulations.conformance.market_script import (
    ERAS_S,
    MarketOutcome,
    MarketScript,
    drawn,
    first_difference,
    time_differences,
)
from tests.simulations.conformance.simulated_market import SimulatedMarket
from tests.simulations.conformance.whole_nodes import WholeNodes

EXACT: Final = ("opened", "host", "tokens", "receipt", "signed", "paid", "answer", "settled")
EXACT_S: Final = 1e-5
"""What rounding adds up to: an engine counts time from the start of an answer, a simulated one does not."""
ADVERTS_MEDIAN_S: Final = 0.005
ADVERTS_MOST_S: Final = 1.5
"""By how much a new price is known sooner or later. A host that missed an advert on its way has it of a
heartbeat. When hosts that have just started find one another is left to chance."""


def of_whole_nodes(script: MarketScript, folder: Path) -> MarketOutcome:
    """Repeatable."""
    with virtual_time(seed=script.seed):
        return trio.run(WholeNodes(script, folder).run, clock=MockClock(autojump_threshold=0))


def compare(script: MarketScript, folder: Path) -> MarketOutcome:
    simulated, lived = SimulatedMarket(script).run(), of_whole_nodes(script, folder)
    assert first_difference(simulated, lived) == ""
    assert simulated.trace_hash == lived.trace_hash
    for kind in EXACT:
        differences = time_differences(simulated, lived, kind)
        assert max(map(abs, differences)) < EXACT_S, kind
    found = time_differences(simulated, lived, "advert", from_s=ERAS_S[0])
    adverts = [abs(each) for each in found]
    assert statistics.median(adverts) < ADVERTS_MEDIAN_S
    assert max(adverts) < ADVERTS_MOST_S
    return simulated


def check_all_was_there(script: MarketScript, outcome: MarketOutcome) -> None:
    """Nothing is compared that did not happen."""
    questions = [step for step in script.steps if step.kind == "ask"]
    assert [each[3][1] for each in outcome.of("answer")] == ["done"] * len(questions)
    assert {each[3][0] for each in outcome.of("opened")} == set(range(script.hosts, script.nodes))
    assert any(each[3][2] for each in outcome.of("host")), "no answer was taken over by another host"
    assert len(outcome.of("settled")) >= script.clients // 2  # those of the host that crashed linger


def test_twenty_whole_nodes_see_what_the_simulation_says(tmp_path: Path) -> None:
    script = drawn(1, 5, 15, questions=1)
    outcome = compare(script, tmp_path)
    check_all_was_there(script, outcome)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 5))
def test_they_do_so_over_three_questions_each(tmp_path: Path, seed: int) -> None:
    compare(drawn(seed, 6, 14, questions=3), tmp_path)


@pytest.mark.long
def test_a_hundred_whole_nodes_do_so_too(tmp_path: Path) -> None:
    script = drawn(1, 15, 85, questions=2)
    check_all_was_there(script, compare(script, tmp_path))


def test_an_engine_that_sends_its_tokens_on_a_little_later_is_seen() -> None:
    script = drawn(1, 3, 4, questions=1)
    usual, later = SimulatedMarket(script).run(), SimulatedMarket(script, flush_s=0.07).run()
    assert usual.trace_hash == SimulatedMarket(script).run().trace_hash != later.trace_hash
    assert "tokens of node" in first_difference(usual, later)
