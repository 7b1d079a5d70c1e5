"""What a paid session rests on: the terms a host takes, the vouchers a client signs, the proof of a resume.

Pure: keys are injected as signers, time is an argument, the chain is asked by the roles. ``tab.py`` and
``purse.py`` keep the running accounts of the two sides. All amounts are token units; nothing is rounded
but the price of the tokens, and that once, up (``typed_data.amount_due``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from p2pnode.errors import WireCode
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.crypto import Signer, abi_encode, keccak256, recover_address
from p2pnode.protocols.inference.messages import N_CTX_MAX, Open, Refuse, SessionTerms, Voucher
from p2pnode.protocols.typed_data import (
    TOKENS_PER_PRICE,
    Domain,
    amount_due,
    authorisation_digest,
    session_id,
    voucher_digest,
)

EXPIRY_MAX_S: Final = 432_000
"""As the contract has it: five days."""
EXPIRY_MIN_S: Final = 1_800
"""A session must be able to live for a while before its host must settle it."""
VALID_MAX_S: Final = 600
"""An authorisation lives at most so long."""
VALID_MIN_S: Final = 100
"""So long its relay may take."""
_RESUME_TAG: Final = keccak256(b"p2pnode/resume/1")
_PLAIN_SIGNATURE: Final = 65
_NOBODY: Final = bytes(20)


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
    expiry_max_s: int = EXPIRY_MAX_S
    valid_min_s: int = VALID_MIN_S
    valid_max_s: int = VALID_MAX_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPayment:
    """What a client opens a paid session with. ``sign`` is the voucher key: 65 bytes over a digest."""

    market: Domain
    terms: SessionTerms
    valid_before: int
    authorisation: bytes
    sign: Signer

    @property
    def session(self) -> SessionId:
        """The digest of the terms."""
        return session_id(self.market, self.terms)


# ---- opening


def check_open(request: Open, payment: HostPayment, now: int, *, plain_account: bool = True) -> Refuse | None:
    """Why a host can't take these terms at ``now`` (epoch seconds), or None. The chain isn't asked.

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
        if recover_address(digest, request.authorisation) != terms.payer:
            detail = "the authorisation is not the payer's signature for these terms on this chain"
            return Refuse(code="bad_request", detail=detail)
    return None


_Wrong = tuple[WireCode, str]


def _wrong_parties(request: Open, terms: SessionTerms, payment: HostPayment) -> _Wrong | None:
    wrong = ""
    if terms.model != request.model:
        wrong = "name another model than the request"
    elif terms.host != payment.wallet:
        wrong = f"pay 0x{terms.host.hex()}; this host's wallet is 0x{payment.wallet.hex()}"
    elif terms.receipt_key != payment.receipt_key:
        wrong = f"name another receipt key than this host's, 0x{payment.receipt_key.hex()}"
    elif any(
        party in (_NOBODY, payment.market.contract)
        for party in (terms.payer, terms.host, terms.voucher_key, terms.receipt_key)
    ):
        wrong = "name the zero address or the marketplace itself as a party"
    elif terms.payer == terms.host or terms.voucher_key in (terms.host, terms.payer):
        wrong = "need three different addresses for payer, host and voucher key"
    return ("bad_request", f"the terms {wrong}") if wrong else None


def _wrong_price(terms: SessionTerms, payment: HostPayment) -> _Wrong | None:
    prices, told = (payment.price_in, payment.price_out), (terms.price_in, terms.price_out)
    if told != prices:
        return "payment_required", (
            f"this host asks {prices[0]}/{prices[1]} USDC units per million tokens in/out; "
            f"the terms say {told[0]}/{told[1]}"
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


# ---- paying


def exact_voucher(
    payment: ClientPayment, session: SessionId, *, seq: int, tokens_in: int, tokens_out: int, root: bytes
) -> Voucher:
    """The one voucher that is right for these cumulative counts."""
    amount = amount_due(payment.terms, tokens_in, tokens_out)
    unsigned = Voucher(
        seq=seq, tokens_in=tokens_in, tokens_out=tokens_out, amount=amount, root=root, signature=b""
    )
    return replace(unsigned, signature=payment.sign(voucher_digest(payment.market, session, unsigned)))


def tokens_affordable(terms: SessionTerms, tokens_in: int, tokens_out: int) -> int:
    """How many more output tokens the deposit pays for, after these cumulative counts."""
    if terms.price_out == 0:
        return N_CTX_MAX if amount_due(terms, tokens_in, tokens_out) <= terms.deposit else 0
    left = (terms.deposit - terms.session_fee) * TOKENS_PER_PRICE - tokens_in * terms.price_in
    return max(0, left // terms.price_out - tokens_out)


# ---- resuming


def resume_digest(nonce: bytes, session: SessionId, host: PeerId, client: PeerId) -> bytes:
    """What the voucher key signs to take a session to a stream between these two peers."""
    peers = (keccak256(host.encode()), keccak256(client.encode()))
    return keccak256(abi_encode(_RESUME_TAG, nonce, session, *peers))


def resume_holds(terms: SessionTerms, digest: bytes, proof: bytes) -> bool:
    """Was it the voucher key that signed?"""
    return recover_address(digest, proof) == terms.voucher_key
