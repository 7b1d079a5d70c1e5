"""What a client signs away: never more than it may, than it has, or than it was told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.ledger import AccountState, EscrowState, Head, UnavailableError
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.contract_rules import SESSION_FEE_MAX
from p2pnode.errors import ChainError
from p2pnode.ids import SessionId
from p2pnode.log import configure_logging
from p2pnode.models.catalogue import shown_name
from p2pnode.money import usdc_text
from p2pnode.payments.funds import EXPIRED_S
from p2pnode.payments.journal.journal import BoughtSession, Journal, SpendingRule
from p2pnode.payments.journal.keys import Claim, Granted
from p2pnode.payments.session_signer import EXPIRY_S, VALID_S
from p2pnode.payments.spending import (
    FEES,
    TIP,
    TURNS,
    FundsError,
    SpendingLimitError,
    SpendingLimits,
)
from p2pnode.protocols.crypto import Signer, recover_address, sign_digest
from p2pnode.protocols.inference.messages import Open
from p2pnode.protocols.inference.open_rules import HostPayment, check_open
from p2pnode.protocols.typed_data import amount_due, voucher_digest
from tests.chain.memory_world import MEMORY_DOMAINS
from tests.payments.journals import DAY, NOW, PEER, voucher, writing
from tests.payments.signers import (
    DOLLAR,
    PAYER,
    PAYER_SECRET,
    PRICES,
    TURN_COST,
    SpendingWorld,
    priced,
    signer_world,
    turn,
    wallet_secret_of,
)

DEAR = {"price_in": 0, "price_out": 500_000_000}  # a thousand tokens cost 0.5 USDC
FEE = PRICES["session_fee"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SpendingWorld]:
    async with signer_world(tmp_path / "journal.sqlite") as made:
        yield made


# ---- what is signed


async def test_what_is_signed_opens_a_session_on_the_chain_without_any_ether(world: SpendingWorld) -> None:
    payment = await turn(world.signer(), *priced())
    world.relay(1, payment)
    assert world.chain.session(payment.session).status == "open"
    assert world.chain.account(PAYER) == AccountState(
        usdc=100 * DOLLAR - payment.terms.deposit, earned=0, ether=0, has_code=False
    )


async def test_the_terms_are_the_offer_to_the_letter(world: SpendingWorld) -> None:
    advert, offer = priced()
    terms = (await turn(world.signer(), advert, offer)).terms
    assert (terms.model, terms.price_in, terms.price_out, terms.session_fee) == (
        offer.model,
        offer.price_in,
        offer.price_out,
        offer.session_fee,
    )
    assert (terms.payer, terms.host, terms.receipt_key) == (
        PAYER,
        advert.binding.wallet,
        advert.binding.receipt_key,
    )
    assert terms.expiry == NOW + EXPIRY_S


async def test_a_host_of_this_offer_takes_it_also_with_a_clock_two_minutes_off(world: SpendingWorld) -> None:
    advert, offer = priced()
    payment = await turn(world.signer(), advert, offer)
    host = HostPayment(
        market=MEMORY_DOMAINS.market,
        token=MEMORY_DOMAINS.token,
        peer=advert.peer,
        wallet=advert.binding.wallet,
        receipt_key=advert.binding.receipt_key,
        sign=lambda digest: sign_digest(wallet_secret_of(1), digest),
        price_in=offer.price_in,
        price_out=offer.price_out,
        session_fee=offer.session_fee,
    )
    request = Open(
        model=offer.model,
        salt=bytes(32),
        holder=bytes(16),
        terms=payment.terms,
        authorisation=payment.authorisation,
        valid_before=payment.valid_before,
    )
    for off in (-120, 0, 120):
        assert check_open(request, host, NOW + off) is None
    assert check_open(request, host, NOW - 151) is not None


async def test_each_session_has_a_voucher_key_and_a_salt_of_its_own(world: SpendingWorld) -> None:
    signer = world.signer()
    first, second = [await turn(signer, *priced()) for _ in range(2)]
    assert len({first.terms.voucher_key, second.terms.voucher_key, PAYER}) == 3
    assert first.terms.salt != second.terms.salt
    assert first.session != second.session


async def test_the_key_in_the_journal_signs_the_vouchers_of_the_session(world: SpendingWorld) -> None:
    payment = await turn(world.signer(), *priced())
    bought = world.journal.purchase(payment.session)
    assert bought is not None
    assert (bought.terms, bought.valid_before, bought.state) == (payment.terms, NOW + VALID_S, "signed")
    digest = voucher_digest(payment.market, payment.session, voucher(1, 5))
    assert recover_address(digest, payment.sign(digest)) == payment.terms.voucher_key
    assert sign_digest(bought.voucher_secret, digest) == payment.sign(digest)


async def test_it_is_written_down_and_said_before_it_is_signed(world: SpendingWorld) -> None:
    written = world.journal.bought

    async def noting(
        record: BoughtSession, rule: SpendingRule, now: int, claim: Claim | None = None
    ) -> Granted | None:
        granted = await written(record, rule, now, claim)
        world.events.append("written")
        return granted

    world.journal.bought = noting  # type: ignore[method-assign]
    await turn(world.signer(), *priced())
    assert world.events == ["unlocked", "written", "said", "signed"]


async def test_nothing_that_failed_before_the_signature_counts(world: SpendingWorld) -> None:
    class NoError(Exception):
        pass

    def no(_words: str, _fields: object) -> None:
        raise NoError

    with pytest.raises(NoError):
        await turn(world.signer(on_sign=no), *priced())
    assert [each.state for each in world.journal.purchases()] == ["expired"]
    assert "signed" not in world.events
    assert world.journal.outstanding(PAYER, NOW) == 0


async def test_a_wallet_that_was_exchanged_signs_nothing_of_use(world: SpendingWorld) -> None:
    async def stranger() -> Signer:
        return lambda digest: sign_digest(wallet_secret_of(7), digest)

    with pytest.raises(ChainError, match="the key signs for another address"):
        await turn(world.signer(sign=stranger), *priced())
    assert world.journal.outstanding(PAYER, NOW) == 0


# ---- how much


async def test_a_deposit_covers_several_turns_and_the_tip_is_out_of_the_fee(world: SpendingWorld) -> None:
    terms = (await turn(world.signer(), *priced())).terms
    assert terms.tip == TIP
    assert terms.deposit == FEE + FEES * FEE
    small = (await turn(world.signer(), *priced(2, session_fee=0))).terms
    assert small.deposit == amount_due(small, TURNS * 1_000, TURNS * 1_000)


async def test_a_host_without_a_fee_has_no_tip_and_the_payer_is_told_that_the_refund_is_its_own_errand(
    world: SpendingWorld,
) -> None:
    terms = (await turn(world.signer(), *priced(session_fee=0))).terms
    assert terms.tip == 0
    assert "you bring the refund yourself after" in world.said[-1][0]
    await turn(world.signer(), *priced(2))
    assert "anyone may bring the refund after" in world.said[-1][0]


async def test_a_dear_turn_is_covered_within_the_limit_of_a_session(world: SpendingWorld) -> None:
    terms = (await world.signer().open(*priced(**DEAR), tokens_in=0, tokens_out=1_000)).terms
    assert terms.deposit == SpendingLimits().session_max
    terms = (await world.signer().open(*priced(2, **DEAR), tokens_in=0, tokens_out=1_955)).terms
    assert (terms.deposit, terms.tip) == (SpendingLimits().session_max, TIP)


async def test_a_poor_wallet_pays_for_one_turn_rather_than_for_none(tmp_path: Path) -> None:
    async with signer_world(tmp_path / "journal.sqlite", usdc=FEE + TURN_COST) as world:
        terms = (await turn(world.signer(), *priced())).terms
        assert (terms.deposit, terms.tip) == (FEE + TURN_COST, TIP)


@pytest.mark.parametrize("lacking", [1, FEE + TURN_COST])
async def test_a_wallet_that_holds_too_little_is_told_how_much_and_where_to_send_it(
    tmp_path: Path, lacking: int
) -> None:
    async with signer_world(tmp_path / "journal.sqlite", usdc=FEE + TURN_COST - lacking) as world:
        with pytest.raises(FundsError, match=f"{usdc_text(lacking)} is missing") as caught:
            await turn(world.signer(), *priced())
        assert shown_address(PAYER) in str(caught.value)
        assert world.events == []
        assert world.journal.purchases() == []


# ---- limits


async def test_the_limit_of_a_session_is_kept(world: SpendingWorld) -> None:
    with pytest.raises(SpendingLimitError, match=r"raise --max-spend, or .* spend_session_max") as caught:
        await world.signer().open(*priced(**DEAR), tokens_in=0, tokens_out=1_961)
    assert "1.0005 USDC; your limit for one is 1.00 USDC" in str(caught.value)
    assert world.events == []
    await world.signer().open(*priced(**DEAR), tokens_in=0, tokens_out=1_960)


async def _spend(world: SpendingWorld, index: int) -> None:
    await world.signer().open(*priced(index, **DEAR), tokens_in=0, tokens_out=1_960)


async def test_the_limit_of_a_host_is_kept(world: SpendingWorld) -> None:
    for _ in range(2):
        await _spend(world, 1)
    with pytest.raises(SpendingLimitError, match="spend_host_max") as caught:
        await _spend(world, 1)
    assert "limit for one host is 2.00 USDC: 2.00 USDC of it are locked or spent" in str(caught.value)
    assert len(world.journal.purchases()) == 2
    await _spend(world, 2)


async def test_the_limit_of_deposits_is_that_of_a_day_and_is_kept_over_all_hosts(
    world: SpendingWorld,
) -> None:
    for index in range(1, 6):
        await _spend(world, index)
    with pytest.raises(SpendingLimitError, match="spend_locked_max") as caught:
        await _spend(world, 6)
    assert "limit for deposits is 5.00 USDC: 5.00 USDC of it" in str(caught.value)


async def test_a_fee_that_is_more_than_is_left_of_the_day_is_not_signed(world: SpendingWorld) -> None:
    world.limits = SpendingLimits(day_max=2 * FEE + 1, locked_max=DOLLAR)
    for _ in range(2):
        await turn(world.signer(), *priced())
    with pytest.raises(SpendingLimitError, match=r"spend_day_max") as caught:
        await turn(world.signer(), *priced())
    assert f"{usdc_text(2 * FEE)} of it were spent in the last 24 hours" in str(caught.value)
    world.clock[0] += DAY + 60
    await turn(world.signer(), *priced())


async def test_what_is_left_of_a_day_still_buys_a_turn(world: SpendingWorld) -> None:
    world.limits = SpendingLimits(day_max=DOLLAR + FEE + TURN_COST + 5)
    await _spend(world, 1)
    terms = (await turn(world.signer(), *priced(2))).terms
    assert (terms.deposit, terms.tip) == (FEE + TURN_COST + 5, TIP)


async def test_what_was_settled_is_locked_no_more_and_is_spent_for_a_day(
    world: SpendingWorld,
) -> None:
    world.limits = SpendingLimits(day_max=2 * DOLLAR)
    payments = [
        await world.signer().open(*priced(index, **DEAR), tokens_in=0, tokens_out=1_960) for index in (1, 2)
    ]
    for index, payment in enumerate(payments, 1):
        world.relay(index, payment)
    spent = world.settle(1, payments[0], 0, 1_000)
    assert spent == FEE + DOLLAR // 2
    await _spend(world, 3)
    assert world.journal.spending(payments[0].terms, PEER, world.now).day_spent == spent + 2 * FEE
    with pytest.raises(SpendingLimitError, match=r"2\.00 USDC: 2\.00 USDC of it are locked"):
        await _spend(world, 4)
    world.clock[0] += DAY + 60
    used = world.journal.spending(payments[0].terms, PEER, world.now)
    assert (used.locked, used.day_spent) == (2 * DOLLAR, 0)


async def test_an_authorisation_not_yet_used_counts_as_spent_from_the_wallet(tmp_path: Path) -> None:
    async with signer_world(tmp_path / "journal.sqlite", usdc=1_500_000) as world:
        await _spend(world, 1)
        with pytest.raises(FundsError, match=r"1\.00 USDC of it signed away already: 0\.50 USDC is missing"):
            await _spend(world, 2)
        world.clock[0] += VALID_S + EXPIRED_S + 1
        await _spend(world, 2)
        assert world.journal.outstanding(PAYER, world.now) == DOLLAR


async def test_an_opened_session_is_not_counted_twice(tmp_path: Path) -> None:
    async with signer_world(tmp_path / "journal.sqlite", usdc=2 * DOLLAR) as world:
        payment = await world.signer().open(*priced(1, **DEAR), tokens_in=0, tokens_out=1_960)
        await world.journal.bought_open(payment.session)
        world.relay(1, payment)
        await _spend(world, 2)
        assert world.journal.outstanding(PAYER, NOW) == DOLLAR


async def test_a_session_that_was_reorganised_away_gives_its_share_back(world: SpendingWorld) -> None:
    world.limits = SpendingLimits(day_max=DOLLAR)
    payment = await world.signer().open(*priced(1, **DEAR), tokens_in=0, tokens_out=1_960)
    await world.journal.bought_mined(payment.session)
    with pytest.raises(SpendingLimitError):
        await _spend(world, 2)
    world.clock[0] += VALID_S + EXPIRED_S + 1
    await _spend(world, 2)


async def test_a_session_on_another_chain_is_not_taken_for_dead_on_this_one(world: SpendingWorld) -> None:
    payment = await turn(world.signer(), *priced())
    domains = replace(MEMORY_DOMAINS, market=replace(MEMORY_DOMAINS.market, chain_id=1))
    elsewhere = MemoryLedger(MemoryChain(domains, lambda: world.now))
    world.clock[0] += DAY
    await world.signer(ledger=elsewhere).reconcile()
    assert [each.state for each in world.journal.purchases()] == ["signed"]
    await world.signer().reconcile()
    bought = world.journal.purchase(payment.session)
    assert bought is not None
    assert bought.state == "expired"


class Unavailable(MemoryLedger):
    """Knows balances from before; nothing else answers."""

    async def head(self) -> Head:
        raise UnavailableError("no RPC endpoint answers")

    async def session(self, session: SessionId) -> EscrowState:
        raise UnavailableError("no RPC endpoint answers")


async def test_a_chain_that_does_not_answer_frees_nothing(world: SpendingWorld) -> None:
    world.limits = SpendingLimits(day_max=DOLLAR)
    await _spend(world, 1)
    world.clock[0] += DAY
    with pytest.raises(SpendingLimitError, match="spend_locked_max"):
        await world.signer(ledger=Unavailable(world.chain)).open(
            *priced(2, **DEAR), tokens_in=0, tokens_out=1_960
        )
    with pytest.raises(UnavailableError):
        await world.signer(ledger=Unavailable(world.chain)).reconcile()


class Lying(MemoryLedger):
    """Says that every session is closed."""

    amount, agreed = 0, True

    async def session(self, session: SessionId) -> EscrowState:
        return EscrowState(status="closed", recorded=self.amount)

    async def confirmed(self, session: SessionId, state: EscrowState) -> bool:
        return self.agreed


async def test_an_endpoint_that_says_closed_for_nothing_frees_no_limit(world: SpendingWorld) -> None:
    world.limits = SpendingLimits(day_max=DOLLAR)
    await _spend(world, 1)
    lying = Lying(world.chain)
    for lying.amount, lying.agreed in ((0, True), (DOLLAR + 1, True), (FEE, False)):
        await world.signer(ledger=lying).reconcile()
        assert [each.state for each in world.journal.purchases()] == ["signed"]
        with pytest.raises(SpendingLimitError, match="spend_locked_max"):
            await world.signer(ledger=lying).open(*priced(2, **DEAR), tokens_in=0, tokens_out=1_960)
    lying.amount, lying.agreed = FEE, True  # two of them say what may be so
    await world.signer(ledger=lying).reconcile()
    assert [each.state for each in world.journal.purchases()] == ["settled"]


async def test_what_one_endpoint_says_is_believed_when_nothing_can_be_taken_any_more(
    world: SpendingWorld,
) -> None:
    payment = await turn(world.signer(), *priced())
    lying = Lying(world.chain)
    lying.amount, lying.agreed = FEE, False
    world.clock[0] += payment.terms.expiry - NOW + DAY
    await world.signer(ledger=lying).reconcile()
    assert [each.state for each in world.journal.purchases()] == ["signed"]
    world.clock[0] += 1
    await world.signer(ledger=lying).reconcile()
    assert [each.state for each in world.journal.purchases()] == ["settled"]


async def test_many_sessions_at_once_over_two_journals_stay_within_every_limit(world: SpendingWorld) -> None:
    refused = []

    async def try_to(index: int, other: SpendingWorld) -> None:
        try:
            await _spend(other, index)
        except SpendingLimitError:
            refused.append(index)

    async with writing(world.journal.path) as second:
        other = replace(world, journal=second)
        async with trio.open_nursery() as nursery:
            for index in range(1, 13):
                nursery.start_soon(try_to, index % 4, world if index % 2 else other)
    deposits = [each.terms.deposit for each in world.journal.purchases("signed")]
    assert sum(deposits) == 5 * DOLLAR
    assert len(refused) == 12 - len(deposits)
    for host in {each.terms.host for each in world.journal.purchases()}:
        at = [each.terms.deposit for each in world.journal.purchases("signed") if each.terms.host == host]
        assert sum(at) <= 2 * DOLLAR


_BUYER = """
import sys, trio
from pathlib import Path
from p2pnode.payments.spending import SpendingLimitError
from tests.payments.signers import priced, signer_world

