"""Our digests are EIP-712's: compared with an independent library, and with the contracts themselves."""

from __future__ import annotations

from typing import Any

import pytest
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.inference.messages import SessionTerms, Voucher
from p2pnode.protocols.typed_data import (
    Domain,
    amount_due,
    authorisation_digest,
    close_request_digest,
    market_domain,
    session_id,
    voucher_digest,
    withdraw_digest,
)
from tests.chain.contracts.digests import cancel_digest, fab_domain, host_close_digest, permit_digest

CHAIN = 84_532
MARKET = keccak256(b"market")[:20]
TOKEN = Domain(name="USDC", version="2", chain_id=CHAIN, contract=keccak256(b"usdc")[:20])
ALICE, BOB = keccak256(b"alice")[:20], keccak256(b"bob")[:20]
NONCE = keccak256(b"nonce")
TERMS = SessionTerms(
    payer=ALICE,
    host=BOB,
    voucher_key=keccak256(b"voucher")[:20],
    receipt_key=keccak256(b"receipt")[:20],
    model=ModelId(keccak256(b"model")),
    deposit=5_000_000,
    price_in=500_000,
    price_out=2_000_000,
    session_fee=50_000,
    tip=10_000,
    expiry=1_900_000_000,
    salt=keccak256(b"salt"),
)
VOUCHER = Voucher(seq=7, tokens_in=120, tokens_out=224, amount=50_508, root=keccak256(b"r"), signature=b"")
U256, ADDRESS, WORD = "uint256", "address", "bytes32"


def reference(domain: Domain, kind: str, fields: dict[str, tuple[str, Any]]) -> bytes:
    """The digest as eth_account makes it."""
    types = {kind: [{"name": name, "type": type_} for name, (type_, _) in fields.items()]}
    body = {name: value for name, (_, value) in fields.items()}
    made = encode_typed_data(
        {
            "name": domain.name,
            "version": domain.version,
            "chainId": domain.chain_id,
            "verifyingContract": "0x" + domain.contract.hex(),
        },
        types,
        body,
    )
    return keccak256(b"\x19\x01" + made.header + made.body)


def terms_fields(terms: SessionTerms) -> dict[str, tuple[str, Any]]:
    return {
        "payer": (ADDRESS, "0x" + terms.payer.hex()),
        "host": (ADDRESS, "0x" + terms.host.hex()),
        "voucherKey": (ADDRESS, "0x" + terms.voucher_key.hex()),
        "receiptKey": (ADDRESS, "0x" + terms.receipt_key.hex()),
        "modelId": (WORD, terms.model),
        "deposit": ("uint64", terms.deposit),
        "pricePerMTokIn": ("uint64", terms.price_in),
        "pricePerMTokOut": ("uint64", terms.price_out),
        "sessionFee": ("uint64", terms.session_fee),
        "tip": ("uint64", terms.tip),
        "expiry": ("uint64", terms.expiry),
        "salt": (WORD, terms.salt),
    }


DOMAIN = market_domain(CHAIN, MARKET)
SESSION = session_id(DOMAIN, TERMS)
SESSION_VECTOR = "26440de76af3b464e4ecdfcf928296c3ca5d88c077f8b34cc65599272e8e474d"
VOUCHER_VECTOR = "779b6c204f3a664e7705a6528f14ad7b2ba77ab6ca30fa5895b9ea087f858d77"


def test_session_ids_are_eip712_digests_of_the_terms() -> None:
    assert reference(DOMAIN, "SessionTerms", terms_fields(TERMS)) == SESSION
    assert SESSION.hex() == SESSION_VECTOR


def test_voucher_digests_agree() -> None:
    fields = {
        "sessionId": (WORD, SESSION), "seq": ("uint64", 7), "tokensIn": ("uint64", 120),
        "tokensOut": ("uint64", 224), "amount": ("uint64", 50_508), "root": (WORD, VOUCHER.root),
    }  # fmt: skip
    digest = voucher_digest(DOMAIN, SESSION, VOUCHER)
    assert reference(DOMAIN, "Voucher", fields) == digest
    assert digest.hex() == VOUCHER_VECTOR


