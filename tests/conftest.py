"""What every test shares."""

from __future__ import annotations

import pytest

from p2pnode.log import configure_logging


@pytest.fixture(autouse=True)
def _quiet_logs() -> None:
    """As a user's terminal: warnings and worse only."""
    configure_logging("warning")
