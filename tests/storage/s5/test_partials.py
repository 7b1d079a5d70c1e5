"""Partial uploads on disk: what several requests at once do to one another."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from p2pnode.errors import StorageError
from p2pnode.files import write_atomic
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.s5.server import uploads as module
from p2pnode.storage.s5.server.accounts import Account, AccountBook, AccountsFullError
from p2pnode.storage.s5.server.uploads import Partial, Partials, TooManyPartialsError
from p2pnode.storage.store import OwnerKey

OWNER, OTHER = OwnerKey(bytes(32)), OwnerKey(bytes([1]) * 32)


def test_uploads_that_begin_at_once_do_not_sweep_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partials = Partials(tmp_path, count_max=4, age_max_s=60)
    names = ["a" * 32, "b" * 32]

    def make(name: str) -> None:
        partials.make(Partial(id=name, length=10, expected=hash_of(b"x"), owner=OWNER), 0.0)

    other = threading.Thread(target=make, args=(names[1],))

    def half_way(path: Path, data: bytes, **how: Any) -> None:
        if path.stem == names[0]:
            other.start()
            other.join(0.2)  # it waits for us, or has swept our half by now
        write_atomic(path, data, **how)

    monkeypatch.setattr(module, "write_atomic", half_way)
    make(names[0])
    other.join()
    assert [found.id for name in names if (found := partials.find(name))] == names


def begin(partials: Partials, folder: Path, number: int, owner: OwnerKey, now: float, *busy: int) -> str:
    """One more upload, last touched at ``now``; its name."""
    name = f"{number:032x}"
    begun = Partial(id=name, length=10, expected=hash_of(b"x"), owner=owner)
    partials.make(begun, now, {f"{each:032x}" for each in busy})
    os.utime(folder / f"{name}.part", (now, now))
    return name


def test_an_owner_that_took_all_places_gives_way_to_one_that_has_none(tmp_path: Path) -> None:
    partials = Partials(tmp_path, count_max=3, age_max_s=86_400)
    names = [begin(partials, tmp_path, number, OWNER, number) for number in range(3)]
    with pytest.raises(TooManyPartialsError):
        begin(partials, tmp_path, 3, OWNER, 3)
    begin(partials, tmp_path, 4, OTHER, 4, 0)
    assert [partials.find(name) is not None for name in names] == [True, False, True]  # the first is busy
    with pytest.raises(TooManyPartialsError):  # two and one: nobody would have fewer
        begin(partials, tmp_path, 5, OTHER, 5)


def test_an_upload_that_was_left_alone_gives_way_after_ten_minutes(tmp_path: Path) -> None:
    partials = Partials(tmp_path, count_max=1, age_max_s=86_400)
    left = begin(partials, tmp_path, 0, OWNER, 0)
    with pytest.raises(TooManyPartialsError):
        begin(partials, tmp_path, 1, OWNER, 599)
    with pytest.raises(TooManyPartialsError):
        begin(partials, tmp_path, 2, OWNER, 600, 0)
    begin(partials, tmp_path, 3, OWNER, 600)
    assert partials.find(left) is None


def test_of_accounts_one_that_keeps_nothing_gives_way_and_one_that_does_stays(tmp_path: Path) -> None:
    book = AccountBook(tmp_path / "accounts.sqlite", accounts_max=2, tokens_max=2)
    keeps, idle, new, late = (OwnerKey(bytes([number]) * 32) for number in range(4))
    try:
        for key, made in ((keeps, 0), (idle, 10)):
            assert book.register(Account(key, "", None, made))
            book.add_token(key, f"token of {made}", "")
        book.pin(keeps, hash_of(b"x"), 1)
        with pytest.raises(AccountsFullError):
            book.register(Account(new, "", None, 3609))
        assert book.register(Account(new, "", None, 3610))
        assert [book.has(key) for key in (keeps, idle, new)] == [True, False, True]
        assert book.of_token("token of 10") is None
        with pytest.raises(AccountsFullError):
            book.register(Account(late, "", None, 3611))
    finally:
        book.close()


def test_accounts_of_a_file_that_was_made_before_files_had_a_mark_are_there(tmp_path: Path) -> None:
    path = tmp_path / "accounts.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.executescript(
            """
            PRAGMA journal_mode = WAL;
            CREATE TABLE accounts (
                key BLOB PRIMARY KEY, label TEXT NOT NULL, email TEXT, created_at INTEGER NOT NULL
            ) WITHOUT ROWID;
            CREATE TABLE tokens (
                hash BLOB PRIMARY KEY, key BLOB NOT NULL REFERENCES accounts (key), label TEXT NOT NULL,
                made INTEGER NOT NULL
            ) WITHOUT ROWID;
            CREATE INDEX tokens_of ON tokens (key, made);
            CREATE TABLE pins (
                key BLOB NOT NULL REFERENCES accounts (key), hash BLOB NOT NULL, size INTEGER NOT NULL,
                PRIMARY KEY (key, hash)
            ) WITHOUT ROWID;
            """
        )
        old.execute("INSERT INTO accounts VALUES (?, 'old', NULL, 7)", (OWNER,))
        old.execute("INSERT INTO tokens VALUES (?, ?, 'old', 1)", (blake3(b"a token").digest(), OWNER))
    path.chmod(0o644)
    for _ in range(2):  # it gets its mark, and has it
        book = AccountBook(path, accounts_max=2, tokens_max=2)
        assert book.of_token("a token") == Account(OWNER, "old", None, 7)
        book.pin(OWNER, hash_of(b"x"), 1)
        assert book.pins(OWNER) == [hash_of(b"x")]
        book.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # it names people


def test_another_programs_file_is_not_taken_for_accounts(tmp_path: Path) -> None:
    path = tmp_path / "accounts.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(StorageError, match="holds no accounts"):
        AccountBook(path, accounts_max=2, tokens_max=2)


def test_a_token_that_could_not_be_written_leaves_the_book_in_order(tmp_path: Path) -> None:
    book = AccountBook(tmp_path / "accounts.sqlite", accounts_max=2, tokens_max=2)
    try:
        account = Account(OWNER, "a", None, 1)
        assert book.register(account)
        book.add_token(OWNER, "one", "a")
        with pytest.raises(Exception, match="UNIQUE"):
            book.add_token(OWNER, "one", "a")
        book.add_token(OWNER, "two", "a")
        assert book.of_token("two") == account
    finally:
        book.close()
