"""What a host may lose is capped per session, payer, network prefix and in all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.ids import SessionId
from p2pnode.payments.exposure import LOSS_REMEMBERED_S, Exposure, ExposureLimits, prefix_of

LIMITS = ExposureLimits(session=50, payer=100, prefix=200, all=1000)


def session(number: int) -> SessionId:
    return SessionId(number.to_bytes(32, "big"))


def payer(number: int) -> bytes:
    return number.to_bytes(20, "big")


def test_a_thousand_fresh_payers_of_one_network_take_no_more_than_its_limits() -> None:
    exposure = Exposure(LIMITS)
    lost = 0
    for number in range(1000):
        if not exposure.reserve(session(number), payer(number), "/ip4/10.1.2.3/tcp/1", 10, now=0.0):
            exposure.lost(session(number), 10, now=0.0)
            lost += 10
    assert lost == LIMITS.prefix == exposure.units


def test_a_thousand_fresh_payers_of_a_thousand_networks_take_no_more_than_the_host_allows() -> None:
    exposure = Exposure(LIMITS)
    taken = 0
    for number in range(1000):
        address = f"/ip4/10.{number // 250}.{number % 250}.3/tcp/1"
        taken += 10 * (not exposure.reserve(session(number), payer(number), address, 10, now=0.0))
        exposure.lost(session(number), 10, now=0.0)
    assert taken == LIMITS.all


def test_one_payer_with_many_sessions_owes_no_more_than_its_limits() -> None:
    exposure = Exposure(LIMITS)
    verdicts = [exposure.reserve(session(n), payer(1), f"/ip4/10.0.{n}.1/tcp/1", 30, 0.0) for n in range(4)]
    assert verdicts[:3] == ["", "", ""]
    assert "this payer may owe this host 0.0001 USDC" in verdicts[3]


def test_a_session_that_could_owe_too_much_is_refused_alone() -> None:
    assert "this session may owe" in Exposure(LIMITS).reserve(session(1), payer(1), None, 51, 0.0)
    assert Exposure(LIMITS).reserve(session(1), payer(1), None, 50, 0.0) == ""


def test_what_is_paid_makes_room_and_a_loss_only_after_a_day() -> None:
    exposure = Exposure(LIMITS)
    for number in range(2):
        assert not exposure.reserve(session(number), payer(1), None, 50, 0.0)
    assert exposure.reserve(session(2), payer(1), None, 1, 0.0)
    exposure.release(session(0))
    assert not exposure.reserve(session(2), payer(1), None, 50, 0.0)
    exposure.lost(session(1), 50, 0.0)
    assert exposure.reserve(session(3), payer(1), None, 1, LOSS_REMEMBERED_S - 1)
    assert not exposure.reserve(session(3), payer(1), None, 1, LOSS_REMEMBERED_S)


def test_neighbours_share_a_prefix_and_strangers_do_not() -> None:
    assert prefix_of("/ip4/10.1.2.3/tcp/4001") == prefix_of("10.1.2.250") == "10.1.2.0/24"
    assert prefix_of("/ip4/10.1.3.3/tcp/4001") != prefix_of("10.1.2.250")
    assert prefix_of("/ip6/2001:db8:1:2::1/tcp/1") == prefix_of("2001:db8:1:ffff::2") == "2001:db8:1::/48"
    assert prefix_of(None) == prefix_of("/dns4/example/tcp/1") == ""


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reserve", "release", "lost"]),
            st.integers(0, 8),
            st.integers(0, 60),
            st.integers(0, 40_000),
        ),
        max_size=60,
    )
)
def test_no_order_of_events_passes_a_limit_or_loses_count(events: list[tuple[str, int, int, int]]) -> None:
    exposure = Exposure(LIMITS)
    now = 0.0
    for kind, number, units, wait in events:
        now += wait
        if kind == "reserve":
            exposure.reserve(session(number), payer(number % 3), f"10.0.{number % 2}.1", units, now)
        elif kind == "release":
            exposure.release(session(number))
        else:
            exposure.lost(session(number), min(units, 1), now)
        assert 0 <= exposure.units <= LIMITS.all
    for number in range(9):
        exposure.release(session(number))
    exposure.reserve(session(99), payer(99), None, 0, now + LOSS_REMEMBERED_S)
    assert exposure.units == 0
