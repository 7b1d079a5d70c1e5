"""Conversations at their client: asked on, kept, taken up again, also elsewhere and after any failure."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.chain.addresses import shown_address
from p2pnode.cli.client import conversation_text
from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.conversation import Conversation
from p2pnode.errors import ConfigError, NoHostError, P2PNodeError
from p2pnode.host.model_pool import HostedModel
from p2pnode.models.manifest import SCRIPTED
from p2pnode.models.renderer import ChatTemplate
from p2pnode.models.scripted import TEMPLATE
from p2pnode.net.stream import Stream
from p2pnode.node.datadir import DataDir
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.inference.messages import CODEC, Accept, Quote, SamplingParams, Tokens
from p2pnode.protocols.inference.prompt_rules import call_seed, next_seed, seed_of
from p2pnode.storage.conversations.records import Piece
from tests.client.failing import ONE_BY_ONE, QUESTION, SESSION, TOKENS, hosts, meet, speaks, unkilled
from tests.client.machines import machine, options, read, say
from tests.client.support import HELLO, HELLO_HASH, Events, misbehave
from tests.node.world import Member, World, identity_of, scripted_host, world
from tests.storage.blob_world import serve_store


@pytest.fixture
async def w(autojump_clock: MockClock) -> AsyncIterator[World]:
    """An empty world on a clock that jumps, where the test itself asks for that clock, too."""
    async with world() as made:
        yield made


@pytest.fixture
async def host(w: World) -> Member:
    """The first node of the world: it serves the scripted model."""
    return await w.add([scripted_host()])


@pytest.fixture
async def stores(w: World, host: Member) -> list[Member]:
    """Two nodes that store for whoever asks."""
    made = [await w.add(bootstrap=host.node.multiaddrs[:1]) for _ in range(2)]
    for each in made:
        serve_store(each)
    return made


@pytest.fixture
def told() -> Events:
    """What the client of a test tells."""
    return Events()


@contextlib.contextmanager
def failing_disk(data: DataDir) -> Iterator[None]:
    """No new file can be made in the store meanwhile: its folder for them is none."""
    folder, away = data.store / "new", data.store / "new.away"
    folder.rename(away)
    folder.write_bytes(b"")
    yield
    folder.unlink()
    away.rename(folder)


async def written(conversation: Conversation) -> bytes:
    """The id of a conversation, once all of it is on the client's disk."""
    await conversation.wait_written()
    assert conversation.stored is not None
    return conversation.stored.sid


async def test_a_conversation_goes_on_in_a_later_run_on_the_same_machine(
    tmp_path: Path, w: World, host: Member, autojump_clock: MockClock
) -> None:
    async with machine(w, tmp_path / "a", knows=[host]) as client:
        conversation = await client.new_conversation(options())
        first = await say(conversation, "one")
        sid = await written(conversation)
    async with machine(w, tmp_path / "a", knows=[host], ip="10.0.9.8") as client:
        conversation = await client.resume(sid)
        assert [(message.role, message.text) for message in conversation.messages] == [
            ("user", "one"),
            ("assistant", first),
        ]
        second = await say(conversation, "two")
    async with machine(w, tmp_path / "a", ip="10.0.9.7") as client:
        conversation = await client.resume(sid)
        assert [message.text for message in conversation.messages] == ["one", first, "two", second]


@pytest.mark.parametrize("by", ["peer id", "wallet"])
async def test_in_a_later_run_no_stranger_learns_what_a_host_that_is_trusted_was_told(
    by: str, tmp_path: Path, w: World, host: Member, autojump_clock: MockClock
) -> None:
    stranger = await w.add([scripted_host()], bootstrap=host.node.multiaddrs[:1])
    wallet = shown_address(identity_of(host.index, 0).binding.wallet)
    trust = [host.node.peer_id if by == "peer id" else wallet]
    async with machine(w, tmp_path / "a", knows=[host], trust=trust) as client:
        conversation = await client.new_conversation(options())
        await say(conversation, "one")
        sid = await written(conversation)
    w.crash(host)
    async with machine(w, tmp_path / "a", knows=[stranger], ip="10.0.9.8", trust=trust) as client:
        conversation = await client.resume(sid)
        with pytest.raises(NoHostError, match="a stranger"):
            await say(conversation, "two")
    assert stranger.host is not None
    assert stranger.host.totals.turns == 0
    async with machine(w, tmp_path / "a", knows=[stranger], ip="10.0.9.7") as client:
        conversation = await client.resume(sid)  # who trusts nobody has no strangers
        await say(conversation, "three")


