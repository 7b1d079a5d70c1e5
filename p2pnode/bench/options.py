"""How thoroughly to measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from p2pnode.bench.figure import Measurement

PAIRS_DEFAULT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """``quick`` is for a look, not for a verdict: few repetitions, and the scripted engine throughout."""

    scratch: Path
    """A folder for this run's data dirs; its maker removes it."""
    pairs: int = PAIRS_DEFAULT
    quick: bool = False


Take: TypeAlias = Callable[[str, Measurement], None]
"""Called with a goal's name and what was found, as soon as it is."""
