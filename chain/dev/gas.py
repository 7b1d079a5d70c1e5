"""What a session costs in gas, measured on a chain: the figures of ``p2pnode bench gas``.

``warm``: host, treasury and payer have used the contracts before, as in a running market. ``first``: their
storage slots are new. A checkpoint is a signature between two peers and costs nothing, for no transaction is
sent. The figures are the development token's; Circle's own token, behind its proxy, costs ``REAL_TOKEN_GAS``
more. This module knows nothing of prices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from p2pnode.chain.abi import NO_VOUCHER, claim_tuple, terms_tuple, voucher_tuple
from p2pnode.chain.dev.embedded import Contract, Deployment, DirectChain, EmbeddedChain, deploy
from p2pnode.contract_rules import CHALLENGE_S
from p2pnode.ids import ModelId
from p2pnode.protocols.crypto import keccak256, key_address, sign_digest
from p2pnode.protocols.inference.messages import SessionTerms, Voucher
from p2pnode.protocols.typed_data import (
    Domain,
    amount_due,
    authorisation_digest,
    market_domain,
    session_id,
    voucher_digest,
    withdraw_digest,
)

BATCH: Final = 10
REAL_TOKEN_GAS: Final = {"gas.open": 14_500, "gas.settle": 8_500, "gas.settle_in_10": 2_600}
"""What Circle's FiatTokenV2_2 behind its FiatTokenProxy takes beyond our double, measured here with its
published bytecode: open 121.8k (138.9k first), settle 80.9k (115.1k first), 34.1k each in a batch of ten."""

_TREASURY, _HOST, _PAYER, _VOUCHER_KEY, _STRANGER = (
    keccak256(name)
    for name in (b"gas treasury", b"gas host", b"gas payer", b"gas voucher key", b"gas stranger")
)


Token: TypeAlias = Callable[[EmbeddedChain], Contract]
MakeChain: TypeAlias = Callable[[Iterable[bytes]], DirectChain]
"""A fresh chain on which these secrets' accounts have ether."""


@dataclass(frozen=True, slots=True)
class GasFigure:
    """``first`` is None where the first time costs the same. Figures of a batch are per session."""

    name: str
    warm: int
    first: int | None
    target: int | None

    @property
    def holds(self) -> bool:
        """Whether the target is met, where there is one."""
        return self.target is None or self.warm <= self.target


