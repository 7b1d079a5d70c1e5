"""Whom a host takes, and who gives way, as a table: no stream, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from p2pnode.host.admission import REST_S, Admission
from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.protocols.inference.messages import Refuse
from p2pnode.shares import Origin, origin_of

MODEL, OTHER = ModelId(bytes(32)), ModelId(b"\1" * 32)
LIMITS = replace(DEFAULT_LIMITS, sessions_max=3, sessions_per_peer=2)


@dataclass(eq=False)
class Stand:
    """A place."""

    peer: PeerId
    rests_since: float | None = 0.0
    is_yielding: bool = False
    paid: bool = False
    host: str = "127.0.0.1"

    @property
    def origin(self) -> Origin:
        return origin_of(self.host, self.peer)


def admission(*places: Stand) -> Admission[Stand]:
    made: Admission[Stand] = Admission(LIMITS, lambda: {MODEL: "small"})
    for place in places:
        made.enter(place)
    return made


def stands(*peers: str, rests_since: float | None = 0.0) -> list[Stand]:
    return [Stand(PeerId(peer), rests_since) for peer in peers]


def code(decision: Refuse | Stand | None) -> str:
    assert isinstance(decision, Refuse)
    return decision.code


def test_a_model_is_refused_that_is_unknown_or_served_by_a_host_that_stops() -> None:
    subject = admission()
    assert subject.refuses_model(MODEL) is None
    assert "small" in str(subject.refuses_model(OTHER))
    subject.is_draining = True
    assert code(subject.refuses_model(MODEL)) == code(subject.refuses_all()) == "shutting_down"


def test_nobody_gives_way_while_there_is_room() -> None:
    *_, newcomer = places = stands("a", "b", "c")
    assert admission(*places).decide_open(newcomer, 100.0) is None


def test_the_one_that_rests_longest_gives_way_when_all_places_are_taken() -> None:
    places = [*stands("a", rests_since=20.0), *stands("b", rests_since=10.0), *stands("c", rests_since=None)]
    (newcomer,) = stands("d", rests_since=100.0)
    subject = admission(*places, newcomer)
    assert subject.decide_open(newcomer, 100.0) is places[1]
    assert subject.decide_resume(newcomer, 100.0) is places[1]


def test_the_peer_with_the_most_sessions_gives_way_before_one_that_rests_longer() -> None:
    places = stands("a", "b", "b")
    places[1].rests_since = 50.0
    places[2].rests_since = 60.0
    (newcomer,) = stands("d")
    assert admission(*places, newcomer).decide_open(newcomer, 100.0) is places[1]


def test_whoever_is_served_or_has_hardly_rested_keeps_its_place() -> None:
    places = [*stands("a", "b", rests_since=None), *stands("c", rests_since=100.0)]
    (newcomer,) = stands("d")
    subject = admission(*places, newcomer)
    assert code(subject.decide_open(newcomer, 100.0 + REST_S - 0.1)) == "capacity"
    assert subject.decide_open(newcomer, 100.0 + REST_S) is places[2]


def test_a_place_that_was_told_to_give_way_counts_as_free() -> None:
    places = stands("a", "b", "c")
    places[0].is_yielding = True
    (newcomer,) = stands("d", rests_since=None)
    assert admission(*places, newcomer).decide_open(newcomer, 100.0) is None


@pytest.mark.parametrize("open_already", [1, 2])
def test_a_peer_opens_so_many_sessions_and_may_resume_beyond_them(open_already: int) -> None:
    places = stands(*["a"] * open_already)
    (newcomer,) = stands("a")
    subject = admission(*places, newcomer)
    refused = isinstance(subject.decide_open(newcomer, 100.0), Refuse)
    assert refused == (open_already == LIMITS.sessions_per_peer)
    assert subject.decide_resume(newcomer, 100.0) is None


def test_whoever_left_is_forgotten() -> None:
    places = stands("a", "a")
    subject = admission(*places)
    for place in places:
        subject.leave(place)
    (newcomer,) = stands("a")
    subject.enter(newcomer)
    assert subject.places == {newcomer}
    assert subject.decide_open(newcomer, 0.0) is None


def crowd(count: int, *, rests_since: float | None, paid: bool = False) -> list[Stand]:
    """Peers of one prefix."""
    return [Stand(PeerId(f"of the crowd {i}"), rests_since, paid=paid, host="8.8.8.8") for i in range(count)]


def elsewhere(number: int) -> Stand:
    return Stand(PeerId(f"elsewhere {number}"), host=f"9.9.{number}.1")


def test_one_prefix_that_asks_without_end_leaves_room_for_others() -> None:
    places = crowd(LIMITS.sessions_max, rests_since=None)
    newcomer = elsewhere(1)
    victim = admission(*places, newcomer).decide_open(newcomer, 0.0)
    assert victim in places  # at the end of its turn


def test_of_a_prefix_with_more_than_its_share_a_resting_session_goes_first() -> None:
    places = crowd(LIMITS.sessions_max, rests_since=None)
    places[1].rests_since = 99.9
    newcomer = elsewhere(1)
    assert admission(*places, newcomer).decide_open(newcomer, 100.0) is places[1]


def test_a_session_that_pays_is_never_ended_in_a_turn() -> None:
    places = crowd(LIMITS.sessions_max, rests_since=None, paid=True)
    newcomer = elsewhere(1)
    assert code(admission(*places, newcomer).decide_open(newcomer, 0.0)) == "capacity"


def test_a_prefix_at_its_share_gets_no_more_at_the_cost_of_others() -> None:
    places = [*crowd(2, rests_since=None), elsewhere(1)]
    newcomer = Stand(PeerId("one more of the crowd"), host="8.8.8.9")
    assert code(admission(*places, newcomer).decide_open(newcomer, 100.0)) == "capacity"
    assert admission(*places, elsewhere(2)).decide_open(elsewhere(2), 100.0) is not None


def test_ever_new_prefixes_of_one_ipv6_network_take_no_resting_session_of_others() -> None:
    several = [Stand(PeerId(f"crowd {i}"), rests_since=None, host=f"2a01:4f8:{i}::1") for i in range(3)]
    *places, newcomer = several[0], several[1], elsewhere(1), several[2]
    assert code(admission(*places, newcomer).decide_open(newcomer, 100.0)) == "capacity"


def test_the_places_of_one_peer_are_known() -> None:
    places = stands("a", "a", "b")
    subject = admission(*places)
    assert list(subject.places_of(PeerId("a"))) == places[:2]
    assert not list(subject.places_of(PeerId("c")))
