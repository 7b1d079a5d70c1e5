"""One suite for both clients: the one with a network of its own, and the one that asks through a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client import interface
from p2pnode.client.chat_options import ChatOptions, tools_of
from p2pnode.client.client import Client
from p2pnode.client.proxy.proxy_client import ProxyClient
from p2pnode.client.ranking import Filters
from p2pnode.errors import ConfigError, NoHostError
from p2pnode.gateway.owner_socket import OwnerSocket
from p2pnode.models.answer import Said
from p2pnode.models.manifest import SCRIPTED
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.failing import ONE_BY_ONE, check_whole, seeds, unkilled
from tests.client.machines import machine, options, read, say
from tests.client.support import Events
from tests.client.test_tools import ARGUMENTS, EXPECTED, GREEDY, TOOLS, script, whole
from tests.node.world import Member, World, scripted_host, world

Kind = Literal["own", "gateway"]
pytestmark = pytest.mark.parametrize("kind", [pytest.param("own", marks=pytest.mark.long), "gateway"])
"""The own network has suites of its own among the short tests; here the two are held side by side."""
GREEDY_40 = SamplingParams(tokens_max=40, temperature=0)


@asynccontextmanager
async def asking(kind: Kind, under: Client, events: Events) -> AsyncIterator[interface.Client]:
    """The client that is tested: ``under`` itself, or one that asks through a gateway over it."""
    if kind == "own":
        events.of(under)
        yield under
        return
    async with trio.open_nursery() as nursery:
        owner = OwnerSocket(under)
        await nursery.start(owner.run)
        async with ProxyClient(str(owner.path), on_event=events) as client:
            yield client
        nursery.cancel_scope.cancel()


@dataclass
class Stage:
    world: World
    members: list[Member]
    client: interface.Client
    under: Client
    events: Events


@asynccontextmanager
async def stage(kind: Kind, count: int = 1, **engine: Any) -> AsyncIterator[Stage]:
    """Free scripted hosts, and the client."""
    events = Events()
    async with world(limits=ONE_BY_ONE) as w:
        members: list[Member] = []
        for _ in range(count):
            first = members[0].node.multiaddrs[:1] if members else ()
            members.append(await w.add([scripted_host(**engine)], bootstrap=first))
        async with w.client(seeds(members)) as under:
            await under.hosts(SCRIPTED)
            async with asking(kind, under, events) as client:
                yield Stage(w, members, client, under, events)


def chat(s: Stage, **more: Any) -> interface.Answer:
    return s.client.chat("hello", **{"model": SCRIPTED, "sampling": GREEDY_40, **more})


async def shown(answer: interface.Answer, then: Callable[[str], None] = lambda _text: None) -> str:
    text = ""
    async with answer:
        async for piece in answer:
            text += piece
            then(text)
    return text


async def test_an_answer_streams_in_pieces_with_its_ids_its_bill_and_its_events(
    autojump_clock: MockClock, kind: Kind
) -> None:
    async with stage(kind, tokens_per_s=50.0) as s:
        answer = chat(s)
        pieces = [piece async for piece in answer]
        await check_whole(answer, "".join(pieces))
        assert len(pieces) > 20
        peer = s.members[0].node.peer_id
        assert (answer.host, answer.text_known) == (peer, 40)
        assert [item.peer for item in answer.bill] == [peer]
        assert answer.checkpoints == 2
        assert answer.offer is not None
        assert answer.offer.n_ctx == 2048
        assert answer.wallet is not None
        assert answer.usage is not None
        assert answer.usage.ttft_s > 0
        assert [name for name, _ in s.events.told] == ["host"]
        assert s.events.named("host") == [{"peer": peer, "model": SCRIPTED}]


async def test_a_host_that_dies_is_followed_by_another_in_one_text(
    autojump_clock: MockClock, kind: Kind
) -> None:
    async with stage(kind, 2, tokens_per_s=50.0) as s:
        answer = chat(s)

        def crash(text: str) -> None:
            if len(text) == 20:
                s.world.crash(next(each for each in s.members if each.node.peer_id == answer.host))

        await check_whole(answer, await shown(answer, crash))
        assert len(answer.bill) == 2
        (told,) = s.events.named("failover")
        assert (told["from"], told["to"]) == tuple(item.peer for item in answer.bill)
        assert told["held"] == answer.bill[0].tokens_out


async def test_who_leaves_an_answer_frees_the_hosts_slot_and_keeps_what_came(
    autojump_clock: MockClock, kind: Kind
) -> None:
    async with stage(kind, tokens_per_s=10.0) as s:
        answer = chat(s)
        async with answer:
            for _ in range(5):
                await anext(answer)
        assert (answer.usage, len(answer.text) >= 5) == (None, True)
        assert [item.reason for item in answer.bill] == ["cancelled"]
        assert answer.bill[0].tokens_out >= len(answer.ids) - 1
        with trio.fail_after(2):
            whole_again = chat(s, sampling=SamplingParams(tokens_max=3, temperature=0))
            assert len(await shown(whole_again)) == 3
        with pytest.raises(StopAsyncIteration):
            await anext(answer)


async def test_an_answer_that_is_cancelled_is_stopped_at_its_host(
    autojump_clock: MockClock, kind: Kind
) -> None:
    async with stage(kind, tokens_per_s=10.0) as s:
        answer = chat(s)
        with trio.move_on_after(2):
            await shown(answer)
        assert 5 < len(answer.ids) < 40
        assert [item.reason for item in answer.bill] == ["cancelled"]


async def test_an_answer_goes_on_from_what_another_one_holds(autojump_clock: MockClock, kind: Kind) -> None:
    async with stage(kind, tokens_per_s=10.0) as s:
        first = chat(s)
        async with first:
            await anext(first)
        rest = s.client.go_on(first)
        begun, came = first.text, await shown(rest)
        assert begun + came == rest.text == (await unkilled())[1]
        again = chat(s, held=first.held)
        assert await shown(again) == came
        assert again.ids == rest.ids


async def test_calls_of_tools_stream_and_keep_their_ids(autojump_clock: MockClock, kind: Kind) -> None:
    async with stage(kind, script=script, tokens_per_s=50.0) as s:
        answer = s.client.chat("Weather?", model=SCRIPTED, tools=TOOLS, sampling=GREEDY, seed=7)
        said: list[Said] = []
        ids = set()
        async for each in answer.events():
            said.append(each)
            ids |= {call.id for call in answer.tool_calls}
        assert whole(said) == EXPECTED
        (call,) = answer.tool_calls
        assert (call.name, call.arguments, {call.id}) == ("weather", ARGUMENTS, ids)
        assert (answer.text_checked, answer.usage and answer.usage.reason) == (True, "tool_calls")


async def test_log_probabilities_come_with_the_ids(autojump_clock: MockClock, kind: Kind) -> None:
    async with stage(kind) as s:
        answer = chat(s, logprobs=2)
        await shown(answer)
        assert [len(each.top) for each in answer.logprobs] == [2] * len(answer.ids)


async def test_errors_are_of_the_same_kind_and_say_the_same(autojump_clock: MockClock, kind: Kind) -> None:
    async with stage(kind) as s:
        with pytest.raises(ConfigError, match="unknown model 'nonesuch'"):
            await shown(chat(s, model="nonesuch"))
        with pytest.raises(ConfigError, match="nothing to ask"):
            await shown(s.client.chat([], model=SCRIPTED))
        with pytest.raises(NoHostError) as failed:
            await shown(chat(s, filters=Filters(reputation_min=0.9)))
        assert "reputation" in str(failed.value)
        with pytest.raises(ConfigError, match="unknown model 'nonesuch'"):
            await s.client.hosts("nonesuch")
        with pytest.raises(ConfigError, match="text 2 is empty"):
            async for _ in s.client.embed(["one", ""], model=SCRIPTED):
                pass
        assert len(await shown(chat(s))) == 40


async def test_answers_at_the_same_time_are_each_told_to_their_own_reader(
    autojump_clock: MockClock, kind: Kind
) -> None:
    async with stage(kind, 2, tokens_per_s=20.0) as s:
        async with trio.open_nursery() as nursery:
            answers = [chat(s) for _ in range(6)]
            for each in answers:
                nursery.start_soon(shown, each)
        assert {each.text for each in answers} == {(await unkilled())[1]}
        assert len(s.events.named("host")) == 6


async def test_hosts_their_sheets_and_what_a_question_could_cost_are_what_is_seen(
    autojump_clock: MockClock, kind: Kind
) -> None:
    async with stage(kind, 2) as s:
        ranking = await s.client.hosts(SCRIPTED)
        assert {each.advert.peer for each in ranking.chosen} == {each.node.peer_id for each in s.members}
        own = await s.under.hosts(SCRIPTED)  # whose scores have changed meanwhile
        assert {each.advert for each in ranking.chosen} == {each.advert for each in own.chosen}
        assert {each.offer for each in ranking.chosen} == {each.offer for each in own.chosen}
        assert (s.client.alone, s.client.last_failures) == (False, {})
        sheets = await s.client.sheets(each.advert for each in ranking.chosen)
        assert sheets.keys() == {each.node.peer_id for each in s.members}
        assert sheets == await s.under.sheets(each.advert for each in ranking.chosen)
        left_out = await s.client.hosts(SCRIPTED, Filters(n_ctx_min=4096))
        assert [bool(each.excluded) for each in left_out.excluded] == [True, True]
        assert await s.client.known_adverts() == await s.under.known_adverts()
        asked = ChatOptions(model=SCRIPTED, sampling=GREEDY_40)
        estimates = await s.client.estimate("hello", asked)
        assert [each.cost for each in estimates] == [
            each.cost for each in await s.under.estimate("hello", asked)
        ]
        assert {each.turn.tokens_out for each in estimates} == {40}
        assert await s.client.count("hello", asked) == await s.under.count("hello", asked)


async def test_vectors_come_in_the_order_of_their_texts(autojump_clock: MockClock, kind: Kind) -> None:
    async with stage(kind) as s:
        texts = [f"text {number}" for number in range(300)]  # of two turns
        embedding = s.client.embed(texts, model=SCRIPTED)
        async with embedding:
            vectors = [vector async for vector in embedding]
        own = s.under.embed(texts, model=SCRIPTED)
        assert vectors == embedding.vectors == [vector async for vector in own]
        assert embedding.tokens_in == own.tokens_in > len(texts)
        assert embedding.cost == 0


# ---- conversations


async def test_a_conversation_goes_on_from_what_was_said_and_from_where_it_was_cut(
    autojump_clock: MockClock, kind: Kind
) -> None:
    async with stage(kind, tokens_per_s=10.0) as s:
        conversation = await s.client.new_conversation(options(40))
        assert (conversation.has_question, conversation.cut_short, conversation.is_kept) == (False,) * 3
        with pytest.raises(ConfigError, match="nothing was asked yet"):
            conversation.again()
        with pytest.raises(ConfigError, match="no answer was cut short"):
            conversation.go_on()
        first = conversation.ask("hello")
        async with first:
            await anext(first)
        assert (conversation.cut_short, conversation.unanswered) == (True, False)
        rest = conversation.go_on()
        came = await read(rest)
        assert first.text + came == rest.text == (await unkilled())[1]
        assert rest.ids == (await unkilled())[0]
        assert not conversation.cut_short
        second = conversation.ask("and more")
        assert await read(second)
        assert second.usage is not None
        assert second.usage.tokens_in > 40  # what was said before went along
        assert second.usage.reused > 40
        again = conversation.again()
        assert await read(again) == second.text


async def test_tools_of_a_conversation_get_their_results(autojump_clock: MockClock, kind: Kind) -> None:
    async with stage(kind, script=script) as s:
        options_ = ChatOptions(model=SCRIPTED, tools=tools_of(TOOLS), sampling=GREEDY)
        conversation = await s.client.new_conversation(options_)
        await read(conversation.ask("Weather?"))
        (call,) = conversation.calls
        assert call.name == "weather"
        with pytest.raises(ConfigError, match="1 calls of tools wait"):
            conversation.give_results([])
        assert await read(conversation.give_results(["rain"])) == "It says: rain."
        assert list(conversation.calls) == []


async def test_a_conversation_is_written_down_once_and_resumed_by_whoever_asks(
    autojump_clock: MockClock, kind: Kind, tmp_path: Path
) -> None:
    events = Events()
    async with world(limits=ONE_BY_ONE) as w:
        host = await w.add([scripted_host()])
        async with (
            machine(w, tmp_path, knows=[host]) as under,
            asking(kind, under, events) as client,
        ):
            conversation = await client.new_conversation(options(40))
            assert (conversation.is_kept, conversation.sid) == (True, None)
            said = await say(conversation, "hello")
            await conversation.wait_written()
            sid = conversation.sid
            assert sid is not None
            more = await client.resume(sid, options(40))
            assert more.has_question
            answer = more.ask("and more")
            assert await read(answer)
        # What is on the disk is read by a client that has never heard of a gateway.
        async with machine(w, tmp_path, knows=[host], ip="10.0.9.8") as later:
            kept = await later.resume(sid)
            assert kept.stored is not None
            turns = kept.stored.turns
            assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant"]
            assert [turn.text for turn in turns] == ["hello", said, "and more", answer.text]
            assert [len(turn.ids) for turn in turns] == [0, 40, 0, 40]
            assert not kept.stored.branches
    assert {fields["conversation"] for fields in events.named("conversation.kept")} == {sid.hex()}


async def test_what_is_not_to_be_kept_is_not(autojump_clock: MockClock, kind: Kind, tmp_path: Path) -> None:
    async with world(limits=ONE_BY_ONE) as w:
        host = await w.add([scripted_host()])
        async with (
            machine(w, tmp_path, knows=[host]) as under,
            asking(kind, under, Events()) as client,
        ):
            conversation = await client.new_conversation(options(9), keep=False)
            await say(conversation, "hello")
            assert (conversation.is_kept, conversation.sid) == (False, None)
            replicator = await under.conversations.replicator()
            assert list(await replicator.archive.conversations()) == []
