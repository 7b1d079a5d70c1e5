"""``p2pnode keys``: made, shown, changed, revoked; the secret is printed once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from p2pnode.node.datadir import DataDir
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.keys import KeyBook
from p2pnode.words import KEY_SECRET
from tests.cli.support import run


def test_a_new_keys_secret_is_all_of_stdout_and_is_never_shown_again(data_dir: Path) -> None:
    made = run("keys", "new", "codex", "--budget", "5", "--per-day", "0.5", "--data-dir", data_dir)
    assert made.code == 0, made
    secret = made.out.strip()
    assert KEY_SECRET.fullmatch(secret) is not None
    assert "at most 5.00 USDC in all and at most 0.50 USDC in 24 hours" in made.err
    for command in (("list",), ("list", "--json"), ("show", "codex"), ("show", "codex", "--json")):
        ran = run("keys", *command, "--data-dir", data_dir)
        assert ran.code == 0, ran
        assert "codex" in ran.out
        assert secret not in ran.out + ran.err
    journal = Journal.open(DataDir(data_dir).journal)
    try:
        found = KeyBook(journal, wall=time.time, draw=bytes).find(secret)
    finally:
        journal.close()
    assert found is not None
    assert (found.limits.total_max, found.limits.day_max) == (5_000_000, 500_000)


def test_a_key_is_told_to_programs(data_dir: Path) -> None:
    flags = ("--model", "scripted", "--max-price-in", "0.2", "--max-price-out", "1", "--expires", "30d")
    made = run("keys", "new", "codex", *flags, "--json", "--data-dir", data_dir)
    (event,) = made.events
    assert event["event"] == "key.made"
    assert KEY_SECRET.fullmatch(event.pop("secret")) is not None
    (shown,) = run("keys", "list", "--json", "--data-dir", data_dir).events
    assert {**event, "event": "key"} == shown
    assert (shown["state"], shown["spent"], shown["budget"], shown["claimed"]) == ("valid", 0, None, 0)
    assert (shown["price_in_max"], shown["price_out_max"]) == (200_000, 1_000_000)
    assert shown["models"][0].startswith("m1")
    assert abs(shown["expires_at"] - time.time() - 30 * 86_400) < 60


def test_limits_are_changed_one_by_one_and_taken_away(data_dir: Path) -> None:
    run("keys", "new", "codex", "--budget", "5", "--per-day", "1", "--data-dir", data_dir)
    ran = run(
        "keys", "set", "codex", "--budget", "7.5", "--per-day", "none", "--json", "--data-dir", data_dir
    )
    (event,) = ran.events
    assert (event["budget"], event["per_day"]) == (7_500_000, None)
    shown = run("keys", "set", "codex", "--expires", "2999-01-31", "--data-dir", data_dir)
    assert "2999-01-31" in shown.out
    assert "no limit" in shown.out


def test_a_revoked_key_is_shown_only_where_all_are_asked_for(data_dir: Path) -> None:
    run("keys", "new", "codex", "--data-dir", data_dir)
    ran = run("keys", "revoke", "codex", "--json", "--data-dir", data_dir)
    assert [each["event"] for each in ran.events] == ["key.revoked"]
    assert run("keys", "list", "--data-dir", data_dir).out.strip() == "there is no key that is valid"
    (old,) = run("keys", "list", "--all", "--json", "--data-dir", data_dir).events
    assert old["state"] == "revoked"
    again = run("keys", "revoke", "codex", "--data-dir", data_dir)
    assert again.code == 1
    assert "there is no key" in again.err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--budget", "five"), "--budget"),
        (("--per-day", "-1"), "--per-day"),
        (("--budget", "0.0000001"), "--budget"),
        (("--budget", "99999999999"), "at most"),
        (("--model", "no-such-model"), "--model"),
        (("--expires", "soon"), "--expires"),
        (("--expires", "2001-01-01"), "expired already"),
    ],
)
def test_what_is_typed_wrong_is_told_and_nothing_is_made(
    data_dir: Path, flags: tuple[str, ...], told: str
) -> None:
    ran = run("keys", "new", "codex", *flags, "--data-dir", data_dir)
    assert ran.code == 2
    assert told in ran.err
    assert run("keys", "list", "--json", "--data-dir", data_dir).named("key") == []


def test_without_a_key_the_user_is_told_how_to_make_one(data_dir: Path) -> None:
    ran = run("keys", "list", "--data-dir", data_dir)
    assert ran.code == 1
    assert "keys new NAME" in ran.err