async def main(path, first):
    sys.stdin.readline()
    async with signer_world(path) as world:
        world.draws = 1000 * first
        for index in range(first, first + 8):
            try:
                await world.signer().open(
                    *priced(index % 4, price_in=0, price_out=500_000_000), tokens_in=0, tokens_out=1_960
                )
                said = "signed"
            except SpendingLimitError:
                said = "refused"
            print(said, file=sys.stderr)

trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
"""


def test_two_processes_that_buy_at_once_stay_within_every_limit(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    buyers = [
        subprocess.Popen(
            [sys.executable, "-c", _BUYER, str(path), str(first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for first in (0, 10)
    ]
    for buyer in buyers:
        assert buyer.stdin is not None
        buyer.stdin.write("go\n")
        buyer.stdin.flush()
    said = [buyer.communicate(timeout=30)[1].split() for buyer in buyers]
    assert [len(each) for each in said] == [8, 8]
    assert sum(each.count("signed") for each in said) == 5
    journal = Journal.open(path)
    bought = journal.purchases("signed")
    journal.close()
    assert sum(each.terms.deposit for each in bought) == 5 * DOLLAR
    for host in {each.terms.host for each in bought}:
        assert sum(each.terms.deposit for each in bought if each.terms.host == host) <= 2 * DOLLAR


async def test_one_balance_is_not_authorised_to_many_hosts_at_once(tmp_path: Path) -> None:
    async with signer_world(tmp_path / "journal.sqlite", usdc=2_500_000) as world:
        refused = []

        async def try_to(index: int) -> None:
            try:
                await _spend(world, index)
            except FundsError:
                refused.append(index)

        async with trio.open_nursery() as nursery:
            for index in range(1, 6):
                nursery.start_soon(try_to, index)
        assert len(refused) == 3
        assert world.journal.outstanding(PAYER, NOW) == 2 * DOLLAR


# ---- whom


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"chain_id": 8453}, "is paid on chain 8453, this client pays on chain"),
        ({"chain_id": 0, "node_registry": bytes(20)}, "is paid on no chain"),
        ({"node_registry": b"\x99" * 20}, "belongs to another market"),
        ({"wallet": PAYER}, "own wallet"),
        ({"wallet": bytes(20)}, "names no account"),
        ({"wallet": MEMORY_DOMAINS.market.contract}, "names no account"),
        ({"receipt_key": bytes(20)}, "names no account"),
    ],
)
async def test_a_host_that_can_not_be_paid_is_left_out_and_not_signed_for(
    world: SpendingWorld, changes: dict[str, object], why: str
) -> None:
    advert, offer = priced()
    advert = replace(advert, binding=replace(advert.binding, **changes))  # type: ignore[arg-type]
    assert why in world.signer().exclusion(advert, offer)
    with pytest.raises(ChainError, match="can't be paid"):
        await turn(world.signer(), advert, offer)
    assert world.events == []


@pytest.mark.parametrize(
    ("offer", "why"),
    [
        ({"session_fee": SESSION_FEE_MAX + 1}, "asks 0.250001 USDC a session; at most 0.25 USDC"),
        ({"price_out": 20_000 * DOLLAR}, "asks 1.30 USDC for a session's first 64 tokens"),
    ],
)
async def test_a_host_that_asks_too_much_is_left_out(
    world: SpendingWorld, offer: dict[str, int], why: str
) -> None:
    assert why in world.signer().exclusion(*priced(**offer))


async def test_a_host_within_the_limits_and_a_free_one_are_not_left_out(world: SpendingWorld) -> None:
    assert world.signer().exclusion(*priced()) == ""
    advert, offer = priced(price_in=0, price_out=0)
    elsewhere = replace(advert, binding=replace(advert.binding, chain_id=0))
    assert world.signer().exclusion(elsewhere, offer) == ""


async def test_a_host_that_changed_its_price_after_it_was_chosen_gets_nothing(world: SpendingWorld) -> None:
    _, chosen = priced()
    changed, _ = priced(price_out=PRICES["price_out"] + 1)
    with pytest.raises(ChainError, match="offer has changed since it was chosen"):
        await turn(world.signer(), changed, chosen)
    assert world.events == []


# ---- words


async def test_what_will_be_signed_is_said_in_words_and_in_fields(world: SpendingWorld) -> None:
    advert, offer = priced()
    payment = await turn(world.signer(), advert, offer)
    ((words, fields),) = world.said
    for part in (
        usdc_text(payment.terms.deposit),
        usdc_text(FEE),
        "0.20 USDC of input and 0.80 USDC of output",
        advert.peer,
        shown_address(advert.binding.wallet),
        shown_name(offer.model),
        str(MEMORY_DOMAINS.chain_id),
        "until 2027-01-15 08:07 UTC",
        "the session ends by 2027-01-17 08:00 UTC",
        "after 2027-01-18 08:00 UTC",
    ):
        assert part in words
    assert fields["session"] == payment.session.hex()
    assert (fields["deposit"], fields["tip"]) == (payment.terms.deposit, TIP)
    assert fields["valid_before"] == payment.valid_before


async def test_no_secret_is_shown_logged_or_said(
    world: SpendingWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug")
    signer = world.signer()
    payment = await turn(signer, *priced())
    bought = world.journal.purchase(payment.session)
    assert bought is not None
    with pytest.raises(SpendingLimitError) as caught:
        await signer.open(*priced(**DEAR), tokens_in=0, tokens_out=5_000)
    printed = capsys.readouterr()
    assert "session.signed" in printed.err
    told = "".join(map(repr, (payment, bought, signer, world.said, caught.value))) + printed.out + printed.err
    for secret in (PAYER_SECRET, bought.voucher_secret):
        assert secret.hex() not in told
        assert repr(secret) not in told
