"""A session's gas stays under its target."""

from __future__ import annotations

from p2pnode.chain.dev.gas import REAL_TOKEN_GAS, Token, measure

PREDECESSOR = {"gas.open": 200_000, "gas.settle": 100_000, "gas.settle_in_10": 100_000}


def test_gas_targets_hold_with_room_for_the_real_token_and_its_proxy(usdc_on: Token | None) -> None:
    figures = {figure.name: figure for figure in measure(usdc_on)}
    assert all(figure.holds for figure in figures.values())
    for name, more in REAL_TOKEN_GAS.items():
        target = figures[name].target
        assert target is not None
        assert figures[name].warm + (more if usdc_on is None else 0) <= target
    assert all(figures[name].warm < gas for name, gas in PREDECESSOR.items())


def test_first_times_cost_more_and_are_told_apart() -> None:
    for figure in measure():
        if figure.first is not None and figure.name in {"gas.open", "gas.settle", "gas.withdraw"}:
            assert figure.first > figure.warm
