"""``/s5/account``: registration and login by an Ed25519 key, and what an account keeps here."""

from __future__ import annotations

import json
import secrets
from functools import partial
from typing import Any, Final

import base58
import msgpack
import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.accounts import CHALLENGE_BYTES, Purpose
from p2pnode.protocols.s5.ids import base64url, from_base64url, multihash
from p2pnode.storage.s5.server.accounts import (
    COOKIE,
    Account,
    AccountBook,
    AccountsFullError,
    Challenges,
)
from p2pnode.storage.s5.server.bodies import whole
from p2pnode.storage.s5.server.context import Serving
from p2pnode.storage.s5.server.errors import HttpError
from p2pnode.storage.s5.wire import key_of
from p2pnode.storage.store import OwnerKey

_TEXT_MAX: Final = 256
_TOKEN_BYTES: Final = 32
_PINS_MESSAGE: Final = 0


class AccountApi:
    """The routes of accounts."""

    def __init__(self, serving: Serving, book: AccountBook) -> None:
        self._serving, self._book = serving, book
        limits = serving.limits
        self._challenges = Challenges(open_max=limits.s5_challenges_max, life_s=limits.s5_challenge_s)

    def routes(self) -> list[Route]:
        """The routes, for Starlette."""
        register, login = "/s5/account/register", "/s5/account/login"
        return [
            Route(register, partial(self._challenge, Purpose.REGISTER), methods=["GET"]),
            Route(register, partial(self._enter, Purpose.REGISTER), methods=["POST"]),
            Route(login, partial(self._challenge, Purpose.LOGIN), methods=["GET"]),
            Route(login, partial(self._enter, Purpose.LOGIN), methods=["POST"]),
            Route("/s5/account", self._about, methods=["GET"]),
            Route("/s5/account/stats", self._stats, methods=["GET"]),
            Route("/s5/account/pins.bin", self._pins, methods=["GET"]),
        ]

    async def _challenge(self, purpose: Purpose, request: Request) -> Response:
        key = key_of(request.query_params.get("pubKey", ""))
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self._challenges.give(challenge, key, purpose, self._serving.wall())
        return JSONResponse({"challenge": base64url(challenge)})

    async def _enter(self, purpose: Purpose, request: Request) -> Response:
        asked = _form(await whole(request, stall_s=self._serving.limits.s5_stall_s))
        key, now = key_of(asked["pubKey"]), self._serving.wall()
        self._challenges.check(
            from_base64url(asked["response"]),
            from_base64url(asked["signature"]),
            key=key,
            purpose=purpose,
            host=request.headers.get("host", ""),
            now=now,
        )
        owner = OwnerKey(key)
        if purpose is Purpose.REGISTER:
            account = Account(owner, asked["label"], asked["email"] or None, int(now))
            try:
                if not await trio.to_thread.run_sync(self._book.register, account):
                    raise HttpError(409, "this key has an account: log in with it")
            except AccountsFullError as error:
                raise HttpError(403, str(error)) from error
        elif not await trio.to_thread.run_sync(self._book.has, owner):
            raise HttpError(404, "this key has no account: register it first")
        token = "S5A" + base58.b58encode(secrets.token_bytes(_TOKEN_BYTES)).decode()
        await trio.to_thread.run_sync(self._book.add_token, owner, token, asked["label"])
        response = JSONResponse({"authToken": token})
        response.set_cookie(COOKIE, token, path="/", httponly=True, samesite="strict")
        return response

    async def _about(self, request: Request) -> Response:
        return JSONResponse(_account_json(await self._serving.access.account(request)))

    async def _stats(self, request: Request) -> Response:
        account = await self._serving.access.account(request)
        used = await trio.to_thread.run_sync(self._book.used_bytes, account.key)
        return JSONResponse({**_account_json(account), "stats": {"total": {"usedStorage": used}}})

    async def _pins(self, request: Request) -> Response:
        """Answer with three msgpack values: message kind, cursor (there is one page only), multihashes."""
        account = await self._serving.access.account(request)
        pins = await trio.to_thread.run_sync(self._book.pins, account.key)
        values: tuple[Any, ...] = (_PINS_MESSAGE, len(pins), [multihash(digest, old=True) for digest in pins])
        body = b"".join(msgpack.packb(value) for value in values)
        return Response(body, media_type="application/octet-stream")


def _account_json(account: Account) -> dict[str, Any]:
    return {
        "email": account.email,
        "createdAt": account.created_at,
        "quotaExceeded": False,
        "emailConfirmed": False,
        "isRestricted": False,
    }


def _form(body: bytes) -> dict[str, str]:
    """The fields of a request, where ``label`` and ``email`` may be absent. Raises ``ProtocolError``."""
    try:
        raw = json.loads(body)
        fields = {name: raw[name] for name in ("pubKey", "response", "signature")}
        fields |= {name: raw.get(name) or "" for name in ("label", "email")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = "send JSON with pubKey, response, signature and label"
        raise ProtocolError(msg) from error
    if not all(isinstance(text, str) and len(text) <= _TEXT_MAX for text in fields.values()):
        msg = f"pubKey, response, signature, label and email are texts of at most {_TEXT_MAX} characters"
        raise ProtocolError(msg)
    return fields
