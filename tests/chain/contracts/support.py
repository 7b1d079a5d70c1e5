"""A deployed world with named actors, and the money questions tests ask of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from typing import Any, Final

from p2pnode.chain.abi import claim_tuple, terms_tuple
from p2pnode.chain.dev.embedded import EmbeddedChain, Receipt, deploy
from p2pnode.chain.dev.gas import Token
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.crypto import keccak256, key_address, sign_digest
from p2pnode.protocols.inference.messages import SessionTerms, Voucher
from p2pnode.protocols.typed_data import (
    Domain,
    amount_due,
    authorisation_digest,
    close_request_digest,
    market_domain,
    session_id,
    voucher_digest,
)
from tests.chain.contracts.digests import fab_domain

DOLLAR: Final = 10**6
FAB: Final = 10**18
DAY: Final = 86_400
FEE: Final = 50_000
TIP: Final = 10_000
DEPOSIT: Final = 5 * DOLLAR
BALANCE: Final = 1_000 * DOLLAR
NAMES: Final = (
    "deployer", "treasury", "host", "rival", "payer", "other payer", "stranger", "watchtower",
    "voucher key", "other voucher key", "receipt key", "other receipt key",
)  # fmt: skip
SECRETS: Final = {name: keccak256(name.encode()) for name in NAMES}
ADDRESS: Final = {name: key_address(secret) for name, secret in SECRETS.items()}
NAME: Final = {address: name for name, address in ADDRESS.items()}
HALF: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
ORDER: Final = 2 * HALF + 1


def sign(name: str, digest: bytes) -> bytes:
    """An actor's 65 bytes."""
    return sign_digest(SECRETS[name], digest)


def malleable_twin(signature: bytes) -> bytes:
    """The other signature of the same key over the same digest: n - s, and the other v."""
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


