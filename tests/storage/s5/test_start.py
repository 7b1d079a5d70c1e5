"""``join --s5-listen``: the API over the data dir's own store, and the addresses it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.config import NodeConfig
from p2pnode.errors import ConfigError
from p2pnode.host.join import Join, JoinOptions
from p2pnode.protocols.s5.ids import BlobId, base64url, from_base64url
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.s5.server.options import check_origin, check_s5_listen

HELLO = b"Hello, world!"


def joining(
    folder: Path, listen: str, **settings: Any
) -> tuple[Join, trio.MemoryReceiveChannel[tuple[str, dict[str, Any]]]]:
    """A node that serves no model, and what it reports."""
    send, receive = trio.open_memory_channel[tuple[str, dict[str, Any]]](99)
    config = NodeConfig(
        data_dir=folder,
        listen=("/ip4/127.0.0.1/tcp/0",),
        mdns=False,
        client_only=True,
        s5_listen=listen,
        **settings,
    )
    return Join(config, JoinOptions(), lambda name, fields: send.send_nowait((name, fields))), receive


async def reported(
    events: trio.MemoryReceiveChannel[tuple[str, dict[str, Any]]], name: str
) -> dict[str, Any]:
    async for each, fields in events:
        if each == name:
            return fields
    raise AssertionError(name)


async def test_what_is_uploaded_is_in_the_store_of_the_data_dir(tmp_path: Path) -> None:
    join, events = joining(tmp_path, "127.0.0.1:0")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join.run)
            url = (await reported(events, "s5"))["url"]
            await reported(events, "ready")
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                assert (await http.post("/s5/upload", files={"file": ("x", HELLO)})).status_code == 200
                nodes = (await http.get("/s5/p2p/nodes")).json()["nodes"]
                assert nodes[0]["uris"][0].endswith("/s5/p2p")
            join.stop()
        store = LocalStore.open(tmp_path / "store")
        try:
            assert await store.read(BlobId.of(HELLO).hash) == HELLO
        finally:
            store.close()


PAGE = "https://app.example"


@asynccontextmanager
async def api(folder: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The API of a node that was started so."""
    join, events = joining(folder, "127.0.0.1:0", **settings)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join.run)
            url = (await reported(events, "s5"))["url"]
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                yield http
            join.stop()


async def registered(http: httpx.AsyncClient, **headers: str) -> dict[str, str]:
    """Headers that speak for a new account, made as s5.js' ``registerOnNewPortal`` does."""
    signer = Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32)
    key = base64url(b"\xed" + signer.public_key().public_bytes_raw())
    given = await http.get("/s5/account/register", params={"pubKey": key}, headers=headers)
    assert given.status_code == 200, given.text
    challenge = from_base64url(given.json()["challenge"])
    response = b"\x01" + challenge + blake3(http.base_url.netloc).digest()
    signature = base64url(signer.sign(response))
    form = {"pubKey": key, "response": base64url(response), "signature": signature, "label": "x"}
    answer = await http.post("/s5/account/register", json=form, headers=headers)
    assert answer.status_code == 200, answer.text
    http.cookies.clear()  # what a page of another origin is never sent
    return {"authorization": f"Bearer {answer.json()['authToken']}", **headers}


async def test_with_accounts_a_page_that_is_allowed_registers_and_stores_for_itself(tmp_path: Path) -> None:
    async with api(tmp_path, s5_accounts=True, s5_origins=(f"{PAGE}/",)) as http:
        preflight = await http.options(
            "/s5/upload", headers={"origin": PAGE, "access-control-request-method": "POST"}
        )
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, PAGE)
        ours = await registered(http, origin=PAGE)
        files = {"file": ("x", HELLO)}
        kept = await http.post("/s5/upload", files=files, headers=ours)
        assert (kept.status_code, kept.headers["access-control-allow-origin"]) == (200, PAGE)
        stats = (await http.get("/s5/account/stats", headers=ours)).json()
        assert stats["stats"]["total"]["usedStorage"] == len(HELLO)
        assert (await http.post("/s5/upload", files=files, headers={"origin": PAGE})).status_code == 401
        other = await http.post("/s5/upload", files=files, headers={**ours, "origin": "https://evil.example"})
        assert (other.status_code, "--s5-origin" in other.text) == (403, True)


async def test_without_them_pages_and_accounts_are_refused_with_the_flag_that_allows_them(
    tmp_path: Path,
) -> None:
    async with api(tmp_path) as http:
        for method, path in (("GET", "register"), ("POST", "register"), ("GET", "login")):
            refused = await http.request(method, f"/s5/account/{path}")
            assert (refused.status_code, "--s5-accounts" in refused.text) == (404, True)
        page = await http.get("/s5/version", headers={"origin": PAGE})
        assert (page.status_code, "--s5-origin" in page.text) == (403, True)
        assert "access-control-allow-origin" not in page.headers


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        (PAGE, PAGE),
        ("https://APP.example/", PAGE),
        ("https://app.example:443", PAGE),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_an_origin_is_what_browsers_send(text: str, origin: str) -> None:
    assert check_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    ["", "*", "null", "app.example", "file:///x", "https://", "https://*.example", f"{PAGE}/path",
     f"{PAGE}?a=1", "https://user@app.example", "https://app.example:x", f"{PAGE}, https://b.example"],
)  # fmt: skip
def test_what_is_no_origin_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="https://"):
        check_origin(text)


async def test_a_taken_port_ends_the_start_and_is_named(tmp_path: Path) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        join, _ = joining(tmp_path, f"127.0.0.1:{port}")
        with trio.fail_after(30), pytest.raises(ConfigError, match=rf"port {port} .*--s5-listen"):
            await join.run()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1",
        "5050",
        ":5050",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:70000",
        "127.0.0.1:-1",
        "::1:5",
        "host:1",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1|\[::1\]"):
        check_s5_listen(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "[::]", "8.8.8.8"])
def test_an_address_that_others_reach_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="for programs on this machine"):
        check_s5_listen(f"{host}:5050")


def test_addresses_of_this_machine_are_taken() -> None:
    assert check_s5_listen("localhost:0") == ("127.0.0.1", 0)
    assert check_s5_listen("[::1]:5050") == ("::1", 5050)
    assert check_s5_listen("127.0.0.1:5050") == ("127.0.0.1", 5050)


async def test_a_node_that_is_stopped_while_it_starts_ends_in_order(tmp_path: Path) -> None:
    async with api(tmp_path):
        pass  # its API serves already, and the rest of it has not started
