"""Checks of parameter records: a value that can't be is refused with the name of its field.

A record is a frozen dataclass that lives beside its model (``Links``, ``Nat``, ``Cpu`` …). A ``Scenario`` is
made of them.
"""

from __future__ import annotations

import math


def require_shares(record: object, *names: str) -> None:
    """Each of these fields is between 0 and 1. Raises ``ValueError``."""
    _require(record, names, 0.0, 1.0, "a share is between 0 and 1")


def require_positive(record: object, *names: str) -> None:
    """Each is above 0, and finite. Raises ``ValueError``."""
    _require(record, names, math.ulp(0.0), math.inf, "it must be above 0")


def require_not_negative(record: object, *names: str) -> None:
    """Each is 0 or more, and finite. Raises ``ValueError``."""
    _require(record, names, 0.0, math.inf, "it must not be negative")


def require_order(record: object, low: str, high: str) -> None:
    """The field ``low`` is not above the field ``high``. Raises ``ValueError``."""
    least, most = getattr(record, low), getattr(record, high)
    if least > most:
        msg = f"{low} is {least} and {high} is {most}: {low} must not be above {high}"
        raise ValueError(msg)


def require_total(record: object, total: float, *names: str) -> None:
    """These fields add up to ``total``, as far as rounding lets them. Raises ``ValueError``."""
    found = sum(getattr(record, name) for name in names)
    if not math.isclose(found, total, abs_tol=1e-6):
        msg = f"{', '.join(names)} add up to {found:g}: they must add up to {total:g}"
        raise ValueError(msg)


def _require(record: object, names: tuple[str, ...], least: float, most: float, rule: str) -> None:
    for name in names:
        value = getattr(record, name)
        if not math.isfinite(value):
            msg = f"{name} is {value}: it must be a finite number"
            raise ValueError(msg)
        if not least <= value <= most:
            msg = f"{name} is {value}: {rule}"
            raise ValueError(msg)
