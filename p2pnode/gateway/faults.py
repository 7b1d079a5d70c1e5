"""What goes wrong with a request, in one form; each API has its own words for it. Pure.

=======  ==================================================================================
status   meaning
=======  ==================================================================================
400      the request can't be answered as it stands
401      a key is missing, unknown or expired
402      money is missing: the message says what to fund, or which limit to raise
403      this key, or this web page, may not do that
404      no such model, or no such address
408      the body did not come in time
413      the body is too large
415      the body is no JSON
429      too many requests, or the key's day is used up: ``Retry-After`` says when to come back
500      a defect of ours, which the log explains
502      a host broke the protocol, or was lost
503      no host can answer now: the message says why
=======  ==================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pnode.errors import (
    BudgetError,
    BudgetReason,
    ChainError,
    ConfigError,
    EngineError,
    LocalError,
    NoHostError,
    P2PNodeError,
    RefusedError,
    RemoteError,
    UnpaidError,
    WireCode,
)

KeyFault: TypeAlias = Literal["missing", "invalid", "expired", "budget", "model", "rate"]
_KEY_STATUS: Final[dict[KeyFault, int]] = {
    "missing": 401,
    "invalid": 401,
    "expired": 401,
    "budget": 402,
    "model": 403,
    "rate": 429,
}
_BUDGET_STATUS: Final[dict[BudgetReason, int]] = {
    "expired": 401,
    "revoked": 401,
    "model": 403,
    "price": 403,
    "day": 429,
    "total": 402,
}
"""Where it doesn't help to wait."""
_WIRE: Final[dict[WireCode, tuple[int, str]]] = {
    "model_not_available": (503, "no_host"),
    "capacity": (503, "capacity"),
    "context_overflow": (400, "context_length_exceeded"),
    "payment_required": (402, "payment_required"),
    "rate_limited": (429, "rate_limit_exceeded"),
    "bad_request": (400, "invalid_request"),
    "stalled": (503, "stalled"),
    "shutting_down": (503, "no_host"),
    "internal": (502, "host_failed"),
    "in_use": (503, "in_use"),
}
RETRY_S: Final = 5.0
"""When to ask again where no host said it."""

KEY_FAULT: Final = "key_"
"""How the codes begin of what a key does not allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a request has no answer. ``param`` is the field of the request that is to blame, as a path."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class FaultError(Exception):
    """Ends a request with a fault."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.fault = Fault(
            status=status, code=code, message=message, param=param, retry_after_s=retry_after_s
        )


class KeyRefusedError(LocalError):
    """A key may not do what was asked. ``retry_after_s``: when it may."""

    def __init__(self, reason: KeyFault, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason: KeyFault = reason
        self.retry_after_s = retry_after_s


def bad_request(message: str, param: str | None = None) -> FaultError:
    """A request that can't be answered as it stands."""
    return FaultError(400, "invalid_request", message, param=param)


def fault_of(error: P2PNodeError) -> Fault:
    """An error of the package as a fault."""
    match error:
        case BudgetError(reason=budget, retry_after_s=wait_s):
            status = _BUDGET_STATUS[budget] if wait_s is None else 429
            return Fault(status=status, code=f"{KEY_FAULT}{budget}", message=str(error), retry_after_s=wait_s)
        case KeyRefusedError(reason=reason, retry_after_s=wait_s):
            code = f"{KEY_FAULT}{reason}"
            return Fault(status=_KEY_STATUS[reason], code=code, message=str(error), retry_after_s=wait_s)
        case RefusedError(code=code, retry_after_s=wait_s):
            status, name = _WIRE[code]
            if wait_s is None and status in (429, 503):
                wait_s = RETRY_S
            return Fault(status=status, code=name, message=str(error), retry_after_s=wait_s)
        case UnpaidError():
            return Fault(status=402, code="payment_required", message=str(error))
        case NoHostError():
            return Fault(status=503, code="no_host", message=str(error), retry_after_s=RETRY_S)
        case RemoteError():
            return Fault(status=502, code="host_failed", message=str(error))
        case EngineError(code=code):
            status, name = _WIRE[code]
            return Fault(status=status, code=name, message=str(error))
        case _:
            return _local(error)


def _local(error: P2PNodeError) -> Fault:
    # Here: whoever pays nothing need not load what knows of money.
    from p2pnode.payments.spending import FundsError, SpendingLimitError

    match error:
        case FundsError() | SpendingLimitError():
            return Fault(status=402, code="insufficient_funds", message=str(error))
        case ChainError():
            return Fault(status=503, code="chain_unavailable", message=str(error), retry_after_s=RETRY_S)
        case ConfigError():
            return Fault(status=400, code="invalid_request", message=str(error))
        case _:
            return Fault(status=500, code="internal", message=str(error))