class World:
    """Contracts on an embedded chain. Payers hold ``BALANCE``; sessions are remembered for the audit."""

    def __init__(self, usdc_on: Token | None = None) -> None:
        self.chain = EmbeddedChain(SECRETS.values())
        made = deploy(
            self.chain,
            ADDRESS["deployer"],
            treasury=ADDRESS["treasury"],
            fab_holder=ADDRESS["deployer"],
            usdc=None if usdc_on is None else usdc_on(self.chain),
        )
        self.market, self.usdc, self.fab = made.market, made.usdc, made.fab
        self.nodes, self.models, self.proofs = made.nodes, made.models, made.proofs
        self.addresses = made.addresses
        self.domain = market_domain(self.chain.chain_id, self.market.address)
        self.fab_domain = fab_domain(self.chain.chain_id, self.fab.address)
        self.token = Domain(
            name="USD Coin", version="2", chain_id=self.chain.chain_id, contract=self.usdc.address
        )
        for name in ("payer", "other payer"):
            self.usdc.send(ADDRESS["deployer"], "mint", ADDRESS[name], BALANCE)
        self.opened: list[SessionTerms] = []
        self.parties: set[bytes] = set(ADDRESS.values())
        self.salts = count(1)

    # Sessions ---------------------------------------------------------------------------------------

    def terms(self, **changes: Any) -> SessionTerms:
        """Usual terms: $5, $0.50 in and $2 out per million tokens, an hour."""
        usual: dict[str, Any] = {
            "payer": ADDRESS["payer"], "host": ADDRESS["host"], "voucher_key": ADDRESS["voucher key"],
            "receipt_key": ADDRESS["receipt key"], "model": ModelId(keccak256(b"model")),
            "deposit": DEPOSIT, "price_in": DOLLAR // 2, "price_out": 2 * DOLLAR, "session_fee": FEE,
            "tip": TIP, "expiry": self.chain.now + 3600, "salt": next(self.salts).to_bytes(32, "big"),
        }  # fmt: skip
        return SessionTerms(**(usual | changes))

    def id_of(self, terms: SessionTerms) -> SessionId:
        """As signed."""
        return session_id(self.domain, terms)

    def authorise(self, terms: SessionTerms, signer: str = "payer", **changes: Any) -> tuple[int, bytes]:
        """``valid_before`` and the payer's signature, ten minutes long."""
        fields: dict[str, Any] = {
            "payer": terms.payer, "to": self.market.address, "amount": terms.deposit,
            "valid_before": self.chain.now + 600, "nonce": self.id_of(terms),
        }  # fmt: skip
        fields |= changes
        return fields["valid_before"], sign(signer, authorisation_digest(self.token, **fields))

    def open(self, terms: SessionTerms, relayer: str = "host", signer: str = "payer") -> Receipt:
        """Open, on the payer's signature."""
        return self.relay(terms, self.authorise(terms, signer), relayer)

    def relay(
        self, terms: SessionTerms, authorisation: tuple[int, bytes], relayer: str = "host", **options: int
    ) -> Receipt:
        """Open with what was signed before."""
        receipt = self.market.send(ADDRESS[relayer], "open", terms_tuple(terms), *authorisation, **options)
        self.opened.append(terms)
        self.parties |= {terms.payer, terms.host}
        return receipt

    def opened_terms(self, **changes: Any) -> SessionTerms:
        """A session that is open."""
        terms = self.terms(**changes)
        self.open(terms)
        return terms

    def voucher(
        self,
        terms: SessionTerms,
        tokens_in: int = 1_000,
        tokens_out: int = 500_000,
        *,
        amount: int | None = None,
        signer: str = "voucher key",
        domain: Domain | None = None,
        session: SessionId | None = None,
    ) -> Voucher:
        """Exact unless ``amount`` is given."""
        bare = Voucher(
            seq=1,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            amount=amount_due(terms, tokens_in, tokens_out) if amount is None else amount,
            root=keccak256(b"root"),
            signature=b"",
        )
        digest = voucher_digest(domain or self.domain, session or self.id_of(terms), bare)
        return replace(bare, signature=sign(signer, digest))

    def close(self, terms: SessionTerms, voucher: Voucher, sender: str = "host") -> Receipt:
        """The host's settlement."""
        return self.market.send(ADDRESS[sender], "close", claim_tuple(terms, voucher))

    def close_many(
        self, claims: Iterable[tuple[SessionTerms, Voucher]], sender: str = "host", **options: int
    ) -> Receipt:
        """A batch."""
        batch = [claim_tuple(*claim) for claim in claims]
        return self.market.send(ADDRESS[sender], "close_many", batch, **options)

    def close_request(self, terms: SessionTerms, least: int, signer: str = "voucher key") -> bytes:
        """A signed wish to close."""
        return sign(signer, close_request_digest(self.domain, self.id_of(terms), least))

    def state(self, terms: SessionTerms) -> tuple[int, int, int]:
        """Status, end of the challenge, recorded amount."""
        status, closing_at, recorded = self.market.read("session", self.id_of(terms))
        return status, closing_at, recorded

    # Money ------------------------------------------------------------------------------------------

    def wallet(self, who: str | bytes) -> int:
        """USDC in hand."""
        return int(self.usdc.read("balanceOf", ADDRESS[who] if isinstance(who, str) else who))

    def owed(self, who: str | bytes) -> int:
        """USDC on the ledger."""
        return int(self.market.read("balance_of", ADDRESS[who] if isinstance(who, str) else who))

    def worth(self, who: str | bytes) -> int:
        """Both: what an actor can get at without asking anyone."""
        return self.wallet(who) + self.owed(who)

    def worths(self) -> dict[str, int]:
        """Everybody's."""
        return {name: self.worth(name) for name in NAMES}

    def gains(self, before: dict[str, int]) -> dict[str, int]:
        """Who gained or lost since, and what; those unchanged are left out."""
        after = self.worths()
        return {name: after[name] - before[name] for name in NAMES if after[name] != before[name]}

    def escrow(self) -> int:
        """Deposits of sessions that are open."""
        return sum(terms.deposit for terms in self.opened if self.state(terms)[0] == 1)

    def audit(self) -> None:
        """Solvency, to the unit: what the market holds is what it owes. (Nobody gave it money in tests.)"""
        ledger = sum(self.owed(party) for party in self.parties)
        assert self.wallet(self.market.address) == self.escrow() + ledger

    def freeze(self, who: str) -> None:
        """The token's issuer blacklists an account."""
        self.usdc.send(ADDRESS["deployer"], "blacklist", ADDRESS[who])
