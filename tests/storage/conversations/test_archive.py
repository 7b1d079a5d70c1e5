"""Conversations from the outside: written, kept, found again."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.inference.messages import SamplingParams
from p2pnode.storage.conversations.reader import ConversationLostError
from p2pnode.storage.conversations.records import PIECE_IDS_MAX, PIECE_TEXT_MAX
from p2pnode.storage.conversations.stored_conversation import ForgottenError
from p2pnode.storage.keys import StorageKeys
from tests.storage.conversations.worlds import KEYS, World, answered, asked, objects_of, says, session, texts

MODEL = ModelId(b"\x05" * 32)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_what_was_appended_is_there_after_a_restart_without_any_replica(
    world: World, autojump_clock: MockClock
) -> None:
    world.replicas.clear()
    machine = world.machine()
    async with machine.on() as archive:
        conversation = await archive.new(title="Ships", model=MODEL, sampling=SamplingParams(top_k=7))
        await conversation.append(asked("Who sails?"))
        await conversation.append(answered("The crew."))
    async with machine.on() as archive:
        (saved,) = await archive.conversations()
        again = await archive.open(saved.sid)
        assert texts(again.turns) == ["Who sails?", "The crew."]
        assert (again.title, again.model, again.sampling) == ("Ships", MODEL, SamplingParams(top_k=7))
        assert not again.losses
        assert (saved.title, saved.model) == ("Ships", MODEL)


async def test_twelve_words_and_one_replica_bring_everything_back(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await archive.new(title="Ships")
        await conversation.append(asked("Who sails?"), answered("The crew."))
        await archive.save_session(session(amount=5))
        assert (await archive.flush()).kept
    del world.replicas[1:]
    async with world.machine("new laptop").on() as archive:
        recovery = await archive.recover()
        assert recovery.revision is not None
        assert not recovery.losses
        assert [saved.title for saved in recovery.conversations] == ["Ships"]
        assert recovery.sessions == (session(amount=5),)
        assert texts((await archive.open(conversation.sid)).turns) == ["Who sails?", "The crew."]


async def test_other_words_find_nothing(world: World, autojump_clock: MockClock) -> None:
    async with world.machine().on() as archive:
        conversation = await archive.new()
        await conversation.append(asked("Who sails?"))
        await archive.flush()
    async with world.machine("thief").on(keys=StorageKeys.from_entropy(bytes(16))) as archive:
        recovery = await archive.recover()
        assert (recovery.conversations, recovery.revision) == ((), None)
        assert len(recovery.answered) == 4
        with pytest.raises(ConversationLostError):
            await archive.open(conversation.sid)


async def test_a_recovered_conversation_goes_on_and_reaches_the_replicas(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await archive.new()
        await conversation.append(asked("one"))
        await archive.flush()
    async with world.machine("second").on() as archive:
        await archive.recover()
        again = await archive.open(conversation.sid)
        await again.append(answered("two"))
        assert (await archive.flush()).kept
    async with world.machine("third").on() as archive:
        await archive.recover()
        found = await archive.open(conversation.sid)
        assert texts(found.turns) == ["one", "two"]
        assert not found.branches


async def test_an_answer_in_pieces_is_one_turn_and_says_who_gave_which_part(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        conversation = await archive.new()
        await conversation.append(asked("Who sails?"))
        first, then = SessionId(b"\x01" * 32), SessionId(b"\x02" * 32)
        await conversation.append(says("assistant", "The ", ids=(1, 2), session=first, tokens_out=2, cost=4))
        await conversation.append(says("assistant", "cr", ids=(3,), session=first, tokens_out=1, cost=2))
        await conversation.append(
            says("assistant", "ew.", ids=(4,), session=then, tokens_out=1, cost=9, finish="stop")
        )
        turn = conversation.turns[1]
        assert (turn.text, turn.ids, turn.finish, turn.cost) == ("The crew.", (1, 2, 3, 4), "stop", 15)
        assert [(piece.session, piece.tokens_out) for piece in turn.pieces] == [(first, 3), (then, 1)]
        await archive.flush()
    async with world.machine("second").on() as archive:
        assert (await archive.open(conversation.sid)).turns == conversation.turns


async def test_two_answers_after_one_another_are_two_turns(world: World, autojump_clock: MockClock) -> None:
    async with world.machine().on() as archive:
        conversation = await archive.new()
        await conversation.append(answered("one"))
        await conversation.append(says("assistant", "tw"))
        await conversation.append(asked("go on"))
        assert [(turn.number, turn.text) for turn in conversation.turns] == [
            (0, "one"),
            (1, "tw"),
            (2, "go on"),
        ]


async def test_text_and_ids_beyond_one_piece_are_kept_whole(world: World, autojump_clock: MockClock) -> None:
    long = "é" * PIECE_TEXT_MAX + "end"
    ids = tuple(range(PIECE_IDS_MAX * 2 + 5))
    async with world.machine().on() as archive:
        conversation = await archive.new()
        await conversation.append(asked(long))
        await conversation.append(answered("x", ids=ids, cost=3))
        await archive.flush()
    async with world.machine("second").on() as archive:
        again = await archive.open(conversation.sid)
        assert texts(again.turns) == [long, "x"]
        assert again.turns[1].ids == ids
        assert again.turns[1].cost == 3


async def test_a_lone_surrogate_is_kept_as_a_question_mark(world: World, autojump_clock: MockClock) -> None:
    async with world.machine().on() as archive:
        conversation = await archive.new(title="a\ud800b")
        await conversation.append(asked("x\udc00y"))
        await archive.flush()
    async with world.machine("second").on() as archive:
        again = await archive.open(conversation.sid)
        assert (again.title, texts(again.turns)) == ("a?b", ["x?y"])


async def test_a_forgotten_conversation_is_gone_everywhere_and_stays_so(
    world: World, autojump_clock: MockClock
) -> None:
    one, two = world.machine("one"), world.machine("two")
    async with one.on() as archive, two.on() as other:
        conversation = await archive.new(title="Secret")
        await conversation.append(asked("who?"))
        await archive.flush()
        await other.recover()
        there = await other.open(conversation.sid)
        await archive.forget(conversation.sid)
        assert (await archive.flush()).kept
        assert await archive.conversations() == ()
        with pytest.raises(ForgottenError):
            await archive.open(conversation.sid)
        with pytest.raises(ForgottenError):
            await conversation.append(asked("still?"))
        await there.append(asked("and here?"))
        await other.flush()
        with pytest.raises(ForgottenError):
            await there.append(asked("and now?"))
        await other.recover()
        assert await other.conversations() == ()
        assert (await other.flush()).kept
    world.now += 3 * 86_400
    for replica in world.replicas:
        assert objects_of(conversation.sid, replica.blobs().values())
        replica.store.gc_step(1000)
        assert replica.entry(KEYS.index.entry_key) is not None
        assert not objects_of(conversation.sid, replica.blobs().values())


async def test_a_session_is_kept_with_its_highest_voucher_whoever_wrote_last(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine("one").on() as one, world.machine("two").on() as two:
        await one.save_session(session(1, amount=5))
        await one.flush()
        await two.save_session(session(1, amount=3))
        await two.save_session(session(2))
        await two.flush()
        await one.flush()
        await one.recover()
        await two.recover()
        for archive in (one, two):
            assert [
                (each.session[-1], each.voucher and each.voucher.amount) for each in await archive.sessions()
            ] == [
                (1, 5),
                (2, None),
            ]
            assert (await archive.flush()).kept


async def test_nobody_waits_for_a_replica_to_append(world: World, autojump_clock: MockClock) -> None:
    for replica in world.replicas:
        replica.hangs = True
    async with world.machine().on() as archive, trio.open_nursery() as nursery:
        await nursery.start(archive.run)
        conversation = await archive.new()
        before = trio.current_time()
        for number in range(20):
            await conversation.append(asked(str(number)))
        await archive.save_session(session())
        assert trio.current_time() == before
        status = await archive.status()
        assert not status.kept
        assert len(status.lagging) == 2
        nursery.cancel_scope.cancel()


async def test_what_waits_goes_out_by_itself_when_a_replica_is_back(
    world: World, autojump_clock: MockClock
) -> None:
    for replica in world.replicas:
        replica.down = True
    async with world.machine().on() as archive, trio.open_nursery() as nursery:
        await nursery.start(archive.run)
        conversation = await archive.new()
        await conversation.append(asked("one"))
        await trio.sleep(60)
        assert not (await archive.status()).kept
        assert "it is down" in str((await archive.status()).last)
        for replica in world.replicas:
            replica.down = False
        with trio.fail_after(400):
            await archive.wait_kept(conversation.sid)
            await archive.wait_kept()
        assert (await archive.status()).kept
        nursery.cancel_scope.cancel()


async def test_a_replica_that_was_away_is_brought_up_to_date_without_being_asked(
    world: World, autojump_clock: MockClock
) -> None:
    world.replicas[2].down = True
    async with world.machine().on() as archive, trio.open_nursery() as nursery:
        await nursery.start(archive.run)
        conversation = await archive.new()
        await conversation.append(asked("one"))
        await archive.wait_kept(conversation.sid)
        world.replicas[2].down = False
        await trio.sleep(700)
        nursery.cancel_scope.cancel()
    del world.replicas[:2]
    async with world.machine("new").on() as archive:
        await archive.recover()
        assert texts((await archive.open(conversation.sid)).turns) == ["one"]


async def test_the_host_that_serves_is_no_part_of_a_quorum_where_others_are(
    world: World, autojump_clock: MockClock
) -> None:
    world.replicas[0].place = "serving"
    async with world.machine().on() as archive:
        conversation = await archive.new()
        world.replicas[1].down = True
        await conversation.append(asked("one"))
        status = await archive.flush()
        assert not status.kept
        assert status.counted.names == {"replica 1", "replica 2"}
        del world.replicas[1]
        status = await archive.flush()
        assert status.kept
        assert "the host that serves" in status.counted.weak


async def test_what_was_kept_while_there_were_too_few_others_reaches_those_that_come(
    world: World, autojump_clock: MockClock
) -> None:
    serving, first, *later = world.replicas
    serving.place = "serving"
    world.replicas[:] = [serving, first]
    async with world.machine().on() as archive:
        conversation = await archive.new()  # and the list, which the next turn does not change
        assert "the host that serves" in (await archive.flush()).counted.weak
        world.replicas += later
        await conversation.append(asked("one"))
        status = await archive.flush()
        assert (status.kept, status.counted.weak) == (True, "")
    world.replicas[:] = later  # the others are silent
    async with world.machine("new").on() as archive:
        recovered = await archive.recover()
        assert [each.sid for each in recovered.conversations] == [conversation.sid]


async def test_where_no_others_come_nothing_is_sent_twice(world: World, autojump_clock: MockClock) -> None:
    world.replicas[0].place = "serving"
    del world.replicas[2:]
    async with world.machine().on() as archive:
        await archive.new()
        assert (await archive.flush()).kept
        orders = [list(replica.order) for replica in world.replicas]
        assert (await archive.flush()).kept
        assert [replica.order for replica in world.replicas] == orders
