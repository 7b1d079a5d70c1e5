"""Counts of the fuzzing, printed at the end of the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from p2pnode.log import configure_logging
from tests.fuzz.mutations import SEED, Tally

_TALLIES: list[Tally] = []

Counted = Callable[[str], AbstractContextManager[Tally]]


@pytest.fixture(name="counted")
def _counted() -> Counted:
    """``with counted("target") as tally``: timed, and shown at the end."""

    @contextmanager
    def counted(target: str) -> Iterator[Tally]:
        tally, began = Tally(target), time.perf_counter()
        _TALLIES.append(tally)
        try:
            yield tally
        finally:
            tally.seconds = time.perf_counter() - began

    return counted


@pytest.fixture(autouse=True)
def _quiet(_as_in_the_field: None) -> None:
    """Each refused input is a line of log, of which only defects are of interest here."""
    configure_logging("error")
    logging.disable(logging.WARNING)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _TALLIES:
        terminalreporter.write_sep("-", f"fuzzing, FUZZ_SEED={SEED}")
        for tally in _TALLIES:
            terminalreporter.write_line(str(tally))
