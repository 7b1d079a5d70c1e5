"""What a host asks of a paid session, and why it can't take the terms that an ``open`` brings.

Pure, and it asks no chain: ``EscrowIntake`` in ``payments/escrow.py`` does. All amounts are token units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pnode.contract_rules import DURATION_MAX_S
from p2pnode.errors import WireCode
from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import Recover, Signer, recover_address
from p2pnode.protocols.inference.messages import Open, Refuse, SessionTerms
from p2pnode.protocols.typed_data import Domain, authorisation_digest, session_id

EXPIRY_MIN_S: Final = 1_800
"""A session must be able to live for a while before its host must settle it."""
VALID_MAX_S: Final = 600
"""How long an authorisation may still be valid, at most."""
VALID_MIN_S: Final = 100
"""How long it must still be valid: the host may take this long to bring it to the chain."""
_PLAIN_SIGNATURE: Final = 65
NOBODY: Final = bytes(20)
"""The zero address: a party that there is not."""
_Wrong = tuple[WireCode, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPayment:
    """What a host asks of a paid session, and what its machine needs to serve one.

    ``peer`` is this host's own peer id, ``sign`` its receipt key (65 bytes over a digest). Prices are
    token units per million tokens.
    """

    market: Domain
    token: Domain
    peer: PeerId
    wallet: bytes
    receipt_key: bytes
    sign: Signer
    price_in: int
    price_out: int
    session_fee: int
    deposit_min: int = 0
    expiry_min_s: int = EXPIRY_MIN_S
    expiry_max_s: int = DURATION_MAX_S
    valid_min_s: int = VALID_MIN_S
    valid_max_s: int = VALID_MAX_S


def check_open(
    request: Open,
    payment: HostPayment,
    now: int,
    *,
    plain_account: bool = True,
    recover: Recover = recover_address,
) -> Refuse | None:
    """Why a host can't take these terms at ``now`` (epoch seconds), or None. It doesn't ask the chain.

    A 65-byte authorisation must be the payer's own signature; one of another length, and any where
    ``plain_account`` is False, is a contract's to judge: the role lets the ledger try it.
    """
    terms = request.terms
    if terms is None:
        detail = (
            f"this host asks {payment.price_in}/{payment.price_out} USDC units per million tokens in/out "
            f"and {payment.session_fee} a session: open a paid one"
        )
        return Refuse(code="payment_required", detail=detail)
    if request.authorisation is None:
        return Refuse(code="bad_request", detail="the terms came without the payer's authorisation")
    found = (
        _wrong_parties(request, terms, payment)
        or _wrong_price(terms, payment)
        or _wrong_times(request, terms, payment, now)
    )
    if found is not None:
        code, detail = found
        return Refuse(code=code, detail=detail)
    if plain_account and len(request.authorisation) == _PLAIN_SIGNATURE:
        digest = authorisation_digest(
            payment.token,
            payer=terms.payer,
            to=payment.market.contract,
            amount=terms.deposit,
            valid_before=request.valid_before,
            nonce=session_id(payment.market, terms),
        )
        if recover(digest, request.authorisation) != terms.payer:
            detail = "the authorisation is not the payer's signature for these terms on this chain"
            return Refuse(code="bad_request", detail=detail)
    return None


def _wrong_parties(request: Open, terms: SessionTerms, payment: HostPayment) -> _Wrong | None:
    wrong = ""
    if terms.model != request.model:
        wrong = "name another model than the request"
    elif terms.host != payment.wallet:
        wrong = f"pay 0x{terms.host.hex()}; this host's wallet is 0x{payment.wallet.hex()}"
    elif terms.receipt_key != payment.receipt_key:
        wrong = f"name another receipt key than this host's, 0x{payment.receipt_key.hex()}"
    elif any(
        party in (NOBODY, payment.market.contract)
        for party in (terms.payer, terms.host, terms.voucher_key, terms.receipt_key)
    ):
        wrong = "name the zero address or the marketplace itself as a party"
    elif terms.payer == terms.host or terms.voucher_key in (terms.host, terms.payer):
        wrong = "need three different addresses for payer, host and voucher key"
    return ("bad_request", f"the terms {wrong}") if wrong else None


def _wrong_price(terms: SessionTerms, payment: HostPayment) -> _Wrong | None:
    prices, offered = (payment.price_in, payment.price_out), (terms.price_in, terms.price_out)
    if offered != prices:
        return "payment_required", (
            f"this host asks {prices[0]}/{prices[1]} USDC units per million tokens in/out; "
            f"the terms say {offered[0]}/{offered[1]}"
        )
    if terms.session_fee != payment.session_fee:
        return "payment_required", (
            f"this host asks {payment.session_fee} USDC units a session; the terms say {terms.session_fee}"
        )
    if terms.tip > terms.session_fee:
        return "bad_request", f"a tip of {terms.tip}; the contract takes at most the session fee"
    needed = max(terms.session_fee, payment.deposit_min, 1)
    if terms.deposit < needed:
        return "payment_required", f"a deposit of {terms.deposit} USDC units; at least {needed} are needed"
    return None


def _wrong_times(request: Open, terms: SessionTerms, payment: HostPayment, now: int) -> _Wrong | None:
    left = terms.expiry - now
    if not payment.expiry_min_s <= left <= payment.expiry_max_s:
        bounds = f"{payment.expiry_min_s} to {payment.expiry_max_s} s"
        return "bad_request", f"the terms expire in {left} s; this host takes {bounds}: check the clock"
    left = request.valid_before - now
    if not payment.valid_min_s <= left <= payment.valid_max_s:
        bounds = f"{payment.valid_min_s} to {payment.valid_max_s} s"
        return "bad_request", f"the authorisation ends in {left} s; this host takes {bounds}: check the clock"
    return None
