"""Embeddings turns: vectors paid as input, read by credit in bytes, in one receipt, each arriving once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.events import Closed, Command, Received
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import HostTerms, exact_voucher
from p2pnode.protocols.inference.commands import (
    Counted,
    Embed,
    GenDone,
    GenFailed,
    GenVector,
    SessionFailed,
    TokensTaken,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.embeddings import VectorCheck, texts_hash, vector_bytes, vector_numbers
from p2pnode.protocols.inference.prompt_rules import check_prompt
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.inference.receipts import Leaf, ids_hash
from p2pnode.protocols.wire import encode
from tests.protocols.inference.paid_pair import PaidPair, client_payment
from tests.protocols.inference.pair import (
    CLIENT,
    HOST,
    PROMPT_HASH,
    STREAM,
    Pair,
    ask,
    embed,
    turn_of,
    vector_of,
)
from tests.protocols.support import emitted, only, sent

BIG = 8192
"""Numbers of the largest vector: 8 of them are all the read credit that there is at first."""


class Embedding(PaidPair):
    """A paid session, two turns of which may be under way."""

    grants = HostTerms(n_ctx=16_384, turns_max=2, window=96)


def paid(reused: int = 0) -> Embedding:
    pair = Embedding(answer_tokens=100, reused=reused)
    pair.open()
    return pair


def texts(count: int) -> list[str]:
    return [f"text {n}" for n in range(count)]


def vectors(count: int) -> list[bytes]:
    return [vector_of(text) for text in texts(count)]


# ---- the bytes


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=64))
def test_numbers_of_32_bits_go_through_their_bytes_unchanged(numbers: list[float]) -> None:
    data = vector_bytes(numbers)
    assert len(data) == 4 * len(numbers)
    assert list(vector_numbers(data)) == numbers


def test_a_vector_is_float32_little_endian() -> None:
    assert vector_bytes([1.0, -2.5]) == bytes.fromhex("0000803f000020c0")


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=4), max_size=4))
def test_the_hash_of_texts_tells_where_each_text_ends(inputs: list[list[int]]) -> None:
    joined = [token for ids in inputs for token in ids]
    if len(inputs) != 1:
        assert texts_hash(inputs) != texts_hash([joined])
    assert texts_hash(inputs) == texts_hash([tuple(ids) for ids in inputs])


def test_a_leaf_binds_each_vector_and_its_index() -> None:
    def leaf(*frames: m.Vector | m.Tokens) -> bytes:
        made = Leaf(turn=1, first=0, request=bytes(32), prompt=bytes(32))
        for frame in frames:
            made.add(frame)
        return made.digest()

    one, two = bytes(8), bytes(7) + b"\1"
    first, second = m.Vector(turn=1, index=0, data=one), m.Vector(turn=1, index=1, data=two)
    # What a leaf hashes of a vector could also be said as text; then its first byte would be a channel's.
    like = m.Tokens(turn=1, index=0, ids=(), text=keccak256(one).hex(), channel="call", call=0)
    digests = {
        leaf(first, second),
        leaf(second, first),
        leaf(first),
        leaf(replace(first, data=two), second),
        leaf(replace(first, index=1)),
        leaf(like),
        leaf(),
    }
    assert len(digests) == 7


@pytest.mark.parametrize(
    ("index", "data", "fault"),
    [
        (3, bytes(8), "a vector of text 3; the turn has 3"),
        (0, bytes(8), "a second vector of text 0"),
        (2, bytes(8), "a vector of text 2; that of 1 was next"),
        (1, bytes(4), "a vector of 1 numbers after one of 2"),
        (1, bytes(12), "a vector of 3 numbers after one of 2"),
        (1, bytes(7), "a vector of 7 bytes, which are no whole float32 numbers"),
        (1, b"", "a vector of 0 bytes, which are no whole float32 numbers"),
        (1, bytes(m.VECTOR_MAX + 4), "a vector of 8193 numbers; at most 8192 are taken"),
        (1, vector_bytes([0.5, math.nan]), "a vector with a number that is infinite or none (NaN)"),
        (1, vector_bytes([math.inf, 0.5]), "a vector with a number that is infinite or none (NaN)"),
        (1, vector_bytes([-math.inf, 0.5]), "a vector with a number that is infinite or none (NaN)"),
    ],
)
def test_each_malformed_vector_is_named(index: int, data: bytes, fault: str) -> None:
    check = VectorCheck(3)
    check.take(0, bytes(8))
    with pytest.raises(ProtocolError) as caught:
        check.take(index, data)
    assert str(caught.value) == fault
    check.take(1, vector_bytes([1.0, -1.0]))
    assert (check.count, check.bytes, check.is_whole) == (2, 16, False)


@pytest.mark.parametrize(
    "change",
    [
        {"tools": (m.Tool(name="a"),)},
        {"response_format": m.ResponseFormat(kind="json_object")},
        {"prefix": (1,)},
        {"text_bytes": 0},
        {"logprobs": 0},
        {"messages": (m.ChatMessage.of("user", "a"),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_texts_are_embedded_without_what_belongs_to_an_answer(change: dict[str, Any]) -> None:
    body = embed("one").body
    check_prompt(body)
    with pytest.raises(ProtocolError):
        check_prompt(replace(body, **change))


# ---- a turn


@pytest.mark.parametrize("count", [1, 2, 256])
def test_a_turn_brings_a_vector_for_each_text_in_order_and_one_receipt(count: int) -> None:
    pair = Pair(HostTerms(n_ctx=4096))
    pair.open()
    pair.ask(embed(*texts(count)))
    pair.settle()
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnDone)
    assert (outcome.done.reason, outcome.done.tokens_in, outcome.done.tokens_out) == ("stop", 20, 0)
    assert pair.vectors_of[1] == vectors(count)
    assert pair.delivered == []
    held = pair.client.held
    assert held is not None
    assert held.receipt is not None
    checkpoint = held.receipt.checkpoint
    assert (checkpoint.seq, checkpoint.tokens_out) == (1, 0)
    assert checkpoint.ended == (m.TurnEnd(turn=1, reason="stop"),)


def test_a_turn_is_paid_as_input_once_and_before_the_engine_is_asked() -> None:
    pair = paid(reused=0)
    pair.ask(embed(*texts(3)))
    while pair.deliver_to_host() or pair.count():
        pass
    assert not pair.embeds, "asked before it was paid"
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    assert pair.vectors_of[1] == vectors(3)
    assert (pair.billed_in, pair.billed_out) == (20, 0)
    assert pair.paid[-1].amount == pair.due(20, 0)
    pair.settled()
    pair.ask(ask(40))  # an answer in the same session
    pair.settle()
    assert pair.delivered == pair.expected(40)
    pair.settled()


def test_a_deposit_that_the_input_uses_up_still_brings_every_vector() -> None:
    pair = paid()
    deposit = pair.due(20, 0)
    pair = Embedding(replace(pair.money, deposit=deposit), answer_tokens=100, reused=0)
    pair.open()
    pair.ask(embed(*texts(3)))
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    assert pair.vectors_of[1] == vectors(3)
    assert pair.paid[-1].amount == deposit


def test_a_turn_that_would_cost_more_than_it_may_is_cancelled_before_it_is_paid() -> None:
    pair = paid()
    cost = pair.due(20, 0) - pair.money.session_fee
    pair.ask(replace(embed("one"), spend_max=cost - 1))
    pair.settle()
    failed = pair.outcomes[-1]
    assert isinstance(failed, TurnFailed)
    assert failed.cause == "capped"
    assert pair.paid == []
    pair.ask(replace(embed("one"), spend_max=cost))
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    assert pair.paid[-1].amount == pair.due(20, 0)


def test_vectors_and_an_answer_side_by_side_are_each_whole_and_paid_once() -> None:
    pair = paid()
    pair.ask(embed(*texts(9)))
    pair.ask(ask(90))
    pair.settle(7)
    assert [type(each) for each in pair.outcomes] == [TurnDone, TurnDone]
    assert pair.vectors_of[1] == vectors(9)
    assert pair.ids_of[2] == pair.expected(90)
    assert (pair.billed_in, pair.billed_out) == (40, 90)
    pair.settled()


# ---- read credit in bytes


def big(pair: Pair, run: int | None = None) -> bool:
    """The engine makes one vector of the largest size."""
    for number, order in tuple(pair.embeds.items()):
        if run in (None, number):
            pair.embeds[number] = replace(order, first=order.first + 1)
            pair.host_does(GenVector(number, vector_bytes([0.5] * BIG)))
            return True
    return False


def reading(count: int = 100, *, idle: bool = True) -> Embedding:
    """A turn of large vectors, which the application does not take where it is ``idle``."""
    pair = paid()
    if idle:
        pair.idle.add(1)
    pair.ask(embed(*texts(count)))
    while not pair.embeds:
        pair.moves(0)
    return pair


def test_a_host_sends_no_more_bytes_than_its_client_reads_and_pauses_its_engine() -> None:
    pair = reading()
    for _ in range(40):
        big(pair)
    while pair.deliver_to_client() or pair.deliver_to_host():
        pass
    assert len(pair.vectors_of[1]) * m.VECTOR_MAX == m.VECTOR_CREDIT
    assert not pair.embeds, "the engine runs on"
    assert turn_of(pair.host).queue.waiting == m.VECTOR_CREDIT + m.VECTOR_MAX
    runs = pair.runs
    for taken in range(1, 9):
        pair.client_does(TokensTaken(taken * m.VECTOR_MAX, 1))
        while pair.deliver_to_host() or pair.deliver_to_client():
            pass
    assert len(pair.vectors_of[1]) == 16
    assert pair.runs == runs + 1
    (order,) = pair.embeds.values()
    assert order.first == 17, "each text is embedded once"


def test_a_turn_that_nobody_reads_ends_alone_after_two_minutes() -> None:
    pair = reading()
    for _ in range(20):
        big(pair)
    while pair.deliver_to_client() or pair.deliver_to_host():
        pass
    pair.now += 120.0
    pair.fire("read", host=True)
    while pair.deliver_to_client() or pair.deliver_to_host():
        pass
    failed = pair.outcomes[-1]
    assert isinstance(failed, TurnFailed)
    assert failed.code == "stalled"
    assert pair.client.state == "idle"
    assert pair.paid[-1].amount == pair.due(20, 0)


def test_a_client_gives_at_most_the_credit_for_vectors_that_it_may_hold() -> None:
    pair = reading()
    host = pair.host
    for upto, holds in ((m.VECTOR_CREDIT, True), (m.VECTOR_CREDIT + 1, False)):
        effects = host.handle(Received(CLIENT, STREAM, m.Credit(turn=1, upto=upto)), pair.now)
        assert any(isinstance(each, m.Error) for each in sent(effects)) is not holds


def test_vectors_that_a_client_has_taken_are_not_kept_for_a_resume() -> None:
    pair = reading(idle=False)
    most = 0
    for _ in range(100):
        big(pair)
        while pair.deliver_to_client() or pair.deliver_to_host():
            pass
        replay = pair.channel.replay
        kept = replay.since(replay.count - len(replay)) or ()
        most = max(most, sum(len(each.data) for each in kept if isinstance(each, m.Vector)))
    assert len(pair.vectors_of[1]) == 100
    assert most <= m.VECTOR_CREDIT + m.VECTOR_CREDIT // 4


# ---- what goes wrong


@pytest.mark.parametrize(
    ("data", "words"),
    [(vector_bytes([math.nan]), "infinite or none"), (bytes(3), "no whole float32"), (bytes(40_000), "8192")],
)
def test_what_an_engine_makes_wrong_never_leaves_its_host(data: bytes, words: str) -> None:
    pair = paid()
    pair.ask(embed(*texts(2)))
    while not pair.embeds:
        pair.moves(0)
    (run,) = pair.embeds
    pair.host_does(GenVector(run, data))
    pair.settle()
    failed = pair.outcomes[-1]
    assert isinstance(failed, TurnFailed)
    assert failed.code == "internal"
    assert words in failed.detail
    assert pair.client.state == "idle"
    pair.settled()


def test_an_engine_that_makes_too_few_vectors_fails_the_turn_and_one_too_many_means_nothing() -> None:
    pair = Pair()
    pair.open()
    pair.ask(embed(*texts(2)))
    while not pair.embeds:
        pair.deliver_to_host()
    (run,) = pair.embeds
    pair.embeds.clear()
    pair.host_does(GenVector(run, vector_of("text 0")))
    pair.host_does(GenDone(run, "stop"))
    pair.settle()
    failed = pair.outcomes[-1]
    assert isinstance(failed, TurnFailed)
    assert failed.detail == "the engine made 1 of 2 vectors"
    pair.ask(embed("text 0"))
    while not pair.embeds:
        pair.deliver_to_host()
    (run,) = pair.embeds
    pair.embeds.clear()
    for _ in range(3):
        pair.host_does(GenVector(run, vector_of("text 0")))
    pair.host_does(GenDone(run, "length"))
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    assert pair.vectors_of[2] == vectors(1)


def test_missing_vectors_are_the_hosts_fault_and_cost_the_batch_at_most() -> None:
    pair = paid()
    pair.ask(embed(*texts(5)))
    while not pair.embeds:
        pair.moves(0)
    (run,) = pair.embeds
    pair.embeds.clear()
    pair.host_does(GenVector(run, vector_of("text 0")))
    pair.host_does(GenFailed(run, "internal", "boom"))
    pair.settle()
    failed = pair.outcomes[-1]
    assert isinstance(failed, TurnFailed)
    assert (failed.code, failed.cause) == ("internal", "answered")
    assert pair.vectors_of[1] == vectors(1)
    assert pair.paid[-1].amount == pair.due(20, 0)
    pair.settled()


def served(pair: Pair, count: int) -> None:
    """A turn of so many texts is served; nothing of it was heard but its quote and one vector."""
    pair.open()
    pair.ask(embed(*texts(count)))
    while not pair.embeds:
        pair.deliver_to_host()
        pair.deliver_to_client()
    while pair.deliver_to_client():
        pass
    hear(pair, m.Vector(turn=1, index=0, data=vector_of("text 0")))


def hear(pair: Pair, message: Any) -> list[Any]:
    effects = pair.client.handle(Received(HOST.peer, STREAM, message), pair.now)
    pair.client_did(effects)
    return emitted(effects)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (m.Vector(turn=1, index=3, data=vector_of("")), "a vector of text 3; the turn has 3"),
        (m.Vector(turn=1, index=0, data=vector_of("")), "a second vector of text 0"),
        (m.Vector(turn=1, index=2, data=vector_of("")), "that of 1 was next"),
        (m.Vector(turn=1, index=1, data=vector_of("", 8)), "a vector of 8 numbers after one of 32"),
        (m.Vector(turn=1, index=1, data=bytes(6)), "no whole float32"),
        (m.Vector(turn=1, index=1, data=vector_bytes([math.nan] * 32)), "infinite or none (NaN)"),
        (m.Vector(turn=1, index=1, data=vector_bytes([math.inf] * 32)), "infinite or none (NaN)"),
        (m.Vector(turn=2, index=1, data=vector_of("")), "Vector is out of place"),
        (m.Tokens(turn=1, index=0, ids=(5,)), "Tokens is out of place in turn 1"),
        (m.Done(turn=1, reason="stop", tokens_in=20, reused=5, tokens_out=0), "with 1 of 3 vectors"),
        (m.Done(turn=1, reason="length", tokens_in=20, reused=5, tokens_out=0), "ended as length"),
        (m.Done(turn=1, reason="cancelled", tokens_in=20, reused=5, tokens_out=0), "nobody cancelled"),
        (m.Error(code="internal", detail="no", turn=1), "without a receipt"),
    ],
)
def test_a_host_that_sends_vectors_wrong_is_at_fault_by_name(message: Any, words: str) -> None:
    pair = Pair()
    served(pair, 3)
    failed = only(SessionFailed, hear(pair, message))
    assert failed.fault
    assert words in failed.detail


@pytest.mark.parametrize("most", [19, 20])
def test_a_host_that_quotes_more_tokens_than_the_texts_can_have_is_at_fault(most: int) -> None:
    pair = Pair()
    pair.open()
    pair.ask(embed("one", input_max=most))
    pair.settle()
    (outcome,) = pair.outcomes
    if most == 20:
        assert isinstance(outcome, TurnDone)
    else:
        assert isinstance(outcome, SessionFailed)
        assert outcome.fault
        assert "quoted 20 input tokens; at most 19 are possible" in outcome.detail


def test_a_vector_in_a_turn_that_asked_for_an_answer_is_a_fault() -> None:
    pair = Pair()
    pair.open()
    pair.ask(ask())
    pair.deliver_to_host()
    while pair.deliver_to_client():
        pass
    failed = only(SessionFailed, hear(pair, m.Vector(turn=1, index=0, data=bytes(4))))
    assert failed.fault
    assert "Vector is out of place in turn 1" in failed.detail


def test_vectors_past_the_read_credit_are_a_fault() -> None:
    pair = Pair()
    pair.idle.add(1)
    pair.open()
    pair.ask(embed(*texts(20)))
    while not pair.embeds:
        pair.deliver_to_host()
        pair.deliver_to_client()
    while pair.deliver_to_client():
        pass
    data = vector_bytes([0.5] * BIG)
    for index in range(8):
        assert not [each for each in hear(pair, m.Vector(turn=1, index=index, data=data)) if _failed(each)]
    failed = only(SessionFailed, hear(pair, m.Vector(turn=1, index=8, data=data)))
    assert failed.fault
    assert "this client reads up to 262144" in failed.detail


def _failed(value: Any) -> bool:
    return isinstance(value, SessionFailed)


def test_vectors_that_were_swapped_on_their_way_do_not_match_the_receipt() -> None:
    pair = Pair()
    pair.open()
    pair.ask(embed("one", "two"))
    while pair.deliver_to_host() or pair.embed():
        pass
    wire = [m.CODEC.decode(data) for data in pair.to_client]
    first, second = [each for each in wire if isinstance(each, m.Vector)]
    swapped = {0: second.data, 1: first.data}
    for message in wire:
        changed = replace(message, data=swapped[message.index]) if isinstance(message, m.Vector) else message
        effects = pair.client.handle(Received(HOST.peer, STREAM, changed), pair.now)
        if [each for each in emitted(effects) if _failed(each)]:
            assert "does not match what was received" in only(SessionFailed, emitted(effects)).detail
            return
    raise AssertionError("the swap was not seen")


# ---- streams that are lost


@pytest.mark.parametrize("host_notices", [True, False], ids=["both notice", "the host does not notice"])
@pytest.mark.parametrize("heard", [0, 1, 4, 9, 10])
def test_a_turn_whose_stream_is_lost_goes_on_and_each_vector_comes_and_is_paid_once(
    heard: int, host_notices: bool
) -> None:
    pair = paid()
    pair.ask(embed(*texts(10)))
    while not pair.embeds:
        pair.moves(0)
    while len(pair.vectors_of.get(1, [])) < heard:
        pair.embed(1)
        pair.deliver_to_client()
    pair.lose(host_notices=host_notices)
    pair.embed(3)
    pair.resume()
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    assert pair.vectors_of[1] == vectors(10)
    assert (pair.billed_in, pair.billed_out) == (20, 0)
    assert pair.paid[-1].amount == pair.due(20, 0)
    pair.settled()


_moves = st.lists(
    st.tuples(st.sampled_from(["host", "client", "client", "engine", "embed", "embed", "count"]),
              st.integers(1, 40)),
    max_size=60,
)  # fmt: skip


@settings(max_examples=60)
@given(
    st.lists(st.tuples(_moves, st.booleans(), st.booleans()), min_size=1, max_size=4),
    st.lists(st.integers(0, 12), min_size=1, max_size=5),
    st.sampled_from([0, 5, 20]),
)
def test_wherever_streams_break_turns_of_both_kinds_end_once_and_whole_and_cost_what_they_should(
    lives: list[tuple[list[tuple[str, int]], bool, bool]], sizes: list[int], reused: int
) -> None:
    pair = paid(reused=reused)
    asked: dict[int, int] = {}
    for script, host_notices, cancels in lives:
        if pair.client.state == "idle" and sizes:
            size = sizes.pop()
            pair.ask(embed(*texts(size)) if size else ask(40))
            asked[pair.turn] = size
        play(pair, script)
        if cancels:
            pair.cancel()
        pair.lose(host_notices=host_notices)
        play(pair, [step for step in script if step[0] in ("engine", "embed", "count")])
        pair.resume()
        play(pair, script)
    pair.settle()
    outcomes = {each.key: each for each in pair.outcomes if isinstance(each, TurnDone)}
    assert set(outcomes) == set(asked)
    for turn, size in asked.items():
        got = pair.vectors_of.get(turn, [])
        assert got == vectors(size)[: len(got)]
        if outcomes[turn].done.reason == "stop":
            assert len(got) == size
    assert pair.billed_out == sum(len(ids) for ids in pair.ids_of.values())
    pair.settled()


def play(pair: Embedding, script: list[tuple[str, int]]) -> None:
    for kind, count in script:
        if kind == "embed":
            pair.embed(count)
        else:
            pair.move(kind, count, hold=False)


def test_what_was_rendered_is_named_by_its_hash_and_texts_are_no_prompt() -> None:
    assert texts_hash([(1, 2), (3,)]) == ids_hash((2, 1, 2, 1, 3))
    assert texts_hash([(1,), (2, 3)]) != texts_hash([(1, 2), (3,)])


def test_a_late_report_of_an_engine_that_was_stopped_means_nothing() -> None:
    pair = reading()
    (run,) = pair.embeds
    for _ in range(40):
        big(pair)
    assert not pair.embeds
    before = turn_of(pair.host).queue.waiting
    effects = pair.host.handle(Command(GenVector(run, bytes(4))), pair.now)
    assert sent(effects) == []
    assert turn_of(pair.host).queue.waiting == before


def test_vectors_that_are_kept_for_a_resume_are_counted_until_the_client_is_known_to_have_them() -> None:
    """Each turn may be paid by a voucher that names no later receipt: then nothing says that they came."""
    pair = paid()
    host, money = pair.host, client_payment(pair.money)
    session = host.session
    assert session is not None
    root, billed, kept, most = session.meter.root, 20, 0, 0
    for turn in range(1, 7):
        for part in prompt_parts(turn, encode(embed(*texts(8)).body)):
            host.handle(Received(CLIENT, STREAM, part), 0.0)
        host.handle(Command(Counted(turn, billed, 0, PROMPT_HASH)), 0.0)
        voucher = exact_voucher(
            money, session.session, seq=0, tokens_in=billed * turn, tokens_out=0, root=root, turn=turn
        )
        order = only(Embed, emitted(host.handle(Received(CLIENT, STREAM, voucher), 0.0)))
        for _ in range(8):
            host.handle(Command(GenVector(order.run, bytes(4 * BIG))), 0.0)
        host.handle(Command(GenDone(order.run, "stop")), 0.0)
        assert not session.turns, "it is over"
        kept = sum(session.channel.replay.bytes_of(each) for each in range(1, turn + 1))
        assert session.granted.memory.held == kept >= min(turn, 2) * 8 * 4 * BIG
        most = max(most, kept)
    assert most < 3 * 9 * 4 * BIG, "who asks another turn has the answers of all but one"
    host.handle(Closed(CLIENT, STREAM, "lost"), 0.0)
    assert session.granted.memory.held == kept, "it lingers, and may be resumed"
    session.abandon("its client did not come back")
    assert session.granted.memory.held == 0
