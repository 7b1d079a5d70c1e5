"""Paid sessions against the other side: clients that don't pay, hosts that bill what they didn't send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.ids import SessionId
from p2pnode.protocols.events import Command, Received, SetTimer, TimerFired
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.commands import (
    CancelTurn,
    Count,
    Counted,
    CountFailed,
    Delivered,
    Drain,
    Escrowed,
    Finished,
    GenDone,
    Generate,
    GenFailed,
    GenTokens,
    Issued,
    NotEscrowed,
    Paid,
    Relay,
    Replaced,
    SessionFailed,
    Signed,
    Start,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.inference.receipts import receipt_digest
from p2pnode.protocols.inference.replay import Piece
from p2pnode.protocols.typed_data import amount_due, session_id, voucher_digest
from p2pnode.protocols.wire import encode, wire_name
from tests.examples import examples
from tests.protocols.inference.paid_pair import (
    CLIENT_ID,
    MARKET,
    RECEIPTS,
    SESSION,
    TERMS,
    VOUCHERS,
    PaidPair,
    client_payment,
    next_voucher,
    paid_client,
    paid_open,
)
from tests.protocols.inference.pair import HOLDER, HOST, PROMPT_HASH, STREAM, ask, new_host, token
from tests.protocols.inference.pair import TERMS as FREE
from tests.protocols.strategies import messages
from tests.protocols.support import MODEL, Identity, emitted, high_s, only, sent

PARTS = list(prompt_parts(1, encode(ask().body)))
ACCEPT = m.Accept(session=SESSION, nonce=b"n" * 32, epoch=3, n_ctx=4096, session_fee=TERMS.session_fee)


def quote(turn: int = 1, tokens_in: int = 20, reused: int = 0) -> m.Quote:
    return m.Quote(turn=turn, tokens_in=tokens_in, prompt_hash=PROMPT_HASH, reused=reused)


# ---- the host's side


def say(host: HostSession, *said: Any) -> list[Any]:
    out: list[Any] = []
    for message in said:
        effects = host.handle(Received(CLIENT_ID.peer, STREAM, message), 0.0)
        out += [*sent(effects), *emitted(effects)]
    return out


def tell(host: HostSession, *commands: Any) -> list[Any]:
    out: list[Any] = []
    for command in commands:
        effects = host.handle(Command(command), 0.0)
        out += [*sent(effects), *emitted(effects)]
    return out


def relaying() -> HostSession:
    host = PaidPair().new_host()
    host.start(0.0)
    only(Relay, say(host, paid_open()))
    return host


def quoted() -> HostSession:
    """A prompt of 20 tokens, 5 of them cached, is counted and not paid."""
    host = relaying()
    tell(host, Escrowed())
    only(Count, say(host, *PARTS))
    only(m.Quote, tell(host, Counted(1, 20, 5)))
    return host


def serving(*, tokens: int = 0) -> HostSession:
    host = quoted()
    only(Generate, say(host, pay(host)))
    if tokens:
        tell(host, GenTokens(1, Piece(ids=tuple(range(tokens)), text="x")))
    return host


def pay(host: HostSession, **changes: Any) -> m.Voucher:
    """The voucher for all that is due, changed and signed as it then stands."""
    exact = next_voucher(host)
    if not changes:
        return exact
    changed = replace(exact, **changes)
    return replace(changed, signature=VOUCHERS.sign_wallet(voucher_digest(MARKET, SESSION, changed)))


def violated(out: list[Any]) -> bool:
    """Ended as a fault, and settled at once: who breaks the protocol doesn't come back."""
    return any(isinstance(value, Finished) and value.fault and not value.lingers for value in out)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"price_in": 1}, "payment_required"),
        ({"price_out": 1}, "payment_required"),
        ({"session_fee": 0}, "payment_required"),
        ({"deposit": 1}, "payment_required"),
        ({"host": Identity("x").wallet}, "bad_request"),
        ({"receipt_key": Identity("x").wallet}, "bad_request"),
        ({"expiry": 0}, "bad_request"),
        ({"salt": bytes(32)}, "bad_request"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else change,
)
def test_altered_terms_are_never_relayed(change: dict[str, Any], code: str) -> None:
    host = PaidPair().new_host()
    host.start(0.0)
    out = say(host, replace(paid_open(), terms=replace(TERMS, **change)))
    assert only(m.Refuse, out).code == code
    assert not [value for value in out if isinstance(value, Relay)]


