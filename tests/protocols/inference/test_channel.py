"""The payment channel: exact vouchers, and sessions that cost nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.crypto import recover_address
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.events import Emit, Send
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import (
    ChannelReceiver,
    ChannelSender,
    exact_voucher,
    resume_digest,
    resume_holds,
    tokens_affordable,
)
from p2pnode.protocols.inference.commands import FirstTurnFinished, Signed
from p2pnode.protocols.inference.meter import Meter, MeteredTurn
from p2pnode.protocols.inference.receipts import ReceiptChain
from p2pnode.protocols.inference.replay import ReplayBuffer
from p2pnode.protocols.typed_data import amount_due, market_domain, session_id, voucher_digest
from tests.examples import examples
from tests.protocols.inference.paid_pair import (
    ACCEPTS,
    MARKET,
    PAYER,
    SESSION,
    TERMS,
    VOUCHERS,
    client_payment,
)
from tests.protocols.support import Identity, high_s, only, sent

HOST_KEY = Identity("host")
MOST = 2**63 - 1


# ---- amounts


amounts, counts = st.integers(0, MOST), st.integers(0, 10**6)


@given(amounts, st.tuples(amounts, amounts), st.tuples(counts, counts), st.integers(0, 250_000))
def test_what_is_affordable_is_the_most_that_the_deposit_pays(
    deposit: int, prices: tuple[int, int], tokens: tuple[int, int], fee: int
) -> None:
    (price_in, price_out), (tokens_in, tokens_out) = prices, tokens
    terms = replace(TERMS, deposit=deposit, price_in=price_in, price_out=price_out, session_fee=fee)
    count = tokens_affordable(terms, tokens_in, tokens_out)
    assert count >= 0
    if count:
        assert amount_due(terms, tokens_in, tokens_out + count) <= deposit
    if price_out:
        assert amount_due(terms, tokens_in, tokens_out + count + 1) > deposit
    elif not count:
        assert amount_due(terms, tokens_in, tokens_out) > deposit


def test_the_amount_is_exact_to_the_unit_and_rounded_up_once() -> None:
    terms = replace(TERMS, price_in=1, price_out=1, session_fee=7)
    assert [amount_due(terms, n, 0) for n in (0, 1, 1_000_000, 1_000_001)] == [7, 8, 8, 9]
    assert amount_due(terms, 500_000, 500_000) == 8


# ---- vouchers


def voucher(tokens_out: int = 32, *, seq: int = 1, tokens_in: int = 15, **changes: Any) -> m.Voucher:
    exact = exact_voucher(
        client_payment(), SESSION, seq=seq, tokens_in=tokens_in, tokens_out=tokens_out, root=b"r" * 32
    )
    return replace(exact, **changes)


def resigned(changed: m.Voucher, session: SessionId = SESSION, chain_id: int = 31_337) -> m.Voucher:
    """Signed as it stands, by the right key."""
    domain = market_domain(chain_id, MARKET.contract)
    return replace(changed, signature=VOUCHERS.sign_wallet(voucher_digest(domain, session, changed)))


class Channel:
    """A receiver with a meter, of which a test sends receipts and quotes."""

    def __init__(self, replay: ReplayBuffer | None = None) -> None:
        self.meter = Meter(ReceiptChain(SESSION, 1, b"r" * 32))
        self.effects = Effects(PeerId("client"), 1)
        self.receiver = ChannelReceiver(
            SESSION, ACCEPTS.sign, self.meter, market=MARKET, terms=TERMS, replay=replay
        )
        self.turns: dict[int, MeteredTurn] = {}

    def begin(self, *turns: int) -> Channel:
        for turn in turns:
            self.receiver.begin_turn(turn, 8, self.turns)
            self.turns[turn] = MeteredTurn(number=turn)
        return self

    def quote(self, turn: int, billed: int) -> bool:
        return self.receiver.quote(turn, billed, self.effects)

    def receipt(self, turn: int, count: int) -> m.Checkpoint:
        """Output of a turn is sent, and receipted."""
        metered = self.turns[turn]
        frame = m.Tokens(turn=turn, index=metered.tokens_out, ids=tuple(range(count)))
        self.meter.count(metered, frame)
        self.receiver.credit.spend(count)
        self.receiver.issue(self.effects)
        return only(m.Checkpoint, sent(self.effects.take()))

    def take(self, voucher: m.Voucher) -> int | None:
        return self.receiver.take(voucher, self.effects)

    def voucher(self, tokens_in: int, at: m.Checkpoint | None = None, turn: int = 0) -> m.Voucher:
        """As a client would sign it."""
        seq, tokens_out, root = (0, 0, b"r" * 32) if at is None else (at.seq, at.tokens_out, at.root)
        return exact_voucher(
            client_payment(),
            SESSION,
            seq=seq,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            root=root,
            turn=turn,
        )


def owing() -> tuple[Channel, m.Checkpoint]:
    """A turn of 15 input tokens that are paid and 32 of output that are receipted."""
    channel = Channel().begin(1)
    assert not channel.quote(1, 15)
    assert channel.take(channel.voucher(15, turn=1)) == 1
    return channel, channel.receipt(1, 32)


def test_a_voucher_is_signed_by_the_voucher_key_over_the_contracts_digest() -> None:
    exact = voucher()
    digest = voucher_digest(MARKET, session_id(MARKET, TERMS), exact)
    assert recover_address(digest, exact.signature) == TERMS.voucher_key
    assert exact.amount == amount_due(TERMS, 15, 32)
    assert voucher_digest(MARKET, SESSION, replace(exact, turn=7)) == digest, "the turn is not signed"


def test_the_exact_voucher_is_taken_once_and_ignored_the_second_time() -> None:
    channel, receipt = owing()
    exact = channel.voucher(15, receipt)
    assert channel.receiver.owed
    assert channel.take(exact) == 0
    assert (channel.receiver.owed, channel.receiver.best) == (False, exact)
    assert channel.receiver.credit.acknowledged == 32
    assert channel.take(exact) is None
    assert channel.take(replace(exact, turn=1)) is None, "the same signature"


def test_a_later_voucher_pays_for_the_earlier_receipts_too() -> None:
    channel, _ = owing()
    later = channel.receipt(1, 32)
    assert channel.take(channel.voucher(15, later)) == 0
    assert not channel.receiver.owed


def test_a_voucher_may_pay_an_input_and_receipts_at_once() -> None:
    channel, receipt = owing()
    channel.begin(2).quote(2, 7)
    assert channel.take(channel.voucher(22, receipt, turn=2)) == 2
    assert (channel.receiver.owed, channel.meter.tokens_in) == (False, 22)


def test_inputs_are_paid_in_any_order_that_the_client_chooses() -> None:
    channel = Channel().begin(1, 2, 3)
    for turn, billed in ((1, 15), (2, 7), (3, 4)):
        assert not channel.quote(turn, billed)
    assert channel.take(channel.voucher(7, turn=2)) == 2
    assert channel.take(channel.voucher(11, turn=3)) == 3
    assert channel.take(channel.voucher(26, turn=1)) == 1
    assert channel.receiver.quoted == {}


def test_a_quote_that_is_not_paid_is_in_no_sum() -> None:
    channel = Channel().begin(1, 2)
    channel.quote(1, 15)
    channel.quote(2, 7)
    channel.receiver.end_turn(1)  # cancelled
    assert channel.take(channel.voucher(7, turn=2)) == 2
    assert channel.receipt(2, 5).tokens_in == 7


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"amount": voucher().amount + 1}, id="inflated amount"),
        pytest.param({"amount": voucher().amount - 1}, id="deflated amount"),
        pytest.param({"root": bytes(32)}, id="wrong root"),
        pytest.param({"seq": 2}, id="a receipt that was not sent"),
        pytest.param({"seq": 0}, id="an earlier receipt"),
        pytest.param({"tokens_out": 33}, id="more than was delivered"),
        pytest.param({"tokens_out": 31}, id="less than was delivered"),
        pytest.param({"tokens_in": 14}, id="less input than was paid"),
        pytest.param({"tokens_in": 16}, id="more input than was quoted"),
        pytest.param({"turn": 1}, id="an input that was paid"),
        pytest.param({"turn": 9}, id="an input that was not quoted"),
    ],
)
def test_a_voucher_that_is_not_exact_is_a_violation_even_if_the_key_signed_it(
    change: dict[str, Any],
) -> None:
    channel, receipt = owing()
    changed = replace(channel.voucher(15, receipt), **change)
    if {"tokens_in", "tokens_out"} & set(change):  # to the unit, for what it says
        changed = replace(changed, amount=amount_due(TERMS, changed.tokens_in, changed.tokens_out))
    before = channel.receiver.best
    with pytest.raises(ProtocolError):
        channel.take(resigned(changed))
    assert (channel.receiver.owed, channel.receiver.best) == (True, before)
    assert channel.take(channel.voucher(15, receipt)) == 0


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda exact: resigned(exact, session=SessionId(bytes(32))), id="of another session"),
        pytest.param(lambda exact: resigned(exact, chain_id=1), id="of another chain"),
        pytest.param(lambda exact: replace(exact, signature=high_s(exact.signature)), id="high-s"),
        pytest.param(lambda exact: replace(exact, signature=bytes(65)), id="no signature"),
        pytest.param(lambda exact: replace(exact, signature=exact.signature[:64]), id="a short signature"),
        pytest.param(
            lambda exact: replace(
                exact, signature=Identity("thief").sign_wallet(voucher_digest(MARKET, SESSION, exact))
            ),
            id="another key",
        ),
    ],
)
def test_a_voucher_that_the_key_did_not_sign_for_this_session_is_a_violation(
    forge: Callable[[m.Voucher], m.Voucher],
) -> None:
    channel, receipt = owing()
    with pytest.raises(ProtocolError):
        channel.take(forge(channel.voucher(15, receipt)))
    assert channel.receiver.owed


def test_a_stale_voucher_is_a_violation() -> None:
    channel, first = owing()
    later = channel.receipt(1, 32)
    channel.take(channel.voucher(15, later))
    with pytest.raises(ProtocolError):
        channel.take(channel.voucher(15, first))
    assert channel.receiver.best == channel.voucher(15, later)


# ---- advances


def test_an_advance_waits_for_the_quote_and_is_used_only_if_it_is_exactly_that() -> None:
    channel = Channel().begin(1)
    assert channel.take(channel.voucher(20, turn=1)) is None
    assert channel.quote(1, 20)
    assert channel.meter.tokens_in == 20
    channel = Channel().begin(1)
    assert channel.take(channel.voucher(20, turn=1)) is None
    assert not channel.quote(1, 15)
    assert channel.take(channel.voucher(15, turn=1)) == 1


def test_an_advance_that_crosses_its_quote_is_dropped_or_taken() -> None:
    channel = Channel().begin(1)
    channel.quote(1, 15)
    assert channel.take(channel.voucher(20, turn=1)) is None
    assert channel.take(channel.voucher(15, turn=1)) == 1
    channel = Channel().begin(1)
    channel.quote(1, 15)
    assert channel.take(channel.voucher(15, turn=1)) == 1


def test_an_advance_of_a_turn_that_is_over_is_dropped_once() -> None:
    channel = Channel().begin(1)
    channel.receiver.end_turn(1)
    assert channel.take(channel.voucher(20, turn=1)) is None
    with pytest.raises(ProtocolError):
        channel.take(channel.voucher(21, turn=1))


def test_advances_are_not_stacked() -> None:
    channel = Channel().begin(1, 2)
    assert channel.take(channel.voucher(20, turn=1)) is None
    with pytest.raises(ProtocolError, match="second advance"):
        channel.take(channel.voucher(30, turn=2))
    channel = Channel().begin(1)
    assert channel.take(channel.voucher(20, turn=1)) is None
    with pytest.raises(ProtocolError):
        channel.take(channel.voucher(21, turn=1))


def test_there_is_no_advance_before_a_prompt_or_after_the_input_was_paid() -> None:
    channel = Channel()
    with pytest.raises(ProtocolError):
        channel.take(channel.voucher(20, turn=1))
    channel, receipt = owing()
    with pytest.raises(ProtocolError):
        channel.take(channel.voucher(20, receipt, turn=1))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"amount": 1}, id="another amount"),
        pytest.param({"root": bytes(32)}, id="wrong root"),
        pytest.param({"tokens_in": 0}, id="for nothing"),
        pytest.param({"tokens_out": 1}, id="for output"),
        pytest.param({"signature": bytes(65)}, id="unsigned"),
    ],
)
def test_an_advance_must_be_exact_for_its_own_count(change: dict[str, Any]) -> None:
    channel = Channel().begin(1)
    forged = replace(channel.voucher(20, turn=1), **change)
    with pytest.raises(ProtocolError):
        channel.take(forged if "signature" in change else resigned(forged))


# ---- any crossing of vouchers and checkpoints


class Crossing:
    """A host and a client with many turns; what one says waits until a move brings it to the other."""

    def __init__(self) -> None:
        self.host = Channel()
        self.client = ChannelSender(client_payment())
        self.counted = Meter(ReceiptChain(SESSION, 1, b"r" * 32))
        self.client.begin(self.counted)
        self.effects = Effects(PeerId("host"), 1)
        self.theirs: dict[int, MeteredTurn] = {}
        self.to_client: deque[Any] = deque()
        self.to_host: deque[Any] = deque()
        self.billed: dict[int, int] = {}
        self.paid: set[int] = set()
        self.cancelled: set[int] = set()

    def prompt(self, number: int) -> None:
        turn = len(self.host.turns) + 1
        if turn > 64:
            return
        self.host.turns[turn], self.theirs[turn] = MeteredTurn(number=turn), MeteredTurn(number=turn)
        self.host.receiver.begin_turn(turn, 64, self.host.turns)
        if turn == 1 and number % 2:
            self.client.advance(turn, number, self.effects)
            self.client_says()

    def quote(self, number: int) -> None:
        waiting = [turn for turn in self.host.turns if turn not in self.billed and turn not in self.cancelled]
        if not waiting:
            return
        turn = waiting[0]
        self.billed[turn] = number
        self.host.effects.send(m.Quote(turn=turn, tokens_in=number, prompt_hash=bytes(32)))
        if self.host.quote(turn, number):
            self.paid.add(turn)
        self.host_says()

    def output(self, number: int) -> None:
        channel = self.host.receiver
        count = min(number, channel.credit.left, 32 - self.host.meter.unreceipted)
        if not self.paid or count <= 0:
            return
        metered = self.host.turns[sorted(self.paid)[number % len(self.paid)]]
        ids = tuple(range(count))
        frame = m.Tokens(turn=metered.number, index=metered.tokens_out, ids=ids)
        self.host.effects.send(frame)
        self.host.meter.count(metered, frame)
        channel.credit.spend(count)
        if self.host.meter.unreceipted == 32 or number % 3 == 0:
            channel.issue(self.host.effects)
        self.host_says()

    def cancel(self, number: int) -> None:
        turns = [turn for turn in self.host.turns if turn not in self.cancelled]
        if not turns or self.client.is_paid(turn := turns[number % len(turns)]):
            return
        self.cancelled.add(turn)
        self.client.cancel_turn(turn, self.effects)
        self.effects.send(m.Cancel(turn=turn))
        self.client_says()

    def hear(self, _number: int = 0) -> None:
        if not self.to_client:
            return
        match self.to_client.popleft():
            case m.Quote(turn=turn, tokens_in=tokens_in):
                self.client.quoted(turn, tokens_in, self.effects, wanted=turn not in self.cancelled)
            case m.Tokens() as frame:
                self.counted.count(self.theirs[frame.turn], frame)
                self.client.first_token(frame.turn, self.effects)
            case m.Checkpoint() as claimed:
                assert self.client.accepts_total(claimed.tokens_in)
                receipt = self.counted.check(claimed, self.theirs.get, self.client.verify)
                self.client.settle(receipt, (), self.effects, {})
            case other:
                raise AssertionError(other)
        self.client_says()

    def take(self, _number: int = 0) -> None:
        if not self.to_host:
            return
        message = self.to_host.popleft()
        if isinstance(message, m.Cancel):
            if message.turn not in self.paid:
                self.host.receiver.end_turn(message.turn)
        elif turn := self.host.take(message):
            self.paid.add(turn)

    def host_says(self) -> None:
        self.to_client.extend(sent(self.host.effects.take()))

    def client_says(self) -> None:
        self.to_host.extend(sent(self.effects.take()))

    def settle(self) -> None:
        """All that was said arrives, and the last output is receipted."""
        if self.host.meter.unreceipted:
            self.host.receiver.issue(self.host.effects)
            self.host_says()
        while self.to_client or self.to_host:
            self.hear()
            self.take()


moves = st.lists(
    st.tuples(st.sampled_from(["prompt", "quote", "output", "hear", "take", "cancel"]), st.integers(1, 40)),
    max_size=120,
)


@examples(200)
@given(moves)
def test_however_vouchers_and_checkpoints_cross_they_settle_to_exactly_the_sum(
    script: list[tuple[str, int]],
) -> None:
    both = Crossing()
    for kind, number in script:
        getattr(both, kind)(number)
    both.settle()
    host, client = both.host, both.client
    inputs = sum(both.billed[turn] for turn in both.paid)
    outputs = sum(each.tokens_out for each in host.turns.values())
    assert (host.meter.tokens_in, host.meter.tokens_out) == (inputs, outputs)
    assert both.counted.tokens_out == outputs
    assert not host.receiver.owed or client.paid_ahead
    best = host.receiver.best
    if best is not None and not client.paid_ahead:
        assert (best.tokens_in, best.tokens_out) == (inputs, outputs)
        assert best.amount == amount_due(TERMS, inputs, outputs)


# ---- resuming


def test_a_resume_is_bound_to_nonce_session_and_both_peers() -> None:
    host, client = PeerId("host"), PeerId("client")
    digest = resume_digest(b"n" * 32, SESSION, host, client)
    others = {
        resume_digest(b"o" * 32, SESSION, host, client),
        resume_digest(b"n" * 32, SessionId(bytes(32)), host, client),
        resume_digest(b"n" * 32, SESSION, client, host),
        resume_digest(b"n" * 32, SESSION, host, host),
        resume_digest(b"n" * 32, SESSION, PeerId("hostclient"), PeerId("")),
    }
    assert len(others | {digest}) == 6
    assert resume_holds(TERMS, digest, VOUCHERS.sign_wallet(digest))
    assert not resume_holds(TERMS, digest, PAYER.sign_wallet(digest))
    assert not resume_holds(TERMS, digest, high_s(VOUCHERS.sign_wallet(digest)))


# ---- free sessions


def free_channel(tokens: int = 32) -> ChannelReceiver:
    """Of a free session in which so many tokens were sent."""
    meter = Meter(ReceiptChain(SESSION, 1, b"r" * 32))
    channel = ChannelReceiver(SESSION, HOST_KEY.sign, meter)
    meter.count(MeteredTurn(number=1), m.Tokens(turn=1, index=0, ids=tuple(range(tokens))))
    channel.credit.spend(tokens)
    return channel


def test_a_free_session_is_one_whose_price_is_zero() -> None:
    channel = free_channel()
    assert channel.quote(1, 1_000, Effects(PeerId("client"), 1)), "nothing has to be paid"
    assert channel.meter.tokens_in == 1_000
    assert (channel.cost, channel.affordable) == (0, m.N_CTX_MAX)
    sender = ChannelSender(None)
    sender.begin(channel.meter)
    assert sender.covers(MOST, MOST)


def test_a_receipt_of_a_free_session_is_sent_and_no_voucher_is_due_for_it() -> None:
    channel = free_channel()
    effects = Effects(PeerId("client"), 1)
    channel.issue(effects)
    (send,) = effects.take()
    assert isinstance(send, Send)
    assert not channel.owed


def test_acks_bring_credit_in_a_free_session_only_and_vouchers_in_a_paid_one_only() -> None:
    effects = Effects(PeerId("client"), 1)
    assert free_channel().take(m.Ack(seq=32), effects) == 0
    with pytest.raises(ProtocolError, match="Voucher is out of place in a free session"):
        free_channel().take(voucher(), effects)
    channel, receipt = owing()
    assert channel.take(channel.voucher(15, receipt)) == 0
    with pytest.raises(ProtocolError, match="Ack is out of place in a paid session"):
        channel.receiver.take(m.Ack(seq=32), effects)


def paying(*, finished: bool = False) -> tuple[ChannelSender, Effects]:
    sender, effects = ChannelSender(client_payment()), Effects(PeerId("host"), 1)
    sender.begin(Meter(ReceiptChain(SESSION, 1, b"r" * 32)))
    sender.has_finished = finished
    return sender, effects


def test_a_client_pays_nothing_ahead_in_a_free_session_and_the_exact_voucher_in_a_paid_one() -> None:
    effects = Effects(PeerId("host"), 1)
    free = ChannelSender(None)
    free.begin(Meter(ReceiptChain(SESSION, 1, b"r" * 32)))
    free.advance(1, 20, effects)
    assert effects.take() == []
    sender, effects = paying()
    sender.advance(1, 20, effects)
    signed, send = effects.take()
    assert isinstance(signed, Emit)
    assert isinstance(send, Send)
    assert signed.value == Signed(send.message, signed.value.parts), "durable before it is sent"


@pytest.mark.parametrize(("finished", "most"), [(False, 1), (True, 2)])
def test_a_client_pays_one_input_that_brought_nothing_and_two_once_the_host_finished_a_turn(
    finished: bool, most: int
) -> None:
    sender, effects = paying(finished=finished)
    for turn in range(1, 6):
        sender.quoted(turn, 10, effects, wanted=True)
    assert [each.turn for each in sent(effects.take())] == list(range(1, most + 1))
    sender.first_token(1, effects)
    (following,) = sent(effects.take())
    assert (following.turn, following.tokens_in) == (most + 1, 10 * (most + 1))
    sender.cancel_turn(most + 2, effects)
    sender.end_turn(following.turn, effects, wanted=False)
    (following,) = sent(effects.take())
    assert (following.turn, following.tokens_in) == (most + 3, 10 * (most + 2))


@pytest.mark.parametrize("known", [False, True])
def test_a_host_that_finished_a_turn_for_this_wallet_before_is_trusted_with_two_inputs_from_the_first_on(
    known: bool,
) -> None:
    payment = replace(client_payment(), has_finished=known)
    sender, effects = ChannelSender(payment), Effects(PeerId("host"), 1)
    meter = Meter(ReceiptChain(SESSION, 1, b"r" * 32))
    for resumed in (False, True):
        if resumed:
            sender.go_on_from(None, meter)
        else:
            sender.begin(meter)
        for turn in range(1, 4):
            sender.quoted(turn, 10, effects, wanted=True)
        assert len(sent(effects.take())) == (2 if known else 1)
    sender.finished(effects)
    told = [each for each in effects.take() if isinstance(each, Emit)]
    assert [each.value for each in told] == ([] if known else [FirstTurnFinished()])
    sender.finished(effects)
    assert effects.take() == []


def test_nothing_is_signed_on_top_of_an_advance_until_its_quote_has_come() -> None:
    sender, effects = paying(finished=True)
    sender.advance(1, 20, effects)
    effects.take()
    sender.quoted(2, 10, effects, wanted=True)
    sender.advance(3, 5, effects)
    assert effects.take() == []
    sender.quoted(1, 20, effects, wanted=True)
    (following,) = sent(effects.take())
    assert (following.turn, following.tokens_in) == (2, 30)


def test_what_follows_a_dropped_advance_builds_on_the_voucher_before_it() -> None:
    sender, effects = paying()
    sender.advance(1, 20, effects)
    (early,) = sent(effects.take())
    sender.quoted(1, 15, effects, wanted=True)
    (right,) = sent(effects.take())
    assert (early.tokens_in, right.tokens_in) == (20, 15)
    assert sender.rejoin(None, effects) is None
    assert sent(effects.take()) == [right], "a resume does not bring the dropped one again"


def test_a_host_that_resumes_from_a_voucher_that_was_never_sent_is_found_out() -> None:
    sender, effects = paying(finished=True)
    for turn in (1, 2):
        sender.quoted(turn, 10, effects, wanted=True)
    first, second = sent(effects.take())
    assert sender.rejoin(first, effects) is None
    assert sent(effects.take()) == [second]
    assert sender.rejoin(voucher(), effects) is not None
