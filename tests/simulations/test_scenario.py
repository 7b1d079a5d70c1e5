"""Scenarios: read, written, changed; and what is said of one that can't be."""

from __future__ import annotations

import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import ConfigError
from p2pnode.simulations.gossip import Gossip
from p2pnode.simulations.links import Links
from p2pnode.simulations.scenario import (
    Scenario,
    as_toml,
    changed,
    load,
    names,
    replay_command,
    scenario_from,
    with_size,
)

SMALL = Scenario(name="small", nodes=20, gossip=Gossip(dials=5), links=Links(jitter_share=0.3))


def test_a_scenario_that_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(as_toml(SMALL))
    assert load(file) == SMALL
    assert load(str(file)) == SMALL


@pytest.mark.parametrize("name", names())
def test_a_scenario_travels_to_another_process_as_its_values(name: str) -> None:
    sent = pickle.dumps(load(name))
    assert pickle.loads(sent) == load(name)
    # Records of compiled modules can be pickled, and not be unpickled.
    assert b"simulations.market.engines" not in sent
    assert b"gossipsub" not in sent


def test_a_file_without_a_name_has_the_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("nodes = 7\n[links]\nloss_share = 0.01\n")
    found = load(file)
    assert (found.name, found.nodes, found.links.loss_share) == ("mine", 7, 0.01)


def test_a_file_that_is_wrong_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    for text, said in (
        ("[links]\njiter_share = 1", "links.jiter_share is no parameter: did you mean links.jitter_share?"),
        ("nodes = 'many'", "nodes must be a whole number, not 'many'"),
        ("nodes = ", "not valid TOML"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ConfigError) as raised:
            load(file)
        assert str(raised.value).startswith(f"{file}: ")
        assert said in str(raised.value)
    with pytest.raises(ConfigError, match=r"there is no file .*none\.toml: `p2pnode simulate list` shows"):
        load(tmp_path / "none.toml")


def test_a_name_that_the_library_does_not_have_is_told_how_files_are_named() -> None:
    with pytest.raises(ConfigError, match=r"there is no scenario 'mine'.*write \./mine\.toml"):
        load("mine")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nodes": 1}, "nodes is 1: it must be from 2 to 1,000,000"),
        ({"nodes": -5}, "nodes is -5"),
        ({"duration_s": -1.0}, "duration_s is -1.0: it must be above 0"),
        ({"duration_s": float("inf")}, "duration_s is inf"),
        ({"warmup_s": 100.0, "cooldown_s": 20.0}, "nothing would be measured"),
        ({"name": " "}, "name is empty"),
        ({"nodes": 10, "gossip": {"dials": 10}}, "gossip.dials is 10: of 10 nodes a node can dial 9 others"),
        ({"nodes": 10, "dht": {"contacts": 30}}, "dht.contacts is 30: of 10 nodes a node can dial 9 others"),
        ({"gossip": {"publishers": 101}}, "gossip.publishers is 101: there are only 100 nodes"),
        ({"nat": {"public_share": 0.5}}, "nat: "),
    ],
)
def test_a_scenario_that_cannot_be_says_which_value_and_why(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        scenario_from({"name": "x", **values})
    assert said in str(raised.value)


def test_values_are_changed_by_path() -> None:
    assert changed(SMALL, {"links.jitter_share": "0.5"}).links == Links(jitter_share=0.5)
    assert changed(SMALL, {"gossip": "none"}).gossip is None
    with pytest.raises(ConfigError, match=r"jitter is no parameter"):
        changed(SMALL, {"jitter": "0.5"})


def test_the_size_is_changed_with_the_same_checks() -> None:
    assert with_size(SMALL, nodes=30, duration_s=7.0) == Scenario(
        name="small", nodes=30, duration_s=7.0, gossip=Gossip(dials=5), links=Links(jitter_share=0.3)
    )
    assert with_size(SMALL) == SMALL
    with pytest.raises(ConfigError, match=r"gossip\.dials is 5: of 5 nodes"):
        with_size(SMALL, nodes=5)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"links.jitter_share": 0.25},
        {"gossip": "none"},
        {"nat.public_share": "1"},
        {"description": 'it\'s "new"'},
    ],
)
def test_the_command_that_runs_it_again_makes_the_same_scenario(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    file = tmp_path / "a file.toml"
    file.write_text(as_toml(SMALL))
    wanted = changed(SMALL, values)
    words = shlex.split(replay_command(wanted, 7, str(file)))
    assert words[:5] == ["p2pnode", "simulate", str(file), "--seed", "7"]
    assert words[5::2] == ["--set"] * len(words[5::2])
    assert changed(load(words[2]), dict(each.split("=", 1) for each in words[6::2])) == wanted


def test_a_market_keeps_its_shares_at_another_size() -> None:
    churn = load("churn")
    for smaller in (with_size(churn, nodes=25), changed(churn, {"nodes": "25"})):
        assert smaller.market is not None
        assert (smaller.nodes, smaller.market.hosts.count, smaller.market.clients.count) == (25, 5, 20)
    with pytest.raises(ConfigError, match="nodes is 1: "):
        with_size(churn, nodes=1)
    with pytest.raises(ConfigError, match="nodes is 50: the market has 3 hosts and 40 clients"):
        changed(churn, {"market.hosts.count": "3"})


def test_a_fault_after_the_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"faults\.0\.at_s is 200: the run ends before, at 120 s"):
        changed(SMALL, {"duration_s": "120", "faults": "[{kind = 'crash', who = 'all', at_s = 200}]"})


@pytest.mark.parametrize("name", names())
def test_each_scenario_of_the_library_says_in_a_line_what_it_shows(name: str) -> None:
    assert 20 < len(load(name).description) <= 130
