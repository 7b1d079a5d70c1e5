"""libs5 (a JavaScript node of S5's older dialect) and us: entries, ids, and both ways of dialling."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.protocols.s5.entries import parse_entry, tagged
from p2pnode.protocols.s5.ids import BlobId, parse_id
from p2pnode.protocols.s5.nodes import NodeId, node_text
from tests.net.foreign import Foreign, foreign
from tests.storage.s5.dialler import Dialled, dial_s5
from tests.storage.s5.support import HELLO, KEY, OWNER, Running, entry, serving

pytestmark = pytest.mark.interop

US = Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32)
US_ID = NodeId(US.public_key().public_bytes_raw())
PK = tagged(KEY).hex()
DIALLERS = ["ours", "theirs"]


@contextlib.asynccontextmanager
async def both(
    libs5: Path, tmp_path: Path, dialler: str
) -> AsyncIterator[tuple[Running, Foreign, Dialled | None]]:
    """Our server and a libs5 node, connected; the connection where it is ours."""
    async with (
        serving(tmp_path / "ours", node=US_ID, sign=US.sign) as running,
        foreign(["node", "peer.mjs"], libs5, log=tmp_path / "libs5.log", listen=()) as other,
        contextlib.AsyncExitStack() as stack,
    ):
        node = running.server.node
        assert node is not None
        connection = None
        if dialler == "ours":
            connection = await stack.enter_async_context(dial_s5(other.addrs[0], node, stall_s=5))
        else:
            await other.call("dial", uri=node.uris[0])
        await other.until("peers", lambda peers: node_text(US_ID) in peers)
        yield running, other, connection


@pytest.fixture
async def them(libs5: Path, tmp_path: Path) -> AsyncIterator[Foreign]:
    async with foreign(["node", "peer.mjs"], libs5, log=tmp_path / "libs5.log", listen=()) as other:
        yield other


@pytest.mark.parametrize("revision", [0, 1, 42, 2**31 - 3])  # libs5 loses digits beyond 2^31
async def test_each_takes_the_others_signature(them: Foreign, revision: int) -> None:
    ours = entry(revision)
    assert await them.call("verify", entry=ours.to_bytes().hex()) is True
    assert (
        await them.call("verify", entry=entry(revision + 1).to_bytes()[:-64].hex() + ours.signature.hex())
        is False
    )
    theirs = await them.call("sign", seed=bytes(32).hex(), revision=revision, data=ours.data.hex())
    assert parse_entry(bytes.fromhex(theirs)) == ours
    assert ours.holds()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, 57_124_823])
async def test_ids_of_the_older_dialect_are_the_same(them: Foreign, size: int) -> None:
    blob = BlobId(BlobId.of(HELLO).hash, size)
    told = await them.call("cid", hash=blob.hash.hex(), size=size)
    assert told["z"] == blob.legacy_text("z")
    for text in (told["z"], told["b"]):  # its "u" is base64 with two prefixes
        assert parse_id(text) == blob
    for text in (told["z"], blob.legacy_text("z"), blob.legacy_text("f")):
        assert await them.call("read_cid", text=text) == {"type": 0x26, "hash": blob.hash.hex(), "size": size}


@pytest.mark.parametrize("dialler", DIALLERS)
async def test_they_read_an_entry_that_was_set_with_us_before(
    libs5: Path, tmp_path: Path, dialler: str
) -> None:
    async with both(libs5, tmp_path, dialler) as (running, them, _):
        await running.store.set(entry(5), owner=OWNER)
        assert await them.call("get", pk=PK) == entry(5).to_bytes().hex()


@pytest.mark.parametrize("dialler", DIALLERS)
async def test_what_they_set_comes_to_us(libs5: Path, tmp_path: Path, dialler: str) -> None:
    async with both(libs5, tmp_path, dialler) as (running, them, _):
        with trio.fail_after(10), running.server.registry.watch(9) as told:
            await them.call("set", entry=entry(6).to_bytes().hex())
            assert await told.receive() == entry(6)
        assert await running.store.get(KEY) == entry(6)


async def test_what_is_set_with_us_comes_to_who_dialled_us(libs5: Path, tmp_path: Path) -> None:
    async with both(libs5, tmp_path, "theirs") as (running, them, _):
        await running.server.registry.set(entry(7), owner=OWNER)
        held: Any = await them.until("held", lambda held: held is not None, pk=PK)
        assert parse_entry(bytes.fromhex(held)) == entry(7)


async def test_we_ask_who_we_dialled_and_push_to_it(libs5: Path, tmp_path: Path) -> None:
    async with both(libs5, tmp_path, "ours") as (_, them, peer):
        assert peer is not None
        assert node_text(peer.other or NodeId(b"")) == them.peer_id
        await them.call("set", entry=entry(8).to_bytes().hex())
        with trio.fail_after(10):
            assert await peer.ask(KEY) == entry(8)
        await peer.push(entry(9))
        await them.until("held", lambda held: held == entry(9).to_bytes().hex(), pk=PK)


@pytest.mark.parametrize("dialler", DIALLERS)
async def test_who_has_the_older_one_is_told_the_newer(libs5: Path, tmp_path: Path, dialler: str) -> None:
    async with both(libs5, tmp_path, dialler) as (running, them, _):
        await running.store.set(entry(20), owner=OWNER)
        await them.call("set", entry=entry(10).to_bytes().hex())  # they hand it on; we answer with ours
        await them.until("held", lambda held: held == entry(20).to_bytes().hex(), pk=PK)
        assert await running.store.get(KEY) == entry(20)
