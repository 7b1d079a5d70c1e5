"""A plain HTTP(S) download that can be resumed: ``Range`` guarded by ``If-Range``, hashed while it streams.

The ``.part`` file stays after a failure, with the validator (``ETag`` or ``Last-Modified``) of the file that
it is a part of; without a validator the next attempt begins anew. A lock on the ``.part`` file keeps two
pulls from writing into the same file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final
from urllib.request import getproxies

import httpx
import structlog
import trio

from p2pnode.bounded import backoff_s
from p2pnode.errors import ConfigError, StorageError
from p2pnode.locks import try_lock
from p2pnode.models.pull.target import PullConfig, Target, commit
from p2pnode.scopes import is_global_ip

_CHUNK_BYTES: Final = 1 << 18
_WAIT_MAX_S: Final = 8.0
_OK: Final = 200
_PARTIAL: Final = 206
_RANGE_NOT_SATISFIABLE: Final = 416
_TRY_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_NOT_ALLOWED: Final = frozenset({401, 403})
_GATED: Final = (
    "Its maker gives it to some only: take it from another source, or fetch the files by hand and name their "
    "folder"
)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

log = structlog.get_logger(__name__)


class _InterruptedError(Exception):
    """This attempt ended early; the next one may go on."""


class NotPublicError(Exception):
    """An address of a stranger's source leads into a private network."""


