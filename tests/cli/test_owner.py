"""What the owner of a running node tells it by commands holds at once: pauses and blocked peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import ask, join, run, start

STRANGER = "12D3KooWDnR2zNaZAvScsZsYLchXe1mLHH88u1H2GKPJ2P7mWAHd"


@pytest.mark.long
def test_a_paused_node_serves_nobody_until_it_is_resumed(tmp_path: Path) -> None:
    own, client = f"--data-dir={tmp_path / 'h'}", tmp_path / "data"
    with join(tmp_path, "h") as node:
        paused = run("pause", own)
        assert "offers are withdrawn" in paused.err + paused.out
        shown = run("status", "--why-idle", own).out
        assert "serving    nothing" in shown
        assert "paused     its owner paused it" in shown
        assert "why idle   it is paused: its owner paused it" in shown
        assert ask(client, "hello", "--peer", node.multiaddr).code != 0
        assert run("resume", "--json", own).named("resumed")[0]["why"] == []
        assert ask(client, "hello", "--peer", node.multiaddr).code == 0
        again = run("resume", "--json", own)
        assert (len(again.named("not_paused")), again.named("resumed")) == (1, [])
        # The node's own terminal says so, too.
        assert (node.wait_event("paused")["why"], node.wait_event("resumed")["why"]) == (
            ["its owner paused it"],
            [],
        )
        (told,) = run("status", "--why-idle", "--json", own).named("status")
        assert told["paused"] == []
        assert told["idle"]["offers"][0]["model"] == "scripted"
        assert "only host that is seen" in told["idle"]["reasons"][0]
        with start(tmp_path, "watch", ["status", "--watch", "--json", own]) as watch:
            seen = watch.out_path
            watch.wait_until(lambda: seen.read_text().count('"event": "status"') >= 2, "a second look")


def test_peers_are_blocked_listed_and_let_in_where_no_node_runs(tmp_path: Path) -> None:
    place = f"--data-dir={tmp_path / 'data'}"
    assert "no peer is blocked" in run("blocked", place).out
    assert run("block", STRANGER, "--reason", "asks all day", place).code == 0
    again = run("block", f"/ip4/10.0.0.1/tcp/4001/p2p/{STRANGER}", "--json", place)
    assert again.named("blocked")[0]["new"] is False
    (found,) = run("blocked", "--json", place).named("peer")
    assert found["peer"] == STRANGER
    assert run("unblock", STRANGER, place).code == 0
    wrong = run("unblock", STRANGER, place)
    assert wrong.code == 2
    assert "is not blocked" in wrong.err
    assert "no peer id" in run("block", "nobody", place).err


def test_pausing_needs_a_node_that_runs(tmp_path: Path) -> None:
    told = run("pause", f"--data-dir={tmp_path / 'data'}")
    assert told.code == 1
    assert "no node runs" in told.err
