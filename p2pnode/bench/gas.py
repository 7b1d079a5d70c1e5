"""``gas.*``: what a session costs on a chain, and how many tokens pay for it.

Measured on eth-tester in this process, and through JSON-RPC on anvil where there is one (the dearer counts).
The token is our double of USDC; what Circle's own takes more (see ``chain/gas.py``) is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.bench.figure import compared
from p2pnode.bench.options import GAS_DEFAULTS, BenchOptions, GasOptions, Take
from p2pnode.chain.dev.gas import REAL_TOKEN_GAS, GasFigure, measure
from p2pnode.chain.dev.rpc_chain import RpcChain, running_anvil
from p2pnode.money import gwei_text, usdc_text
from p2pnode.payments.gas_budget import break_even_tokens, session_fee_for

ANVIL_PLACE: Final = Path("build", "anvil", "package", "bin", "anvil")
"""Where ``make test-anvil`` puts it."""

PREDECESSOR: Final = {
    "gas.open": 200_000, "gas.settle": 100_000, "gas.settle_in_10": 100_000, "gas.checkpoint": 30_000,
}  # fmt: skip
"""What the deployed predecessor documents; it has no batches. (Measured, it takes 415k, 247k and 270k.)"""


async def measure_gas(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    tester = _by_name(await trio.to_thread.run_sync(measure))
    program = options.gas.anvil or (ANVIL_PLACE if ANVIL_PLACE.exists() else None)
    anvil = {} if program is None else _by_name(await trio.to_thread.run_sync(_on_anvil, program))
    for name, before in PREDECESSOR.items():
        details = _details(name, tester, anvil)
        take(name, compared(_gas(name, tester, anvil), before, **details))
    session = _gas("gas.open", tester, anvil) + _gas("gas.settle", tester, anvil)
    before = PREDECESSOR["gas.open"] + PREDECESSOR["gas.settle"]
    usual = _tokens(session, GAS_DEFAULTS)
    take(
        "gas.break_even",
        compared(
            usual, _tokens(before, GAS_DEFAULTS),
            session_gas=session, gas_by_call=_others(tester), at=_prices(GAS_DEFAULTS),
            **_asked(session, options.gas),
        ),
    )  # fmt: skip


def _on_anvil(program: Path) -> tuple[GasFigure, ...]:
    with running_anvil(program) as url:
        return measure(make_chain=lambda secrets: RpcChain(url, secrets))


def _by_name(figures: tuple[GasFigure, ...]) -> dict[str, GasFigure]:
    return {figure.name: figure for figure in figures}


def _gas(name: str, tester: Mapping[str, GasFigure], anvil: Mapping[str, GasFigure]) -> int:
    measured = max(found[name].warm for found in (tester, anvil) if found)
    return measured + REAL_TOKEN_GAS.get(name, 0)


def _details(name: str, tester: Mapping[str, GasFigure], anvil: Mapping[str, GasFigure]) -> dict[str, Any]:
    more = REAL_TOKEN_GAS.get(name, 0)
    first = tester[name].first
    return {
        "eth_tester": tester[name].warm,
        "anvil": anvil[name].warm if anvil else None,
        "real_token_adds": more,
        "first_time": None if first is None else first + more,
    }


def _others(tester: Mapping[str, GasFigure]) -> dict[str, dict[str, int | None]]:
    """Calls without a promise, on the double."""
    return {
        name.partition(".")[2]: {"warm": figure.warm, "first_time": figure.first}
        for name, figure in tester.items()
        if name not in PREDECESSOR
    }


def _tokens(gas: int, prices: GasOptions) -> int:
    """Output tokens that pay for this gas where no session fee does. The default prices are not zero."""
    cost = session_fee_for(gas, prices.gas_price_wei, prices.ether_price)
    return break_even_tokens(cost, prices.price_out) or 0


def _prices(prices: GasOptions) -> dict[str, int]:
    return {
        "gas_price_wei": prices.gas_price_wei, "ether_price_usdc_units": prices.ether_price,
        "price_out": prices.price_out,
    }  # fmt: skip


def _asked(session: int, prices: GasOptions) -> dict[str, Any]:
    """The same at the user's prices, in numbers and in words."""
    cost = session_fee_for(session, prices.gas_price_wei, prices.ether_price)
    tokens = break_even_tokens(cost, prices.price_out)
    pays = "no number of free tokens pays" if tokens is None else f"{tokens} output tokens pay"
    note = (
        f"a session takes {session} gas: {usdc_text(cost)} at {gwei_text(prices.gas_price_wei)} per gas and "
        f"{usdc_text(prices.ether_price)} per ether; {pays} for it at {usdc_text(prices.price_out)} per "
        f"million, or a session fee of {usdc_text(cost)}"
    )
    return {
        "yours": {**_prices(prices), "session_cost_usdc_units": cost, "break_even_tokens": tokens},
        "notes": [note],
    }
