"""HTTP to one S5 node: its redirects followed where that is safe, its statuses as errors.

A node may send its readers elsewhere for the bytes. It is a stranger, so it may not send them into the
private network they sit in, unless the user's own URL is in there too: every address that a redirect's name
resolves to must be public, and the one that was checked is the one that is dialled. The token is for the
configured node only.

No deadline is set here: the caller's cancel scope has it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import trio

from p2pnode.errors import ConfigError, P2PNodeError, ProtocolError, RefusedError, UnreachableError
from p2pnode.scopes import is_global_ip, is_loopback
from p2pnode.storage.store import HashMismatchError, NoBlobError, QuotaError, TooLargeError

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_MAX: Final = 3
_ERROR_MAX: Final = 4096
_SHOWN_MAX: Final = 200


class S5Link:
    """Requests to the node at ``url``, over a client that the caller closes."""

    def __init__(self, client: httpx.AsyncClient, url: str, token: str | None = None) -> None:
        self._client, self._base, self._token = client, check_s5_url(url, token), token

    @property
    def shown(self) -> str:
        """The node, for people and logs."""
        return str(self._base)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The answer, its body not read yet, whatever its status. Raises ``UnreachableError``."""
        url = self._base.copy_with(path=self._base.path.rstrip("/") + path, params=params)
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        extensions: dict[str, Any] = {}
        try:
            for _ in range(_REDIRECTS_MAX + 1):
                own = {"Authorization": f"Bearer {self._token}"} if self._token and self._is_home(url) else {}
                async with self._client.stream(
                    method, url, content=content, headers={**sent, **own}, extensions=extensions
                ) as response:
                    if method != "GET" or response.status_code not in _REDIRECTS:
                        yield response
                        return
                    target = self._target(url, response)
                sent, extensions, url = await self._aimed(target, sent)
        except httpx.InvalidURL as error:  # httpx reads a redirect's target before it shows the answer
            raise self._refuse_redirect("what is no URL") from error
        except (httpx.HTTPError, httpx.StreamError, OSError, UnicodeError) as error:  # "a..b" is no name
            reason = str(error) or type(error).__name__
            msg = f"the S5 node {self.shown} can't be reached ({reason}): check that it runs, and --s5-url"
            raise UnreachableError(msg) from error
        msg = f"the S5 node {self.shown} redirects in a circle: use another"
        raise ProtocolError(msg)

    def _target(self, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        location = response.headers.get("location", "")
        if not location:
            raise self._refuse_redirect("nowhere")
        try:
            target = url.join(location)
        except httpx.InvalidURL as error:
            raise self._refuse_redirect("what is no URL") from error
        downgraded = url.scheme == "https" and target.scheme != "https"
        if target.scheme not in ("http", "https") or not target.host or target.userinfo or downgraded:
            raise self._refuse_redirect(f"{target.scheme}://{target.host}")
        return target

    async def _aimed(
        self, target: httpx.URL, sent: dict[str, str]
    ) -> tuple[dict[str, str], dict[str, Any], httpx.URL]:
        """Headers, extensions and url that reach ``target`` at an address that was checked."""
        plain = {name: value for name, value in sent.items() if name != "Host"}
        if self._is_home(target) or not await self._is_all_public(self._base.host):
            return plain, {}, target
        addresses = await _resolve(target.host)
        if not addresses or not all(is_global_ip(address) for address in addresses):
            raise self._refuse_redirect(f"{target.host}, which is not on the public internet")
        host = target.netloc.decode("ascii")
        return {**plain, "Host": host}, {"sni_hostname": target.host}, target.copy_with(host=addresses[0])

    async def _is_all_public(self, host: str) -> bool:
        addresses = await _resolve(host)
        return bool(addresses) and all(is_global_ip(address) for address in addresses)

    def _is_home(self, url: httpx.URL) -> bool:
        return (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)

    def _refuse_redirect(self, where: str) -> ProtocolError:
        return ProtocolError(f"the S5 node {self.shown} redirects to {where}: not followed. Use another node")

    async def failure(self, response: httpx.Response) -> P2PNodeError:
        """What an answer that isn't a success means."""
        status, words = response.status_code, await _words(response)
        told = f"the S5 node {self.shown} answered {status} ({words})"
        match status:
            case 404:
                return NoBlobError(f"the S5 node {self.shown} does not have that blob: ask another")
            case 413:
                return TooLargeError(f"{told}: send less at once")
            case 422:
                return HashMismatchError(f"{told}: the bytes changed on their way, send them again")
            case 507:
                return QuotaError(f"{told}: delete something there, or use another node")
            case 401 | 403:
                return RefusedError("bad_request", f"{told}: it needs another token")
            case 429:
                return RefusedError("rate_limited", told, retry_after_s=_retry_after_s(response))
            case _:
                return RefusedError("internal" if status >= 500 else "bad_request", told)  # noqa: PLR2004


def check_s5_url(url: str, token: str | None = None) -> httpx.URL:
    """The URL of an S5 node. Raises ``ConfigError``."""
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        msg = f"--s5-url: {url!r} is no URL ({error}), as https://s5.example"
        raise ConfigError(msg) from error
    if found.scheme not in ("http", "https") or not found.host or found.query or found.fragment:
        msg = f"--s5-url: {url!r} is no address of a node, as https://s5.example or http://127.0.0.1:5050"
        raise ConfigError(msg)
    if found.userinfo:
        msg = "--s5-url: leave the user and password out of the URL: an S5 node takes a token"
        raise ConfigError(msg)
    if token and found.scheme == "http" and not is_loopback(found.host):
        msg = "--s5-url: a token would be sent in clear: use https"
        raise ConfigError(msg)
    return found


async def read_at_most(response: httpx.Response, bytes_max: int) -> bytes:
    """The whole body. Raises ``ProtocolError`` once more than that has come."""
    whole = bytearray()
    try:
        async for chunk in response.aiter_raw():
            whole += chunk
            if len(whole) > bytes_max:
                # Closed and then read on, so that httpx's nested generators end by its error: left
                # half-read they would be collected, with a warning, at any time.
                await response.aclose()
                whole = whole[: bytes_max + 1]
    except (httpx.TransportError, httpx.StreamError):
        if len(whole) <= bytes_max:
            raise
    if len(whole) > bytes_max:
        msg = f"an S5 node sent more than the {bytes_max} bytes that its answer may have: use another"
        raise ProtocolError(msg)
    return bytes(whole)


async def _words(response: httpx.Response) -> str:
    """The node's own words, short and on one line."""
    text = ""
    try:
        text = (await read_at_most(response, _ERROR_MAX)).decode("utf-8", "replace")
        text = str(json.loads(text)["error"])
    except (ProtocolError, ValueError, KeyError, TypeError, RecursionError):
        pass  # not our dialect of errors: whatever text there is
    shown = "".join(each if each.isprintable() else " " for each in text[:_SHOWN_MAX])
    return " ".join(shown.split()) or "no reason given"


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None  # noqa: PLR2004


async def _resolve(host: str) -> list[str]:
    found = await trio.socket.getaddrinfo(host, None, type=trio.socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
