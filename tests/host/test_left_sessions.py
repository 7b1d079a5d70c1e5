"""Nobody fills a host with sessions that are left: the one that was left first gives way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.host.left_sessions import LeftSession, LeftSessions
from p2pnode.ids import SessionId
from p2pnode.payments.settlement_policy import LEFT_MAX, LEFT_PER_ORIGIN, LEFT_PER_PAYER


def left(number: int, *, payer: int = 0, origin: str = "", until: int = 100) -> LeftSession:
    return LeftSession(
        session=session(number), payer=payer.to_bytes(20, "big"), origin=origin or str(number), until=until
    )


def session(number: int) -> SessionId:
    return SessionId(number.to_bytes(32, "big"))


def test_the_first_that_a_payer_left_gives_way_to_its_seventeenth() -> None:
    kept = LeftSessions()
    for number in range(LEFT_PER_PAYER):
        assert kept.add(left(number)) == []
    assert kept.add(left(99, payer=1)) == []  # another payer's does not count
    assert kept.add(left(LEFT_PER_PAYER)) == [session(0)]
    assert session(0) not in kept
    assert len(kept) == LEFT_PER_PAYER + 1


def test_a_thousand_of_one_payer_leave_it_sixteen_and_nobody_else_fewer() -> None:
    kept = LeftSessions()
    others = [left(5000 + number, payer=1 + number) for number in range(100)]
    for each in others:
        kept.add(each)
    victims = [victim for number in range(1000) for victim in kept.add(left(number))]
    assert victims == [session(number) for number in range(1000 - LEFT_PER_PAYER)]
    assert all(each.session in kept for each in others)


def test_payers_of_one_origin_share_its_places_and_all_origins_those_of_the_host() -> None:
    kept = LeftSessions()
    for number in range(LEFT_PER_ORIGIN):
        assert kept.add(left(number, payer=number, origin="here")) == []
    assert kept.add(left(900, payer=900, origin="here")) == [session(0)]
    for number in range(1000, 1000 + LEFT_MAX - LEFT_PER_ORIGIN):
        assert kept.add(left(number, payer=number)) == []
    assert len(kept) == LEFT_MAX
    assert kept.add(left(4000, payer=4000)) == [session(1)]


def test_one_that_is_left_again_is_the_last_and_one_that_is_gone_leaves_room() -> None:
    kept = LeftSessions()
    for number in range(LEFT_PER_PAYER):
        kept.add(left(number))
    assert kept.add(left(0)) == []
    assert kept.add(left(77)) == [session(1)]
    kept.remove(session(2))
    kept.remove(session(2))
    assert kept.add(left(78)) == []


def test_those_whose_time_is_up_are_taken_out_once() -> None:
    kept = LeftSessions()
    kept.add(left(1, until=10))
    kept.add(left(2, until=20))
    kept.add(left(3, until=15))
    kept.add(left(2, until=30))  # left anew, for longer
    kept.remove(session(3))
    taken = [kept.take_expired(now) for now in (9, 10, 10, 20, 30)]
    assert taken == [[], [session(1)], [], [], [session(2)]]
    assert len(kept) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 2), st.integers(0, 2), st.integers(0, 20)), max_size=120
    )
)
def test_what_is_kept_is_what_was_added_and_neither_removed_nor_expired_nor_given_way(
    steps: list[tuple[int, int, int, int]],
) -> None:
    kept, model = LeftSessions(), dict[SessionId, LeftSession]()
    for now, (number, payer, origin, for_s) in enumerate(steps):
        over = {each.session for each in model.values() if each.until <= now}
        assert set(kept.take_expired(now)) == over
        for each in over:
            del model[each]
        if not for_s:
            kept.remove(session(number))
            model.pop(session(number), None)
            continue
        added = left(number, payer=payer, origin=f"origin {origin}", until=now + for_s)
        model.pop(added.session, None)
        model[added.session] = added
        for victim in kept.add(added):
            del model[victim]
        assert sum(each.payer == added.payer for each in model.values()) <= LEFT_PER_PAYER
    assert list(kept) == list(model)
