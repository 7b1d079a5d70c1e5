"""tuspy and curl as clients of the S5 API, with a disk's store behind it; what they sent is served."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from p2pnode.protocols.s5.ids import BlobId, hash_of, multihash_text, parse_id
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.s5.server.options import S5Options
from p2pnode.storage.s5.server.server import S5Server
from p2pnode.storage.store import BLOB_MAX
from tests.storage.s5.support import HELLO, OWNER

pytestmark = pytest.mark.interop

TUS = "/s5/upload/tus"
TUSPY = Path(__file__).parent / "s5" / "tuspy_upload.py"
LARGE = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(100_000))
"""3.2 MB without a pattern."""


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[str]:
    """The url of a server over a local store."""
    store = LocalStore.open(folder / "store")
    try:
        async with trio.open_nursery() as nursery:
            yield await nursery.start(
                S5Server(store, store, S5Options(owner=OWNER, folder=folder / "s5")).run
            )
            nursery.cancel_scope.cancel()
    finally:
        store.close()


async def curl(*arguments: str) -> bytes:
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "30", *arguments]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "data", [b"", HELLO, LARGE, bytes(BLOB_MAX)], ids=["empty", "small", "large", "largest"]
)
@pytest.mark.parametrize("way", ["form", "raw", "chunked"])
async def test_curl_gets_back_what_it_uploaded(tmp_path: Path, data: bytes, way: str) -> None:
    path = await written(tmp_path, data)
    sent = {
        "form": ["--form", f"file=@{path}"],
        "raw": ["--data-binary", f"@{path}", "--header", "content-type: application/octet-stream"],
        "chunked": ["--data-binary", f"@{path}", "--header", "transfer-encoding: chunked"],
    }[way]
    async with node(tmp_path) as url:
        answer = httpx.Response(200, content=await curl(*sent, f"{url}/s5/upload")).json()
        blob = parse_id(answer["cid"])
        assert blob == BlobId.of(data)
        assert await curl(f"{url}/s5/download/{answer['cid']}") == data
        assert await curl(f"{url}/{blob.text()}") == data
        if data:
            assert await curl("--range", "3-9", f"{url}/{blob.text()}") == data[3:10]


async def test_curl_sees_why_a_giant_is_refused(tmp_path: Path) -> None:
    path = await written(tmp_path, bytes(BLOB_MAX + 1_000_000))
    async with node(tmp_path) as url:
        for sent in (
            ["--form", f"file=@{path}"],
            ["--data-binary", f"@{path}", "--header", "Transfer-Encoding: chunked"],
        ):
            answer = await curl(*sent, "--write-out", "%{http_code}", f"{url}/s5/upload")
            assert answer.endswith(b"413")
            assert str(BLOB_MAX).encode() in answer


async def test_curl_over_http2_is_served_and_checked_too(tmp_path: Path) -> None:
    async with node(tmp_path) as url:
        answer = await curl("--http2-prior-knowledge", "--form-string", "file=x", f"{url}/s5/upload")
        assert parse_id(httpx.Response(200, content=answer).json()["cid"]) == BlobId.of(b"x")
        refused = await curl(
            "--http2-prior-knowledge",
            "--header",
            "host: evil.example",
            "--write-out",
            "%{http_code}",
            f"{url}/s5/version",
        )
        assert refused.endswith(b"403")


async def tuspy(url: str, data: Path, chunk: int, *more: object) -> dict[str, object]:
    """What it says; see ``s5/tuspy_upload.py``."""
    arguments = [url, str(data), str(chunk), *map(str, more)]
    command = [sys.executable, "-W", "ignore", str(TUSPY), *arguments]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(("data", "chunk"), [(HELLO, 5), (LARGE, 1 << 20), (LARGE, 1 << 30)])
async def test_tuspy_uploads_in_chunks(tmp_path: Path, data: bytes, chunk: int, old: bool) -> None:
    path = await written(tmp_path, data)
    async with node(tmp_path) as url:
        told = await tuspy(url + TUS, path, chunk, multihash_text(hash_of(data), old=old))
        assert "status" not in told
        assert await curl(f"{url}/{BlobId.of(data).text()}") == data


async def test_tuspy_goes_on_after_our_restart(tmp_path: Path) -> None:
    path = await written(tmp_path, LARGE)
    async with node(tmp_path) as url:
        promised = multihash_text(hash_of(LARGE), old=True)
        upload = str((await tuspy(url + TUS, path, 1 << 20, promised, 2 << 20))["url"])
    async with node(tmp_path) as again:
        told = await tuspy(upload.replace(url, again), path, 1 << 20)
        assert told["began"] == 2 << 20
        assert await curl(f"{again}/{BlobId.of(LARGE).text()}") == LARGE


async def test_tuspy_sees_a_hash_that_is_wrong(tmp_path: Path) -> None:
    path = await written(tmp_path, HELLO)
    async with node(tmp_path) as url:
        wrong = multihash_text(hash_of(b"something else"))
        assert await tuspy(url + TUS, path, 1 << 20, wrong) == {"status": 422}
        assert list(await trio.Path(tmp_path / "s5" / "partial").iterdir()) == []


async def test_tuspy_is_told_that_a_blob_is_here_already(tmp_path: Path) -> None:
    path = await written(tmp_path, HELLO)
    async with node(tmp_path) as url:
        promised = multihash_text(hash_of(HELLO))
        assert "status" not in await tuspy(url + TUS, path, 1 << 20, promised)
        assert await tuspy(url + TUS, path, 1 << 20, promised) == {"status": 409}


async def written(folder: Path, data: bytes) -> Path:
    path = folder / "data"
    await trio.Path(path).write_bytes(data)
    return path
