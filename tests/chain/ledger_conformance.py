"""What every ledger must do, whatever it is made of. Subclass it and give it a ``world`` fixture.

The actors are those of ``contracts/support.py``: payers hold ``BALANCE`` USDC, all hold ether. Every refusal
is asked for twice, by ``check``, which must cost nothing, and by ``transact``, with the contract's reason.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import count
from typing import Any, Protocol

import pytest
import trio

from p2pnode.chain.ledger import (
    NO_REASON,
    AccountState,
    AddStake,
    Approve,
    Attest,
    Call,
    ClaimSkipped,
    Close,
    CloseMany,
    CloseRequested,
    EscrowState,
    FabState,
    Ledger,
    LedgerEvent,
    Open,
    Outcome,
    Proposal,
    Propose,
    Proposed,
    Rebond,
    Refund,
    Register,
    RegistryLedger,
    Release,
    RequestClose,
    ReturnBond,
    RevertedError,
    SessionClosed,
    SessionOpened,
    Slash,
    Slashed,
    SubmitVoucher,
    Transfer,
    TransferFab,
    Unbond,
    Unlock,
    Vote,
    VoucherRecorded,
    Withdraw,
    Withdrawn,
    WithdrawStake,
)
from p2pnode.contract_rules import BOND, CLAIMS_MAX, MANIFEST_BYTES_MAX, QUORUM, UNBONDING_S, VOTING_S
from p2pnode.errors import ChainError
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.inference.messages import Checkpoint, Receipt, SessionTerms, Voucher
from p2pnode.protocols.inference.receipts import NO_FINGERPRINT, ReceiptChain, token_hash
from p2pnode.protocols.typed_data import (
    amount_due,
    authorisation_digest,
    close_request_digest,
    session_id,
    voucher_digest,
)
from tests.chain.contracts.support import ADDRESS, BALANCE, DAY, DEPOSIT, DOLLAR, FAB, FEE, TIP, sign

_salts = count(1)
DEADLINE_S = 30
STAKE = 1_000 * FAB
MANIFEST = b'{"architecture":"llama","n_ctx":2048}'


def model_of(manifest: bytes) -> ModelId:
    """As models/SPEC.md has it."""
    return ModelId(hashlib.sha256(b"p2pnode/model/1\0" + manifest).digest())


class LedgerWorld(Protocol):
    """One chain, seen by each actor (and, with None, by a reader)."""

    async def ledger(self, name: str | None) -> RegistryLedger: ...

    async def travel(self, seconds: int) -> None: ...

    async def freeze(self, name: str) -> None:
        """The token's issuer blacklists an actor."""

    async def give_fab(self, name: str, amount: int) -> None:
        """FAB, in its smallest unit, from who got all of it."""


