"""What a question could cost, and whom it may go to, is said and held before anything is signed."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.cli.output import shorten
from tests.cli.support import Program, ask, give, join, run, wallet

FEE = 1000
"""Of the paid host that the tests share, in token units; its prices are 5 and 7 a million tokens."""


def _sessions(data_dir: Path) -> list[dict[str, object]]:
    return run("sessions", "list", "--json", "--data-dir", data_dir).named("session")


def test_a_dry_run_prints_the_bounds_and_neither_asks_nor_signs(
    data_dir: Path, host: Program, paid_host: Program, profile: Path
) -> None:
    give(profile, wallet(data_dir), usdc="1")
    answered = [each.names.count("answered") for each in (host, paid_host)]
    flags = ("--dry-run", "--max-tokens", 500_000, "--chain", profile, *_met(host, paid_host))
    told = ask(data_dir, "hello", *flags, "--json").named("estimate")
    free, paid = (next(e for e in told if e["peer"] == each.ready["peer_id"]) for each in (host, paid_host))
    assert (free["cost_max"], free["priced"], free["fee"]) == (0, False, 0)
    assert (paid["fee"], paid["tokens_out_max"]) == (FEE, 500_000)
    tokens = paid["tokens_in_max"] * 5 + 500_000 * 7
    assert paid["cost_max"] == FEE + -(-tokens // 1_000_000)
    assert told[0] == free  # in the order of trial
    shown = ask(data_dir, "hello", *flags)
    assert shown.code == 0
    assert "nothing is signed, and nobody was asked" in shown.err
    head, *rows = shown.out.splitlines()
    assert head.split() == ["peer", "input", "output", "fee", "at", "most", "context"]
    assert [row.split()[0] for row in rows] == [shorten(free["peer"]), shorten(paid["peer"])]
    assert _sessions(data_dir) == []
    assert [each.names.count("answered") for each in (host, paid_host)] == answered


def test_a_cost_that_could_be_too_high_is_refused_and_nothing_is_signed(
    data_dir: Path, paid_host: Program, profile: Path
) -> None:
    give(profile, wallet(data_dir), usdc="1")
    flags = ("--peer", paid_host.multiaddr, "--chain", profile, "--max-tokens", 10)
    refused = ask(data_dir, "hello", *flags, "--max-cost", "0.001")  # the fee alone
    assert refused.code == 3
    assert "can cost up to 0.001001 USDC, and --max-cost allows 0.001 USDC" in refused.err
    assert "lower --max-tokens" in refused.err
    assert "paying" not in refused.err
    assert _sessions(data_dir) == []
    allowed = ask(data_dir, "hello", *flags, "--max-cost", "0.001001")
    assert allowed.code == 0, allowed
    assert len(_sessions(data_dir)) == 1


def test_only_and_never_name_hosts_by_peer_id_and_by_wallet(
    data_dir: Path, host: Program, paid_host: Program, profile: Path
) -> None:
    give(profile, wallet(data_dir), usdc="1")
    flags = ["--chain", profile, "--max-tokens", 3, "--json", *_met(host, paid_host)]
    listed = run("hosts", *flags[:2], *flags[4:], "--model", "scripted", "--no-mdns", "--data-dir", data_dir)
    wallets = {event["peer"]: event["wallet"] for event in listed.named("host")}
    free, paid = (each.ready["peer_id"] for each in (host, paid_host))
    for only, answers in ((paid, paid), (wallets[free], free)):
        assert [done["host"] for done in ask(data_dir, "hi", *flags, "--only", only).named("done")] == [
            answers
        ]
    # A free host goes first; without it the other one is asked.
    assert [done["host"] for done in ask(data_dir, "hi", *flags, "--never", wallets[free]).named("done")] == [
        paid
    ]
    nobody = ask(data_dir, "hi", *flags[:4], *_met(host), "--never", wallets[free], "--only", free)
    assert nobody.code == 3
    assert "you said never to ask it" in nobody.err


def _met(*hosts: Program) -> list[str]:
    return [flag for each in hosts for flag in ("--bootstrap", each.multiaddr)]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--only", "12D3…tZAyZi"), "--only: '12D3…tZAyZi' names no host: give its whole peer id"),
        (("--never", "bob"), "--never: 'bob' names no host"),
        (("--max-cost", "-1"), "--max-cost: "),
        (("--max-cost", "cheap"), "--max-cost: "),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_flag(
    data_dir: Path, flags: tuple[object, ...], says: str
) -> None:
    ran = ask(data_dir, "hi", *flags)
    assert ran.code == 2
    assert says in ran.err


def test_a_host_that_config_toml_trusts_goes_first_and_a_stranger_is_told_of(
    data_dir: Path, host: Program, paid_host: Program, profile: Path
) -> None:
    give(profile, wallet(data_dir), usdc="1")
    flags = ["--chain", profile, "--max-tokens", 3, *_met(host, paid_host)]
    config = data_dir / "config.toml"
    config.write_text(f'trust = ["{paid_host.ready["peer_id"]}"]\n')
    ran = ask(data_dir, "hi", *flags, "--json")
    assert [done["host"] for done in ran.named("done")] == [paid_host.ready["peer_id"]]  # though it costs
    assert ran.named("stranger") == []
    config.write_text(f'trust = ["{"0x" + "12" * 20}"]\n')
    ran = ask(data_dir, "hi", *flags)
    assert ran.code == 0
    assert f"no host that you trust is there: asking {shorten(host.ready['peer_id'])}, a stranger" in ran.err
    config.write_text('trust = ["bob"]\n')
    ran = ask(data_dir, "hi", *flags)
    assert (ran.code, "'bob' names no host" in ran.err) == (1, True)


def test_a_chat_that_outgrows_its_host_is_refused_or_loses_its_oldest_messages_as_was_chosen(
    tmp_path: Path,
) -> None:
    with join(tmp_path, "h", "--n-ctx", 512) as small:
        flags = ("--model", "scripted", "--peer", small.multiaddr, "--data-dir", tmp_path / "d")
        typed = "x" * 200 + "\n" + "y" * 300 + "\n"
        refused = run("chat", *flags, "--max-tokens", 40, stdin=typed)
        assert "context_overflow" in refused.err
        assert "--context drop-oldest" in refused.err
        dropped = run("chat", *flags, "--max-tokens", 40, "--context", "drop-oldest", stdin=typed)
        assert dropped.code == 0, dropped
        assert "[too long for every host: asking without the oldest 2 messages]" in dropped.err
        assert len(dropped.out.splitlines()) == 2
    wrong = run("chat", *flags, "--context", "shrink", stdin="")
    assert wrong.code == 2
    assert "--context: 'shrink' is not one of refuse, drop-oldest" in wrong.err