def test_a_free_open_at_a_paid_host_runs_nothing_free() -> None:
    host = PaidPair().new_host()
    host.start(0.0)
    assert (
        only(m.Refuse, say(host, m.Open(model=MODEL, salt=bytes(32), holder=HOLDER))).code
        == "payment_required"
    )


def test_a_role_that_forgets_to_check_does_not_make_a_paid_host_serve_free() -> None:
    granted = PaidPair().granted
    host = HostSession(
        peer=CLIENT_ID.peer,
        stream=1,
        admit=lambda _open: granted,
        sign=HOST.sign,
        epoch=1,
        draw=bytes,
        terms=granted,
    )
    assert (
        "paid sessions only"
        in only(m.Refuse, say(host, m.Open(model=MODEL, salt=bytes(32), holder=HOLDER))).detail
    )


@pytest.mark.parametrize(
    "message",
    [
        paid_open(),
        PARTS[0],
        m.Ack(seq=0),
        m.Cancel(turn=1),
        m.Resume(holder=HOLDER, session=SESSION, received=0, turn=0, proof=bytes(65)),
    ],
    ids=lambda message: wire_name(type(message)),
)
def test_while_the_deposit_is_relayed_nothing_else_is_in_place(message: Any) -> None:
    assert violated(say(relaying(), message))


def test_while_the_deposit_is_relayed_pings_are_answered_and_a_close_is_a_close() -> None:
    host = relaying()
    assert say(host, m.Ping(nonce=3), m.Pong(nonce=1)) == [m.Pong(nonce=3)]
    assert say(host, m.Close()) == [Finished("closed by the client")]
    assert tell(host, Escrowed()) == []


def test_a_chain_that_never_answers_is_a_refusal_after_the_relay_time() -> None:
    host = PaidPair().new_host()
    host.start(0.0)
    effects = host.handle(Received(CLIENT_ID.peer, STREAM, paid_open()), 5.0)
    assert only(SetTimer, effects) == SetTimer("relay", 105.0)
    out = host.handle(TimerFired("relay"), 105.0)
    assert only(m.Refuse, sent(out)).code == "stalled"
    assert only(Finished, emitted(out)) == Finished("refused: stalled")


def test_a_deposit_that_lands_in_time_stops_the_relay_timer() -> None:
    host = relaying()
    tell(host, Escrowed())
    assert host.handle(TimerFired("relay"), 105.0) == []
    assert tell(host, Escrowed(), NotEscrowed(m.Refuse(code="payment_required")))[-1] == Finished(
        "the deposit was lost"
    )


def test_a_prompt_of_32k_tokens_that_is_never_paid_never_reaches_the_engine() -> None:
    pair = PaidPair(tokens_in=32_768, reused=0, answer_tokens=10)
    pair.granted = replace(pair.granted, n_ctx=1 << 17)
    pair.host = pair.new_host()
    pair.open()
    pair.ask(ask(content="x" * 200_000, input_max=10**6))
    while pair.deliver_to_host() or pair.deliver_to_client():
        pass
    pair.count()
    pair.deliver_to_client()
    pair.to_host.clear()  # the voucher never comes
    for number in range(100):  # nor does anything else move the deadline
        effects = pair.host.handle(Received(CLIENT_ID.peer, STREAM, m.Ping(nonce=number)), float(number))
        assert not [effect for effect in effects if isinstance(effect, SetTimer)]
    pair.fire("stall", host=True)
    assert [(finished.fault, finished.lingers) for finished in pair.finished] == [(False, True)]
    assert (pair.runs, pair.paid) == (0, [])
    assert pair.host.session is not None
    assert pair.host.session.meter.tokens_in == 0


def test_the_quotes_stall_time_is_the_hosts() -> None:
    host = relaying()
    tell(host, Escrowed())
    say(host, *PARTS)
    effects = host.handle(Command(Counted(1, 20, 5)), 7.0)
    assert only(SetTimer, effects) == SetTimer("stall", 37.0)


