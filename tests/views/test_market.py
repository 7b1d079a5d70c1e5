"""Hosts and models as they are shown: where each stands, and why, in words."""

from __future__ import annotations

from p2pnode.client.ranking import Filters, Ranking, rank
from p2pnode.client.reputation import Measured
from p2pnode.ids import PeerId
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.views.market import hosts_table, models_table, offered
from tests.client.support import MODEL, NOW, advert, peer


def ranked(
    *adverts: Advert, measured: dict[PeerId, Measured] | None = None, filters: Filters | None = None
) -> Ranking:
    """As a client that can pay anything sees them."""
    known = measured or {}
    return rank(adverts, MODEL, known, filters or Filters(), NOW, payable=lambda _advert, _offer: "")


def test_each_host_has_its_place_and_the_rule_that_put_it_there() -> None:
    fast = {peer(1): Measured(ttft_s=0.25, tokens_per_s=50.0)}
    ranking = ranked(
        advert(1),
        advert(2, warm_in=7),
        advert(3, price_out=1_500_000),
        advert(4, draining=True),
        measured=fast,
    )
    rows = hosts_table({MODEL: ranking})
    assert [(row["peer"], row["place"]) for row in rows] == [
        (peer(1), 1),
        (peer(2), 2),
        (peer(3), 3),
        (peer(4), None),
    ]
    why = [row["why"] for row in rows]
    assert why[0].startswith("asked first: free, ")
    assert why[0].endswith("measured 0.25 s to the first token, 50 tokens/s")
    assert why[1].startswith("number 2 by expected time; free")
    assert why[1].endswith("7 s to load the model")
    assert why[2].startswith("asked after free hosts; about 0.000384 USDC an answer")
    assert why[3] == "left out: draining: it is about to leave"


def test_of_hosts_that_ask_for_money_time_and_cost_are_named() -> None:
    ranking = ranked(advert(1, price_out=100_000), advert(2, price_out=900_000))
    assert hosts_table({MODEL: ranking})[1]["why"].startswith("number 2 by expected time and cost; ")


def test_a_model_that_nobody_may_be_asked_for_says_why_and_one_that_may_does_not() -> None:
    adverts = [advert(1, price_out=2_000_000), advert(2, price_out=3_000_000), advert(3, draining=True)]
    (row,) = models_table(adverts, {MODEL: ranked(*adverts, filters=Filters(price_out_max=1_000_000))})
    assert (row["hosts"], row["servable"]) == (3, 0)
    assert row["why_not"].startswith("no host of it may be asked: ")
    assert "draining" in row["why_not"]
    assert "output price 3.00 USDC is above the allowed 1.00 USDC" in row["why_not"]
    assert (row["price_out_min"], row["price_out_max"], row["price_out"]) == (2_000_000, 3_000_000, 2_500_000)
    (row,) = models_table(adverts, {MODEL: ranked(*adverts)})
    assert (row["servable"], row["why_not"]) == (2, "")
    assert (row["slots"], row["active"]) == (12, 0)


def test_a_model_is_offered_by_hosts_that_serve_it_now_and_not_by_those_that_did() -> None:
    assert offered([advert(1), advert(2)]) == [MODEL]
    assert offered([advert(1, n_ctx=0)]) == []
    (row,) = models_table([], {MODEL: Ranking()})
    assert row["why_not"] == "no host offers it now"
