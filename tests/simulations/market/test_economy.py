"""Prices and owners."""

from __future__ import annotations

from random import Random

import pytest

from p2pnode.simulations.market.economy import Economy, Owner, Prices, first_prices, reprice


def test_hosts_begin_with_prices_around_the_median_and_some_are_free() -> None:
    economy = Economy(price_out=1_000_000, price_spread=0.3, free_share=0.25, cost_in=0, cost_out=0)
    random = Random(1)
    found = [first_prices(economy, random) for _ in range(4000)]
    assert sum(each.free for each in found) == pytest.approx(1000, rel=0.1)
    ordered = sorted(each.price_out for each in found if not each.free)
    assert ordered[len(ordered) // 2] == pytest.approx(1_000_000, rel=0.05)


def test_who_undercuts_goes_below_the_cheapest_step_by_step_and_never_below_cost() -> None:
    economy = Economy(pricing="undercut", reprice_step=0.1, cost_in=0, cost_out=300)
    asks = Prices(100, 1000, 5)
    assert reprice(economy, asks, others_out=[950, 2000], busy=0.5).price_out == 900
    assert reprice(economy, asks, others_out=[1500], busy=0.5) == asks
    assert reprice(economy, Prices(0, 310, 5), others_out=[200], busy=0.5).price_out == 300
    assert reprice(economy, asks, others_out=[], busy=0.9).price_out == 1100


def test_prices_by_load_rise_with_it_and_fall() -> None:
    economy = Economy(pricing="load", reprice_step=0.1, cost_in=0, cost_out=0)
    asks = Prices(100, 1000, 5)
    assert [reprice(economy, asks, others_out=[1], busy=busy).price_out for busy in (0.9, 0.5, 0.1)] == [
        1100,
        1000,
        900,
    ]


def test_free_hosts_and_fixed_prices_stay() -> None:
    free = Prices(0, 0, 0)
    assert reprice(Economy(pricing="load"), free, others_out=[1], busy=1.0) == free
    asks = Prices(100, 1000, 5)
    assert reprice(Economy(), asks, others_out=[1], busy=1.0) == asks


def test_an_owner_that_loses_money_leaves_after_a_while() -> None:
    economy = Economy(host_cost_per_hour=3600, exit_after_s=100, cost_in=0, cost_out=0)
    owner = Owner(0.0)
    assert not owner.leaves(economy, 10)
    assert not owner.leaves(economy, 100)
    assert owner.leaves(economy, 110)
    owner.settled(amount=1_000, session_fee=0)
    assert owner.earned == 900  # the treasury has a tenth
    assert owner.profit(economy, 110) == 790
    assert not owner.leaves(economy, 111)
    assert not Owner(0.0).leaves(Economy(host_cost_per_hour=10**6), 10**6)


def test_impossible_economies_are_named() -> None:
    with pytest.raises(ValueError, match="session_fee"):
        Economy(session_fee=10**9)
    with pytest.raises(ValueError, match="free_share"):
        Economy(free_share=1.5)
