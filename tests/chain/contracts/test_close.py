"""The host settles: exactly what was vouchered, never more, whatever a payer does. Attacks by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2pnode.chain.abi import claim_tuple, terms_tuple
from p2pnode.chain.ledger import RevertedError
from p2pnode.ids import SessionId
from p2pnode.protocols.typed_data import amount_due, market_domain
from tests.chain.contracts.digests import host_close_digest
from tests.chain.contracts.support import (
    ADDRESS,
    DEPOSIT,
    DOLLAR,
    FEE,
    World,
    malleable_twin,
    sign,
)

REFUSED = "JobMarketplace: bad voucher"


def test_ninety_to_the_host_ten_to_the_treasury_the_rest_back_to_the_unit(world: World) -> None:
    before = world.worths()
    terms = world.opened_terms()
    voucher = world.voucher(terms, tokens_in=333, tokens_out=77_777)
    receipt = world.close(terms, voucher)
    earned = voucher.amount - FEE
    tenth = earned // 10
    assert earned == -(-(333 * 500_000 + 77_777 * 2_000_000) // 10**6)
    assert world.gains(before) == {
        "host": voucher.amount - tenth,
        "treasury": tenth,
        "payer": -voucher.amount,
    }
    (closed,) = world.market.events(receipt)
    assert closed.fields["amount"] == voucher.amount
    assert closed.fields["refund"] == DEPOSIT - voucher.amount
    assert closed.fields["root"] == voucher.root
    assert world.state(terms) == (2, 0, voucher.amount)


@pytest.mark.parametrize(("tokens", "earned"), [(0, 0), (1, 2), (5, 10), (6, 12)])
def test_short_chats_are_paid_to_the_token_and_fees_are_outside_the_split(
    world: World, tokens: int, earned: int
) -> None:
    before = world.worths()
    terms = world.opened_terms()
    world.close(terms, world.voucher(terms, 0, tokens))
    tenth = earned // 10
    expected = {"host": FEE + earned - tenth, "treasury": tenth, "payer": -FEE - earned}
    assert world.gains(before) == {name: gain for name, gain in expected.items() if gain}


def test_a_fraction_of_a_unit_is_rounded_up_once(world: World) -> None:
    terms = world.opened_terms(price_out=1, session_fee=0, tip=0)
    with pytest.raises(RevertedError, match=REFUSED):
        world.close(terms, world.voucher(terms, 0, 1, amount=2))
    world.close(terms, world.voucher(terms, 0, 1, amount=1))
    assert world.owed("host") == 1


def test_maximum_values_neither_overflow_nor_pay_more_than_the_deposit(world: World) -> None:
    most = 2**64 - 1
    terms = world.opened_terms(price_in=most, price_out=most)
    with pytest.raises(RevertedError, match=REFUSED):
        world.close(terms, world.voucher(terms, most, most, amount=DEPOSIT + 1))
    with pytest.raises(RevertedError, match=REFUSED):
        world.close(terms, world.voucher(terms, most, most, amount=most))
    before = world.worths()
    world.close(terms, world.voucher(terms, most, most, amount=DEPOSIT))
    tenth = (DEPOSIT - FEE) // 10
    assert world.gains(before) == {"host": DEPOSIT - tenth, "treasury": tenth}


def test_an_inflated_amount_is_refused_even_when_the_voucher_key_signed_it(world: World) -> None:
    terms = world.opened_terms()
    due = amount_due(terms, 10, 10)
    with pytest.raises(RevertedError, match=REFUSED):
        world.close(terms, world.voucher(terms, 10, 10, amount=due + 1))
    with pytest.raises(RevertedError, match=REFUSED):
        world.close(terms, replace(world.voucher(terms, 10, 10), amount=due - 1))


def test_a_host_that_claims_tokens_without_the_users_consent_gets_nothing(world: World) -> None:
    terms = world.opened_terms()
    honest = world.voucher(terms, 10, 10)
    before = world.worths()
    for forged in (
        world.voucher(terms, 10, 10_000, signer="host"),
        world.voucher(terms, 10, 10_000, signer="receipt key"),
        replace(honest, tokens_out=1_000_000, amount=amount_due(terms, 10, 1_000_000)),
        replace(honest, tokens_in=11),
        replace(honest, root=bytes(32)),
        replace(honest, seq=2),
        replace(honest, signature=bytes(65)),
        replace(honest, signature=b""),
        replace(honest, signature=honest.signature[:64]),
        replace(honest, signature=honest.signature[:64] + b"\x1d"),
    ):
        with pytest.raises(RevertedError, match=REFUSED):
            world.close(terms, forged)
    assert world.gains(before) == {}


def test_a_malleable_voucher_signature_is_refused(world: World) -> None:
    terms = world.opened_terms()
    voucher = world.voucher(terms)
    with pytest.raises(RevertedError, match=REFUSED):
        world.close(terms, replace(voucher, signature=malleable_twin(voucher.signature)))


def test_a_voucher_of_another_session_chain_or_contract_pays_nothing(world: World) -> None:
    terms, other = world.opened_terms(), world.opened_terms()
    chain_id, market = world.chain.chain_id, world.market.address
    for foreign in (
        world.voucher(terms, session=world.id_of(other)),
        world.voucher(terms, session=SessionId(bytes(32))),
        world.voucher(terms, domain=market_domain(chain_id + 1, market)),
        world.voucher(terms, domain=market_domain(chain_id, ADDRESS["rival"])),
        world.voucher(terms, signer="other voucher key"),
    ):
        with pytest.raises(RevertedError, match=REFUSED):
            world.close(terms, foreign)


ALTERED: dict[str, Any] = {
    "price_out": 3 * DOLLAR, "price_in": DOLLAR, "deposit": DEPOSIT + 1, "session_fee": FEE + 1,
    "payer": ADDRESS["host"], "expiry": 1, "voucher_key": ADDRESS["rival"],
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(ALTERED))
def test_altered_terms_name_a_session_that_does_not_exist(world: World, field: str) -> None:
    terms = world.opened_terms()
    altered = replace(terms, **{field: ALTERED[field]})
    for voucher in (world.voucher(terms), world.voucher(altered)):
        with pytest.raises(RevertedError, match="not open"):
            world.close(altered, voucher)


def test_a_strangers_close_is_refused_and_so_is_the_payers(world: World) -> None:
    terms = world.opened_terms()
    old = world.voucher(terms, 1, 1)
    for sender in ("stranger", "payer", "rival", "treasury"):
        with pytest.raises(RevertedError, match="not the host"):
            world.close(terms, old, sender=sender)
        with pytest.raises(RevertedError, match="not the host"):
            world.market.send(ADDRESS[sender], "release", terms_tuple(terms))


def test_settling_twice_is_refused_and_moves_nothing(world: World) -> None:
    terms = world.opened_terms()
    voucher = world.voucher(terms)
    world.close(terms, voucher)
    before = world.worths()
    with pytest.raises(RevertedError, match="not open"):
        world.close(terms, voucher)
    with pytest.raises(RevertedError, match="not open"):
        world.market.send(ADDRESS["host"], "release", terms_tuple(terms))
    with pytest.raises(RevertedError, match="not open"):
        world.market.send(ADDRESS["stranger"], "refund", terms_tuple(terms))
    assert world.gains(before) == {}


def test_a_host_that_opens_and_refuses_to_serve_gains_the_session_fee_only(world: World) -> None:
    before = world.worths()
    terms = world.opened_terms()
    world.market.send(ADDRESS["host"], "release", terms_tuple(terms))
    assert world.gains(before) == {"host": FEE, "payer": -FEE}


def test_a_host_closes_until_the_refund_also_after_expiry_and_challenge(world: World) -> None:
    terms = world.opened_terms()
    world.chain.travel(30 * 86_400)
    voucher = world.voucher(terms)
    world.close(terms, voucher)
    assert world.owed("host") == voucher.amount - (voucher.amount - FEE) // 10


def test_a_voucher_below_the_fee_still_pays_the_fee(world: World) -> None:
    before = world.worths()
    terms = world.opened_terms()
    world.close(terms, world.voucher(terms, 0, 0, amount=0))
    assert world.gains(before) == {"host": FEE, "payer": -FEE}


# Batches ------------------------------------------------------------------------------------------------


def test_one_settled_claim_does_not_revert_the_batch(world: World) -> None:
    all_terms = [world.opened_terms() for _ in range(4)]
    claims = [(terms, world.voucher(terms, 0, 1_000 * (i + 1))) for i, terms in enumerate(all_terms)]
    world.close(*claims[1])
    before = world.worths()
    receipt = world.close_many(claims)
    paid = [claims[i][1].amount for i in (0, 2, 3)]
    tenth = sum((amount - FEE) // 10 for amount in paid)
    assert world.gains(before) == {
        "host": sum(paid) - tenth,
        "treasury": tenth,
        "payer": 3 * DEPOSIT - sum(paid),
    }
    names = [event.name for event in world.market.events(receipt)]
    assert names == ["SessionClosed", "ClaimSkipped", "SessionClosed", "SessionClosed"]


def test_failing_claims_are_skipped_whatever_their_fault(world: World) -> None:
    good, bad, foreign, unopened = (
        world.opened_terms(),
        world.opened_terms(),
        world.opened_terms(host=ADDRESS["rival"]),
        world.terms(),
    )
    claims = [
        (bad, world.voucher(bad, signer="host")),
        (foreign, world.voucher(foreign)),
        (unopened, world.voucher(unopened)),
        (bad, replace(world.voucher(bad), signature=b"")),
        (bad, world.voucher(bad, 0, 0, amount=DEPOSIT + 1)),
        (good, world.voucher(good)),
        (good, world.voucher(good)),
    ]
    receipt = world.close_many(claims)
    names = [event.name for event in world.market.events(receipt)]
    assert names == ["ClaimSkipped"] * 5 + ["SessionClosed", "ClaimSkipped"]
    assert [world.state(terms)[0] for terms in (good, bad, foreign, unopened)] == [2, 1, 1, 0]


def test_a_payer_settling_first_costs_the_batch_only_that_session(world: World) -> None:
    all_terms = [world.opened_terms() for _ in range(3)]
    vouchers = [world.voucher(terms) for terms in all_terms]
    world.market.send(
        ADDRESS["payer"],
        "request_close",
        terms_tuple(all_terms[0]),
        claim_tuple(all_terms[0], vouchers[0])[1],
        b"",
    )
    world.chain.travel(86_400)
    world.market.send(ADDRESS["payer"], "refund", terms_tuple(all_terms[0]))
    world.close_many(zip(all_terms, vouchers, strict=True))
    assert [world.state(terms) for terms in all_terms] == [(2, 0, voucher.amount) for voucher in vouchers]


def test_a_batch_takes_twenty_five_and_no_more(world: World) -> None:
    claims = [(terms, world.voucher(terms)) for terms in (world.opened_terms() for _ in range(25))]
    with pytest.raises(RevertedError):
        world.close_many([*claims, claims[0]])
    world.close_many(claims)
    assert all(world.state(terms)[0] == 2 for terms, _ in claims)


def test_a_batch_of_nothing_moves_nothing(world: World) -> None:
    before = world.worths()
    world.close_many([])
    assert world.gains(before) == {}


# By signature -------------------------------------------------------------------------------------------


def test_a_relayer_closes_on_the_hosts_signature(world: World) -> None:
    terms = world.opened_terms()
    voucher = world.voucher(terms)
    before = world.worths()
    signature = sign("host", host_close_digest(world.domain, world.id_of(terms), voucher.amount))
    world.market.send(ADDRESS["stranger"], "close_by_signature", claim_tuple(terms, voucher), signature)
    tenth = (voucher.amount - FEE) // 10
    assert world.gains(before) == {
        "host": voucher.amount - tenth, "treasury": tenth, "payer": DEPOSIT - voucher.amount,
    }  # fmt: skip


def test_a_relayer_that_closes_with_an_older_voucher_is_refused(world: World) -> None:
    terms = world.opened_terms()
    old, best = world.voucher(terms, 0, 10), world.voucher(terms, 0, 1_000)
    signature = sign("host", host_close_digest(world.domain, world.id_of(terms), best.amount))
    with pytest.raises(RevertedError, match="not the host"):
        world.market.send(ADDRESS["payer"], "close_by_signature", claim_tuple(terms, old), signature)
    other = world.opened_terms()
    with pytest.raises(RevertedError, match="not the host"):
        world.market.send(
            ADDRESS["payer"], "close_by_signature", claim_tuple(other, world.voucher(other)), signature
        )


def test_a_host_close_signed_by_anyone_else_is_refused(world: World) -> None:
    terms = world.opened_terms()
    voucher = world.voucher(terms)
    digest = host_close_digest(world.domain, world.id_of(terms), voucher.amount)
    good = sign("host", digest)
    for signature in (sign("payer", digest), malleable_twin(good), b"", good[:64], good + b"\0"):
        with pytest.raises(RevertedError, match="not the host"):
            world.market.send(
                ADDRESS["stranger"], "close_by_signature", claim_tuple(terms, voucher), signature
            )
