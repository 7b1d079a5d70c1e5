"""What is answered, believed, handed on and published, decided without a network."""

from __future__ import annotations

import pytest

from p2pnode.errors import ClockError
from p2pnode.ids import PeerId
from p2pnode.node.advert_exchange import (
    QUESTIONS_BURST,
    QUESTIONS_PER_STREAM,
    SWEEP_S,
    AdvertExchange,
    Answered,
    Expired,
)
from p2pnode.protocols.adverts.book import Book
from p2pnode.protocols.adverts.exchange import Announcement, Publish, Publisher, Update, Withdraw
from p2pnode.protocols.adverts.messages import Adverts, GetAdvert, SignedAdvert
from p2pnode.protocols.adverts.signatures import CLOCK_SKEW_S
from p2pnode.protocols.events import (
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    HalfClosed,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.wire import encode
from tests.protocols.support import MODEL, WALL, Identity, offer

ALICE, OWN = Identity("alice"), Identity("own")
ASKER, OTHER = PeerId("asker"), PeerId("other")
QUESTION = GetAdvert(peer=ALICE.peer)


class Subject:
    """An exchange whose wall clock the test sets."""

    def __init__(self) -> None:
        self.wall = float(WALL)
        self.book = Book()
        self.publisher = Publisher(
            peer=OWN.peer, instance=bytes(8), sign=OWN.sign, wall=lambda: self.wall, draw=lambda: 0.0
        )
        self.exchange = AdvertExchange(
            self.book, self.publisher, peer=OWN.peer, instance=bytes(8), wall=lambda: self.wall
        )

    def give(self, event: Event, now: float = 0.0) -> list[Effect]:
        return list(self.exchange.handle(event, now))

    def ask(self, peer: PeerId = ASKER, stream: int = 1, now: float = 0.0) -> list[Effect]:
        return self.give(Received(peer, stream, QUESTION), now)


def answers(effects: list[Effect]) -> list[tuple[SignedAdvert, ...]]:
    sent = [each.message for each in effects if isinstance(each, Send)]
    return [each.adverts for each in sent if isinstance(each, Adverts)]


def test_a_stream_gets_so_many_answers_and_is_over() -> None:
    subject = Subject()
    subject.exchange.fetched([ALICE.signed()], ASKER, ALICE.peer)
    for _ in range(QUESTIONS_PER_STREAM - 1):
        effects = subject.ask()
        assert (answers(effects), len(effects)) == ([(ALICE.signed(),)], 1)
    *_, last = effects = subject.ask()
    assert (len(answers(effects)), last) == (1, Emit(Answered(1)))
    assert len(subject.ask(stream=2)) == 1
    assert subject.exchange.served["GetAdvert"] == QUESTIONS_PER_STREAM + 1


def test_whoever_asks_too_fast_gets_no_answer_and_others_do() -> None:
    subject = Subject()
    for number in range(int(QUESTIONS_BURST)):
        assert len(answers(subject.ask(stream=number))) == 1
    assert subject.ask(stream=500) == [Emit(Answered(500))]
    assert len(answers(subject.ask(OTHER, stream=501))) == 1
    assert len(answers(subject.ask(stream=502, now=1.0))) == 1


@pytest.mark.parametrize("end", [HalfClosed(ASKER, 1), Closed(ASKER, 1, "lost")], ids=["half", "whole"])
def test_a_stream_that_ended_is_forgotten(end: Event) -> None:
    subject = Subject()
    for _ in range(QUESTIONS_PER_STREAM - 1):
        subject.ask()
    assert subject.give(end) == ([Emit(Answered(1))] if isinstance(end, HalfClosed) else [])
    assert len(subject.ask()) == 1  # a new stream by the same name


def test_gossip_is_handed_on_when_it_is_news_or_what_we_learned_by_asking() -> None:
    subject, signed = Subject(), ALICE.signed()
    assert subject.exchange.forwards(encode(signed), OTHER)
    assert subject.exchange.forwards(encode(signed), OTHER)  # the same one again: the mesh drops duplicates
    assert not subject.exchange.forwards(encode(ALICE.signed(seq=0)), OTHER)
    assert not subject.exchange.forwards(b"nonsense", OTHER)
    asked = Subject()
    asked.exchange.sampled([signed], OTHER)
    assert asked.exchange.forwards(encode(signed), OTHER)


def test_a_sample_gives_the_others_that_hold() -> None:
    subject = Subject()
    forged = SignedAdvert(body=Identity("bob").signed().body, signature=bytes(64))
    taken = subject.exchange.sampled([ALICE.signed(), forged, OWN.signed()], ASKER)
    assert [each.peer for each in taken] == [ALICE.peer]
    assert subject.book.get(OWN.peer, subject.wall) is None


def test_only_what_was_asked_for_is_an_answer() -> None:
    subject = Subject()
    assert subject.exchange.fetched([ALICE.signed()], ASKER, OTHER) is None
    found = subject.exchange.fetched([ALICE.signed()], ASKER, ALICE.peer)
    assert found == ALICE.advert()


def test_a_host_whose_clock_is_wrong_is_told_apart_from_one_that_has_no_advert() -> None:
    subject = Subject()
    subject.wall += 10 * CLOCK_SKEW_S
    with pytest.raises(ClockError, match="behind this machine's"):
        subject.exchange.fetched([ALICE.signed()], ALICE.peer, ALICE.peer)
    assert subject.exchange.fetched([ALICE.signed()], ASKER, ALICE.peer) is None  # an old one, from another


@pytest.mark.parametrize(("age_s", "copied"), [(CLOCK_SKEW_S + 5, True), (0, False)])
def test_an_advert_of_our_own_that_we_did_not_make_is_a_copy_unless_an_earlier_start_made_it(
    age_s: int, copied: bool
) -> None:
    subject = Subject()
    subject.wall += age_s
    now = int(subject.wall)
    signed = OWN.signed(instance=b"\1" * 8, issued_at=now, expires_at=now + 90, seq=now * 1000)
    subject.exchange.forwards(encode(signed), OTHER)
    assert subject.exchange.is_copied == copied
    assert subject.book.get(OWN.peer, subject.wall) is None


def test_this_hosts_advert_goes_out_on_the_topics_that_are_followed() -> None:
    subject = Subject()
    own = OWN.advert()
    announcement = Announcement(
        binding=own.binding, addresses=own.addresses, offers=(offer(MODEL),), load=own.load
    )
    publish, timer = subject.give(Command(Update(announcement)))
    assert isinstance(publish, Emit)
    assert isinstance(publish.value, Publish)
    assert isinstance(timer, SetTimer)
    assert subject.exchange.topics_of(publish.value.advert) == []
    subject.exchange.topics.add(MODEL)
    assert subject.exchange.topics_of(publish.value.advert) == [MODEL]
    subject.wall += 30
    assert any(isinstance(each, Emit) for each in subject.give(TimerFired(timer.key), 30.0))
    last = subject.give(Command(Withdraw()), 31.0)[0]
    assert isinstance(last, Emit)
    assert isinstance(last.value, Publish)
    assert last.value.advert.draining


def test_what_expires_is_swept_and_told() -> None:
    subject = Subject()
    subject.exchange.sampled([ALICE.signed()], ASKER)
    (first,) = subject.exchange.start(0.0)
    assert first == SetTimer("sweep", SWEEP_S)
    assert subject.give(TimerFired("sweep"), 5.0) == [SetTimer("sweep", 5.0 + SWEEP_S)]
    subject.wall += 4 * 3600
    assert subject.give(TimerFired("sweep"), 10.0)[1:] == [Emit(Expired((ALICE.peer,)))]
