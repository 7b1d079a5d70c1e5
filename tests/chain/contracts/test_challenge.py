"""Ending a session without its host: 24 hours to answer, then everybody is paid. Attacks by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnode.chain.abi import NO_VOUCHER, terms_tuple, voucher_tuple
from p2pnode.chain.dev.embedded import Receipt
from p2pnode.chain.ledger import RevertedError
from p2pnode.protocols.inference.messages import SessionTerms, Voucher
from tests.chain.contracts.support import ADDRESS, DAY, DEPOSIT, FEE, TIP, World, malleable_twin


def ask(
    world: World,
    terms: SessionTerms,
    voucher: Voucher | None = None,
    signature: bytes = b"",
    sender: str = "payer",
) -> Receipt:
    """Request a close."""
    least = NO_VOUCHER if voucher is None else voucher_tuple(voucher)
    return world.market.send(ADDRESS[sender], "request_close", terms_tuple(terms), least, signature)


def submit(world: World, terms: SessionTerms, voucher: Voucher, sender: str = "watchtower") -> None:
    world.market.send(ADDRESS[sender], "submit_voucher", terms_tuple(terms), voucher_tuple(voucher))


def refund(world: World, terms: SessionTerms, sender: str = "stranger") -> Receipt:
    return world.market.send(ADDRESS[sender], "refund", terms_tuple(terms))


def test_a_close_request_names_its_end_and_its_floor(world: World) -> None:
    terms = world.opened_terms()
    voucher = world.voucher(terms, 0, 10)
    receipt = ask(world, terms, voucher)
    assert world.state(terms) == (1, world.chain.now + DAY, voucher.amount)
    (event,) = world.market.events(receipt)
    assert event.name == "CloseRequested"
    assert event.fields["host"] == ADDRESS["host"]
    assert event.fields["recorded"] == voucher.amount


def test_a_user_that_closes_before_the_hosts_claim_lands_pays_all_the_same(world: World) -> None:
    before = world.worths()
    terms = world.opened_terms()
    best = world.voucher(terms)
    ask(world, terms)
    with pytest.raises(RevertedError, match="too early"):
        refund(world, terms, sender="payer")
    world.close(terms, best)
    tenth = (best.amount - FEE) // 10
    assert world.gains(before) == {"host": best.amount - tenth, "treasury": tenth, "payer": -best.amount}


def test_a_payer_closing_with_its_oldest_voucher_while_the_host_is_away_pays_what_a_watchtower_holds(
    world: World,
) -> None:
    before = world.worths()
    terms = world.opened_terms()
    oldest, best = world.voucher(terms, 0, 1), world.voucher(terms, 0, 100_000)
    ask(world, terms, oldest)
    submit(world, terms, best)
    world.chain.travel(DAY)
    refund(world, terms)
    tenth = (best.amount - FEE) // 10
    assert world.gains(before) == {
        "host": best.amount - tenth - TIP, "treasury": tenth, "payer": -best.amount, "stranger": TIP,
    }  # fmt: skip


def test_without_a_watchtower_a_host_away_for_a_day_loses_what_the_floor_leaves_out(world: World) -> None:
    before = world.worths()
    terms = world.opened_terms()
    oldest = world.voucher(terms, 0, 1)
    ask(world, terms, oldest)
    world.chain.travel(DAY)
    refund(world, terms, sender="payer")
    assert world.gains(before) == {"host": oldest.amount, "payer": -oldest.amount}
    with pytest.raises(RevertedError, match="not open"):
        world.close(terms, world.voucher(terms))


def test_a_refund_pays_the_recorded_voucher_and_not_zero(world: World) -> None:
    terms = world.opened_terms()
    voucher = world.voucher(terms, 0, 1_000)
    ask(world, terms, voucher)
    world.chain.travel(DAY)
    refund(world, terms)
    assert world.owed("host") == voucher.amount - (voucher.amount - FEE) // 10 - TIP


def test_a_stale_voucher_changes_nothing(world: World) -> None:
    terms = world.opened_terms()
    old, best = world.voucher(terms, 0, 10), world.voucher(terms, 0, 1_000)
    ask(world, terms, best)
    for stale in (old, best):
        with pytest.raises(RevertedError, match="stale voucher"):
            submit(world, terms, stale)
    assert world.state(terms)[2] == best.amount


def test_a_payer_that_never_asks_and_waits_for_its_refund_pays_what_a_watchtower_holds(world: World) -> None:
    """The host is away until its escrow has expired and the day after it is over."""
    before = world.worths()
    terms = world.opened_terms()
    best = world.voucher(terms)
    world.chain.travel(3600 + DAY)
    submit(world, terms, best)
    assert world.state(terms) == (1, 0, best.amount)
    refund(world, terms, sender="payer")
    tenth = (best.amount - FEE) // 10
    assert world.gains(before) == {"host": best.amount - tenth, "treasury": tenth, "payer": -best.amount}


def test_a_voucher_is_recorded_in_every_state_before_the_refund_and_in_none_after(world: World) -> None:
    terms = world.opened_terms()
    with pytest.raises(RevertedError, match="not open"):
        submit(world, world.terms(), world.voucher(terms))
    for tokens in (10, 1_000, 100_000):  # before a request, while it runs, past its end
        submit(world, terms, world.voucher(terms, 0, tokens))
        assert world.state(terms)[2] == world.voucher(terms, 0, tokens).amount
        if tokens == 10:
            ask(world, terms)
        world.chain.travel(DAY // 2 + 1)
    refund(world, terms)
    with pytest.raises(RevertedError, match="not open"):
        submit(world, terms, world.voucher(terms))


def test_asking_to_close_with_an_old_voucher_does_not_lower_the_record(world: World) -> None:
    terms = world.opened_terms()
    old, best = world.voucher(terms, 0, 10), world.voucher(terms, 0, 1_000)
    submit(world, terms, best)
    ask(world, terms, old)
    assert world.state(terms) == (1, world.chain.now + DAY, best.amount)


def test_a_forged_or_inflated_voucher_is_not_recorded_nor_a_floor(world: World) -> None:
    terms = world.opened_terms()
    good = world.voucher(terms)
    bad = (
        world.voucher(terms, signer="host"),
        world.voucher(terms, 0, 1, amount=DEPOSIT),
        replace(good, signature=malleable_twin(good.signature)),
    )
    for voucher in bad:
        with pytest.raises(RevertedError, match="bad voucher"):
            ask(world, terms, voucher)
    ask(world, terms)
    for voucher in bad:
        with pytest.raises(RevertedError, match="bad voucher"):
            submit(world, terms, voucher)


def test_a_host_that_closes_below_the_record_is_paid_the_record(world: World) -> None:
    terms = world.opened_terms()
    old, best = world.voucher(terms, 0, 10), world.voucher(terms, 0, 1_000)
    ask(world, terms, best)
    world.close(terms, old)
    assert world.owed("host") == best.amount - (best.amount - FEE) // 10


def test_the_voucher_key_asks_through_any_relayer_without_ether(world: World) -> None:
    terms = world.opened_terms()
    voucher = world.voucher(terms, 0, 10)
    for signer in ("voucher key", "payer"):
        start = world.chain.snapshot()
        ask(world, terms, voucher, world.close_request(terms, voucher.amount, signer), "stranger")
        assert world.state(terms)[2] == voucher.amount
        world.chain.revert(start)
    ask(world, terms, None, world.close_request(terms, FEE), "stranger")
    assert world.state(terms)[2] == FEE


def test_a_relayer_that_drops_the_voucher_from_a_close_request_is_refused(world: World) -> None:
    terms = world.opened_terms()
    voucher = world.voucher(terms, 0, 10)
    signed = world.close_request(terms, voucher.amount)
    with pytest.raises(RevertedError, match="not the payer"):
        ask(world, terms, None, signed, "stranger")


def test_a_stranger_or_the_host_cannot_ask_to_close(world: World) -> None:
    terms, other = world.opened_terms(), world.opened_terms()
    for sender, signature in (
        ("stranger", b""),
        ("host", world.close_request(terms, FEE, "host")),
        ("stranger", world.close_request(other, FEE)),
        ("stranger", malleable_twin(world.close_request(terms, FEE))),
    ):
        with pytest.raises(RevertedError, match="not the payer"):
            ask(world, terms, None, signature, sender)


def test_asking_twice_does_not_move_the_end(world: World) -> None:
    terms = world.opened_terms()
    ask(world, terms)
    ends = world.state(terms)[1]
    world.chain.travel(DAY // 2)
    with pytest.raises(RevertedError, match="already closing"):
        ask(world, terms)
    assert world.state(terms)[1] == ends


def test_recording_a_voucher_does_not_move_the_end(world: World) -> None:
    terms = world.opened_terms()
    ask(world, terms)
    ends = world.state(terms)[1]
    world.chain.travel(DAY // 2)
    submit(world, terms, world.voucher(terms))
    assert world.state(terms)[1] == ends


def test_a_host_that_vanishes_keeps_the_session_fee_and_the_rest_comes_home_unasked(world: World) -> None:
    before = world.worths()
    terms = world.opened_terms()
    world.chain.travel(3600 + DAY - 10)
    with pytest.raises(RevertedError, match="too early"):
        refund(world, terms)
    world.chain.travel(10)
    refund(world, terms)
    assert world.gains(before) == {"host": FEE - TIP, "stranger": TIP, "payer": -FEE}


def test_nobody_touches_the_escrow_of_a_running_session(world: World) -> None:
    terms = world.opened_terms()
    for sender in ("payer", "host", "stranger", "treasury", "deployer"):
        with pytest.raises(RevertedError, match="too early"):
            refund(world, terms, sender=sender)
    with pytest.raises(RevertedError, match="not open"):
        refund(world, replace(terms, expiry=1))


@pytest.mark.parametrize("friend", ["host", "stranger"])
def test_a_host_that_stalls_gets_no_more_than_by_closing_alone_or_with_a_friend(
    world: World, friend: str
) -> None:
    terms, other = world.opened_terms(), world.opened_terms()
    start = world.worths()
    world.close(terms, world.voucher(terms, 0, 1_000))
    by_closing = world.gains(start)
    before = world.worths()
    ask(world, other, world.voucher(other, 0, 1_000))
    world.chain.travel(DAY)
    refund(world, other, sender=friend)
    by_stalling = world.gains(before)
    together = by_stalling["host"] + (by_stalling.get("stranger", 0) if friend == "stranger" else 0)
    assert together == by_closing["host"]
    assert by_stalling["payer"] == by_closing["payer"]


def test_a_tip_as_high_as_the_fee_leaves_the_host_what_its_tokens_earn(world: World) -> None:
    before = world.worths()
    terms = world.opened_terms(tip=FEE)
    world.chain.travel(3600 + DAY)
    refund(world, terms)
    assert world.gains(before) == {"stranger": FEE, "payer": -FEE}


def test_the_payer_gets_the_same_back_whoever_brings_its_refund(world: World) -> None:
    terms = world.opened_terms()
    full = world.voucher(terms, 0, 10**9, amount=DEPOSIT)
    before = world.worths()
    ask(world, terms, full)
    world.chain.travel(DAY)
    refund(world, terms)
    tenth = (DEPOSIT - FEE) // 10
    assert world.gains(before) == {"host": DEPOSIT - tenth - TIP, "treasury": tenth, "stranger": TIP}


def test_a_payer_that_brings_its_own_refund_pays_no_tip(world: World) -> None:
    before = world.worths()
    terms = world.opened_terms()
    ask(world, terms)
    world.chain.travel(DAY)
    refund(world, terms, sender="payer")
    assert world.gains(before) == {"host": FEE, "payer": -FEE}


def test_a_host_cannot_let_go_of_what_is_on_record(world: World) -> None:
    terms = world.opened_terms()
    ask(world, terms, world.voucher(terms, 0, 1_000))
    with pytest.raises(RevertedError, match="voucher on record"):
        world.market.send(ADDRESS["host"], "release", terms_tuple(terms))
    world.close(terms, world.voucher(terms, 0, 10))


def test_a_host_that_lets_go_during_a_challenge_keeps_its_fee_only(world: World) -> None:
    before = world.worths()
    terms = world.opened_terms()
    ask(world, terms)
    world.market.send(ADDRESS["host"], "release", terms_tuple(terms))
    assert world.gains(before) == {"host": FEE, "payer": -FEE}
