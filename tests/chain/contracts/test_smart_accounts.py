"""Payers and hosts that are contract wallets (ERC-1271). Attacks by name."""

from __future__ import annotations

import pytest

from p2pnode.chain.abi import NO_VOUCHER, claim_tuple, terms_tuple
from p2pnode.chain.dev.embedded import Contract
from p2pnode.chain.ledger import RevertedError
from p2pnode.protocols.typed_data import withdraw_digest
from tests.chain.contracts.digests import host_close_digest
from tests.chain.contracts.support import ADDRESS, BALANCE, DAY, DEPOSIT, FEE, World, sign

WALLET_SIGNATURE_MAX = 2048


def fund(world: World, wallet: Contract) -> None:
    world.usdc.send(ADDRESS["deployer"], "mint", wallet.address, BALANCE)


def test_a_deployed_wallet_pays_with_a_signature_of_two_kilobytes(
    world: World, smart_wallet: Contract
) -> None:
    fund(world, smart_wallet)
    terms = world.terms(payer=smart_wallet.address)
    valid_before, signature = world.authorise(terms, signer="other payer")
    long = signature + bytes(WALLET_SIGNATURE_MAX - len(signature))
    with pytest.raises(RevertedError):
        world.relay(terms, (valid_before, long + b"\0"))
    world.relay(terms, (valid_before, long))
    voucher = world.voucher(terms)
    world.close(terms, voucher)
    assert world.wallet(smart_wallet.address) == BALANCE - voucher.amount


def test_someone_elses_signature_does_not_open_a_wallets_purse(world: World, smart_wallet: Contract) -> None:
    fund(world, smart_wallet)
    terms = world.terms(payer=smart_wallet.address)
    with pytest.raises(RevertedError, match="FiatTokenV2: invalid signature"):
        world.open(terms, signer="payer")
    assert world.wallet(smart_wallet.address) == BALANCE


def test_an_undeployed_wallet_opens_nothing_and_loses_nothing(world: World) -> None:
    undeployed = b"\x77" * 20
    world.usdc.send(ADDRESS["deployer"], "mint", undeployed, BALANCE)
    terms = world.terms(payer=undeployed)
    valid_before, signature = world.authorise(terms, signer="other payer")
    with pytest.raises(RevertedError, match="FiatTokenV2: invalid signature"):
        world.relay(terms, (valid_before, signature))
    with pytest.raises(RevertedError, match="ECRecover: invalid signature length"):
        world.relay(terms, (valid_before, signature + bytes(100)))
    assert world.wallet(undeployed) == BALANCE


def test_a_gas_burning_wallet_costs_its_relayer_the_gas_limit_and_nobody_else_anything(
    world: World, gas_burner: Contract
) -> None:
    fund(world, gas_burner)
    terms = world.terms(payer=gas_burner.address)
    before = world.worths()
    with pytest.raises(RevertedError) as burnt:
        world.relay(terms, (world.chain.now + 600, bytes(65)), gas=300_000)
    assert burnt.value.gas_used <= 300_000
    assert world.gains(before) == {}
    assert world.wallet(gas_burner.address) == BALANCE
    fine = world.opened_terms()
    world.close(fine, world.voucher(fine))


def test_a_wallets_owner_asks_to_close_by_signature(world: World, smart_wallet: Contract) -> None:
    fund(world, smart_wallet)
    terms = world.terms(payer=smart_wallet.address)
    world.open(terms, signer="other payer")
    signature = world.close_request(terms, FEE, "other payer") + bytes(100)
    world.market.send(ADDRESS["stranger"], "request_close", terms_tuple(terms), NO_VOUCHER, signature)
    world.chain.travel(DAY)
    world.market.send(ADDRESS["other payer"], "refund", terms_tuple(terms))
    assert world.wallet(smart_wallet.address) == BALANCE - FEE


def test_a_gas_burning_wallet_costs_whoever_relays_its_withdrawal_the_gas_limit(
    world: World, gas_burner: Contract
) -> None:
    deadline = world.chain.now + 600
    with pytest.raises(RevertedError) as burnt:
        world.market.send(
            ADDRESS["stranger"], "withdraw_by_signature", gas_burner.address, ADDRESS["stranger"], 1, 0,
            deadline, bytes(65), gas=300_000,
        )  # fmt: skip
    assert burnt.value.gas_used <= 300_000


def test_a_host_that_is_a_wallet_is_paid_closes_and_withdraws_by_signature(
    world: World, smart_wallet: Contract
) -> None:
    terms = world.terms(host=smart_wallet.address)
    world.open(terms)
    voucher = world.voucher(terms)
    closing = sign("other payer", host_close_digest(world.domain, world.id_of(terms), voucher.amount))
    world.market.send(
        ADDRESS["stranger"], "close_by_signature", claim_tuple(terms, voucher), closing + bytes(500)
    )
    owed = world.owed(smart_wallet.address)
    assert owed == voucher.amount - (voucher.amount - FEE) // 10
    deadline = world.chain.now + 600
    digest = withdraw_digest(
        world.domain, account=smart_wallet.address, to=ADDRESS["watchtower"], amount=owed, fee=0, nonce=0,
        deadline=deadline,
    )  # fmt: skip
    world.market.send(
        ADDRESS["stranger"], "withdraw_by_signature", smart_wallet.address, ADDRESS["watchtower"], owed, 0,
        deadline, sign("other payer", digest) + b"padding",
    )  # fmt: skip
    assert world.wallet("watchtower") == owed
    assert world.wallet("payer") == BALANCE - voucher.amount
    assert voucher.amount < DEPOSIT
