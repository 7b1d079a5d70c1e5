"""``p2pnode sessions evidence``: what there is, and what the contract says to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from p2pnode.chain.profile import load_profile
from p2pnode.node.datadir import DataDir
from p2pnode.payments.journal.journal import Journal
from p2pnode.protocols.typed_data import market_domain, session_id
from tests.cli.support import run, wallet
from tests.payments.journals import NOW, TERMS, Anything, bought, receipt, session, writing


def caught(data_dir: Path, *, chain_id: int = 1, market: bytes = b"\x4d" * 20) -> str:
    """A journal in which a host signed two receipts for one place. The session."""
    name = session_id(market_domain(chain_id, market), TERMS)

    async def write() -> None:
        async with writing(DataDir(data_dir).journal) as journal:
            await journal.bought(replace(bought(1), session=name), Anything(), NOW)
            for each in (receipt(7, epoch=3), receipt(7, root=b"\xee" * 32, epoch=3)):
                await journal.bought_shown(name, each, NOW)

    trio.run(write)
    return name.hex()


def test_without_a_journal_or_a_liar_there_is_nothing_to_show(data_dir: Path) -> None:
    for _ in range(2):
        ran = run("sessions", "evidence", "--data-dir", data_dir)
        assert (ran.code, ran.out.strip()) == (0, "no host has signed two receipts for one place")
        assert run("sessions", "evidence", "--json", "--data-dir", data_dir).events == []
        data_dir.mkdir(mode=0o700, exist_ok=True)
        Journal.open(DataDir(data_dir).journal).close()


def test_what_accuses_a_host_is_shown_to_people_and_to_programs(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    name = caught(data_dir)
    ran = run("sessions", "evidence", "--data-dir", data_dir)
    assert ran.code == 0
    assert name[:16] in ran.out
    assert "add --submit" in ran.out
    (found,) = run("sessions", "evidence", "--json", "--data-dir", data_dir).events
    assert (found["session"], found["epoch"], found["seq"], found["outcome"]) == (name, 3, 7, "")
    assert found["roots"] == ["0c" * 32, "ee" * 32]


def test_submitting_needs_a_chain(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    caught(data_dir)
    ran = run("sessions", "evidence", "--submit", "--data-dir", data_dir)
    assert ran.code == 1
    assert "no chain is configured" in ran.err


def test_what_the_contract_says_is_told_once_and_written_down(data_dir: Path, profile: Path) -> None:
    wallet(data_dir)
    told = load_profile(profile)
    name = caught(data_dir, chain_id=told.chain_id, market=told.job_marketplace)
    ran = run("sessions", "evidence", "--submit", "--json", "--chain", profile, "--data-dir", data_dir)
    assert ran.code == 0, ran
    (submitted,) = ran.named("submitted")
    assert (submitted["session"], submitted["reward"]) == (name, 0)
    (found,) = ran.named("evidence")
    assert found["outcome"] == "refused: NodeRegistry: no such session"
    again = run("sessions", "evidence", "--submit", "--json", "--chain", profile, "--data-dir", data_dir)
    assert (again.named("submitted"), len(again.named("evidence"))) == ([], 1)


def test_evidence_of_a_session_is_kept_beside_it(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    name = caught(data_dir)
    (listed,) = run("sessions", "list", "--json", "--data-dir", data_dir).events
    assert listed["session"] == name != session(1).hex()
