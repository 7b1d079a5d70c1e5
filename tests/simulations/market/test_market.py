"""A simulated market: whole sessions of the node's machines, with exact money at the end."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.simulations.churn import Churn
from p2pnode.simulations.faults import Fault
from p2pnode.simulations.market.client import Clients
from p2pnode.simulations.market.economy import Economy
from p2pnode.simulations.market.host import Hosts
from p2pnode.simulations.market.ledger import Chain
from p2pnode.simulations.market.market import Market, MarketService
from p2pnode.simulations.runs import run
from p2pnode.simulations.scenario import load, with_size
from tests.simulations.market.stage import BUSY, market


def _spent(made: MarketService) -> int:
    first = made.parameters.economy.wallet
    return sum(first - made.chain.usdc(each.wallet) for each in made.client_profiles.values())


def _earned(made: MarketService) -> int:
    return sum(made.chain.earned(account) for account in made.chain.accounts)


def test_a_steady_market_answers_everybody_and_settles_to_the_unit() -> None:
    made = market(until_s=120.0)
    counts = made.counts
    assert counts["questions"] == counts["done"] > 10
    assert counts["SessionOpened"] == counts["SessionClosed"] > 3
    assert not made.chain.in_escrow
    disks = [each.disk for each in made.client_profiles.values()]
    signed = sum(bought.cost for disk in disks for bought in disk.bought.values())
    assert _spent(made) == _earned(made) == signed > 0
    outcomes = list(made.recorder.tables["sessions"]["cost"])
    assert sum(map(int, outcomes)) == signed


@pytest.mark.long
def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    one, again, other = (market(seed=seed, until_s=60.0).recorder for seed in (1, 1, 2))
    assert one.trace_hash == again.trace_hash
    assert one.tables_hash == again.tables_hash
    assert other.trace_hash != one.trace_hash


@pytest.mark.long
def test_the_order_of_hashes_changes_nothing() -> None:
    found = set()
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-m", "tests.simulations.market.stage"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(ran.stdout)
    assert len(found) == 1


def test_when_hosts_and_clients_crash_no_token_is_billed_twice_and_bills_stay_exact() -> None:
    churn = Churn(share=1.0, who="all", session_mean_s=40, downtime_mean_s=20)
    made = market(churn=churn, until_s=200.0)
    assert made.counts["failovers"] > 0
    assert made.counts["SessionOpened"] == made.counts["SessionClosed"]
    assert _spent(made) == _earned(made)


def test_sessions_whose_connection_breaks_go_on_where_they_were() -> None:
    made = market(faults=[Fault(kind="disconnect", at_s=10, share=1.0, factor=7)], until_s=120.0)
    assert made.counts["resumes"] > 0
    assert _spent(made) == _earned(made)


LEAVING = replace(BUSY, keep_hours=1.0, conversations_per_hour=120, turns_mean=1.0, think_s=1.0)


def test_sessions_that_are_left_cost_one_fee_for_many_conversations() -> None:
    kept = market(Market(hosts=Hosts(count=4, keep_hours=1.0), clients=LEAVING), until_s=60.0)
    closed = market(Market(hosts=Hosts(count=4), clients=LEAVING), until_s=60.0)
    assert kept.counts["sessions left"] > kept.counts["sessions taken up"] > 3
    assert kept.counts["done"] == kept.counts["questions"]
    assert kept.counts["SessionOpened"] < closed.counts["SessionOpened"]
    assert "sessions left" not in closed.counts
    assert kept.counts["SessionOpened"] == kept.counts["SessionClosed"]
    assert _spent(kept) == _earned(kept)
    assert sum(each.owner.left for each in kept.host_profiles.values()) == kept.counts["sessions left"]


@pytest.mark.long
def test_left_sessions_outlive_hosts_and_clients_that_crash() -> None:
    churn = Churn(share=1.0, who="all", session_mean_s=60, downtime_mean_s=20)
    made = market(Market(hosts=Hosts(count=4, keep_hours=1.0), clients=LEAVING), churn=churn, until_s=200.0)
    assert made.counts["sessions taken up"] > 0
    assert made.counts["SessionOpened"] == made.counts["SessionClosed"]
    assert _spent(made) == _earned(made)


def test_dear_gas_stops_opens_and_puts_settlements_off_until_it_is_cheap() -> None:
    chain = Chain(
        gas_gwei=0.001, gas_peak_gwei=0.05, gas_peak_at_s=60.0, gas_peak_s=400.0, ether_price=3_000_000_000
    )  # fmt: skip
    made = market(Market(hosts=Hosts(count=4), clients=BUSY, chain=chain), until_s=120.0)
    counts = made.counts
    assert counts["settlements postponed"] > 0
    assert counts["refused"] + counts.get("no_host", 0) > 0
    assert counts["SessionOpened"] == counts["SessionClosed"] > 0
    assert _spent(made) == _earned(made)
    assert made.world.now > chain.gas_peak_at_s + chain.gas_peak_s
    assert sum(each.owner.gas for each in made.host_profiles.values()) > 0


def test_hosts_of_several_models_find_the_peers_of_their_topics() -> None:
    clients = replace(BUSY, conversations_per_hour=0.0)
    made = market(Market(hosts=Hosts(count=12, models=4, dials=1), clients=clients), until_s=60.0)
    for node in made.host_nodes:
        model = made.host_profiles[node.number].model
        live = made.adverts[node.peer].book.live(made.hosts[node.peer].wall(), model)
        known = {entry.advert.peer for entry in live}
        others = {each.peer for each in made.host_nodes if made.host_profiles[each.number].model == model}
        assert known >= others - {node.peer}


def test_a_host_that_bills_too_much_is_found_out_and_others_answer() -> None:
    made = market(faults=[Fault(kind="over_billing", share=0.4)], until_s=100.0)
    table = made.recorder.tables["sessions"]
    frauds = [(fraud, found) for fraud, found in zip(table["fraud"], table["found"], strict=True) if fraud]
    assert frauds
    assert all(found for _, found in frauds)
    assert made.counts["done"] == made.counts["questions"]


@pytest.mark.long
def test_a_host_that_runs_another_model_is_not_noticed_by_its_tokens() -> None:
    made = market(faults=[Fault(kind="wrong_model", share=0.4)])
    table = made.recorder.tables["sessions"]
    frauds = [found for fraud, found in zip(table["fraud"], table["found"], strict=True) if fraud]
    assert frauds
    assert not any(frauds)


def _refused(made: MarketService, verdict: str) -> int:
    """How many adverts the books of clients refused for this."""
    return sum(made.adverts[client].book.counts[verdict] for client in made.clients)


def _most_are_answered_by_liars(made: MarketService) -> bool:
    hosts = list(map(int, made.recorder.tables["sessions"]["host"]))
    return sum(made.host_nodes[host].peer in made.dishonest for host in hosts) > len(hosts) / 2


def _some_are_half_as_fast(made: MarketService) -> bool:
    table = made.recorder.tables["sessions"]
    tokens, first_s, total_s = (
        map(float, table[each]) for each in ("tokens_out", "first_token_s", "total_s")
    )
    paces = [count / (end - begin) for count, begin, end in zip(tokens, first_s, total_s, strict=True)]
    return min(paces) < max(paces) / 2


STRUCK: dict[str, Callable[[MarketService], object]] = {
    "forged_adverts": lambda made: _refused(made, "forged"),
    "replayed_adverts": lambda made: _refused(made, "expired"),
    "sybil": lambda made: made.counts["failed: UnreachableError"],
    "eclipse": _most_are_answered_by_liars,
    "slow": _some_are_half_as_fast,
    "silent": lambda made: made.counts["no_host"],
}
"""What each does to a market, and nothing else in a steady one does."""


@pytest.mark.parametrize(
    "kind",
    [pytest.param(each, marks=() if each == "forged_adverts" else pytest.mark.long) for each in STRUCK],
)
def test_liars_do_not_keep_clients_from_answers(kind: str) -> None:
    fault = Fault(kind=kind, at_s=10, share=0.4, factor=3)  # type: ignore[arg-type]
    # An advert is replayed when it is 250 s old.
    made = market(faults=[fault], until_s=300.0 if kind == "replayed_adverts" else 120.0)
    assert STRUCK[kind](made)
    # Of eight clients, three know at first only the two hosts that are silent: they find nobody.
    assert made.counts["done"] >= (0.5 if kind == "silent" else 0.8) * made.counts["questions"]
    assert _spent(made) == _earned(made)


@pytest.mark.long
@pytest.mark.parametrize("until_s", [120.0, 300.0])
def test_a_steady_market_shows_nothing_of_what_liars_do(until_s: float) -> None:
    made = market(until_s=until_s)
    made.counts = {"no_host": 0, "failed: UnreachableError": 0, **made.counts}
    assert [kind for kind, struck in STRUCK.items() if struck(made)] == []


@pytest.mark.long
def test_hosts_that_undercut_one_another_end_near_their_cost_and_losers_leave() -> None:
    economy = Economy(
        pricing="undercut", reprice_interval_s=20, reprice_step=0.2, host_cost_per_hour=10**7, exit_after_s=60
    )
    made = market(Market(hosts=Hosts(count=5), clients=BUSY, economy=economy))
    assert min(each.prices.price_out for each in made.host_profiles.values()) < 0.5 * economy.price_out
    assert made.counts["exits"] > 0


@pytest.mark.long
def test_free_hosts_are_asked_first_and_cost_nothing() -> None:
    made = market(Market(hosts=Hosts(count=4), clients=BUSY, economy=Economy(free_share=0.5)), seed=10)
    free = {number for number, host in made.host_profiles.items() if not host.prices.price_out}
    assert len(free) == 2
    assert made.counts["done"] == made.counts["questions"]
    assert set(made.recorder.tables["sessions"]["host"]) == free
    assert "SessionOpened" not in made.counts
    assert _spent(made) == 0


def test_a_market_is_scaled_with_its_shares() -> None:
    found = Market(hosts=Hosts(count=20), clients=Clients(count=100)).scaled(12)
    assert (found.hosts.count, found.clients.count, found.nodes) == (2, 10, 12)
    assert found.hosts.bootstrap == 2
    with pytest.raises(ValueError, match="nodes is 1"):
        Market().scaled(1)
    with pytest.raises(ValueError, match="bootstrap"):
        Hosts(count=2, bootstrap=3)


@pytest.mark.parametrize("nodes", [20, pytest.param(60, marks=pytest.mark.long)])
def test_a_client_knows_three_hosts_within_seconds_of_its_first_search(nodes: int) -> None:
    scenario = replace(with_size(load("three-hosts"), nodes=nodes, duration_s=40.0), warmup_s=0.0)
    result = run(scenario)
    table = result.recorder.tables["nodes"]
    clients = [
        seconds
        for role, seconds in zip(table["role"], table["hosts_known_s"].values, strict=True)
        if role == "client"
    ]
    known = [each for each in clients if not math.isnan(each)]
    assert len(clients) / 3 <= len(known) < len(clients)  # the others asked nothing yet
    assert all(seconds > 0.01 for seconds in known)  # more than one round trip to the nearest
    figures = result.figures
    assert figures["hosts_known_p50_s"] is not None
    assert figures["hosts_known_p50_s"] < 2
    assert figures["hosts_known_p95_s"] is not None
    assert figures["hosts_known_p95_s"] < 5