class Scene:
    """What payers and hosts sign on one chain."""

    def __init__(self, world: LedgerWorld, reader: RegistryLedger) -> None:
        self.world, self.reader, self.domains = world, reader, reader.domains

    async def terms(self, **changes: Any) -> SessionTerms:
        now = (await self.reader.head()).timestamp
        usual: dict[str, Any] = {
            "payer": ADDRESS["payer"], "host": ADDRESS["host"], "voucher_key": ADDRESS["voucher key"],
            "receipt_key": ADDRESS["receipt key"], "model": ModelId(keccak256(b"model")),
            "deposit": DEPOSIT, "price_in": DOLLAR // 2, "price_out": 2 * DOLLAR, "session_fee": FEE,
            "tip": TIP, "expiry": now + 3600, "salt": next(_salts).to_bytes(32, "big"),
        }  # fmt: skip
        return SessionTerms(**(usual | changes))

    def id_of(self, terms: SessionTerms) -> SessionId:
        return session_id(self.domains.market, terms)

    async def open_call(self, terms: SessionTerms, signer: str = "payer", *, lasts_s: int = 600) -> Open:
        until = (await self.reader.head()).timestamp + lasts_s
        digest = authorisation_digest(
            self.domains.token, payer=terms.payer, to=self.domains.market.contract, amount=terms.deposit,
            valid_before=until, nonce=self.id_of(terms),
        )  # fmt: skip
        return Open(terms, until, sign(signer, digest))

    async def open(self, **changes: Any) -> SessionTerms:
        terms = await self.terms(**changes)
        await self.do("host", await self.open_call(terms))
        return terms

    def voucher(
        self, terms: SessionTerms, tokens_out: int = 500_000, *, signer: str = "voucher key", more: int = 0
    ) -> Voucher:
        bare = Voucher(
            seq=1, tokens_in=1_000, tokens_out=tokens_out, root=keccak256(b"root"), signature=b"",
            amount=amount_due(terms, 1_000, tokens_out) + more,
        )  # fmt: skip
        return replace(
            bare, signature=sign(signer, voucher_digest(self.domains.market, self.id_of(terms), bare))
        )

    def receipt(
        self, terms: SessionTerms, answer: str, *, epoch: int = 3, signer: str = "receipt key", links: int = 1
    ) -> Receipt:
        """The last of a chain for this answer, as a host signs it while streaming."""
        chain = ReceiptChain.begin(self.id_of(terms), terms.model, b"secret salt", epoch)
        previous, hashed = b"", b""
        for number in range(1, links + 1):
            previous, hashed = chain.root, token_hash([answer.encode()])
            chain.advance(10, 32 * number, hashed, NO_FINGERPRINT)
        checkpoint = Checkpoint(
            seq=links, tokens_in=10, tokens_out=32 * links, token_hash=hashed,
            fingerprint_hash=NO_FINGERPRINT, root=chain.root, signature=sign(signer, chain.digest()),
        )  # fmt: skip
        return Receipt(epoch=epoch, previous=previous, checkpoint=checkpoint)

    async def do(self, name: str, call: Call) -> Outcome:
        ledger = await self.world.ledger(name)
        await ledger.check(call)
        with trio.fail_after(DEADLINE_S):
            return await ledger.transact(call)

    async def refused(self, name: str, call: Call, reason: str) -> None:
        """Refused without a transaction, and for the same reason with one."""
        ledger = await self.world.ledger(name)
        before = await self.reader.balances(ADDRESS[name])
        for act in (ledger.check(call), self.reader.check(call, ADDRESS[name])):
            with pytest.raises(RevertedError) as tried:
                await act
            assert tried.value.reason == reason
        assert await self.reader.balances(ADDRESS[name]) == before
        with pytest.raises(RevertedError) as met, trio.fail_after(DEADLINE_S):
            await ledger.transact(call)
        assert met.value.reason == reason
        after = await self.reader.balances(ADDRESS[name])
        assert (after.usdc, after.earned) == (before.usdc, before.earned)

    async def has(self, name: str) -> AccountState:
        return await self.reader.balances(ADDRESS[name])

    async def worth(self, *names: str) -> dict[str, int]:
        found = {name: await self.has(name) for name in names}
        return {name: state.usdc + state.earned for name, state in found.items()}

    async def stake(self, name: str = "host", receipt_key: str = "receipt key", amount: int = STAKE) -> None:
        """A host registers with a stake and this receipt key."""
        await self.give_fab(name, amount)
        await self.do(name, Approve(self.domains.node_registry, amount))
        await self.do(name, Register(keccak256(name.encode()), ADDRESS[receipt_key], amount))

    async def give_fab(self, name: str, amount: int) -> None:
        await self.world.give_fab(name, amount)

    async def fab(self, name: str) -> int:
        return (await self.reader.fab(ADDRESS[name])).balance

    async def node(self, name: str = "host") -> tuple[int, int]:
        """Its stake, and what unbonds."""
        found = await self.reader.node(ADDRESS[name])
        return found.stake, found.unbonding

    async def propose(self, name: str = "host", manifest: bytes = MANIFEST) -> Proposal:
        await self.give_fab(name, BOND)
        await self.do(name, Approve(self.domains.model_registry, BOND))
        (proposed,) = (await self.do(name, Propose(manifest))).events
        assert isinstance(proposed, Proposed)
        found = await self.reader.proposal(proposed.proposal)
        assert found is not None
        return found

    async def vote(self, name: str, proposal: Proposal, amount: int, *, support: bool = True) -> None:
        await self.do(name, Approve(self.domains.model_registry, amount))
        await self.do(name, Vote(proposal.number, support, amount))

    async def state(self, terms: SessionTerms) -> EscrowState:
        return await self.reader.session(self.id_of(terms))


@pytest.fixture
async def scene(world: LedgerWorld) -> Scene:
    return Scene(world, await world.ledger(None))


