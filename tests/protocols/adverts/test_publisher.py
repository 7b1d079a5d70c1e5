"""A host speaks as often as its topic can bear, and at once when it matters."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from p2pnode.contract_rules import SESSION_FEE_MAX
from p2pnode.ids import ModelId
from p2pnode.money import USDC
from p2pnode.protocols.adverts.book import TTL_MAX_S, Book
from p2pnode.protocols.adverts.exchange import (
    ADJUST_S,
    CHANGE_INTERVAL_S,
    PERIOD_MAX_S,
    REFRESH_MAX_S,
    REFRESH_S,
    SHEETS_KEPT,
    STEP,
    TTL_FACTOR,
    Announcement,
    Heard,
    Publish,
    Publisher,
    Update,
    Withdraw,
    publish_probability,
    refresh_interval,
)
from p2pnode.protocols.adverts.messages import (
    ADDRESSES_TOLD,
    ADVERT_MAX,
    SHEET_MAX,
    WARM_IN_MAX,
    Address,
    Load,
    Offer,
    Sheet,
)
from p2pnode.protocols.adverts.signatures import encode_sheet, read_sheet, seal
from p2pnode.protocols.events import CancelTimer, Closed, Command, Effect, Received, SetTimer, TimerFired
from p2pnode.protocols.wire import encode
from tests.protocols.make_vectors import ROOT
from tests.protocols.strategies import largest
from tests.protocols.support import MODEL, OTHER_MODEL, WALL, Identity, emitted, offer, only

ALICE = Identity("alice")
RELAY = Identity("relay").peer
LONGEST_ADDRESSES = (
    Address(multiaddr="/ip4/255.255.255.255/tcp/65535"),
    Address(multiaddr="/ip6/2001:db8:85a3:8d3:1319:8a2e:1370:7348/tcp/65535/ws"),
    Address(multiaddr=f"/ip4/255.255.255.255/tcp/65535/p2p/{RELAY}/p2p-circuit", direct=False),
)
U32_MAX = 2**32 - 1
LARGEST_OFFER = Offer(
    model=MODEL,
    n_ctx=1 << 20,
    price_in=10_000 * USDC,
    price_out=10_000 * USDC,
    session_fee=SESSION_FEE_MAX,
    warm_in=-WARM_IN_MAX,
    caps=U32_MAX,
    profile=b"\xff" * 8,
)
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
        {"offers": (replace(offer(), warm_in=30),)},
        {"addresses": ()},
        {"sheet": Sheet(peer=ALICE.peer)},
    ],
    ids=["drain", "price", "cold", "addresses", "sheet"],
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
    desk.say(Heard(counted=1_000_000))
    desk.now = 1.0
    assert not published(desk.say(Update(replace(ANNOUNCED, draining=True))))
    desk.now = CHANGE_INTERVAL_S
    assert published(desk.fire())
    desk.now += REFRESH_MAX_S
    assert not published(desk.fire())  # an ordinary refresh is


def test_a_model_that_is_served_no_more_is_named_for_as_long_as_an_advert_lives_that_offered_it() -> None:
    desk, book = Desk(), Book()
    both = (offer(), offer(OTHER_MODEL))
    first = only(Publish, emitted(desk.say(Update(replace(ANNOUNCED, offers=both)))))
    book.offer(first.signed, ALICE.peer, WALL)
    desk.now = 10.0
    told = only(Publish, emitted(desk.say(Update(ANNOUNCED))))
    assert (told.advert.names(OTHER_MODEL), told.advert.offer(OTHER_MODEL)) == (True, None)
    assert not told.advert.serves(OTHER_MODEL)
    assert book.offer(told.signed, ALICE.peer, WALL + 10)[0] == "accepted"
    assert [each.advert.peer for each in book.live(WALL + 10, MODEL)] == [ALICE.peer]
    assert list(book.live(WALL + 10, OTHER_MODEL)) == []
    desk.now = 11.0 + TTL_FACTOR * REFRESH_S
    assert not only(Publish, emitted(desk.fire())).advert.names(OTHER_MODEL)
    desk.say(Update(replace(ANNOUNCED, offers=both)))
    desk.say(Update(ANNOUNCED))
    desk.now += CHANGE_INTERVAL_S
    assert only(Publish, emitted(desk.fire())).advert.names(OTHER_MODEL)
    desk.say(Update(replace(ANNOUNCED, offers=both)))
    desk.now += CHANGE_INTERVAL_S
    assert only(Publish, emitted(desk.fire())).advert.offer(OTHER_MODEL) == both[1]


def test_what_is_served_no_more_is_left_out_where_it_does_not_fit() -> None:
    desk = Desk()
    offers = tuple(replace(LARGEST_OFFER, model=ModelId(bytes([n]) * 32)) for n in range(5))
    desk.say(Update(replace(ANNOUNCED, offers=offers[:4])))
    desk.now = CHANGE_INTERVAL_S
    advert = only(Publish, emitted(desk.say(Update(replace(ANNOUNCED, offers=offers[1:5]))))).advert
    assert advert.offers[:4] == offers[1:5]
    assert not advert.names(offers[0].model) or len(encode(advert)) <= ADVERT_MAX


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
    assert desk.say(Heard(counted=9)) == []
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
    offers = tuple(replace(LARGEST_OFFER, caps=number) for number in range(8))
    with pytest.raises(ValueError, match="announce fewer models"):
        Desk().say(Update(replace(ANNOUNCED, offers=offers)))


def test_the_largest_honest_advert_fits_and_takes_what_the_specification_says() -> None:
    announcement = replace(
        ANNOUNCED,
        binding=replace(
            ALICE.binding(),
            chain_id=U32_MAX,
            node_registry=b"\x22" * 20,
            seq=1000 * U32_MAX,
            expires_at=U32_MAX,
        ),
        addresses=LONGEST_ADDRESSES,
        offers=(LARGEST_OFFER,) * 4,
        load=Load(slots=65_535, active=65_535, queued=65_535),
        sheet=Sheet(peer=ALICE.peer),
        release_min=65_535,
    )
    advert = only(Publish, emitted(Desk().say(Update(announcement)))).advert
    assert (advert.addresses, len(advert.addresses)) == (LONGEST_ADDRESSES, ADDRESSES_TOLD)
    largest_one = replace(advert, seq=1000 * U32_MAX, issued_at=U32_MAX, expires_at=U32_MAX)
    size = len(encode(seal(largest_one, ALICE.sign)))
    statement = len(encode(replace(largest_one, addresses=(), offers=())))
    binding, load = len(encode(advert.binding)), len(encode(advert.load))
    kinds = ["TCP over IPv4", "WebSocket over IPv6", "a relayed one"]
    assert _budget() == {
        "the envelope": (size - len(encode(largest_one)), 1),
        "the statement without what follows": (statement - binding - load, 1),
        "the binding": (binding, 1),
        "the load": (load, 1),
        **{
            f"an address: {kind}": (len(encode(each)), 1)
            for kind, each in zip(kinds, LONGEST_ADDRESSES, strict=True)
        },
        "an offer": (len(encode(LARGEST_OFFER)), 4),
    }
    assert sum(bytes_ * times for bytes_, times in _budget().values()) == size <= ADVERT_MAX


def _budget() -> dict[str, tuple[int, int]]:
    """The byte budget in the SPEC: bytes and how often, by part."""
    text = (ROOT / "protocols/adverts/SPEC.md").read_text(encoding="utf-8")
    table = text.partition("### The byte budget")[2].partition("\n## ")[0]
    found = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \|$", table, re.MULTILINE)
    return {part: (int(size), int(times)) for part, size, times in found}


def test_the_largest_sheet_fits_what_a_sheet_may_take() -> None:
    assert len(encode_sheet(largest(Sheet))) <= SHEET_MAX


def test_a_sheet_is_answered_by_its_hash_as_long_as_an_advert_with_it_may_live() -> None:
    desk, sheets = Desk(), []
    for keep_s in range(SHEETS_KEPT + 1):
        desk.now += CHANGE_INTERVAL_S
        sheet = Sheet(peer=ALICE.peer, keep_s=keep_s)
        advert = only(Publish, emitted(desk.say(Update(replace(ANNOUNCED, sheet=sheet))))).advert
        assert advert.sheet is not None
        sheets.append(advert.sheet)
        body = desk.publisher.sheet(advert.sheet)
        assert body is not None
        assert read_sheet(body, advert) == sheet
    assert desk.publisher.sheet(sheets[0]) is None
    assert all(desk.publisher.sheet(each) for each in sheets[1:])


# ---- what a topic carries


def test_a_period_is_kept_by_intervals_and_beyond_the_longest_of_them_by_chance() -> None:
    for period_s in (REFRESH_S, 50.0, REFRESH_MAX_S, REFRESH_MAX_S + 1, PERIOD_MAX_S):
        assert refresh_interval(period_s) / publish_probability(period_s) == pytest.approx(period_s)
        assert REFRESH_S <= refresh_interval(period_s) <= REFRESH_MAX_S


def heard(desk: Desk, adverts: int, seconds: float, counted: int = 0) -> float:
    """So many adverts came in so many seconds; the period that follows."""
    desk.now += seconds
    desk.say(Heard(adverts=adverts, counted=counted))
    return desk.publisher.period_s


def test_a_busy_topic_stretches_the_period_and_a_quiet_one_shortens_it_by_steps() -> None:
    desk = Desk()
    desk.say(Update(ANNOUNCED))
    assert heard(desk, 90, 30) == pytest.approx(45)  # 3 a second, where 2 are aimed at
    assert heard(desk, 10_000, 30) == STEP * 45
    assert heard(desk, 120, 60) == STEP * 45  # as it should be
    assert heard(desk, 0, 30) == 45
    assert heard(desk, 0, 30) == REFRESH_S


def test_no_flood_stretches_it_beyond_its_bound_and_it_comes_back() -> None:
    desk = Desk()
    desk.say(Update(ANNOUNCED))
    for _ in range(20):
        heard(desk, 10_000, 60)
    assert desk.publisher.period_s == PERIOD_MAX_S
    found = [heard(desk, 0, 60) for _ in range(10)]
    assert found[0] == PERIOD_MAX_S / STEP
    assert found[-1] == REFRESH_S


def test_a_rate_is_taken_over_ten_seconds_at_least() -> None:
    desk = Desk()
    desk.say(Update(ANNOUNCED))
    assert heard(desk, 100, ADJUST_S - 1) == REFRESH_S
    assert heard(desk, 0, 41) == pytest.approx(REFRESH_S)  # the 100 were kept: 2 a second
    assert heard(desk, 120, 30) == 2 * REFRESH_S


def test_hosts_that_count_keep_the_period_up_however_quiet_the_topic_is() -> None:
    desk = Desk()
    desk.say(Update(ANNOUNCED))
    assert heard(desk, 0, 60, counted=400) == 200


def test_who_begins_does_so_at_the_period_of_others() -> None:
    desk = Desk()
    desk.say(Heard(period_s=700.0, adverts=5))
    desk.say(Update(ANNOUNCED))
    assert desk.publisher.period_s == 700
    desk.say(Heard(period_s=9000.0))  # later its own measure counts
    assert desk.publisher.period_s == 700


def test_the_longest_stretched_life_is_still_believed() -> None:
    assert TTL_FACTOR * refresh_interval(PERIOD_MAX_S) < TTL_MAX_S
    desk = Desk()
    desk.say(Heard(counted=100_000))
    publish = only(Publish, emitted(desk.say(Update(ANNOUNCED))))
    assert publish.advert.expires_at - publish.advert.issued_at == TTL_FACTOR * REFRESH_MAX_S
    assert Book().offer(publish.signed, ALICE.peer, WALL)[0] == "accepted"


@pytest.mark.parametrize("period_s", [30, 250, 3_600, 15_000])
def test_the_measured_mean_between_two_adverts_is_the_period(period_s: int) -> None:
    """Draws many refreshes of one host."""
    desk = Desk(random.Random(7).random)
    desk.say(Heard(period_s=period_s))
    desk.say(Update(ANNOUNCED))
    sent, rounds = 0, 1200
    for _ in range(rounds):
        effects = desk.fire()
        sent += len(published(effects))
        at = only(SetTimer, effects).at
        assert at - desk.now >= refresh_interval(period_s)
        desk.now = at
    assert desk.now / sent == pytest.approx(1.05 * period_s, rel=0.02 if period_s <= REFRESH_MAX_S else 0.2)
