"""Another S5 node as a ``BlobStore`` and a ``Registry``, over its HTTP API.

S5 counts by account and keeps what is pinned until it is deleted: it has no leases and no owners, so
``lease_s`` and ``owner`` change nothing here. ``unpin`` deletes where the node allows it; most don't. The
node is a stranger: a blob that is read whole is counted and hashed before it is returned. A part can't be
checked alone, since S5's HTTP API has no proofs: whoever reads parts must check the whole.

Deadlines are the caller's cancel scopes. A node that can't be reached raises ``UnreachableError``, one that
refuses ``RefusedError``, one that breaks the protocol ``ProtocolError``.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import httpx
import trio
from blake3 import blake3

from p2pnode.errors import ConfigError, P2PNodeError, ProtocolError, RefusedError, UnreachableError
from p2pnode.protocols.s5.entries import Entry, EntryKey, tagged
from p2pnode.protocols.s5.ids import BlobHash, BlobId, base64url, hash_of, parse_id
from p2pnode.scopes import is_global_ip, is_loopback
from p2pnode.storage.s5.wire import entry_json, entry_of
from p2pnode.storage.store import (
    BLOB_MAX,
    LEASE_S,
    BadEntryError,
    Data,
    HashMismatchError,
    NoBlobError,
    OwnerKey,
    QuotaError,
    StaleEntryError,
    TooLargeError,
)

_OK: Final = 200
_PARTIAL: Final = 206
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_UNSATISFIABLE: Final = 416
_ERROR: Final = 400
_NO_DELETING: Final = frozenset({401, 403, 404, 405, 501})
_OTHER_DIALECT: Final = frozenset({400, 415, 500, 501})
"""Statuses that a node may answer to an id in the dialect that it doesn't know."""
_ANSWER_MAX: Final = 4096
_STALE_TEXT: Final = b"Revision number too low"
_CONTENT_RANGE: Final = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})", re.ASCII)


