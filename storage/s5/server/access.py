"""Who asks, and may they? By the node's own token, or by an account's, in the three places S5 allows.

Without a token and without accounts the API is open: it listens on this machine only. With accounts, what
is public anyway (blobs by their id, registry entries by their key) can still be read by everybody.
"""

from __future__ import annotations

import hmac

import trio
from starlette.requests import HTTPConnection

from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.s5.server.accounts import Account, AccountBook
from p2pnode.storage.s5.server.errors import HttpError
from p2pnode.storage.s5.server.options import S5Options
from p2pnode.storage.store import OwnerKey

COOKIE = "s5-auth-token"


class Access:
    """The rule of one server."""

    def __init__(self, options: S5Options, book: AccountBook | None) -> None:
        self._options, self._book = options, book

    async def reader(self, connection: HTTPConnection) -> None:
        """May they read? Raises ``HttpError`` 401."""
        if self._options.token is not None:
            await self.writer(connection)

    async def writer(self, connection: HTTPConnection) -> OwnerKey:
        """Whom what they store is counted by. Raises ``HttpError`` 401."""
        if self._options.token is None and self._book is None:
            return self._options.owner
        token = token_of(connection)
        if token and self._options.token is not None and _same(token, self._options.token):
            return self._options.owner
        return (await self.account(connection)).key

    async def account(self, connection: HTTPConnection) -> Account:
        """The account whose token they hold. Raises ``HttpError`` 401."""
        token = token_of(connection)
        if token and self._book is not None:
            found = await trio.to_thread.run_sync(self._book.of_token, token)
            if found is not None:
                return found
        how = "register or log in for one" if self._book is not None else "ask the node's owner for it"
        msg = f"this needs a token that is known here ({how}): Authorization: Bearer TOKEN"
        raise HttpError(401, msg, {"WWW-Authenticate": "Bearer"})

    async def note_pin(self, owner: OwnerKey, digest: BlobHash, size: int) -> None:
        """Put it on the list of what an account pinned; the node's owner has none."""
        if self._book is not None and owner != self._options.owner:
            await trio.to_thread.run_sync(self._book.pin, owner, digest, size)

    async def note_unpin(self, owner: OwnerKey, digest: BlobHash) -> None:
        """Take it off."""
        if self._book is not None and owner != self._options.owner:
            await trio.to_thread.run_sync(self._book.unpin, owner, digest)


def token_of(connection: HTTPConnection) -> str:
    """``Authorization: Bearer``, the cookie, or ``?auth_token``; empty where there is none."""
    scheme, _, given = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    return connection.cookies.get(COOKIE) or connection.query_params.get("auth_token", "")


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