class LedgerConformance:
    # ---- open

    async def test_open_puts_the_deposit_into_escrow_and_says_so(self, scene: Scene) -> None:
        terms = await scene.terms()
        assert await scene.state(terms) == EscrowState(status="none")
        outcome = await scene.do("host", await scene.open_call(terms))
        assert (await scene.has("payer")).usdc == BALANCE - DEPOSIT
        assert await scene.state(terms) == EscrowState(status="open")
        assert outcome.events == (
            SessionOpened(
                session=scene.id_of(terms),
                payer=terms.payer,
                host=terms.host,
                terms=terms,
                block=outcome.block,
            ),
        )
        assert len(outcome.transaction) == 32
        assert outcome.gas_used

    async def test_a_second_open_of_the_same_terms_is_refused(self, scene: Scene) -> None:
        terms = await scene.terms()
        call = await scene.open_call(terms)
        await scene.do("host", call)
        await scene.refused("host", call, "JobMarketplace: exists")
        assert (await scene.has("payer")).usdc == BALANCE - DEPOSIT

    async def test_a_relayer_cant_change_a_price_after_the_payer_signed(self, scene: Scene) -> None:
        call = await scene.open_call(await scene.terms())
        dearer = replace(call, terms=replace(call.terms, price_out=3 * DOLLAR))
        await scene.refused("host", dearer, "FiatTokenV2: invalid signature")

    async def test_somebody_elses_signature_opens_nothing(self, scene: Scene) -> None:
        call = await scene.open_call(await scene.terms(), signer="other payer")
        await scene.refused("host", call, "FiatTokenV2: invalid signature")

    async def test_an_authorisation_that_ran_out_opens_nothing(self, scene: Scene) -> None:
        call = await scene.open_call(await scene.terms(), lasts_s=60)
        await scene.world.travel(61)
        await scene.refused("host", call, "FiatTokenV2: authorization is expired")

    async def test_a_payer_that_moved_its_funds_away_opens_nothing(self, scene: Scene) -> None:
        call = await scene.open_call(await scene.terms())
        await scene.do("payer", Transfer(ADDRESS["stranger"], BALANCE - DEPOSIT + 1))
        await scene.refused("host", call, "ERC20: transfer amount exceeds balance")

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"host": ADDRESS["payer"]}, "JobMarketplace: host pays itself"),
            ({"voucher_key": bytes(20)}, "JobMarketplace: zero or self address"),
            ({"session_fee": 250_001}, "JobMarketplace: session fee too high"),
            ({"tip": FEE + 1}, "JobMarketplace: tip above session fee"),
            ({"deposit": FEE - 1}, "JobMarketplace: deposit below fee"),
            ({"expiry": 1}, "JobMarketplace: expired"),
            ({"expiry": 1 << 40}, "JobMarketplace: expiry too far"),
        ],
    )
    async def test_terms_that_break_a_rule_open_nothing(
        self, scene: Scene, changes: dict[str, Any], reason: str
    ) -> None:
        call = await scene.open_call(await scene.terms(**changes))
        await scene.refused("host", call, reason)

    # ---- close

    async def test_close_pays_ninety_ten_and_refunds_the_rest_to_the_unit(self, scene: Scene) -> None:
        terms = await scene.open()
        voucher = scene.voucher(terms, 500_007)
        taxed = (voucher.amount - FEE) // 10
        before = await scene.worth("host", "treasury")
        outcome = await scene.do("host", Close(terms, voucher))
        assert await scene.worth("host", "treasury") == {
            "host": before["host"] + voucher.amount - taxed,
            "treasury": before["treasury"] + taxed,
        }
        assert (await scene.has("payer")).usdc == BALANCE - voucher.amount
        assert await scene.state(terms) == EscrowState(status="closed", recorded=voucher.amount)
        assert outcome.events == (
            SessionClosed(
                session=scene.id_of(terms), payer=terms.payer, host=terms.host, amount=voucher.amount,
                to_treasury=taxed, refund=DEPOSIT - voucher.amount, tip=0, pushed=True, block=outcome.block,
            ),
        )  # fmt: skip

    async def test_only_the_host_closes_and_only_once(self, scene: Scene) -> None:
        terms = await scene.open()
        close = Close(terms, scene.voucher(terms))
        await scene.refused("stranger", close, "JobMarketplace: not the host")
        await scene.refused("payer", close, "JobMarketplace: not the host")
        await scene.do("host", close)
        await scene.refused("host", close, "JobMarketplace: not open")

    async def test_a_host_cant_claim_what_the_voucher_key_did_not_sign(self, scene: Scene) -> None:
        terms, other = await scene.open(), await scene.open()
        good = scene.voucher(terms)
        for bad in (
            replace(good, amount=good.amount + 1),
            replace(good, tokens_out=good.tokens_out + 1),
            scene.voucher(terms, more=1),
            scene.voucher(terms, signer="receipt key"),
            scene.voucher(other),
        ):
            await scene.refused("host", Close(terms, bad), "JobMarketplace: bad voucher")
        await scene.do("host", Close(terms, good))

    async def test_altered_terms_have_no_escrow(self, scene: Scene) -> None:
        terms = await scene.open()
        altered = replace(terms, deposit=2 * DEPOSIT)
        await scene.refused("host", Close(altered, scene.voucher(altered)), "JobMarketplace: not open")

    async def test_close_many_settles_what_it_can_and_names_what_it_skips(self, scene: Scene) -> None:
        first, closed, third, fourth = [await scene.open() for _ in range(4)]
        await scene.do("host", Close(closed, scene.voucher(closed)))
        claims = (
            Close(first, scene.voucher(first)),
            Close(closed, scene.voucher(closed)),
            Close(third, scene.voucher(third, more=1)),
            Close(fourth, scene.voucher(fourth, 7)),
        )
        before = await scene.worth("host")
        outcome = await scene.do("host", CloseMany(claims))
        said = [
            (type(event), event.session)
            for event in outcome.events
            if not isinstance(event, Withdrawn | Proposed)
        ]
        assert said == [
            (SessionClosed, scene.id_of(first)),
            (ClaimSkipped, scene.id_of(closed)),
            (ClaimSkipped, scene.id_of(third)),
            (SessionClosed, scene.id_of(fourth)),
        ]
        paid = [claims[place].voucher.amount for place in (0, 3)]
        gained = (await scene.worth("host"))["host"] - before["host"]
        assert gained == sum(amount - (amount - FEE) // 10 for amount in paid)
        assert (await scene.state(third)).status == "open"

    async def test_a_strangers_batch_settles_nothing(self, scene: Scene) -> None:
        terms = await scene.open()
        outcome = await scene.do("stranger", CloseMany((Close(terms, scene.voucher(terms)),)))
        assert outcome.events == (ClaimSkipped(session=scene.id_of(terms), block=outcome.block),)
        assert await scene.state(terms) == EscrowState(status="open")

    @pytest.mark.parametrize("size", [0, CLAIMS_MAX + 1])
    async def test_a_batch_of_a_size_no_contract_takes_is_an_error(self, scene: Scene, size: int) -> None:
        terms = await scene.terms()
        host = await scene.world.ledger("host")
        batch = CloseMany((Close(terms, scene.voucher(terms)),) * size)
        with pytest.raises(ChainError, match=f"1 to {CLAIMS_MAX}"):
            await host.transact(batch)
        with pytest.raises(ChainError, match=f"1 to {CLAIMS_MAX}"):
            await host.check(batch)

    async def test_release_keeps_the_session_fee_and_nothing_else(self, scene: Scene) -> None:
        terms = await scene.open()
        before = await scene.worth("host", "treasury")
        await scene.refused("payer", Release(terms), "JobMarketplace: not the host")
        outcome = await scene.do("host", Release(terms))
        after = await scene.worth("host", "treasury")
        assert after == before | {"host": before["host"] + FEE}
        assert (await scene.has("payer")).usdc == BALANCE - FEE
        assert isinstance(outcome.events[0], SessionClosed)
        assert (outcome.events[0].amount, outcome.events[0].refund) == (FEE, DEPOSIT - FEE)
        await scene.refused("host", Release(terms), "JobMarketplace: not open")

    async def test_a_blacklisted_payer_is_credited_and_the_host_is_paid(self, scene: Scene) -> None:
        terms = await scene.open()
        await scene.world.freeze("payer")
        voucher = scene.voucher(terms)
        outcome = await scene.do("host", Close(terms, voucher))
        closed = outcome.events[0]
        assert isinstance(closed, SessionClosed)
        assert not closed.pushed
        assert (await scene.has("payer")).earned == DEPOSIT - voucher.amount
        before = (await scene.has("stranger")).usdc
        await scene.do("payer", Withdraw(ADDRESS["stranger"], DEPOSIT - voucher.amount))
        assert (await scene.has("stranger")).usdc == before + DEPOSIT - voucher.amount

    # ---- the challenge

    async def test_a_payer_asks_to_close_and_the_host_has_a_day(self, scene: Scene) -> None:
        terms = await scene.open()
        outcome = await scene.do("payer", RequestClose(terms))
        (asked,) = outcome.events
        assert isinstance(asked, CloseRequested)
        assert asked == CloseRequested(
            session=scene.id_of(terms), payer=terms.payer, host=terms.host, closing_at=asked.closing_at,
            recorded=FEE, block=outcome.block,
        )  # fmt: skip
        assert abs(asked.closing_at - (await scene.reader.head()).timestamp - DAY) <= DEADLINE_S
        assert await scene.state(terms) == EscrowState(
            status="open", closing_at=asked.closing_at, recorded=FEE
        )
        await scene.refused("payer", RequestClose(terms), "JobMarketplace: already closing")
        voucher = scene.voucher(terms)
        await scene.do("host", Close(terms, voucher))
        assert await scene.state(terms) == EscrowState(status="closed", recorded=voucher.amount)

    async def test_a_signed_close_request_is_relayed_with_its_voucher_as_a_floor(self, scene: Scene) -> None:
        terms = await scene.open()
        voucher = scene.voucher(terms, 1_000)
        digest = close_request_digest(scene.domains.market, scene.id_of(terms), voucher.amount)
        wish = RequestClose(terms, voucher, sign("voucher key", digest))
        await scene.refused("stranger", RequestClose(terms, voucher), "JobMarketplace: not the payer")
        stripped = RequestClose(terms, None, wish.signature)
        await scene.refused("stranger", stripped, "JobMarketplace: not the payer")
        await scene.do("stranger", wish)
        assert (await scene.state(terms)).recorded == voucher.amount

    async def test_anyone_records_a_better_voucher_but_no_stale_one(self, scene: Scene) -> None:
        terms = await scene.open()
        old, best = scene.voucher(terms, 1_000), scene.voucher(terms)
        await scene.do("payer", RequestClose(terms, old))
        outcome = await scene.do("watchtower", SubmitVoucher(terms, best))
        assert outcome.events == (
            VoucherRecorded(
                session=scene.id_of(terms), payer=terms.payer, host=terms.host, recorded=best.amount,
                block=outcome.block,
            ),
        )  # fmt: skip
        for stale in (old, best):
            await scene.refused("watchtower", SubmitVoucher(terms, stale), "JobMarketplace: stale voucher")
        forged = scene.voucher(terms, 600_000, signer="receipt key")
        await scene.refused("watchtower", SubmitVoucher(terms, forged), "JobMarketplace: bad voucher")
        await scene.world.travel(DAY + 1)
        late = scene.voucher(terms, 600_000)
        await scene.do("watchtower", SubmitVoucher(terms, late))  # until somebody brings the refund
        assert (await scene.state(terms)).recorded == late.amount

    async def test_a_voucher_is_recorded_before_anyone_asks_to_close_and_the_record_never_falls(
        self, scene: Scene
    ) -> None:
        terms = await scene.open()
        old, best = scene.voucher(terms, 1_000), scene.voucher(terms)
        await scene.do("watchtower", SubmitVoucher(terms, best))
        assert await scene.state(terms) == EscrowState(status="open", recorded=best.amount)
        await scene.refused("host", Release(terms), "JobMarketplace: voucher on record")
        outcome = await scene.do("payer", RequestClose(terms, old))
        (asked,) = outcome.events
        assert isinstance(asked, CloseRequested)
        assert asked.recorded == best.amount
        assert (await scene.state(terms)).recorded == best.amount
        await scene.do("host", Close(terms, old))
        assert await scene.state(terms) == EscrowState(status="closed", recorded=best.amount)

    async def test_a_host_that_refunds_by_itself_gets_what_closing_pays_and_no_tip(
        self, scene: Scene
    ) -> None:
        terms = await scene.open()
        voucher = scene.voucher(terms, 1_000)
        await scene.do("payer", RequestClose(terms, voucher))
        await scene.world.travel(DAY + 1)
        before = await scene.worth("host", "payer")
        (closed,) = (await scene.do("host", Refund(terms))).events
        assert isinstance(closed, SessionClosed)
        assert (closed.amount, closed.tip) == (voucher.amount, 0)
        taxed = (voucher.amount - FEE) // 10
        assert await scene.worth("host", "payer") == {
            "host": before["host"] + voucher.amount - taxed,
            "payer": before["payer"] + DEPOSIT - voucher.amount,
        }

    async def test_after_the_challenge_anyone_refunds_for_a_tip(self, scene: Scene) -> None:
        terms = await scene.open()
        voucher = scene.voucher(terms, 1_000)
        await scene.do("payer", RequestClose(terms, voucher))
        await scene.refused("stranger", Refund(terms), "JobMarketplace: too early")
        await scene.world.travel(DAY + 1)
        before = await scene.worth("host", "treasury", "stranger")
        outcome = await scene.do("stranger", Refund(terms))
        taxed = (voucher.amount - FEE) // 10
        assert await scene.worth("host", "treasury", "stranger") == {
            "host": before["host"] + voucher.amount - taxed - TIP,
            "treasury": before["treasury"] + taxed,
            "stranger": before["stranger"] + TIP,
        }
        assert (await scene.has("payer")).usdc == BALANCE - voucher.amount
        (closed,) = outcome.events
        assert isinstance(closed, SessionClosed)
        assert (closed.amount, closed.tip) == (voucher.amount, TIP)
        await scene.refused("stranger", Refund(terms), "JobMarketplace: not open")

    async def test_a_payer_brings_its_own_refund_without_a_tip(self, scene: Scene) -> None:
        terms = await scene.open()
        await scene.world.travel(3600 + DAY - 60)
        await scene.refused("payer", Refund(terms), "JobMarketplace: too early")
        await scene.world.travel(61)
        await scene.do("payer", Refund(terms))
        assert (await scene.has("payer")).usdc == BALANCE - FEE

    # ---- money out

    async def test_earnings_go_to_any_address_but_the_market_itself(self, scene: Scene) -> None:
        await scene.do("host", Release(await scene.open()))
        market, stranger = scene.domains.market.contract, ADDRESS["stranger"]
        earned = (await scene.has("host")).earned
        before = (await scene.has("stranger")).usdc
        await scene.refused("host", Withdraw(market, 1), "HostEarnings: bad recipient")
        await scene.refused("host", Withdraw(bytes(20), 1), "HostEarnings: bad recipient")
        await scene.refused("host", Withdraw(stranger, 0), "HostEarnings: bad amount")
        await scene.refused("host", Withdraw(stranger, earned + 1), "HostEarnings: balance too low")
        outcome = await scene.do("host", Withdraw(stranger, earned))
        assert outcome.events == (
            Withdrawn(account=ADDRESS["host"], to=stranger, amount=earned, fee=0, block=outcome.block),
        )
        assert (await scene.has("host")).earned == 0
        assert (await scene.has("stranger")).usdc == before + earned

    async def test_usdc_is_sent_from_ones_own_wallet(self, scene: Scene) -> None:
        before = (await scene.has("stranger")).usdc
        await scene.do("payer", Transfer(ADDRESS["stranger"], 7))
        assert (await scene.has("stranger")).usdc == before + 7
        await scene.refused("payer", Transfer(bytes(20), 7), "ERC20: transfer to the zero address")
        too_much = Transfer(ADDRESS["stranger"], BALANCE)
        await scene.refused("payer", too_much, "ERC20: transfer amount exceeds balance")

    # ---- reading

    async def test_events_are_paged_and_each_is_seen_once(self, scene: Scene) -> None:
        cursor = (await scene.reader.head()).block + 1
        done: list[LedgerEvent] = []
        for tokens in (1, 2):
            terms = await scene.terms()
            done += (await scene.do("host", await scene.open_call(terms))).events
            done += (await scene.do("host", Close(terms, scene.voucher(terms, tokens)))).events
        done += (await scene.do("host", Withdraw(ADDRESS["stranger"], 1))).events
        seen, pages = await follow(scene.reader, cursor)
        assert seen == done
        assert (await follow(scene.reader, pages[-1]))[0] == []
        middle = done[2].block
        assert (await follow(scene.reader, middle))[0] == done[2:]
        assert (await follow(scene.reader, 0))[0][-len(done) :] == done

    async def test_a_cursor_ahead_of_the_chain_waits_there(self, scene: Scene) -> None:
        ahead = (await scene.reader.head()).block + 100
        page = await scene.reader.events(ahead)
        assert (page.events, page.cursor, page.caught_up) == ((), ahead, True)

    async def test_the_head_follows_blocks_and_time(self, scene: Scene) -> None:
        before = await scene.reader.head()
        await scene.do("payer", Transfer(ADDRESS["stranger"], 1))
        await scene.world.travel(DAY)
        after = await scene.reader.head()
        assert after.block > before.block
        assert DAY <= after.timestamp - before.timestamp <= DAY + DEADLINE_S
        assert after.gas_price_wei > 0

    async def test_who_was_never_here_has_nothing(self, scene: Scene) -> None:
        nobody = await scene.reader.balances(keccak256(b"nobody")[:20])
        assert nobody == AccountState(usdc=0, earned=0, ether=0, has_code=False)
        assert (await scene.has("payer")).ether > 0

    async def test_a_reader_reads_and_can_send_nothing(self, scene: Scene) -> None:
        assert scene.reader.account is None
        terms = await scene.open()
        assert (await scene.state(terms)).status == "open"
        with pytest.raises(ChainError, match="only reads") as refused:
            await scene.reader.transact(Release(terms))
        assert not isinstance(refused.value, RevertedError)
        assert (await scene.state(terms)).status == "open"
        await scene.reader.check(Release(terms), ADDRESS["host"])

    async def test_ledgers_agree_on_domains_and_know_their_accounts(self, scene: Scene) -> None:
        host = await scene.world.ledger("host")
        assert host.account == ADDRESS["host"]
        assert host.domains == scene.domains
        assert scene.domains.treasury == ADDRESS["treasury"]
        assert scene.domains.market.name == "JobMarketplace"
        assert scene.domains.token.chain_id == scene.domains.chain_id

    # ---- evidence

    async def test_two_receipts_for_one_place_cost_the_host_its_stake_and_pay_the_reporter(
        self, scene: Scene
    ) -> None:
        await scene.stake()
        terms, held = await scene.open(), await scene.fab("stranger")
        yes, no = (scene.receipt(terms, answer, links=2) for answer in ("yes", "no"))
        outcome = await scene.do("stranger", Slash(terms, yes, no))
        assert await scene.node() == (0, 0)
        assert await scene.fab("stranger") == held + STAKE // 10
        assert outcome.events == (
            Slashed(
                session=scene.id_of(terms), host=terms.host, reporter=ADDRESS["stranger"], amount=STAKE,
                reward=STAKE // 10, block=outcome.block,
            ),
        )  # fmt: skip
        page = await scene.reader.events(outcome.block)
        assert page.events == ()  # only the market's events are shown to everybody
        await scene.refused("stranger", Slash(terms, no, yes), "NodeRegistry: already punished")

    async def test_a_self_report_earns_nothing(self, scene: Scene) -> None:
        await scene.stake()
        terms, held = await scene.open(), await scene.fab("host")
        await scene.do("host", Slash(terms, scene.receipt(terms, "yes"), scene.receipt(terms, "no")))
        assert await scene.fab("host") == held
        assert await scene.node() == (0, 0)

    async def test_an_honest_host_keeps_its_stake(self, scene: Scene) -> None:
        await scene.stake()
        terms, own = await scene.open(), await scene.open(receipt_key=ADDRESS["payer"])
        unopened = await scene.terms()
        yes = scene.receipt(terms, "yes")
        forged = scene.receipt(terms, "no", signer="stranger")
        restarted = scene.receipt(terms, "no", epoch=4)
        for call, reason in (
            (Slash(terms, yes, yes), "no conflict"),
            (Slash(terms, yes, forged), "bad signature"),
            (Slash(terms, forged, yes), "bad signature"),
            (Slash(terms, yes, restarted), "bad signature"),
            (Slash(terms, yes, scene.receipt(terms, "no", links=2)), "bad signature"),
            (Slash(own, *(scene.receipt(own, a, signer="payer") for a in ("a", "b"))), "not the host's key"),
            (Slash(unopened, *(scene.receipt(unopened, a) for a in ("a", "b"))), "no such session"),
        ):
            await scene.refused("stranger", call, f"NodeRegistry: {reason}")
        assert await scene.node() == (STAKE, 0)

    async def test_a_host_without_stake_can_lose_none(self, scene: Scene) -> None:
        await scene.stake()
        first, second = await scene.open(), await scene.open()
        for terms, reason in ((first, ""), (second, "NodeRegistry: nothing at stake")):
            call = Slash(terms, scene.receipt(terms, "yes"), scene.receipt(terms, "no"))
            await (scene.refused("stranger", call, reason) if reason else scene.do("stranger", call))

    # ---- stake

    async def test_a_stake_unbonds_for_seven_days_and_then_leaves(self, scene: Scene) -> None:
        held = await scene.fab("stranger")
        await scene.stake(amount=3 * STAKE)
        found = await scene.reader.node(ADDRESS["host"])
        assert (found.peer_key, found.receipt_key) == (keccak256(b"host"), ADDRESS["receipt key"])
        await scene.refused("host", Unbond(3 * STAKE + 1), "NodeRegistry: bad amount")
        await scene.refused("host", Unbond(2 * STAKE + 1), "NodeRegistry: stake too low")
        began = (await scene.do("host", Unbond(2 * STAKE))).block
        found = await scene.reader.node(ADDRESS["host"])
        assert (found.stake, found.unbonding) == (STAKE, 2 * STAKE)
        left_s = found.unbonds_at - (await scene.reader.head()).timestamp
        assert UNBONDING_S - DEADLINE_S <= left_s <= UNBONDING_S
        assert began
        await scene.world.travel(UNBONDING_S - 2 * DEADLINE_S)
        out = WithdrawStake(ADDRESS["stranger"])
        await scene.refused("host", out, "NodeRegistry: too early")
        await scene.world.travel(2 * DEADLINE_S + 2)
        await scene.refused("host", WithdrawStake(bytes(20)), "NodeRegistry: bad recipient")
        await scene.do("host", out)
        assert await scene.fab("stranger") == held + 2 * STAKE
        assert await scene.node() == (STAKE, 0)
        await scene.refused("host", out, "NodeRegistry: nothing unbonding")

    async def test_what_unbonds_can_become_stake_again_and_can_be_lost(self, scene: Scene) -> None:
        await scene.stake(amount=2 * STAKE)
        await scene.do("host", Unbond(STAKE))
        await scene.do("host", Rebond())
        assert await scene.node() == (2 * STAKE, 0)
        await scene.refused("host", Rebond(), "NodeRegistry: nothing unbonding")
        await scene.do("host", Unbond(2 * STAKE))
        terms = await scene.open()
        yes, no = (scene.receipt(terms, answer) for answer in ("yes", "no"))
        (slashed,) = (await scene.do("stranger", Slash(terms, yes, no))).events
        assert isinstance(slashed, Slashed)
        assert slashed.amount == 2 * STAKE
        assert await scene.node() == (0, 0)

    async def test_a_stake_needs_enough_fab_that_may_be_taken_and_keys(self, scene: Scene) -> None:
        keys = (keccak256(b"host"), ADDRESS["receipt key"])
        await scene.refused("host", AddStake(STAKE), "NodeRegistry: not registered")
        await scene.refused("host", Register(bytes(32), keys[1], STAKE), "NodeRegistry: zero key")
        await scene.refused("host", Register(*keys, STAKE - 1), "NodeRegistry: stake too low")
        await scene.refused("host", Register(*keys, STAKE), "FAB: allowance too low")
        allow = Approve(scene.domains.node_registry, STAKE)
        await scene.do("host", allow)
        await scene.refused("host", Register(*keys, STAKE), "FAB: balance too low")
        await scene.give_fab("host", 2 * STAKE)
        assert await scene.reader.fab(ADDRESS["host"]) == FabState(balance=2 * STAKE, to_nodes=STAKE)
        await scene.do("host", Register(*keys, STAKE))
        assert await scene.reader.fab(ADDRESS["host"]) == FabState(balance=STAKE)
        await scene.do("host", allow)
        await scene.do("host", AddStake(STAKE))
        assert await scene.node() == (2 * STAKE, 0)

    async def test_a_call_is_estimated_as_if_it_were_allowed(self, scene: Scene) -> None:
        ledger = await scene.world.ledger("host")
        call = Register(keccak256(b"host"), ADDRESS["receipt key"], STAKE)
        allow = Approve(scene.domains.node_registry, STAKE)
        with pytest.raises(RevertedError, match="balance too low"):
            await ledger.estimate(call, allowed=allow)
        await scene.give_fab("host", STAKE)
        with pytest.raises(RevertedError, match="allowance too low"):
            await ledger.estimate(call)
        with pytest.raises(RevertedError, match="allowance too low"):
            await ledger.estimate(call, allowed=Approve(scene.domains.node_registry, STAKE - 1))
        supposed = await scene.reader.estimate(call, ADDRESS["host"], allowed=allow)
        assert (await ledger.fab(ADDRESS["host"])).to_nodes == 0
        await scene.do("host", allow)
        assert supposed is not None
        used = (await scene.do("host", call)).gas_used
        assert used is not None
        assert used <= supposed <= used * 1.3

    async def test_fab_is_sent_from_ones_own_wallet(self, scene: Scene) -> None:
        held = await scene.fab("stranger")
        await scene.give_fab("payer", 7)
        await scene.refused("payer", TransferFab(ADDRESS["stranger"], 8), "FAB: balance too low")
        await scene.refused("payer", TransferFab(bytes(20), 7), "FAB: zero address")
        await scene.do("payer", TransferFab(ADDRESS["stranger"], 7))
        assert (await scene.fab("payer"), await scene.fab("stranger")) == (0, held + 7)

    # ---- votes

    async def test_a_vote_with_a_quorum_accepts_and_all_comes_back(self, scene: Scene) -> None:
        found = await scene.propose()
        assert (found.model, found.proposer) == (model_of(MANIFEST), ADDRESS["host"])
        assert await scene.reader.manifest(found) == MANIFEST
        assert await scene.reader.proposal_count() == found.number
        await scene.give_fab("payer", QUORUM)
        await scene.give_fab("stranger", QUORUM - 1)
        held = await scene.fab("stranger")
        await scene.vote("payer", found, QUORUM - 1)
        await scene.vote("payer", found, 1)
        await scene.vote("stranger", found, QUORUM - 1, support=False)
        assert await scene.reader.locked(found.number, ADDRESS["payer"]) == QUORUM
        for call in (Unlock(found.number, ADDRESS["payer"]), ReturnBond(found.number)):
            await scene.refused("payer", call, "ModelRegistry: vote is on")
        await scene.world.travel(VOTING_S + 2)
        await scene.refused("payer", Vote(found.number, True, 1), "ModelRegistry: vote is over")
        now = (await scene.reader.head()).timestamp
        ended = await scene.reader.proposal(found.number)
        assert ended is not None
        assert (ended.votes_for, ended.votes_against) == (QUORUM, QUORUM - 1)
        assert ended.is_accepted(now)
        await scene.do("watchtower", Unlock(found.number, ADDRESS["stranger"]))
        await scene.do("payer", Unlock(found.number, ADDRESS["payer"]))
        await scene.do("watchtower", ReturnBond(found.number))
        assert (await scene.fab("payer"), await scene.fab("stranger")) == (QUORUM, held)
        assert await scene.fab("host") == BOND
        await scene.refused("host", ReturnBond(found.number), "ModelRegistry: bond is back")
        await scene.refused("payer", Unlock(found.number, ADDRESS["payer"]), "ModelRegistry: nothing locked")

    async def test_tokens_that_voted_can_neither_move_nor_vote_again(self, scene: Scene) -> None:
        found = await scene.propose()
        await scene.give_fab("payer", 100)
        await scene.vote("payer", found, 100)
        await scene.refused("payer", TransferFab(ADDRESS["stranger"], 1), "FAB: balance too low")
        await scene.do("payer", Approve(scene.domains.model_registry, 1))
        await scene.refused("payer", Vote(found.number, True, 1), "FAB: balance too low")

    async def test_what_can_not_be_proposed_or_voted_on_is_refused(self, scene: Scene) -> None:
        await scene.refused("host", Propose(b""), "ModelRegistry: no manifest")
        await scene.refused("host", Propose(b"{}"), "FAB: allowance too low")
        await scene.give_fab("host", BOND)
        await scene.do("host", Approve(scene.domains.model_registry, 2 * BOND))
        await scene.refused("host", Propose(bytes(MANIFEST_BYTES_MAX + 1)), NO_REASON)
        await scene.do("host", Propose(bytes(MANIFEST_BYTES_MAX)))
        number = await scene.reader.proposal_count()
        await scene.refused("host", Vote(number + 1, True, 1), "ModelRegistry: no such proposal")
        await scene.refused("host", Vote(number, True, 0), "ModelRegistry: bad amount")
        await scene.refused("host", ReturnBond(number + 1), "ModelRegistry: vote is on")
        assert await scene.reader.proposal(number + 1) is None
        assert await scene.reader.proposal(0) is None

    async def test_an_attestation_is_of_its_sender_and_can_be_taken_back(self, scene: Scene) -> None:
        model = model_of(MANIFEST)
        await scene.do("host", Attest(model, b"\1" * 32))
        assert await scene.reader.attestation(model, ADDRESS["host"]) == b"\1" * 32
        assert await scene.reader.attestation(model, ADDRESS["rival"]) == bytes(32)
        await scene.do("host", Attest(model, bytes(32)))
        assert await scene.reader.attestation(model, ADDRESS["host"]) == bytes(32)

    # ---- several at once

    async def test_what_one_account_sends_at_once_all_lands(self, scene: Scene) -> None:
        host = await scene.world.ledger("host")
        calls = [await scene.open_call(await scene.terms()) for _ in range(5)]
        outcomes: list[Outcome] = []

        async def relay(call: Call) -> None:
            outcomes.append(await host.transact(call))

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for call in calls:
                    nursery.start_soon(relay, call)
        assert len({outcome.transaction for outcome in outcomes}) == 5
        for call in calls:
            assert (await scene.state(call.terms)).status == "open"
        assert (await scene.has("payer")).usdc == BALANCE - 5 * DEPOSIT

    async def test_a_refusal_does_not_hold_up_what_comes_after(self, scene: Scene) -> None:
        terms = await scene.open()
        await scene.refused("host", Withdraw(ADDRESS["host"], BALANCE), "HostEarnings: balance too low")
        await scene.do("host", Close(terms, scene.voucher(terms)))
        assert (await scene.state(terms)).status == "closed"


async def follow(ledger: Ledger, cursor: int) -> tuple[list[LedgerEvent], list[int]]:
    """All events from a cursor on, and the cursors passed."""
    seen: list[LedgerEvent] = []
    cursors = [cursor]
    with trio.fail_after(DEADLINE_S):
        while True:
            page = await ledger.events(cursors[-1])
            seen += page.events
            cursors.append(page.cursor)
            if page.caught_up:
                assert cursors == sorted(cursors)
                return seen, cursors