class _Sessions:
    """Opens sessions and signs their vouchers."""

    def __init__(self, usdc_on: Token | None, make_chain: MakeChain) -> None:
        self.chain = make_chain([_HOST, _PAYER, _STRANGER])
        self.host, self.payer = key_address(_HOST), key_address(_PAYER)
        self.stranger = key_address(_STRANGER)
        self.made: Deployment = deploy(
            self.chain,
            self.host,
            treasury=key_address(_TREASURY),
            fab_holder=self.host,
            usdc=usdc_on(self.chain) if usdc_on and isinstance(self.chain, EmbeddedChain) else None,
        )
        self.made.usdc.send(self.host, "mint", self.payer, 10**12)
        self.domain = market_domain(self.chain.chain_id, self.made.market.address)
        self.token = Domain(
            name="USD Coin", version="2", chain_id=self.chain.chain_id, contract=self.made.usdc.address
        )
        self.salt = 0

    def open(self) -> tuple[SessionTerms, int]:
        """The terms of a new session, and the gas of opening it."""
        self.salt += 1
        terms = SessionTerms(
            payer=self.payer,
            host=self.host,
            voucher_key=key_address(_VOUCHER_KEY),
            receipt_key=self.stranger,
            model=ModelId(keccak256(b"model")),
            deposit=5_000_000,
            price_in=500_000,
            price_out=2_000_000,
            session_fee=50_000,
            tip=50_000,
            expiry=self.chain.now + 7_200,
            salt=keccak256(bytes([self.salt])),
        )
        until = self.chain.now + 600
        digest = authorisation_digest(
            self.token,
            payer=self.payer,
            to=self.made.market.address,
            amount=terms.deposit,
            valid_before=until,
            nonce=session_id(self.domain, terms),
        )
        order = (terms_tuple(terms), until, sign_digest(_PAYER, digest))
        return terms, self.made.market.send(self.host, "open", *order).gas_used

    def voucher(self, terms: SessionTerms, tokens_out: int = 100_000) -> Voucher:
        """An exact voucher for so many tokens."""
        bare = Voucher(
            seq=tokens_out // 32,
            tokens_in=1_000,
            tokens_out=tokens_out,
            amount=amount_due(terms, 1_000, tokens_out),
            root=keccak256(b"root"),
            signature=b"",
        )
        digest = voucher_digest(self.domain, session_id(self.domain, terms), bare)
        return replace(bare, signature=sign_digest(_VOUCHER_KEY, digest))

    def close(self) -> int:
        """The gas of settling a new session."""
        terms, _ = self.open()
        claim = claim_tuple(terms, self.voucher(terms))
        return self.made.market.send(self.host, "close", claim).gas_used

    def close_batch(self, size: int) -> int:
        """The gas of settling this many new sessions at once, per session."""
        claims = [claim_tuple(terms, self.voucher(terms)) for terms in (self.open()[0] for _ in range(size))]
        return -(-self.made.market.send(self.host, "close_many", claims).gas_used // size)

    def challenge(self) -> tuple[int, int, int]:
        """The gas of a request to close, of recording a voucher, and of the refund."""
        market = self.made.market
        terms, _ = self.open()
        asked = market.send(self.payer, "request_close", terms_tuple(terms), NO_VOUCHER, b"").gas_used
        voucher = voucher_tuple(self.voucher(terms))
        recorded = market.send(self.stranger, "submit_voucher", terms_tuple(terms), voucher).gas_used
        self.chain.travel(CHALLENGE_S)
        return asked, recorded, market.send(self.stranger, "refund", terms_tuple(terms)).gas_used

    def release(self) -> int:
        """The gas of releasing a session."""
        terms, _ = self.open()
        return self.made.market.send(self.host, "release", terms_tuple(terms)).gas_used

    def withdraw(self) -> int:
        """The gas of a host's own withdrawal, to an address that has USDC already."""
        return self.made.market.send(self.host, "withdraw", self.host, 1_000).gas_used

    def withdraw_signed(self) -> int:
        """The gas of a relayed withdrawal, with a fee."""
        nonce = self.made.market.read("nonces", self.host)
        until = self.chain.now + 600
        digest = withdraw_digest(
            self.domain, account=self.host, to=self.payer, amount=1_000, fee=10, nonce=nonce, deadline=until
        )
        order = (self.host, self.payer, 1_000, 10, until, sign_digest(_HOST, digest))
        return self.made.market.send(self.stranger, "withdraw_by_signature", *order).gas_used


def measure(usdc_on: Token | None = None, make_chain: MakeChain = EmbeddedChain) -> tuple[GasFigure, ...]:
    """Measure all figures; takes about two seconds. ``usdc_on`` deploys another token than the development
    one on an embedded chain, minted by the first account."""
    sessions = _Sessions(usdc_on, make_chain)
    open_first = sessions.open()[1]
    settle_first = sessions.close()
    sessions.close()
    open_warm = sessions.open()[1]
    settle_warm = sessions.close()
    withdraw_first, withdraw_warm = sessions.withdraw(), sessions.withdraw()
    signed_first, signed_warm = sessions.withdraw_signed(), sessions.withdraw_signed()
    first, warm = sessions.challenge(), sessions.challenge()
    return (
        GasFigure("gas.open", open_warm, open_first, 160_000),
        GasFigure("gas.settle", settle_warm, settle_first, 100_000),
        GasFigure("gas.settle_in_10", sessions.close_batch(BATCH), None, 50_000),
        GasFigure("gas.checkpoint", 0, None, 0),
        GasFigure("gas.release", sessions.release(), None, None),
        GasFigure("gas.request_close", warm[0], first[0], None),
        GasFigure("gas.submit_voucher", warm[1], first[1], None),
        GasFigure("gas.refund", warm[2], first[2], None),
        GasFigure("gas.withdraw", withdraw_warm, withdraw_first, None),
        GasFigure("gas.withdraw_by_signature", signed_warm, signed_first, None),
    )
