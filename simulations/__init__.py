"""Networks of thousands of nodes, with the machines and decisions of the node on a clock of their own.

``run`` runs a scenario once, ``sweep`` at many points; ``load`` reads one of the library or of a file. See
``docs/simulations.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pnode.simulations.runs import run
    from p2pnode.simulations.scenario import Scenario, load
    from p2pnode.simulations.sweeps import sweep

__all__ = ["Scenario", "load", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: who wants one model need not load them all."""
    from importlib import import_module

    places = {"Scenario": "scenario", "load": "scenario", "run": "runs", "sweep": "sweeps"}
    if name not in places:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{places[name]}"), name)
