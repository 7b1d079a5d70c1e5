"""A session's state in the journal, hosted or bought: read, and moved only where that makes sense."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Literal

from p2pnode.errors import StorageError
from p2pnode.ids import SessionId


def move(
    db: sqlite3.Connection,
    table: Literal["hosted", "bought"],
    session: SessionId,
    before: Collection[str],
    after: str,
    *,
    same: Collection[str] = (),
) -> None:
    """From one of ``before`` to ``after``; in ``same`` nothing changes, from elsewhere it is refused."""
    state = state_of(db, table, session)
    if state in before:
        db.execute(f"UPDATE {table} SET state = ? WHERE session = ?", (after, session))  # noqa: S608 - a literal
    elif state not in same:
        msg = f"session {session.hex()} is {state} in the journal: it can't become {after}"
        raise StorageError(msg)


def state_of(db: sqlite3.Connection, table: Literal["hosted", "bought"], session: SessionId) -> str:
    """Raises ``StorageError`` for a session that is not there."""
    query = f"SELECT state FROM {table} WHERE session = ?"  # noqa: S608 - a literal
    row = db.execute(query, (session,)).fetchone()
    if row is None:
        msg = f"session {session.hex()} is not in the journal: was an older journal restored?"
        raise StorageError(msg)
    return str(row["state"])
