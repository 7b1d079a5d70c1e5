"""Questions about adverts get one answer each, never more than fits a frame."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.book import Book
from p2pnode.protocols.adverts.exchange import Directory
from p2pnode.protocols.adverts.messages import (
    CODEC,
    SAMPLE_MAX,
    Adverts,
    Capability,
    GetAdvert,
    GetSheet,
    SampleAdverts,
    SheetAnswer,
    SignedAdvert,
    topic_of,
)
from p2pnode.protocols.adverts.signatures import parse
from p2pnode.protocols.events import Closed, Command, Event, Received, TimerFired
from p2pnode.protocols.framing.codec import FRAME_MAX
from tests.protocols.support import MODEL, OTHER_MODEL, WALL, Identity, offer, only, sent

ALICE, OWN = Identity("alice"), Identity("own")
ASKER = PeerId("asker")


def directory(
    peers: int = 0, own: SignedAdvert | None = None, *, heard: Sequence[SignedAdvert] = ()
) -> Directory:
    """Over a book with so many peers, ALICE, and what was ``heard`` besides."""
    book = Book(privileged=lambda _peer: True, draw=random.Random(1).randrange)
    for each in heard:
        book.offer(each, ASKER, WALL)
    for number in range(peers):
        book.offer(Identity(number).signed(), ASKER, WALL)
    book.offer(ALICE.signed(offers=(offer(OTHER_MODEL),)), ASKER, WALL)
    return Directory(book, peer=OWN.peer, own=lambda _now: own, wall=lambda: WALL)


def ask(subject: Directory, question: GetAdvert | SampleAdverts) -> list[SignedAdvert]:
    return list(only(Adverts, sent(subject.handle(Received(ASKER, 3, question), 0))).adverts)


def test_a_peer_in_the_book_is_answered_and_an_unknown_one_is_not() -> None:
    subject = directory()
    assert ask(subject, GetAdvert(peer=ALICE.peer)) == [ALICE.signed(offers=(offer(OTHER_MODEL),))]
    assert ask(subject, GetAdvert(peer=ASKER)) == []


def test_a_host_answers_with_its_own_advert_and_a_client_with_none() -> None:
    assert ask(directory(own=OWN.signed()), GetAdvert(peer=OWN.peer)) == [OWN.signed()]
    assert ask(directory(), GetAdvert(peer=OWN.peer)) == []


@pytest.mark.parametrize(
    ("model", "count"), [(MODEL, 6), (OTHER_MODEL, 1), (None, 7)], ids=["one", "other", "any"]
)
def test_a_sample_holds_only_hosts_of_the_model_that_was_asked_for(model: ModelId | None, count: int) -> None:
    found = ask(directory(peers=5, own=OWN.signed()), SampleAdverts(model=model))
    assert len(found) == count
    assert all(model is None or parse(each).offer(model) is not None for each in found)


def test_a_sample_of_capabilities_holds_only_offers_that_have_them_all() -> None:
    both, one = Identity("both"), Identity("one")
    tools, vision = Capability.TOOLS, Capability.VISION
    heard = [
        both.signed(offers=(replace(offer(), caps=int(tools | vision)),)),
        one.signed(offers=(replace(offer(), caps=int(tools)), replace(offer(OTHER_MODEL), caps=int(vision)))),
    ]
    subject = directory(peers=5, own=OWN.signed(), heard=heard)
    for caps, found in ((0, 8), (tools, 2), (tools | vision, 1), (Capability.GRAMMAR, 0)):
        assert len(ask(subject, SampleAdverts(model=MODEL, caps=int(caps)))) == found
    (only_one,) = ask(subject, SampleAdverts(model=MODEL, caps=int(tools | vision)))
    assert parse(only_one).peer == both.peer


def test_a_sheet_is_answered_to_who_names_its_hash_and_nothing_to_others() -> None:
    subject = Directory(
        Book(), peer=OWN.peer, own=lambda _now: None, wall=lambda: WALL, sheet={b"h" * 32: b"body"}.get
    )
    for wanted, body in ((b"h" * 32, b"body"), (b"x" * 32, b"")):
        effects = subject.handle(Received(ASKER, 3, GetSheet(hash=wanted)), 0)
        assert sent(effects) == [SheetAnswer(body=body)]


def test_samples_are_drawn_so_that_the_first_in_the_book_are_not_the_only_ones_known() -> None:
    subject = directory(peers=9)
    seen = {parse(each).peer for _ in range(50) for each in ask(subject, SampleAdverts(count=2))}
    assert len(seen) == 10


def test_the_own_advert_comes_first_and_once() -> None:
    subject = directory(peers=3, own=OWN.signed(), heard=[OWN.signed(seq=2)])
    found = [parse(each).peer for each in ask(subject, SampleAdverts(count=3))]
    assert found[0] == OWN.peer
    assert len(set(found)) == 3


def test_the_largest_answer_fits_a_frame() -> None:
    found = ask(directory(peers=60), SampleAdverts())
    assert len(found) == SAMPLE_MAX
    largest = SignedAdvert(body=bytes(1024), signature=bytes(64))
    assert len(CODEC.encode(Adverts(adverts=(largest,) * SAMPLE_MAX))) <= FRAME_MAX


def test_what_is_no_question_gets_no_answer() -> None:
    subject = directory()
    events: list[Event] = [
        Received(ASKER, 1, Adverts(adverts=())),
        Closed(ASKER, 1),
        TimerFired("x"),
        Command(1),
    ]
    assert [subject.handle(event, 0) for event in events] == [[]] * 4


def test_each_model_has_a_topic_of_its_own() -> None:
    assert topic_of(MODEL) == f"/p2pnode/adverts/1/{MODEL.hex()}"
    assert topic_of(MODEL) != topic_of(OTHER_MODEL)
