"""A journal of format 1 is brought up to date when it is opened: nothing of it is lost, and only once."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from p2pnode.errors import StorageError
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.journal.keys import KeyUsage
from p2pnode.payments.journal.orders import WalletOnChain
from p2pnode.payments.journal.records import pack
from p2pnode.protocols.inference.messages import Checkpoint
from p2pnode.protocols.inference.receipts import NO_FINGERPRINT, ReceiptChain, receipt_holds, token_hash
from tests.payments.journals import DAY, NOW, PEER, TERMS, Anything, bought, hosted, session, voucher, writing
from tests.protocols.support import Identity

SIGNER = Identity("receipts")
BEFORE_6 = "DROP TABLE key_claims; DROP TABLE key_spent; DROP TABLE keys;"
BEFORE_5 = (
    f"{BEFORE_6} DROP INDEX hosted_by_due; ALTER TABLE hosted DROP COLUMN window_ids;"
    "ALTER TABLE bought DROP COLUMN finished;"
)
BEFORE_4 = f"{BEFORE_5} DROP TABLE spent;" + "".join(
    f"ALTER TABLE {table} DROP COLUMN {column};"
    for table, columns in (
        ("hosted", ("keep_s", "left_until", "generation", "origin")),
        ("bought", ("keep_s", "settle_above", "left_until", "generation", "reserved")),
    )
    for column in columns
)


def chain(number: int, count: int) -> list[Checkpoint]:
    """As a host of format 1 signed them, in its one epoch."""
    record = hosted(number)
    made = ReceiptChain.begin(record.session, TERMS.model, record.salt, record.epoch)
    receipts = []
    for place in range(count):
        hashed = token_hash([bytes([place])])
        root = made.advance(10, 32 * (place + 1), hashed, NO_FINGERPRINT)
        checkpoint = Checkpoint(
            seq=made.seq, tokens_in=10, tokens_out=made.tokens_out, token_hash=hashed,
            fingerprint_hash=NO_FINGERPRINT, root=root, signature=SIGNER.sign_wallet(made.digest()),
        )  # fmt: skip
        receipts.append(checkpoint)
    return receipts


async def old_journal(path: Path) -> None:
    """What format 1 looked like, with two hosted sessions and a purchase in it."""
    async with writing(path) as journal:
        for number in (1, 2):
            await journal.host_relaying(hosted(number))
        await journal.bought(bought(3), Anything(), NOW)
        await journal.signed(session(3), voucher(1, 1000), NOW)
    db = sqlite3.connect(path)
    db.executescript(
        "DROP TABLE signed; DROP TABLE orders; DROP TABLE receipts; DROP TABLE taken; DROP TABLE evidence;"
        "ALTER TABLE bought DROP COLUMN final; ALTER TABLE bought DROP COLUMN delivered;"
        "ALTER TABLE bought DROP COLUMN owner;"
        f"{BEFORE_4}"
        "CREATE TABLE receipts (session BLOB NOT NULL REFERENCES hosted (session), seq INTEGER NOT NULL,"
        " receipt BLOB NOT NULL, PRIMARY KEY (session, seq)) WITHOUT ROWID;"
        "PRAGMA user_version = 1;"
    )
    for number in (1, 2):
        for each in chain(number, 3):
            db.execute("INSERT INTO receipts VALUES (?, ?, ?)", (session(number), each.seq, pack(each)))
    db.commit()
    db.close()


async def test_receipts_get_their_epoch_and_what_they_follow(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    await old_journal(path)
    async with writing(path) as journal:
        for number in (1, 2):
            assert journal.receipts(session(number)) == chain(number, 3)
            whole = journal.issued_after(session(number), 0, 0, 10)
            assert [each.epoch for each in whole] == [1, 1, 1]
            assert all(receipt_holds(session(number), each, SIGNER.wallet) for each in whole)
        (record,) = journal.purchases()
        assert (record.voucher, record.final, record.owed) == (voucher(1, 1000), None, voucher(1, 1000))
        first = journal.issued_after(session(1), 0, 0, 1)[0]
        with pytest.raises(StorageError, match="another receipt 1 already"):
            await journal.host_issued(session(2), first)


async def test_one_of_format_2_gets_its_orders_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with writing(path) as journal:
        await journal.bought(bought(3), Anything(), NOW)
    db = sqlite3.connect(path)
    db.executescript(f"DROP TABLE signed; DROP TABLE orders; {BEFORE_4} PRAGMA user_version = 2;")
    db.close()
    journal = Journal.open(path)
    assert journal.orders(WalletOnChain(1, b"\x01" * 20)) == []
    assert [each.session for each in journal.purchases()] == [session(3)]
    journal.close()


async def test_of_one_of_format_3_it_is_known_what_was_spent_and_when(tmp_path: Path) -> None:
    path, fee = tmp_path / "journal.sqlite", TERMS.session_fee
    async with writing(path) as journal:
        for number in range(1, 5):
            await journal.bought(bought(number), Anything(), NOW)
        await journal.signed(session(1), voucher(1, 70_000), NOW)
        await journal.signed(session(2), voucher(1, 60_000), NOW)
        await journal.bought_settled(session(2), 50_000, NOW + 7200)
        await journal.bought_expired(session(4))
    db = sqlite3.connect(path)
    db.executescript(f"{BEFORE_4} PRAGMA user_version = 3;")
    db.close()
    journal = Journal.open(path)
    now = journal.spending(TERMS, PEER, NOW)
    assert (now.locked, now.day_spent, now.host_ended) == (2 * TERMS.deposit, 70_000 + 50_000 + fee, 50_000)
    assert journal.spending(TERMS, PEER, NOW + DAY + 60).day_spent == 50_000
    assert journal.purchases_kept(NOW) == []
    journal.close()


async def test_a_session_of_format_4_has_the_smallest_window_and_is_found_when_it_is_due(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.sqlite"
    async with writing(path) as journal:
        await journal.host_relaying(hosted(1, window=160))
        await journal.host_open(session(1))
        await journal.host_left(session(1), NOW + 60)
        assert journal.hosted_next(lambda _record: True) == journal.hosted_one(session(1))
    db = sqlite3.connect(path)
    db.executescript(f"{BEFORE_5} PRAGMA user_version = 4;")
    db.close()
    journal = Journal.open(path)
    (record,) = journal.hosted_due(NOW + 60, lambda _record: True)
    assert (record.session, record.window) == (session(1), 64)
    journal.close()


async def test_one_of_format_5_gets_its_keys_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with writing(path) as journal:
        await journal.bought(bought(3), Anything(), NOW)
    db = sqlite3.connect(path)
    db.executescript(f"{BEFORE_6} PRAGMA user_version = 5;")
    db.close()
    journal = Journal.open(path)
    assert journal.all_keys() == []
    assert [each.session for each in journal.purchases()] == [session(3)]
    assert journal.key_usage(b"\x01" * 8, NOW) == KeyUsage(day=0, total=0, claimed=0)
    journal.close()


async def test_it_is_done_once_however_many_open_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    await old_journal(path)
    for _ in range(2):
        journal = Journal.open(path)
        assert len(journal.receipts(session(1))) == 3
        journal.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (6,)
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    db.close()
    assert "receipts_1" not in names


async def test_one_that_is_damaged_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    await old_journal(path)
    db = sqlite3.connect(path)
    db.execute("UPDATE receipts SET receipt = x'00' WHERE seq = 2")
    db.commit()
    with pytest.raises(StorageError, match="damaged"):
        Journal.open(path)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert db.execute("SELECT COUNT(*) FROM receipts").fetchone() == (6,)
    db.close()


async def test_an_upgraded_journal_is_as_one_made_new(tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    await old_journal(old)
    for path in (old, new):
        Journal.open(path).close()

    def shape(path: Path) -> dict[str, list[tuple[object, ...]]]:
        db = sqlite3.connect(path)
        named = db.execute("SELECT type, name FROM sqlite_master").fetchall()
        found = {
            name: db.execute(f"SELECT * FROM pragma_{kind}_info('{name}')").fetchall() for kind, name in named
        }
        db.close()
        return found

    assert shape(old) == shape(new)
