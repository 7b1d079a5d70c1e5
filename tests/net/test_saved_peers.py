"""Saved peers survive a restart and stay bounded; a broken file is set aside."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from p2pnode.errors import StorageError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.saved_peers import SavedPeers
from tests.protocols.kademlia.dht_world import peer_number

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


MANY = [peer_number(number) for number in range(60)]
DAY_S = 86_400.0


def at(number: int) -> list[str]:
    return [f"/ip4/{20 + number}.1.1.1/tcp/4001"]


def store(tmp_path: Path, most: int = 8) -> SavedPeers:
    return SavedPeers(tmp_path / "peers.json", limits=Limits(peers_saved_max=most))


async def test_those_known_longest_of_distinct_origins_stay_among_better_ones(tmp_path: Path) -> None:
    saved = store(tmp_path)
    for number in range(3):
        saved.remember(MANY[number], at(number), now=DAY_S)
        saved.remember(MANY[number], at(number), now=50 * DAY_S)
    saved.remember(MANY[3], at(0), now=2 * DAY_S)  # another of the first one's origin, known less long
    saved.remember(MANY[3], at(0), now=50 * DAY_S)
    for number in range(4):
        saved.failed(MANY[number])
    for number in range(10, 30):
        saved.remember(MANY[number], at(number), now=60 * DAY_S)
    await saved.save()
    kept = {each.peer for each in await store(tmp_path).load()}
    assert set(MANY[:3]) <= kept
    assert MANY[3] not in kept
    assert len(kept) == 8


async def test_one_known_long_is_not_forgotten_because_it_failed_once(tmp_path: Path) -> None:
    saved = store(tmp_path)
    saved.remember(MANY[0], at(0), now=DAY_S)
    saved.remember(MANY[0], at(0), now=9 * DAY_S)
    saved.remember(MANY[1], at(1), now=9 * DAY_S)
    saved.forget(MANY[0])
    saved.forget(MANY[1])
    assert [(each.peer, each.failures) for each in saved.best(9)] == [(MANY[0], 1)]


async def test_after_ninety_days_without_a_word_a_peer_is_gone(tmp_path: Path) -> None:
    saved = store(tmp_path)
    saved.remember(MANY[0], at(0), now=DAY_S)
    saved.remember(MANY[0], at(0), now=9 * DAY_S)
    saved.remember(MANY[1], at(1), now=98 * DAY_S)
    assert len(saved.best(9)) == 2
    saved.remember(MANY[1], at(1), now=100 * DAY_S)
    assert [each.peer for each in saved.best(9)] == [MANY[1]]


async def test_those_of_the_last_session_are_tried_first_then_one_of_each_origin(tmp_path: Path) -> None:
    saved = store(tmp_path, most=60)
    for number in range(3):
        saved.remember(MANY[number], at(number), now=DAY_S)
    for number in range(10, 30):
        saved.remember(MANY[number], at(9), now=DAY_S / 2)
    for number in range(30, 40):  # these merely came to us
        saved.remember(MANY[number], at(number), now=0.0)
    await saved.save()
    again = store(tmp_path, most=60)
    await again.load()
    assert all(again.is_recent(MANY[number]) == (number < 3) for number in range(40))
    tried = [each.peer for each in again.to_try(6, random.Random(1).randrange)]
    assert set(tried[:3]) == set(MANY[:3])
    assert set(tried[3:]) <= set(MANY[10:30])
    every = [each.peer for each in again.to_try(60, random.Random(1).randrange)]
    assert len(every) == len(set(every)) == 33
    assert set(every[23:]) == set(MANY[30:40])


async def test_a_peer_that_comes_by_itself_later_is_still_one_that_was_reached(tmp_path: Path) -> None:
    saved = store(tmp_path)
    saved.remember(MANY[0], at(0), now=DAY_S)
    saved.remember(MANY[0], at(0), now=0.0)
    assert saved.best(1)[0].last_seen == DAY_S


async def test_a_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    saved = SavedPeers(tmp_path / "file" / "peers.json")
    with pytest.raises(StorageError, match="permissions"):
        await saved.save()
