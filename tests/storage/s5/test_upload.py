"""Uploading and what is served of it, over real sockets; and every upload that must not be taken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio

from p2pnode.limits import Limits
from p2pnode.protocols.s5.ids import BlobId, parse_id
from p2pnode.storage.rules import Quotas
from p2pnode.storage.store import BLOB_MAX
from tests.storage.s5.support import HELLO, OWNER, read_all, serving

LEGACY = "z4odvyg7EbrxBZ5mJjwSJEr47rdfL4jbVDrBfQnzzwNUup8s6"


async def test_a_form_is_taken_and_its_legacy_cid_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        response = await running.http.post("/s5/upload", files={"file": ("hello.txt", HELLO)})
        assert (response.status_code, response.json()) == (200, {"cid": LEGACY})
        assert await running.store.read(BlobId.of(HELLO).hash) == HELLO


async def test_a_raw_body_is_taken(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        response = await running.http.post("/s5/upload", content=HELLO)
        assert (response.status_code, response.json()) == (200, {"cid": LEGACY})


async def test_a_body_in_chunks_and_an_empty_one_are_taken(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(10_000)

    async with serving(tmp_path) as running:
        response = await running.http.post("/s5/upload", content=pieces())
        assert parse_id(response.json()["cid"]) == BlobId.of(bytes(1_000_000))
        response = await running.http.post("/s5/upload", content=b"")
        assert parse_id(response.json()["cid"]) == BlobId.of(b"")
        response = await running.http.post("/s5/upload", files={"file": ("empty", b"")})
        assert parse_id(response.json()["cid"]) == BlobId.of(b"")


async def test_head_of_upload_says_that_one_may(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        assert (await running.http.head("/s5/upload")).status_code == 200


async def test_other_parts_of_a_form_are_skipped(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        files = {"other": ("a", b"not this"), "file": ("b", HELLO), "more": ("c", b"nor this")}
        response = await running.http.post("/s5/upload", data={"name": "x"}, files=files)
        assert response.json() == {"cid": LEGACY}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"no form at all"),
        ("multipart/form-data; boundary=" + "b" * 300, b"--b--"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
        ),
        ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nx'),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"a: b\r\n" * 100),
    ],
    ids=["no boundary", "no form", "long boundary", "no file", "cut", "many headers"],
)
async def test_a_malformed_form_is_400_and_keeps_nothing(tmp_path: Path, kind: str, body: bytes) -> None:
    async with serving(tmp_path) as running:
        response = await running.http.post("/s5/upload", content=body, headers={"content-type": kind})
        assert response.status_code == 400
        assert "file" in response.json()["error"]
        assert await running.store.size(BlobId.of(b"x").hash) is None


async def test_too_large_by_its_own_account_is_413_before_a_byte_is_read(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=Limits(s5_linger_s=0.05)) as running:
        async with await running.connect() as stream:
            head = f"POST /s5/upload HTTP/1.1\r\nhost: localhost\r\ncontent-length: {BLOB_MAX + 1}\r\n\r\n"
            await stream.send_all(head.encode())
            with trio.fail_after(5):
                answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert str(BLOB_MAX).encode() in answer


@pytest.mark.parametrize("form", [False, True])
async def test_too_large_without_a_length_is_413(tmp_path: Path, form: bool) -> None:
    async def endless() -> AsyncIterator[bytes]:
        if form:
            yield b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n'
        for _ in range(BLOB_MAX // 1_000_000 + 1):
            yield bytes(1_000_000)

    kind = "multipart/form-data; boundary=b" if form else "application/octet-stream"
    async with serving(tmp_path, limits=Limits(s5_linger_s=0.5)) as running:
        try:
            response = await running.http.post(
                "/s5/upload", content=endless(), headers={"content-type": kind}
            )
        except httpx.TransportError as error:  # pragma: no cover - the answer must come all the same
            pytest.fail(f"no answer: {error!r}")
        assert response.status_code == 413
        assert running.store.blobs == {}


async def test_an_honest_upload_of_the_largest_size_is_taken(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        response = await running.http.post("/s5/upload", files={"file": ("a", bytes(BLOB_MAX))})
        assert parse_id(response.json()["cid"]).size == BLOB_MAX


async def test_a_reached_quota_is_507(tmp_path: Path) -> None:
    async with serving(tmp_path, quotas=Quotas(owner_bytes=10_000)) as running:
        response = await running.http.post("/s5/upload", content=bytes(100_000))
        assert response.status_code == 507
        assert response.json()["error"]


async def test_a_client_that_vanishes_in_mid_upload_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        stream = await running.connect()
        await stream.send_all(
            b"POST /s5/upload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 13\r\n\r\nHello"
        )
        await stream.aclose()
        with trio.fail_after(5):
            while running.server.connections:  # noqa: ASYNC110 - the server has no event for a test
                await trio.sleep(0.01)
        assert running.store.blobs == {}


async def test_a_client_that_stops_sending_is_408_and_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=Limits(s5_stall_s=0.1, s5_linger_s=0.1)) as running:
        async with await running.connect() as stream:
            await stream.send_all(
                b"POST /s5/upload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 13\r\n\r\nHello"
            )
            with trio.fail_after(5):
                assert (await read_all(stream)).startswith(b"HTTP/1.1 408 ")
        assert running.store.blobs == {}


async def test_a_malformed_chunk_ends_that_connection_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        async with await running.connect() as stream:
            await stream.send_all(
                b"POST /s5/upload HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
            )
            with trio.fail_after(5):
                await read_all(stream)
        assert (await running.http.get("/s5/version")).status_code == 200
        assert running.store.blobs == {}


async def test_pinning_leases_what_is_here(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        blob = BlobId.of(HELLO)
        assert (await running.http.post(f"/s5/pin/{blob.text()}")).status_code == 404
        await running.store.put(HELLO, owner=OWNER)
        assert (await running.http.post(f"/s5/pin/{blob.text()}")).status_code == 204
        assert (await running.http.post("/s5/pin/nonsense")).status_code == 400


async def test_deleting_is_off_until_it_is_allowed(tmp_path: Path) -> None:
    path = f"/s5/delete/{BlobId.of(HELLO).text()}"
    async with serving(tmp_path / "off") as running:
        await running.store.put(HELLO, owner=OWNER)
        assert (await running.http.delete(path)).status_code == 403
    async with serving(tmp_path / "on", allow_delete=True) as running:
        await running.store.put(HELLO, owner=OWNER)
        assert OWNER in running.store.blobs[BlobId.of(HELLO).hash].leases
        assert (await running.http.delete(path)).status_code == 204
        assert OWNER not in running.store.blobs[BlobId.of(HELLO).hash].leases
