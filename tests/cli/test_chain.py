"""``p2pnode chain``: a development chain as a process of its own, and what is asked of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.chain.dev.devchain import dev_account
from p2pnode.chain.profile import ADDRESS_FIELDS, load_profile, write_profile
from tests.chain.test_profile import CHECKSUMMED, profile
from tests.cli.support import Program, Ran, run, start
from tests.cli.terminal import Terminal

SOMEONE = "0x" + "07" * 20


class Dev:
    """A running ``chain dev``; its profile is in its data dir."""

    def __init__(self, program: Program, data_dir: Path) -> None:
        self.program, self.data_dir = program, data_dir

    def run(self, command: str, *arguments: object, stdin: str = "") -> Ran:
        return run("chain", command, *arguments, "--data-dir", self.data_dir, stdin=stdin)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("devchain")
    gifts = ["--fund", f"{SOMEONE}=2.5", "--fund-ether", f"{SOMEONE}=0.5"]
    flags = ["--port", 0, "--data-dir", folder / "data", *gifts]
    with start(folder, "dev", ["chain", "dev", *flags]) as program:
        program.wait_event("chain.ready")
        yield Dev(program, folder / "data")


def wallet_in(data_dir: Path) -> str:
    """A new wallet's address."""
    made = run("wallet", "new", "--random", "--show-phrase-to", data_dir.parent / f"{data_dir.name}.words",
               "--json", "--data-dir", data_dir)  # fmt: skip
    assert made.code == 0, made
    return str(made.events[-1]["address"])


def balances(dev: Dev, data_dir: Path) -> dict[str, Any]:
    shown = run("chain", "status", "--json", "--chain", dev.data_dir / "chain.toml", "--data-dir", data_dir)
    assert shown.code == 0, shown
    return shown.events[0]


def test_dev_writes_the_profile_it_serves_and_gives_what_was_asked(dev: Dev) -> None:
    ready = dev.program.wait_event("chain.ready")
    found = load_profile(Path(ready["profile"]))
    assert found.path == dev.data_dir / "chain.toml"
    assert found.rpc_urls == (ready["url"],)
    given = [event for event in dev.program.events if event["event"] == "funded"]
    assert [(event["usdc"], event["ether_wei"]) for event in given] == [(2_500_000, 0), (0, 5 * 10**17)]


def test_status_checks_the_profile_and_names_every_contract(dev: Dev) -> None:
    shown = dev.run("status")
    assert shown.code == 0, shown
    assert "the profile is right" in shown.out
    for name in ADDRESS_FIELDS:
        assert name in shown.out
    assert "wallet" not in shown.out


def test_the_faucet_fills_a_wallet_and_status_shows_it(dev: Dev, tmp_path: Path) -> None:
    address = wallet_in(tmp_path / "payer")
    gave = dev.run("faucet", address, "12.5", "--ether", "0.25", "--json")
    assert gave.events == [
        {"event": "funded", "address": address, "usdc": 12_500_000, "ether_wei": 25 * 10**16, "fab": 0}
    ]
    held = balances(dev, tmp_path / "payer")
    assert (held["wallet"], held["usdc"], held["ether_wei"]) == (address, 12_500_000, 25 * 10**16)
    assert (held["earned"], held["token"]) == (0, "USD Coin (version 2)")


def test_a_profile_that_does_not_fit_is_an_error_that_names_the_field(dev: Dev, tmp_path: Path) -> None:
    text = (dev.data_dir / "chain.toml").read_text().splitlines()
    wrong = [line if not line.startswith("fab") else f'fab = "{SOMEONE}"' for line in text]
    (tmp_path / "wrong.toml").write_text("\n".join(wrong))
    shown = dev.run("status", "--chain", tmp_path / "wrong.toml")
    assert shown.code == 1
    assert "fab: " + SOMEONE in shown.err


