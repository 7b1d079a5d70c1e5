"""Taking money out, and money that can't be pushed. Attacks by name."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.chain.abi import NO_VOUCHER, terms_tuple
from p2pnode.chain.ledger import RevertedError
from p2pnode.protocols.typed_data import market_domain, withdraw_digest
from tests.chain.contracts.support import (
    ADDRESS,
    BALANCE,
    DAY,
    DEPOSIT,
    FEE,
    TIP,
    World,
    malleable_twin,
    sign,
)


@pytest.fixture
def earned(world: World) -> int:
    """What the host is owed after one session."""
    terms = world.opened_terms()
    world.close(terms, world.voucher(terms))
    return world.owed("host")


def order(world: World, **changes: Any) -> tuple[Any, ...]:
    """A signed withdrawal of the host's, in the order that the contract takes."""
    fields: dict[str, Any] = {
        "account": ADDRESS["host"], "to": ADDRESS["watchtower"], "amount": 1_000, "fee": 10,
        "nonce": 0, "deadline": world.chain.now + 600,
    }  # fmt: skip
    signer = changes.pop("signer", "host")
    domain = changes.pop("domain", world.domain)
    fields |= changes
    signature = sign(signer, withdraw_digest(domain, **fields))
    return *(fields[name] for name in ("account", "to", "amount", "fee", "deadline")), signature


def test_a_host_withdraws_to_any_address(world: World, earned: int) -> None:
    world.market.send(ADDRESS["host"], "withdraw", ADDRESS["watchtower"], earned - 1)
    assert (world.wallet("watchtower"), world.owed("host")) == (earned - 1, 1)
    world.market.send(ADDRESS["host"], "withdraw", ADDRESS["host"], 1)
    assert world.wallet("host") == 1


def test_withdrawing_to_the_contract_to_the_token_or_to_nobody_strands_nothing(
    world: World, earned: int
) -> None:
    for to in (world.market.address, world.usdc.address, bytes(20)):
        with pytest.raises(RevertedError, match="bad recipient"):
            world.market.send(ADDRESS["host"], "withdraw", to, earned)
        with pytest.raises(RevertedError, match="bad recipient"):
            world.market.send(ADDRESS["stranger"], "withdraw_by_signature", *order(world, to=to))
    assert world.owed("host") == earned


def test_nobody_withdraws_more_than_its_own(world: World, earned: int) -> None:
    with pytest.raises(RevertedError, match="balance too low"):
        world.market.send(ADDRESS["host"], "withdraw", ADDRESS["host"], earned + 1)
    with pytest.raises(RevertedError, match="balance too low"):
        world.market.send(ADDRESS["stranger"], "withdraw", ADDRESS["stranger"], 1)
    with pytest.raises(RevertedError, match="bad amount"):
        world.market.send(ADDRESS["host"], "withdraw", ADDRESS["host"], 0)


def test_a_relayer_withdraws_on_the_hosts_signature_for_its_fee(world: World, earned: int) -> None:
    world.market.send(ADDRESS["stranger"], "withdraw_by_signature", *order(world))
    assert world.wallet("watchtower") == 990
    assert world.wallet("stranger") == 10
    assert world.owed("host") == earned - 1_000


def test_a_replayed_withdrawal_is_refused(world: World, earned: int) -> None:
    signed = order(world)
    world.market.send(ADDRESS["stranger"], "withdraw_by_signature", *signed)
    with pytest.raises(RevertedError, match="bad signature"):
        world.market.send(ADDRESS["stranger"], "withdraw_by_signature", *signed)
    assert world.owed("host") == earned - 1_000


def test_an_altered_foreign_or_late_withdrawal_is_refused(world: World, earned: int) -> None:
    good = order(world)
    chain_id = world.chain.chain_id
    for bad in (
        (*good[:1], ADDRESS["stranger"], *good[2:]),
        (*good[:2], 2_000, *good[3:]),
        (*good[:3], 1_000, *good[4:]),
        (*good[:4], good[4] + 1, good[5]),
        (*good[:5], malleable_twin(good[5])),
        (*good[:5], b""),
        order(world, signer="stranger"),
        order(world, nonce=1),
        order(world, domain=market_domain(chain_id + 1, world.market.address)),
        order(world, domain=market_domain(chain_id, ADDRESS["rival"])),
    ):
        with pytest.raises(RevertedError, match="bad signature"):
            world.market.send(ADDRESS["stranger"], "withdraw_by_signature", *bad)
    with pytest.raises(RevertedError, match="expired"):
        world.market.send(
            ADDRESS["stranger"], "withdraw_by_signature", *order(world, deadline=world.chain.now)
        )
    with pytest.raises(RevertedError, match="bad amount"):
        world.market.send(ADDRESS["stranger"], "withdraw_by_signature", *order(world, fee=1_001))
    assert world.owed("host") == earned