async def test_a_conversation_is_taken_up_on_another_machine_from_the_words_alone(
    tmp_path: Path, w: World, host: Member, *, stores: list[Member], told: Events, autojump_clock: MockClock
) -> None:
    async with machine(w, tmp_path / "a", knows=[host], stores=stores, told=told) as client:
        conversation = await client.new_conversation(options())
        first = await say(conversation, "one")
    (kept,) = told.named("conversation.kept")
    assert (kept["replicas"], kept["kept"], kept["waiting"]) == (2, True, "")
    async with machine(w, tmp_path / "b", knows=stores, ip="10.0.9.8") as client:
        replicator = await client.conversations.replicator()
        await client.searches.connect_first_peers()
        recovery = await replicator.recover()
        assert not recovery.losses
        (saved,) = recovery.conversations
        assert saved.title == "one"
        conversation = await client.resume(saved.sid, options())
        assert [message.text for message in conversation.messages] == ["one", first]


async def test_without_replicas_it_is_kept_here_and_that_is_said_and_sent_with_the_next_run(
    tmp_path: Path, w: World, host: Member, told: Events, autojump_clock: MockClock
) -> None:
    async with machine(w, tmp_path / "a", knows=[host], told=told) as client:
        await say(await client.new_conversation(options()), "one")
    (kept,) = told.named("conversation.kept")
    assert (kept["replicas"], kept["kept"]) == (0, False)
    assert "1 of 2 places" in str(kept["waiting"])
    stores = [await w.add(bootstrap=host.node.multiaddrs[:1]) for _ in range(2)]
    held = [serve_store(each) for each in stores]
    told = Events()
    async with machine(w, tmp_path / "a", knows=[host], stores=stores, ip="10.0.9.8", told=told) as client:
        await say(await client.new_conversation(options()), "two")
    assert all(fields["kept"] for fields in told.named("conversation.kept"))
    async with machine(w, tmp_path / "b", knows=stores, ip="10.0.9.7") as client:
        replicator = await client.conversations.replicator()
        await client.searches.connect_first_peers()
        recovered = await replicator.recover()
        assert sorted(each.title for each in recovered.conversations) == ["one", "two"]
    del held


async def test_an_answer_that_was_cut_short_goes_on_from_its_last_token_on_another_machine(
    tmp_path: Path, w: World, autojump_clock: MockClock
) -> None:
    host = await w.add([scripted_host(tokens_per_s=50)])
    other = await w.add([scripted_host()], bootstrap=host.node.multiaddrs[:1])
    async with machine(w, tmp_path / "whole", knows=[other], keeps=False) as client:
        whole = await say(await client.new_conversation(options(120)), "one")
    w.crash(other)
    stores = [await w.add() for _ in range(2)]
    for each in stores:
        serve_store(each)
    async with machine(w, tmp_path / "a", knows=[host], stores=stores) as client:
        conversation = await client.new_conversation(options(120))
        answer = conversation.ask("one")
        while len(answer.ids) <= 40:
            await anext(answer)
        w.crash(host)
        with pytest.raises(NoHostError, match="kept"):
            await read(answer)
        assert conversation.cut_short
        held = len(answer.ids)
        assert 40 < held < 120
    new = await w.add([scripted_host()])
    async with machine(w, tmp_path / "b", knows=[new], stores=stores, ip="10.0.9.8") as client:
        replicator = await client.conversations.replicator()
        await client.searches.connect_first_peers()
        (saved,) = (await replicator.recover()).conversations
        conversation = await client.resume(saved.sid, options(120))
        assert conversation.cut_short
        answer = conversation.go_on()
        pieces = await read(answer)
        assert answer.text == whole
        assert whole.endswith(pieces)
        assert len(answer.ids) == 120
        assert answer.usage is not None
        assert answer.usage.tokens_out == 120 - held
        assert not conversation.cut_short


async def test_an_answer_that_is_whole_can_not_go_on(
    tmp_path: Path, w: World, host: Member, autojump_clock: MockClock
) -> None:
    async with machine(w, tmp_path / "a", knows=[host]) as client:
        conversation = await client.new_conversation(options())
        await say(conversation, "one")
        with pytest.raises(ConfigError, match="no answer was cut short"):
            conversation.go_on()


