"""Terms that a host takes, and why it refuses others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2pnode.contract_rules import DURATION_MAX_S
from p2pnode.ids import ModelId
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.open_rules import check_open
from tests.protocols.inference.paid_pair import (
    ACCEPTS,
    HOST_WALLET,
    MARKET,
    NOW,
    PAYER,
    TERMS,
    authorise,
    paid_open,
)
from tests.protocols.inference.pair import HOLDER
from tests.protocols.support import Identity, high_s

NOBODY = bytes(20)
MOST = 2**63 - 1


def refusal(request: m.Open, **changes: Any) -> m.Refuse:
    found = check_open(request, replace(ACCEPTS, **changes), NOW)
    assert found is not None
    assert m.CODEC.decode(m.CODEC.encode(replace(found, detail=m.detail_of(found.detail)))).code == found.code
    return found


# ---- terms


def test_terms_as_the_host_asked_for_are_taken() -> None:
    assert check_open(paid_open(), ACCEPTS, NOW) is None


def test_a_free_open_is_told_the_price() -> None:
    found = refusal(m.Open(model=TERMS.model, salt=bytes(32), holder=HOLDER))
    assert found.code == "payment_required"
    assert "300000/1700000" in found.detail


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"host": Identity("other").wallet}, "bad_request"),
        ({"receipt_key": Identity("other").wallet}, "bad_request"),
        ({"model": ModelId(bytes(32))}, "bad_request"),
        ({"payer": NOBODY}, "bad_request"),
        ({"voucher_key": NOBODY}, "bad_request"),
        ({"payer": MARKET.contract}, "bad_request"),
        ({"voucher_key": MARKET.contract}, "bad_request"),
        ({"payer": HOST_WALLET.wallet}, "bad_request"),
        ({"voucher_key": HOST_WALLET.wallet}, "bad_request"),
        ({"voucher_key": PAYER.wallet}, "bad_request"),
        ({"price_in": TERMS.price_in - 1}, "payment_required"),
        ({"price_in": TERMS.price_in + 1}, "payment_required"),
        ({"price_out": TERMS.price_out - 1}, "payment_required"),
        ({"price_out": MOST}, "payment_required"),
        ({"session_fee": TERMS.session_fee - 1}, "payment_required"),
        ({"session_fee": TERMS.session_fee + 1}, "payment_required"),
        ({"tip": TERMS.session_fee + 1}, "bad_request"),
        ({"deposit": TERMS.session_fee - 1}, "payment_required"),
        ({"deposit": 0}, "payment_required"),
        ({"expiry": NOW + ACCEPTS.expiry_min_s - 1}, "bad_request"),
        ({"expiry": NOW - 1}, "bad_request"),
        ({"expiry": NOW + DURATION_MAX_S + 1}, "bad_request"),
        ({"expiry": MOST}, "bad_request"),
    ],
    ids=lambda change: "-".join(change) if isinstance(change, dict) else change,
)
def test_wrong_terms_are_refused_even_when_the_payer_signed_them(change: dict[str, Any], code: str) -> None:
    assert refusal(paid_open(replace(TERMS, **change))).code == code


@pytest.mark.parametrize(
    "change",
    [
        {"tip": TERMS.session_fee},
        {"deposit": TERMS.session_fee},
        {"deposit": MOST},
        {"expiry": NOW + ACCEPTS.expiry_min_s},
        {"expiry": NOW + DURATION_MAX_S},
    ],
    ids=str,
)
def test_terms_at_the_bounds_are_taken(change: dict[str, Any]) -> None:
    assert check_open(paid_open(replace(TERMS, **change)), ACCEPTS, NOW) is None


ALTERED: dict[str, Any] = {
    "payer": Identity("mallory").wallet,
    "host": Identity("mallory").wallet,
    "voucher_key": Identity("mallory").wallet,
    "receipt_key": Identity("mallory").wallet,
    "model": ModelId(b"m" * 32),
    "deposit": TERMS.deposit - 1,
    "price_in": 1,
    "price_out": 1,
    "session_fee": TERMS.session_fee - 1,
    "tip": 0,
    "expiry": TERMS.expiry - 1,
    "salt": bytes(32),
}


def test_every_field_of_the_terms_is_tried() -> None:
    from dataclasses import fields

    assert set(ALTERED) == {field.name for field in fields(m.SessionTerms)}


@pytest.mark.parametrize("field", sorted(ALTERED))
def test_terms_altered_after_the_payer_signed_are_refused_whatever_the_host_asks(field: str) -> None:
    """Even by a host that would have taken them: the signature is for other terms."""
    terms = replace(TERMS, **{field: ALTERED[field]})
    accepting = replace(
        ACCEPTS,
        wallet=terms.host,
        receipt_key=terms.receipt_key,
        price_in=terms.price_in,
        price_out=terms.price_out,
        session_fee=terms.session_fee,
    )
    altered = m.Open(
        model=terms.model,
        salt=bytes(32),
        holder=HOLDER,
        terms=terms,
        authorisation=authorise(TERMS),
        valid_before=NOW + 300,
    )
    found = check_open(altered, accepting, NOW)
    assert found is not None
    assert "authorisation is not the payer's" in found.detail
    assert (
        check_open(replace(altered, authorisation=authorise(terms)), accepting, NOW) is None
        or field == "payer"
    )


def test_a_deposit_below_the_hosts_minimum_is_refused_with_the_number() -> None:
    assert check_open(paid_open(), replace(ACCEPTS, deposit_min=TERMS.deposit), NOW) is None
    found = refusal(paid_open(), deposit_min=TERMS.deposit + 1)
    assert (found.code, str(TERMS.deposit + 1) in found.detail) == ("payment_required", True)


# ---- authorisations


@pytest.mark.parametrize("left", [-1, 0, 99, 601, MOST - NOW], ids=str)
def test_an_authorisation_expired_or_too_long_is_refused(left: int) -> None:
    found = refusal(paid_open(valid_before=NOW + left))
    assert (found.code, "authorisation ends in" in found.detail) == ("bad_request", True)


@pytest.mark.parametrize("left", [100, 600])
def test_an_authorisation_at_the_bounds_is_taken(left: int) -> None:
    assert check_open(paid_open(valid_before=NOW + left), ACCEPTS, NOW) is None


@pytest.mark.parametrize(
    "authorisation",
    [
        pytest.param(None, id="none"),
        pytest.param(bytes(65), id="zeros"),
        pytest.param(authorise(TERMS, secret=Identity("thief").wallet_secret), id="forged by another key"),
        pytest.param(authorise(TERMS, valid_before=NOW + 301), id="for another time"),
        pytest.param(high_s(authorise(TERMS)), id="malleable"),
    ],
)
def test_a_forged_authorisation_is_refused(authorisation: bytes | None) -> None:
    assert refusal(paid_open(authorisation=authorisation)).code == "bad_request"


@pytest.mark.parametrize("domain", ["market", "token"])
def test_an_authorisation_for_another_chain_is_refused(domain: str) -> None:
    elsewhere = replace(getattr(ACCEPTS, domain), chain_id=1)
    assert "on this chain" in refusal(paid_open(), **{domain: elsewhere}).detail


def test_what_only_a_contract_can_judge_is_left_to_the_ledger() -> None:
    assert check_open(paid_open(authorisation=bytes(500)), ACCEPTS, NOW) is None
    assert check_open(paid_open(authorisation=bytes(65)), ACCEPTS, NOW, plain_account=False) is None
    assert refusal(paid_open(authorisation=bytes(65))).code == "bad_request"
