"""Means over repeats, with confidence intervals. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_T_95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Quantiles of Student's t at 0.975 for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2)."""
_Z_95: Final = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over runs and half the width of its 95% confidence interval, which one run does not have."""

    mean: float
    half_width: float | None
    runs: int

    @property
    def low(self) -> float:
        """The lower end of the interval; the mean where there is none."""
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + (self.half_width or 0.0)


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """The mean of what was measured, by Student's t; None where nothing was. None and NaN are left out."""
    kept = [float(value) for value in values if value is not None and not math.isnan(value)]
    if not kept:
        return None
    middle = math.fsum(kept) / len(kept)
    if len(kept) == 1:
        return Estimate(middle, None, 1)
    deviation = math.sqrt(math.fsum((value - middle) ** 2 for value in kept) / (len(kept) - 1))
    return Estimate(middle, t_quantile(len(kept) - 1) * deviation / math.sqrt(len(kept)), len(kept))


def t_quantile(freedom: int) -> float:
    """Student's t at 0.975. Above 30 degrees of freedom by Fisher's expansion, right to 0.0005."""
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    z = _Z_95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
