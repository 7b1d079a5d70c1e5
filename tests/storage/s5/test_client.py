"""An S5 node as a store: the real server, and servers that lie, stall or send one elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from p2pnode.errors import ConfigError, ProtocolError, RefusedError, UnreachableError
from p2pnode.protocols.s5.ids import BlobHash, BlobId, hash_of
from p2pnode.scopes import is_global_ip, is_loopback
from p2pnode.storage.rules import Quotas
from p2pnode.storage.s5.client import S5Client, S5Link, check_s5_url, open_s5
from p2pnode.storage.s5.wire import entry_json
from p2pnode.storage.store import (
    BLOB_MAX,
    BadEntryError,
    HashMismatchError,
    NoBlobError,
    QuotaError,
    StaleEntryError,
    TooLargeError,
)
from tests.storage.s5.support import HELLO, KEY, OWNER, Running, entry, serving

HELLO_HASH = hash_of(HELLO)


@asynccontextmanager
async def pair(
    folder: Path, *, token: str | None = None, **options: Any
) -> AsyncIterator[tuple[Running, S5Client]]:
    async with (
        serving(folder, token=token, **options) as running,
        open_s5(running.server.url, token) as client,
    ):
        yield running, client


async def pieces(data: bytes, size: int = 5) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def test_what_is_put_is_read_whole_and_in_part(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_, client):
        assert await client.put(HELLO, owner=OWNER) == BlobId.of(HELLO)
        assert await client.put(pieces(HELLO), owner=OWNER, expected=HELLO_HASH) == BlobId.of(HELLO)
        assert await client.size(HELLO_HASH) == 13
        assert await client.read(HELLO_HASH) == HELLO
        assert await client.read(HELLO_HASH, 7) == b"world!"
        assert await client.read(HELLO_HASH, 7, 5) == b"world"
        assert await client.read(HELLO_HASH, 7, 0) == b""
        assert await client.read(HELLO_HASH, 12, 100) == b"!"
        assert await client.read(HELLO_HASH, 13) == b""


async def test_an_empty_blob_is_one(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_, client):
        await client.put(b"", owner=OWNER)
        assert await client.size(hash_of(b"")) == 0
        assert await client.read(hash_of(b"")) == b""
        assert await client.read(hash_of(b""), 0, 9) == b""


async def test_what_is_not_there_is_said_so(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_, client):
        assert await client.size(HELLO_HASH) is None
        for offset, length in ((0, None), (0, 0), (3, 4)):
            with pytest.raises(NoBlobError):
                await client.read(HELLO_HASH, offset, length)
        with pytest.raises(NoBlobError):
            await client.pin(HELLO_HASH, owner=OWNER)
        await client.unpin(HELLO_HASH, owner=OWNER)


async def test_a_wrong_hash_is_found_before_the_node_has_the_end(tmp_path: Path) -> None:
    async with pair(tmp_path) as (running, client):
        for data in (HELLO, pieces(HELLO)):
            with pytest.raises(HashMismatchError):
                await client.put(data, owner=OWNER, expected=BlobHash(bytes(32)))
        await client.put(b"", owner=OWNER)  # it works on
        assert set(running.store.blobs) == {hash_of(b"")}


async def test_too_much_is_refused_here_or_there(tmp_path: Path) -> None:
    async def much() -> AsyncIterator[bytes]:
        for _ in range(BLOB_MAX // 1_000_000 + 1):
            yield bytes(1_000_000)

    async with pair(tmp_path) as (running, client):
        for data in (bytes(BLOB_MAX + 1), much()):
            with pytest.raises(TooLargeError):
                await client.put(data, owner=OWNER)
        assert running.store.blobs == {}


async def test_a_reached_quota_is_the_stores_error(tmp_path: Path) -> None:
    async with pair(tmp_path, quotas=Quotas(owner_bytes=1)) as (_, client):
        with pytest.raises(QuotaError):
            await client.put(HELLO, owner=OWNER)


async def test_pins_are_given_up_where_deleting_is_allowed(tmp_path: Path) -> None:
    for allowed in (False, True):
        async with pair(tmp_path / str(allowed), allow_delete=allowed) as (running, client):
            await client.put(HELLO, owner=OWNER)
            await client.pin(HELLO_HASH, owner=OWNER)
            await client.unpin(HELLO_HASH, owner=OWNER)
            assert (OWNER in running.store.blobs[HELLO_HASH].leases) is not allowed


async def test_entries_are_set_and_a_stale_one_brings_the_current(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_, client):
        assert await client.get(KEY) is None
        await client.set(entry(5), owner=OWNER)
        await client.set(entry(5), owner=OWNER)
        assert await client.get(KEY) == entry(5)
        with pytest.raises(StaleEntryError) as stale:
            await client.set(entry(4), owner=OWNER)
        assert stale.value.current == entry(5)


async def test_an_unsigned_entry_is_not_even_sent(tmp_path: Path) -> None:
    from dataclasses import replace

    async with pair(tmp_path) as (running, client):
        with pytest.raises(BadEntryError):
            await client.set(replace(entry(5), revision=6), owner=OWNER)
        assert await running.store.get(KEY) is None


async def test_a_token_opens_and_its_absence_is_refused_with_a_remedy(tmp_path: Path) -> None:
    token = "a token of the owner"
    async with pair(tmp_path, token=token) as (running, client):
        await client.put(HELLO, owner=OWNER)
        async with open_s5(running.server.url) as stranger:
            with pytest.raises(RefusedError, match="token"):
                await stranger.read(HELLO_HASH)


async def test_a_node_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        url = running.server.url
    async with open_s5(url) as client:
        with pytest.raises(UnreachableError, match="--s5-url"):
            await client.read(HELLO_HASH)
        with pytest.raises(UnreachableError):
            await client.put(pieces(HELLO), owner=OWNER)


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://x", "http://", "http://u:p@x", "https://x?y=1", "https://x#y", "http://x:y"],
)
def test_a_url_that_is_no_node_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="--s5-url"):
        check_s5_url(url)


def test_a_token_is_not_sent_in_clear() -> None:
    with pytest.raises(ConfigError, match="https"):
        check_s5_url("http://s5.example", "token")
    assert check_s5_url("https://s5.example", "token").host == "s5.example"
    assert check_s5_url("http://127.0.0.1:1", "token").port == 1


# ---- liars: a bare socket that answers what it likes


@asynccontextmanager
async def wrong_server(
    *answers: bytes, then: Callable[[trio.SocketStream], Awaitable[None]] | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """The URL of a server that gives these answers, one a connection; and the requests it got."""
    requests: list[bytes] = []
    left = list(answers)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request:
                request += await stream.receive_some()
            requests.append(request)
            try:
                await stream.send_all(left.pop(0))
                if then is not None:
                    await then(stream)
            except trio.BrokenResourceError:
                pass  # the client had enough

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = next(each.socket.getsockname()[1] for each in listeners)
        yield f"http://localhost:{port}", requests
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def wrong_node(
    *answers: bytes, then: Callable[[trio.SocketStream], Awaitable[None]] | None = None
) -> AsyncIterator[tuple[S5Client, list[bytes]]]:
    """A client of such a server."""
    async with wrong_server(*answers, then=then) as (url, requests), open_s5(url) as client:
        yield client, requests


def http(status: int, body: bytes = b"", **headers: str) -> bytes:
    told = {"content-length": str(len(body)), "connection": "close"}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value)
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body


async def test_other_bytes_than_were_asked_for_are_found_out() -> None:
    async with wrong_node(http(200, b"Hello, World!")) as (client, _):
        with pytest.raises(HashMismatchError):
            await client.read(HELLO_HASH)


async def test_fewer_bytes_than_were_promised_are_found_out() -> None:
    async with wrong_node(http(200, HELLO, content_length="99")) as (client, _):
        with pytest.raises(UnreachableError):
            await client.read(HELLO_HASH)


async def test_an_endless_answer_is_broken_off() -> None:
    async def pour(stream: trio.SocketStream) -> None:
        for _ in range(100):
            await stream.send_all(bytes(1_000_000))

    async with wrong_node(http(200, content_length=""), then=pour) as (client, _):
        with pytest.raises(ProtocolError, match=str(BLOB_MAX)):
            await client.read(HELLO_HASH)
    async with wrong_node(http(200, content_length=""), then=pour) as (client, _):
        with pytest.raises(ProtocolError, match="4096"):
            await client.get(KEY)
    in_both_dialects = [http(500, content_length="")] * 2
    async with wrong_node(*in_both_dialects, then=pour) as (client, _):
        with pytest.raises(RefusedError):
            await client.read(HELLO_HASH)


@pytest.mark.parametrize(
    ("told", "body"),
    [
        ("", b"world"),
        ("bytes 0-4/13", b"Hello"),
        ("bytes 7-12/13", b"world!"),
        ("bytes 7-11/9", b"world"),
        ("bytes 7-6/13", b""),
        ("bytes 7-11/13", b"wor"),
        ("bytes */13", b"world"),
        ("nonsense", b"world"),
    ],
)
async def test_a_range_that_is_not_the_one_asked_for_is_found_out(told: str, body: bytes) -> None:
    async with wrong_node(http(206, body, content_range=told)) as (client, _):
        with pytest.raises(ProtocolError, match="sent"):
            await client.read(HELLO_HASH, 7, 5)


async def test_a_node_without_ranges_is_read_whole_and_checked() -> None:
    async with wrong_node(http(200, HELLO), http(200, HELLO.upper())) as (client, _):
        assert await client.read(HELLO_HASH, 7, 5) == b"world"
        with pytest.raises(HashMismatchError):
            await client.read(HELLO_HASH, 7, 5)


async def test_the_deadline_is_the_callers_against_a_node_that_stalls() -> None:
    async def stall(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with wrong_node(http(200, HELLO[:5], content_length="13"), then=stall) as (client, _):
        with trio.move_on_after(0.1) as scope:
            await client.read(HELLO_HASH)
        assert scope.cancelled_caught


@pytest.mark.parametrize(
    "answer",
    [
        b'{"cid": "z"}',
        b"{}",
        b"[]",
        b"x",
        b'{"cid": "%s"}' % BlobId.of(b"other").legacy_text().encode(),
        b'{"cid": "%s"}' % BlobId(HELLO_HASH, 14).legacy_text().encode(),
    ],
)
async def test_an_upload_that_is_acknowledged_as_something_else_is_not_acknowledged(answer: bytes) -> None:
    async with wrong_node(http(200, answer)) as (client, _):
        with pytest.raises(ProtocolError):
            await client.put(HELLO, owner=OWNER)


async def test_an_entry_that_the_key_did_not_sign_is_not_taken() -> None:
    import json

    forged = {**entry_json(entry(5)), "revision": 6}
    async with wrong_node(http(200, json.dumps(forged).encode()), http(200, b"{}")) as (client, _):
        with pytest.raises(BadEntryError):
            await client.get(KEY)
        with pytest.raises(ProtocolError):
            await client.get(KEY)


async def test_stale_is_believed_only_with_the_newer_entry_in_hand() -> None:
    import json

    newer, older = (json.dumps(entry_json(entry(revision))).encode() for revision in (6, 4))
    for refusal in (http(500, b"Revision number too low"), http(409, b"{}")):
        async with wrong_node(refusal, http(200, newer)) as (client, _):
            with pytest.raises(StaleEntryError) as stale:
                await client.set(entry(5), owner=OWNER)
            assert stale.value.current == entry(6)
        async with wrong_node(refusal, http(200, older)) as (client, _):
            with pytest.raises(RefusedError):
                await client.set(entry(5), owner=OWNER)
        async with wrong_node(refusal, http(404)) as (client, _):
            with pytest.raises(RefusedError):
                await client.set(entry(5), owner=OWNER)


async def test_a_node_of_the_older_dialect_is_asked_in_its_own() -> None:
    legacy = BlobId(HELLO_HASH).legacy_text().encode()
    async with wrong_node(http(500, b"what?"), http(200, HELLO), http(200, HELLO)) as (client, requests):
        for _ in range(2):
            assert await client.read(HELLO_HASH) == HELLO
        assert legacy not in requests[0]
        assert legacy in requests[1]
        assert legacy in requests[2]


async def test_a_refusal_keeps_the_nodes_words_short_and_on_one_line() -> None:
    async with wrong_node(
        http(429, b'{"error": "slow\\ndown\\u001b[31m %s"}' % (b"x" * 900), retry_after="7")
    ) as (
        client,
        _,
    ):
        with pytest.raises(RefusedError) as refused:
            await client.put(HELLO, owner=OWNER)
    assert refused.value.code == "rate_limited"
    assert refused.value.retry_after_s == 7
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 400


# ---- redirects


async def test_a_local_node_may_redirect_to_a_local_address() -> None:
    async with (
        wrong_server(http(200, HELLO)) as (other, _),
        wrong_node(http(307, location=f"{other}/x")) as (client, _),
    ):
        assert await client.read(HELLO_HASH) == HELLO


async def test_a_circle_is_left() -> None:
    async with wrong_node(*[http(302, location="/again")] * 4) as (client, requests):
        with pytest.raises(ProtocolError, match="circle"):
            await client.read(HELLO_HASH)
        assert len(requests) == 4


class Answering(httpx.AsyncBaseTransport):
    """The network, for hosts that can't be had here: it notes who is dialled."""

    def __init__(self, location: str) -> None:
        self.location, self.dialled = location, list[httpx.Request]()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.dialled.append(request)
        if len(self.dialled) == 1:
            return httpx.Response(302, headers={"location": self.location})
        return httpx.Response(200, stream=httpx.ByteStream(HELLO))


