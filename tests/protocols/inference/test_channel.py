"""The payment channel: terms that a host takes, exact vouchers, and sessions that cost nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.contract_rules import DURATION_MAX_S
from p2pnode.errors import ProtocolError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.protocols.crypto import recover_address
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.events import Emit, Send
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import (
    ChannelReceiver,
    ChannelSender,
    check_open,
    exact_voucher,
    resume_digest,
    resume_holds,
    tokens_affordable,
)
from p2pnode.protocols.inference.commands import Signed
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.receipts import ReceiptChain
from p2pnode.protocols.inference.replay import SendQueue
from p2pnode.protocols.typed_data import amount_due, market_domain, session_id, voucher_digest
from tests.protocols.inference.paid_pair import (
    ACCEPTS,
    HOST_WALLET,
    MARKET,
    NOW,
    PAYER,
    SESSION,
    TERMS,
    VOUCHERS,
    authorise,
    client_payment,
    paid_open,
)
from tests.protocols.support import Identity, high_s

HOST_KEY = Identity("host")
NOBODY = bytes(20)
MOST = 2**63 - 1


def refusal(request: m.Open, **changes: Any) -> m.Refuse:
    found = check_open(request, replace(ACCEPTS, **changes), NOW)
    assert found is not None
    assert m.CODEC.decode(m.CODEC.encode(replace(found, detail=m.detail_of(found.detail)))).code == found.code
    return found


# ---- terms


def test_terms_as_the_host_asked_for_are_taken() -> None:
    assert check_open(paid_open(), ACCEPTS, NOW) is None


def test_a_free_open_is_told_the_price() -> None:
    found = refusal(m.Open(model=TERMS.model, salt=bytes(32)))
    assert found.code == "payment_required"
    assert "300000/1700000" in found.detail


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"host": Identity("other").wallet}, "bad_request"),
        ({"receipt_key": Identity("other").wallet}, "bad_request"),
        ({"model": ModelId(bytes(32))}, "bad_request"),
        ({"payer": NOBODY}, "bad_request"),
        ({"voucher_key": NOBODY}, "bad_request"),
        ({"payer": MARKET.contract}, "bad_request"),
        ({"voucher_key": MARKET.contract}, "bad_request"),
        ({"payer": HOST_WALLET.wallet}, "bad_request"),
        ({"voucher_key": HOST_WALLET.wallet}, "bad_request"),
        ({"voucher_key": PAYER.wallet}, "bad_request"),
        ({"price_in": TERMS.price_in - 1}, "payment_required"),
        ({"price_in": TERMS.price_in + 1}, "payment_required"),
        ({"price_out": TERMS.price_out - 1}, "payment_required"),
        ({"price_out": MOST}, "payment_required"),
        ({"session_fee": TERMS.session_fee - 1}, "payment_required"),
        ({"session_fee": TERMS.session_fee + 1}, "payment_required"),
        ({"tip": TERMS.session_fee + 1}, "bad_request"),
        ({"deposit": TERMS.session_fee - 1}, "payment_required"),
        ({"deposit": 0}, "payment_required"),
        ({"expiry": NOW + ACCEPTS.expiry_min_s - 1}, "bad_request"),
        ({"expiry": NOW - 1}, "bad_request"),
        ({"expiry": NOW + DURATION_MAX_S + 1}, "bad_request"),
        ({"expiry": MOST}, "bad_request"),
    ],
    ids=lambda change: "-".join(change) if isinstance(change, dict) else change,
)
def test_wrong_terms_are_refused_even_when_the_payer_signed_them(change: dict[str, Any], code: str) -> None:
    assert refusal(paid_open(replace(TERMS, **change))).code == code


@pytest.mark.parametrize(
    "change",
    [
        {"tip": TERMS.session_fee},
        {"deposit": TERMS.session_fee},
        {"deposit": MOST},
        {"expiry": NOW + ACCEPTS.expiry_min_s},
        {"expiry": NOW + DURATION_MAX_S},
    ],
    ids=str,
)
def test_terms_at_the_bounds_are_taken(change: dict[str, Any]) -> None:
    assert check_open(paid_open(replace(TERMS, **change)), ACCEPTS, NOW) is None


ALTERED: dict[str, Any] = {
    "payer": Identity("mallory").wallet,
    "host": Identity("mallory").wallet,
    "voucher_key": Identity("mallory").wallet,
    "receipt_key": Identity("mallory").wallet,
    "model": ModelId(b"m" * 32),
    "deposit": TERMS.deposit - 1,
    "price_in": 1,
    "price_out": 1,
    "session_fee": TERMS.session_fee - 1,
    "tip": 0,
    "expiry": TERMS.expiry - 1,
    "salt": bytes(32),
}


def test_every_field_of_the_terms_is_tried() -> None:
    from dataclasses import fields

    assert set(ALTERED) == {field.name for field in fields(m.SessionTerms)}


@pytest.mark.parametrize("field", sorted(ALTERED))
def test_terms_altered_after_the_payer_signed_are_refused_whatever_the_host_asks(field: str) -> None:
    """Even by a host that would have taken them: the signature is for other terms."""
    terms = replace(TERMS, **{field: ALTERED[field]})
    accepting = replace(
        ACCEPTS,
        wallet=terms.host,
        receipt_key=terms.receipt_key,
        price_in=terms.price_in,
        price_out=terms.price_out,
        session_fee=terms.session_fee,
    )
    altered = m.Open(
        model=terms.model, salt=bytes(32), terms=terms, authorisation=authorise(TERMS), valid_before=NOW + 300
    )
    found = check_open(altered, accepting, NOW)
    assert found is not None
    assert "authorisation is not the payer's" in found.detail
    assert (
        check_open(replace(altered, authorisation=authorise(terms)), accepting, NOW) is None
        or field == "payer"
    )


def test_a_deposit_below_the_hosts_minimum_is_refused_with_the_number() -> None:
    assert check_open(paid_open(), replace(ACCEPTS, deposit_min=TERMS.deposit), NOW) is None
    found = refusal(paid_open(), deposit_min=TERMS.deposit + 1)
    assert (found.code, str(TERMS.deposit + 1) in found.detail) == ("payment_required", True)


# ---- authorisations


@pytest.mark.parametrize("left", [-1, 0, 99, 601, MOST - NOW], ids=str)
def test_an_authorisation_expired_or_too_long_is_refused(left: int) -> None:
    found = refusal(paid_open(valid_before=NOW + left))
    assert (found.code, "authorisation ends in" in found.detail) == ("bad_request", True)


@pytest.mark.parametrize("left", [100, 600])
def test_an_authorisation_at_the_bounds_is_taken(left: int) -> None:
    assert check_open(paid_open(valid_before=NOW + left), ACCEPTS, NOW) is None


@pytest.mark.parametrize(
    "authorisation",
    [
        pytest.param(None, id="none"),
        pytest.param(bytes(65), id="zeros"),
        pytest.param(authorise(TERMS, secret=Identity("thief").wallet_secret), id="forged by another key"),
        pytest.param(authorise(TERMS, valid_before=NOW + 301), id="for another time"),
        pytest.param(high_s(authorise(TERMS)), id="malleable"),
    ],
)
def test_a_forged_authorisation_is_refused(authorisation: bytes | None) -> None:
    assert refusal(paid_open(authorisation=authorisation)).code == "bad_request"


@pytest.mark.parametrize("domain", ["market", "token"])
def test_an_authorisation_for_another_chain_is_refused(domain: str) -> None:
    elsewhere = replace(getattr(ACCEPTS, domain), chain_id=1)
    assert "on this chain" in refusal(paid_open(), **{domain: elsewhere}).detail


def test_what_only_a_contract_can_judge_is_left_to_the_ledger() -> None:
    assert check_open(paid_open(authorisation=bytes(500)), ACCEPTS, NOW) is None
    assert check_open(paid_open(authorisation=bytes(65)), ACCEPTS, NOW, plain_account=False) is None
    assert refusal(paid_open(authorisation=bytes(65))).code == "bad_request"


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


def receiver() -> ChannelReceiver:
    return ChannelReceiver(SESSION, ACCEPTS.sign, market=MARKET, terms=TERMS)


def owed_for(*tokens_out: int) -> ChannelReceiver:
    owing = receiver()
    for seq, count in enumerate(tokens_out or (32,), start=1):
        owing.owe(owing.due(seq=seq, tokens_in=15, tokens_out=count, root=b"r" * 32, frames=seq))
    return owing


def test_a_voucher_is_signed_by_the_voucher_key_over_the_contracts_digest() -> None:
    exact = voucher()
    digest = voucher_digest(MARKET, session_id(MARKET, TERMS), exact)
    assert recover_address(digest, exact.signature) == TERMS.voucher_key
    assert exact.amount == amount_due(TERMS, 15, 32)


def test_the_exact_voucher_is_taken_once_and_ignored_the_second_time() -> None:
    owing = owed_for()
    due = owing.take(voucher())
    assert due is not None
    assert (due.tokens_out, due.frames) == (32, 1)
    assert (owing.owed, owing.best) == (False, voucher())
    assert owing.take(voucher()) is None


def test_a_later_voucher_pays_for_the_earlier_ones_too() -> None:
    owing = owed_for(32, 64)
    assert owing.take(voucher(64, seq=2)) is not None
    assert not owing.owed


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(resigned(voucher(amount=voucher().amount + 1)), id="inflated amount"),
        pytest.param(resigned(voucher(amount=voucher().amount - 1)), id="deflated amount"),
        pytest.param(resigned(voucher(), session=SessionId(bytes(32))), id="voucher of another session"),
        pytest.param(resigned(voucher(), chain_id=1), id="voucher of another chain"),
        pytest.param(resigned(voucher(root=bytes(32))), id="wrong root"),
        pytest.param(resigned(voucher(seq=2)), id="wrong seq"),
        pytest.param(voucher(33), id="more than was delivered"),
        pytest.param(voucher(31), id="less than was delivered"),
        pytest.param(voucher(tokens_in=14), id="less input than was quoted"),
        pytest.param(voucher(signature=high_s(voucher().signature)), id="high-s signature"),
        pytest.param(voucher(signature=bytes(65)), id="no signature"),
        pytest.param(voucher(signature=voucher().signature[:64]), id="a short signature"),
        pytest.param(
            voucher(signature=Identity("thief").sign_wallet(voucher_digest(MARKET, SESSION, voucher()))),
            id="another key",
        ),
    ],
)
def test_a_voucher_that_is_not_exact_is_a_violation(forged: m.Voucher) -> None:
    owing = owed_for()
    with pytest.raises(ProtocolError):
        owing.take(forged)
    assert (owing.owed, owing.best) == (True, None)
    assert owing.take(voucher()) is not None


def test_a_stale_voucher_is_a_violation() -> None:
    owing = owed_for(32, 64)
    owing.take(voucher(64, seq=2))
    with pytest.raises(ProtocolError):
        owing.take(voucher(32))
    assert owing.best == voucher(64, seq=2)


# ---- advances


def quoting(*, begun: bool = True) -> ChannelReceiver:
    owing = receiver()
    if begun:
        owing.begin_turn(Meter(ReceiptChain(SESSION, 1, b"r" * 32)))
    return owing


def advance(tokens_in: int = 20, **changes: Any) -> m.Voucher:
    return voucher(0, seq=0, tokens_in=tokens_in, **changes)


def input_due(owing: ChannelReceiver, tokens_in: int = 20) -> m.Voucher | None:
    return owing.owe(owing.due(seq=0, tokens_in=tokens_in, tokens_out=0, root=b"r" * 32))


def test_an_advance_waits_for_the_quote_and_is_used_only_if_it_is_exactly_that() -> None:
    owing = quoting()
    assert owing.take(advance(20)) is None
    assert input_due(owing, 20) == advance(20)
    owing = quoting()
    assert owing.take(advance(20)) is None
    assert input_due(owing, 15) is None
    assert owing.take(advance(15)) is not None


def test_only_one_advance_a_turn_is_let_through() -> None:
    owing = quoting()
    assert owing.take(advance(20)) is None
    with pytest.raises(ProtocolError):
        owing.take(advance(21))


def test_there_is_no_advance_before_a_prompt_or_after_the_input_was_paid() -> None:
    with pytest.raises(ProtocolError):
        quoting(begun=False).take(advance())
    owing = quoting()
    input_due(owing, 15)
    owing.take(advance(15))
    with pytest.raises(ProtocolError):
        owing.take(advance(20))


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(resigned(advance(amount=advance().amount + 1)), id="inflated"),
        pytest.param(resigned(advance(amount=advance().amount - 1)), id="deflated"),
        pytest.param(resigned(advance(root=bytes(32))), id="wrong root"),
        pytest.param(advance(signature=bytes(65)), id="unsigned"),
        pytest.param(advance(0), id="for nothing"),
        pytest.param(voucher(1, seq=0, tokens_in=20), id="for output"),
    ],
)
def test_an_advance_must_be_exact_for_its_own_count(forged: m.Voucher) -> None:
    with pytest.raises(ProtocolError):
        quoting().take(forged)


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


def free_receiver() -> ChannelReceiver:
    return ChannelReceiver(SESSION, HOST_KEY.sign)


def served(tokens: int = 32) -> tuple[Meter, SendQueue]:
    """A meter and a queue of a session in which so many tokens were sent."""
    meter, queue = Meter(ReceiptChain(SESSION, 1, b"r" * 32)), SendQueue()
    queue.add(tuple(range(tokens)), "text")
    while (frame := queue.take(32)) is not None:
        meter.count(frame.ids)
    return meter, queue


def test_a_free_session_is_one_whose_price_is_zero() -> None:
    channel, (meter, _) = free_receiver(), served()
    meter.bill(1_000)
    assert (channel.cost(meter), channel.affordable(meter)) == (0, m.N_CTX_MAX)
    assert ChannelSender(None).covers(MOST, MOST)
    assert ChannelSender(None).cost(meter) == 0


def test_a_receipt_of_a_free_session_is_sent_and_no_voucher_is_due_for_it() -> None:
    channel, (meter, _) = free_receiver(), served()
    effects = Effects(PeerId("client"), 1)
    channel.issue(meter, effects)
    (send,) = effects.take()
    assert isinstance(send, Send)
    assert not channel.owed


def test_acks_bring_credit_in_a_free_session_only_and_vouchers_in_a_paid_one_only() -> None:
    _, queue = served()
    effects = Effects(PeerId("client"), 1)
    assert free_receiver().credit(m.Ack(seq=32), queue, effects)
    with pytest.raises(ProtocolError, match="Voucher is out of place in a free session"):
        free_receiver().credit(voucher(), queue, effects)
    assert owed_for().credit(voucher(), queue, effects)
    with pytest.raises(ProtocolError, match="Ack is out of place in a paid session"):
        owed_for().credit(m.Ack(seq=32), queue, effects)


def test_a_client_pays_nothing_ahead_in_a_free_session_and_the_exact_voucher_in_a_paid_one() -> None:
    meter, _ = served()
    effects = Effects(PeerId("host"), 1)
    assert not ChannelSender(None).pay_advance(meter, 20, effects)
    assert effects.take() == []
    assert ChannelSender(client_payment()).pay_advance(meter, 20, effects)
    signed, send = effects.take()
    assert isinstance(signed, Emit)
    assert isinstance(send, Send)
    assert signed.value == Signed(send.message), "durable before it is sent"
