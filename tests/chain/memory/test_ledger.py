"""The rules in memory are the contracts' rules: the same outcome, reason, event and balance for any call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from random import Random
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.chain.evm.calls import Encoder, market_events
from p2pnode.chain.evm.node import Log
from p2pnode.chain.ledger import (
    NO_REASON,
    Call,
    Close,
    CloseMany,
    Domains,
    EscrowState,
    LedgerEvent,
    MarketCall,
    Open,
    Refund,
    Release,
    RequestClose,
    RevertedError,
    SubmitVoucher,
    Transfer,
    Withdraw,
)
from p2pnode.chain.memory.ledger import MemoryChain
from p2pnode.ids import ModelId
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
)
from tests.chain.contracts.digests import cancel_digest
from tests.chain.contracts.support import ADDRESS, DAY, DOLLAR, NAMES, World, malleable_twin, sign
from tests.chain.ledger_conformance import LedgerConformance, scene
from tests.chain.memory_world import MemoryWorld
from tests.examples import examples

__all__ = ["scene"]

YES_WALLET = bytes.fromhex("6d631626ba7e60e01b5f5260205ff35f52600e6012f3")
"""A contract that holds every signature for its own: its runtime returns ERC-1271's word."""
NO_WALLET = bytes.fromhex("625f5ff35f526003601df3")
"""One that returns nothing."""
ACTORS = ("payer", "other payer", "host", "rival", "treasury", "stranger")
seen: Counter[str] = Counter()
done: Counter[type[Call]] = Counter()


class TestMemoryLedger(LedgerConformance):
    @pytest.fixture
    def world(self) -> MemoryWorld:
        return MemoryWorld()


class Twin:
    """Sends the same calls to the contracts and to the rules; any difference is an assertion error."""

    def __init__(self, world: World) -> None:
        self.world = world
        found = world.addresses
        chain_id = world.chain.chain_id
        self.domains = Domains(
            market=market_domain(chain_id, found.job_marketplace),
            token=Domain(name="USD Coin", version="2", chain_id=chain_id, contract=found.usdc),
            node_registry=found.node_registry,
            treasury=ADDRESS["treasury"],
        )
        self.encoder = Encoder(self.domains)
        self.memory = MemoryChain(self.domains, lambda: self.at)
        self.at = 0
        self.accounts = {*ADDRESS.values(), found.job_marketplace, found.usdc}
        for account in self.accounts:
            self.memory.mint(account, world.wallet(account))

    def deploy_wallet(self, initcode: bytes, *, says: bool) -> bytes:
        made = self.world.chain.send(ADDRESS["deployer"], b"", initcode).contract
        self.memory.deploy_wallet(made, lambda *_: says)
        self.accounts.add(made)
        return made

    def give(self, account: bytes, amount: int) -> None:
        self.world.usdc.send(ADDRESS["deployer"], "mint", account, amount)
        self.memory.mint(account, amount)

    def freeze(self, account: bytes, *, frozen: bool) -> None:
        self.world.usdc.send(ADDRESS["deployer"], "blacklist" if frozen else "unBlacklist", account)
        self.memory.blacklist(account, frozen=frozen)

    def pause(self, *, paused: bool) -> None:
        self.world.usdc.send(ADDRESS["deployer"], "pause" if paused else "unpause")
        self.memory.pause(paused=paused)

    def do(self, sender: str, call: Call) -> str:
        """The reason it was refused for; empty when it was done."""
        self.at = self.world.chain.next_timestamp
        expected = self._on_chain(ADDRESS[sender], call)
        try:
            found: Any = [replace(e, block=0) for e in self.memory.send(ADDRESS[sender], call).events]
        except RevertedError as error:
            found = error.reason
        assert found == expected, call
        reason = found if isinstance(found, str) else ""
        seen[reason] += 1
        done[type(call)] += not reason
        return reason

    def _on_chain(self, sender: bytes, call: Call) -> list[LedgerEvent] | str:
        order = self.encoder.order(call)
        try:
            self.world.chain.call(sender, order.to, order.data, gas=5_000_000)
        except RevertedError as error:
            return error.reason or NO_REASON
        receipt = self.world.chain.send(sender, order.to, order.data, gas=5_000_000)
        logs = [
            Log(contract=contract, topics=topics, data=data, block=0, index=index)
            for index, (contract, topics, data) in enumerate(receipt.logs)
        ]
        return list(market_events(self.world.market.address, logs))

    def audit(self, sessions: list[SessionTerms]) -> None:
        for account in self.accounts:
            held = self.memory.account(account)
            assert (held.usdc, held.earned) == (self.world.wallet(account), self.world.owed(account))
        for terms in sessions:
            status, closing_at, recorded = self.world.state(terms)
            name: Any = ("none", "open", "closed")[status]
            wanted = EscrowState(status=name, closing_at=closing_at or None, recorded=recorded)
            assert self.memory.session(session_id(self.domains.market, terms)) == wanted


