"""Saved peers survive a restart and stay bounded; a broken file is set aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pnode.errors import StorageError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.saved_peers import SavedPeers

PEERS = [Network(NetworkConfig(key_seed=bytes([i]) * 32, dht="off", gossip=False)).peer_id for i in range(4)]
ADDRESS = "/ip4/192.0.2.7/tcp/4001"


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    saved = SavedPeers(tmp_path / "peers.json")
    saved.remember(PEERS[0], [ADDRESS], now=5.0)
    await saved.save()
    [loaded] = await SavedPeers(tmp_path / "peers.json").load()
    assert (loaded.peer, loaded.addrs, loaded.last_seen) == (PEERS[0], (f"{ADDRESS}/p2p/{PEERS[0]}",), 5.0)
    assert names_in(tmp_path) == ["peers.json"]


async def test_no_file_is_no_peers(tmp_path: Path) -> None:
    assert await SavedPeers(tmp_path / "peers.json").load() == ()


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 9, "peers": []}',
        b'{"format": 1, "peers": [{}]}',
        b"\xff\xfe",
        b"[" * 90000,
    ],
)
async def test_a_corrupt_file_is_set_aside_and_not_lost(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(broken)
    saved = SavedPeers(path)
    assert await saved.load() == ()
    assert (tmp_path / "peers.json.corrupt").read_bytes() == broken
    saved.remember(PEERS[0], [ADDRESS], now=1.0)
    await saved.save()
    assert len(await SavedPeers(path).load()) == 1


async def test_an_entry_with_a_foreign_or_malformed_address_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    entry = {"peer": PEERS[0], "addrs": ["x", f"{ADDRESS}/p2p/{PEERS[1]}"], "last_seen": 1, "failures": 0}
    path.write_text(json.dumps({"format": 1, "peers": [entry]}))
    assert await SavedPeers(path).load() == ()


async def test_the_store_is_bounded_and_the_worst_go_first(tmp_path: Path) -> None:
    saved = SavedPeers(tmp_path / "peers.json", limits=Limits(peers_saved_max=2))
    saved.remember(PEERS[0], [ADDRESS], now=1.0)
    saved.remember(PEERS[1], [ADDRESS], now=2.0)
    saved.failed(PEERS[1])
    saved.remember(PEERS[2], [ADDRESS], now=0.5)
    assert [entry.peer for entry in saved.best(9)] == [PEERS[0], PEERS[2]]


async def test_a_peer_that_was_reached_again_is_forgiven_and_one_forgotten_is_gone(tmp_path: Path) -> None:
    saved = SavedPeers(tmp_path / "peers.json")
    saved.remember(PEERS[0], [ADDRESS], now=1.0)
    saved.failed(PEERS[0])
    assert saved.best(1)[0].failures == 1
    saved.remember(PEERS[0], [f"{ADDRESS}/ws"], now=2.0)
    assert saved.best(1)[0].failures == 0
    assert len(saved.best(1)[0].addrs) == 2
    saved.forget(PEERS[0])
    assert saved.best(1) == ()
    saved.failed(PeerId("unknown"))


async def test_a_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    saved = SavedPeers(tmp_path / "file" / "peers.json")
    with pytest.raises(StorageError, match="permissions"):
        await saved.save()