class PublicTransport(httpx.AsyncBaseTransport):
    """HTTP to the public internet only: each name, a redirect's too, is resolved, all its addresses must be
    public, and one of those that were checked is dialled. Where a proxy is set, that decides."""

    def __init__(self, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self._inner = inner or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See ``httpx``. Raises ``NotPublicError``, and ``httpx.ConnectError`` for a name without address."""
        host = request.url.host
        try:
            found = await trio.socket.getaddrinfo(host, None, type=trio.socket.SOCK_STREAM)
        except OSError as error:
            raise httpx.ConnectError(f"{host} is not known ({error.strerror})", request=request) from error
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
        if not addresses or not all(is_global_ip(address) for address in addresses):
            raise NotPublicError(f"{host} is not on the public internet, where a list's sources have to be")
        request.extensions = {**request.extensions, "sni_hostname": host}
        request.url = request.url.copy_with(host=addresses[0])  # the Host header is set already
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


async def pull_http(url: str, target: Target, config: PullConfig) -> None:
    """Download what is at ``url`` to ``target``, in as many attempts as it takes while more bytes come."""
    with _locked(target) as file:
        part = await trio.to_thread.run_sync(_Part.open, file, target)
        failures, furthest = 0, part.done
        timeout = httpx.Timeout(config.stall_s)
        transport = PublicTransport() if config.public_only and not getproxies() else None
        async with httpx.AsyncClient(follow_redirects=True, timeout=timeout, transport=transport) as client:
            while True:
                try:
                    await _attempt(client, url, target, part)
                    break
                except NotPublicError as error:
                    raise ConfigError(
                        f"the download of model {target.name!r} was not begun: {error}"
                    ) from error
                except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, _InterruptedError) as error:
                    # Only new bytes count: a server that makes us begin anew each time must not keep us here.
                    failures = 1 if part.done > furthest else failures + 1
                    furthest = max(furthest, part.done)
                    log.info("model.pull_interrupted", name=target.name, done=part.done, error=str(error))
                    if failures >= config.attempts:
                        raise ConfigError(_gave_up(url, target, part.done, error)) from error
                await trio.sleep(backoff_s(failures - 1, first_s=config.retry_wait_s, max_s=_WAIT_MAX_S))
        part.forget_validator()
        await trio.to_thread.run_sync(commit, target, part.sha256())


def _gave_up(url: str, target: Target, done: int, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    return (
        f"the download of model {target.name!r} from {_host_of(url)} failed ({reason}) after "
        f"{done} of {target.file.size_bytes} bytes. Check the network and run "
        f"`p2pnode models pull {target.name}` again: it goes on where it stopped"
    )


def _host_of(url: str) -> str:
    try:
        return httpx.URL(url).host
    except httpx.InvalidURL:
        return url


async def _attempt(client: httpx.AsyncClient, url: str, target: Target, part: _Part) -> None:
    total = target.file.size_bytes
    if part.done == total:
        return
    headers = {"Accept-Encoding": "identity"}
    if part.done and part.validator:
        headers |= {"Range": f"bytes={part.done}-", "If-Range": part.validator}
    elif part.done:
        await trio.to_thread.run_sync(part.restart)
    async with client.stream("GET", url, headers=headers) as response:
        await _accept(response, target, part)
        part.keep_validator(_validator(response))
        target.progress(part.done, total)
        async for data in response.aiter_raw(_CHUNK_BYTES):
            if part.done + len(data) > total:
                await trio.to_thread.run_sync(part.discard)
                raise ConfigError(_wrong_size(target, f"more than {total}"))
            await trio.to_thread.run_sync(part.write, data)
            target.progress(part.done, total)
    if part.done < total:
        raise _InterruptedError("the server ended the file early")


async def _accept(response: httpx.Response, target: Target, part: _Part) -> None:
    """Bring the ``.part`` file to the place where the response's body begins, or raise."""
    total = target.file.size_bytes
    status = response.status_code
    if status == _PARTIAL:
        matched = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not matched or int(matched[1]) != part.done:
            await trio.to_thread.run_sync(part.restart)
            raise _InterruptedError("the server sent another range than was asked for")
        if matched[2] not in ("*", str(total)):
            await trio.to_thread.run_sync(part.discard)
            raise ConfigError(_wrong_size(target, matched[2]))
    elif status == _OK:
        # The server ignores ranges, or the file has changed: the whole file comes, from the start.
        await trio.to_thread.run_sync(part.restart)
        length = response.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and int(length) > total:
            raise ConfigError(_wrong_size(target, length))
    elif status == _RANGE_NOT_SATISFIABLE:
        await trio.to_thread.run_sync(part.restart)
        raise _InterruptedError("the server's file is shorter than what was downloaded")
    elif status in _TRY_AGAIN:
        raise _InterruptedError(f"the server answered {status}")
    else:
        remedy = _GATED if status in _NOT_ALLOWED else "Check the model's source in the catalogue"
        raise ConfigError(
            f"the download of model {target.name!r} was refused: {response.url.host} answered {status}. "
            + remedy
        )


def _wrong_size(target: Target, found: str) -> str:
    return (
        f"the source of model {target.name!r} has {found} bytes of {target.file.path}, its manifest says "
        f"{target.file.size_bytes}: it is another file. Check the model's source in the catalogue"
    )


def _validator(response: httpx.Response) -> str | None:
    """What If-Range accepts (RFC 9110, 13.1.5): a strong ETag, or else a date."""
    etag = str(response.headers.get("ETag", ""))
    if etag and not etag.startswith("W/"):
        return etag
    return str(response.headers.get("Last-Modified", "")) or None


@contextmanager
def _locked(target: Target) -> Iterator[BinaryIO]:
    with target.part.open("a+b") as file:
        if not try_lock(file.fileno()):
            raise StorageError(
                f"model {target.name!r} is being pulled by another process; wait for it to finish"
            )
        yield file


@dataclass(slots=True)
class _Part:
    """The unfinished file, its running hash, and the validator of what it is part of."""

    file: BinaryIO
    notes: Path
    done: int
    digest: hashlib._Hash
    validator: str | None

    @classmethod
    def open(cls, file: BinaryIO, target: Target) -> _Part:
        """Read what an earlier pull left. Blocks on the disk."""
        notes = target.part.with_name(target.part.name + ".json")
        validator = None
        try:
            noted = json.loads(notes.read_text(encoding="utf-8"))
            validator = str(noted["validator"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # without its note the server is not asked whether the file changed: it is fetched anew
        part = cls(file, notes, 0, hashlib.sha256(), validator)
        file.seek(0)
        while data := file.read(_CHUNK_BYTES):
            part.digest.update(data)
            part.done += len(data)
        if part.done > target.file.size_bytes:
            part.restart()
        return part

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.file.flush()
        self.digest.update(data)
        self.done += len(data)

    def restart(self) -> None:
        self.file.truncate(0)
        self.done = 0
        self.digest = hashlib.sha256()
        self.forget_validator()

    def discard(self) -> None:
        self.restart()
        Path(self.file.name).unlink(missing_ok=True)

    def keep_validator(self, validator: str | None) -> None:
        self.forget_validator()
        if validator:
            self.validator = validator
            self.notes.write_text(json.dumps({"validator": validator}), encoding="utf-8")

    def forget_validator(self) -> None:
        self.validator = None
        self.notes.unlink(missing_ok=True)

    def sha256(self) -> str:
        return self.digest.hexdigest()