async def test_a_question_asked_again_leaves_the_answer_before_out_of_the_prompt(
    tmp_path: Path, w: World, host: Member, autojump_clock: MockClock
) -> None:
    async with machine(w, tmp_path / "a", knows=[host]) as client:
        conversation = await client.new_conversation(options())
        first = await say(conversation, "one")
        async with conversation.again() as answer:
            async for _ in answer:
                pass
        assert answer.text == first  # the same prompt, and a model without chance
        assert [message.role for message in conversation.messages] == ["user", "assistant", "assistant"]


async def test_a_question_asked_again_is_asked_with_the_next_seed(
    tmp_path: Path, w: World, autojump_clock: MockClock
) -> None:
    seeds: list[int] = []

    def script(_prompt: tuple[int, ...], seed: int) -> str:
        seeds.append(seed)
        return "so it is"

    host = await w.add([scripted_host(script=script)])
    async with machine(w, tmp_path / "a", knows=[host], keeps=False) as client:
        hot, seed = SamplingParams(tokens_max=5, temperature=1), seed_of(7)
        conversation = await client.new_conversation(ChatOptions(model=SCRIPTED, sampling=hot, seed=seed))
        await say(conversation, "one")
        await read(conversation.again())
        await read(conversation.again())
    later = next_seed(seed)
    assert seeds == [call_seed(each, 0) for each in (seed, later, next_seed(later))]


async def asked_in_vain(w: World, tmp_path: Path) -> bytes:
    """A conversation of one question, that no host was there to answer."""
    async with machine(w, tmp_path / "a") as client:
        conversation = await client.new_conversation(options())
        with pytest.raises(NoHostError):
            await say(conversation, "one")
        return await written(conversation)


async def test_a_question_that_nobody_answered_is_answered_in_a_later_run(
    tmp_path: Path, w: World, autojump_clock: MockClock
) -> None:
    sid = await asked_in_vain(w, tmp_path)
    host = await w.add([scripted_host()])
    async with machine(w, tmp_path / "a", knows=[host], ip="10.0.9.8") as client:
        conversation = await client.resume(sid)
        assert (conversation.cut_short, conversation.unanswered) == (True, True)
        text = await read(conversation.go_on())
        assert (conversation.cut_short, conversation.unanswered) == (False, False)
        assert [(message.role, message.text) for message in conversation.messages] == [
            ("user", "one"),
            ("assistant", text),
        ]


async def test_another_question_takes_the_place_of_one_that_nobody_answered(
    tmp_path: Path, w: World, autojump_clock: MockClock
) -> None:
    sid = await asked_in_vain(w, tmp_path)
    host = await w.add([scripted_host()])
    async with machine(w, tmp_path / "a", knows=[host], ip="10.0.9.8") as client:
        resumed = await say(await client.resume(sid), "two")
        assert resumed == await say(await client.new_conversation(options()), "two")


async def test_a_conversation_that_is_only_looked_at_is_not_told_of(
    tmp_path: Path, w: World, host: Member, stores: list[Member], autojump_clock: MockClock
) -> None:
    async with machine(w, tmp_path / "a", knows=[host], stores=stores) as client:
        conversation = await client.new_conversation(options())
        await say(conversation, "one")
        sid = await written(conversation)
    told = Events()
    async with machine(w, tmp_path / "a", stores=stores, told=told, ip="10.0.9.8") as client:
        await client.resume(sid)
    assert not told.named("conversation.kept")


async def test_stores_that_are_named_without_a_key_to_seal_with_are_not_passed_over_in_silence(
    tmp_path: Path, w: World, host: Member, told: Events, autojump_clock: MockClock
) -> None:
    async with machine(w, tmp_path / "a", knows=[host], stores=[host], keeps=False, told=told) as client:
        await say(await client.new_conversation(options(5), keep=False), "one")
        assert not told.named("conversation.not_kept")  # nothing was to be kept
        await say(await client.new_conversation(options(5)), "one")
    (told_once,) = told.named("conversation.not_kept")
    assert "wallet new" in str(told_once["reason"])


