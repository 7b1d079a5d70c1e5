"""Resumable uploads: begun, gone on with, given up, lied about; and over a restart."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest
import trio

from p2pnode.limits import Limits
from p2pnode.protocols.s5.ids import BlobHash, BlobId, base64url, hash_of, multihash_text
from p2pnode.storage.rules import Quotas
from p2pnode.storage.s5.server.uploads import Partial, Partials
from p2pnode.storage.store import BLOB_MAX, OwnerKey
from tests.storage.s5.support import HELLO, OWNER, Running, serving

TUS = "/s5/upload/tus"
KIND = {"content-type": "application/offset+octet-stream", "tus-resumable": "1.0.0"}


def left(folder: Path) -> list[Path]:
    return list(folder.glob("partial/*"))


def metadata(text: str) -> str:
    return f"filename {base64.b64encode(b'x').decode()}, hash {base64.b64encode(text.encode()).decode()}"


def promise(data: bytes, *, old: bool = True, prefix: str = "") -> dict[str, str]:
    told = metadata(prefix + multihash_text(hash_of(data), old=old))
    return {"upload-length": str(len(data)), "upload-metadata": told, "tus-resumable": "1.0.0"}


async def begun(running: Running, data: bytes) -> str:
    response = await running.http.post(TUS, headers=promise(data))
    assert response.status_code == 201
    return response.headers["location"]


async def sent(running: Running, path: str, offset: int, data: bytes) -> httpx.Response:
    return await running.http.patch(path, content=data, headers={**KIND, "upload-offset": str(offset)})


async def offset_of(running: Running, path: str) -> int:
    return int((await running.http.head(path)).headers["upload-offset"])


@pytest.mark.parametrize(("old", "prefix"), [(True, ""), (False, ""), (True, "u"), (False, "u")])
async def test_an_upload_in_two_parts_becomes_a_blob(tmp_path: Path, old: bool, prefix: str) -> None:
    async with serving(tmp_path) as running:
        response = await running.http.post(TUS, headers=promise(HELLO, old=old, prefix=prefix))
        path = response.headers["location"]
        first = await sent(running, path, 0, HELLO[:5])
        assert (first.status_code, first.headers["upload-offset"]) == (204, "5")
        head = await running.http.head(path)
        assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("5", "13")
        last = await sent(running, path, 5, HELLO[5:])
        assert (last.status_code, last.headers["upload-offset"]) == (204, "13")
        assert await running.store.read(BlobId.of(HELLO).hash) == HELLO
        assert (await running.http.head(path)).status_code == 404
        assert left(tmp_path) == []


async def test_nothing_can_be_uploaded_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        await begun(running, b"")
        assert await running.store.size(hash_of(b"")) == 0


async def test_an_upload_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        path = await begun(running, HELLO)
        await sent(running, path, 0, HELLO[:5])
    async with serving(tmp_path) as running:
        assert await offset_of(running, path) == 5
        assert (await sent(running, path, 5, HELLO[5:])).status_code == 204
        assert await running.store.read(BlobId.of(HELLO).hash) == HELLO


async def test_what_was_whole_when_the_node_died_becomes_a_blob_when_asked_for(tmp_path: Path) -> None:
    partials = Partials(tmp_path / "partial", count_max=9, age_max_s=1e12)
    partials.make(Partial(id="ab" * 16, length=len(HELLO), expected=hash_of(HELLO), owner=OWNER), 0.0)
    partials.append("ab" * 16, HELLO)
    async with serving(tmp_path) as running:
        assert await offset_of(running, f"{TUS}/{'ab' * 16}") == len(HELLO)
        assert await running.store.read(BlobId.of(HELLO).hash) == HELLO


async def test_what_came_before_the_client_vanished_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        path = await begun(running, HELLO)
        async with await running.connect() as stream:
            head = (
                f"PATCH {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 13\r\nupload-offset: 0\r\n"
                f"content-type: {KIND['content-type']}\r\n\r\n"
            )
            await stream.send_all(head.encode() + HELLO[:4])
        with trio.fail_after(5):
            while (response := await running.http.head(path)).headers["upload-offset"] != "4":  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert response.status_code == 200
        with trio.fail_after(5):
            while (await sent(running, path, 4, HELLO[4:])).status_code == 423:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert await running.store.read(BlobId.of(HELLO).hash) == HELLO


async def test_a_wrong_hash_is_422_and_all_of_it_is_gone(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        path = await begun(running, HELLO)
        response = await sent(running, path, 0, HELLO.upper())
        assert response.status_code == 422
        assert response.json()["error"]
        assert (await running.http.head(path)).status_code == 404
        assert left(tmp_path) == []
        assert running.store.blobs == {}


async def test_what_is_here_already_is_409_and_is_kept_for_the_asker(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        await running.store.put(HELLO, owner=OwnerKey(bytes(32)))
        response = await running.http.post(TUS, headers=promise(HELLO))
        assert response.status_code == 409
        assert OWNER in running.store.blobs[hash_of(HELLO)].leases


async def test_more_than_was_said_is_413_and_the_offset_stands(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        path = await begun(running, HELLO)
        assert (await sent(running, path, 0, HELLO + b"!")).status_code == 413
        assert await offset_of(running, path) == 0


async def test_a_wrong_offset_is_409_and_says_the_right_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        path = await begun(running, HELLO)
        for offset in (1, 13, 99):
            response = await sent(running, path, offset, b"x")
            assert response.status_code == 409
            assert "byte 0" in response.json()["error"]


async def test_a_giant_is_refused_before_it_begins(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        response = await running.http.post(
            TUS, headers={**promise(HELLO), "upload-length": str(BLOB_MAX + 1)}
        )
        assert response.status_code == 413
        options = await running.http.options(TUS)
        assert options.headers["tus-max-size"] == str(BLOB_MAX)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"upload-length": "-1"}, 400),
        ({"upload-length": "9" * 19}, 400),
        ({"upload-length": "x"}, 400),
        ({"upload-metadata": ""}, 400),
        ({"upload-metadata": "filename eA=="}, 400),
        ({"upload-metadata": "hash"}, 400),
        ({"upload-metadata": "hash !!"}, 400),
        ({"upload-metadata": metadata("nonsense")}, 400),
        ({"upload-metadata": metadata(base64url(b"\x12" + bytes(32)))}, 415),
    ],
)
async def test_a_promise_that_makes_no_sense_is_refused(
    tmp_path: Path, change: dict[str, str], status: int
) -> None:
    async with serving(tmp_path) as running:
        response = await running.http.post(TUS, headers={**promise(HELLO), **change})
        assert response.status_code == status
        assert response.json()["error"]
        assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/" + "0" * 32, {"upload-offset": "0"}, 404),
        ("/../../accounts", {"upload-offset": "0"}, 404),
        ("/%2e%2e%2fx", {"upload-offset": "0"}, 404),
        (None, {"content-type": "text/plain", "upload-offset": "0"}, 415),
        (None, {}, 400),
    ],
)
async def test_a_part_that_belongs_to_nothing_is_refused(
    tmp_path: Path, path: str | None, headers: dict[str, str], status: int
) -> None:
    async with serving(tmp_path) as running:
        url = TUS + path if path is not None else await begun(running, HELLO)
        response = await running.http.patch(url, content=b"x", headers={**KIND, **headers})
        assert response.status_code in (status, 405 if ".." in (path or "") else status)


async def test_an_upload_can_be_given_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        path = await begun(running, HELLO)
        assert (await running.http.delete(path)).status_code == 204
        assert (await running.http.delete(path)).status_code == 404
        assert left(tmp_path) == []


async def test_there_are_only_so_many_and_old_ones_are_swept(tmp_path: Path) -> None:
    now = [1e9]
    limits = Limits(s5_partials_max=2, s5_partial_age_max_s=3600)
    async with serving(tmp_path, limits=limits, wall=lambda: now[0]) as running:
        for _ in range(2):
            await begun(running, HELLO)
        refused = await running.http.post(TUS, headers=promise(HELLO))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
        now[0] = 1e11  # the files' own times are the disk's
        assert (await running.http.post(TUS, headers=promise(HELLO))).status_code == 201


async def test_halves_of_a_torn_upload_are_swept_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    folder.mkdir()
    (folder / ("a" * 32 + ".part")).write_bytes(b"x")
    (folder / ("b" * 32 + ".json")).write_bytes(b"{}")
    async with serving(tmp_path):
        assert list(folder.iterdir()) == []


async def test_a_reached_quota_ends_the_upload_with_507(tmp_path: Path) -> None:
    async with serving(tmp_path, quotas=Quotas(owner_bytes=1)) as running:
        path = await begun(running, HELLO)
        assert (await sent(running, path, 0, HELLO)).status_code == 507
        assert left(tmp_path) == []


def test_a_partial_that_was_tampered_with_is_none(tmp_path: Path) -> None:
    partials = Partials(tmp_path, count_max=9, age_max_s=1e12)
    partials.make(Partial(id="ab" * 16, length=5, expected=BlobHash(bytes(32)), owner=OWNER), 0.0)
    assert partials.find("ab" * 16) is not None
    (tmp_path / ("ab" * 16 + ".json")).write_text('{"length": "x"}')
    assert partials.find("ab" * 16) is None


async def test_a_full_disk_is_507_and_the_upload_can_go_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        path = await begun(running, HELLO)
        part = trio.Path(tmp_path / "partial" / (path.rpartition("/")[2] + ".part"))
        await part.unlink()
        await part.symlink_to("/dev/full")  # where every write fails for want of space
        response = await sent(running, path, 0, HELLO)
        assert response.status_code == 507
        assert "free space" in response.json()["error"]
        await part.unlink()
        await part.touch()
        assert (await sent(running, path, 0, HELLO)).status_code == 204
        assert await running.store.read(BlobId.of(HELLO).hash) == HELLO
