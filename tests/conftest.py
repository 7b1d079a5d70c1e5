"""What every test shares."""

from __future__ import annotations

import signal
import sys

import pytest
from hypothesis import settings

from p2pnode.log import configure_logging
from tests.examples import LONG
from tests.real_sleeps import forbid_real_sleeps

PYTHONS_OWN_LIMIT = 1000
# No example has a deadline: how long one takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.register_profile(LONG, deadline=None)
settings.load_profile("untimed")
# Under nohup this process ignores SIGHUP, and each program that a test starts would ignore it, too: a host
# that is to outlive its terminal does. Tests of a terminal that is closed would wait in vain.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
forbid_real_sleeps()


@pytest.fixture(autouse=True)
def _as_in_the_field() -> None:
    """A user's terminal shows warnings and worse; and libraries of tests raise Python's recursion limit."""
    configure_logging("warning")
    sys.setrecursionlimit(PYTHONS_OWN_LIMIT)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``make test-circle`` tries the contracts with the real token."""
    parser.addoption("--circle", metavar="DIRECTORY", help="the unpacked npm package of Circle's USDC")