def test_a_withdrawal_in_nobodys_name_is_refused(world: World) -> None:
    with pytest.raises(RevertedError, match="bad signature"):
        world.market.send(
            ADDRESS["stranger"],
            "withdraw_by_signature",
            bytes(20), ADDRESS["stranger"], 1, 0, world.chain.now + 60, bytes(65),
        )  # fmt: skip


# What can't be pushed -----------------------------------------------------------------------------------


def test_a_blacklisted_payer_does_not_stop_the_hosts_pay_and_keeps_its_refund(world: World) -> None:
    terms = world.opened_terms()
    before = world.worths()
    world.freeze("payer")
    voucher = world.voucher(terms)
    receipt = world.close(terms, voucher)
    refund = DEPOSIT - voucher.amount
    assert world.owed("payer") == refund
    assert world.gains(before)["host"] == voucher.amount - (voucher.amount - FEE) // 10
    assert [event.name for event in world.market.events(receipt)] == ["Credited", "SessionClosed"]
    world.market.send(ADDRESS["payer"], "withdraw", ADDRESS["other payer"], refund)
    assert world.wallet("other payer") == BALANCE + refund


def test_a_blacklisted_payer_does_not_stop_a_batch(world: World) -> None:
    frozen = world.terms(payer=ADDRESS["other payer"])
    world.open(frozen, signer="other payer")
    fine = world.opened_terms()
    world.freeze("other payer")
    claims = [(frozen, world.voucher(frozen)), (fine, world.voucher(fine))]
    world.close_many(claims)
    assert world.owed("other payer") == DEPOSIT - claims[0][1].amount
    assert world.owed("payer") == 0


def test_a_blacklisted_host_is_credited_and_withdraws_elsewhere(world: World) -> None:
    terms = world.opened_terms()
    world.freeze("host")
    world.close(terms, world.voucher(terms))
    owed = world.owed("host")
    with pytest.raises(RevertedError, match="blacklisted"):
        world.market.send(ADDRESS["host"], "withdraw", ADDRESS["host"], owed)
    world.market.send(ADDRESS["host"], "withdraw", ADDRESS["watchtower"], owed)
    assert world.wallet("watchtower") == owed


def test_a_blacklisted_treasury_stops_nobody(world: World) -> None:
    terms = world.opened_terms()
    world.freeze("treasury")
    voucher = world.voucher(terms)
    world.close(terms, voucher)
    assert world.owed("treasury") == (voucher.amount - FEE) // 10
    assert world.owed("host") == voucher.amount - world.owed("treasury")


def test_a_blacklisted_caller_of_a_refund_is_credited_its_tip(world: World) -> None:
    terms = world.opened_terms()
    world.market.send(ADDRESS["payer"], "request_close", terms_tuple(terms), NO_VOUCHER, b"")
    world.freeze("stranger")
    world.chain.travel(DAY)
    world.market.send(ADDRESS["stranger"], "refund", terms_tuple(terms))
    assert world.owed("stranger") == TIP
    assert world.wallet("payer") == BALANCE - FEE


def test_a_paused_token_does_not_stop_settlement(world: World) -> None:
    terms = world.opened_terms()
    world.usdc.send(ADDRESS["deployer"], "pause")
    voucher = world.voucher(terms)
    world.close(terms, voucher)
    assert world.owed("payer") == DEPOSIT - voucher.amount
    with pytest.raises(RevertedError, match="Pausable: paused"):
        world.market.send(ADDRESS["payer"], "withdraw", ADDRESS["payer"], 1)
    world.usdc.send(ADDRESS["deployer"], "unpause")
    world.market.send(ADDRESS["payer"], "withdraw", ADDRESS["payer"], DEPOSIT - voucher.amount)
    assert world.worth("payer") == BALANCE - voucher.amount


def test_starving_the_refund_of_gas_never_turns_it_into_a_credit(world: World) -> None:
    terms = world.opened_terms()
    voucher = world.voucher(terms)
    start = world.chain.snapshot()
    enough = world.close(terms, voucher).gas_used
    world.chain.revert(start)
    pushed = 0
    for gas in range(enough - 40_000, enough + 8_000, 2_000):
        start = world.chain.snapshot()
        try:
            world.market.send(ADDRESS["host"], "close", (terms_tuple(terms), _tuple(voucher)), gas=gas)
        except RevertedError:
            assert world.state(terms)[0] == 1
        else:
            pushed += 1
            assert world.owed("payer") == 0
        world.chain.revert(start)
    assert pushed > 0


def _tuple(voucher: Any) -> tuple[Any, ...]:
    from p2pnode.chain.abi import voucher_tuple

    return voucher_tuple(voucher)
