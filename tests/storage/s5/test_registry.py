"""Registry entries over HTTP: S5's vectors, its way of saying no, and who watches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio_websocket import ConnectionClosed, ConnectionRejected

from p2pnode.errors import ProtocolError
from p2pnode.limits import Limits
from p2pnode.protocols.s5.entries import Entry, EntryKey, checked, parse_entry, parse_key, tagged
from p2pnode.protocols.s5.ids import base64url
from p2pnode.storage.s5.wire import entry_json, entry_of, key_of
from p2pnode.storage.store import OwnerKey
from tests.storage.s5.support import KEY, OWNER, entry, serving, websocket

PK = base64url(tagged(KEY))
WATCH = "/s5/registry/subscription"


async def test_an_entry_is_set_and_read_as_the_vector_has_it(tmp_path: Path) -> None:
    vector = bytes.fromhex(
        "07ed3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da292a00000000000000211eaf1349b9f5f9a1a6a0"
        "404dea36dcc9499bcb25c9adc112b7cc9a93cae41f326280e4e006ceb0da7934bf6308ca6b17ab5f98f1593dee44644ea252a82f77"
        "cf5dd43db1833f64c6461bc5cd20dee4e4dfcca051381021da89396693af5cfc3e0c"
    )
    told = entry_json(parse_entry(vector))
    async with serving(tmp_path) as running:
        response = await running.http.post("/s5/registry", json=told)
        assert (response.status_code, response.content) == (204, b"")
        for pk in (PK, "u" + PK):
            response = await running.http.get("/s5/registry", params={"pk": pk})
            assert (response.status_code, response.json()) == (200, told)
    assert told["revision"] == 42


async def test_revision_0_is_legal_and_the_same_again_is_no_error(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        for _ in range(2):
            assert (await running.http.post("/s5/registry", json=entry_json(entry(0)))).status_code == 204


@pytest.mark.parametrize("revision", [6, 7])
async def test_a_stale_one_is_500_with_the_words_clients_look_for(tmp_path: Path, revision: int) -> None:
    newest = entry(7, b"\x1e" + bytes(32))
    loser = entry(revision, b"\x1e" + b"\x01" * 32)
    if not newest.replaces(loser):
        newest, loser = entry(7, loser.data), entry(revision, newest.data)
    async with serving(tmp_path) as running:
        await running.http.post("/s5/registry", json=entry_json(newest))
        response = await running.http.post("/s5/registry", json=entry_json(loser))
        assert (response.status_code, response.text) == (500, "Revision number too low")
        assert await running.store.get(KEY) == newest


async def test_what_nobody_set_is_404(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        response = await running.http.get("/s5/registry", params={"pk": PK})
        assert response.status_code == 404
        assert response.json()["error"]


GOOD = entry_json(entry(1))


@pytest.mark.parametrize(
    "change",
    [
        {"signature": base64url(bytes(64))},
        {"signature": base64url(bytes(63))},
        {"revision": 2},
        {"revision": -1},
        {"revision": 2**48 + 1},
        {"revision": "1"},
        {"revision": 1.0},
        {"revision": True},
        {"data": base64url(bytes(65))},
        {"data": "+/"},
        {"pk": base64url(KEY)},
        {"pk": base64url(b"\xee" + KEY)},
        {"pk": None},
    ],
)
async def test_a_bad_signature_length_or_type_is_400(tmp_path: Path, change: dict[str, Any]) -> None:
    async with serving(tmp_path) as running:
        response = await running.http.post("/s5/registry", json={**GOOD, **change})
        assert response.status_code == 400
        assert response.json()["error"]
        assert await running.store.get(KEY) is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"nonsense", b"\xff", b"[" * 10_000, b"1"])
async def test_what_is_no_json_of_an_entry_is_400(tmp_path: Path, body: bytes) -> None:
    async with serving(tmp_path) as running:
        assert (await running.http.post("/s5/registry", content=body)).status_code == 400
        assert (await running.http.post("/s5/registry", content=body + b" " * 20_000)).status_code == 413


@pytest.mark.parametrize("pk", ["", "x", base64url(bytes(33)), "z" * 500])
async def test_a_malformed_key_is_400(tmp_path: Path, pk: str) -> None:
    async with serving(tmp_path) as running:
        assert (await running.http.get("/s5/registry", params={"pk": pk})).status_code == 400


def asked(key: bytes) -> bytes:
    return bytes(msgpack.packb(2) + msgpack.packb(key))


async def test_who_watches_a_key_gets_what_is_there_and_what_comes(tmp_path: Path) -> None:
    other = EntryKey(bytes(31) + b"\x01")
    async with serving(tmp_path) as running, websocket(running, WATCH) as socket:
        with trio.fail_after(5):
            await running.server.registry.set(entry(1), owner=OWNER)
            await socket.send_message(asked(tagged(other)))
            await socket.send_message(asked(tagged(KEY)))
            assert parse_entry(await socket.get_message()) == entry(1)  # type: ignore[arg-type]
            await running.http.post("/s5/registry", json=entry_json(entry(2)))
            assert parse_entry(await socket.get_message()) == entry(2)  # type: ignore[arg-type]
            await running.http.post("/s5/registry", json=entry_json(entry(1)))  # refused: nothing is told
            await running.server.registry.set(entry(3), owner=OWNER)
            assert parse_entry(await socket.get_message()) == entry(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", 1007),
        (b"\x02", 1007),
        (asked(bytes(33)), 1007),
        (bytes(msgpack.packb(3) + msgpack.packb(tagged(KEY))), 1007),
        (b"\xc6\xff\xff\xff\xff", 1007),
        (bytes(1000), 1007),
        ("text", 1007),
    ],
)
async def test_a_watcher_that_talks_nonsense_is_sent_away(
    tmp_path: Path, message: bytes | str, code: int
) -> None:
    async with serving(tmp_path) as running, websocket(running, WATCH) as socket:
        with trio.fail_after(5):
            await socket.send_message(message)
            with pytest.raises(ConnectionClosed) as closed:
                await socket.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == code


async def test_a_watcher_of_too_many_keys_is_sent_away(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, limits=Limits(s5_watches_max=2)) as running,
        websocket(running, WATCH) as socket,
    ):
        with trio.fail_after(5):
            for number in range(3):
                await socket.send_message(asked(tagged(EntryKey(bytes([number]) + bytes(31)))))
            with pytest.raises(ConnectionClosed):
                await socket.get_message()


async def test_only_with_the_token_may_one_watch(tmp_path: Path) -> None:
    token = "a token of the owner"
    async with serving(tmp_path, token=token) as running:
        with pytest.RaisesGroup(ConnectionRejected, allow_unwrapped=True, flatten_subgroups=True):
            async with websocket(running, WATCH):
                pass
        with trio.fail_after(5):
            async with websocket(running, WATCH, {"Authorization": f"Bearer {token}"}) as socket:
                await running.store.set(entry(1), owner=OWNER)
                await socket.send_message(asked(tagged(KEY)))
                assert await socket.get_message()


async def test_a_watcher_that_falls_behind_is_ended_not_fed_gaps(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        with running.server.registry.watch(2) as entries:
            for revision in range(4):
                await running.server.registry.set(entry(revision), owner=OwnerKey(OWNER))
            told = [each.revision async for each in entries]
    assert told == [0, 1]


@given(st.integers(0, 2**48), st.binary(max_size=64), st.binary(min_size=64, max_size=64))
def test_an_entry_survives_its_json(revision: int, data: bytes, signature: bytes) -> None:
    one: Entry = checked(key=KEY, revision=revision, data=data, signature=signature)
    assert entry_of(json.dumps(entry_json(one)).encode()) == one


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_an_entry_or_a_protocol_error(raw: bytes) -> None:
    for body in (raw, json.dumps({**GOOD, "data": raw.decode("latin1")}).encode()):
        try:
            entry_of(body)
        except ProtocolError:
            continue


@given(st.text(max_size=60))
def test_any_text_is_a_key_or_a_protocol_error(text: str) -> None:
    try:
        assert parse_key(tagged(key_of(text))) == key_of(text)
    except ProtocolError:
        return
