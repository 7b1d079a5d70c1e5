"""What a store may try against whoever asks: nothing false is handed up, and a liar ends its stream."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.protocols.blob import commands as c
from p2pnode.protocols.blob import messages as m
from p2pnode.protocols.blob.client import FIRST, QUEUE_MAX
from p2pnode.protocols.s5.entries import Entry
from p2pnode.protocols.s5.ids import hash_of
from tests.protocols.blob.pair import OTHER, OWNER, Side, client_side
from tests.protocols.strategies import messages

DATA = b"a blob of some bytes"
ENTRY = OWNER.entry(5, b"five")
FORGED = Entry(key=ENTRY.key, revision=9, data=b"forged", signature=ENTRY.signature)
UPLOAD = b"u" * (m.UPLOAD_WINDOW + 3 * m.CHUNK)
QUESTIONS: dict[str, c.Question] = {
    "blob": c.AskBlob(hash_of(DATA)),
    "put": c.AskPut(OWNER.key, hash_of(DATA), DATA, 10),
    "upload": c.AskPut(OWNER.key, hash_of(UPLOAD), UPLOAD, 10),
    "sizes": c.AskSizes((hash_of(DATA), hash_of(b""))),
    "pin": c.AskPin(OWNER.key, hash_of(DATA), 10),
    "entry": c.AskEntry(ENTRY.key),
    "set": c.AskSet(OWNER.key, ENTRY),
}


def asked(name: str) -> Side:
    side = client_side()
    side.tell(c.Ask(0, QUESTIONS[name]))
    side.orders()
    return side


def answers(side: Side) -> list[Any]:
    return [each.outcome for each in side.emitted if isinstance(each, c.Answered)]


ENTRY_OF_OTHER = OTHER.entry(9).to_bytes()
LIES: list[tuple[str, str, list[Any]]] = [
    ("blob", "another id", [m.Blob(id=1, size=1)]),
    ("blob", "data before the size", [m.Data(id=0, data=DATA, last=True)]),
    ("blob", "the size twice", [m.Blob(id=0, size=20), m.Blob(id=0, size=20)]),
    ("blob", "more than announced", [m.Blob(id=0, size=5), m.Data(id=0, data=DATA, last=True)]),
    ("blob", "less than announced", [m.Blob(id=0, size=50), m.Data(id=0, data=DATA, last=True)]),
    ("blob", "not ended", [m.Blob(id=0, size=len(DATA)), m.Data(id=0, data=DATA)]),
    ("blob", "empty pieces", [m.Blob(id=0, size=len(DATA)), m.Data(id=0, data=b"")]),
    ("blob", "crumbs", [m.Blob(id=0, size=9 * m.PIECE_MIN), m.Data(id=0, data=bytes(m.PIECE_MIN - 1))]),
    ("blob", "credit", [m.Credit(id=0, received=1)]),
    ("put", "credit", [m.Credit(id=0, received=1)]),
    ("upload", "credit for what was not sent", [m.Credit(id=0, received=m.UPLOAD_WINDOW + 1)]),
    ("upload", "credit for nothing new", [m.Credit(id=0, received=5), m.Credit(id=0, received=5)]),
    ("blob", "a done", [m.Done(id=0)]),
    ("blob", "an answer after the answer", [m.Failed(id=0, code="not_found"), m.Blob(id=0, size=1)]),
    ("put", "an entry", [m.EntryIs(id=0)]),
    ("put", "done twice", [m.Done(id=0), m.Done(id=0)]),
    ("upload", "done before all was sent", [m.Done(id=0)]),
    ("sizes", "too few", [m.Sizes(id=0, sizes=(1,))]),
    ("sizes", "too many", [m.Sizes(id=0, sizes=(1, 2, 3))]),
    ("entry", "no entry at all", [m.EntryIs(id=0, entry=bytes(m.ENTRY_MIN))]),
    ("entry", "another key's", [m.EntryIs(id=0, entry=ENTRY_OF_OTHER)]),
    ("entry", "a forged one", [m.EntryIs(id=0, entry=FORGED.to_bytes())]),
    ("set", "stale for an older one", [m.Stale(id=0, current=OWNER.entry(4).to_bytes())]),
    ("set", "stale for the same one", [m.Stale(id=0, current=ENTRY.to_bytes())]),
    ("set", "stale for a forged one", [m.Stale(id=0, current=FORGED.to_bytes())]),
    ("set", "stale for another key's", [m.Stale(id=0, current=ENTRY_OF_OTHER)]),
    ("pin", "a put", [m.Put(id=0, hash=hash_of(b""), size=0, lease_s=0, data=b"")]),
    ("pin", "a claim", [OWNER.claim()]),
]


@pytest.mark.parametrize(("name", "_why", "said"), LIES, ids=[f"{name}: {why}" for name, why, _ in LIES])
def test_a_lie_ends_the_stream_and_counts(name: str, _why: str, said: list[Any]) -> None:
    side = asked(name)
    for each in said[:-1]:
        side.hear(each)
    assert side.over is None
    side.hear(said[-1])
    assert side.over is not None
    assert side.over.fault
    assert not any(isinstance(each, c.Fetched | c.Pointed | c.Outdated) for each in answers(side))
    assert side.tell(c.Ask(1, QUESTIONS["blob"])) == []


def test_the_honest_answers_are_taken() -> None:
    honest: dict[str, tuple[list[Any], Any]] = {
        "blob": ([m.Blob(id=0, size=len(DATA)), m.Data(id=0, data=DATA, last=True)], c.Fetched(DATA)),
        "put": ([m.Done(id=0)], c.Kept()),
        "sizes": ([m.Sizes(id=0, sizes=(20, -1))], c.Sized((20, None))),
        "pin": ([m.Done(id=0)], c.Kept()),
        "entry": ([m.EntryIs(id=0, entry=ENTRY.to_bytes())], c.Pointed(ENTRY)),
        "set": ([m.Stale(id=0, current=OWNER.entry(6).to_bytes())], c.Outdated(OWNER.entry(6))),
    }
    for name, (said, outcome) in honest.items():
        side = asked(name)
        for each in said:
            side.hear(each)
        assert answers(side) == [outcome], name
        assert not side.timers


def test_tampered_bytes_are_not_handed_up_and_the_stream_goes_on() -> None:
    side = asked("blob")
    side.hear(m.Blob(id=0, size=len(DATA)))
    side.hear(m.Data(id=0, data=DATA[:-1] + b"X", last=True))
    (outcome,) = answers(side)
    assert isinstance(outcome, c.Lied)
    assert side.over is None
    side.tell(c.Ask(1, QUESTIONS["blob"]))
    side.hear(m.Blob(id=1, size=len(DATA)))
    side.hear(m.Data(id=1, data=DATA, last=True))
    assert answers(side)[-1] == c.Fetched(DATA)


def test_a_size_that_changes_between_the_parts_of_a_large_blob_ends_the_stream() -> None:
    side = asked("blob")
    side.hear(m.Blob(id=0, size=FIRST + 10))
    side.hear(m.Data(id=0, data=bytes(m.DATA_MAX)))
    side.hear(m.Data(id=0, data=bytes(FIRST - m.DATA_MAX), last=True))
    assert isinstance(side.said[-1], m.Get)
    side.hear(m.Blob(id=1, size=FIRST + 11))
    assert side.over is not None
    assert side.over.fault


def test_a_dropped_question_is_cancelled_once_and_what_crosses_means_nothing() -> None:
    side = asked("blob")
    side.hear(m.Blob(id=0, size=len(DATA)))
    assert side.tell(c.Drop(0)) == [m.Cancel(id=0)]
    assert side.tell(c.Drop(0)) == []
    side.hear(m.Data(id=0, data=DATA[:3]))
    assert side.timers
    side.hear(m.Data(id=0, data=DATA[3:], last=True))
    assert answers(side) == []
    assert side.over is None
    assert not side.timers


def test_a_peer_that_never_ends_what_was_dropped_is_given_up() -> None:
    side = asked("blob")
    side.tell(c.Drop(0))
    while side.now + 10 < side.timers["dropped 0"]:
        side.now += 10
        side.hear(m.Blob(id=0, size=5))  # it says something, but nothing final
    side.fire("dropped 0")
    assert side.over is not None


def test_a_peer_that_owes_an_answer_and_is_silent_is_given_up_without_fault() -> None:
    side = asked("entry")
    side.fire("silence")
    assert side.over is not None
    assert not side.over.fault


def test_a_question_that_was_dropped_in_the_queue_is_never_sent() -> None:
    side = client_side()
    for ticket in range(m.IN_FLIGHT_MAX + 2):
        side.tell(c.Ask(ticket, QUESTIONS["entry"]))
    side.tell(c.Drop(m.IN_FLIGHT_MAX))
    for id_ in range(m.IN_FLIGHT_MAX):
        side.hear(m.EntryIs(id=id_))
    assert [each.id for each in side.said if isinstance(each, m.GetEntry)] == list(range(m.IN_FLIGHT_MAX + 1))
    side.hear(m.EntryIs(id=m.IN_FLIGHT_MAX))
    assert len(answers(side)) == m.IN_FLIGHT_MAX + 1


def test_the_queue_is_bounded_and_says_so() -> None:
    side = client_side()
    for ticket in range(m.IN_FLIGHT_MAX + QUEUE_MAX):
        side.tell(c.Ask(ticket, QUESTIONS["entry"]))
    assert answers(side) == []
    side.tell(c.Ask(-1, QUESTIONS["entry"]))
    (outcome,) = answers(side)
    assert isinstance(outcome, c.NotAsked)  # which is no word of the peer


def test_a_claim_that_was_not_looked_at_is_said_again() -> None:
    side = asked("put")
    side.hear(m.Failed(id=0, code="rate_limited", retry_after_s=1.0))
    sent = side.tell(c.Ask(1, QUESTIONS["put"]))
    assert [type(each) for each in sent] == [m.Claim, m.Put]


def test_an_upload_goes_no_further_ahead_than_its_credit() -> None:
    side = client_side()
    sent = side.tell(c.Ask(0, QUESTIONS["upload"]))
    assert [type(each) for each in sent[:2]] == [m.Claim, m.Put]
    assert sum(len(each.data) for each in sent[2:]) == m.UPLOAD_WINDOW
    assert side.hear(m.Credit(id=0, received=m.CHUNK - 1)) == []
    assert [each.last for each in side.hear(m.Credit(id=0, received=m.CHUNK))] == [False]
    assert [each.last for each in side.hear(m.Credit(id=0, received=m.UPLOAD_WINDOW))] == [False, True]
    pieces = [each.data for each in side.said if isinstance(each, m.Data)]
    assert b"".join(pieces) == UPLOAD
    side.hear(m.Done(id=0))
    assert answers(side) == [c.Kept()]


@settings(max_examples=150)
@given(
    names=st.lists(st.sampled_from(sorted(QUESTIONS)), max_size=6),
    said=st.lists(
        st.one_of(
            *(messages(cls, id=st.integers(0, 5)) for cls in m.CODEC.classes if cls is not m.Claim),
            st.builds(c.Drop, st.integers(0, 5)),
        ),
        max_size=30,
    ),
)
def test_no_sequence_of_messages_makes_it_raise_answer_twice_or_hand_up_what_is_false(
    names: list[str], said: list[Any]
) -> None:
    side = client_side()
    for ticket, name in enumerate(names):
        side.tell(c.Ask(ticket, QUESTIONS[name]))
    for each in said:
        _ = side.tell(each) if type(each).__module__.endswith("commands") else side.hear(each)
    side.lose()
    tickets = [each.ticket for each in side.emitted if isinstance(each, c.Answered)]
    assert len(tickets) == len(set(tickets))
    for outcome in answers(side):
        assert not isinstance(outcome, c.Fetched) or outcome.data == DATA
        assert not isinstance(outcome, c.Pointed) or outcome.entry is None
    assert sum(isinstance(each, c.Over) for each in side.emitted) == 1
    assert not side.timers