@pytest.mark.long
def test_deploy_shows_what_it_costs_asks_and_writes_a_profile_that_verifies(dev: Dev, tmp_path: Path) -> None:
    url = dev.program.wait_event("chain.ready")["url"]
    data_dir, out = tmp_path / "deployer", tmp_path / "mine.toml"
    flags = ["--rpc", url, "--treasury", CHECKSUMMED, "--profile-out", out, "--data-dir", data_dir]
    address = wallet_in(data_dir)

    poor = run("chain", "deploy", *flags, "--yes")
    assert poor.code == 1
    assert "send it ether first" in poor.err

    assert dev.run("faucet", address, "0", "--ether", "1").code == 0
    asked = run("chain", "deploy", *flags, stdin="yes\n")  # from a pipe nobody is asked
    assert (asked.code, out.exists()) == (2, False)
    assert "add --yes" in asked.err
    for answer in ("no", "", "yes please"):
        with Terminal(["chain", "deploy", *flags]) as terminal:
            terminal.answer("Type yes to go on:", answer)
            assert (terminal.end(), out.exists()) == (1, False)
            assert "nothing was done" in terminal.seen
    assert "JobMarketplace" in asked.err
    assert CHECKSUMMED in asked.err
    assert balances(dev, data_dir)["ether_wei"] == 10**18

    done = run("chain", "deploy", *flags, "--name", "mine", "--yes", "--json")
    assert done.code == 0, done
    offer, deployed = done.named("chain.offer")[0], done.named("contract")
    assert [event["name"] for event in deployed] == offer["contracts"]
    paid = 10**18 - balances(dev, data_dir)["ether_wei"]
    assert 0 < paid <= offer["cost_max_wei"]
    shown = run("chain", "status", "--json", "--chain", out, "--data-dir", data_dir).events[0]
    assert (shown["name"], shown["treasury"]) == ("mine", CHECKSUMMED)

    again = run("chain", "deploy", *flags, "--yes")
    assert again.code == 2
    assert "exists" in again.err


def test_deploy_takes_the_token_that_is_there(dev: Dev, tmp_path: Path) -> None:
    found = load_profile(dev.data_dir / "chain.toml")
    data_dir, out = tmp_path / "deployer", tmp_path / "mine.toml"
    assert dev.run("faucet", wallet_in(data_dir), "0", "--ether", "1").code == 0
    flags = ["--rpc", found.rpc_urls[0], "--profile-out", out, "--data-dir", data_dir, "--yes", "--json"]
    treasury = "0x" + dev_account(1).address.hex()
    nothing = run("chain", "deploy", *flags, "--treasury", treasury, "--usdc", SOMEONE)
    assert nothing.code == 1
    assert "no code" in nothing.events[-1]["message"]
    done = run("chain", "deploy", *flags, "--treasury", treasury, "--usdc", "0x" + found.usdc.hex())
    assert done.code == 0, done
    assert load_profile(out).usdc == found.usdc
    assert "USDC" not in done.named("chain.offer")[0]["contracts"]


def test_json_never_sends_without_yes(dev: Dev, tmp_path: Path) -> None:
    url = dev.program.wait_event("chain.ready")["url"]
    wallet_in(tmp_path / "deployer")
    flags = ["--rpc", url, "--treasury", CHECKSUMMED, "--data-dir", tmp_path / "deployer", "--json"]
    asked = run("chain", "deploy", *flags, stdin="yes\n")
    assert asked.code == 2
    assert asked.named("contract") == []


def test_a_development_chain_never_overwrites_another_chains_profile(tmp_path: Path) -> None:
    path = tmp_path / "chain.toml"
    write_profile(path, profile())
    before = path.read_text()
    refused = run("chain", "dev", "--port", 0, "--profile", path, "--data-dir", tmp_path)
    assert refused.code == 1
    assert "another file with --profile" in refused.err
    assert path.read_text() == before