class Chaos:
    """Draws mostly sensible calls, and often a wrong sender, signature, amount or time."""

    def __init__(self, twin: Twin, random: Random) -> None:
        self.twin, self.random = twin, random
        self.sessions: list[SessionTerms] = []
        self.vouchers: dict[bytes, list[Voucher]] = {}
        self.salts = count(1)
        self.payers = {ADDRESS[name]: name for name in ("payer", "other payer")}
        self.wallets = (
            twin.deploy_wallet(YES_WALLET, says=True), twin.deploy_wallet(NO_WALLET, says=False),
        )  # fmt: skip
        for wallet in self.wallets:
            twin.give(wallet, 100 * DOLLAR)

    def rarely(self, one_in: int = 8) -> bool:
        return self.random.randrange(one_in) == 0

    def step(self) -> None:
        acts: list[Callable[[], None]] = (
            [self.open] * 4 + [self.argue] * 4 + [self.close] * 3 + [self.request_close] * 2
            + [self.submit] * 2 + [self.release] * 2 + [self.withdraw] * 2 + [self.refund, self.close_many]
            + [self.transfer, self.freeze, self.travel, self.cancel, self.pause]
        )  # fmt: skip
        while len(self.live()) < 2:
            self.open_usual()
        self.random.choice(acts)()

    def live(self) -> list[SessionTerms]:
        return [s for s in self.sessions if self.twin.memory.session(self.id_of(s)).status == "open"]

    def open_usual(self) -> None:
        now = self.twin.world.chain.next_timestamp
        payer = self.random.choice(tuple(self.payers))
        self.twin.freeze(payer, frozen=False)
        if self.twin.memory.account(payer).usdc < 5 * DOLLAR:
            self.twin.give(payer, 50 * DOLLAR)
        fee = self.random.choice((0, 50_000))
        terms = SessionTerms(
            payer=payer, host=ADDRESS[self.random.choice(("host", "rival"))],
            voucher_key=ADDRESS["voucher key"], receipt_key=ADDRESS["receipt key"],
            model=ModelId(keccak256(b"model")), deposit=5 * DOLLAR, price_in=DOLLAR // 2,
            price_out=2 * DOLLAR, session_fee=fee,
            tip=min(fee, self.random.choice((0, 10_000))), expiry=now + 3600,
            salt=next(self.salts).to_bytes(32, "big"),
        )  # fmt: skip
        assert not self.twin.do(self.random.choice(ACTORS), self.opened(terms, now + 600))
        self.sessions.append(terms)

    def argue(self) -> None:
        """A close is asked for; somebody knows better, perhaps too late; then it ends in one of all ways."""
        self.open_usual()
        terms = self.sessions[-1]
        low, high = (self.exact(terms, tokens) for tokens in sorted(self.random.sample(range(10**6), 2)))
        payer, host = self.payers[terms.payer], self.host_of(terms)
        asked = self.random.choice((None, low, high))
        self.twin.do(payer, RequestClose(terms, asked))
        chain = self.twin.world.chain
        closing_at = self.twin.memory.session(self.id_of(terms)).closing_at
        if closing_at is not None and self.rarely(2):
            # To the last second before the end, or to the first after it.
            chain.travel(closing_at - chain.now - self.random.choice((1, 2)))
        if self.rarely(2):
            self.twin.do(self.random.choice(ACTORS), SubmitVoucher(terms, self.random.choice((low, high))))
        ends = (
            Refund(terms), Refund(terms), Close(terms, low), Release(terms), CloseMany((Close(terms, low),)),
        )  # fmt: skip
        end = self.random.choice(ends)
        self.twin.do(self.random.choice((payer, "stranger")) if isinstance(end, Refund) else host, end)

    def opened(self, terms: SessionTerms, until: int) -> Open:
        token, market = self.twin.domains.token, self.twin.domains.market
        digest = authorisation_digest(
            token, payer=terms.payer, to=market.contract, amount=terms.deposit, valid_before=until,
            nonce=session_id(market, terms),
        )  # fmt: skip
        return Open(terms, until, sign(self.payers.get(terms.payer, "stranger"), digest))

    def open(self) -> None:
        random, now = self.random, self.twin.world.chain.next_timestamp
        market = self.twin.domains.market.contract
        terms = SessionTerms(
            payer=random.choice((*self.payers, *self.payers, *self.wallets)),
            host=ADDRESS[random.choice(("host", "host", "rival", "payer"))],
            voucher_key=ADDRESS["voucher key"] if not self.rarely(12) else ADDRESS["host"],
            receipt_key=random.choice((ADDRESS["receipt key"],) * 12 + (bytes(20), market)),
            model=ModelId(keccak256(b"model")),
            deposit=random.choice((5 * DOLLAR,) * 5 + (0, 1, 400_000, 900 * DOLLAR, 5000 * DOLLAR)),
            price_in=random.choice((0, 1, DOLLAR // 2, 2**63 - 1)),
            price_out=random.choice((0, 1, 2 * DOLLAR, 2 * DOLLAR, 2 * DOLLAR, 2**63 - 1)),
            session_fee=random.choice((0, 1, 50_000, 250_000, 250_000, 250_001 if self.rarely() else 7)),
            tip=random.choice((0, 1, 10_000, 250_000, 250_001 if self.rarely() else 7)),
            expiry=now + random.choice((3600,) * 4 + (0, 1, 432_000, 432_001)),
            salt=next(self.salts).to_bytes(32, "big"),
        )  # fmt: skip
        if self.sessions and self.rarely():
            terms = random.choice(self.sessions)
        until = now + random.choice((600,) * 6 + (0, 1))
        call = self.opened(terms, until)
        call = replace(call, authorisation=self.spoilt(call.authorisation))
        if not self.twin.do(random.choice(ACTORS), call):
            self.sessions.append(terms)

    def spoilt(self, signature: bytes) -> bytes:
        if not self.rarely():
            return signature
        return self.random.choice(
            (
                malleable_twin(signature), signature[:64], signature[:64] + b"\x1d", bytes(65), signature * 2,
                bytes(64) + b"\x1b", sign("stranger", signature[:32]), bytes(2049), b"",
            )
        )  # fmt: skip

    def some(self) -> SessionTerms:
        if self.rarely():
            return self.random.choice(self.sessions)
        return self.random.choice(self.live() or self.sessions)

    def id_of(self, terms: SessionTerms) -> Any:
        return session_id(self.twin.domains.market, terms)

    def voucher(self, terms: SessionTerms) -> Voucher:
        known = self.vouchers.setdefault(terms.salt, [])
        if known and self.rarely(3):
            return self.random.choice(known)
        counts = self.random.randrange(5_000), self.random.choice((0, 1, 64, 100_000, 2_000_000))
        amount = min(amount_due(terms, *counts), 2**63 - 1)
        if self.rarely(4):
            amount = self.random.choice((0, amount + 1, terms.deposit, terms.deposit + 1))
        bare = replace(self.exact(terms, counts[1], counts[0]), amount=amount, signature=b"")
        signer = "voucher key" if not self.rarely() else self.random.choice(NAMES)
        digest = voucher_digest(self.twin.domains.market, self.id_of(terms), bare)
        signature = self.spoilt(sign(signer, digest))
        known.append(replace(bare, signature=signature))
        return known[-1]

    def exact(self, terms: SessionTerms, tokens_out: int, tokens_in: int = 7) -> Voucher:
        bare = Voucher(
            seq=1, tokens_in=tokens_in, tokens_out=tokens_out, root=bytes(32), signature=b"",
            amount=amount_due(terms, tokens_in, tokens_out),
        )  # fmt: skip
        digest = voucher_digest(self.twin.domains.market, self.id_of(terms), bare)
        return replace(bare, signature=sign("voucher key", digest))

    def host_of(self, terms: SessionTerms) -> str:
        if self.rarely():
            return self.random.choice(ACTORS)
        return next(name for name in ACTORS if ADDRESS[name] == terms.host)

    def close(self) -> None:
        terms = self.some()
        self.twin.do(self.host_of(terms), Close(terms, self.voucher(terms)))

    def close_many(self) -> None:
        chosen = [self.some() for _ in range(self.random.randrange(1, 5))]
        claims = tuple(Close(terms, self.voucher(terms)) for terms in chosen)
        self.twin.do(self.host_of(chosen[0]), CloseMany(claims))

    def release(self) -> None:
        terms = self.some()
        self.twin.do(self.host_of(terms), Release(terms))

    def request_close(self) -> None:
        terms = self.some()
        voucher = None if self.rarely(2) else self.voucher(terms)
        least = max(terms.session_fee, 0 if voucher is None else voucher.amount - (1 if self.rarely() else 0))
        digest = close_request_digest(self.twin.domains.market, self.id_of(terms), least)
        signer = self.random.choice(("voucher key", self.payers.get(terms.payer, "stranger"), "host"))
        sender = self.payers.get(terms.payer, "stranger") if self.rarely(2) else self.random.choice(ACTORS)
        signature = b"" if self.rarely(3) else self.spoilt(sign(signer, digest))
        self.twin.do(sender, RequestClose(terms, voucher, signature))

    def submit(self) -> None:
        terms = self.some()
        self.twin.do(self.random.choice(ACTORS), SubmitVoucher(terms, self.voucher(terms)))

    def refund(self) -> None:
        if self.rarely(3):
            self.travel()
        self.twin.do(self.random.choice(ACTORS), Refund(self.some()))

    def withdraw(self) -> None:
        owed = [name for name in ACTORS if self.twin.memory.account(ADDRESS[name]).earned]
        sender = self.random.choice(owed or list(ACTORS))
        most = self.twin.memory.account(ADDRESS[sender]).earned
        market, token = self.twin.domains.market.contract, self.twin.domains.token.contract
        to = self.random.choice((*ADDRESS.values(), *ADDRESS.values(), bytes(20), market, token))
        self.twin.do(sender, Withdraw(to, self.random.choice((most, most // 2, 0, most + 1))))

    def transfer(self) -> None:
        sender = self.random.choice(ACTORS)
        held = self.twin.memory.account(ADDRESS[sender]).usdc
        to = self.random.choice((*ADDRESS.values(), bytes(20)))
        self.twin.do(sender, Transfer(to, self.random.choice((0, held // 9, held // 9, held + 1))))

    def freeze(self) -> None:
        account = self.random.choice((*map(ADDRESS.__getitem__, ACTORS), *self.wallets))
        self.twin.freeze(account, frozen=self.rarely(2))

    def pause(self) -> None:
        """One call while nothing moves."""
        self.twin.pause(paused=True)
        self.random.choice((self.open, self.close, self.withdraw, self.transfer, self.refund))()
        self.twin.pause(paused=False)

    def cancel(self) -> None:
        terms, token = self.some(), self.twin.domains.token
        if terms.payer not in self.payers:
            return
        nonce = self.random.choice((self.id_of(terms), self.random.randbytes(32)))
        signature = sign(self.payers[terms.payer], cancel_digest(token, payer=terms.payer, nonce=nonce))
        try:
            self.twin.world.usdc.send(ADDRESS["host"], "cancelAuthorization", terms.payer, nonce, signature)
        except RevertedError as error:
            with pytest.raises(RevertedError, match=error.reason):
                self.twin.memory.cancel_authorisation(terms.payer, nonce)
        else:
            self.twin.memory.cancel_authorisation(terms.payer, nonce)

    def travel(self) -> None:
        self.twin.world.chain.travel(self.random.choice((2, 600, DAY - 2, DAY, 2 * DAY)))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def run_both(world: World, random: Random, steps: int) -> None:
    start = world.chain.snapshot()
    try:
        chaos = Chaos(Twin(world), random)
        for _ in range(steps):
            chaos.step()
        chaos.twin.audit(chaos.sessions)
    finally:
        world.chain.revert(start)


@pytest.mark.long
def test_any_sequence_of_calls_ends_alike_on_the_contracts_and_in_memory(world: World) -> None:
    seen.clear()
    done.clear()

    for seed in range(12):  # the same ones each time: what they reach is asked below
        run_both(world, Random(seed), 30)
    assert min(done[kind] for kind in get_args(MarketCall)) >= 3, done
    assert len(seen) >= 18, seen


@pytest.mark.long
@settings(examples(40), suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_many_more_sequences_end_alike(world: World, seed: int) -> None:
    run_both(world, Random(seed), 150)
