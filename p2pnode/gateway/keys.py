"""The keys with budgets of a data dir, as callers of its gateway."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from p2pnode.files import off_the_loop
from p2pnode.gateway.access import Caller, KeyRing
from p2pnode.gateway.faults import KeyRefusedError
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.keys import Key, KeyBook, KeyUsage


class BudgetRing:
    """Knows the keys of the journal at ``path``, and leaves all else to ``others``.

    The journal is read for each request, so that a key which another process made or revoked is known at
    once. It is opened when it is there.
    """

    def __init__(self, others: KeyRing, path: Path, *, wall: Callable[[], float] = time.time) -> None:
        self._others, self._path, self._wall = others, path, wall
        self._journal: Journal | None = None

    @property
    def required(self) -> bool:
        """Whether nobody may ask without a key."""
        return self._others.required

    async def authorise(self, token: str) -> Caller:
        """Who has this key. Raises ``KeyRefusedError`` and ``BudgetError``, and ``StorageError``.

        A key that ended is refused also where nobody needs one: its program should hear of it.
        """
        book = await self._book() if token else None
        key = book.find(token) if book is not None else None
        if book is None or key is None:
            return await self._refer(token)
        if (error := book.why_not(key)) is not None:
            raise error
        return Caller(key_id=key.id.hex(), budget=key)

    async def _refer(self, token: str) -> Caller:
        try:
            return await self._others.authorise(token)
        except KeyRefusedError as error:
            error.args = (f"{error}. `p2pnode keys new NAME` makes one with a budget", *error.args[1:])
            raise

    async def usages(self) -> list[tuple[Key, KeyUsage]]:
        """All keys that were not revoked, and what is spent on each. Raises ``StorageError``."""
        book = await self._book()
        if book is None:
            return []
        return [(key, book.usage(key)) for key in book.all() if key.revoked_at is None]

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    async def _book(self) -> KeyBook | None:
        if self._journal is None and self._path.exists():
            opened = await off_the_loop(partial(Journal.open, self._path))
            if self._journal is None:
                self._journal = opened
            else:  # another request was quicker
                opened.close()
        if self._journal is None:
            return None
        return KeyBook(self._journal, wall=self._wall, draw=secrets.token_bytes)
