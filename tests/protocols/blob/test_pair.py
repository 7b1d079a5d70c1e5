"""Both sides together: every question is answered once and rightly, in whatever order things happen."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.protocols.blob import commands as c
from p2pnode.protocols.blob import messages as m
from p2pnode.protocols.blob.client import FIRST
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.protocols.s5.ids import hash_of
from tests.protocols.blob.pair import OTHER, OWNER, Owner, Pair

DATA = [
    b"",
    b"a",
    b"b" * 5000,
    b"c" * m.INLINE_MAX,
    b"d" * (m.INLINE_MAX + 1),
    b"e" * (FIRST + 300_000),
    b"f" * (m.UPLOAD_WINDOW + 900_000),
]
ENTRIES = [owner.entry(revision, b"x") for owner in (OWNER, OTHER) for revision in (1, 2)]


def _put(data: bytes, owner: Owner = OWNER) -> c.AskPut:
    return c.AskPut(owner.key, hash_of(data), data, 100)


QUESTIONS = st.one_of(
    st.builds(_put, st.sampled_from(DATA), st.sampled_from([OWNER, OTHER])),
    st.builds(c.AskBlob, st.sampled_from(DATA).map(hash_of)),
    st.builds(c.AskEntry, st.sampled_from([EntryKey(OWNER.key), EntryKey(OTHER.key)])),
    st.builds(c.AskSet, st.just(OWNER.key), st.sampled_from(ENTRIES)),
    st.builds(c.AskSizes, st.lists(st.sampled_from(DATA).map(hash_of), min_size=1, max_size=4).map(tuple)),
    st.builds(c.AskPin, st.just(OWNER.key), st.sampled_from(DATA).map(hash_of), st.just(5)),
    st.builds(c.AskAdmission, st.just(OTHER.key)),
    st.builds(c.AskUnpin, st.just(OTHER.key), st.sampled_from(DATA).map(hash_of)),
)
MOVES = st.lists(
    st.one_of(QUESTIONS, st.integers(0, 3), st.tuples(st.just("drop"), st.integers(0, 40))), max_size=120
)


def _fits(question: c.Question, outcome: Any) -> bool:
    match question:
        case c.AskBlob(hash=digest):
            found = isinstance(outcome, c.Fetched) and hash_of(outcome.data) == digest
            return found or (isinstance(outcome, c.Refused) and outcome.code == "not_found")
        case c.AskPut() | c.AskAdmission() | c.AskUnpin():
            return isinstance(outcome, c.Kept)
        case c.AskPin():
            return isinstance(outcome, c.Kept) or outcome.code == "not_found"
        case c.AskSet(entry=entry):
            return isinstance(outcome, c.Kept) or outcome.current.replaces(entry)
        case c.AskEntry(key=key):
            return isinstance(outcome, c.Pointed) and (outcome.entry is None or outcome.entry.key == key)
        case c.AskSizes(hashes=hashes):
            return isinstance(outcome, c.Sized) and len(outcome.sizes) == len(hashes)
        case _:
            return False


@settings(max_examples=60)
@given(moves=MOVES)
def test_every_question_has_one_right_answer_and_no_limit_is_passed(moves: list[Any]) -> None:
    pair, asked, dropped = Pair(), dict[int, c.Question](), set[int]()
    for move in moves:
        match move:
            case int():
                pair.step(move)
            case ("drop", ticket):
                if ticket in asked and ticket not in pair.answers:
                    dropped.add(ticket)
                pair.drop(ticket)
            case question:
                asked[len(asked)] = question
                pair.ask(len(asked) - 1, question)
    pair.run()
    assert set(pair.answers) | dropped == set(asked)
    assert all(_fits(asked[ticket], outcome) for ticket, outcome in pair.answers.items())
    assert pair.server.machine.resting
    assert set(pair.server.timers) == {"idle"}
    assert not pair.client.timers
    kept = {each for each in pair.store.blobs.values() if each not in DATA}
    assert not kept


def test_small_puts_and_their_pointer_cost_two_round_trips() -> None:
    pair = Pair()
    for ticket in range(2):
        pair.ask(ticket, _put(b"%d" % ticket))
    assert [type(each) for each in pair.to_server] == [m.Claim, m.Put, m.Put]
    pair.run()
    pair.ask(2, c.AskSet(OWNER.key, OWNER.entry(1)))
    assert [type(each) for each in pair.to_server] == [m.SetEntry]
    pair.run()
    assert pair.answers == {0: c.Kept(), 1: c.Kept(), 2: c.Kept()}


def test_a_claim_is_said_once_and_again_for_another_owner() -> None:
    pair = Pair()
    for ticket, owner in enumerate((OWNER, OWNER, OTHER, OTHER, OWNER)):
        pair.ask(ticket, _put(b"%d" % ticket, owner))
        pair.run()
    assert sum(isinstance(each, m.Claim) for each in pair.client.said) == 3


def test_a_reader_claims_nothing() -> None:
    pair = Pair()
    pair.ask(0, c.AskBlob(hash_of(b"nothing")))
    pair.ask(1, c.AskEntry(EntryKey(OWNER.key)))
    pair.run()
    assert not any(isinstance(each, m.Claim) for each in pair.client.said)
    assert isinstance(pair.answers[0], c.Refused)
    assert pair.answers[1] == c.Pointed(None)


def test_a_large_blob_comes_in_two_gets_and_others_are_answered_meanwhile() -> None:
    pair, large = Pair(), b"L" * (3 * FIRST)
    pair.store.blobs[hash_of(large)] = large
    pair.store.blobs[hash_of(b"small")] = b"small"
    pair.ask(0, c.AskBlob(hash_of(large)))
    pair.ask(1, c.AskBlob(hash_of(b"small")))
    pair.run()
    assert list(pair.answers) == [1, 0]
    assert pair.answers[0] == c.Fetched(large)
    gets = [each for each in pair.client.said if isinstance(each, m.Get) and each.hash == hash_of(large)]
    assert [(each.offset, each.length) for each in gets] == [(0, FIRST), (FIRST, 2 * FIRST)]


def test_many_large_blobs_hold_no_more_than_the_first_of_each_and_one_whole() -> None:
    pair = Pair()
    blobs = [bytes([n]) * (2 * FIRST) for n in range(40)]
    for ticket, data in enumerate(blobs):
        pair.store.blobs[hash_of(data)] = data
        pair.ask(ticket, c.AskBlob(hash_of(data)))
    most = 0
    while pair.busy:
        pair.step(0)
        answered = sum(len(each.data) for each in pair.answers.values() if isinstance(each, c.Fetched))
        most = max(most, pair.blob_bytes_heard - answered)
    assert [pair.answers[ticket] for ticket in range(40)] == [c.Fetched(data) for data in blobs]
    assert most <= (m.IN_FLIGHT_MAX + 1) * FIRST


def test_an_upload_that_is_refused_stops_and_the_stream_goes_on() -> None:
    pair, data = Pair(), b"u" * (8 * m.CHUNK)
    wrong = c.AskPut(OWNER.key, hash_of(data), data, 100)
    pair.ask(0, wrong)
    while not pair.work:
        pair.step(0)
    order = pair.work.popleft()
    assert isinstance(order, c.KeepBlob)
    pair.from_server(pair.server.tell(c.NotDone(order.id, "quota", "full")))
    pair.run()
    assert pair.answers[0] == c.Refused("quota", "full", None)
    pieces = [each for each in pair.client.said if isinstance(each, m.Data)]
    assert len(pieces) < 8
    assert isinstance(pair.client.said[-1], m.Cancel)
    pair.ask(1, _put(b"next"))
    pair.run()
    assert pair.answers[1] == c.Kept()
    assert pair.server.machine.resting
