"""The book believes nothing it was not shown, and nobody can silence another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count, islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.adverts.book import (
    FORGERIES_MAX,
    FORGERY_WINDOW_S,
    RENEWAL_AFTER_S,
    SEEN_BURST,
    SOURCE_SHARE,
    SOURCES_MAX,
    STRANGERS_BURST,
    STRANGERS_PER_S,
    TTL_MAX_S,
    UNSEEN,
    Book,
    Sources,
)
from p2pnode.protocols.adverts.messages import ADVERT_MAX, Address, Binding, SignedAdvert
from p2pnode.protocols.adverts.signatures import (
    BINDING_TTL_MAX_S,
    CLOCK_SKEW_S,
    AdvertChecks,
    decode_gossip,
    is_bound,
    parse,
    seal,
    verify,
)
from p2pnode.protocols.wire import encode
from p2pnode.shares import Origin
from tests.protocols.support import MODEL, OTHER_MODEL, WALL, Identity, offer

ALICE, MALLORY = Identity("alice"), Identity("mallory")
SOURCE = PeerId("source")
NOW = WALL + 1
OVER = WALL + 90 + CLOCK_SKEW_S
"""When an advert made at WALL is over for every clock that may be right."""
GONE = {"issued_at": int(NOW), "expires_at": int(NOW)}
"""Of a withdrawal."""


def verdict(book: Book, signed: SignedAdvert, now: float = NOW, source: PeerId = SOURCE) -> str:
    return book.offer_gossip(encode(signed), source, now)[0]


def test_a_good_advert_is_taken_and_found_by_its_model() -> None:
    book = Book()
    assert verdict(book, ALICE.signed()) == "accepted"
    entry = book.get(ALICE.peer, NOW)
    assert entry is not None
    assert entry.advert == ALICE.advert()
    assert [e.advert.peer for e in book.live(NOW, MODEL)] == [ALICE.peer]
    assert list(book.live(NOW, OTHER_MODEL)) == []
    assert book.counts["accepted"] == 1


def test_a_forged_advert_is_refused_whoever_it_names() -> None:
    book = Book()
    signed = ALICE.signed()
    cases = [
        replace(signed, signature=MALLORY.sign(signed.body)),
        replace(signed, signature=bytes(64)),
        seal(ALICE.advert(), MALLORY.sign),
        ALICE.signed(binding=MALLORY.binding()),
        ALICE.signed(binding=replace(ALICE.binding(), seq=2)),
        ALICE.signed(binding=replace(ALICE.binding(), wallet=MALLORY.wallet)),
        ALICE.signed(peer=str(ALICE.peer) + " "),
    ]
    assert [verdict(book, forged) for forged in cases] == ["forged"] * len(cases)
    assert len(book) == 0


@pytest.mark.parametrize("lifetime", [0, -1, BINDING_TTL_MAX_S + 1000])
def test_a_binding_that_is_over_or_lives_too_long_does_not_hold(lifetime: int) -> None:
    binding = ALICE.binding(expires_at=int(NOW) + lifetime)
    book = Book()
    for _ in range(FORGERIES_MAX + 1):  # nobody is charged: it hangs on our clock
        assert verdict(book, ALICE.signed(binding=binding)) == "lapsed"


def test_a_replayed_advert_is_stale_and_so_is_an_older_one() -> None:
    book = Book()
    old, new = ALICE.signed(seq=1), ALICE.signed(seq=2)
    assert verdict(book, new) == "accepted"
    assert verdict(book, new, NOW + 5) == "stale"
    assert verdict(book, old, NOW + 5) == "stale"
    assert verdict(book, ALICE.signed(seq=3), NOW + 5) == "accepted"


def test_a_higher_binding_wins_over_a_higher_advert() -> None:
    book = Book()
    assert verdict(book, ALICE.signed(seq=1, binding=ALICE.binding(seq=2))) == "accepted"
    assert verdict(book, ALICE.signed(seq=9, binding=ALICE.binding(seq=1)), NOW + 5) == "stale"


def test_an_expired_advert_is_refused_and_a_held_one_vanishes() -> None:
    book = Book()
    assert verdict(book, ALICE.signed(), OVER) == "expired"
    assert verdict(book, ALICE.signed(), OVER - 1) == "accepted"
    assert book.get(ALICE.peer, OVER - 1) is not None
    assert book.get(ALICE.peer, OVER) is None
    # Of a host whose clock is not behind, an advert lives no longer than it says.
    assert (
        verdict(book, ALICE.signed(seq=2, issued_at=int(OVER), expires_at=int(OVER) + 90), OVER) == "accepted"
    )
    assert book.get(ALICE.peer, OVER + 89) is not None
    assert book.get(ALICE.peer, OVER + 90) is None
    book = Book()
    assert verdict(book, ALICE.signed(), OVER - 1) == "accepted"
    assert book.expire(OVER - 1) == []
    assert book.expire(OVER) == [ALICE.peer]
    assert len(book) == 0


@pytest.mark.parametrize("offset_s", [-90, -CLOCK_SKEW_S, 90, CLOCK_SKEW_S])
def test_a_clock_that_differs_within_bounds_hides_no_host(offset_s: int) -> None:
    book, theirs = Book(), int(NOW) + offset_s
    assert verdict(book, ALICE.signed(issued_at=theirs, expires_at=theirs + 90)) == "accepted"
    assert book.get(ALICE.peer, NOW + 60) is not None


def test_a_host_whose_clock_is_behind_withdraws_all_the_same() -> None:
    book, theirs = Book(), int(NOW) - 90
    assert verdict(book, ALICE.signed(seq=1, issued_at=theirs, expires_at=theirs + 90)) == "accepted"
    later = {"issued_at": theirs + 10, "expires_at": theirs + 10}
    assert verdict(book, ALICE.signed(seq=2, **later), NOW + 10) == "accepted"
    assert book.get(ALICE.peer, NOW + 10) is None


@pytest.mark.parametrize(
    ("ahead_s", "told_s"),
    [(86_400, 86_400), (90, 90), (1, 1), (0, 0), (-30, 0), (-45, 0), (-90, -45), (-86_400, -86_355)],
)
def test_the_current_advert_of_a_host_tells_by_how_much_its_clock_differs(ahead_s: int, told_s: int) -> None:
    advert = ALICE.advert(issued_at=int(NOW) + ahead_s, expires_at=int(NOW) + ahead_s + 90)
    assert advert.clock_offset_s(int(NOW)) == told_s


def test_an_advert_from_the_future_or_for_too_long_is_refused() -> None:
    late = {"issued_at": int(NOW) + CLOCK_SKEW_S + 2, "expires_at": int(NOW) + CLOCK_SKEW_S + 92}
    assert verdict(Book(), ALICE.signed(**late)) == "future"
    assert verdict(Book(), ALICE.signed(expires_at=int(NOW) + TTL_MAX_S + 2)) == "future"
    soon = {"issued_at": int(NOW) + CLOCK_SKEW_S, "expires_at": int(NOW) + CLOCK_SKEW_S + 90}
    assert verdict(Book(), ALICE.signed(**soon)) == "accepted"


def test_adverts_of_one_peer_come_no_closer_than_a_second() -> None:
    book = Book()
    assert verdict(book, ALICE.signed(seq=1)) == "accepted"
    assert verdict(book, ALICE.signed(seq=2), NOW + 0.5) == "too_often"
    assert verdict(book, ALICE.signed(seq=2), NOW + 1) == "accepted"


def test_a_clock_that_steps_back_silences_nobody() -> None:
    book = Book()
    assert verdict(book, ALICE.signed(seq=1, expires_at=int(WALL) + 8000), NOW + 3600) == "accepted"
    assert verdict(book, ALICE.signed(seq=2), NOW) == "accepted"
    assert verdict(book, Identity("bob").signed(), NOW) == "accepted"


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x80", b"x" * (ADVERT_MAX + 1)], ids=["empty", "junk", "map", "long"]
)
def test_what_is_no_advert_is_malformed(data: bytes) -> None:
    book = Book()
    assert book.offer_gossip(data, SOURCE, NOW) == ("malformed", None)
    assert book.counts["malformed"] == 1


def test_a_body_that_is_no_advert_is_malformed() -> None:
    signed = SignedAdvert(body=b"\x80", signature=bytes(64))
    assert verdict(Book(), signed) == "malformed"


def test_an_oversize_advert_is_neither_sealed_nor_read() -> None:
    addresses = tuple(Address(multiaddr=f"/dns4/{'x' * 140}/tcp/{port}") for port in range(8))
    with pytest.raises(ValueError, match="fewer models or addresses"):
        ALICE.signed(addresses=addresses)
    with pytest.raises(ProtocolError, match="1024 are allowed"):
        decode_gossip(bytes(ADVERT_MAX + 1))


# ---- withdrawing


def test_a_withdrawn_advert_is_gone_and_can_not_be_replayed() -> None:
    book = Book()
    first = ALICE.signed(seq=1)
    assert verdict(book, first) == "accepted"
    assert verdict(book, ALICE.signed(seq=2, **GONE), NOW + 0.3) == "accepted"
    assert book.get(ALICE.peer, NOW + 0.3) is None
    assert verdict(book, first, NOW + 30) == "stale"
    book.expire(NOW + 30)
    assert verdict(book, first, NOW + 30) == "stale"
    book.expire(OVER)
    assert verdict(book, first, OVER) == "expired"


def test_a_host_that_withdrew_may_come_back() -> None:
    book = Book()
    assert verdict(book, ALICE.signed(seq=1)) == "accepted"
    assert verdict(book, ALICE.signed(seq=2, **GONE), NOW + 0.1) == "accepted"
    assert verdict(book, ALICE.signed(seq=3), NOW + 2) == "accepted"
    assert book.get(ALICE.peer, NOW + 2) is not None


def test_only_the_host_itself_can_withdraw() -> None:
    book = Book()
    assert verdict(book, ALICE.signed(seq=1)) == "accepted"
    withdrawal = ALICE.advert(seq=2, **GONE)
    assert verdict(book, seal(withdrawal, MALLORY.sign)) == "forged"
    assert verdict(book, ALICE.signed(seq=0, **GONE)) == "expired"
    assert book.get(ALICE.peer, NOW) is not None


def test_withdrawing_again_and_again_is_not_even_verified() -> None:
    book = Book()
    assert verdict(book, ALICE.signed(seq=1)) == "accepted"
    results = [verdict(book, ALICE.signed(seq=seq, **GONE)) for seq in range(2, 9)]
    assert results == ["accepted", *["expired"] * 6]


# ---- answers to our own question


def test_an_answer_to_our_question_skips_the_rates_but_no_check() -> None:
    book = Book()
    signed = ALICE.signed(seq=1)
    for _ in range(2):
        assert book.offer(signed, ALICE.peer, NOW, asked=True)[0] == "accepted"
    assert book.offer(ALICE.signed(seq=2), ALICE.peer, NOW, asked=True)[0] == "accepted"
    assert book.offer(signed, ALICE.peer, NOW, asked=True)[0] == "stale"
    assert book.offer(ALICE.signed(seq=3, **GONE), ALICE.peer, NOW, asked=True)[0] == "expired"
    assert book.offer(seal(ALICE.advert(seq=4), MALLORY.sign), ALICE.peer, NOW, asked=True)[0] == "forged"


# ---- floods


def test_a_flood_of_strangers_is_cut_before_any_signature_and_leaves_room_for_other_sources() -> None:
    book = Book()
    share = int(STRANGERS_BURST * SOURCE_SHARE)
    results = [verdict(book, Identity(n).signed()) for n in range(share + 20)]
    assert results == ["accepted"] * share + ["rate"] * 20
    forged = seal(ALICE.advert(), MALLORY.sign)
    assert verdict(book, forged) == "rate"  # not "forged": nothing was verified
    assert verdict(book, ALICE.signed(), source=PeerId("an honest source")) == "accepted"


def test_the_rate_of_strangers_comes_back_with_time() -> None:
    sources = Sources()
    taken = sum(sources.admit(PeerId(f"source {n % 7}"), None, WALL) for n in range(2000))
    assert taken == STRANGERS_BURST
    later = sum(sources.admit(PeerId(f"source {n % 7}"), None, WALL + 2) for n in range(2000))
    assert later == 2 * STRANGERS_PER_S


def test_hosts_that_are_known_go_on_while_new_names_flood() -> None:
    """One connection that brings 32 made-up hosts a second hid 12 of 20 hosts that were there before."""
    book, hosts, flooders = (
        Book(checks=UNSIGNED),
        [Identity(f"host {number}") for number in range(20)],
        count(),
    )
    for host in hosts:
        book.offer_gossip(unsigned(host.peer, NOW), host.peer, NOW)
    for now in (NOW + 10, NOW + 20, NOW + 30, NOW + 40, NOW + 50, NOW + 60):
        flood(book, flooders, 320, now)
        if (now - NOW) % 30 == 0:
            said = [book.offer_gossip(unsigned(host.peer, now), host.peer, now)[0] for host in hosts]
            assert said == ["accepted"] * 20
    assert book.counts["rate"] > 500


def test_changes_of_a_known_host_in_quick_succession_count_as_a_stranger_s() -> None:
    book, flooders = Book(checks=UNSIGNED), count()
    book.offer_gossip(unsigned(ALICE.peer, NOW), ALICE.peer, NOW)
    flood(book, flooders, int(STRANGERS_BURST), NOW)
    for now, said in ((NOW + RENEWAL_AFTER_S / 2, "rate"), (NOW + RENEWAL_AFTER_S + 1, "accepted")):
        flood(book, flooders, int(STRANGERS_BURST), now)
        assert book.offer_gossip(unsigned(ALICE.peer, now), ALICE.peer, now)[0] == said


def flood(book: Book, numbers: Iterator[int], times: int, now: float) -> None:
    """Adverts of ever new peers, each by another author."""
    for number in islice(numbers, times):
        book.offer_gossip(unsigned(f"flooder {number}", now), PeerId(f"author {number}"), now)


UNSIGNED = AdvertChecks(verify=lambda _signed, _advert: True, is_bound=lambda _peer, _binding: True)


def unsigned(peer: object, now: float) -> bytes:
    """An advert of whomever, which lives for 90 s; for books that check no signature."""
    whose = PeerId(str(peer))
    advert = replace(ALICE.advert(), peer=whose, issued_at=int(now), expires_at=int(now) + 90, seq=int(now))
    return encode(SignedAdvert(body=encode(advert), signature=bytes(64)))


def test_a_privileged_peer_is_heard_during_a_flood() -> None:
    book = Book(privileged=lambda peer: peer == ALICE.peer)
    for number in range(int(STRANGERS_BURST)):
        verdict(book, Identity(number).signed())
    assert verdict(book, Identity("late").signed()) == "rate"
    assert verdict(book, ALICE.signed()) == "accepted"


def test_a_forger_is_muted_for_a_minute_and_its_victim_is_heard_from_others() -> None:
    book = Book()
    forged = [seal(ALICE.advert(seq=seq), MALLORY.sign) for seq in range(FORGERIES_MAX + 3)]
    results = [verdict(book, each, source=MALLORY.peer) for each in forged]
    assert results == ["forged"] * FORGERIES_MAX + ["muted"] * 3
    assert verdict(book, ALICE.signed(), source=MALLORY.peer) == "muted"
    assert verdict(book, ALICE.signed()) == "accepted"
    later = WALL + FORGERY_WINDOW_S + 2
    assert verdict(book, ALICE.signed(seq=2), later, MALLORY.peer) == "accepted"


def test_what_is_remembered_of_sources_is_bounded() -> None:
    sources, first = Sources(), PeerId("the first forger")
    for _ in range(FORGERIES_MAX):
        sources.charge(first, WALL)
    for number in range(SOURCES_MAX - 1):
        sources.charge(PeerId(f"source {number}"), WALL)
    assert sources.muted(first, WALL)
    sources.charge(PeerId("one too many"), WALL)
    assert not sources.muted(first, WALL)


# ---- a full book


def test_a_full_book_keeps_an_eighth_for_privileged_peers() -> None:
    trusted = {Identity(f"trusted {n}").peer for n in range(3)}
    book = Book(size_max=16, privileged=trusted.__contains__)
    assert [verdict(book, Identity(n).signed()) for n in range(16)] == ["accepted"] * 16
    assert len(book) == 14
    assert [verdict(book, Identity(f"trusted {n}").signed()) for n in range(3)] == ["accepted"] * 3
    assert len(book) == 16
    held = {entry.advert.peer for entry in book.live(NOW)}
    assert trusted <= held
    # Whoever is in may renew, and what expired makes room.
    assert verdict(book, Identity("trusted 0").signed(seq=2), NOW + 5) == "accepted"
    assert len(book) == 16
    later = {"issued_at": int(OVER) + 10, "expires_at": int(OVER) + 100}
    assert verdict(book, Identity("new").signed(**later), OVER + 11) == "accepted"
    assert len(book) == 1


def test_privileged_peers_keep_half_of_the_book_and_share_the_rest_with_others() -> None:
    trusted = [Identity(f"trusted {n}") for n in range(30)]
    known = {each.peer for each in trusted}
    book = Book(size_max=16, privileged=known.__contains__, origin_of=_from_one_place)
    assert [verdict(book, each.signed()) for each in trusted] == ["accepted"] * 30
    assert verdict(book, ALICE.signed()) == "accepted"
    held = {entry.advert.peer for entry in book.live(NOW)}
    assert len(held) == 16
    assert {each.peer for each in trusted[:8]} <= held
    assert ALICE.peer in held


def test_an_eighth_is_open_to_staked_hosts_whatever_those_hold_that_took_our_dials() -> None:
    dialled = [Identity(f"dialled {n}") for n in range(30)]
    staked = [Identity(f"staked {n}") for n in range(4)]
    book = Book(
        size_max=16,
        privileged={each.peer for each in dialled}.__contains__,
        staked={each.peer for each in staked}.__contains__,
        origin_of=_from_one_place,
    )
    for each in (*dialled, *staked):
        assert verdict(book, each.signed()) == "accepted"
    # More than its eighth a staked host shares with all others: here chance may take its place again.
    for n in range(100):
        verdict(book, Identity(n).signed())
    held = {entry.advert.peer for entry in book.live(NOW)}
    assert {each.peer for each in staked[:2]} <= held
    assert {each.peer for each in dialled[:8]} <= held
    assert len(held) == 16


def test_a_staked_host_is_heard_during_a_flood_and_counts_as_population() -> None:
    book = Book(staked=lambda peer: peer == ALICE.peer)
    while verdict(book, Identity(len(book)).signed()) != "rate":
        pass
    assert verdict(book, ALICE.signed()) == "accepted"
    assert book.population(NOW, MODEL) == 1


def test_who_listens_hears_of_what_is_believed_and_of_nothing_else() -> None:
    heard: list[tuple[int, int | None]] = []
    book = Book(believed=lambda advert, before: heard.append((advert.seq, before.seq if before else None)))
    first = ALICE.signed()
    assert verdict(book, first) == "accepted"
    assert verdict(book, replace(MALLORY.signed(), signature=bytes(64))) == "forged"
    assert verdict(book, first) == "stale"
    assert heard == [(1, None)]


def _from_one_place(_peer: PeerId) -> Origin:
    return Origin("one place", "one place")


@cache
def identity(name: object) -> Identity:
    return Identity(name)


@cache
def long_lived(name: object, at: str, seq: int) -> SignedAdvert:
    where = (Address(multiaddr=f"/ip4/{at}/tcp/4001"),)
    return identity(name).signed(addresses=where, seq=seq, expires_at=int(NOW) + 3600)


CHECKS = AdvertChecks()


class Crowd:
    """A book of 64 places, 8 of them for privileged peers; and where peers are connected from."""

    def __init__(self, seed: int = 1) -> None:
        self.seen: dict[PeerId, Origin] = {}
        draw = random.Random(seed).randrange
        self.book = Book(size_max=64, origin_of=self.seen.get, draw=draw, checks=CHECKS)

    def take(self, name: object, *, seen: str = "", at: str = "192.0.2.1", seq: int = 1) -> str:
        if seen:
            self.seen[identity(name).peer] = Origin(seen, seen)
        return self.book.offer(long_lived(name, at, seq), PeerId(f"source {name}"), NOW, asked=True)[0]

    def holds(self, name: object) -> bool:
        return self.book.get(identity(name).peer, NOW) is not None

    def sampled(self, name: object, count: int = 32) -> bool:
        return identity(name).peer in {entry.advert.peer for entry in self.book.sample(count, NOW, MODEL)}


def test_a_sample_is_of_the_book_as_it_is_now() -> None:
    crowd = Crowd()
    for name in ("first", "second"):
        assert not crowd.sampled(name)
        crowd.take(name)
        assert crowd.sampled(name)
    crowd.book.forget(identity("first").peer)
    assert not crowd.sampled("first")
    assert crowd.sampled("second")
    later = NOW + 3600 + CLOCK_SKEW_S
    assert crowd.book.sample(9, later, MODEL) == []
    assert [entry.advert.peer for entry in crowd.book.sample(9, NOW, MODEL)] == [identity("second").peer]
    assert crowd.book.sample(9, NOW, OTHER_MODEL) == []


def test_a_host_that_joins_late_has_a_place_in_a_book_full_of_made_up_adverts() -> None:
    crowd = Crowd()
    for number in range(70):
        assert crowd.take(number, at=f"{20 + number}.1.1.1") == "accepted"
    assert len(crowd.book) == 56
    assert crowd.take("late", seen="203.0.113.0/24") == "accepted"
    for number in range(70, 140):
        crowd.take(number, at=f"{20 + number}.1.1.1")
    assert crowd.holds("late")
    assert crowd.sampled("late", count=2)
    assert len(crowd.book) == 56


def test_hosts_of_ten_prefixes_cannot_crowd_out_one_of_another() -> None:
    crowd = Crowd()
    for number in range(200):
        crowd.take(number, seen=f"prefix {number % 10}")
    crowd.take("late", seen="elsewhere")
    for number in range(200, 300):
        crowd.take(number, seen=f"prefix {number % 10}")
    assert crowd.holds("late")
    assert all(crowd.sampled("late", count=11) for _ in range(20))


def test_among_those_nobody_has_met_chance_decides_and_not_who_came_first() -> None:
    held = 0
    for seed in range(20):
        crowd = Crowd(seed)
        for number in range(60):
            crowd.take(number, at=f"{20 + number}.1.1.1")
        assert crowd.take("late", at="9.9.9.9") == "accepted"
        assert crowd.holds("late")
        for number in range(60, 90):
            crowd.take(number, at=f"{20 + number}.1.1.1")
        held += crowd.holds("late")
    assert 4 <= held <= 19  # 30 replacements in 56 places: about six of ten stay


def test_a_prefix_that_many_claim_has_one_share_of_those_nobody_has_met() -> None:
    crowd = Crowd()
    for number in range(100):
        crowd.take(number, at="9.9.9.9")
    crowd.take("late", at="8.8.8.8")
    for number in range(100, 200):
        crowd.take(number, at="9.9.9.9")
    assert crowd.holds("late")


def test_a_host_that_is_met_later_counts_where_it_was_seen() -> None:
    crowd = Crowd()
    crowd.take("host", at="9.9.9.9")
    for number in range(100):
        crowd.take(number, at=f"{20 + number}.1.1.1")
    crowd.take("host", seen="elsewhere", seq=2)
    for number in range(100, 160):
        crowd.take(number, at=f"{20 + number}.1.1.1")
    assert crowd.holds("host")
    assert len(crowd.book) == 56


def test_connected_hosts_are_heard_while_strangers_use_up_their_rate() -> None:
    book = Book(origin_of=lambda peer: Origin("a", "a") if peer == ALICE.peer else None)
    for number in range(int(STRANGERS_BURST)):
        verdict(book, Identity(number).signed(), source=PeerId(f"source {number % 4}"))
    assert verdict(book, Identity("late").signed(), source=PeerId("another")) == "rate"
    assert verdict(book, ALICE.signed(), source=PeerId("another")) == "accepted"


def test_connected_hosts_of_one_origin_have_a_rate_together() -> None:
    sources, seen = Sources(), Origin("a", "a")
    taken = sum(sources.admit(PeerId("one source"), seen, WALL) for _ in range(1000))
    assert taken == SEEN_BURST + STRANGERS_BURST * SOURCE_SHARE


def test_a_sample_takes_turns_between_hosts_that_were_met_and_others() -> None:
    crowd = Crowd()
    for number in range(20):
        crowd.take(number, seen="one place")
    for number in range(20, 40):
        crowd.take(number, at=f"{number}.1.1.1")
    kinds = [entry.origin.wide for entry in crowd.book.sample(8, NOW)]
    assert kinds == ["one place", UNSEEN] * 4
    assert len(crowd.book.sample(64, NOW)) == 40
    assert crowd.book.sample(8, NOW, OTHER_MODEL) == []


def test_population_counts_privileged_peers_only() -> None:
    trusted = Identity("trusted")
    book = Book(privileged=lambda peer: peer == trusted.peer)
    for number in range(20):
        verdict(book, Identity(number).signed())
    assert book.population(NOW, MODEL) == 0
    verdict(book, trusted.signed())
    assert book.population(NOW, MODEL) == 1
    assert book.population(NOW, OTHER_MODEL) == 0
    assert book.population(OVER, MODEL) == 0


def test_a_forgotten_peer_is_gone() -> None:
    book = Book()
    verdict(book, ALICE.signed(offers=(offer(), offer(OTHER_MODEL))))
    book.forget(ALICE.peer)
    book.forget(ALICE.peer)
    assert book.get(ALICE.peer, NOW) is None


# ---- many books with one set of checks, as in a simulator


def test_books_that_share_their_checks_parse_and_verify_an_advert_once() -> None:
    parsed, verified, bound = cache(parse), cache(verify), cache(is_bound)
    checks = AdvertChecks(decode=cache(decode_gossip), parse=parsed, verify=verified, is_bound=bound)
    books = [Book(checks=checks) for _ in range(50)]
    good = ALICE.signed()
    forged = replace(good, signature=bytes(64))
    assert {verdict(book, forged) for book in books} == {"forged"}
    assert {verdict(book, good) for book in books} == {"accepted"}
    assert (parsed.cache_info().misses, verified.cache_info().misses) == (2, 2)
    assert bound.cache_info().misses == 1


def test_a_binding_is_checked_once_and_again_when_it_changes() -> None:
    asked: list[int] = []

    def counted(peer: PeerId, binding: Binding) -> bool:
        asked.append(binding.seq)
        return is_bound(peer, binding)

    book = Book(checks=AdvertChecks(is_bound=counted))
    for seq in range(1, 4):
        assert verdict(book, ALICE.signed(seq=seq), now=NOW + 2 * seq) == "accepted"
    assert asked == [1]
    assert verdict(book, ALICE.signed(seq=4, binding=ALICE.binding(seq=2)), now=NOW + 20) == "accepted"
    assert asked == [1, 2]
    stolen = replace(ALICE.binding(seq=3), wallet=MALLORY.wallet)
    assert verdict(book, ALICE.signed(seq=5, binding=stolen), now=NOW + 30) == "forged"


def test_a_binding_that_is_over_has_lapsed_though_its_signatures_are_known_to_hold() -> None:
    checks = AdvertChecks(verify=cache(verify))
    binding = ALICE.binding(expires_at=int(NOW) + 60)
    signed = ALICE.signed(binding=binding)
    assert verdict(Book(checks=checks), signed) == "accepted"
    assert verdict(Book(checks=checks), signed, now=NOW + 61) == "lapsed"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "offer", "offer", "meet", "forget", "expire", "trust"]),
        st.integers(0, 60),
        st.integers(0, 5),
        st.integers(1, 3),
    ),
    max_size=120,
)


def check_places(steps: list[tuple[str, int, int, int]]) -> None:
    """A book of 16 places, of which 2 are for privileged peers."""
    seen: dict[PeerId, Origin] = {}
    trusted: set[PeerId] = set()
    draw = random.Random(1).randrange
    book = Book(size_max=16, privileged=trusted.__contains__, origin_of=seen.get, draw=draw, checks=CHECKS)
    for what, number, where, seq in steps:
        peer = identity(number).peer
        match what:
            case "offer":
                signed = long_lived(number, f"{20 + where}.1.1.1", seq)
                book.offer(signed, PeerId("source"), NOW, asked=True)
            case "meet":
                seen[peer] = Origin(f"origin {where}", f"origin {where}")
            case "forget":
                book.forget(peer)
            case "trust":
                trusted.add(peer)
            case _:
                book.expire(NOW + 4000)
        live = list(book.live(NOW))
        assert len(book) == len(live) <= 16
        assert sum(entry.advert.peer not in trusted for entry in live) <= 14
        sample = book.sample(16, NOW)
        assert len({entry.advert.peer for entry in sample}) == len(sample) == len(live)


@settings(max_examples=20)
@given(STEPS)
def test_no_sequence_puts_a_book_over_its_places(steps: list[tuple[str, int, int, int]]) -> None:
    check_places(steps)


@pytest.mark.long
@settings(max_examples=10_000, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_ten_thousand_sequences_neither(steps: list[tuple[str, int, int, int]]) -> None:
    check_places(steps)
