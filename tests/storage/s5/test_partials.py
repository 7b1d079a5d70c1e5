"""Partial uploads on disk: what several requests at once do to one another."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from p2pnode.files import write_atomic
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.s5_server import partials as module
from p2pnode.storage.s5_server.accounts import Account, AccountBook
from p2pnode.storage.s5_server.partials import Partials
from p2pnode.storage.store import OwnerKey

OWNER = OwnerKey(bytes(32))


def test_uploads_that_begin_at_once_do_not_sweep_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partials = Partials(tmp_path, count_max=4, age_max_s=60)
    names = ["a" * 32, "b" * 32]

    def make(name: str) -> None:
        partials.make(name, 10, hash_of(b"x"), OWNER, 0.0)

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
