"""A search spends few dials, on hosts and not on victims, and always ends exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.ids import PeerId
from p2pnode.protocols.events import Closed, Command, Effect, Received, SetTimer, TimerFired
from p2pnode.protocols.lookup.messages import (
    Contact,
    Contacted,
    Exhausted,
    Found,
    Hint,
    Source,
    SourceDone,
    provider_key,
)
from p2pnode.protocols.lookup.search import ADDRESSES_MAX, SLOW_S, Search
from tests.memory import held_bytes
from tests.protocols.support import MODEL, OTHER_MODEL, Identity, emitted, offer, only

HOSTS = [Identity(f"host {number}") for number in range(30)]
SELF = PeerId("self")


class Hunt:
    """A search and what it has asked for so far."""

    def __init__(self, *sources: Source, **options: Any) -> None:
        options = {"self_peer": SELF, **options}
        self.search = Search(MODEL, frozenset(sources), **options)
        self.contacts: list[Contact] = []
        self.found: list[PeerId] = []
        self.exhausted: list[Exhausted] = []
        self.started = self.note(self.search.start(0.0))

    def say(self, value: Any) -> None:
        self.note(self.search.handle(Command(value), 0.0))

    def hint(self, number: int, source: Source = "dht", *addresses: str, local: bool = False) -> None:
        self.say(Hint(peer=HOSTS[number].peer, addresses=addresses, source=source, local=local))

    def named(self, number: int, source: Source, *tellers: str) -> None:
        self.say(Hint(peer=HOSTS[number].peer, addresses=(), source=source, tellers=frozenset(tellers)))

    def answer(self, number: int, **changes: Any) -> None:
        self.say(Contacted(HOSTS[number].peer, HOSTS[number].advert(**changes)))

    def fail(self, number: int, why: str = "") -> None:
        self.say(Contacted(HOSTS[number].peer, None, why))

    def note(self, effects: Sequence[Effect]) -> Sequence[Effect]:
        for value in emitted(effects):
            match value:
                case Contact():
                    self.contacts.append(value)
                case Found(advert=advert):
                    self.found.append(advert.peer)
                case Exhausted():
                    self.exhausted.append(value)
                case _:
                    pytest.fail(f"a search has no business with {value!r}")
        return effects

    @property
    def dialled(self) -> list[int]:
        return [next(n for n, host in enumerate(HOSTS) if host.peer == each.peer) for each in self.contacts]


def test_a_hint_is_dialled_and_a_host_that_proves_itself_is_found() -> None:
    hunt = Hunt("dht")
    hunt.hint(0, "dht", "/ip4/192.0.2.1/tcp/1")
    assert hunt.contacts == [Contact(HOSTS[0].peer, ("/ip4/192.0.2.1/tcp/1",))]
    hunt.answer(0)
    assert hunt.found == [HOSTS[0].peer]
    assert not hunt.exhausted
    hunt.say(SourceDone("dht"))
    assert hunt.exhausted == [Exhausted({})]


def test_a_search_without_a_source_ends_at_once() -> None:
    assert Hunt().exhausted == [Exhausted({})]


def test_the_deadline_is_set_and_ends_the_search_with_a_reason_for_each_dial() -> None:
    hunt = Hunt("dht", deadline_s=7.0)
    assert only(SetTimer, hunt.started) == SetTimer("deadline", 7.0)
    hunt.hint(0)
    hunt.note(hunt.search.handle(TimerFired("deadline"), 7.0))
    assert hunt.exhausted == [
        Exhausted({HOSTS[0].peer: "no answer in time: not running, or behind a router or firewall"})
    ]
    hunt.answer(0)  # too late
    assert hunt.found == []
    assert len(hunt.exhausted) == 1


def test_no_more_dials_at_once_than_allowed() -> None:
    hunt = Hunt("dht", dials_at_once=2)
    for number in range(5):
        hunt.hint(number)
    assert hunt.dialled == [0, 1]
    hunt.fail(1)
    assert hunt.dialled == [0, 1, 2]


def test_a_dial_that_is_slow_holds_up_no_other_and_may_still_succeed() -> None:
    hunt = Hunt("dht", dials_at_once=2)
    for number in range(5):
        hunt.hint(number)
    assert hunt.dialled == [0, 1]
    hunt.note(hunt.search.handle(TimerFired("slow"), SLOW_S))
    assert hunt.dialled == [0, 1, 2, 3]
    hunt.answer(0)
    assert hunt.found == [HOSTS[0].peer]
    assert not hunt.exhausted


def test_the_timer_for_slow_dials_is_set_while_others_wait() -> None:
    hunt = Hunt("dht", dials_at_once=1)
    hunt.hint(0)
    effects = hunt.search.handle(Command(Hint(peer=HOSTS[1].peer, addresses=(), source="dht")), 0.0)
    assert SetTimer("slow", SLOW_S) in effects


def test_no_more_dials_in_all_than_allowed() -> None:
    hunt = Hunt("dht", dials_max=3, dials_at_once=9)
    for number in range(9):
        hunt.hint(number)
    assert hunt.dialled == [0, 1, 2]
    for number in range(3):
        hunt.fail(number, "refused")
    assert len(hunt.exhausted) == 1
    assert len(hunt.exhausted[0].failures) == 3


def test_one_source_gets_a_quarter_of_the_dials_while_another_is_still_to_speak() -> None:
    hunt = Hunt("dht", "mdns", dials_max=8, dials_at_once=9)
    for number in range(9):
        hunt.hint(number)
    assert hunt.dialled == [0, 1]
    hunt.hint(20, "mdns")
    assert hunt.dialled == [0, 1, 20]
    hunt.say(SourceDone("mdns"))  # nobody else is left: the hints that waited have their turn
    assert hunt.dialled == [0, 1, 20, 2, 3, 4, 5, 6]


def test_those_whom_most_origins_name_are_dialled_first_and_local_ones_before() -> None:
    hunt = Hunt("dht", "exchange", dials_at_once=1)
    hunt.hint(0)
    hunt.named(1, "exchange", "liar")
    hunt.named(2, "exchange", "a")
    hunt.named(2, "dht", "b", "c")
    hunt.named(3, "dht", "a", "b")
    hunt.hint(4, "exchange", local=True)
    for number in (0, 4, 2, 3, 1):
        assert hunt.dialled[-1] == number
        hunt.fail(number)


def test_one_origin_that_names_a_crowd_leaves_others_hints_their_places() -> None:
    hunt = Hunt("exchange", "dht", dials_max=8, dials_at_once=1)
    hunt.hint(0)
    for number in range(1, 20):
        hunt.named(number, "exchange", "liar")
    hunt.named(20, "exchange", "honest")
    hunt.named(20, "dht", "another")
    hunt.fail(0)
    assert hunt.dialled == [0, 20]


def test_hints_that_had_their_turn_leave_their_places_to_others_of_the_source() -> None:
    hunt = Hunt("bootstrap", dials_max=2, dials_at_once=1)
    for number in range(4):  # the first is dialled, two wait, and there is no place for the last
        hunt.hint(number, "bootstrap", local=True)
    hunt.fail(0)
    hunt.hint(4, "bootstrap", local=True)
    hunt.hint(5, "bootstrap", local=True)
    for number in (1, 2, 4):
        hunt.fail(number)
    assert hunt.dialled == [0, 1, 2, 4]


def test_a_peer_that_is_connected_costs_no_dial() -> None:
    hunt = Hunt("bootstrap", "dht", dials_max=4, dials_at_once=9)
    for number in range(3):
        hunt.hint(number, "bootstrap", local=True)
    hunt.say(SourceDone("bootstrap"))
    for number in range(10, 20):
        hunt.hint(number)
    hunt.say(SourceDone("dht"))
    assert hunt.dialled == [0, 1, 2, 10, 11, 12, 13]


def test_stale_draining_and_lying_hosts_are_not_found_and_not_dialled_twice() -> None:
    hunt = Hunt("dht")
    for number in range(4):
        hunt.hint(number)
    hunt.answer(0, offers=(offer(OTHER_MODEL),))
    hunt.answer(1, draining=True)
    hunt.hint(4)
    hunt.answer(4, offers=())
    hunt.say(Contacted(HOSTS[2].peer, HOSTS[9].advert()))
    hunt.fail(3)
    for number in range(3):
        hunt.hint(number, "dht", "/ip4/192.0.2.9/tcp/9")
    hunt.say(SourceDone("dht"))
    assert hunt.found == []
    assert hunt.dialled == [0, 1, 2, 3, 4]
    (exhausted,) = hunt.exhausted
    assert [exhausted.failures[HOSTS[n].peer] for n in (4, 0, 1, 2, 3)] == [
        "serves no model now",
        "serves other models, and not this one",
        "draining",
        "answered with another peer's advert",
        "no advert",
    ]


def test_private_addresses_are_dialled_only_when_a_local_source_names_them() -> None:
    hunt = Hunt("dht", "mdns", usable=lambda address, local: local or not address.startswith("/ip4/10."))
    hunt.hint(0, "dht", "/ip4/10.0.0.1/tcp/1")
    hunt.hint(1, "dht", "/ip4/10.0.0.1/tcp/1", "/ip4/192.0.2.1/tcp/1")
    hunt.hint(2, "mdns", "/ip4/10.0.0.2/tcp/1", local=True)
    assert [each.addresses for each in hunt.contacts] == [("/ip4/192.0.2.1/tcp/1",), ("/ip4/10.0.0.2/tcp/1",)]
    hunt.hint(0, "dht", "/ip4/192.0.2.5/tcp/1")  # a better hint makes up for it
    hunt.answer(0)
    hunt.note(hunt.search.handle(TimerFired("deadline"), 9.0))
    assert HOSTS[0].peer not in hunt.exhausted[0].failures


@pytest.mark.parametrize("first", ["dialled", "heard of"])
def test_what_became_of_a_dial_is_told_whatever_else_is_heard_of_the_peer(first: str) -> None:
    hunt = Hunt("dht", "mdns", usable=lambda address, local: local or not address.startswith("/ip4/10."))
    if first == "heard of":
        hunt.hint(0, "dht", "/ip4/10.0.0.1/tcp/1")
    hunt.hint(0, "mdns", "/ip4/10.0.0.1/tcp/1", local=True)
    hunt.hint(0, "dht", "/ip4/10.0.0.1/tcp/1")
    hunt.fail(0, "connection refused")
    hunt.hint(0, "dht", "/ip4/10.0.0.1/tcp/1")
    hunt.note(hunt.search.handle(TimerFired("deadline"), 9.0))
    assert hunt.exhausted[0].failures == {HOSTS[0].peer: "connection refused"}


def test_a_source_that_lies_about_addresses_can_not_hide_a_host() -> None:
    hunt = Hunt("dht", "book")
    hunt.hint(0, "dht", "/ip4/192.0.2.66/tcp/6")
    hunt.hint(0, "book", "/ip4/192.0.2.1/tcp/1")
    hunt.fail(0, "refused")
    assert [each.addresses for each in hunt.contacts] == [
        ("/ip4/192.0.2.66/tcp/6",),
        ("/ip4/192.0.2.1/tcp/1",),
    ]
    hunt.answer(0)
    assert hunt.found == [HOSTS[0].peer]
    hunt.note(hunt.search.handle(TimerFired("deadline"), 9.0))
    assert hunt.exhausted == [Exhausted({})]


def test_the_same_hint_again_is_not_dialled_again() -> None:
    hunt = Hunt("dht", "book")
    for source in ("dht", "book"):
        hunt.hint(0, source, "/ip4/192.0.2.1/tcp/1")
    hunt.fail(0)
    hunt.hint(0, "book", "/ip4/192.0.2.1/tcp/1")
    hunt.hint(0, "book")
    assert hunt.dialled == [0]


def test_we_never_dial_ourselves() -> None:
    hunt = Hunt("dht")
    hunt.say(Hint(peer=SELF, addresses=(), source="dht"))
    assert hunt.contacts == []


def test_an_answer_nobody_asked_for_is_ignored() -> None:
    hunt = Hunt("dht")
    hunt.answer(0)
    hunt.hint(1)
    hunt.answer(1)
    hunt.answer(1)
    assert hunt.found == [HOSTS[1].peer]


def test_a_flood_of_hints_is_bounded() -> None:
    hunt = Hunt("dht", "mdns", usable=lambda address, _local: address != "private")
    many = tuple(f"/ip4/192.0.2.1/tcp/{port}" for port in range(1, 500))
    for number in range(500):
        peer = PeerId(f"peer {number}")
        hunt.say(Hint(peer=peer, addresses=many, source="dht"))
        hunt.say(Hint(peer=PeerId(f"private {number}"), addresses=("private",), source="dht"))
    assert held_bytes(hunt.search) < 25_000
    assert all(len(contact.addresses) == ADDRESSES_MAX for contact in hunt.contacts)


def test_streams_mean_nothing_to_a_search() -> None:
    hunt = Hunt("dht")
    assert hunt.search.handle(Received(SELF, 0, "?"), 0.0) == []
    assert hunt.search.handle(Closed(SELF, 0), 0.0) == []


def test_provider_keys_differ_by_model_and_from_the_model() -> None:
    assert len({provider_key(MODEL), provider_key(OTHER_MODEL), bytes(MODEL)}) == 3


sources: list[Source] = ["book", "dht", "mdns"]
actions = st.one_of(
    st.tuples(st.just("hint"), st.integers(0, 8), st.sampled_from(sources), st.integers(0, 3)),
    st.tuples(st.just("done"), st.just(0), st.sampled_from(sources), st.just(0)),
    st.tuples(st.sampled_from(["answer", "fail"]), st.integers(0, 8), st.just("dht"), st.just(0)),
)


@settings(max_examples=200)
@given(st.lists(actions, max_size=60), st.integers(1, 6), st.integers(1, 3))
def test_whatever_happens_caps_hold_and_the_search_ends_exactly_once(
    steps: list[tuple[str, int, Source, int]], dials_max: int, at_once: int
) -> None:
    hunt = Hunt("book", "dht", "mdns", dials_max=dials_max, dials_at_once=at_once)
    open_dials: set[PeerId] = set()
    seen = 0
    for kind, number, source, address in steps:
        peer = HOSTS[number].peer
        match kind:
            case "hint":
                hunt.hint(number, source, *[f"/ip4/192.0.2.{address}/tcp/1"][: address and 1])
            case "done":
                hunt.say(SourceDone(source))
            case "answer":
                hunt.answer(number)
                open_dials.discard(peer)
            case _:
                hunt.fail(number)
                open_dials.discard(peer)
        open_dials.update(each.peer for each in hunt.contacts[seen:])
        seen = len(hunt.contacts)
        assert len(open_dials) <= at_once or hunt.exhausted
        assert seen <= dials_max
    for source in sources:
        hunt.say(SourceDone(source))
    hunt.note(hunt.search.handle(TimerFired("deadline"), 10.0))
    assert len(hunt.exhausted) == 1
    assert len(hunt.found) == len(set(hunt.found))
    assert not set(hunt.exhausted[0].failures) & set(hunt.found)
