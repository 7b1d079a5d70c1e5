"""The rules of JobMarketplace once more, in a few lines of Python: what the contracts are compared with."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from p2pnode.protocols.inference.messages import SessionTerms, Voucher
from tests.chain.contracts.support import ADDRESS, DAY

OPEN, CLOSED = 1, 2


@dataclass(slots=True)
class Session:
    """One escrow. ``vouchers`` are those its voucher key has signed, in order."""

    terms: SessionTerms
    status: int = OPEN
    closing_at: int = 0
    recorded: int = 0
    vouchers: list[Voucher] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.status == OPEN

    def refundable(self, at: int) -> bool:
        asked = self.closing_at > 0 and at >= self.closing_at
        return self.is_open and (asked or at >= self.terms.expiry + DAY)


@dataclass(slots=True)
class Book:
    """Who has what: in hand, and on the market's ledger."""

    wallets: defaultdict[bytes, int] = field(default_factory=lambda: defaultdict(int))
    ledger: defaultdict[bytes, int] = field(default_factory=lambda: defaultdict(int))
    frozen: set[bytes] = field(default_factory=set)
    sessions: list[Session] = field(default_factory=list)
    tokens_earned: int = 0
    treasury_earned: int = 0

    def escrow(self) -> int:
        return sum(session.terms.deposit for session in self.sessions if session.is_open)

    def can_open(self, terms: SessionTerms) -> bool:
        affordable = self.wallets[terms.payer] >= terms.deposit
        return terms.payer not in self.frozen and affordable and terms.tip <= terms.session_fee

    def open(self, terms: SessionTerms) -> None:
        self.wallets[terms.payer] -= terms.deposit
        self.sessions.append(Session(terms))

    def settle(self, session: Session, claimed: int, tip: int, caller: bytes) -> None:
        """Pay the host at least what is recorded and its fee, the treasury a tenth of what tokens earned."""
        terms = session.terms
        amount = max(claimed, session.recorded, terms.session_fee)
        earned = amount - terms.session_fee
        tenth = earned // 10
        self.ledger[terms.host] += amount - tenth
        self.ledger[ADDRESS["treasury"]] += tenth
        self.tokens_earned += earned
        self.treasury_earned += tenth
        self.ledger[terms.host] -= tip
        self._pay(terms.payer, terms.deposit - amount)
        self._pay(caller, tip)
        session.status, session.closing_at, session.recorded = CLOSED, 0, amount

    def release(self, session: Session) -> None:
        self.settle(session, 0, 0, session.terms.host)

    def can_withdraw(self, account: bytes, to: bytes, amount: int, fee: int, caller: bytes) -> bool:
        reachable = to not in self.frozen and (fee == 0 or caller not in self.frozen)
        return 0 < amount <= self.ledger[account] and fee <= amount and reachable

    def withdraw(self, account: bytes, to: bytes, amount: int, fee: int, caller: bytes) -> None:
        self.ledger[account] -= amount
        self.wallets[to] += amount - fee
        self.wallets[caller] += fee

    def _pay(self, to: bytes, amount: int) -> None:
        (self.ledger if to in self.frozen else self.wallets)[to] += amount
