"""Whole nodes that keep blobs for each other: stores that fail, peers that fail, callers that give up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import ConfigError, ProtocolError, RemoteError, StoreRefusedError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.net.stream import Stream
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.driver import MessageChannel
from p2pnode.node.node import FAULTS_MAX, WINDOW_S
from p2pnode.protocols.blob import messages as m
from p2pnode.protocols.blob.client import FIRST, SILENCE_S
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.protocols.s5.ids import BlobHash, BlobId, hash_of
from p2pnode.storage.blob_service import BlobService
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.node_store import StoreFor
from p2pnode.storage.peer_store import PeerStore
from p2pnode.storage.rules import Quotas
from p2pnode.storage.store import (
    LEASE_S,
    Data,
    DiskFullError,
    HashMismatchError,
    OwnerKey,
    QuotaError,
    TooLargeError,
)
from tests.storage.blob_world import Stored, serve_store, two_nodes

LARGE = bytes(range(256)) * 8192  # 2 MiB


def _serve(stored: Stored, handler: Callable[[MessageChannel], Awaitable[None]]) -> None:
    """A peer that answers as the test will have it."""

    async def serve(stream: Stream) -> None:
        await handler(MessageChannel(stream, m.CODEC, m.FRAME_MAX))

    stored.holder.node.network.serve(m.PROTOCOL, serve)


def _faults(stored: Stored) -> int:
    return stored.asker.node.faults.count(stored.holder.node.peer_id, trio.current_time())


class _Gate(MemoryStore):
    """A store that waits where the test says."""

    def __init__(self) -> None:
        super().__init__(wall_clock)
        self.gate, self.put_began = trio.Event(), trio.Event()
        self.puts_cancelled = 0

    async def put(
        self, data: Data, *, owner: OwnerKey, expected: BlobHash | None = None, lease_s: float = LEASE_S
    ) -> BlobId:
        self.put_began.set()
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.puts_cancelled += 1
            raise
        return await super().put(data, owner=owner, expected=expected, lease_s=lease_s)


# ---- what works


async def test_blobs_of_all_sizes_go_there_and_back(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        kept = serve_store(stored.holder)
        store = stored.peer_store()
        for data in (b"", b"x", bytes(m.INLINE_MAX), bytes(m.INLINE_MAX + 1), bytes(FIRST), LARGE):
            name = await store.put(data, owner=stored.alice)
            assert await kept.size(name.hash) == len(data)
            assert await store.read(name.hash) == data
        assert await store.read(hash_of(LARGE), 1000, 24) == LARGE[1000:1024]


async def test_many_tasks_share_one_stream(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_nodes() as stored:
        serve_store(stored.holder)
        network, opened = stored.asker.node.network, list[str]()
        open_stream = network.open_stream

        async def counted(peer: PeerId, protocol: str) -> Stream:
            opened.append(protocol)
            return await open_stream(peer, protocol)

        monkeypatch.setattr(network, "open_stream", counted)
        store = stored.peer_store()
        blobs = [bytes([n]) * 4096 for n in range(200)]
        async with trio.open_nursery() as nursery:
            for data in blobs:
                nursery.start_soon(lambda each: store.put(each, owner=stored.alice), data)
        found: dict[int, bytes] = {}

        async def read(number: int) -> None:
            found[number] = await store.read(hash_of(blobs[number]))

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(read, number)
        assert [found[number] for number in range(200)] == blobs
        assert opened.count(m.PROTOCOL) == 1


async def test_small_puts_together_cost_one_round_trip_and_the_pointer_one_more(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes() as stored:
        serve_store(stored.holder)
        store, started = stored.peer_store(), trio.current_time()
        await store.open()
        opened = trio.current_time()
        async with trio.open_nursery() as nursery:
            for n in range(2):
                nursery.start_soon(lambda n: store.put(bytes([n]) * 4096, owner=stored.alice), n)
        put = trio.current_time()
        await store.set(stored.owners.entry(0, 1), owner=stored.alice)
        assert put - opened <= 2 * 0.03 + 0.001  # the net's latency and jitter, there and back
        assert trio.current_time() - put <= 2 * 0.03 + 0.001
        assert opened - started < 1


# ---- who is admitted


async def test_strangers_write_nothing_and_read_what_they_can_name(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        kept = serve_store(stored.holder, rules=("sessions",))
        name = await kept.put(b"ciphertext", owner=stored.alice)
        store = stored.peer_store()
        assert "while it answers them" in await store.admits(stored.alice)
        with pytest.raises(StoreRefusedError, match="while it answers them") as refused:
            await store.put(b"a stranger's", owner=stored.alice)
        assert refused.value.code == "not_admitted"
        with pytest.raises(StoreRefusedError):
            await store.put(LARGE, owner=stored.alice)
        with pytest.raises(StoreRefusedError):
            await store.set(stored.owners.entry(0, 1), owner=stored.alice)
        with pytest.raises(StoreRefusedError):
            await store.pin(name.hash, owner=stored.alice)
        assert await store.read(name.hash) == b"ciphertext"
        assert await store.get(EntryKey(stored.alice)) is None
        assert await kept.size(hash_of(LARGE)) is None


async def test_an_owner_on_the_list_is_admitted_from_any_peer_and_no_other(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        alice, bob = stored.owners.all[:2]
        serve_store(stored.holder, rules=(alice.hex().upper(),))
        store = stored.peer_store()
        assert await store.admits(alice) == ""
        assert "on its list only" in await store.admits(bob)
        await store.put(b"mine", owner=alice)
        with pytest.raises(StoreRefusedError):
            await store.put(b"his", owner=bob)
        await store.put(b"mine again", owner=alice)


async def test_a_session_opens_the_store_and_its_end_closes_it(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        kept = MemoryStore(wall_clock)
        policy, open_now = StoreFor(("sessions",)), {stored.asker.node.peer_id}
        policy.has_session = open_now.__contains__
        BlobService(stored.holder.node, kept, kept, admits=policy.admits).start()
        store = stored.peer_store()
        await store.put(b"in time", owner=stored.alice)
        open_now.clear()
        with pytest.raises(StoreRefusedError):
            await store.put(b"too late", owner=stored.alice)
        assert await store.read(hash_of(b"in time")) == b"in time"


async def test_an_owner_whose_key_is_not_here_is_the_callers_error(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        serve_store(stored.holder)
        store = stored.peer_store()
        with pytest.raises(ConfigError):
            await store.put(b"x", owner=OwnerKey(bytes(32)))
        await store.put(b"x", owner=stored.alice)


# ---- stores that refuse and fail


async def test_a_store_that_is_full_says_so_for_small_and_large(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        serve_store(stored.holder, quotas=Quotas(owner_bytes=1 << 20))
        store = stored.peer_store()
        with pytest.raises(QuotaError):
            await store.put(LARGE, owner=stored.alice)
        await store.put(bytes(1 << 18), owner=stored.alice)
        with pytest.raises(QuotaError):
            await store.put(b"x" * (1 << 20), owner=stored.alice)
        assert await store.read(hash_of(bytes(1 << 18))) == bytes(1 << 18)


async def test_a_blob_too_large_for_that_store_or_for_any_is_refused(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        serve_store(stored.holder, quotas=Quotas(blob_bytes=1 << 20))
        store = stored.peer_store()
        with pytest.raises(TooLargeError):
            await store.put(LARGE, owner=stored.alice)

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(1 << 20)

        with pytest.raises(TooLargeError):
            await store.put(endless(), owner=stored.alice)
        with pytest.raises(HashMismatchError):
            await store.put(b"x", owner=stored.alice, expected=hash_of(b"y"))
        await store.put(b"x", owner=stored.alice)


@pytest.mark.parametrize(
    ("error", "raised"),
    [(DiskFullError("/a/folder"), DiskFullError), (ConfigError("/a/folder"), RemoteError)],
)
async def test_a_disk_that_fails_is_told_without_its_folders(
    error: Exception, raised: type[Exception], autojump_clock: MockClock
) -> None:
    class Broken(MemoryStore):
        async def put(
            self, data: Data, *, owner: OwnerKey, expected: BlobHash | None = None, lease_s: float = LEASE_S
        ) -> BlobId:
            raise error

    async with two_nodes() as stored:
        serve_store(stored.holder, Broken(wall_clock))
        store = stored.peer_store()
        for data in (b"small", LARGE):
            with pytest.raises(raised) as told:
                await store.put(data, owner=stored.alice)
            assert "folder" not in str(told.value)
        assert await store.size(hash_of(b"small")) is None
        assert _faults(stored) == 0


# ---- callers that give up


async def test_a_caller_that_gives_up_frees_the_store_and_the_stream_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes() as stored:
        gate = _Gate()
        serve_store(stored.holder, gate)
        store = stored.peer_store()
        for number, data in enumerate((b"small", LARGE)):
            with trio.move_on_after(1) as scope:
                await store.put(data, owner=stored.alice)
            assert scope.cancelled_caught
            assert await store.size(hash_of(data)) is None
            await trio.sleep(1)
            assert gate.puts_cancelled == number + 1
        gate.gate.set()
        await store.put(b"another", owner=stored.alice)
        assert _faults(stored) == 0


async def test_an_upload_to_a_slow_store_holds_up_nothing_but_itself(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes() as stored:
        gate = _Gate()
        serve_store(stored.holder, gate)
        third = await stored.world.add()
        node = stored.holder.node
        other = PeerStore(third.node, node.peer_id, node.multiaddrs, sign=stored.owners.sign)
        store = stored.peer_store()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: store.put(LARGE, owner=stored.alice))
            await gate.put_began.wait()
            await trio.sleep(1)
            for each in (store, other):
                with trio.fail_after(2):
                    assert await each.size(hash_of(LARGE)) is None
            gate.gate.set()
        assert await other.read(hash_of(LARGE)) == LARGE


# ---- peers that go away


async def test_a_replica_that_dies_in_the_middle_of_a_transfer_fails_it_soon(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes() as stored:
        kept = serve_store(stored.holder)
        name = await kept.put(bytes(8 << 20), owner=stored.alice)
        store = stored.peer_store()
        await store.open()
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(UnreachableError):
                    await store.read(name.hash)

            nursery.start_soon(read)
            await trio.sleep(0.08)
            stored.world.crash(stored.holder)
        with pytest.raises(UnreachableError):
            await store.read(name.hash)


async def test_a_stream_that_ended_while_it_rested_is_opened_again(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        serve_store(stored.holder)
        store = stored.peer_store()
        await store.put(b"one", owner=stored.alice)
        await trio.sleep(1000)  # the server's idle timer
        await store.put(b"two", owner=stored.alice)
        await stored.asker.node.network.disconnect(stored.holder.node.peer_id)
        await store.put(b"three", owner=stored.alice)
        store.close()
        assert await store.read(hash_of(b"three")) == b"three"


async def test_a_peer_that_never_answers_costs_its_callers_deadline_and_holds_up_no_other(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes() as stored:

        async def silent(channel: MessageChannel) -> None:
            await trio.sleep_forever()

        _serve(stored, silent)
        third = await stored.world.add()
        serve_store(third)
        mute, good = stored.peer_store(), stored.peer_store(third)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with trio.move_on_after(5) as scope:
                    await mute.get(EntryKey(stored.alice))
                assert scope.cancelled_caught

            nursery.start_soon(ask)
            started = trio.current_time()
            await good.put(b"x", owner=stored.alice)
            assert trio.current_time() - started < 1
        started = trio.current_time()
        with pytest.raises(UnreachableError):
            await mute.get(EntryKey(stored.alice))
        assert trio.current_time() - started < 2 * SILENCE_S + 1


async def test_a_peer_that_does_not_speak_the_protocol_is_named(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        with pytest.raises(UnreachableError, match="another kind of node"):
            await stored.peer_store().open()


# ---- peers that lie


def _blob(size: int, *pieces: bytes, last: bool = True) -> Callable[[m.Get], list[Any]]:
    def answer(get: m.Get) -> list[Any]:
        said = [m.Data(id=get.id, data=each) for each in pieces]
        said[-1] = replace(said[-1], last=last)
        return [m.Blob(id=get.id, size=size), *said]

    return answer


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_blob(5, b"wrong"), "hash"),
        (_blob(4, b"right"), "more or fewer"),
        (_blob(6, b"right"), "more or fewer"),
        (_blob(5, b"right", b"", last=False), "more or fewer"),
        (_blob(m.SIZE_MAX, bytes(m.DATA_MAX), bytes(m.DATA_MAX)), "more or fewer"),
    ],
    ids=["tampered", "size too small", "size too large", "goes on", "more than asked"],
)
async def test_a_replica_that_tampers_or_lies_about_size_is_an_error_that_counts(
    answer: Callable[[m.Get], list[Any]], why: str, autojump_clock: MockClock
) -> None:
    async with two_nodes() as stored:

        async def lie(channel: MessageChannel) -> None:
            while (get := await channel.receive()) is not None:
                await channel.send(answer(get))

        _serve(stored, lie)
        store = stored.peer_store()
        for count in range(1, 4):
            with pytest.raises(ProtocolError, match=why):
                await store.read(hash_of(b"right"))
            assert _faults(stored) == count


async def test_a_liar_is_shunned_after_a_while(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:

        async def lie(channel: MessageChannel) -> None:
            while (get := await channel.receive()) is not None:
                await channel.send([m.Blob(id=get.id, size=1), m.Blob(id=get.id, size=1)])

        _serve(stored, lie)
        store = stored.peer_store()
        for _ in range(FAULTS_MAX):
            with pytest.raises(ProtocolError):
                await store.read(hash_of(b"x"))
        with pytest.raises(UnreachableError, match="too often"):
            await store.read(hash_of(b"x"))


async def test_a_replica_that_serves_slowly_is_given_up_by_its_caller_alone(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes() as stored:

        async def trickle(channel: MessageChannel) -> None:
            get: Any = await channel.receive()
            await channel.send([m.Blob(id=get.id, size=len(LARGE))])
            try:
                while True:
                    await trio.sleep(1)
                    await channel.send([m.Data(id=get.id, data=bytes(m.PIECE_MIN))])
            except UnreachableError:
                ended.append(trio.current_time())

        ended: list[float] = []
        _serve(stored, trickle)
        store = stored.peer_store()
        with trio.move_on_after(10) as scope:
            await store.read(hash_of(LARGE))
        assert scope.cancelled_caught
        await trio.sleep(
            100
        )  # it never ended what was dropped: the stream is closed, and the trickle with it


async def test_a_frame_above_the_protocols_bound_ends_the_stream(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:

        async def flood(channel: MessageChannel) -> None:
            await channel.receive()
            await channel.stream.send_all(b"\x81\x80\x40")  # 1 MiB and a byte
            await trio.sleep_forever()

        _serve(stored, flood)
        with pytest.raises(ProtocolError, match="frame"):
            await stored.peer_store().read(hash_of(b"x"))
        assert _faults(stored) == 1


# ---- clients that misbehave, over a real stream


async def _raw(stored: Stored, messages: Sequence[Any]) -> MessageChannel:
    network, holder = stored.asker.node.network, stored.holder.node
    await network.connect_peer(holder.peer_id, holder.multiaddrs)
    channel = MessageChannel(await network.open_stream(holder.peer_id, m.PROTOCOL), m.CODEC, m.FRAME_MAX)
    await channel.send(messages)
    return channel


async def test_a_client_that_breaks_the_protocol_loses_its_stream_and_is_remembered(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes() as stored:
        serve_store(stored.holder)
        channel = await _raw(stored, [m.Admit(id=0), m.Data(id=3, data=b"x")])
        await trio.sleep(1)
        answer: Any = await channel.receive()  # what was answered before arrives all the same
        assert (answer.id, answer.code) == (0, "not_admitted")
        assert await channel.receive() is None
        holder, asker = stored.holder.node, stored.asker.node
        assert holder.faults.count(asker.peer_id, trio.current_time()) == 1
        await stored.peer_store().put(b"others go on", owner=stored.alice)


async def test_a_client_that_goes_on_breaking_it_is_not_served(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        serve_store(stored.holder)
        for _ in range(FAULTS_MAX):
            channel = await _raw(stored, [m.Data(id=3, data=b"x")])
            assert await channel.receive() is None
        with pytest.raises(UnreachableError):
            await _has_nothing(stored)
        await trio.sleep(WINDOW_S + 1)
        assert await _has_nothing(stored)


async def test_a_wrong_hash_counts_and_keeps_nothing(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        kept = serve_store(stored.holder)
        claim = m.Claim(
            owner=stored.alice,
            signature=stored.owners.sign(
                stored.alice, m.claim_digest(stored.asker.node.peer_id, stored.holder.node.peer_id)
            ),
        )
        bad = m.Put(id=0, hash=hash_of(b"promised"), size=4, lease_s=9, data=b"sent")
        channel = await _raw(stored, [claim, bad])
        answer: Any = await channel.receive()
        assert answer.code == "hash_mismatch"
        assert await kept.size(hash_of(b"sent")) is None
        assert stored.holder.node.faults.count(stored.asker.node.peer_id, trio.current_time()) == 1
        await channel.send([replace(bad, id=1, hash=hash_of(b"sent"))])
        assert await channel.receive() == m.Done(id=1)


async def _has_nothing(stored: Stored) -> bool:
    channel = await _raw(stored, [m.Has(id=0, hashes=(hash_of(b"x"),))])
    return await channel.receive() == m.Sizes(id=0, sizes=(-1,))


async def _read_all(channel: MessageChannel) -> None:
    while await channel.receive() is not None:
        pass


async def test_streams_are_few_and_one_that_rests_gives_way(autojump_clock: MockClock) -> None:
    async with two_nodes(limits=replace(DEFAULT_LIMITS, store_streams_max=2)) as stored:
        serve_store(stored.holder)
        for number in range(5):
            await trio.sleep(6)
            assert await _has_nothing(stored), number
        assert await _has_nothing(stored)
        with pytest.raises(UnreachableError):  # nobody has rested long enough
            await _has_nothing(stored)


async def test_one_machine_can_not_crowd_all_others_out_however_many_peers_it_plays(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes(limits=replace(DEFAULT_LIMITS, store_streams_max=4)) as stored:
        gate = _Gate()
        serve_store(stored.holder, gate)
        digest = m.claim_digest(stored.asker.node.peer_id, stored.holder.node.peer_id)
        claim = m.Claim(owner=stored.alice, signature=stored.owners.sign(stored.alice, digest))
        put = m.Put(id=0, hash=hash_of(LARGE), size=len(LARGE), lease_s=60)
        channels = []
        for _ in range(4):  # each with an upload under way: none of them rests
            channels.append(await _raw(stored, [claim, put]))
            await trio.sleep(1)
        with pytest.raises(UnreachableError):  # of the same address
            await _has_nothing(stored)
        other = await stored.world.add()
        elsewhere = PeerStore(
            other.node, stored.holder.node.peer_id, stored.holder.node.multiaddrs, sign=stored.owners.sign
        )
        assert await elsewhere.size(hash_of(b"x")) is None
        with pytest.raises(RemoteError):  # the one that was silent for longest gave way
            await channels[0].receive()


async def test_a_reader_that_does_not_read_costs_its_stream(autojump_clock: MockClock) -> None:
    async with two_nodes() as stored:
        kept = serve_store(stored.holder)
        name = await kept.put(bytes(16 << 20), owner=stored.alice)
        channel = await _raw(stored, [m.Get(id=0, hash=name.hash)])
        await trio.sleep(2 * DEFAULT_LIMITS.stall_s)
        with pytest.raises(RemoteError):
            await _read_all(channel)
        assert await stored.peer_store().size(name.hash) == 16 << 20


async def test_a_node_that_stops_ends_its_streams_and_its_store_stays_whole(
    autojump_clock: MockClock,
) -> None:
    async with two_nodes() as stored:
        gate = _Gate()
        serve_store(stored.holder, gate)
        store = stored.peer_store()
        async with trio.open_nursery() as nursery:

            async def put() -> None:
                with pytest.raises(RemoteError):
                    await store.put(LARGE, owner=stored.alice)

            nursery.start_soon(put)
            await gate.put_began.wait()
            await stored.holder.node.aclose()
        assert gate.puts_cancelled == 1
        assert await gate.size(hash_of(LARGE)) is None
