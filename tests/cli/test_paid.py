"""A paid session through the command line: wallet, faucet, ask, funds, sessions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from p2pnode.cli.join import JoinReporter
from p2pnode.cli.output import Output
from tests.cli.support import DEADLINE_S, Program, ask, give, join, join_for_pay, run, start, wallet

PRICE_OUT, FEE = 7, 1000


def funds(data_dir: Path, profile: Path) -> dict[str, Any]:
    ran = run("funds", "--json", "--chain", profile, "--data-dir", data_dir)
    assert ran.code == 0, ran
    return ran.events[0]


def wait_settled(data_dir: Path, profile: Path) -> dict[str, Any]:
    """The funds when nothing is under way any more."""
    until = time.monotonic() + DEADLINE_S
    while (found := funds(data_dir, profile))["escrow"] or found["authorised"]:
        assert time.monotonic() < until, found
        time.sleep(0.05)
    return found


def test_a_client_without_ether_asks_pays_and_sees_every_unit(
    data_dir: Path, paid_host: Program, profile: Path
) -> None:
    give(profile, wallet(data_dir), usdc="1")
    flags = ("--peer", paid_host.multiaddr, "--chain", profile, "--json", "--max-tokens", 40)
    ran = ask(data_dir, "hello", *flags, "--close")
    assert ran.code == 0, ran
    (signing,), (done,) = ran.named("signing"), ran.named("done")
    assert signing["session_fee"] == FEE
    assert "deposit" in signing["words"]
    found = wait_settled(data_dir, profile)
    assert found["spent"] == done["cost"] == FEE + 1  # forty tokens at 7 a million: a unit, rounded up
    assert found["wallet"] == 1_000_000 - done["cost"]
    assert (found["ether_wei"], found["owed"], found["stuck"]) == (0, 0, [])
    (session,) = run("sessions", "list", "--json", "--data-dir", data_dir).named("session")
    assert (session["as"], session["state"], session["amount"]) == ("client", "settled", done["cost"])
    shown = run("sessions", "show", session["session"][:8], "--json", "--data-dir", data_dir).events[0]
    assert (shown["tokens_out"], shown["price_out"]) == (40, PRICE_OUT)


def test_people_are_told_what_is_signed_and_what_it_cost(
    data_dir: Path, paid_host: Program, profile: Path
) -> None:
    give(profile, wallet(data_dir), usdc="1")
    ran = ask(data_dir, "hello", "--peer", paid_host.multiaddr, "--chain", profile, "--max-tokens", 10)
    assert ran.code == 0
    assert "at most 0." in ran.err
    assert ", 0.001001 USDC]" in ran.err
    table = run("funds", "--chain", profile, "--data-dir", data_dir)
    assert table.code == 0
    assert "withdrawable" in table.out


@pytest.mark.long
def test_a_session_that_was_settled_is_not_closed_again_and_nothing_is_asked(
    data_dir: Path, paid_host: Program, profile: Path
) -> None:
    give(profile, wallet(data_dir), usdc="1")
    flags = ("--peer", paid_host.multiaddr, "--chain", profile, "--max-tokens", 3)
    assert ask(data_dir, "hi", *flags, "--close").code == 0
    wait_settled(data_dir, profile)
    (session,) = run("sessions", "list", "--json", "--data-dir", data_dir).named("session")
    closed = run(
        "sessions", "close", session["session"], "--json", "--chain", profile, "--data-dir", data_dir
    )
    assert closed.code == 0, closed
    assert closed.events[0]["outcome"] == "nothing"


def test_withdrawing_what_is_not_there_says_what_is(data_dir: Path, profile: Path) -> None:
    address = wallet(data_dir)
    ran = run(
        "funds",
        "withdraw",
        "--to",
        address,
        "--amount",
        "0.000005",
        "--chain",
        profile,
        "--data-dir",
        data_dir,
    )
    assert ran.code == 1
    assert "0.00 USDC can be withdrawn, not 0.000005 USDC" in ran.err
    twice = run("funds", "withdraw", "--yes", "--chain", profile, "--data-dir", data_dir)
    assert twice.code == 1
    assert f"nothing can be withdrawn now: `p2pnode funds --data-dir {data_dir}` shows" in twice.err
    wrong = run("funds", "withdraw", "--to", "0x12", "--chain", profile, "--data-dir", data_dir)
    assert wrong.code == 2


def test_a_host_shows_its_receipts_again_to_whoever_paid_for_them(
    data_dir: Path, paid_host: Program, profile: Path
) -> None:
    give(profile, wallet(data_dir), usdc="1")
    flags = ("--peer", paid_host.multiaddr, "--chain", profile, "--max-tokens", 70)
    assert ask(data_dir, "hello", *flags).code == 0
    ran = run("sessions", "evidence", "--fetch", "--json", "--chain", profile, "--data-dir", data_dir)
    assert ran.code == 0, ran
    (shown,) = ran.named("receipts")
    assert (shown["problem"], shown["same"], shown["withheld"], shown["conflicts"]) == ("", 3, 0, 0)
    assert not ran.named("evidence")


def test_a_host_at_work_says_what_it_serves_and_earns_and_status_adds_it_up(
    tmp_path: Path, profile: Path
) -> None:
    give(profile, wallet(tmp_path / "h"), usdc="0", ether="1")
    give(profile, wallet(tmp_path / "payer"), usdc="1")
    prices = ("--price-out", "0.5", "--session-fee", "0.01", "--chain", profile)
    with join(tmp_path, "h", *prices) as host:
        asked = ("--peer", host.multiaddr, "--chain", profile, "--max-tokens", 10, "--close")
        for _ in range(2):
            assert ask(tmp_path / "payer", "hello", *asked).code == 0
        for number in (1, 2):
            said = host.wait_event("answered", count=number)
            assert (said["tokens_out"], said["cost"], said["reason"]) == (10, 5, "length")
        assert host.wait_event("settled", count=2)["amount"] == 10_005

        def totals() -> bool:
            (found,) = run("status", "--json", "--data-dir", tmp_path / "h").events
            return (found["served"]["turns"], found["served"]["tokens_out"], found["earned"]) == (
                2,
                20,
                20_010,
            )

        host.wait_until(totals, "totals of two answers")
        shown = run("status", "--data-dir", tmp_path / "h").out
        assert "served     2 answers in 2 sessions" in shown
        assert "earned     0.02001 USDC settled" in shown
        assert "gas        not held against the session fee: set ether_usd in config.toml" in shown
        (tmp_path / "h" / "config.toml").write_text("ether_usd = 3000\n")
        shown = run("status", "--data-dir", tmp_path / "h").out
        assert "gas        held against the session fee, at 3000.00 USDC an ether" in shown


def test_a_quiet_host_says_nothing_of_its_answers(tmp_path: Path) -> None:
    with join(tmp_path, "h", "--quiet") as host:
        assert ask(tmp_path / "payer", "hello", "--peer", host.multiaddr, "--max-tokens", 3).code == 0
        host.interrupt()
        assert host.wait() == 0
        assert "answered" not in host.names


def test_people_read_a_line_for_each_answer(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"peer": "12D3KooWabcdefghij", "tokens_in": 35, "tokens_out": 20, "cost": 48, "reason": "stop"}
    report = JoinReporter(Output(as_json=False))
    report("answered", fields)
    assert capsys.readouterr().err.endswith("answered 12D3…efghij: 35 tokens in, 20 out, 0.000048 USDC\n")
    report("answered", {**fields, "cost": 0, "reason": "cancelled"})
    assert capsys.readouterr().err.endswith("out (stopped by the client)\n")


@pytest.mark.long
def test_a_host_whose_chain_is_gone_says_so_until_it_is_back(tmp_path: Path) -> None:
    chain_dir = tmp_path / "chain"

    def chain(port: int) -> Program:
        return start(tmp_path, "chain", ["chain", "dev", "--port", port, "--data-dir", chain_dir])

    def status(until: bool) -> str:
        end = time.monotonic() + DEADLINE_S
        while True:
            shown = run("status", "--why-idle", "--data-dir", tmp_path / "h").out
            if ("chain      can't be reached" in shown) is until:
                return shown
            assert time.monotonic() < end, shown
            time.sleep(0.05)

    with chain(0) as running:
        ready = running.wait_event("chain.ready")
        host = join_for_pay(tmp_path, Path(ready["profile"]))
        assert "chain" not in status(until=False)
    with host:
        assert "why idle   its chain can't be reached" in status(until=True)
        with chain(int(ready["url"].rpartition(":")[2])):
            assert "chain" not in status(until=False)
