"""Finding replicas: all at once, the dead skipped, each in its place, and the DHT for who has but the key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import ConfigError, StorageError
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.net.stream import Stream
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.invite import make_invite
from p2pnode.protocols.blob import messages as m
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.blob_service import BlobService
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.replication.announcer import Announcer
from p2pnode.storage.replication.replicas import ReplicaFinder
from p2pnode.storage.store import Replica
from tests.node.world import Member, World, world
from tests.storage.blob_world import Owners, serve_store

OWNERS = Owners()
ALICE = OWNERS.all[0]
KEY = EntryKey(ALICE)


async def _connect(asker: Member, *others: Member) -> None:
    for other in others:
        await asker.node.network.connect(other.node.multiaddrs[0])
    await trio.sleep(1)  # identify


async def _mute(w: World) -> Member:
    """It takes the stream and never says a word."""
    member = await w.add()

    async def never(_stream: Stream) -> None:
        await trio.sleep_forever()

    member.node.network.serve(m.PROTOCOL, never)
    return member


def _address(member: Member) -> str:
    return member.node.multiaddrs[0]


async def test_configured_serving_and_connected_peers_are_found_each_in_its_place(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        asker, configured, serving, connected, own, plain = [await w.add() for _ in range(6)]
        for member in (configured, serving, connected, own):
            serve_store(member)
        await _connect(asker, serving, connected, own, plain)
        finder = ReplicaFinder(
            asker.node, stores=[_address(configured)], sign=OWNERS.sign, own=own.node.peer_id
        )
        found = await finder.find(KEY, serving=serving.node.peer_id)
        places = {replica.name: replica.place for replica in found.found}
        assert places == {
            configured.node.peer_id: "other",
            serving.node.peer_id: "serving",
            connected.node.peer_id: "other",
            own.node.peer_id: "own",
        }
        for replica in found.found:  # they work
            await replica.blobs.put(b"x", owner=ALICE)
            assert await replica.registry.get(KEY) is None


async def test_the_dead_and_the_mute_cost_nobody_elses_time(autojump_clock: MockClock) -> None:
    async with world() as w:
        asker, good, dead = [await w.add() for _ in range(3)]
        mute = [await _mute(w) for _ in range(3)]
        serve_store(good)
        w.crash(dead)
        finder = ReplicaFinder(
            asker.node, stores=[_address(each) for each in (dead, *mute, good)], sign=OWNERS.sign
        )
        at: list[float] = []
        started = trio.current_time()
        found = await finder.candidates(KEY, owner=ALICE)
        assert [each.name for each in found.found] == [good.node.peer_id]
        assert set(found.failed) == {each.node.peer_id for each in (dead, *mute)}
        assert trio.current_time() - started <= asker.node.limits.dial_deadline_s + 0.1

        def on_found(replica: Replica) -> None:
            if replica.name == good.node.peer_id:
                at.append(trio.current_time())

        started = trio.current_time()
        await finder.find(KEY, on_found=on_found)
        assert at[0] - started < 0.5


async def test_candidates_are_those_that_admit_us_the_configured_first_then_by_distance(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        asker, first, second, refusing, *others = [await w.add() for _ in range(9)]
        for member in (first, second, *others):
            serve_store(member)
        serve_store(refusing, rules=("sessions",))
        await _connect(asker, refusing, *others)
        finder = ReplicaFinder(asker.node, stores=[_address(first), _address(second)], sign=OWNERS.sign)
        found = await finder.candidates(KEY, owner=ALICE)

        def distance(member: Member) -> int:
            hashes = (hash_of(KEY), hash_of(member.node.peer_id.encode()))
            return int.from_bytes(hashes[0], "big") ^ int.from_bytes(hashes[1], "big")

        expected = [first, second, *sorted(others, key=distance)]
        assert [each.name for each in found.found] == [each.node.peer_id for each in expected]
        assert "only while it answers them" in found.failed[refusing.node.peer_id]


async def test_an_invite_names_a_store_as_well_as_a_multiaddr_does(autojump_clock: MockClock) -> None:
    async with world() as w:
        asker, store = [await w.add() for _ in range(2)]
        serve_store(store)
        finder = ReplicaFinder(asker.node, stores=[make_invite(store.node.multiaddrs)], sign=OWNERS.sign)
        found = await finder.candidates(KEY, owner=ALICE)
        assert [each.name for each in found.found] == [store.node.peer_id]


async def test_a_malformed_store_is_the_users_error(autojump_clock: MockClock) -> None:
    async with world() as w:
        asker = await w.add()
        with pytest.raises(ConfigError):
            ReplicaFinder(asker.node, stores=["/ip4/10.0.0.1/tcp/4001"], sign=OWNERS.sign)


async def _holder(
    w: World, bootstrap: Sequence[str], entries: Sequence[Entry] = ()
) -> tuple[Member, MemoryStore, Announcer]:
    """A node that stores and announces."""
    member = await w.add(bootstrap=bootstrap)
    store = MemoryStore(wall_clock)

    async def held(after: EntryKey | None, limit: int) -> list[Entry]:
        newer = [each for each in sorted(entries, key=lambda e: e.key) if after is None or each.key > after]
        return newer[:limit]

    announcer = Announcer(member.node, held)
    BlobService(
        member.node, store, store, admits=lambda _peer, _owner: "", on_entry=announcer.arrived
    ).start()
    member.node.start_soon(announcer.run)
    return member, store, announcer


async def test_whoever_has_nothing_but_the_key_finds_a_replica_by_the_dht(autojump_clock: MockClock) -> None:
    async with world() as w:
        hub = await w.add()
        holder, _, _ = await _holder(w, [_address(hub)])
        writer = await w.add(bootstrap=[_address(hub)])
        await trio.sleep(20)
        entry = OWNERS.entry(0, 1)
        mine = ReplicaFinder(writer.node, stores=[_address(holder)], sign=OWNERS.sign)
        (replica,) = (await mine.candidates(KEY, owner=ALICE)).found
        await replica.registry.set(entry, owner=ALICE)
        await trio.sleep(10)
        for number, (key, replicas) in enumerate(
            [(EntryKey(OWNERS.all[1]), []), (KEY, [holder.node.peer_id])]
        ):
            async with w.client(ip=f"10.0.9.{number + 1}") as fresh:
                await fresh.node.network.connect(_address(hub))
                await trio.sleep(1)
                assert not fresh.node.network.is_connected(holder.node.peer_id)
                found = await ReplicaFinder(fresh.node, sign=OWNERS.sign).find(key)
                assert [each.name for each in found.found] == replicas
                assert [await each.registry.get(key) for each in found.found] == [entry] * len(replicas)


async def test_each_key_is_announced_once_an_hour_and_no_more_than_the_bound(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(DEFAULT_LIMITS, announce_keys_max=3)
    async with world(limits=limits) as w:
        hub = await w.add()
        entries = [OWNERS.entry(number, 1) for number in range(4)]
        holder, _, announcer = await _holder(w, [_address(hub)], entries)
        said: list[tuple[float, bytes]] = []

        async def provide(key: bytes) -> bool:
            said.append((trio.current_time(), key))
            return True

        monkeypatch.setattr(holder.node.network, "provide", provide)
        keys = sorted(entry.key for entry in entries)
        for _ in range(3):
            announcer.arrived(keys[3])
            announcer.arrived(keys[2])
        await trio.sleep(1800)
        first = [m.provider_key(EntryKey(key)) for key in (keys[2], keys[3], keys[0])]
        assert [key for _, key in said] == first  # what came last goes first, then a page of what is held
        announcer.arrived(keys[2])
        announcer.arrived(keys[1])  # new, but the hour's bound is reached
        await trio.sleep(1000)
        assert len(said) == 3
        await trio.sleep(3600)
        assert m.provider_key(EntryKey(keys[1])) in [key for _, key in said[3:]]
        assert len(said) <= 9


async def test_a_store_that_can_not_be_read_does_not_keep_new_keys_from_being_said(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world() as w:
        hub = await w.add()
        holder = await w.add(bootstrap=[_address(hub)])
        said: list[bytes] = []

        async def provide(key: bytes) -> bool:
            said.append(key)
            return True

        async def held(_after: EntryKey | None, _limit: int) -> list[Entry]:
            raise StorageError("the disk is gone")

        monkeypatch.setattr(holder.node.network, "provide", provide)
        announcer = Announcer(holder.node, held)
        holder.node.start_soon(announcer.run)
        await trio.sleep(60)
        announcer.arrived(KEY)
        await trio.sleep(3)
        assert said == [m.provider_key(KEY)]


async def test_a_node_alone_says_nothing_until_it_has_company(autojump_clock: MockClock) -> None:
    async with world() as w:
        holder, _, announcer = await _holder(w, ())
        announcer.arrived(KEY)
        await trio.sleep(100)
        other = await w.add(bootstrap=[_address(holder)])
        await trio.sleep(60)
        found = await other.node.network.find_providers(m.provider_key(KEY), limit=4)
        assert [each.peer for each in found] == [holder.node.peer_id]
