"""EIP-712 digests, as the contracts and the token compute them. Pure: no keys, no chain, no I/O.

Sources: EIP-712 (typed data) and EIP-3009 (authorisations). ``chain/contracts/*.vy`` compute the same; a test
compares both with an independent library.

A payer signs two things with one intent: the terms' digest is the session id, and the session id is the
nonce of the authorisation that it really signs. Signing is injected (``protocols.crypto.Signer``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from p2pnode.contract_rules import TOKENS_PER_PRICE
from p2pnode.ids import SessionId
from p2pnode.protocols.crypto import abi_encode, keccak256
from p2pnode.protocols.inference.messages import SessionTerms, Voucher

VALID_AFTER: Final = 0
"""Authorisations for a session begin at once."""

_DOMAIN: Final = keccak256(
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
_TERMS: Final = keccak256(
    b"SessionTerms(address payer,address host,address voucherKey,address receiptKey,bytes32 modelId,"
    b"uint64 deposit,uint64 pricePerMTokIn,uint64 pricePerMTokOut,uint64 sessionFee,uint64 tip,"
    b"uint64 expiry,bytes32 salt)"
)
_VOUCHER: Final = keccak256(
    b"Voucher(bytes32 sessionId,uint64 seq,uint64 tokensIn,uint64 tokensOut,uint64 amount,bytes32 root)"
)
_CLOSE_REQUEST: Final = keccak256(b"CloseRequest(bytes32 sessionId,uint64 floor)")
_WITHDRAW: Final = keccak256(
    b"Withdraw(address account,address to,uint256 amount,uint256 fee,uint256 nonce,uint256 deadline)"
)
_RECEIVE: Final = keccak256(
    b"ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,"
    b"uint256 validBefore,bytes32 nonce)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The contract that verifies: its name and version, the chain, and its 20-byte address."""

    name: str
    version: str
    chain_id: int
    contract: bytes

    def digest(self, struct_hash: bytes) -> bytes:
        """The 32 bytes a key signs for a struct."""
        return keccak256(b"\x19\x01" + _separator(self) + struct_hash)


@lru_cache(maxsize=64)  # a voucher is signed or checked many times a second, always for one market
def _separator(domain: Domain) -> bytes:
    names = keccak256(domain.name.encode()), keccak256(domain.version.encode())
    return keccak256(abi_encode(_DOMAIN, *names, domain.chain_id, domain.contract))


def market_domain(chain_id: int, market: bytes) -> Domain:
    """The domain of ``JobMarketplace`` (and of the earnings inside it)."""
    return Domain(name="JobMarketplace", version="1", chain_id=chain_id, contract=market)


@lru_cache(maxsize=1024)  # both sides ask for the id of a session that is open again and again
def session_id(market: Domain, terms: SessionTerms) -> SessionId:
    """The digest of the terms: the session's id, and the nonce of its authorisation."""
    fields = (
        terms.payer, terms.host, terms.voucher_key, terms.receipt_key, terms.model, terms.deposit,
        terms.price_in, terms.price_out, terms.session_fee, terms.tip, terms.expiry, terms.salt,
    )  # fmt: skip
    return SessionId(market.digest(keccak256(abi_encode(_TERMS, *fields))))


def voucher_digest(market: Domain, session: SessionId, voucher: Voucher) -> bytes:
    """What the voucher key signs at a checkpoint. ``voucher.signature`` is not read."""
    counts = (voucher.seq, voucher.tokens_in, voucher.tokens_out, voucher.amount)
    return market.digest(keccak256(abi_encode(_VOUCHER, session, *counts, voucher.root)))


def amount_due(terms: SessionTerms, tokens_in: int, tokens_out: int) -> int:
    """Token units owed for cumulative counts: the most a voucher may say, and what an exact one says."""
    cost = tokens_in * terms.price_in + tokens_out * terms.price_out
    return terms.session_fee + -(-cost // TOKENS_PER_PRICE)


def close_request_digest(market: Domain, session: SessionId, floor: int) -> bytes:
    """What the voucher key or the payer signs to ask for a close: ``floor`` is its last voucher's amount,
    and at least the session fee."""
    return market.digest(keccak256(abi_encode(_CLOSE_REQUEST, session, floor)))


def withdraw_digest(
    market: Domain, *, account: bytes, to: bytes, amount: int, fee: int, nonce: int, deadline: int
) -> bytes:
    """What an account signs so that a relayer may withdraw for it: ``to`` gets ``amount - fee``."""
    return market.digest(keccak256(abi_encode(_WITHDRAW, account, to, amount, fee, nonce, deadline)))


def authorisation_digest(
    token: Domain, *, payer: bytes, to: bytes, amount: int, valid_before: int, nonce: bytes
) -> bytes:
    """EIP-3009 ``ReceiveWithAuthorization``: the one signature that opens a session (nonce: its id)."""
    return token.digest(keccak256(abi_encode(_RECEIVE, payer, to, amount, VALID_AFTER, valid_before, nonce)))
