"""A host speaks as often as its topic can bear, and at once when it matters."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from p2pnode.protocols.adverts.book import TTL_MAX_S, Book
from p2pnode.protocols.adverts.exchange import (
    CHANGE_INTERVAL_S,
    REFRESH_MAX_S,
    REFRESH_S,
    TOPIC_RATE_MAX,
    TTL_FACTOR,
    Announcement,
    Population,
    Publish,
    Publisher,
    Update,
    Withdraw,
    publish_probability,
    refresh_interval,
)
from p2pnode.protocols.adverts.messages import ADVERT_MAX, Address, Load
from p2pnode.protocols.events import CancelTimer, Closed, Command, Effect, Received, SetTimer, TimerFired
from p2pnode.protocols.wire import encode
from tests.protocols.support import WALL, Identity, emitted, offer, only

ALICE = Identity("alice")
ANNOUNCED = Announcement(
    binding=ALICE.binding(),
    addresses=(Address(multiaddr="/ip4/192.0.2.1/tcp/4001"),),
    offers=(offer(),),
    load=Load(slots=4),
)


class Desk:
    """A publisher with a clock that is moved by hand: ``now`` starts at 0 where the wall shows WALL."""

    def __init__(self, draw: Callable[[], float] = lambda: 0.0) -> None:
        self.now = 0.0
        self.publisher = Publisher(
            peer=ALICE.peer,
            instance=b"instance",
            sign=ALICE.sign,
            wall=lambda: WALL + self.now,
            draw=draw,
        )

    def say(self, value: object) -> Sequence[Effect]:
        return self.publisher.handle(Command(value), self.now)

    def fire(self) -> Sequence[Effect]:
        return self.publisher.handle(TimerFired("refresh"), self.now)


def published(effects: Sequence[Effect]) -> list[Publish]:
    return [value for value in emitted(effects) if isinstance(value, Publish)]


def test_the_first_announcement_is_published_at_once_and_refreshed_at_a_third_of_its_life() -> None:
    desk = Desk()
    effects = desk.say(Update(ANNOUNCED))
    publish = only(Publish, emitted(effects))
    assert publish.advert.expires_at - publish.advert.issued_at == 90
    assert only(SetTimer, effects).at == 30
    assert Book().offer(publish.signed, ALICE.peer, WALL)[0] == "accepted"


def test_each_refresh_has_a_higher_sequence_even_when_the_clock_stands_still_or_steps_back() -> None:
    desk = Desk()
    seen = [only(Publish, emitted(desk.say(Update(ANNOUNCED)))).advert.seq]
    for now in (0.0, 30.0, -500.0):
        desk.now = now
        seen.append(only(Publish, emitted(desk.fire())).advert.seq)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(
    "change",
    [
        {"draining": True},
        {"offers": (replace(offer(), price_out=11),)},
        {"offers": (replace(offer(), warm=False),)},
        {"addresses": ()},
    ],
    ids=["drain", "price", "cold", "addresses"],
)
def test_a_change_that_matters_goes_out_at_once(change: dict[str, Any]) -> None:
    desk = Desk()
    desk.say(Update(ANNOUNCED))
    desk.now = CHANGE_INTERVAL_S
    assert published(desk.say(Update(replace(ANNOUNCED, **change))))


def test_a_change_of_load_waits_for_the_refresh() -> None:
    desk = Desk()
    desk.say(Update(ANNOUNCED))
    desk.now = 20.0
    assert desk.say(Update(replace(ANNOUNCED, load=Load(slots=4, active=4)))) == []
    desk.now = 30.0
    assert only(Publish, emitted(desk.fire())).advert.load.active == 4


def test_flapping_is_limited_and_the_last_word_counts() -> None:
    desk, count = Desk(), 0
    desk.say(Update(ANNOUNCED))
    due: float | None = None
    for step in range(1, 101):
        desk.now = step / 10
        if due is not None and desk.now >= due:
            count += len(published(desk.fire()))
            due = None
        effects = desk.say(Update(replace(ANNOUNCED, offers=(offer(price_out=step),))))
        count += len(published(effects))
        due = next((e.at for e in effects if isinstance(e, SetTimer)), due)
    assert count <= 10 / CHANGE_INTERVAL_S
    desk.now = due or 0.0
    assert only(Publish, emitted(desk.fire())).advert.offers[0].price_out == 100


def test_an_urgent_change_that_had_to_wait_is_not_left_to_chance() -> None:
    desk = Desk(lambda: 0.999)
    desk.say(Update(ANNOUNCED))
    desk.say(Population(1_000_000))
    desk.now = 1.0
    assert not published(desk.say(Update(replace(ANNOUNCED, draining=True))))
    desk.now = CHANGE_INTERVAL_S
    assert published(desk.fire())
    desk.now += REFRESH_MAX_S
    assert not published(desk.fire())  # an ordinary refresh is


def test_a_withdrawal_takes_the_advert_out_of_every_book_and_is_the_last_word() -> None:
    desk, book = Desk(), Book()
    book.offer(only(Publish, emitted(desk.say(Update(ANNOUNCED)))).signed, ALICE.peer, WALL)
    desk.now = 10.9
    effects = desk.say(Withdraw())
    assert CancelTimer("refresh") in effects
    last = only(Publish, emitted(effects))
    assert last.advert.draining
    assert book.offer(last.signed, ALICE.peer, WALL + 11.5)[0] == "accepted"
    assert book.get(ALICE.peer, WALL + 11.5) is None
    assert desk.publisher.renew(desk.now) is None
    assert desk.fire() == []
    assert desk.say(Withdraw()) == []
    assert published(desk.say(Update(ANNOUNCED)))[0].advert.seq > last.advert.seq  # it may come back


def test_nothing_is_said_before_there_is_an_announcement() -> None:
    desk = Desk()
    assert desk.fire() == []
    assert desk.say(Withdraw()) == []
    assert desk.say(Population(9)) == []
    assert desk.publisher.renew(0) is None
    assert desk.publisher.handle(Closed(ALICE.peer, 0), 0) == []
    assert desk.publisher.handle(Received(ALICE.peer, 0, "?"), 0) == []


def test_who_asks_gets_an_advert_with_at_least_half_its_life_left() -> None:
    desk = Desk()
    first = only(Publish, emitted(desk.say(Update(ANNOUNCED))))
    desk.now = 44.0
    assert desk.publisher.renew(desk.now) == first
    desk.now = 46.0
    renewed = desk.publisher.renew(desk.now)
    assert renewed is not None
    assert renewed.advert.seq > first.advert.seq
    assert renewed.advert.expires_at == int(WALL) + 46 + 90


def test_addresses_are_trimmed_until_the_advert_fits() -> None:
    addresses = tuple(
        Address(multiaddr=f"/ip6/2001:db8::{n:x}/tcp/4001/p2p-circuit/{'y' * 90}") for n in range(8)
    )
    desk = Desk()
    publish = only(Publish, emitted(desk.say(Update(replace(ANNOUNCED, addresses=addresses)))))
    kept = publish.advert.addresses
    assert 1 <= len(kept) < 8
    assert kept == addresses[: len(kept)]
    assert len(encode(publish.signed)) <= ADVERT_MAX


def test_an_advert_that_can_not_fit_says_what_to_do() -> None:
    offers = tuple(offer(name="n" * 64) for _ in range(8))
    with pytest.raises(ValueError, match="announce fewer models"):
        Desk().say(Update(replace(ANNOUNCED, offers=offers)))


def test_a_realistic_advert_with_three_models_and_four_addresses_fits() -> None:
    relay = Identity("relay").peer
    announcement = replace(
        ANNOUNCED,
        binding=replace(ALICE.binding(), chain_id=84532, node_registry=b"\x22" * 20),
        addresses=(
            Address(multiaddr="/ip4/203.0.113.77/tcp/41001"),
            Address(multiaddr="/ip4/203.0.113.77/tcp/41002/ws"),
            Address(multiaddr="/ip6/2001:db8:85a3:8d3:1319:8a2e:370:7348/tcp/41001"),
            Address(multiaddr=f"/ip4/198.51.100.4/tcp/4001/p2p/{relay}/p2p-circuit", direct=False),
        ),
        offers=tuple(
            replace(offer(name=name), price_in=150_000, price_out=600_000, n_ctx=131_072)
            for name in ("smollm2-135m-instruct", "llama-3.1-8b-instruct", "qwen2.5-72b-instruct")
        ),
    )
    publish = only(Publish, emitted(Desk().say(Update(announcement))))
    assert len(publish.advert.addresses) == 4
    assert len(encode(publish.signed)) <= ADVERT_MAX


# ---- what a topic carries


def test_a_topic_carries_at_most_two_adverts_a_second_from_one_host_to_a_hundred_thousand() -> None:
    for population in [*range(1, 400), 7_199, 7_200, 7_201, 20_000, 100_000]:
        rate = population * publish_probability(population) / refresh_interval(population)
        assert rate <= TOPIC_RATE_MAX + 1e-9
        assert REFRESH_S <= refresh_interval(population) <= REFRESH_MAX_S


def test_the_longest_stretched_life_is_still_believed() -> None:
    assert TTL_FACTOR * refresh_interval(10**6) < TTL_MAX_S
    desk = Desk()
    desk.say(Population(100_000))
    publish = only(Publish, emitted(desk.say(Update(ANNOUNCED))))
    assert publish.advert.expires_at - publish.advert.issued_at == TTL_FACTOR * REFRESH_MAX_S
    assert Book().offer(publish.signed, ALICE.peer, WALL)[0] == "accepted"


@pytest.mark.parametrize("population", [10, 60, 500, 30_000])
def test_the_measured_rate_of_a_population_stays_below_two_a_second(population: int) -> None:
    """Draws many refreshes of one host; the population's rate is theirs times its size."""
    desk = Desk(random.Random(7).random)
    desk.say(Population(population))
    desk.say(Update(ANNOUNCED))
    sent, rounds = 0, 1200
    for _ in range(rounds):
        effects = desk.fire()
        sent += len(published(effects))
        at = only(SetTimer, effects).at
        assert at - desk.now >= refresh_interval(population)
        desk.now = at
    spread = 1.25 if publish_probability(population) < 1 else 1.0
    assert population * sent / desk.now <= TOPIC_RATE_MAX * spread
