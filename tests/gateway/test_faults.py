"""Each error of the package has the status that programs act on."""

from __future__ import annotations

import pytest

from p2pnode.errors import (
    WIRE_CODES,
    ChainError,
    ConfigError,
    HostFault,
    NoHostError,
    P2PNodeError,
    RefusedError,
    StorageError,
    UnpaidError,
    UnreachableError,
)
from p2pnode.gateway.faults import KeyRefusedError, fault_of
from p2pnode.payments.spending import FundsError, SpendingLimitError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyRefusedError("missing", "x"), 401),
        (KeyRefusedError("invalid", "x"), 401),
        (KeyRefusedError("budget", "x"), 402),
        (KeyRefusedError("model", "x"), 403),
        (KeyRefusedError("rate", "x", retry_after_s=7), 429),
        (RefusedError("rate_limited", "x"), 429),
        (RefusedError("capacity", "x"), 503),
        (RefusedError("context_overflow", "x"), 400),
        (RefusedError("payment_required", "x"), 402),
        (UnpaidError("x"), 402),
        (FundsError("x"), 402),
        (SpendingLimitError("x"), 402),
        (NoHostError("x"), 503),
        (HostFault("x"), 502),
        (UnreachableError("x"), 502),
        (ChainError("x"), 503),
        (ConfigError("x"), 400),
        (StorageError("x"), 500),
    ],
)
def test_an_error_has_its_status_and_says_its_words(error: P2PNodeError, status: int) -> None:
    fault = fault_of(error)
    assert fault.status == status
    assert "x" in fault.message
    assert (fault.retry_after_s is not None) == (status in {429, 503})


def test_no_code_of_the_wire_is_without_a_status() -> None:
    for code in WIRE_CODES:
        assert fault_of(RefusedError(code, "x")).status >= 400  # type: ignore[arg-type]
