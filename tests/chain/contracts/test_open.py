"""Opening a session: one signature moves the deposit and binds every term. Attacks by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2pnode.chain.abi import terms_tuple, voucher_tuple
from p2pnode.chain.ledger import RevertedError
from p2pnode.ids import ModelId
from p2pnode.protocols.crypto import abi_encode, keccak256
from p2pnode.protocols.typed_data import authorisation_digest, market_domain, session_id
from tests.chain.contracts.digests import cancel_digest
from tests.chain.contracts.support import (
    ADDRESS,
    BALANCE,
    DAY,
    DEPOSIT,
    DOLLAR,
    FEE,
    HALF,
    World,
    malleable_twin,
    sign,
)

ZERO = bytes(20)


def test_anyone_may_relay_an_open_and_the_payer_needs_no_gas(world: World) -> None:
    terms = world.terms()
    ether = world.chain.ether(ADDRESS["payer"])
    receipt = world.open(terms, relayer="stranger")
    assert world.state(terms) == (1, 0, 0)
    assert world.wallet("payer") == BALANCE - DEPOSIT
    assert world.chain.ether(ADDRESS["payer"]) == ether
    (event,) = world.market.events(receipt)
    assert event.name == "SessionOpened"
    assert event.fields["session"] == world.id_of(terms)
    assert event.fields["terms"] == terms_tuple(terms)


def test_the_contract_computes_the_same_session_id(world: World) -> None:
    terms = world.terms()
    assert world.market.read("session_id", terms_tuple(terms)) == world.id_of(terms)


def test_a_sessions_whole_state_is_one_storage_slot(world: World) -> None:
    terms = world.opened_terms()
    voucher = world.voucher(terms, 0, 10)
    order = (terms_tuple(terms), voucher_tuple(voucher), b"")
    world.market.send(ADDRESS["payer"], "request_close", *order)
    status, closing_at, recorded = world.state(terms)
    packed = (status | closing_at << 8 | recorded << 72).to_bytes(32, "big")
    places = [int.from_bytes(keccak256(abi_encode(base, world.id_of(terms))), "big") for base in range(16)]
    found = [place for place in places if world.chain.storage(world.market.address, place) == packed]
    assert len(found) == 1
    assert world.chain.storage(world.market.address, found[0] + 1) == bytes(32)


ALTERED: dict[str, Any] = {
    "price_in": DOLLAR, "price_out": 3 * DOLLAR, "session_fee": FEE + 1, "tip": FEE,
    "voucher_key": ADDRESS["rival"], "receipt_key": ADDRESS["rival"], "host": ADDRESS["rival"],
    "model": ModelId(bytes(31) + b"\1"), "salt": b"\xff" * 32, "deposit": DEPOSIT + 1,
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(ALTERED))
def test_a_relayer_that_changes_a_term_opens_nothing_and_the_payer_loses_nothing(
    world: World, field: str
) -> None:
    terms = world.terms()
    authorisation = world.authorise(terms)
    before = world.worths()
    with pytest.raises(RevertedError, match="invalid signature"):
        world.relay(replace(terms, **{field: ALTERED[field]}), authorisation)
    assert world.gains(before) == {}


def test_a_relayer_that_prolongs_the_authorisation_opens_nothing(world: World) -> None:
    terms = world.terms()
    valid_before, signature = world.authorise(terms)
    with pytest.raises(RevertedError, match="invalid signature"):
        world.relay(terms, (valid_before + 1, signature))


def test_front_running_the_open_opens_the_very_same_session(world: World) -> None:
    terms = world.terms()
    authorisation = world.authorise(terms)
    world.relay(terms, authorisation, relayer="stranger")
    before = world.worths()
    with pytest.raises(RevertedError, match="exists") as refused:
        world.relay(terms, authorisation, relayer="host")
    assert world.gains(before) == {}
    assert refused.value.gas_used < 60_000
    world.close(terms, world.voucher(terms))


def test_front_running_with_a_bare_transfer_of_the_authorisation_moves_nothing(world: World) -> None:
    terms = world.terms()
    valid_before, signature = world.authorise(terms)
    order = (terms.payer, world.market.address, DEPOSIT, 0, valid_before, world.id_of(terms), signature)
    with pytest.raises(RevertedError, match="caller must be the payee"):
        world.usdc.send(ADDRESS["stranger"], "receiveWithAuthorization", *order)
    with pytest.raises(RevertedError, match="invalid signature"):
        world.usdc.send(ADDRESS["stranger"], "transferWithAuthorization", *order)
    assert world.wallet("payer") == BALANCE


def test_the_same_terms_never_open_twice_even_after_the_end(world: World) -> None:
    terms = world.opened_terms()
    world.close(terms, world.voucher(terms))
    with pytest.raises(RevertedError, match="exists"):
        world.relay(terms, world.authorise(terms))


def test_replaying_an_open_on_another_chain_or_contract_moves_nothing(world: World) -> None:
    for domain in (
        market_domain(world.chain.chain_id + 1, world.market.address),
        market_domain(world.chain.chain_id, ADDRESS["rival"]),
    ):
        terms = world.terms()
        authorisation = world.authorise(terms, nonce=session_id(domain, terms))
        with pytest.raises(RevertedError, match="invalid signature"):
            world.relay(terms, authorisation)
    elsewhere = replace(world.token, chain_id=world.chain.chain_id + 1)
    terms = world.terms()
    deadline = world.chain.now + 600
    digest = authorisation_digest(
        elsewhere,
        payer=terms.payer,
        to=world.market.address,
        amount=DEPOSIT,
        valid_before=deadline,
        nonce=world.id_of(terms),
    )
    with pytest.raises(RevertedError, match="invalid signature"):
        world.relay(terms, (deadline, sign("payer", digest)))
    assert world.wallet("payer") == BALANCE


def test_an_expired_authorisation_opens_nothing(world: World) -> None:
    terms = world.terms()
    authorisation = world.authorise(terms)
    world.chain.travel(600)
    with pytest.raises(RevertedError, match="FiatTokenV2: authorization is expired"):
        world.relay(terms, authorisation)


def test_a_cancelled_authorisation_costs_the_relayer_its_gas_only(world: World) -> None:
    terms = world.terms()
    authorisation = world.authorise(terms)
    cancel = sign("payer", cancel_digest(world.token, payer=terms.payer, nonce=world.id_of(terms)))
    world.usdc.send(ADDRESS["stranger"], "cancelAuthorization", terms.payer, world.id_of(terms), cancel)
    before = world.worths()
    with pytest.raises(RevertedError, match="FiatTokenV2: authorization is used or canceled") as refused:
        world.relay(terms, authorisation)
    assert world.gains(before) == {}
    assert refused.value.gas_used < 100_000


def test_a_payer_that_moves_its_funds_before_the_open_lands_has_no_session(world: World) -> None:
    terms = world.terms()
    authorisation = world.authorise(terms)
    world.usdc.send(ADDRESS["payer"], "transfer", ADDRESS["other payer"], BALANCE)
    with pytest.raises(RevertedError, match="ERC20: transfer amount exceeds balance"):
        world.relay(terms, authorisation)
    assert world.state(terms) == (0, 0, 0)


def test_one_balance_authorised_to_many_hosts_at_once_opens_one_session(world: World) -> None:
    hosts = [ADDRESS[name] for name in ("host", "rival", "stranger", "watchtower")]
    offers = [world.terms(host=host, deposit=BALANCE) for host in hosts]
    signed = [(terms, world.authorise(terms)) for terms in offers]
    world.relay(*signed[0])
    before = world.worths()
    for terms, authorisation in signed[1:]:
        with pytest.raises(RevertedError, match="exceeds balance"):
            world.relay(terms, authorisation)
    assert world.gains(before) == {}
    assert [world.state(terms)[0] for terms in offers] == [1, 0, 0, 0]


def test_a_host_that_withholds_the_open_and_relays_it_later_gains_the_session_fee_at_most(
    world: World,
) -> None:
    terms = world.terms()
    authorisation = world.authorise(terms)
    before = world.worths()
    world.chain.travel(590)
    world.relay(terms, authorisation)
    world.market.send(ADDRESS["host"], "release", terms_tuple(terms))
    assert world.gains(before) == {"host": FEE, "payer": -FEE}
    later = world.terms()
    authorisation = world.authorise(later)
    world.chain.travel(601)
    with pytest.raises(RevertedError, match="expired"):
        world.relay(later, authorisation)


@pytest.mark.parametrize("field", ["payer", "host", "voucher_key", "receipt_key"])
@pytest.mark.parametrize("kind", ["zero", "self"])
def test_a_session_with_nobody_or_the_contract_itself_never_opens(
    world: World, field: str, kind: str
) -> None:
    bad = ZERO if kind == "zero" else world.market.address
    terms = world.terms(**{field: bad})
    with pytest.raises(RevertedError, match="zero or self address"):
        world.relay(terms, world.authorise(terms))


def test_a_host_that_holds_the_voucher_key_or_pays_itself_never_opens(world: World) -> None:
    for changes in ({"voucher_key": ADDRESS["host"]}, {"host": ADDRESS["payer"]}):
        terms = world.terms(**changes)
        with pytest.raises(RevertedError, match="host pays itself"):
            world.relay(terms, world.authorise(terms))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"session_fee": 250_001}, "session fee too high"),
        ({"tip": 50_001}, "tip above session fee"),
        ({"deposit": 0, "session_fee": 0, "tip": 0}, "no deposit"),
        ({"deposit": 49_999}, "deposit below fee"),
    ],
)
def test_fees_tips_and_deposits_out_of_bounds_never_open(
    world: World, changes: dict[str, int], reason: str
) -> None:
    terms = world.terms(**changes)
    with pytest.raises(RevertedError, match=reason):
        world.relay(terms, world.authorise(terms))


def test_the_caps_themselves_are_allowed(world: World) -> None:
    terms = world.opened_terms(deposit=500_000, session_fee=250_000, tip=250_000)
    before = world.worths()
    world.close(terms, world.voucher(terms, 0, 0))
    assert world.gains(before) == {"host": 250_000, "payer": 250_000}


def test_an_expiry_in_the_past_or_beyond_the_unbonding_time_never_opens(world: World) -> None:
    now = world.chain.now
    for expiry, reason in ((now, "expired"), (now + 5 * DAY + 60, "expiry too far")):
        terms = world.terms(expiry=expiry)
        with pytest.raises(RevertedError, match=reason):
            world.relay(terms, world.authorise(terms))
    longest = world.market.read("DURATION_MAX") + world.market.read("CHALLENGE")
    assert longest < world.nodes.read("UNBONDING")


def test_a_malleable_authorisation_is_refused_by_the_token(world: World) -> None:
    terms = world.terms()
    valid_before, signature = world.authorise(terms)
    twin = malleable_twin(signature)
    assert int.from_bytes(twin[32:64], "big") > HALF
    with pytest.raises(RevertedError, match="ECRecover: invalid signature 's' value"):
        world.relay(terms, (valid_before, twin))


def test_a_blacklisted_payer_opens_nothing(world: World) -> None:
    terms = world.terms()
    world.freeze("payer")
    with pytest.raises(RevertedError, match="Blacklistable: account is blacklisted"):
        world.relay(terms, world.authorise(terms))
    assert world.state(terms) == (0, 0, 0)


def test_the_largest_deposit_there_can_be_opens_and_comes_back_whole(world: World) -> None:
    most = 2**64 - 1
    world.usdc.send(ADDRESS["deployer"], "mint", ADDRESS["payer"], most)
    terms = world.terms(deposit=most, session_fee=0, tip=0, price_in=most, price_out=most)
    before = world.worths()
    world.open(terms)
    world.close(terms, world.voucher(terms, 2**40, 2**40, amount=most))
    assert world.gains(before) == {
        "payer": -most, "host": most - most // 10, "treasury": most // 10,
    }  # fmt: skip
    back = world.opened_terms(deposit=BALANCE)
    world.market.send(ADDRESS["host"], "release", terms_tuple(back))
    assert world.gains(before)["payer"] == -most - FEE
