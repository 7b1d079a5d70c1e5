"""``join --s5-listen``: the API over the data dir's own store, and the addresses it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from p2pnode.config import NodeConfig
from p2pnode.errors import ConfigError
from p2pnode.host.join import Join, JoinOptions
from p2pnode.host.s5 import check_s5_listen
from p2pnode.protocols.s5.ids import BlobId
from p2pnode.storage.local.store import LocalStore

HELLO = b"Hello, world!"


def joining(folder: Path, listen: str) -> tuple[Join, trio.MemoryReceiveChannel[tuple[str, dict[str, Any]]]]:
    """A node that serves no model, and what it reports."""
    send, receive = trio.open_memory_channel[tuple[str, dict[str, Any]]](99)
    config = NodeConfig(
        data_dir=folder, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, client_only=True, s5_listen=listen
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
