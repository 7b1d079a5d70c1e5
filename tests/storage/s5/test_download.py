"""What is served: whole, in part, by both dialects of id; and every id that isn't."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.s5.ids import BlobId, multibase, multihash_text
from p2pnode.storage.s5.server.downloads import Slice, UnsatisfiableError, parse_range
from tests.storage.s5.support import HELLO, OWNER, serving

HELLO_ID = BlobId.of(HELLO)


@pytest.mark.parametrize("path", ["/s5/download/{}", "/s5/blob/{}", "/{}", "/{}.txt"])
@pytest.mark.parametrize(
    "cid",
    [
        *(HELLO_ID.text(base) for base in ("z", "f", "b", "u")),
        *(HELLO_ID.legacy_text(base) for base in ("z", "u")),
        BlobId(HELLO_ID.hash).text(),
    ],
)
async def test_a_blob_is_served_under_all_of_its_names(tmp_path: Path, path: str, cid: str) -> None:
    async with serving(tmp_path) as running:
        await running.store.put(HELLO, owner=OWNER)
        response = await running.http.get(path.format(cid))
        assert (response.status_code, response.content) == (200, HELLO)
        assert response.headers["etag"] == f'"{multihash_text(HELLO_ID.hash)}"'


async def test_a_large_blob_and_an_empty_one_are_served_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        large = bytes(range(256)) * 20_000
        for data in (large, b""):
            blob = await running.store.put(data, owner=OWNER)
            response = await running.http.get(f"/{blob.text()}")
            assert response.content == data
            assert response.headers["content-length"] == str(len(data))


async def test_head_tells_the_size_and_sends_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        blob = await running.store.put(HELLO, owner=OWNER)
        response = await running.http.head(f"/{blob.text()}")
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-length"] == "13"


async def test_a_page_is_sandboxed_and_never_sniffed(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        blob = await running.store.put(b"<script>1</script>", owner=OWNER)
        headers = (await running.http.get(f"/{blob.text()}.html")).headers
        assert headers["content-type"] == "text/html"
        assert headers["content-security-policy"].startswith("sandbox")
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("header", "status", "body", "told"),
    [
        ("bytes=0-4", 206, b"Hello", "bytes 0-4/13"),
        ("bytes=7-", 206, b"world!", "bytes 7-12/13"),
        ("bytes=-1", 206, b"!", "bytes 12-12/13"),
        ("bytes=5-999", 206, b", world!", "bytes 5-12/13"),
        ("bytes=13-", 416, None, "bytes */13"),
        ("bytes=-0", 416, None, "bytes */13"),
        ("bytes=0-1,3-4", 200, HELLO, None),
        ("bytes=4-1", 200, HELLO, None),
        ("lines=0-1", 200, HELLO, None),
    ],
)
async def test_one_range_is_served(
    tmp_path: Path, header: str, status: int, body: bytes | None, told: str | None
) -> None:
    async with serving(tmp_path) as running:
        await running.store.put(HELLO, owner=OWNER)
        response = await running.http.get(f"/{HELLO_ID.text()}", headers={"range": header})
        assert response.status_code == status
        assert body is None or response.content == body
        assert response.headers.get("content-range") == told


async def test_what_is_known_already_is_not_sent_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        await running.store.put(HELLO, owner=OWNER)
        etag = (await running.http.get(f"/{HELLO_ID.text()}")).headers["etag"]
        known = await running.http.get(f"/{HELLO_ID.text()}", headers={"if-none-match": f'"x", W/{etag}'})
        assert (known.status_code, known.content) == (304, b"")
        other = await running.http.get(f"/{HELLO_ID.text()}", headers={"if-none-match": '"x"'})
        assert other.status_code == 200


async def test_a_range_of_another_version_is_all_of_this_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        await running.store.put(HELLO, owner=OWNER)
        headers = {"range": "bytes=0-0", "if-range": '"another"'}
        assert (await running.http.get(f"/{HELLO_ID.text()}", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("cid", "status"),
    [
        ("nonsense", 400),
        ("z", 400),
        ("zzzz0OIl", 400),
        ("b" + "a" * 200, 400),
        (multibase(bytes([0x26, 0x77]) + bytes(33), "z"), 400),
        (multibase(bytes([0x59, 0x1F]) + bytes(33), "z"), 400),
        (multibase(bytes([0x5B, 0x82, 0x1E]) + bytes(41), "z"), 400),
        (multibase(bytes([0x5B, 0x82, 0x12]) + bytes(33), "z"), 415),
        (multibase(bytes([0x26, 0x12]) + bytes(33), "u"), 415),
        (BlobId(HELLO_ID.hash, 14).text(), 409),
        (BlobId.of(b"absent").text(), 404),
    ],
)
async def test_an_id_that_is_none_or_not_here_is_refused(tmp_path: Path, cid: str, status: int) -> None:
    async with serving(tmp_path) as running:
        await running.store.put(HELLO, owner=OWNER)
        for path in ("/s5/download/{}", "/{}"):
            response = await running.http.get(path.format(cid))
            assert response.status_code == status
            assert response.json()["error"]


async def test_what_is_no_route_is_404_in_json(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        for path in ("/s5/import/http?url=http://127.0.0.1/", "/a/b/c", "/s5/nothing"):
            response = await running.http.post(path)
            assert response.status_code in (404, 405)
            assert response.json()["error"]
        assert (await running.http.get("/s5/version")).json()["node"].startswith("p2pnode ")
        assert (await running.http.get("/s5/p2p/nodes")).json() == {"nodes": []}


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_is_what_a_slice_of_the_bytes_is(size: int, first: int, last: int) -> None:
    data = bytes(range(size))
    for header, wanted in (
        (f"bytes={first}-{last}", data[first : last + 1]),
        (f"bytes={first}-", data[first:]),
        (f"bytes=-{first}", data[-first:] if first else b""),
    ):
        if header == f"bytes={first}-{last}" and last < first:
            assert parse_range(header, size) is None
            continue
        try:
            found = parse_range(header, size)
        except UnsatisfiableError:
            assert wanted == b""
            continue
        assert found is not None
        assert data[found.offset : found.offset + found.length] == wanted != b""


@given(st.text(max_size=30), st.integers(0, 1000))
def test_any_header_gives_a_slice_within_the_blob_or_none(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            found = parse_range(text, size)
        except UnsatisfiableError:
            continue
        assert found is None or (found.length > 0 and 0 <= found.offset <= size - found.length)
        assert found is None or isinstance(found, Slice)
