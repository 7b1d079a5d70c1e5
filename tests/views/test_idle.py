"""Why a host gets no work: each reason where it holds, and not where it doesn't."""

from __future__ import annotations

from typing import Any

from p2pnode.protocols.adverts.messages import Advert
from p2pnode.views.idle import HostState, idle_fields
from tests.client.support import NOW, advert, peer


def idle(*adverts: Advert, state: HostState | None = None, **more: Any) -> dict[str, Any]:
    """As host 1 is told."""
    return idle_fields(peer(1), adverts, state or HostState(), now=NOW, **more)


def test_a_host_that_asks_more_than_others_hears_by_how_many() -> None:
    found = idle(
        advert(1, price_out=900_000),
        advert(2, price_out=100_000, active=3),
        advert(3, price_out=2_000_000, active=1, queued=2),
        advert(4),
        reach="global",
    )
    (offer,) = found["offers"]
    assert (offer["place"], offer["of"]) == (3, 4)
    assert (offer["cheaper"], offer["dearer"], offer["price_percentile"]) == (2, 1, 67)
    assert (offer["busy"], offer["slots"], offer["queued"]) == (4, 12, 2)
    assert offer["could_earn_day"] is None
    reasons = " | ".join(found["reasons"])
    assert "strangers ask 2 other hosts first" in reasons
    assert "1 other host asks for no money, and comes first" in reasons
    assert "2 of 3 other hosts ask less" in reasons
    assert "4 of 12 slots of other hosts are busy, 2 requests waiting" in reasons
    assert "network" not in reasons


def test_the_first_of_idle_hosts_hears_that_nobody_asks() -> None:
    found = idle(advert(1), advert(2, price_out=5))
    assert [each.partition(": ")[2] for each in found["reasons"]] == ["no other host has work now, either"]
    assert found["offers"][0]["place"] == 1
    alone = idle(advert(1))
    assert "the only host" in alone["reasons"][0]
    assert alone["offers"][0]["price_percentile"] is None


def test_what_it_could_earn_follows_from_how_busy_the_others_are() -> None:
    found = idle(advert(1, price_out=1_000_000), advert(2, price_out=1_000_000, active=1), tokens_per_s=10.0)
    assert found["offers"][0]["could_earn_day"] == 216_000  # a quarter of 864,000 tokens
    assert any("it would earn about 0.216 USDC a day" in each for each in found["reasons"])


def test_what_only_the_host_knows_comes_with_its_words_on_one_line() -> None:
    state = HostState(
        paused=["its owner paused it"],
        refusals=[{"at": NOW, "code": "capacity", "detail": "all slots\nare taken"}],
        refused={"capacity": 2, "bad_request": 1},
    )
    reasons = idle(advert(1, warm_in=9), advert(2), state=state, reach="private_only")["reasons"]
    assert reasons[0] == "it is paused: its owner paused it"
    assert reasons[1] == "nobody outside of its network reaches it"
    assert any("it is not loaded, which takes 9 s" in each for each in reasons)
    assert reasons[-1] == (
        "it refused 3 questions and sessions (bad_request 1, capacity 2); "
        "the last: capacity: all slots are taken"
    )


def test_a_host_whose_advert_is_not_seen_or_that_drains_is_told_so() -> None:
    assert "its advert was not seen" in idle(advert(2))["reasons"][0]
    drains = idle(advert(1, draining=True), advert(2))
    assert "it drains" in drains["reasons"][0]
    assert drains["offers"][0]["place"] is None
    assert any("strangers leave it out" in each for each in drains["reasons"])


def test_a_host_whose_chain_is_away_is_told_so_and_another_is_not() -> None:
    away = idle(advert(1), advert(2), state=HostState(chain_reachable=False))
    assert away["reasons"][0].startswith("its chain can't be reached: until it can, no paid session begins")
    assert not any("chain" in each for each in idle(advert(1), advert(2))["reasons"])


def test_a_host_may_tell_more_of_itself_than_is_asked_here() -> None:
    told = {"paused": ["its owner paused it"], "refused": {"busy": 2}, "recent": {"turns": 1}, "later": 0}
    assert HostState.of(told) == HostState(paused=["its owner paused it"], refused={"busy": 2})
    assert HostState.of({}) == HostState()
