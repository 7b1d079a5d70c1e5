"""Texts embedded by whole nodes in memory: every vector once, in order, billed as input, whatever dies."""

from __future__ import annotations

import math
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.client.embedding import Embedding
from p2pnode.client.ranking import Filters
from p2pnode.errors import ConfigError, NoHostError, RefusedError
from p2pnode.models.manifest import SCRIPTED
from p2pnode.models.scripted import DIMENSIONS, END, Faults
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.adverts.messages import Capability
from p2pnode.protocols.inference.embeddings import texts_hash, vector_bytes, vector_numbers
from p2pnode.protocols.inference.messages import (
    CODEC,
    Accept,
    Prompt,
    PromptBody,
    PromptReceived,
    Quote,
    Refuse,
    Resume,
    Vector,
)
from p2pnode.protocols.wire import decode_record
from tests.client.failing import SESSION, engine_of, seeds, speaks, stage
from tests.client.support import Events, misbehave
from tests.host.paid import FEE, PRICE_IN, RICH, paid_world
from tests.node.world import scripted_host, world

TEXTS = ["the sea is wide", "the sea is deep", "a ledger of debts"]


async def read(embedding: Embedding) -> list[array[float]]:
    return [vector async for vector in embedding]


async def honest(texts: list[str]) -> list[array[float]]:
    """What one host gives that nothing happens to."""
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            return await read(client.embed(texts, model=SCRIPTED))


def tokens_of(texts: list[str]) -> int:
    return sum(len(text.encode()) + 1 for text in texts)


