"""Keeps the pages of different scopes apart in a cache that is one for all jobs. Pure.

The libraries find pages again in two ways, and neither knows of scopes. A whole page is found by its hash,
which is over its ids and the hash of the page before: :func:`scoped` lets the first one begin with the scope.
A page that is only begun is compared with all others, id by id: :class:`PageOwners` says which ones a job may
see. Otherwise one user's prompt would show in the time that another's takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

Hash: TypeAlias = Callable[[Any, bytes | None], bytes]


class Scope:
    """The scope of the job whose pages are being hashed. One thread hashes, in calls of that job."""

    now = b""


def scoped(plain: Hash) -> Hash:
    """``plain``, with the scope in the place of the page before the first one."""

    def hashed(ids: Any, before: bytes | None) -> bytes:
        return plain(ids, Scope.now if before is None else before)

    return hashed


class PageOwners:
    """The scope of what each page holds. Pages are objects that are made once and stay."""

    def __init__(self) -> None:
        self._owner: Final[dict[int, bytes]] = {}

    def take(self, pages: Iterable[Any], scope: bytes) -> dict[int, bytes | None]:
        """The pages are a job's of ``scope`` now. Returns what they were, for :meth:`give_back`."""
        before: dict[int, bytes | None] = {}
        for page in pages:
            before[id(page)] = self._owner.get(id(page))
            self._owner[id(page)] = scope
        return before

    def give_back(self, pages: Iterable[Any], before: dict[int, bytes | None]) -> None:
        """A page that was given and never written will hold again what it held before, and for whom."""
        for page in pages:
            owner = before.get(id(page))
            if page.can_revert and owner is not None:
                self._owner[id(page)] = owner

    def of(self, pages: Iterable[Any], scope: bytes) -> list[Any]:
        """Those of ``pages`` that hold something of ``scope``."""
        return [page for page in pages if self._owner.get(id(page)) == scope]
