"""The options of a bench run, and where a suite puts what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from p2pnode.bench.figure import Measurement

PAIRS_DEFAULT = 10
GOSSIP_BYTES = 300
"""Of a message whose content doesn't matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GasOptions:
    """For the gas suite. ``ether_price`` is USDC units an ether, ``price_out`` per million tokens."""

    anvil: Path | None = None
    gas_price_wei: int = 10_000_000
    ether_price: int = 3_000_000_000
    price_out: int = 2_000_000


GAS_DEFAULTS = GasOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """``quick`` is for a look, not for a verdict: few repetitions, and the scripted engine throughout."""

    scratch: Path
    """A folder for this run's data dirs; its maker removes it."""
    pairs: int = PAIRS_DEFAULT
    quick: bool = False
    gas: GasOptions = GAS_DEFAULTS
    model: str = ""
    """Of the exllama suite: the folder that it measures."""
    device: str = "cuda"
    """Of the exllama suite: ``cpu`` for its CPU form, to try the suite itself."""


Take: TypeAlias = Callable[[str, Measurement], None]
"""Called with a goal's name and what was found, as soon as it is."""