def test_a_client_that_stops_signing_is_cut_off_within_one_window() -> None:
    pair = PaidPair(answer_tokens=1000)
    pair.open()
    pair.ask(ask())
    for _ in range(40):
        pair.moves(16)
    assert pair.paid[-1].tokens_out > 0
    stopped_at = pair.paid[-1].tokens_out
    while pair.deliver_to_client() or pair.engine(16):
        pair.to_host.clear()  # it reads on, and signs no more
    assert pair.sent_out == stopped_at + m.WINDOW
    assert pair.run is None, "and the engine is free"
    pair.fire("stall", host=True)
    assert [(finished.fault, finished.lingers) for finished in pair.finished] == [(False, True)]
    assert pair.channel.best == pair.paid[-1]


def test_an_ack_instead_of_a_voucher_is_a_violation() -> None:
    for host in (serving(tokens=40), quoted()):
        assert violated(say(host, m.Ack(seq=0)))


def test_a_voucher_in_a_free_session_is_a_violation() -> None:
    host = new_host(FREE)
    host.start(0.0)
    say(host, m.Open(model=MODEL, salt=bytes(32), holder=HOLDER))
    out = say(
        host, m.Voucher(seq=0, tokens_in=0, tokens_out=0, amount=0, root=bytes(32), signature=bytes(65))
    )
    assert only(Finished, out).fault


FORGERIES: dict[str, Callable[[HostSession], m.Voucher]] = {
    "inflated amount": lambda host: pay(host, amount=pay(host).amount + 1),
    "deflated amount": lambda host: pay(host, amount=pay(host).amount - 1),
    "no amount": lambda host: pay(host, amount=0),
    "fewer tokens": lambda host: pay(host, tokens_out=31, amount=amount_due(TERMS, 15, 31)),
    "more tokens": lambda host: pay(host, tokens_out=40, amount=amount_due(TERMS, 15, 40)),
    "wrong root": lambda host: pay(host, root=bytes(32)),
    "wrong seq": lambda host: pay(host, seq=2),
    "largest values": lambda host: pay(host, amount=2**63 - 1, tokens_in=2**63 - 1, tokens_out=2**63 - 1),
    "another session": lambda host: replace(
        pay(host), signature=VOUCHERS.sign_wallet(voucher_digest(MARKET, SessionId(bytes(32)), pay(host)))
    ),
    "another key": lambda host: replace(
        pay(host), signature=RECEIPTS.sign_wallet(voucher_digest(MARKET, SESSION, pay(host)))
    ),
    "high-s signature": lambda host: replace(pay(host), signature=high_s(pay(host).signature)),
    "a signature of another length": lambda host: replace(pay(host), signature=bytes(100)),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_voucher_that_is_not_exact_ends_the_session_and_credits_nothing(forgery: str) -> None:
    host = serving(tokens=40)
    out = say(host, FORGERIES[forgery](host))
    assert violated(out)
    assert not [value for value in out if isinstance(value, Paid | m.Tokens)]


def test_the_exact_voucher_brings_credit_and_the_same_one_again_brings_nothing() -> None:
    host = serving(tokens=60)
    tell(host, GenTokens(1, Piece(ids=tuple(range(16)), text="x")))
    exact = pay(host)
    out = say(host, exact)
    assert out[0].index == m.WINDOW  # sends are listed first; the order is checked by the pair
    assert only(Paid, out).voucher == exact
    assert say(host, exact) == []


def test_a_stale_voucher_is_a_violation() -> None:
    host = serving(tokens=32)
    first = pay(host)
    say(host, first)
    tell(host, GenTokens(1, Piece(ids=tuple(range(32)), text="x")))
    say(host, pay(host))
    assert violated(say(host, first))


def test_a_durable_voucher_comes_before_what_it_pays_for() -> None:
    host = serving(tokens=60)
    tell(host, GenTokens(1, Piece(ids=tuple(range(16)), text="x")))
    effects = host.handle(Received(CLIENT_ID.peer, STREAM, pay(host)), 0.0)
    kinds = [type(getattr(effect, "value", getattr(effect, "message", effect))) for effect in effects]
    assert kinds.index(Paid) < kinds.index(m.Tokens)
    effects = quoted().handle(Received(CLIENT_ID.peer, STREAM, pay(quoted())), 0.0)
    kinds = [type(getattr(effect, "value", effect)) for effect in effects]
    assert kinds.index(Paid) < kinds.index(Generate)


def test_a_durable_receipt_comes_before_it_is_sent() -> None:
    host = serving()
    effects = host.handle(Command(GenTokens(1, Piece(ids=tuple(range(32)), text="x"))), 0.0)
    kinds = [type(getattr(effect, "value", getattr(effect, "message", effect))) for effect in effects]
    assert kinds.index(Issued) < kinds.index(m.Checkpoint)


def test_a_wrong_voucher_for_the_input_is_let_through_once_only_if_it_could_be_an_early_one() -> None:
    host = quoted()
    assert violated(say(host, pay(host, amount=1)))
    host = quoted()
    other = pay(host, tokens_in=20, amount=amount_due(TERMS, 20, 0))
    assert say(host, other) == []
    assert violated(say(host, other))


def test_a_late_or_repeated_count_means_nothing() -> None:
    host = quoted()
    assert tell(host, Counted(1, 30, 0), CountFailed(1, "internal", ""), Counted(2, 9, 0)) == []
    host = serving()
    assert tell(host, Counted(1, 30, 0), CountFailed(1, "internal", "")) == []
    assert tell(relaying(), Counted(1, 5, 0)) == []


def test_a_client_that_cancels_before_it_pays_costs_the_host_no_engine_and_no_memory() -> None:
    host = relaying()
    tell(host, Escrowed())
    for turn in range(1, 200):
        out = say(host, *prompt_parts(turn, encode(ask().body)))
        assert not [value for value in out if isinstance(value, Generate)]
        tell(host, Counted(turn, 20, 0))
        assert only(m.Done, say(host, m.Cancel(turn=turn))).tokens_in == 0
    assert host.session is not None
    channel = host.session.channel
    assert not channel.free
    assert len(channel.replay) <= 2
    assert not channel.owed


def test_a_replaced_command_to_the_machine_that_holds_the_session_ends_nothing() -> None:
    host = serving()
    assert tell(host, Replaced()) == []
    assert host.state == "busy"


# ---- the client's side


def hear(client: ClientSession, *said: Any) -> list[Any]:
    out: list[Any] = []
    for message in said:
        effects = client.handle(Received(HOST.peer, STREAM, message), 0.0)
        out += [*sent(effects), *emitted(effects)]
    return out


def blamed(out: list[Any]) -> bool:
    """The host broke the protocol, and nothing was signed for it."""
    fault = any(isinstance(value, SessionFailed) and value.fault for value in out)
    return fault and not [value for value in out if isinstance(value, Signed | m.Voucher)]


def opening() -> ClientSession:
    client = paid_client()
    client.handle(Command(Start()), 0.0)
    return client


def asking(**changes: Any) -> ClientSession:
    client = opening()
    hear(client, ACCEPT)
    client.handle(Command(replace(ask(input_max=100), **changes)), 0.0)
    return client


def test_an_honest_acceptance_is_taken() -> None:
    assert not blamed(hear(opening(), ACCEPT))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"session": SessionId(b"x" * 32)}, id="another session id"),
        pytest.param({"session_fee": TERMS.session_fee + 1}, id="a higher fee"),
        pytest.param({"session_fee": TERMS.session_fee - 1}, id="a lower fee"),
        pytest.param({"session_fee": 0}, id="no fee"),
    ],
)
def test_a_host_that_accepts_something_else_is_at_fault(change: dict[str, Any]) -> None:
    assert blamed(hear(opening(), replace(ACCEPT, **change)))


