"""What is answered, believed, handed on and published, decided without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from p2pnode.errors import ClockError
from p2pnode.ids import ModelId, PeerId
from p2pnode.node.advert_exchange import (
    ORIGIN_FACTOR,
    QUESTIONS_BURST,
    QUESTIONS_PER_STREAM,
    SWEEP_S,
    AdvertExchange,
    Answered,
    Expired,
)
from p2pnode.protocols.adverts.book import FORGERIES_MAX, SOURCE_SHARE, STRANGERS_BURST, Book
from p2pnode.protocols.adverts.exchange import REFRESH_S, Announcement, Publish, Publisher, Update, Withdraw
from p2pnode.protocols.adverts.messages import Adverts, GetAdvert, Load, SignedAdvert
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
from p2pnode.shares import Origin
from tests.protocols.support import MODEL, OTHER_MODEL, WALL, Identity, offer

ALICE, OWN = Identity("alice"), Identity("own")
ASKER, OTHER = PeerId("asker"), PeerId("other")
QUESTION = GetAdvert(peer=ALICE.peer)
ANNOUNCED = Announcement(binding=OWN.binding(), addresses=(), offers=(offer(),), load=Load(slots=1))


class Subject:
    """An exchange whose wall clock the test sets."""

    def __init__(
        self, book: Book | None = None, *, starts: Sequence[bytes] = (bytes(8),), **more: Any
    ) -> None:
        self.wall = float(WALL)
        self.book = Book() if book is None else book
        self.publisher = Publisher(
            peer=OWN.peer, instance=bytes(8), sign=OWN.sign, wall=lambda: self.wall, draw=lambda: 0.0
        )
        self.exchange = AdvertExchange(
            self.book,
            self.publisher,
            peer=OWN.peer,
            wall=lambda: self.wall,
            starts=starts,
            **more,
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


def test_of_one_origin_four_peers_worth_of_questions_are_answered() -> None:
    subject = Subject(origin_of=lambda peer: None if peer == OTHER else Origin("8.8.8.0/24", "8.8.8.0/24"))
    crowd = [PeerId(f"crowd {number}") for number in range(2 * ORIGIN_FACTOR)]
    answered = [
        len(answers(subject.ask(peer, stream=number)))
        for peer in crowd
        for number in range(int(QUESTIONS_BURST))
    ]
    assert sum(answered) == ORIGIN_FACTOR * QUESTIONS_BURST
    assert len(answers(subject.ask(OTHER, stream=501))) == 1


@pytest.mark.parametrize("end", [HalfClosed(ASKER, 1), Closed(ASKER, 1, "lost")], ids=["half", "whole"])
def test_a_stream_that_ended_is_forgotten(end: Event) -> None:
    subject = Subject()
    for _ in range(QUESTIONS_PER_STREAM - 1):
        subject.ask()
    assert subject.give(end) == ([Emit(Answered(1))] if isinstance(end, HalfClosed) else [])
    assert len(subject.ask()) == 1  # a new stream by the same name


def kind(subject: Subject, data: bytes, model: ModelId = MODEL) -> str:
    return subject.exchange.judge(data, OTHER, model).kind


def test_gossip_is_handed_on_when_it_is_news_or_what_we_learned_by_asking() -> None:
    subject, signed = Subject(), ALICE.signed()
    first = subject.exchange.judge(encode(signed), OTHER, MODEL)
    again = subject.exchange.judge(encode(signed), ASKER, MODEL)
    assert (first.kind, again) == ("accept", first)  # by its key the mesh forwards it once
    newer = subject.exchange.judge(encode(ALICE.signed(seq=2, load=Load(slots=1))), OTHER, MODEL)
    assert newer.kind == "ignore"  # within a second
    asked = Subject()
    asked.exchange.sampled([signed], OTHER)
    assert asked.exchange.judge(encode(signed), OTHER, MODEL) == first
    later = Subject()
    assert later.exchange.judge(encode(ALICE.signed(seq=2)), OTHER, MODEL).key != first.key


FORGED = replace(ALICE.signed(), signature=bytes(64))


@pytest.mark.parametrize(
    ("case", "data"),
    [
        ("no advert", b"nonsense"),
        ("more than 1024 bytes", encode(ALICE.signed()) + bytes(1024)),
        ("a body that is no advert", encode(replace(ALICE.signed(), body=b"\xc0"))),
        ("a false signature", encode(FORGED)),
        ("a binding that another wallet signed", encode(ALICE.signed(binding=Identity("bob").binding()))),
    ],
)
def test_what_every_node_judges_alike_is_rejected(case: str, data: bytes) -> None:
    assert kind(Subject(), data) == "reject", case


def test_an_advert_on_the_topic_of_a_model_that_it_does_not_offer_is_rejected() -> None:
    subject, data = Subject(), encode(ALICE.signed())
    assert kind(subject, data, OTHER_MODEL) == "reject"
    assert kind(subject, data) == "accept"
    assert kind(subject, data, OTHER_MODEL) == "reject"


WALL_S = int(WALL)


@pytest.mark.parametrize(
    ("case", "data"),
    [
        ("expired", ALICE.signed(issued_at=WALL_S - 900, expires_at=WALL_S - 800)),
        ("from the future", ALICE.signed(issued_at=WALL_S + 200, expires_at=WALL_S + 300)),
        ("a withdrawal of nobody", ALICE.signed(issued_at=WALL_S, expires_at=WALL_S)),
        ("a binding that is over", ALICE.signed(binding=ALICE.binding(expires_at=WALL_S - 1))),
        ("a binding that lives too long", ALICE.signed(binding=ALICE.binding(expires_at=WALL_S + 10**8))),
    ],
)
def test_what_hangs_on_our_clock_is_ignored(case: str, data: SignedAdvert) -> None:
    assert kind(Subject(), encode(data)) == "ignore", case


def test_what_hangs_on_our_book_is_ignored() -> None:
    subject = Subject(Book(size_max=1, privileged=lambda _peer: True))
    assert kind(subject, encode(ALICE.signed(seq=5))) == "accept"
    assert kind(subject, encode(ALICE.signed(seq=4))) == "ignore"  # older
    assert kind(subject, encode(ALICE.signed(seq=6))) == "ignore"  # too soon
    assert kind(subject, encode(Identity("bob").signed())) == "ignore"  # no room
    busy = Subject()
    made = [encode(Identity(number).signed()) for number in range(int(STRANGERS_BURST * SOURCE_SHARE) + 1)]
    assert [kind(busy, data) for data in made] == ["accept"] * (len(made) - 1) + ["ignore"]  # the rate
    muted = Subject()
    for _ in range(FORGERIES_MAX):
        assert kind(muted, encode(FORGED)) == "reject"
    assert kind(muted, encode(ALICE.signed())) == "ignore"


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
    subject.exchange.judge(encode(signed), OTHER, MODEL)
    assert subject.exchange.is_copied == copied
    assert subject.book.get(OWN.peer, subject.wall) is None


@pytest.mark.parametrize(("starts", "copied"), [([b"earlier!", bytes(8)], False), ([bytes(8)], True)])
@pytest.mark.parametrize("way", ["gossip", "answer"])
def test_what_an_earlier_start_signed_while_its_clock_was_ahead_is_no_copy_when_it_is_replayed(
    way: str, starts: list[bytes], copied: bool
) -> None:
    subject = Subject(starts=starts)
    ahead = int(subject.wall) + 3600
    recorded = OWN.signed(instance=b"earlier!", issued_at=ahead, expires_at=ahead + 90, seq=ahead * 1000)
    subject.wall += 3490
    if way == "gossip":
        subject.exchange.judge(encode(recorded), OTHER, MODEL)
    else:
        subject.exchange.sampled([recorded], OTHER)
    assert subject.exchange.is_copied == copied
    assert subject.book.get(OWN.peer, subject.wall) is None


def test_what_is_signed_after_such_a_replay_is_newer_than_it_to_everybody() -> None:
    subject, reader = Subject(starts=[b"earlier!", bytes(8)]), Book()
    announcement = Announcement(
        binding=OWN.advert().binding, addresses=(), offers=(offer(MODEL),), load=Load(slots=1)
    )
    subject.give(Command(Update(announcement)))
    ahead = int(subject.wall) + 3600
    recorded = OWN.signed(instance=b"earlier!", issued_at=ahead, expires_at=ahead + 90, seq=ahead * 1000)
    subject.wall += 3490
    for book in (subject.book, reader):
        assert book.offer(recorded, OTHER, subject.wall, asked=True)[0] == "accepted"
    subject.exchange.sampled([recorded], OTHER)
    (own,) = answers(subject.give(Received(ASKER, 1, GetAdvert(peer=OWN.peer))))[0]
    assert reader.offer(own, OWN.peer, subject.wall, asked=True)[0] == "accepted"


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


def announced(subject: Subject) -> None:
    """This host begins to publish on the topic of MODEL."""
    subject.exchange.topics.add(MODEL)
    subject.give(Command(Update(ANNOUNCED)))


def test_a_full_topic_stretches_the_time_to_the_next_advert() -> None:
    subject = Subject()
    announced(subject)
    hosts = [Identity(f"host {number}") for number in range(90)]
    for host in hosts:
        subject.exchange.judge(encode(host.signed()), host.peer, MODEL)
        subject.exchange.judge(encode(host.signed()), host.peer, MODEL)  # the same again: not taken
    own = subject.publisher.current
    assert own is not None
    subject.exchange.judge(encode(own.signed), OWN.peer, MODEL)
    assert subject.exchange.heard[MODEL] == 90
    *_, timer = subject.give(TimerFired("refresh"), 30.0)
    assert timer == SetTimer("refresh", 30.0 + 45.0)  # 3 a second came, and 2 are aimed at
    *_, timer = subject.give(TimerFired("refresh"), 75.0)
    assert timer == SetTimer("refresh", 75.0 + REFRESH_S)  # none came since


def test_who_comes_to_a_topic_publishes_as_often_as_most_hosts_there() -> None:
    subject = Subject()
    for number in range(8):
        host = Identity(f"host {number}")
        life_s = 10_800 if number < 3 else 900  # three that lie don't move a median
        signed = host.signed(expires_at=int(WALL) + life_s)
        assert subject.exchange.sampled([signed], host.peer)
    announced(subject)
    assert subject.publisher.period_s == 300
    few = Subject()
    host = Identity("host 0")
    few.exchange.sampled([host.signed(expires_at=int(WALL) + 900)], host.peer)
    announced(few)
    assert few.publisher.period_s == REFRESH_S