def close(one: array[float], other: array[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_each_text_gets_a_vector_of_unit_length_and_texts_that_share_words_are_near(
    autojump_clock: MockClock,
) -> None:
    wide, deep, ledger = await honest(TEXTS)
    assert len(wide) == DIMENSIONS
    assert all(math.isclose(close(each, each), 1, rel_tol=1e-6) for each in (wide, deep, ledger))
    assert close(wide, deep) > 2 * close(wide, ledger)


@pytest.mark.long
async def test_a_text_has_the_same_vector_whatever_stands_beside_it(autojump_clock: MockClock) -> None:
    assert (await honest(TEXTS))[1:] == await honest(TEXTS[1:])


async def test_more_texts_than_a_turn_takes_are_embedded_in_several(autojump_clock: MockClock) -> None:
    texts = [f"text number {n}" for n in range(600)] + ["x" * 2000, "y"]
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            embedding = client.embed(texts, model=SCRIPTED)
            vectors = await read(embedding)
        assert len(vectors) == len(texts)
        assert vectors == embedding.vectors
        assert vectors[-1:] == await honest(["y"])
        assert embedding.tokens_in == tokens_of(texts)
        assert [item.tokens_out for item in embedding.bill] == [0, 0, 0]
        assert {item.reason for item in embedding.bill} == {"stop"}
        assert host.host is not None
        assert host.host.totals.sessions == 1


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "at least one"),
        ("one", "a list of texts"),
        (["a", ""], "text 2 is empty"),
        (["\ud800"], "half of a character"),
    ],
)
async def test_what_can_not_be_embedded_is_refused_at_once(
    texts: list[str], words: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w, w.client([]) as client:
        with pytest.raises(ConfigError, match=words):
            client.embed(texts, model=SCRIPTED)


async def test_a_text_longer_than_the_context_is_refused_in_words(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            with pytest.raises(RefusedError, match="a text takes 3001 tokens, this context holds 2048"):
                await read(client.embed(["x" * 3000], model=SCRIPTED))


async def test_more_tokens_than_a_turn_takes_are_refused_in_words(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([replace(scripted_host(n_ctx=16_384), n_ctx=16_384)])
        async with w.client(host.node.multiaddrs[:1]) as client:
            with pytest.raises(RefusedError, match="the texts take 9001 tokens, a turn 8192"):
                await read(client.embed(["x" * 9000], model=SCRIPTED))


# ---- hosts without embeddings


async def test_a_host_without_embeddings_is_left_out_with_the_reason(autojump_clock: MockClock) -> None:
    async with world() as w:
        lacking, able = await w.add([scripted_host(embeddings=False)]), await w.add([scripted_host()])
        async with w.client(seeds([lacking, able])) as client:
            embedding = client.embed(TEXTS, model=SCRIPTED)
            assert len(await read(embedding)) == len(TEXTS)
            assert [item.peer for item in embedding.bill] == [able.node.peer_id]
            ranking = await client.hosts(SCRIPTED, Filters(caps=int(Capability.EMBEDDINGS)))
            assert [each.excluded for each in ranking.excluded] == ["lacks embeddings, which is needed"]
        async with w.client(seeds([lacking]), ip="10.0.9.8") as client:
            with pytest.raises(NoHostError, match="lacks embeddings, which is needed") as refused:
                await read(client.embed(TEXTS, model=SCRIPTED))
            assert "`p2pnode hosts --why --model scripted --needs embeddings`" in str(refused.value)


# ---- what dies


@pytest.mark.parametrize(
    "made", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)]
)
async def test_an_engine_that_dies_goes_on_with_the_next_text_once(
    made: int, autojump_clock: MockClock
) -> None:
    async with stage(2) as (_, members, client):
        engine_of(members[0]).faults = Faults(crash_after_tokens=made)
        embedding = client.embed(TEXTS, model=SCRIPTED)
        assert await read(embedding) == await honest(TEXTS)
        (item,) = embedding.bill
        assert (item.peer, item.reason) == (members[0].node.peer_id, "stop")


async def test_a_host_that_fails_in_the_middle_is_replaced_for_the_texts_that_are_missing(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (_, members, client):
        engine_of(members[0]).faults = Faults(crash_after_tokens=1, crashes=2)
        embedding = client.embed([*TEXTS, "another"], model=SCRIPTED)
        assert await read(embedding) == await honest([*TEXTS, "another"])
        first, second = embedding.bill
        assert (first.peer, first.reason) == (members[0].node.peer_id, "internal")
        assert (second.peer, second.reason) == (members[1].node.peer_id, "stop")
        assert second.tokens_in == tokens_of([*TEXTS, "another"][2:])
        assert client.searches.measured[members[0].node.peer_id].failures_in_a_row == 1


async def test_a_host_whose_machine_is_gone_is_replaced(autojump_clock: MockClock) -> None:
    async with world() as w:
        members = [await w.add([scripted_host(prefill_tokens_per_s=20.0)]) for _ in range(2)]
        async with w.client(seeds(members)) as client:
            asked: list[int] = []

            def crash() -> None:
                asked.append(next(n for n, each in enumerate(members) if engine_of(each).statistics().active))
                w.crash(members[asked[0]])

            Events(on={"prefill": crash}).of(client)
            embedding = client.embed(TEXTS, model=SCRIPTED)
            assert await read(embedding) == await honest(TEXTS)
            peers = [members[n].node.peer_id for n in (asked[0], 1 - asked[0])]
            assert [item.peer for item in embedding.bill] == peers


LONG = [letter * 2000 for letter in "abcde"]
"""Two turns: four of them, and the last."""


@pytest.mark.parametrize("came", [0, 4])
async def test_when_the_only_host_dies_it_is_said_where_to_go_on(
    came: int, autojump_clock: MockClock
) -> None:
    async with world() as w:
        host = await w.add([scripted_host(prefill_tokens_per_s=400.0)])
        async with w.client(seeds([host])) as client, trio.open_nursery() as nursery:

            async def crash() -> None:
                await trio.sleep(2.5)  # a text takes five seconds
                w.crash(host)

            embedding = client.embed(LONG, model=SCRIPTED)
            for _ in range(came):
                assert len(await anext(embedding)) == DIMENSIONS
            Events(on={"host": lambda: nursery.start_soon(crash)}).of(client)
            with pytest.raises(NoHostError) as lost:
                await read(embedding)
            what = "text 5 and those after it" if came else "these texts"
            good = ". 4 vectors came and are good: go on with text 5" if came else ""
            assert str(lost.value) == f"no host is left for {what}: the connection to the host was lost{good}"


async def test_when_the_only_host_dies_between_two_turns_it_is_said_in_the_same_words(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(seeds([host])) as client:
            embedding = client.embed(LONG, model=SCRIPTED)
            for _ in range(4):
                assert len(await anext(embedding)) == DIMENSIONS
            w.crash(host)
            await trio.sleep(60)
            with pytest.raises(NoHostError, match="no host is left for text 5 and those after it") as lost:
                await read(embedding)
            assert str(lost.value).endswith(". 4 vectors came and are good: go on with text 5")


async def test_of_a_text_that_is_too_long_the_number_and_the_size_are_told(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(seeds([host])) as client:
            with pytest.raises(
                RefusedError, match="The longest is text 2 of 3, of 3000 bytes: cut it"
            ) as long:
                await read(client.embed(["a", "x" * 3000, "b"], model=SCRIPTED))
            assert "--context drop-oldest" not in str(long.value)


@pytest.mark.long
async def test_when_nobody_is_left_the_vectors_that_came_stay(autojump_clock: MockClock) -> None:
    async with stage(1) as (_, members, client):
        engine_of(members[0]).faults = Faults(crash_after_tokens=1, crashes=9)
        embedding = client.embed(TEXTS, model=SCRIPTED)
        with pytest.raises(NoHostError):
            await read(embedding)
        assert embedding.vectors == (await honest(TEXTS))[: len(embedding.vectors)]
        assert len(embedding.vectors) == 2
        rest = client.embed(TEXTS[len(embedding.vectors) :], model=SCRIPTED)
        engine_of(members[0]).faults = Faults()
        await trio.sleep(120)
        assert await read(rest) == (await honest(TEXTS))[2:]


# ---- hosts that lie


def hangs_up_after(numbers: list[float], asked: list[int]) -> Callable[[Stream], Awaitable[None]]:
    """A free host that sends one vector and hangs up; ``asked`` grows each time that it is asked."""
    digest = texts_hash([(*text.encode(), END) for text in TEXTS])
    quote = Quote(turn=1, tokens_in=tokens_of(TEXTS), prompt_hash=digest)

    async def handler(stream: Stream) -> None:
        asked.append(1)
        channel = MessageChannel(stream, CODEC)
        await channel.receive()
        await channel.send([Accept(session=SESSION, nonce=bytes(32), epoch=1, n_ctx=2048)])
        await channel.receive()
        await channel.send([quote, Vector(turn=1, index=0, data=vector_bytes(numbers))])
        await trio.sleep(0.5)
        await stream.reset()

    return handler


@pytest.mark.parametrize("numbers", [[0.25], [0.125] * DIMENSIONS], ids=["of another size", "made up"])
async def test_a_vector_of_a_host_that_hung_up_is_not_given_and_blames_no_honest_host(
    numbers: list[float], autojump_clock: MockClock
) -> None:
    async with stage(2) as (_, members, client):
        other = members[1].node.peer_id
        asked: list[int] = []
        misbehave(members[0], hangs_up_after(numbers, asked))
        embedding = client.embed(TEXTS, model=SCRIPTED)
        assert await read(embedding) == await honest(TEXTS)
        assert [(item.peer, item.reason) for item in embedding.bill][-1] == (other, "stop")
        assert len(asked) == 2, "once more, for a connection may break"
        assert client.searches.measured[other].failures_in_a_row == 0


@pytest.mark.long
async def test_a_host_whose_vectors_have_another_size_than_earlier_ones_is_passed_over_for_the_rest(
    autojump_clock: MockClock,
) -> None:
    texts = [letter * 2000 for letter in "abcdefghijkl"]  # three turns of four
    async with stage(2) as (_, (liar, _), client):
        asked: list[int] = []

        async def other_size(stream: Stream) -> None:
            channel = MessageChannel(stream, CODEC)
            if isinstance(await channel.receive(), Resume):
                await channel.send([Refuse(code="bad_request")])
                return
            await channel.send([Accept(session=SESSION, nonce=bytes(32), epoch=1, n_ctx=2048)])
            raw = b""
            while isinstance(part := await channel.receive(), Prompt):
                raw += part.body
                await channel.send([PromptReceived(turn=1, bytes=len(raw))])
                if part.last:
                    break
            inputs = [(*text.encode(), END) for text in decode_record(PromptBody, raw).embed]
            asked.append(len(inputs))
            quote = Quote(turn=1, tokens_in=sum(map(len, inputs)), prompt_hash=texts_hash(inputs))
            await channel.send([quote, Vector(turn=1, index=0, data=vector_bytes([0.25]))])
            while await channel.receive() is not None:
                pass

        embedding = client.embed(texts, model=SCRIPTED)
        vectors: list[array[float]] = []
        async for vector in embedding:
            vectors.append(vector)
            if len(vectors) % 4 == 0:
                misbehave(liar, other_size)
                await trio.sleep(1000)  # the session with the host of this turn is over by then
        assert vectors == await honest(texts)
        assert asked == [4]
        known = client.searches.measured[liar.node.peer_id]
        assert (known.faults, known.failures_in_a_row) == (0, 0)
        assert [item.reason for item in embedding.bill] == ["stop", "disagrees", "stop", "stop"]


def test_vectors_take_four_bytes_a_number() -> None:
    data = vector_bytes([0.5, -1.25])
    numbers = vector_numbers(data)
    assert (list(numbers), numbers.itemsize * len(numbers)) == ([0.5, -1.25], len(data))
    assert vector_bytes(numbers) == data


async def test_a_host_that_sends_a_malformed_vector_is_left_and_none_of_its_vectors_stays(
    autojump_clock: MockClock,
) -> None:
    async with stage(2) as (_, members, client):
        digest = texts_hash([(*text.encode(), END) for text in TEXTS])
        quote = Quote(turn=1, tokens_in=tokens_of(TEXTS), prompt_hash=digest)
        fine = Vector(turn=1, index=0, data=vector_bytes([0.25]))
        wrong = Vector(turn=1, index=1, data=vector_bytes([math.nan]))
        misbehave(members[0], speaks([quote, fine, wrong]))
        embedding = client.embed(TEXTS, model=SCRIPTED)
        assert await read(embedding) == await honest(TEXTS)
        first, second = embedding.bill
        assert (first.reason, second.reason) == ("fault", "stop")
        assert second.tokens_in == tokens_of(TEXTS)
        assert client.searches.measured[members[0].node.peer_id].faults == 1


@pytest.mark.long
async def test_a_host_that_quotes_more_than_the_bytes_of_the_texts_is_left(autojump_clock: MockClock) -> None:
    async with stage(2) as (_, members, client):
        most = sum(len(text.encode()) + 4 for text in TEXTS)
        quote = Quote(turn=1, tokens_in=most + 1, prompt_hash=bytes(32))
        misbehave(members[0], speaks([quote]))
        embedding = client.embed(TEXTS, model=SCRIPTED)
        assert await read(embedding) == await honest(TEXTS)
        assert client.searches.measured[members[0].node.peer_id].faults == 1


# ---- money


async def embedded(client: Client, texts: list[str]) -> Embedding:
    embedding = client.embed(texts, model=SCRIPTED)
    assert len(await read(embedding)) == len(texts)
    return embedding


async def test_texts_are_paid_as_input_to_the_unit_and_vectors_cost_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, money = await w.host()
        async with w.client(member) as client:
            first = await embedded(client, TEXTS)
            second = await embedded(client, ["one more"])
        await trio.sleep(2)
        tokens = tokens_of([*TEXTS, "one more"])
        assert first.tokens_in + second.tokens_in == tokens
        due = FEE + tokens * PRICE_IN // 1_000_000
        assert first.cost + second.cost == due
        assert RICH - w.balance("alice") == due
        treasury = (due - FEE) // 10
        assert (w.earned("host 0"), w.treasury) == (due - treasury, treasury)
        (record,) = money.journal.hosted()
        assert (record.state, record.amount) == ("settled", due)
        assert w.chain.block == 2  # one open, one close


async def test_texts_that_could_cost_more_than_is_allowed_are_not_asked_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        most = FEE + sum(len(text.encode()) + 4 for text in TEXTS)
        async with w.client(member) as client:
            with pytest.raises(NoHostError, match="can cost up to"):
                await read(client.embed(TEXTS, model=SCRIPTED, filters=Filters(cost_max=most - 1)))
            assert w.balance("alice") == RICH
            allowed = client.embed(TEXTS, model=SCRIPTED, filters=Filters(cost_max=most))
            assert len(await read(allowed)) == 3
            assert allowed.cost <= most