def test_the_faucet_is_refused_on_any_other_chain(dev: Dev, tmp_path: Path) -> None:
    from tests.cli.plain_node import plain_node

    found = load_profile(dev.data_dir / "chain.toml")
    with plain_node(found.chain_id) as url:
        path = tmp_path / "real.toml"
        write_profile(path, replace(found, rpc_urls=(url,), genesis=None))
        refused = run("chain", "faucet", SOMEONE, "1", "--chain", path, "--data-dir", tmp_path)
    assert refused.code == 1
    assert "no development chain" in refused.err


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["faucet", "0x12", "1"], "ADDRESS"),
        (["faucet", SOMEONE, "1e3"], "AMOUNT"),
        (["faucet", SOMEONE, "0.0000001"], "AMOUNT"),
        (["faucet", SOMEONE, "1", "--ether", "-1"], "--ether"),
        (["dev", "--fund", f"{SOMEONE}", "--port", "0"], "--fund"),
        (["dev", "--fund-ether", "x=1", "--port", "0"], "--fund-ether"),
        (["deploy", "--rpc", "http://127.0.0.1:1", "--treasury", "0x"], "--treasury"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error_that_names_the_flag(
    arguments: list[str], flag: str, tmp_path: Path
) -> None:
    ran = run("chain", *arguments, "--data-dir", tmp_path, "--json")
    assert ran.code == 2
    assert json.loads(ran.out.splitlines()[-1])["message"].startswith(flag + ":")


def test_without_a_profile_each_command_says_what_to_do(tmp_path: Path) -> None:
    for command in (["status"], ["faucet", SOMEONE, "1"]):
        ran = run("chain", *command, "--data-dir", tmp_path)
        assert ran.code == 1
        assert "--chain" in ran.err
    (tmp_path / "none").mkdir()
    deploy = ["deploy", "--rpc", "http://127.0.0.1:1", "--treasury", CHECKSUMMED]
    ran = run("chain", *deploy, "--data-dir", tmp_path / "none")
    assert "p2pnode wallet new" in ran.err


def test_a_ctrl_c_ends_the_chain(tmp_path: Path) -> None:
    with start(tmp_path, "dev", ["chain", "dev", "--port", 0, "--data-dir", tmp_path]) as program:
        program.wait_event("chain.ready")
        program.interrupt()
        assert program.wait() == 130


def _chain(folder: Path, *flags: object) -> Program:
    """A development chain whose files are in ``folder``, ready."""
    program = start(folder, "dev", ["chain", "dev", "--port", 0, "--profile", folder / "chain.toml", *flags])
    program.wait_event("chain.ready")
    return program


def _usdc(folder: Path) -> tuple[int, object]:
    """What a payer holds as ``funds`` shows it, or what it says instead."""
    ran = run("funds", "--json", "--chain", folder / "chain.toml", "--data-dir", folder / "payer")
    return ran.code, ran.events[-1]["wallet"] if ran.code == 0 else ran.events[-1]["message"]


@pytest.mark.long
def test_a_killed_chain_has_forgotten_nothing_when_it_is_started_again(tmp_path: Path) -> None:
    address = wallet_in(tmp_path / "payer")
    with _chain(tmp_path, "--fund", f"{address}=3") as program:
        assert program.wait_event("chain.ready")["new"] is True
        program.kill()
    with _chain(tmp_path) as program:
        ready = program.wait_event("chain.ready")
        assert (ready["new"], ready["block"] > 0) == (False, True)
        assert _usdc(tmp_path) == (0, 3_000_000)


@pytest.mark.long
def test_a_chain_that_was_made_anew_is_named_by_funds_and_doctor_at_once(tmp_path: Path) -> None:
    address = wallet_in(tmp_path / "payer")
    with _chain(tmp_path, "--fund", f"{address}=3"):
        old = (tmp_path / "chain.toml").read_text()
        assert _usdc(tmp_path) == (0, 3_000_000)
    with _chain(tmp_path, "--fresh"):
        assert _usdc(tmp_path) == (0, 0)
        new = load_profile(tmp_path / "chain.toml")
        (url,) = load_profile(_written(tmp_path / "old.toml", old)).rpc_urls
        _written(tmp_path / "chain.toml", old.replace(url, new.rpc_urls[0]))
        started = time.monotonic()
        code, said = _usdc(tmp_path)
        assert code == 1
        assert "was made anew" in str(said)
        for command in (("status",), ("faucet", SOMEONE, "1")):
            refused = run("chain", *command, "--chain", tmp_path / "chain.toml", "--data-dir", tmp_path)
            assert "was made anew" in refused.err
        assert time.monotonic() - started < 10


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