def test_close_digests_agree() -> None:
    asked = close_request_digest(DOMAIN, SESSION, 50_508)
    assert asked == reference(
        DOMAIN, "CloseRequest", {"sessionId": (WORD, SESSION), "floor": ("uint64", 50_508)}
    )
    closed = host_close_digest(DOMAIN, SESSION, 50_508)
    assert closed == reference(
        DOMAIN, "HostClose", {"sessionId": (WORD, SESSION), "amount": ("uint64", 50_508)}
    )
    assert asked != closed


def test_withdrawal_digests_agree() -> None:
    fields = {
        "account": (ADDRESS, "0x" + ALICE.hex()), "to": (ADDRESS, "0x" + BOB.hex()), "amount": (U256, 9),
        "fee": (U256, 1), "nonce": (U256, 3), "deadline": (U256, 1_900_000_000),
    }  # fmt: skip
    digest = withdraw_digest(DOMAIN, account=ALICE, to=BOB, amount=9, fee=1, nonce=3, deadline=1_900_000_000)
    assert digest == reference(DOMAIN, "Withdraw", fields)


def test_the_tokens_digests_agree() -> None:
    payer = "0x" + ALICE.hex()
    received = authorisation_digest(
        TOKEN, payer=ALICE, to=MARKET, amount=5_000_000, valid_before=1_900_000_000, nonce=NONCE
    )
    assert received == reference(
        TOKEN,
        "ReceiveWithAuthorization",
        {
            "from": (ADDRESS, payer), "to": (ADDRESS, "0x" + MARKET.hex()), "value": (U256, 5_000_000),
            "validAfter": (U256, 0), "validBefore": (U256, 1_900_000_000), "nonce": (WORD, NONCE),
        },
    )  # fmt: skip
    cancelled = cancel_digest(TOKEN, payer=ALICE, nonce=NONCE)
    assert cancelled == reference(
        TOKEN, "CancelAuthorization", {"authorizer": (ADDRESS, payer), "nonce": (WORD, NONCE)}
    )
    fab = fab_domain(CHAIN, BOB)
    permitted = permit_digest(fab, owner=ALICE, spender=MARKET, amount=5, nonce=2, deadline=77)
    assert permitted == reference(
        fab,
        "Permit",
        {
            "owner": (ADDRESS, payer), "spender": (ADDRESS, "0x" + MARKET.hex()), "value": (U256, 5),
            "nonce": (U256, 2), "deadline": (U256, 77),
        },
    )  # fmt: skip


U63 = st.integers(0, (1 << 63) - 1)
BYTES20, BYTES32 = st.binary(min_size=20, max_size=20), st.binary(min_size=32, max_size=32)


@given(
    terms=st.builds(
        SessionTerms, payer=BYTES20, host=BYTES20, voucher_key=BYTES20, receipt_key=BYTES20,
        model=BYTES32.map(ModelId), deposit=U63, price_in=U63, price_out=U63, session_fee=U63, tip=U63,
        expiry=U63, salt=BYTES32,
    )
)  # fmt: skip
def test_any_terms_have_the_same_id_as_the_reference(terms: SessionTerms) -> None:
    assert session_id(DOMAIN, terms) == reference(DOMAIN, "SessionTerms", terms_fields(terms))


@given(tokens_in=U63, tokens_out=U63)
def test_an_amount_is_rounded_up_once_and_never_below_the_fee(tokens_in: int, tokens_out: int) -> None:
    exact = tokens_in * TERMS.price_in + tokens_out * TERMS.price_out
    due = amount_due(TERMS, tokens_in, tokens_out) - TERMS.session_fee
    assert due * 1_000_000 >= exact > (due - 1) * 1_000_000


@pytest.mark.parametrize("other", [market_domain(CHAIN + 1, MARKET), market_domain(CHAIN, BOB)])
def test_another_chain_or_contract_gives_other_digests(other: Domain) -> None:
    assert session_id(other, TERMS) != SESSION
    assert voucher_digest(other, SESSION, VOUCHER) != voucher_digest(DOMAIN, SESSION, VOUCHER)


def test_another_session_gives_another_voucher_digest() -> None:
    assert voucher_digest(DOMAIN, SessionId(NONCE), VOUCHER) != voucher_digest(DOMAIN, SESSION, VOUCHER)
