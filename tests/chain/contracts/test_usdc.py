"""The development double behaves as FiatTokenV2_2 does, in both signature forms."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.chain.dev.embedded import Contract
from p2pnode.chain.ledger import RevertedError
from p2pnode.protocols.crypto import abi_encode, keccak256
from p2pnode.protocols.typed_data import Domain
from tests.chain.contracts.digests import cancel_digest, permit_digest
from tests.chain.contracts.support import ADDRESS, BALANCE, DOLLAR, World, malleable_twin, sign

TRANSFER = keccak256(
    b"TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,"
    b"uint256 validBefore,bytes32 nonce)"
)
RECEIVE = keccak256(
    b"ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,"
    b"uint256 validBefore,bytes32 nonce)"
)
NONCE = keccak256(b"nonce")
PAYER, HOST = ADDRESS["payer"], ADDRESS["host"]


def split(signature: bytes) -> tuple[int, bytes, bytes]:
    """v, r, s."""
    return signature[64], signature[:32], signature[32:64]


def shaped(form: str, signature: bytes) -> tuple[Any, ...]:
    """The last arguments of a signed call, in one of its two forms."""
    return split(signature) if form == "split" else (signature,)


def authorisation(world: World, kind: bytes, **changes: Any) -> tuple[tuple[Any, ...], bytes]:
    fields: dict[str, Any] = {
        "sender": PAYER, "to": HOST, "amount": DOLLAR, "after": 0, "before": world.chain.now + 60,
        "nonce": NONCE,
    } | changes  # fmt: skip
    digest = world.token.digest(keccak256(abi_encode(kind, *fields.values())))
    return tuple(fields.values()), sign("payer", digest)


FORMS = pytest.mark.parametrize("form", ["bytes", "split"])


def test_it_calls_itself_what_the_real_one_does(world: World) -> None:
    read = world.usdc.read
    assert (read("name"), read("symbol"), read("version")) == ("USD Coin", "USDC", "2")
    assert (read("decimals"), read("currency")) == (6, "USD")
    assert read("TRANSFER_WITH_AUTHORIZATION_TYPEHASH") == TRANSFER
    assert read("RECEIVE_WITH_AUTHORIZATION_TYPEHASH") == RECEIVE
    separator = Domain(
        name="USD Coin", version="2", chain_id=world.chain.chain_id, contract=world.usdc.address
    )
    assert keccak256(b"\x19\x01" + read("DOMAIN_SEPARATOR") + NONCE) == separator.digest(NONCE)


@FORMS
def test_authorised_transfers_move_once(world: World, form: str) -> None:
    fields, signature = authorisation(world, TRANSFER)
    arguments = (*fields, *shaped(form, signature))
    world.usdc.send(ADDRESS["stranger"], "transferWithAuthorization", *arguments)
    assert world.wallet("host") == DOLLAR
    assert world.usdc.read("authorizationState", PAYER, NONCE)
    with pytest.raises(RevertedError, match="FiatTokenV2: authorization is used or canceled"):
        world.usdc.send(ADDRESS["stranger"], "transferWithAuthorization", *arguments)


@FORMS
def test_only_the_payee_receives_an_authorisation(world: World, form: str) -> None:
    fields, signature = authorisation(world, RECEIVE)
    arguments = (*fields, *shaped(form, signature))
    with pytest.raises(RevertedError, match="FiatTokenV2: caller must be the payee"):
        world.usdc.send(ADDRESS["stranger"], "receiveWithAuthorization", *arguments)
    with pytest.raises(RevertedError, match="FiatTokenV2: invalid signature"):
        world.usdc.send(ADDRESS["stranger"], "transferWithAuthorization", *arguments)
    world.usdc.send(HOST, "receiveWithAuthorization", *arguments)
    assert world.wallet("host") == DOLLAR


@FORMS
def test_authorisations_have_a_beginning_an_end_and_low_s(world: World, form: str) -> None:
    def refused(reason: str, signature: bytes, fields: tuple[Any, ...]) -> None:
        with pytest.raises(RevertedError, match=reason):
            world.usdc.send(
                ADDRESS["stranger"], "transferWithAuthorization", *fields, *shaped(form, signature)
            )

    fields, signature = authorisation(world, TRANSFER, after=world.chain.now + 50)
    refused("authorization is not yet valid", signature, fields)
    fields, signature = authorisation(world, TRANSFER, before=world.chain.now)
    refused("authorization is expired", signature, fields)
    fields, signature = authorisation(world, TRANSFER)
    refused("ECRecover: invalid signature 's' value", malleable_twin(signature), fields)
    refused("ECRecover: invalid signature 'v' value", signature[:64] + b"\0", fields)
    refused("ECRecover: invalid signature", bytes(64) + b"\x1b", fields)
    refused("invalid signature", sign("rival", keccak256(b"x")), fields)
    assert world.wallet("payer") == BALANCE


def test_a_signature_that_is_too_short_is_refused(world: World) -> None:
    fields, signature = authorisation(world, TRANSFER)
    with pytest.raises(RevertedError, match="ECRecover: invalid signature length"):
        world.usdc.send(ADDRESS["stranger"], "transferWithAuthorization", *fields, signature[:64])


@FORMS
def test_a_cancelled_authorisation_is_spent(world: World, form: str) -> None:
    signature = sign("payer", cancel_digest(world.token, payer=PAYER, nonce=NONCE))
    forged = sign("rival", cancel_digest(world.token, payer=PAYER, nonce=NONCE))
    with pytest.raises(RevertedError, match="invalid signature"):
        world.usdc.send(HOST, "cancelAuthorization", PAYER, NONCE, *shaped(form, forged))
    world.usdc.send(HOST, "cancelAuthorization", PAYER, NONCE, *shaped(form, signature))
    fields, signed = authorisation(world, TRANSFER)
    with pytest.raises(RevertedError, match="used or canceled"):
        world.usdc.send(HOST, "transferWithAuthorization", *fields, signed)


@FORMS
def test_permits_set_an_allowance_once(world: World, form: str) -> None:
    deadline = world.chain.now + 60
    digest = permit_digest(world.token, owner=PAYER, spender=HOST, amount=7, nonce=0, deadline=deadline)
    arguments = (PAYER, HOST, 7, deadline, *shaped(form, sign("payer", digest)))
    world.usdc.send(ADDRESS["stranger"], "permit", *arguments)
    assert world.usdc.read("allowance", PAYER, HOST) == 7
    with pytest.raises(RevertedError, match="EIP2612: invalid signature"):
        world.usdc.send(ADDRESS["stranger"], "permit", *arguments)
    late = (PAYER, HOST, 7, world.chain.now, *shaped(form, sign("payer", digest)))
    with pytest.raises(RevertedError, match="FiatTokenV2: permit is expired"):
        world.usdc.send(ADDRESS["stranger"], "permit", *late)


def test_a_contract_wallet_signs_by_erc1271_and_only_so(world: World, smart_wallet: Contract) -> None:
    world.usdc.send(ADDRESS["deployer"], "mint", smart_wallet.address, BALANCE)
    fields, _ = authorisation(world, TRANSFER, sender=smart_wallet.address)
    digest = world.token.digest(keccak256(abi_encode(TRANSFER, *fields)))
    with pytest.raises(RevertedError, match="FiatTokenV2: invalid signature"):
        world.usdc.send(HOST, "transferWithAuthorization", *fields, sign("payer", digest))
    world.usdc.send(HOST, "transferWithAuthorization", *fields, sign("other payer", digest) + bytes(200))
    assert world.wallet("host") == DOLLAR


def test_allowances_and_balances_bound_every_transfer(world: World) -> None:
    send = world.usdc.send
    with pytest.raises(RevertedError, match="ERC20: transfer amount exceeds balance"):
        send(PAYER, "transfer", HOST, BALANCE + 1)
    with pytest.raises(RevertedError, match="ERC20: transfer to the zero address"):
        send(PAYER, "transfer", bytes(20), 1)
    with pytest.raises(RevertedError, match="ERC20: transfer amount exceeds allowance"):
        send(HOST, "transferFrom", PAYER, HOST, 1)
    send(PAYER, "approve", HOST, 5)
    send(PAYER, "increaseAllowance", HOST, 5)
    send(PAYER, "decreaseAllowance", HOST, 2)
    send(HOST, "transferFrom", PAYER, HOST, 8)
    assert world.wallet("host") == 8
    with pytest.raises(RevertedError, match="ERC20: decreased allowance below zero"):
        send(PAYER, "decreaseAllowance", HOST, 1)
    with pytest.raises(RevertedError, match="ERC20: approve to the zero address"):
        send(PAYER, "approve", bytes(20), 1)
    send(PAYER, "transfer", PAYER, BALANCE - 8)
    assert world.wallet("payer") == BALANCE - 8


def test_a_blacklisted_account_neither_sends_nor_receives_until_it_is_thawed(world: World) -> None:
    world.freeze("host")
    assert world.usdc.read("isBlacklisted", HOST)
    for sender, to in ((PAYER, HOST), (HOST, PAYER)):
        with pytest.raises(RevertedError, match="Blacklistable: account is blacklisted"):
            world.usdc.send(sender, "transfer", to, 0)
    fields, signature = authorisation(world, TRANSFER)
    with pytest.raises(RevertedError, match="Blacklistable: account is blacklisted"):
        world.usdc.send(PAYER, "transferWithAuthorization", *fields, signature)
    world.usdc.send(ADDRESS["deployer"], "unBlacklist", HOST)
    world.usdc.send(PAYER, "transferWithAuthorization", *fields, signature)
    assert world.wallet("host") == DOLLAR


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (("mint", HOST, 1), "FiatToken: caller is not a minter"),
        (("blacklist", HOST), "Blacklistable: caller is not the blacklister"),
        (("unBlacklist", HOST), "Blacklistable: caller is not the blacklister"),
        (("pause",), "Pausable: caller is not the pauser"),
        (("unpause",), "Pausable: caller is not the pauser"),
    ],
)
def test_only_the_deployer_rules_the_double(world: World, call: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(RevertedError, match=reason):
        world.usdc.send(PAYER, *call)


def test_an_unknown_call_reverts(world: World) -> None:
    with pytest.raises(RevertedError):
        world.chain.send(PAYER, world.usdc.address, b"\1\2\3\4" + bytes(320))