def test_a_paid_open_waits_for_the_chain() -> None:
    client = paid_client()
    effects = client.handle(Command(Start()), 3.0)
    assert only(SetTimer, effects) == SetTimer("open", 113.0)
    request = only(m.Open, sent(effects))
    assert (request.terms, request.valid_before) == (TERMS, client_payment().valid_before)
    assert request.authorisation == client_payment().authorisation


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(quote(turn=1, tokens_in=101), id="more than possible"),
        pytest.param(quote(turn=1, tokens_in=20, reused=21), id="more reused than there is"),
    ],
)
def test_a_host_that_quotes_too_much_is_paid_nothing(told: m.Quote) -> None:
    assert blamed(hear(asking(), told))


@pytest.mark.parametrize("tokens_in", [19, 21])
def test_a_client_that_counted_takes_no_other_quote(tokens_in: int) -> None:
    assert blamed(hear(asking(input_exact=20), quote(turn=1, tokens_in=tokens_in)))


def test_no_input_is_paid_with_the_prompt_that_a_spending_limit_would_not_pay_once_quoted() -> None:
    for spend_max, pays in ((None, True), (TERMS.deposit, True), (1, False)):
        client = opening()
        hear(client, ACCEPT)
        turn = replace(ask(input_max=100), input_exact=20, spend_max=spend_max)
        vouchers = [m.Voucher] * pays
        assert [type(each) for each in sent(client.handle(Command(turn), 0.0))] == [m.Prompt, *vouchers]


