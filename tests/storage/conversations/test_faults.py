"""Replicas that are lost, lie, hang, forget or are full: nothing acknowledged is lost, losses are said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import StorageError
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.protocols.s5.entries import Entry, pointer_to
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.storage.conversations.archive import Archive
from p2pnode.storage.conversations.reader import ConversationLostError
from p2pnode.storage.conversations.stored_conversation import StoredConversation
from p2pnode.storage.keys import INDEX_SID, StorageKeys
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.rules import Quotas
from p2pnode.storage.store import Place
from tests.storage.conversations.worlds import (
    KEYS,
    LIMITS,
    FaultyReplica,
    Machine,
    World,
    answered,
    asked,
    renewed_after_a_week,
    session,
    texts,
)

WORDS = ["one", "two", "three", "four"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def written(archive: Archive, words: list[str] = WORDS) -> StoredConversation:
    conversation = await archive.new(title="Numbers")
    for number, word in enumerate(words):
        await conversation.append(asked(word) if number % 2 == 0 else answered(word))
        assert (await archive.flush()).kept
    return conversation


async def recovered(machine: Machine, sid: bytes) -> StoredConversation:
    async with machine.on() as archive:
        await archive.recover()
        return await archive.open(sid)


def entry_of(world: World, sid: bytes, at: int = 0) -> Entry:
    entry = world.replicas[at].entry(KEYS.conversation(sid).entry_key)
    assert entry is not None
    return entry


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
async def test_any_one_replica_of_three_has_it_all(
    world: World, lost: tuple[int, ...], autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
    for at in lost:
        world.replicas[at].down = True
    found = await recovered(world.machine("new"), conversation.sid)
    assert texts(found.turns) == WORDS
    assert not found.losses


async def test_with_all_replicas_gone_it_says_so_and_is_not_taken_for_empty(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
    for replica in world.replicas:
        replica.down = True
    with pytest.raises(ConversationLostError, match="try again"):
        await recovered(world.machine("new"), conversation.sid)


async def test_a_replica_that_lost_the_pointers_is_not_taken_for_an_empty_list(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
        for replica in world.replicas:
            replica.store.entries.pop(KEYS.conversation(conversation.sid).entry_key)
    with pytest.raises(ConversationLostError):
        await recovered(world.machine("new"), conversation.sid)


@pytest.mark.parametrize("place", ["other", "serving"])
async def test_a_node_that_keeps_nothing_for_us_is_not_counted_until_it_does(
    world: World, place: Place, autojump_clock: MockClock
) -> None:
    del world.replicas[2:]
    refusing = world.replicas[1]
    refusing.admits, refusing.place = False, place
    async with world.machine().on() as archive:
        conversation = await archive.new()
        status = await archive.flush()
        assert status.kept  # by the other and this machine, which is said
        for sid, why in ((INDEX_SID, "not_admitted"), (conversation.sid, "it failed lately")):
            sent = status.last[sid].written
            assert sent is not None
            assert sent.acks == {"replica 0", "laptop's disk"}
            assert why in sent.failures[refusing.name]
        assert "this machine is counted" in status.counted.weak
        refusing.admits = True
        await trio.sleep(LIMITS.replica_backoff_max_s)
        await conversation.append(asked("one"))
        sent = (await archive.flush()).last[conversation.sid].written
        assert sent is not None
        assert refusing.name in sent.acks
        assert "this machine" not in (await archive.status()).counted.weak


async def test_a_node_that_is_down_stays_counted(world: World, autojump_clock: MockClock) -> None:
    del world.replicas[2:]
    world.replicas[1].down = True
    async with world.machine().on() as archive:
        await archive.new()
        assert not (await archive.flush()).kept


async def test_two_of_three_replicas_down_is_no_quorum_and_the_rest_goes_on_later(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
        world.replicas[0].down = world.replicas[1].down = True
        await conversation.append(asked("five"))
        status = await archive.flush()
        assert [row.sid for row in status.lagging] == [conversation.sid]
        sent = status.last[conversation.sid]
        assert sent.written is not None
        assert sent.written.acks == {"replica 2", "laptop's disk"}
        assert sent.written.failures["replica 0"] == "it is down"
        world.replicas[0].down = False
        assert (await archive.flush()).kept
    world.replicas[2].down = True
    assert texts((await recovered(world.machine("new"), conversation.sid)).turns) == [*WORDS, "five"]


async def test_a_tampered_blob_is_passed_over_for_another_replicas(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
    for digest, data in world.replicas[0].blobs().items():
        world.replicas[0].tamper(digest, data[:-1] + bytes([data[-1] ^ 1]))
    world.replicas[1].lies = True
    found = await recovered(world.machine("new"), conversation.sid)
    assert texts(found.turns) == WORDS
    assert not found.losses


async def test_a_blob_tampered_everywhere_is_a_loss_that_is_reported(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
        assert conversation.log.head is not None
        refs = conversation.log.head.manifest.segments
    for replica in world.replicas:
        replica.tamper(refs[1].hash, b"rubbish")
    found = await recovered(world.machine("new"), conversation.sid)
    assert texts(found.turns) == ["one", "three", "four"]
    assert found.missing == (1,)
    (loss,) = found.losses
    assert (loss.kind, loss.sid) == ("segment", conversation.sid)
    assert "don't have that hash" in loss.detail


async def test_the_middle_of_an_answer_that_is_lost_is_not_joined_over(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await archive.new()
        for text in ("I ", "never ", "said so"):
            await conversation.append(replace(answered(text), finish=None))
        await archive.flush()
        assert conversation.log.head is not None
        middle = conversation.log.head.manifest.segments[1].hash
    for replica in world.replicas:
        replica.lose(middle)
    found = await recovered(world.machine("new"), conversation.sid)
    (turn,) = found.turns
    assert not turn.whole
    assert found.missing == (0,)
    assert len(found.losses) == 1


async def test_segments_swapped_between_places_and_conversations_are_refused(
    world: World, autojump_clock: MockClock
) -> None:
    """A manifest's hashes stand before it, and behind them the seal's binding (``test_sealing``)."""
    async with world.machine().on() as archive:
        conversation = await written(archive)
        other = await written(archive, ["alpha", "beta"])
        assert conversation.log.head is not None
        assert other.log.head is not None
        mine, theirs = conversation.log.head, other.log.head
    one, two = mine.manifest.segments[:2]
    foreign = theirs.manifest.segments[0]
    for replica in world.replicas:
        blobs = replica.blobs()
        replica.tamper(one.hash, blobs[two.hash])
        replica.tamper(two.hash, blobs[foreign.hash])
        replica.tamper(mine.manifest.segments[2].hash, blobs[mine.link.hash])
    found = await recovered(world.machine("new"), conversation.sid)
    assert texts(found.turns) == ["four"]
    assert found.missing == (0, 1, 2)
    assert len(found.losses) == 3


async def test_a_manifest_lost_everywhere_is_walked_back_from_and_reported(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
        world.replicas[0].down = True
        await conversation.append(asked("five"))
        assert (await archive.flush()).kept
        newest = conversation.head
        assert newest is not None
    world.replicas[0].down = False
    for replica in world.replicas:
        replica.lose(newest.hash)
    machine = world.machine("new")
    async with machine.on() as archive:
        await archive.recover()
        found = await archive.open(conversation.sid)
        assert texts(found.turns) == WORDS
        assert any(loss.kind == "manifest" and loss.seq == newest.seq for loss in found.losses)
        assert (await archive.status()).losses
        await found.append(asked("instead"))
        assert (await archive.flush()).kept
        assert newest in found.branches
    again = await recovered(world.machine("third"), conversation.sid)
    assert texts(again.turns) == [*WORDS, "instead"]


async def test_a_joined_segment_that_is_lost_comes_back_from_those_it_was_joined_from(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive, [str(number) for number in range(16)])
        await conversation.append(asked("last"))
        assert (await archive.flush()).kept
        assert conversation.log.head is not None
        joined, _ = conversation.log.head.manifest.segments
    world.now += 2 * 86_400
    for replica in world.replicas:
        replica.store.gc_step(1000)
        replica.lose(joined.hash)
    found = await recovered(world.machine("new"), conversation.sid)
    assert texts(found.turns) == [*(str(number) for number in range(16)), "last"]
    assert not found.losses


async def test_a_rollback_by_all_replicas_is_reported_and_mended(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await written(archive, WORDS[:2])
        old = entry_of(world, conversation.sid)
        for word in WORDS[2:]:
            await conversation.append(asked(word))
        await archive.flush()
    for replica in world.replicas:
        replica.put_back(old, KEYS.owner)
    async with machine.on() as archive:
        again = await archive.open(conversation.sid)
        assert texts(again.turns) == WORDS
        (loss,) = (await archive.status()).losses
        assert loss.kind == "rollback"
        assert f"revision {old.revision}" in loss.detail
        await renewed_after_a_week(world, archive)
    assert entry_of(world, conversation.sid).revision > old.revision


async def test_one_replica_that_is_behind_is_no_rollback(world: World, autojump_clock: MockClock) -> None:
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await written(archive, WORDS[:2])
        old = entry_of(world, conversation.sid)
        await conversation.append(asked("three"))
        await archive.flush()
    world.replicas[1].put_back(old, KEYS.owner)
    world.replicas[2].down = True
    async with machine.on() as archive:
        await archive.open(conversation.sid)
        assert not (await archive.status()).losses


async def test_a_rollback_of_the_index_is_reported(world: World, autojump_clock: MockClock) -> None:
    machine = world.machine()
    async with machine.on() as archive:
        await archive.save_session(session(1))
        await archive.flush()
        old = world.replicas[0].entry(KEYS.index.entry_key)
        assert old is not None
        await archive.save_session(session(2))
        await archive.flush()
        for replica in world.replicas:
            replica.put_back(old, KEYS.owner)
        recovery = await archive.recover()
        assert [loss.kind for loss in recovery.losses] == ["rollback"]
        assert len(recovery.sessions) == 2


async def test_entries_that_the_key_did_not_sign_are_not_believed(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
    key = KEYS.conversation(conversation.sid).entry_key
    good = entry_of(world, conversation.sid)
    world.replicas[0].shown[key] = replace(good, revision=10**9)
    world.replicas[1].shown[key] = KEYS.index.entry(10**9, pointer_to(hash_of(b"")))
    found = await recovered(world.machine("new"), conversation.sid)
    assert texts(found.turns) == WORDS
    assert not found.losses


async def test_a_replica_with_a_wrong_signature_is_no_part_of_a_quorum(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
        key = KEYS.conversation(conversation.sid).entry_key
        for replica in world.replicas[:2]:
            replica.shown[key] = replace(entry_of(world, conversation.sid), signature=bytes(64))
        await conversation.append(asked("five"))
        status = await archive.flush()
        assert not status.kept
        written_ = status.last[conversation.sid].written
        assert written_ is not None
        assert "did not sign" in written_.failures["replica 0"]


async def test_a_replica_that_hangs_costs_a_deadline_once_and_then_rests(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
        world.replicas[1].hangs = True
        spent = []
        for number in range(3):
            await conversation.append(asked(str(number)))
            before = trio.current_time()
            assert (await archive.flush()).kept
            spent.append(trio.current_time() - before)
        assert 0 < spent[0] <= 4
        assert spent[1:] == [0, 0]


async def test_a_replica_that_hangs_does_not_keep_another_from_its_pointer_until_the_client_has_left(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        world.replicas[1].hangs = world.replicas[2].down = True
        conversation = await archive.new(title="a")
        await conversation.append(asked("one"))
        before = trio.current_time()
        status = await archive.flush()
        assert not status.kept
        assert trio.current_time() - before <= LIMITS.replica_ask_s + LIMITS.replica_lag_s
        key = KEYS.conversation(conversation.sid).entry_key
        assert await world.replicas[0].store.get(key) is not None
        written_ = status.last[conversation.sid].written
        assert written_ is not None
        assert "replica 0" in written_.acks
    assert DEFAULT_LIMITS.replica_ask_s + DEFAULT_LIMITS.replica_lag_s < DEFAULT_LIMITS.keep_deadline_s


async def test_recovery_waits_for_a_hanging_replica_no_longer_than_its_deadline(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
    world.replicas[0].hangs = True
    before = trio.current_time()
    found = await recovered(world.machine("new"), conversation.sid)
    assert texts(found.turns) == WORDS
    assert trio.current_time() - before <= 10


async def test_a_full_disk_of_our_own_is_told_and_what_was_acknowledged_is_safe(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await written(archive)
        machine.own.full = True
        with pytest.raises(StorageError, match="full"):
            await conversation.append(asked("five"))
        assert texts(conversation.turns) == WORDS
        machine.own.full = False
        await conversation.append(asked("five again"))
        assert (await archive.flush()).kept
    assert texts((await recovered(world.machine("new"), conversation.sid)).turns) == [*WORDS, "five again"]


async def test_a_quota_that_is_reached_is_a_reason_in_the_status(
    world: World, autojump_clock: MockClock
) -> None:
    for at in (0, 1):
        small = Quotas(owner_bytes=40_000)
        world.replicas[at] = FaultyReplica(f"replica {at}", MemoryStore(world.wall, small))
    async with world.machine().on() as archive:
        conversation = await archive.new()
        for number in range(10):
            await conversation.append(asked(str(number)))
            await archive.flush()
        status = await archive.flush()
        assert not status.kept
        assert "store_owner_bytes_max" in str(status.last)
    found = await recovered(world.machine("new"), conversation.sid)
    assert len(found.turns) == 10


async def test_a_renewal_brings_a_replica_up_to_date_that_was_away_or_lost_blobs(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        world.replicas[2].down = True
        conversation = await written(archive)
        world.replicas[2].down = False
        assert conversation.log.head is not None
        world.replicas[0].lose(conversation.log.head.manifest.segments[0].hash)
        await renewed_after_a_week(world, archive)
        sent = (await archive.status()).last
        outcome = sent[conversation.sid].written
        assert outcome is not None
        assert outcome.mended["replica 0"] == 1
        assert outcome.mended["replica 2"] == len(conversation.log.head.manifest.segments) + 1
        assert INDEX_SID in sent
    world.replicas[1].down = True
    for only in (0, 2):
        other = 2 - only
        world.replicas[other].down, world.replicas[only].down = True, False
        found = await recovered(world.machine(f"new {only}"), conversation.sid)
        assert texts(found.turns) == WORDS
        world.replicas[other].down = False


async def test_blobs_our_own_disk_lost_come_back_from_a_replica(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await written(archive)
    lost = BlobHash(next(iter(machine.own.blobs())))
    machine.own.lose(*machine.own.blobs())
    async with machine.on() as archive:
        again = await archive.open(conversation.sid)
        assert texts(again.turns) == WORDS
        await renewed_after_a_week(world, archive)
    assert lost in machine.own.blobs() or lost not in world.replicas[0].blobs()
    assert len(machine.own.blobs()) >= len(WORDS)


async def test_other_keys_open_nothing_that_a_replica_holds(world: World, autojump_clock: MockClock) -> None:
    async with world.machine().on() as archive:
        conversation = await written(archive)
    other = StorageKeys.from_entropy(b"\xff" * 16)
    good = entry_of(world, conversation.sid)
    key = other.conversation(conversation.sid)
    for replica in world.replicas:  # a store that shows another user's object under this user's key
        replica.put_back(key.entry(good.revision, good.data), other.owner)
    async with world.machine("thief").on(keys=other) as archive:
        with pytest.raises(ConversationLostError, match="does not open"):
            await archive.open(conversation.sid)


async def test_a_state_file_that_can_not_note_an_acknowledgement_is_a_reason_in_the_status(
    world: World, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await written(archive)
        await conversation.append(asked("five"))
        assert machine.state is not None
        machine.state.full = True
        with pytest.raises(StorageError, match="state's disk is full"):
            await conversation.append(asked("six"))
        status = await archive.flush()
        assert "state's disk is full" in status.last[conversation.sid].trouble
        machine.state.full = False
        assert (await archive.flush()).kept
        assert texts(conversation.turns) == [*WORDS, "five"]