async def test_a_client_without_a_storage_key_talks_and_keeps_nothing(
    tmp_path: Path, w: World, host: Member, told: Events, autojump_clock: MockClock
) -> None:
    async with machine(w, tmp_path / "a", knows=[host], keeps=False, told=told) as client:
        conversation = await client.new_conversation(options())
        await say(conversation, "one")
        await say(conversation, "two")
        assert conversation.stored is None
        with pytest.raises(ConfigError, match="wallet new"):
            await client.resume(bytes(16))
    assert not told.named("conversation.kept")
    assert not (tmp_path / "a" / "store").exists()


async def test_a_client_leaves_in_time_when_what_was_said_can_not_be_written_down(
    tmp_path: Path, w: World, host: Member, told: Events, autojump_clock: MockClock
) -> None:
    async with machine(w, tmp_path, knows=[host], told=told) as client:
        conversation = await client.new_conversation(options())
        await say(conversation, "one")
        await conversation.wait_written()
        assert conversation.stored is not None

        async def waits_for_a_fork(*_pieces: Piece, **_: object) -> None:
            await trio.sleep_forever()

        conversation.stored.append = waits_for_a_fork  # type: ignore[method-assign,assignment]
        await say(conversation, "two")
        left_at = trio.current_time()
    limits = client.runtime.limits
    most_s = 2 * limits.keep_deadline_s + limits.renew_at_end_s + 2 * limits.close_deadline_s
    assert trio.current_time() - left_at <= most_s
    assert [each["reason"] for each in told.named("conversation.not_kept")]


async def test_an_answer_that_is_interrupted_is_kept_as_far_as_it_came(
    tmp_path: Path, w: World, autojump_clock: MockClock
) -> None:
    host = await w.add([scripted_host(tokens_per_s=20)])
    told = Events()
    with trio.CancelScope() as interrupted:
        async with machine(w, tmp_path, knows=[host], told=told) as client:
            conversation = await client.new_conversation(options())
            async with conversation.ask("one") as answer:
                async for _ in answer:
                    if len(answer.ids) >= 10:
                        interrupted.cancel()
    assert interrupted.cancelled_caught
    assert told.named("conversation.not_kept") == []
    (kept,) = told.named("conversation.kept")
    async with machine(w, tmp_path, knows=[host], ip="10.0.9.8") as client:
        conversation = await client.resume(bytes.fromhex(str(kept["conversation"])))
        assert conversation.cut_short
        assert conversation.messages[-1].ids == answer.ids


async def test_ids_that_were_dropped_after_their_host_had_left_are_not_in_what_is_kept(
    tmp_path: Path, w: World, autojump_clock: MockClock
) -> None:
    members = await hosts(w, 3)
    dies, lies, honest = members
    ids, text = await unkilled()
    quote = Quote(turn=1, tokens_in=len(HELLO), prompt_hash=HELLO_HASH)
    shown = Tokens(turn=1, index=0, ids=tuple(ids[:6]), text=text[:6])
    unseen = Tokens(turn=1, index=6, ids=(1, 2, 3))

    async def sends_and_dies(stream: Stream) -> None:
        channel = MessageChannel(stream, CODEC)
        await channel.receive()
        await channel.send([Accept(session=SESSION, nonce=bytes(32), epoch=1, n_ctx=2048)])
        await channel.receive()
        await channel.send([quote, shown, unseen])
        await trio.sleep(0.5)
        w.crash(dies)

    misbehave(dies, sends_and_dies)
    misbehave(lies, speaks([quote, quote]))
    told = Events()
    async with machine(w, tmp_path, knows=members, told=told) as client:
        await meet(client, members)
        conversation = await client.new_conversation(options(TOKENS))
        async with conversation.ask(QUESTION) as answer:
            async for _ in answer:
                if len(answer.ids) >= 20:
                    break
        assert (answer.host, len(told.named("host.failed"))) == (honest.node.peer_id, 3)
        sid = await written(conversation)
    async with machine(w, tmp_path, ip="10.0.9.8") as client:
        kept = (await client.resume(sid)).messages[-1]
        assert list(kept.ids) == list(answer.ids) == ids[: len(answer.ids)]
        assert kept.text == answer.text