def test_an_honest_quote_is_paid_to_the_unit() -> None:
    out = hear(asking(), quote(turn=1, tokens_in=20, reused=5))
    assert only(m.Voucher, out).amount == amount_due(TERMS, 15, 0)
    assert blamed(hear(asking(), quote(turn=1, tokens_in=20), quote(turn=1, tokens_in=20))) is False
    client = asking()
    hear(client, quote(turn=1, tokens_in=20))
    assert blamed(hear(client, quote(turn=1, tokens_in=20)))


def test_a_quote_beyond_the_deposit_is_cancelled_and_not_signed() -> None:
    terms = replace(TERMS, deposit=TERMS.session_fee + 3, tip=0)
    client = paid_client(terms)
    client.handle(Command(Start()), 0.0)
    hear(client, replace(ACCEPT, session=session_id(MARKET, terms)))
    client.handle(Command(ask(input_max=100)), 0.0)
    out = hear(client, quote(turn=1, tokens_in=20))
    assert [value for value in out if isinstance(value, m.Cancel | m.Voucher)] == [m.Cancel(turn=1)]
    done = m.Done(turn=1, reason="cancelled", tokens_in=0, reused=0, tokens_out=0)
    failed = only(TurnFailed, hear(client, done))
    assert (failed.code, client.state, client.last_voucher) == ("payment_required", "idle", None)


def test_a_quote_after_the_user_cancelled_is_not_paid() -> None:
    client = asking()
    client.handle(Command(CancelTurn()), 0.0)
    out = hear(client, quote(turn=1, tokens_in=20))
    assert not [value for value in out if isinstance(value, m.Voucher)]
    assert blamed(hear(client, m.Tokens(turn=1, index=0, ids=(1,), text="a")))


def test_tokens_before_the_quote_are_a_violation() -> None:
    assert blamed(hear(asking(), m.Tokens(turn=1, index=0, ids=(1,), text="a")))


def test_a_host_that_delivers_more_than_the_deposit_covers_is_at_fault() -> None:
    terms = replace(TERMS, price_in=0, price_out=1_000_000, session_fee=2_500, tip=0, deposit=2_510)
    client = paid_client(terms)
    client.handle(Command(Start()), 0.0)
    hear(client, replace(ACCEPT, session=client_payment(terms).session))
    client.handle(Command(ask(input_max=100)), 0.0)
    hear(client, quote(turn=1, tokens_in=20))
    assert not blamed(hear(client, m.Tokens(turn=1, index=0, ids=tuple(range(10)), text="a")))
    out = hear(client, m.Tokens(turn=1, index=10, ids=(1,), text="a"))
    assert blamed(out)
    assert not [value for value in out if isinstance(value, Delivered)]


def honest(until: str) -> tuple[PaidPair, Any]:
    """A real host's next message of this name, not yet heard by the client."""
    pair = PaidPair(answer_tokens=40)
    pair.open()
    pair.ask(ask())
    while True:
        while pair.count() or pair.deliver_to_host() or pair.engine(8):
            pass
        message = m.CODEC.decode(pair.to_client[0])
        if wire_name(type(message)) == until:
            return pair, message
        pair.deliver_to_client()


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 2},
        {"tokens_in": 16},
        {"tokens_in": 20},
        {"tokens_out": 33},
        {"token_hash": bytes(32)},
        {"root": bytes(32)},
        {"signature": bytes(65)},
        {"signature": bytes(64)},
    ],
    ids=str,
)
def test_a_host_that_bills_more_than_it_sent_gets_no_voucher(change: dict[str, Any]) -> None:
    pair, receipt = honest("checkpoint")
    assert blamed(hear(pair.client, replace(receipt, **change)))


@pytest.mark.parametrize(
    "signer", [HOST.sign, Identity("x").sign_wallet], ids=["the peer key", "another key"]
)
def test_a_receipt_that_the_receipt_key_did_not_sign_gets_no_voucher(
    signer: Callable[[bytes], bytes],
) -> None:
    pair, receipt = honest("checkpoint")
    digest = receipt_digest(SESSION, pair.epoch, receipt.root)
    assert blamed(hear(pair.client, replace(receipt, signature=signer(digest))))