class S5Client:
    """The node that ``link`` reaches."""

    def __init__(self, link: S5Link) -> None:
        self._link = link
        self._legacy: bool | None = None

    # ---- blobs

    async def put(
        self,
        data: Data,
        *,
        owner: OwnerKey,  # noqa: ARG002 - the token says whose it is
        expected: BlobHash | None = None,
        lease_s: float = LEASE_S,  # noqa: ARG002 - see above
    ) -> BlobId:
        """See ``BlobStore``. A stream with the wrong hash is broken off before its end: nothing is kept."""
        sent = _Sent(data, expected)
        body = sent.whole if sent.whole is not None else sent
        kind = {"Content-Type": "application/octet-stream"}
        async with (
            aclosing(sent),
            self._link.request("POST", "/s5/upload", content=body, headers=kind) as response,
        ):
            if response.status_code != _OK:
                raise await self._link.failure(response)
            answer = await read_at_most(response, _ANSWER_MAX)
        try:
            claimed = parse_id(str(json.loads(answer)["cid"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            msg = f"the S5 node {self._link.name} answered an upload without a cid: use another"
            raise ProtocolError(msg) from error
        if claimed.hash != sent.id.hash or claimed.size not in (0, sent.id.size):
            msg = f"the S5 node {self._link.name} stored other bytes than were sent: use another"
            raise ProtocolError(msg)
        return sent.id

    async def read(self, digest: BlobHash, offset: int = 0, length: int | None = None) -> bytes:
        """See ``BlobStore``. Raises ``HashMismatchError`` for a whole blob that isn't the one asked for."""
        if offset == 0 and length is None:
            async with self._by_id("GET", "/s5/download/{}", digest) as response:
                if response.status_code != _OK:
                    raise await self._link.failure(response)
                return await self._whole(response, digest)
        if length == 0:
            if await self.size(digest) is None:
                raise self._missing()
            return b""
        last = "" if length is None else str(offset + length - 1)
        async with self._by_id("GET", "/{}", digest, {"Range": f"bytes={offset}-{last}"}) as response:
            if response.status_code == _UNSATISFIABLE:
                return b""
            if response.status_code == _OK:  # it knows no ranges
                whole = await self._whole(response, digest)
                return whole[offset:] if length is None else whole[offset : offset + length]
            if response.status_code != _PARTIAL:
                raise await self._link.failure(response)
            first, count, _ = self._content_range(response)
            if first != offset or (length is not None and count > length):
                raise self._nonsense("another range than was asked for")
            part = await read_at_most(response, count)
            if len(part) != count:
                raise self._nonsense("fewer bytes than it said")
            return part

    async def size(self, digest: BlobHash) -> int | None:
        """See ``BlobStore``. It is the node's word: only reading all of the blob shows whether it is true."""
        async with self._by_id("GET", "/{}", digest, {"Range": "bytes=0-0"}) as response:
            match response.status_code:
                case 404:
                    return None
                case 206 | 416:
                    return self._content_range(response)[2]
                case 200:
                    length = str(response.headers.get("content-length", ""))
                    if length.isascii() and length.isdigit():
                        return int(length)
                    return len(await self._whole(response, digest))
                case _:
                    raise await self._link.failure(response)

    async def pin(
        self,
        digest: BlobHash,
        *,
        owner: OwnerKey,  # noqa: ARG002
        lease_s: float = LEASE_S,  # noqa: ARG002
    ) -> None:
        """See ``BlobStore``."""
        async with self._by_id("POST", "/s5/pin/{}", digest) as response:
            if response.status_code >= _ERROR:
                raise await self._link.failure(response)

    async def unpin(self, digest: BlobHash, *, owner: OwnerKey) -> None:  # noqa: ARG002
        """Delete it where the node allows that; otherwise nothing happens."""
        async with self._by_id("DELETE", "/s5/delete/{}", digest) as response:
            if response.status_code >= _ERROR and response.status_code not in _NO_DELETING:
                raise await self._link.failure(response)

    # ---- the registry

    async def get(self, key: EntryKey) -> Entry | None:
        """See ``Registry``. Raises ``BadEntryError`` for one that the key did not sign."""
        params = {"pk": base64url(tagged(key))}
        async with self._link.request("GET", "/s5/registry", params=params) as response:
            if response.status_code == _NOT_FOUND:
                return None
            if response.status_code != _OK:
                raise await self._link.failure(response)
            entry = entry_of(await read_at_most(response, _ANSWER_MAX))
        if entry.key != key or not entry.holds():
            msg = f"the S5 node {self._link.name} answered with an entry that its key did not sign"
            raise BadEntryError(msg)
        return entry

    async def set(self, entry: Entry, *, owner: OwnerKey) -> None:  # noqa: ARG002
        """See ``Registry``. An S5 node may refuse an equal revision that would win by our rule."""
        if not entry.holds():
            msg = "the entry is not signed by its key: sign it again"
            raise BadEntryError(msg)
        body = json.dumps(entry_json(entry)).encode()
        kind = {"Content-Type": "application/json"}
        async with self._link.request("POST", "/s5/registry", content=body, headers=kind) as response:
            if response.status_code < _ERROR:
                return
            failure = await self._link.failure(response)
        if response.status_code != _CONFLICT and _STALE_TEXT.decode() not in str(failure):
            raise failure
        current = await self.get(entry.key)
        if current == entry:
            return
        if current is None or current.revision < entry.revision:
            raise failure
        msg = f"the S5 node {self._link.name} has revision {current.revision} of that entry: take it in first"
        raise StaleEntryError(msg, current)

    # ---- inside

    @asynccontextmanager
    async def _by_id(
        self, method: str, path: str, digest: BlobHash, headers: dict[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request whose path has the id, in the dialect that this node knows."""
        blob = BlobId(digest)
        if self._legacy is None:
            async with self._link.request(method, path.format(blob.text()), headers=headers) as response:
                if response.status_code not in _OTHER_DIALECT:
                    self._legacy = False
                    yield response
                    return
            name = blob.legacy_text()
        else:
            name = blob.legacy_text() if self._legacy else blob.text()
        async with self._link.request(method, path.format(name), headers=headers) as response:
            if response.status_code not in _OTHER_DIALECT and self._legacy is None:
                self._legacy = True
            yield response

    async def _whole(self, response: httpx.Response, digest: BlobHash) -> bytes:
        whole = await read_at_most(response, BLOB_MAX)
        if hash_of(whole) != digest:
            msg = f"the S5 node {self._link.name} sent other bytes than the hash promises: ask another"
            raise HashMismatchError(msg)
        return whole

    def _content_range(self, response: httpx.Response) -> tuple[int, int, int]:
        """The first byte, the count (both 0 for ``*``) and the size of all."""
        matched = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if matched is None:
            raise self._nonsense("a range without Content-Range")
        first, last, size = (int(each or 0) for each in matched.groups())
        count = last - first + 1 if matched[1] else 0
        if (matched[1] and (count <= 0 or last >= size)) or count > BLOB_MAX:
            raise self._nonsense("a range that can't be")
        return first, count, size

    def _nonsense(self, what: str) -> ProtocolError:
        return ProtocolError(f"the S5 node {self._link.name} sent {what}: use another")

    def _missing(self) -> NoBlobError:
        return NoBlobError(f"the S5 node {self._link.name} does not have that blob: ask another")


@asynccontextmanager
async def open_s5(url: str, token: str | None = None) -> AsyncIterator[S5Client]:
    """A client of the node at ``url``. Dials nothing yet. Raises ``ConfigError``."""
    async with httpx.AsyncClient(trust_env=False, timeout=None, follow_redirects=False) as client:  # noqa: S113
        yield S5Client(S5Link(client, url, token))


class _Sent:
    """The bytes of an upload, hashed as they leave. ``whole`` where they are at hand, else it is iterated."""

    def __init__(self, data: Data, expected: BlobHash | None) -> None:
        self.whole = data if isinstance(data, bytes) else None
        self._pieces = data.__aiter__() if not isinstance(data, bytes) else None
        self._hasher, self._size, self._expected = blake3(), 0, expected
        if self.whole is not None:
            self._count(self.whole)
            self._check()

    @property
    def id(self) -> BlobId:
        """The id of what was sent so far."""
        return BlobId(BlobHash(self._hasher.digest()), self._size)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        assert self._pieces is not None  # noqa: S101 - `whole` is sent otherwise
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            self._check()  # where it raises, the end is not sent, and the node drops what it has
            raise
        self._count(piece)
        return piece

    async def aclose(self) -> None:
        """Close the stream that the bytes came from, wherever it was read to."""
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()

    def _count(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > BLOB_MAX:
            msg = f"a blob has at most {BLOB_MAX} bytes: split it"
            raise TooLargeError(msg)
        self._hasher.update(piece)

    def _check(self) -> None:
        if self._expected is not None and self.id.hash != self._expected:
            msg = "the bytes are not those that their hash promised: read them again"
            raise HashMismatchError(msg)


_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_MAX: Final = 3
_ERROR_MAX: Final = 4096
_SHOWN_MAX: Final = 200


class S5Link:
    """HTTP to the node at ``url``, over a client that the caller closes: redirects, and statuses as errors.

    A node may redirect its readers for the bytes. It is a stranger, so it must not redirect them into the
    private network that they are in, unless the user's own URL is there too: every address that a redirect's
    name resolves to must be public, and the address that was checked is the one that is dialled. The token is
    sent to the configured node only.
    """

    def __init__(self, client: httpx.AsyncClient, url: str, token: str | None = None) -> None:
        self._client, self._base, self._token = client, check_s5_url(url, token), token

    @property
    def name(self) -> str:
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
        """The response, whatever its status, its body not yet read. Raises ``UnreachableError``."""
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
            msg = f"the S5 node {self.name} can't be reached ({reason}): check that it runs, and --s5-url"
            raise UnreachableError(msg) from error
        msg = f"the S5 node {self.name} redirects in a circle: use another"
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
        return ProtocolError(f"the S5 node {self.name} redirects to {where}: not followed. Use another node")

    async def failure(self, response: httpx.Response) -> P2PNodeError:
        """The error that an unsuccessful response stands for."""
        status, reason = response.status_code, await _reason(response)
        answer = f"the S5 node {self.name} answered {status} ({reason})"
        match status:
            case 404:
                return NoBlobError(f"the S5 node {self.name} does not have that blob: ask another")
            case 413:
                return TooLargeError(f"{answer}: send less at once")
            case 422:
                return HashMismatchError(f"{answer}: the bytes changed on their way, send them again")
            case 507:
                return QuotaError(f"{answer}: delete something there, or use another node")
            case 401 | 403:
                return RefusedError("bad_request", f"{answer}: it needs another token")
            case 429:
                return RefusedError("rate_limited", answer, retry_after_s=_retry_after_s(response))
            case _:
                return RefusedError("internal" if status >= 500 else "bad_request", answer)  # noqa: PLR2004


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


async def _reason(response: httpx.Response) -> str:
    """The reason that the node gives, short and on one line."""
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