async def test_a_disk_that_takes_no_more_is_told_once_and_nothing_is_called_kept_that_is_not(
    tmp_path: Path, w: World, host: Member, told: Events, autojump_clock: MockClock
) -> None:
    with contextlib.ExitStack() as failing:
        async with machine(w, tmp_path, knows=[host], told=told) as client:
            conversation = await client.new_conversation(options())
            await say(conversation, "one")
            await conversation.wait_written()
            with failing_disk(client.runtime.data):
                await say(conversation, "two")
                await conversation.wait_written()
            assert len(told.named("conversation.not_kept")) == 1
            await conversation.wait_written()
            assert conversation.not_written == ""
            failing.enter_context(failing_disk(client.runtime.data))
            await say(conversation, "three")
    assert len(told.named("conversation.not_kept")) == 2
    (kept,) = told.named("conversation.kept")
    assert kept["cut"]
    assert "is not kept" in conversation_text("conversation.kept", kept)
    async with machine(w, tmp_path, knows=[host], ip="10.0.9.8") as client:
        conversation = await client.resume(bytes.fromhex(str(kept["conversation"])))
        assert [message.text for message in conversation.messages if message.role == "user"] == [
            "one",
            "two",
        ]


async def test_a_question_is_answered_where_the_store_can_not_be_opened(
    tmp_path: Path, w: World, host: Member, told: Events, autojump_clock: MockClock
) -> None:
    async with machine(w, tmp_path, knows=[host], told=told) as client:
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "index.sqlite").write_bytes(b"something else that is no store of ours" * 99)
        conversation = await client.new_conversation(options())
        assert await say(conversation, "one")
        assert not conversation.is_kept
    assert len(told.named("conversation.not_kept")) == 1


async def test_two_answers_at_once_in_one_conversation_do_not_become_one(
    tmp_path: Path, w: World, autojump_clock: MockClock
) -> None:
    host = await w.add([scripted_host(tokens_per_s=50)])
    async with machine(w, tmp_path, knows=[host]) as one:
        first = await one.new_conversation(options())
        await say(first, "shared")
        sid = await written(first)
        async with machine(w, tmp_path, knows=[host], ip="10.0.9.8") as two:
            second = await two.resume(sid)
            answers = {"one": first.ask("from one"), "two": second.ask("from two")}

            async def listen(name: str) -> None:
                async for _ in answers[name]:
                    pass

            async with trio.open_nursery() as nursery:
                for name in answers:
                    nursery.start_soon(listen, name)
    async with machine(w, tmp_path, knows=[host], ip="10.0.9.7") as client:
        kept = await client.conversations.open(sid)
        turns = kept.turns[2:]
        of = [{piece.session for piece in turn.pieces} - {None} for turn in turns]
        assert all(len(sessions) <= 1 for sessions in of)
        for answer in answers.values():
            ours = [turn for turn, told in zip(turns, of, strict=True) if answer.bill[0].session in told]
            assert "".join(turn.text for turn in ours) == answer.text
        assert kept.missing == ()


THINKS = "<think>hm, so</think>Because it is."
GREEDY = ChatOptions(model=SCRIPTED, sampling=SamplingParams(tokens_max=100, temperature=0))


def thinking_host() -> HostedModel:
    """A host whose model thinks before it answers, slowly enough to die in the middle of both."""
    template = ChatTemplate(TEMPLATE.source + "{# </think> #}")
    return scripted_host(script=lambda *_: THINKS, template=template, tokens_per_s=20.0)


async def test_an_answer_that_thought_goes_on_on_another_machine_where_it_stopped(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world(limits=ONE_BY_ONE) as w:
        for cut in (4, 10, 16, 24, 30):
            host = await w.add([thinking_host()])
            folder = tmp_path / str(cut)
            async with machine(w, folder, knows=[host]) as client:
                conversation = await client.new_conversation(GREEDY)
                answer = conversation.ask("Why?")
                with pytest.raises(P2PNodeError):  # noqa: PT012
                    async for _ in answer.events():
                        if len(answer.ids) >= cut:
                            w.crash(host)
                before, reasoning = answer.text, answer.reasoning
                sid = await written(conversation)
            other = await w.add([thinking_host()])
            async with machine(w, folder, knows=[other], ip="10.0.9.8") as client:
                conversation = await client.resume(sid, GREEDY)
                assert conversation.messages[-1].text == before
                rest = conversation.go_on()
                said = [each async for each in rest.events()]
            assert rest.text == "Because it is."
            thought = "".join(each.text for each in said if each.channel == "reasoning")
            assert reasoning + thought == "hm, so"