def test_a_high_s_receipt_gets_no_voucher() -> None:
    pair, receipt = honest("checkpoint")
    assert blamed(hear(pair.client, replace(receipt, signature=high_s(receipt.signature))))


def test_an_honest_receipt_is_reported_signed_and_paid_in_that_order() -> None:
    pair, receipt = honest("checkpoint")
    effects = pair.client.handle(Received(HOST.peer, STREAM, receipt), 0.0)
    kinds = [
        type(getattr(effect, "value", getattr(effect, "message", effect))).__name__ for effect in effects
    ]
    assert kinds == ["SetTimer", "Receipted", "Signed", "Voucher"]
    assert only(m.Voucher, sent(effects)).amount == amount_due(TERMS, 15, 32)


def test_a_host_that_issues_a_receipt_again_is_at_fault() -> None:
    pair, receipt = honest("checkpoint")
    hear(pair.client, receipt)
    assert blamed(hear(pair.client, receipt))


@pytest.mark.parametrize(
    "change",
    [{"tokens_out": 1}, {"tokens_in": 1}, {"reused": -1}],
    ids=str,
)
def test_a_host_that_sums_up_wrongly_is_at_fault(change: dict[str, int]) -> None:
    pair, done = honest("done")
    wrong = {key: getattr(done, key) + more for key, more in change.items()}
    assert blamed(hear(pair.client, replace(done, **wrong)))


def test_a_bill_for_nothing_is_not_forgiven_on_the_same_stream() -> None:
    """Waiving is for resumed turns: here the voucher went out before."""
    client = asking()
    hear(client, quote(turn=1, tokens_in=20))
    done = m.Done(turn=1, reason="cancelled", tokens_in=0, reused=0, tokens_out=0)
    assert blamed(hear(client, done))


# ---- anything at all

vouchers = st.builds(
    m.Voucher,
    seq=st.integers(0, 2),
    tokens_in=st.integers(0, 30),
    tokens_out=st.integers(0, 64),
    amount=st.integers(0, 5_000),
    root=st.just(bytes(32)),
    signature=st.just(bytes(65)),
)
said_to_host = st.one_of(
    st.sampled_from(PARTS),
    st.sampled_from(list(prompt_parts(2, encode(ask().body)))),
    st.just("pay"),
    st.just("pay"),
    st.just(paid_open()),
    st.builds(m.Cancel, turn=st.integers(0, 2)),
    vouchers,
    *[messages(cls) for cls in m.CODEC.classes],
)
reports = st.one_of(
    st.builds(Counted, st.integers(0, 2), st.integers(0, 2**32 - 1), st.integers(0, 30)),
    st.builds(CountFailed, st.integers(0, 2), st.just("internal"), st.text(max_size=9)),
    st.builds(
        GenTokens,
        st.integers(0, 2),
        st.builds(Piece, ids=st.lists(st.integers(0, 9), max_size=70).map(tuple), text=st.text(max_size=9)),
    ),
    st.builds(GenDone, st.integers(0, 2), st.sampled_from(["stop", "length", "cancelled"])),
    st.builds(GenFailed, st.integers(0, 2), st.just("internal"), st.text(max_size=9)),
    st.sampled_from([Escrowed(), Escrowed(), Drain(), Replaced(), NotEscrowed(m.Refuse(code="capacity"))]),
)
host_events = st.one_of(
    said_to_host,
    st.builds(Command, reports),
    st.builds(TimerFired, st.sampled_from(["open", "relay", "idle", "prompt", "stall", "x"])),
)


@examples(250)
@given(st.sampled_from([relaying, quoted, serving]), st.lists(host_events, max_size=30))
def test_no_sequence_of_events_makes_a_paid_host_raise_or_give_more_than_a_window(
    begin: Callable[[], HostSession], sequence: list[Any]
) -> None:
    host, finished = begin(), 0
    for now, what in enumerate(sequence):
        if what == "pay":
            channel = host.session.channel if host.session is not None else None
            due = channel is not None and (channel.owed or channel.quoted)
            message = pay(host) if due else m.Ping(nonce=1)
        else:
            message = what
        event = what if isinstance(what, Command | TimerFired) else Received(CLIENT_ID.peer, STREAM, message)
        effects = host.handle(event, float(now))
        for message in sent(effects):
            assert m.CODEC.decode(m.CODEC.encode(message)) == message
        finished += sum(isinstance(value, Finished) for value in emitted(effects))
        if host.session is not None:
            channel = host.session.channel
            assert not channel.free
            paid_out = channel.best.tokens_out if channel.best is not None else 0
            assert channel.credit.sent - paid_out <= m.WINDOW
            assert channel.cost <= TERMS.deposit
            assert len(channel.quoted) <= 1
    assert finished == (host.state == "over")


