"""Every call of JobMarketplace, by anyone, in any order: each must do what the book says, or refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from p2pnode.chain.abi import NO_VOUCHER, claim_tuple, terms_tuple, voucher_tuple
from p2pnode.chain.ledger import RevertedError
from p2pnode.protocols.inference.messages import SessionTerms, Voucher
from p2pnode.protocols.typed_data import amount_due, withdraw_digest
from tests.chain.contracts.book import Book, Session
from tests.chain.contracts.digests import host_close_digest
from tests.chain.contracts.support import ADDRESS, BALANCE, DAY, DOLLAR, NAME, World, sign

PAYERS = ("payer", "other payer")
HOSTS = ("host", "rival")
ACTORS: tuple[str, ...] = (*PAYERS, *HOSTS, "treasury", "stranger")
RECEIPT_KEYS = {"host": "receipt key", "rival": "other receipt key"}
INDEX = st.integers(0, 1 << 16)
ACTOR = st.sampled_from(ACTORS)
RARELY = st.sampled_from((None,) * 18 + ACTORS)
"""Mostly None: the one who may do it does it. Else anyone tries."""
TOKENS = st.integers(1, 200_000)
PRICE = st.sampled_from((0, 1, DOLLAR // 2, 2 * DOLLAR, 2 * DOLLAR, 2**63 - 1))


class MarketRules(RuleBasedStateMachine):
    """Rules and what they need; ``world`` is fresh for each run."""

    world: World
    steps = 0
    refusals = 0

    def begin(self) -> None:
        self.book = Book()
        for name in PAYERS:
            self.book.wallets[ADDRESS[name]] = BALANCE

    @property
    def at(self) -> int:
        """When the next transaction will be mined."""
        return self.world.chain.now + 1

    def expect(self, allowed: bool, call: Callable[[], object]) -> bool:
        """Do it; it works if and only if the book allows it."""
        type(self).steps += 1
        refusal = ""
        try:
            call()
        except RevertedError as error:
            type(self).refusals += 1
            refusal = error.reason or "without a reason"
        assert allowed == (refusal == ""), refusal or "the contract did what the book forbids"
        return allowed

    def send(self, sender: str, name: str, *arguments: Any) -> Callable[[], object]:
        return lambda: self.world.market.send(ADDRESS[sender], name, *arguments)

    def some(self, index: int) -> Session:
        """Mostly one that is open; -1 is the last."""
        live = [session for session in self.book.sessions if session.is_open]
        chosen = live if live and index % 8 else self.book.sessions
        return chosen[index % len(chosen)]

    def host_of(self, session: Session) -> str:
        return NAME[session.terms.host]

    def best(self, session: Session, index: int) -> Voucher:
        """One of the vouchers signed for this session; one for nothing where there is none."""
        if not session.vouchers:
            session.vouchers.append(self.world.voucher(session.terms, 0, 0))
        return session.vouchers[-1 - index % len(session.vouchers)]

    def creditor(self, index: int) -> str:
        owed = [NAME[account] for account, amount in self.book.ledger.items() if amount]
        return owed[index % len(owed)]

    def opened(self) -> bool:
        return bool(self.book.sessions)

    def running(self) -> bool:
        return any(session.is_open for session in self.book.sessions)

    @rule(
        payer=st.sampled_from(PAYERS), host=st.sampled_from(HOSTS), relayer=ACTOR,
        deposit=st.integers(500_000, 40 * DOLLAR), price_in=PRICE, price_out=PRICE,
        fee=st.sampled_from((0, 1, 50_000, 250_000)), tip=st.sampled_from((0, 1, 250_000)),
        hours=st.integers(1, 119),
    )  # fmt: skip
    def open(self, payer: str, host: str, relayer: str, hours: int, **amounts: int) -> None:
        terms = self.world.terms(
            payer=ADDRESS[payer], host=ADDRESS[host], receipt_key=ADDRESS[RECEIPT_KEYS[host]],
            deposit=amounts["deposit"], price_in=amounts["price_in"], price_out=amounts["price_out"],
            session_fee=amounts["fee"], tip=amounts["tip"], expiry=self.at + hours * 3600,
        )  # fmt: skip
        self._open(terms, payer, relayer)

    def _open(self, terms: SessionTerms, payer: str, relayer: str) -> bool:
        done = self.expect(self.book.can_open(terms), lambda: self.world.open(terms, relayer, payer))
        if done:
            self.book.open(terms)
        return done

    @precondition(opened)
    @rule(index=INDEX, relayer=ACTOR)
    def open_again(self, index: int, relayer: str) -> None:
        terms = self.some(index).terms
        signer = next(name for name in PAYERS if ADDRESS[name] == terms.payer)
        self.expect(False, lambda: self.world.open(terms, relayer, signer))

    @precondition(opened)
    @rule(index=INDEX, more_in=st.integers(0, 5_000), more_out=st.integers(1, 200_000))
    def sign_a_voucher(self, index: int, more_in: int, more_out: int) -> None:
        """Off the chain: the client received more, and signs for all of it."""
        session = self.some(index)
        last = session.vouchers[-1] if session.vouchers else None
        counts = (more_in, more_out)
        if last is not None:
            counts = (last.tokens_in + more_in, last.tokens_out + more_out)
        if amount_due(session.terms, *counts) <= session.terms.deposit:
            session.vouchers.append(self.world.voucher(session.terms, *counts))

    @precondition(running)
    @rule(index=INDEX, which=INDEX, impostor=RARELY)
    def close(self, index: int, which: int, impostor: str | None) -> None:
        session = self.some(index)
        sender = impostor or self.host_of(session)
        voucher = self.best(session, which)
        allowed = session.is_open and ADDRESS[sender] == session.terms.host
        if self.expect(allowed, self.send(sender, "close", claim_tuple(session.terms, voucher))):
            self.book.settle(session, voucher.amount, 0, session.terms.host)

    @precondition(running)
    @rule(index=INDEX, which=INDEX, impostor=RARELY, relayer=ACTOR)
    def close_by_signature(self, index: int, which: int, impostor: str | None, relayer: str) -> None:
        session = self.some(index)
        signer = impostor or self.host_of(session)
        voucher = self.best(session, which)
        digest = host_close_digest(self.world.domain, self.world.id_of(session.terms), voucher.amount)
        allowed = session.is_open and ADDRESS[signer] == session.terms.host
        claim = claim_tuple(session.terms, voucher)
        if self.expect(allowed, self.send(relayer, "close_by_signature", claim, sign(signer, digest))):
            self.book.settle(session, voucher.amount, 0, session.terms.host)

    @precondition(opened)
    @rule(indices=st.lists(INDEX, min_size=1, max_size=5), which=INDEX, sender=st.sampled_from(HOSTS))
    def close_many(self, indices: list[int], which: int, sender: str) -> None:
        chosen = [self.some(index) for index in indices]
        claims = [claim_tuple(session.terms, self.best(session, which)) for session in chosen]
        self.expect(True, self.send(sender, "close_many", claims))
        for session in chosen:
            if session.is_open and ADDRESS[sender] == session.terms.host:
                self.book.settle(session, self.best(session, which).amount, 0, session.terms.host)

    @precondition(running)
    @rule(index=INDEX, impostor=RARELY)
    def release(self, index: int, impostor: str | None) -> None:
        session = self.some(index)
        sender = impostor or self.host_of(session)
        nothing_shown = session.recorded <= session.terms.session_fee
        allowed = session.is_open and ADDRESS[sender] == session.terms.host and nothing_shown
        if self.expect(allowed, self.send(sender, "release", terms_tuple(session.terms))):
            self.book.release(session)

    @precondition(running)
    @rule(index=INDEX, which=st.none() | INDEX, impostor=RARELY, signed=st.booleans())
    def request_close(self, index: int, which: int | None, impostor: str | None, *, signed: bool) -> None:
        session = self.some(index)
        sender = impostor or NAME[session.terms.payer]
        voucher = None if which is None else self.best(session, which)
        least = max(session.terms.session_fee, 0 if voucher is None else voucher.amount)
        signature = self.world.close_request(session.terms, least) if signed else b""
        allowed = (
            session.is_open and session.closing_at == 0 and (signed or ADDRESS[sender] == session.terms.payer)
        )
        asked = NO_VOUCHER if voucher is None else voucher_tuple(voucher)
        at = self.at
        order = (terms_tuple(session.terms), asked, signature)
        if self.expect(allowed, self.send(sender, "request_close", *order)):
            session.closing_at, session.recorded = at + DAY, max(session.recorded, least)

    @precondition(opened)
    @rule(index=INDEX, which=INDEX, sender=ACTOR)
    def submit_voucher(self, index: int, which: int, sender: str) -> None:
        closing = [session for session in self.book.sessions if session.closing_at]
        often = closing and index % 4
        self.submit_voucher_for(closing[index % len(closing)] if often else self.some(index), which, sender)

    def submit_voucher_for(self, session: Session, which: int, sender: str) -> None:
        voucher = self.best(session, which)
        allowed = session.is_open and voucher.amount > session.recorded
        order = (terms_tuple(session.terms), voucher_tuple(voucher))
        if self.expect(allowed, self.send(sender, "submit_voucher", *order)):
            session.recorded = voucher.amount

    @precondition(opened)
    @rule(index=INDEX, sender=ACTOR)
    def refund(self, index: int, sender: str) -> None:
        session = self.some(index)
        alone = ADDRESS[sender] in (session.terms.payer, session.terms.host)
        tip = 0 if alone else session.terms.tip
        allowed = session.refundable(self.at)
        if self.expect(allowed, self.send(sender, "refund", terms_tuple(session.terms))):
            self.book.settle(session, 0, tip, ADDRESS[sender])

    @rule(payer=st.sampled_from(PAYERS), host=st.sampled_from(HOSTS), tokens=TOKENS, impostor=RARELY)
    def serve_and_close(self, payer: str, host: str, tokens: int, impostor: str | None) -> None:
        """What most sessions are."""
        if self._open_usual(payer, host):
            self.sign_a_voucher(-1, tokens, tokens)
            self.close(-1, 0, impostor)

    @rule(
        payer=st.sampled_from(PAYERS), host=st.sampled_from(HOSTS), tokens=TOKENS, signed=st.booleans(),
        watchtower=ACTOR, late=st.booleans(),
    )  # fmt: skip
    def serve_and_argue(
        self, payer: str, host: str, tokens: int, watchtower: str, *, signed: bool, late: bool
    ) -> None:
        """A payer asks to close with its oldest voucher; somebody holds a newer one, perhaps too late."""
        if self._open_usual(payer, host):
            session = self.book.sessions[-1]
            self.sign_a_voucher(-1, tokens, tokens)
            self.sign_a_voucher(-1, tokens, tokens)
            self.request_close(-1, len(session.vouchers) - 1, None, signed=signed)
            if late:
                self.let_time_pass(24)
            self.submit_voucher_for(session, 0, watchtower)

    def _open_usual(self, payer: str, host: str) -> bool:
        terms = self.world.terms(
            payer=ADDRESS[payer], host=ADDRESS[host], receipt_key=ADDRESS[RECEIPT_KEYS[host]]
        )
        return self._open(terms, payer, host)

    @precondition(opened)
    @rule(index=INDEX, forger=ACTOR, tokens=st.integers(1, 10**9))
    def forge(self, index: int, forger: str, tokens: int) -> None:
        """The host claims what its own key, or anybody's but the voucher key, signed."""
        session = self.some(index)
        amount = min(session.terms.deposit, amount_due(session.terms, 0, tokens))
        voucher = self.world.voucher(session.terms, 0, tokens, amount=amount, signer=forger)
        host = next(name for name in HOSTS if ADDRESS[name] == session.terms.host)
        self.expect(False, self.send(host, "close", claim_tuple(session.terms, voucher)))
        order = (terms_tuple(session.terms), voucher_tuple(voucher))
        self.expect(False, self.send(forger, "submit_voucher", *order))

    def owing(self) -> bool:
        return any(self.book.ledger.values())

    @precondition(owing)
    @rule(index=INDEX, to=ACTOR, percent=st.integers(0, 101), poor=RARELY)
    def withdraw(self, index: int, to: str, percent: int, poor: str | None) -> None:
        account = poor or self.creditor(index)
        amount = self.book.ledger[ADDRESS[account]] * percent // 100
        order = (ADDRESS[account], ADDRESS[to], amount, 0, ADDRESS[account])
        if self.expect(self.book.can_withdraw(*order), self.send(account, "withdraw", ADDRESS[to], amount)):
            self.book.withdraw(*order)

    @precondition(owing)
    @rule(index=INDEX, to=ACTOR, relayer=ACTOR, percent=st.integers(1, 100), fee=st.integers(0, 9))
    def withdraw_by_signature(self, index: int, to: str, relayer: str, percent: int, fee: int) -> None:
        account = self.creditor(index)
        owner = ADDRESS[account]
        amount = self.book.ledger[owner] * percent // 100
        deadline = self.at + 60
        digest = withdraw_digest(
            self.world.domain, account=owner, to=ADDRESS[to], amount=amount, fee=fee,
            nonce=self.world.market.read("nonces", owner), deadline=deadline,
        )  # fmt: skip
        signed = (owner, ADDRESS[to], amount, fee, deadline, sign(account, digest))
        order = (owner, ADDRESS[to], amount, fee, ADDRESS[relayer])
        if self.expect(self.book.can_withdraw(*order), self.send(relayer, "withdraw_by_signature", *signed)):
            self.book.withdraw(*order)
            self.expect(False, self.send(relayer, "withdraw_by_signature", *signed))

    @rule(who=RARELY)
    def freeze_or_thaw(self, who: str | None) -> None:
        """The token's issuer freezes one account now and then, and thaws the others."""
        wanted = set() if who is None else {ADDRESS[who]}
        for account in sorted(self.book.frozen ^ wanted):
            name = "blacklist" if account in wanted else "unBlacklist"
            self.world.usdc.send(ADDRESS["deployer"], name, account)
        self.book.frozen = wanted

    @rule(hours=st.sampled_from((1, 1, 6, 12, 24, 120)))
    def let_time_pass(self, hours: int) -> None:
        self.world.chain.travel(hours * 3600)
