"""``bench gas``: the figures, the same through JSON-RPC, and what-if prices to the unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from typer.testing import CliRunner

from p2pnode.bench.figure import GOALS, Measurement
from p2pnode.bench.gas import ANVIL_PLACE, PREDECESSOR, measure_gas
from p2pnode.bench.options import BenchOptions, GasOptions
from p2pnode.chain.dev.devchain import open_dev_chain
from p2pnode.chain.dev.gas import REAL_TOKEN_GAS, measure
from p2pnode.chain.dev.rpc_chain import RpcChain, running_anvil
from p2pnode.cli.app import app
from p2pnode.errors import ConfigError
from p2pnode.payments.gas_budget import session_fee_for

NAMES = [goal.name for goal in GOALS if goal.suite == "gas"]


def figures_of(*flags: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = CliRunner().invoke(app, ["bench", "gas", "--json", *flags])
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    return done.exit_code, {figure["name"]: figure for figure in figures}


def test_every_goal_is_measured_and_holds_against_the_predecessor() -> None:
    code, figures = figures_of()
    assert (code, list(figures)) == (0, NAMES)
    for name, baseline in PREDECESSOR.items():
        figure = figures[name]
        assert figure["holds"], figure
        assert figure["baseline"] == baseline
        more = figure["details"]["real_token_adds"]
        measured = [figure["details"][chain] for chain in ("eth_tester", "anvil")]
        assert figure["value"] == max(gas for gas in measured if gas is not None) + more
        assert more == REAL_TOKEN_GAS.get(name, 0)
    assert figures["gas.open"]["details"]["first_time"] > figures["gas.open"]["value"]
    assert figures["gas.checkpoint"]["value"] == 0


def test_the_break_even_is_told_at_the_users_prices_beside_the_fixed_ones() -> None:
    code, figures = figures_of("--gas-gwei", "0.05", "--ether-usd", "4000.5", "--price-out", "0.6")
    figure = figures["gas.break_even"]
    assert (code, figure["holds"]) == (0, True)
    usual, yours = figure["details"]["at"], figure["details"]["yours"]
    assert usual == {
        "gas_price_wei": 10**7, "ether_price_usdc_units": 3_000_000_000, "price_out": 2_000_000
    }  # fmt: skip
    cost = session_fee_for(figure["details"]["session_gas"], 5 * 10**7, 4_000_500_000)
    assert yours["session_cost_usdc_units"] == cost
    tokens = yours["break_even_tokens"]
    earned = -(-tokens * 600_000 // 10**6)
    assert earned - earned // 10 >= cost
    assert tokens > figure["value"]


def test_a_free_hosts_session_is_never_paid_by_its_tokens() -> None:
    _, figures = figures_of("--price-out", "0")
    assert figures["gas.break_even"]["details"]["yours"]["break_even_tokens"] is None
    assert "no number of free tokens pays" in figures["gas.break_even"]["details"]["notes"][0]


def test_people_see_whole_numbers_and_the_break_even_in_words() -> None:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "gas"])
    assert done.exit_code == 0
    assert "160,000" in done.stdout
    assert "output tokens pay for it" in done.stdout


@pytest.mark.parametrize(
    "flags", [("--gas-gwei", "1e3"), ("--ether-usd", "-1"), ("--gas-gwei", "0.0000000001")]
)
def test_a_price_that_is_none_is_a_usage_error(flags: tuple[str, str]) -> None:
    done = CliRunner().invoke(app, ["bench", "gas", *flags])
    assert done.exit_code == 2
    assert flags[0] in done.stderr


async def test_through_json_rpc_the_gas_is_the_same() -> None:
    def fund(chain: RpcChain, account: bytes) -> None:
        chain.ask("dev_fund", "0x" + account.hex(), "0x0", hex(10**20))

    async with open_dev_chain() as dev:
        there = await trio.to_thread.run_sync(
            lambda: measure(make_chain=lambda secrets: RpcChain(dev.url, secrets, fund))
        )
    for ours, theirs in zip(measure(), there, strict=True):
        # Zero bytes in calldata are cheaper: addresses and times differ between the two.
        assert abs(ours.warm - theirs.warm) < 100, (ours, theirs)


async def test_a_program_that_is_no_anvil_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "anvil"
    taken: list[tuple[str, Measurement]] = []
    options = BenchOptions(scratch=tmp_path, gas=GasOptions(anvil=missing))
    with pytest.raises(ConfigError, match="--anvil"):
        await measure_gas(options, lambda *found: taken.append(found))
    assert taken == []
    missing.write_text("#!/bin/sh\nexit 1\n")
    missing.chmod(0o755)
    with pytest.raises(ConfigError, match="did not start"), running_anvil(missing):
        pass


@pytest.mark.skipif(not ANVIL_PLACE.exists(), reason="anvil is opt-in: make test-anvil fetches it")
def test_on_anvil_the_gas_is_the_same() -> None:
    _, figures = figures_of()
    for name in PREDECESSOR:
        details = figures[name]["details"]
        assert abs(details["anvil"] - details["eth_tester"]) < 100
