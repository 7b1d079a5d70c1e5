"""Details and retry times are cut to what their fields hold."""

from __future__ import annotations

import pytest

from p2pnode.protocols.inference.messages import (
    DETAIL_MAX,
    RETRY_MAX_S,
    detail_of,
    retry_of,
)


@pytest.mark.parametrize("text", ["", "plain", "é" * 600, "x" * 511 + "é", "\ud800" * 9])
def test_a_detail_fits_the_wire(text: str) -> None:
    assert len(detail_of(text).encode()) <= DETAIL_MAX


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [(None, None), (0, 0.0), (2.5, 2.5), (-1, None), (float("nan"), None), (float("inf"), RETRY_MAX_S)],
)
def test_a_retry_time_fits_the_wire(seconds: float | None, sent: float | None) -> None:
    assert retry_of(seconds) == sent
