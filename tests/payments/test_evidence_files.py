"""A file that proves a host's lie: written when it is seen, read by anyone, worthless when changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.chain.ledger import FabState, NodeRecord, Outcome, Slash
from p2pnode.contract_rules import STAKE_MIN
from p2pnode.errors import ConfigError
from p2pnode.payments.evidence import (
    FOLDER,
    note_shown,
    note_slashed,
    read_evidence,
    slash_plan,
)
from p2pnode.payments.journal.journal import Evidence
from p2pnode.payments.stakes import StakeStanding
from p2pnode.protocols.crypto import key_address, sign_digest
from p2pnode.protocols.inference.messages import Receipt, SessionTerms
from p2pnode.protocols.inference.receipts import link_root, receipt_digest
from p2pnode.protocols.typed_data import market_domain, session_id
from tests.payments.journals import NOW, TERMS, Anything, bought, receipt, writing
from tests.payments.refusals import refused

SECRET = b"\x51" * 32
MARKET = market_domain(31_337, b"\x4d" * 20)
SIGNED_TERMS: SessionTerms = replace(TERMS, receipt_key=key_address(SECRET))
SESSION = session_id(MARKET, SIGNED_TERMS)


def signed(tokens_out: int, *, secret: bytes = SECRET) -> Receipt:
    """A receipt for place (3, 7)."""
    bare = receipt(7, epoch=3)
    checkpoint = replace(bare.checkpoint, tokens_out=tokens_out)
    root = link_root(bare.previous, checkpoint)
    signature = sign_digest(secret, receipt_digest(SESSION, 3, root))
    return replace(bare, checkpoint=replace(checkpoint, root=root, signature=signature))


async def seen(folder: Path, *receipts: Receipt) -> list[Evidence]:
    """A journal beside which a client saw these receipts of one host."""
    async with writing(folder / "journal.sqlite") as journal:
        await journal.bought(replace(bought(1), session=SESSION, terms=SIGNED_TERMS), Anything(), NOW)
        for each in receipts:
            await note_shown(journal, MARKET, SESSION, each, NOW)
        return journal.evidence()


async def test_a_second_receipt_for_a_place_is_written_to_a_file_that_proves_it(tmp_path: Path) -> None:
    (tmp_path / "honest").mkdir()
    assert await seen(tmp_path / "honest", signed(32), signed(32)) == []
    assert not (tmp_path / "honest" / FOLDER).exists()
    (evidence,) = await seen(tmp_path, signed(32), signed(31))
    (path,) = (tmp_path / FOLDER).iterdir()
    assert path.name == f"{SESSION.hex()[:16]}-3-7.json"
    assert path.stat().st_mode & 0o777 == 0o600
    found = read_evidence(path)
    assert (found.session, found.terms, found.place) == (SESSION, SIGNED_TERMS, (3, 7))
    assert {found.one.checkpoint.tokens_out, found.other.checkpoint.tokens_out} == {31, 32}
    assert (found.one, found.other) == (evidence.one, evidence.other)


async def test_a_disk_that_takes_no_file_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    assert len(await seen(tmp_path, signed(32), signed(31))) == 1


async def _file(tmp_path: Path) -> Path:
    await seen(tmp_path, signed(32), signed(31))
    (path,) = (tmp_path / FOLDER).iterdir()
    return path


def _set(body: dict[str, Any], place: str, value: Any) -> None:
    *parents, last = [int(each) if each.isdigit() else each for each in place.split(".")]
    for each in parents:
        body = body[each]  # type: ignore[index]
    body[last] = value  # type: ignore[index]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("format", "p2pnode/evidence/9", "its format is not"),
        ("terms.deposit", -1, "no whole number"),
        ("terms.deposit", 1.5, "no whole number"),
        ("terms.deposit", True, "no whole number"),
        ("terms.salt", "zz", "no evidence file"),
        ("terms.more", 1, "no evidence file"),
        ("terms.deposit", 7, "not signed by the session's receipt key"),
        ("receipts.0.tokens_out", 33, "not signed by the session's receipt key"),
        ("receipts", [], "no evidence file"),
        ("seq", 8, "not signed by the session's receipt key"),
        ("chain_id", 1, "not signed by the session's receipt key"),
    ],
)
async def test_a_file_that_was_changed_proves_nothing(
    tmp_path: Path, place: str, value: Any, words: str
) -> None:
    path = await _file(tmp_path)
    body = json.loads(path.read_text())
    _set(body, place, value)
    path.write_text(json.dumps(body))
    with pytest.raises(ConfigError, match=words):
        read_evidence(path)


async def test_what_is_no_evidence_is_told(tmp_path: Path) -> None:
    path = await _file(tmp_path)
    body = json.loads(path.read_text())
    body["receipts"][1] = body["receipts"][0]
    for text, words in (
        (json.dumps(body), "accuses nobody"),
        ("[]", "no evidence file"),
        ("{", "no evidence file"),
        ("x" * 70_000, "too long"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_evidence(path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_evidence(tmp_path / "nowhere.json")


def standing(stake: int, unbonding: int = 0) -> StakeStanding:
    return StakeStanding(
        account=SIGNED_TERMS.host,
        registry=bytes(20),
        record=NodeRecord(stake=stake, unbonding=unbonding),
        fab=FabState(),
        now=NOW,
    )


async def test_what_a_slash_does_is_said_and_what_it_can_not_do_refused(tmp_path: Path) -> None:
    found = read_evidence(await _file(tmp_path))
    plan = slash_plan(found, MARKET, standing(STAKE_MIN, STAKE_MIN), b"\1" * 20)
    assert plan.calls == (Slash(SIGNED_TERMS, found.one, found.other),)
    assert "it loses 2000 FAB, of which 200 FAB go to this wallet" in plan.words[0]
    assert "of which 0 FAB go" in slash_plan(found, MARKET, standing(1), SIGNED_TERMS.host).words[0]
    with refused("not_staked", "nothing at stake"):
        slash_plan(found, MARKET, standing(0), b"\1" * 20)
    with refused("no_evidence", "another market", "--chain"):
        slash_plan(found, market_domain(1, MARKET.contract), standing(1), b"\1" * 20)


async def test_a_slash_is_written_down_beside_the_pair(tmp_path: Path) -> None:
    found = read_evidence(await _file(tmp_path))
    done = Outcome(transaction=b"\xab" * 32, block=1, gas_used=1, fee_wei=1, events=())
    async with writing(tmp_path / "journal.sqlite") as journal:
        await note_slashed(journal, found, done)
        (evidence,) = journal.evidence()
        assert evidence.outcome == "slashed: " + "ab" * 32