said_to_client = st.one_of(
    st.just(ACCEPT),
    st.builds(quote, turn=st.integers(0, 2), tokens_in=st.integers(0, 120), reused=st.integers(0, 30)),
    st.builds(
        m.Tokens,
        turn=st.integers(0, 2),
        index=st.integers(0, 40),
        ids=st.lists(st.integers(0, 9), max_size=40).map(tuple),
        text=st.text(max_size=9),
    ),
    st.builds(
        m.Done,
        turn=st.integers(0, 2),
        reason=st.just("cancelled"),
        tokens_in=st.integers(0, 20),
        reused=st.just(0),
        tokens_out=st.just(0),
    ),
    *[messages(cls) for cls in m.CODEC.classes],
)
client_events = st.one_of(
    said_to_client,
    said_to_client,
    st.builds(
        Command,
        st.sampled_from([ask(input_max=100), replace(ask(input_max=100), input_exact=20), CancelTurn()]),
    ),
    st.builds(TimerFired, st.sampled_from(["open", "silence", "progress", "x"])),
)


@examples(250)
@given(st.lists(client_events, max_size=30))
def test_no_sequence_of_events_makes_a_paid_client_raise_or_sign_for_more_than_it_has(
    sequence: list[Any],
) -> None:
    client = opening()
    hear(client, ACCEPT)
    for now, what in enumerate(sequence):
        event = what if isinstance(what, Command | TimerFired) else Received(HOST.peer, STREAM, what)
        effects = client.handle(event, float(now))
        for message in sent(effects):
            assert m.CODEC.decode(m.CODEC.encode(message)) == message
        for value in emitted(effects):
            if isinstance(value, Signed):
                assert client.held is not None
                voucher = value.voucher
                assert voucher.tokens_out <= client.held.meter.tokens_out
                assert voucher.amount == amount_due(TERMS, voucher.tokens_in, voucher.tokens_out)
                assert voucher.amount <= TERMS.deposit


# ---- several turns of one session


def several(turns_max: int, *, answer_tokens: int = 100, tokens_in: int = 20) -> PaidPair:
    """An open session in which so many turns may be under way."""
    pair = PaidPair(answer_tokens=answer_tokens, tokens_in=tokens_in)
    window = m.CHECKPOINT_EVERY * (turns_max + 1)
    pair.granted, pair.window = replace(pair.granted, turns_max=turns_max, window=window), window
    pair.host = pair.new_host()
    pair.host.start(0.0)
    pair.open()
    return pair


def run_without_engine(pair: PaidPair) -> None:
    while pair.deliver_to_host() or pair.deliver_to_client() or pair.count():
        pass


@pytest.mark.parametrize("ends", [PaidPair.fail_engine, PaidPair.end_engine])
@pytest.mark.parametrize("turns", [8, 20])
def test_a_host_that_ends_every_turn_it_was_paid_for_without_a_token_gets_one_input(
    turns: int, ends: Callable[[PaidPair], bool]
) -> None:
    pair = several(turns)
    for _ in range(turns):
        pair.ask(ask())
    run_without_engine(pair)
    while ends(pair):
        run_without_engine(pair)
    assert pair.paid[-1].tokens_in == 15, "one of so many inputs"
    assert len(pair.outcomes) == turns
    failed = [outcome for outcome in pair.outcomes[1:] if isinstance(outcome, TurnFailed)]
    assert [outcome.cause for outcome in failed] == ["stuck"] * (turns - 1)
    assert pair.runs == 1


@pytest.mark.parametrize("ends", [PaidPair.fail_engine, PaidPair.end_engine])
def test_a_host_that_finished_turns_and_then_gives_nothing_for_them_gets_two_inputs(
    ends: Callable[[PaidPair], bool],
) -> None:
    pair = several(8, answer_tokens=10)
    pair.ask(ask())
    pair.settle()
    before = pair.paid[-1].tokens_in
    for _ in range(8):
        pair.ask(ask())
    run_without_engine(pair)
    while ends(pair):
        run_without_engine(pair)
    assert pair.paid[-1].tokens_in - before == 2 * 15