async def redirected(location: str, base: str = "https://1.1.1.1") -> list[httpx.Request]:
    transport = Answering(location)
    async with httpx.AsyncClient(transport=transport) as http_client:
        client = S5Client(S5Link(http_client, base, "secret token"))
        assert await client.read(HELLO_HASH) == HELLO
    return transport.dialled


@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1/x",
        "https://localhost/x",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://10.0.0.1/x",
        "https://192.168.1.1/x",
        "https://169.254.169.254/latest/meta-data",
        "https://0.0.0.0/x",
        "https://[fe80::1]/x",
        "https://100.64.0.1/x",
        "http://8.8.8.8/x",
        "file:///etc/passwd",
        "https://user:pass@8.8.8.8/x",
        "",
    ],
)
async def test_a_public_node_cannot_send_us_into_our_own_network(location: str) -> None:
    with pytest.raises(ProtocolError, match=r"redirects to|circle"):
        await redirected(location)


async def test_a_public_redirect_is_followed_at_the_address_that_was_checked_without_the_token() -> None:
    first, second = await redirected("https://8.8.8.8:444/x")
    assert first.headers["authorization"] == "Bearer secret token"
    assert "authorization" not in second.headers
    assert (str(second.url), second.headers["host"]) == ("https://8.8.8.8:444/x", "8.8.8.8:444")
    assert second.extensions["sni_hostname"] == "8.8.8.8"


async def test_a_redirect_to_the_node_itself_keeps_the_token() -> None:
    _, second = await redirected("/elsewhere")
    assert second.headers["authorization"] == "Bearer secret token"


def test_addresses_are_told_apart() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("", "example.com", "10.0.0.1", "0.0.0.0", "localhost.example")))
    assert all(map(is_global_ip, ("1.1.1.1", "2606:4700::1111")))
    assert not any(
        map(is_global_ip, ("example.com", "10.0.0.1", "224.0.0.1", "::", "fe80::1%eth0", "::ffff:10.0.0.1"))
    )