@pytest.mark.parametrize(
    ("reused", "piece", "trusted"),
    [
        (20, Piece(ids=(), text="x"), False),
        (20, Piece(ids=(token(1, 0),), text="x"), False),
        (5, Piece(ids=(), text="x"), False),
        (5, Piece(ids=(token(1, 0),), text="x"), True),
    ],
    ids=["nothing is billed", "no input is billed", "no token", "input and a token"],
)
def test_only_a_turn_that_was_paid_and_answered_makes_a_host_trusted_with_two_inputs(
    reused: int, piece: Piece, trusted: bool
) -> None:
    pair = several(8)
    pair.reused = reused
    pair.ask(ask())
    run_without_engine(pair)
    assert pair.run is not None
    run = pair.run.order.run
    pair.host_does(GenTokens(run, piece))
    pair.host_does(GenDone(run, "stop"))
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    before, pair.reused = pair.billed_in, 5
    for _ in range(8):
        pair.ask(ask())
    run_without_engine(pair)
    while pair.end_engine():
        run_without_engine(pair)
    assert pair.paid[-1].tokens_in - before == (2 if trusted else 1) * 15


def test_a_host_that_fails_now_and_then_is_paid_on_while_it_finishes_turns() -> None:
    pair = several(2, answer_tokens=10)
    for _ in range(4):
        pair.ask(ask())
        pair.settle()
        pair.ask(ask())
        run_without_engine(pair)
        assert pair.fail_engine()
        run_without_engine(pair)
    assert pair.runs == 8


def test_a_quote_outlives_later_turns_that_were_over_sooner() -> None:
    pair = several(2, answer_tokens=8)
    pair.ask(ask())
    pair.ask(ask())
    while pair.deliver_to_host():
        pass
    slow = pair.counts.pop(0)
    pair.settle()
    assert [type(outcome) for outcome in pair.outcomes] == [TurnDone], "the second turn is over"
    pair.ask(ask())  # on its way when the first one's quote is sent
    pair.host_does(Counted(slow.turn, 20, 5, PROMPT_HASH))
    pair.settle()
    assert [type(outcome) for outcome in pair.outcomes] == [TurnDone] * 3
    pair.settled()


@pytest.mark.parametrize("turns_max", [1, 2, 8, 20])
def test_a_client_that_never_signs_for_output_gets_one_window_and_pays_every_input(turns_max: int) -> None:
    pair = several(turns_max)
    held = pair.client.held
    assert held is not None
    held.channel.has_finished = True  # a client that pays two inputs ahead
    for _ in range(turns_max):
        pair.ask(ask())
    paid: list[m.Voucher] = []
    for _ in range(2000):
        data = [m.CODEC.decode(each) for each in pair.to_host]
        kept = [each for each in data if not isinstance(each, m.Voucher) or each.turn]
        pair.to_host.clear()
        pair.to_host.extend(m.CODEC.encode(each) for each in kept)
        paid += [each for each in kept if isinstance(each, m.Voucher)]
        if not any(pair.moves(8)):
            break
    best = pair.channel.best
    assert best is not None
    window = max(64, 32 * (turns_max + 1))
    assert pair.sent_out - best.tokens_out == min(window, 100 * turns_max - best.tokens_out)
    assert best.tokens_in == 15 * len({each.turn for each in paid})


def test_tokens_of_a_turn_that_a_receipt_has_ended_are_a_violation() -> None:
    pair, done = honest("done")
    late = m.Tokens(turn=1, index=done.tokens_out, ids=(), text="rm -rf /", channel="call", name="run")
    assert blamed(hear(pair.client, late))


def test_a_host_that_cancels_a_quoted_turn_after_a_resume_is_at_fault() -> None:
    pair = PaidPair(answer_tokens=100)
    pair.open()
    pair.serve(0)
    pair.lose()
    pair.resume()
    while pair.deliver_to_client():
        pass
    pair.host_does(GenDone(pair.runs, "cancelled"))
    while pair.deliver_to_client():
        pass
    assert isinstance(pair.outcomes[-1], SessionFailed)
    assert pair.outcomes[-1].fault
