"""A session that is left and resumed later: from an old journal, on another machine, after a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnode.ids import SessionId
from p2pnode.protocols.events import Command, Received
from p2pnode.protocols.inference import commands as c
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.host_open import PROBE_S
from p2pnode.protocols.typed_data import amount_due
from tests.protocols.inference.left_world import DAY, ONE, OTHER, PEERS, TOKENS_IN, KeepingHost, Notes, Wire
from tests.protocols.inference.paid_pair import NOW, TERMS
from tests.protocols.inference.pair import HOST, STREAM, ask
from tests.protocols.support import MODEL

pytestmark = pytest.mark.parametrize("paid", [True, False], ids=["paid", "free"])


def accept_of(wire: Wire) -> m.Accept:
    accept: m.Accept = wire.last(c.Accepted).accept
    return accept


def left_after_a_turn(host: KeepingHost) -> tuple[Wire, Notes]:
    wire = host.open()
    host.answer(wire)
    host.leave(wire)
    return wire, Notes.of(wire, paid=host.paid)


def failure(wire: Wire) -> c.SessionFailed:
    found: c.SessionFailed = wire.last(c.SessionFailed)
    return found


def test_a_host_says_until_when_it_keeps_a_session_and_what_it_granted_before(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    wire = host.open()
    assert (accept_of(wire).keep_s, accept_of(wire).settle_above, accept_of(wire).generation) == (
        DAY,
        400_000,
        0,
    )
    left = host.leave(wire, NOW + 60)
    assert left == m.Left(until=NOW + 60, generation=0, settle_above=400_000)
    assert wire.client.state == wire.host.state == "over"


def test_what_was_left_goes_on_in_another_process_and_costs_what_one_session_costs(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    _, notes = left_after_a_turn(host)
    again = host.resume(notes.held(), OTHER)
    assert accept_of(again).generation == 1
    assert host.answer(again) == again.ids[:40] != []
    host.answer(again)
    if paid:
        best = host.vouchers[-1]
        assert (best.tokens_in, best.tokens_out) == (3 * TOKENS_IN, 120)
        assert best.amount == amount_due(TERMS, 3 * TOKENS_IN, 120)
    assert again.held.receipt is not None
    assert again.held.receipt.checkpoint.tokens_out == 120


def test_it_is_resumed_within_one_round_trip_and_the_proof(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    _, notes = left_after_a_turn(host)
    again = host.resume(notes.held())
    assert [type(each) for each in again.sent] == [m.Challenge, m.Accept]


def test_turns_messages_and_nonces_are_counted_anew_and_receipts_and_vouchers_are_not(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    first, notes = left_after_a_turn(host)
    again = host.resume(notes.held())
    assert (again.held.asked, again.held.received) == (0, 0)
    assert accept_of(again).nonce != accept_of(first).nonce
    assert accept_of(again).receipt == notes.receipt
    assert accept_of(again).voucher == notes.voucher
    host.answer(again)
    assert again.held.asked == 1
    assert again.held.receipt is not None
    assert notes.receipt is not None
    assert again.held.receipt.checkpoint.seq == notes.receipt.checkpoint.seq + 2


def test_an_old_journal_is_enough(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    wire = host.open()
    host.answer(wire)
    old = Notes.of(wire, paid=paid)
    host.answer(wire)
    host.leave(wire)
    again = host.resume(old.held(), OTHER)
    assert again.held.receipt is not None
    assert again.held.receipt.checkpoint.tokens_out == 80
    host.answer(again)
    if paid:
        assert host.vouchers[-1].amount == amount_due(TERMS, 3 * TOKENS_IN, 120)


def test_one_in_which_nothing_was_asked_is_left_and_resumed_too(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    wire = host.open()
    host.leave(wire)
    again = host.resume(Notes.of(wire, paid=paid).held())
    host.answer(again)
    if paid:
        assert host.vouchers[-1].amount == amount_due(TERMS, TOKENS_IN, 40)


def test_it_is_left_and_resumed_again_and_again(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    _, notes = left_after_a_turn(host)
    for generation in range(1, 6):
        wire = host.resume(notes.held())
        assert accept_of(wire).generation == generation
        host.answer(wire)
        assert host.leave(wire).generation == generation
        notes = Notes.of(wire, paid=paid)
    if paid:
        assert host.vouchers[-1].amount == amount_due(TERMS, 6 * TOKENS_IN, 240)


# ---- who may leave


def test_a_session_with_a_turn_under_way_can_not_be_left(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    wire = host.open()
    wire.deaf = True
    host.client_does(wire, ask())
    host.host_did(wire, wire.host.handle(Received(PEERS[ONE], STREAM, m.Leave(until=NOW + DAY)), 0.0))
    assert isinstance(wire.sent[-1], m.Error)
    assert wire.sent[-1].code == "bad_request"


def test_a_client_that_is_told_to_leave_in_the_middle_closes(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    wire = host.open()
    wire.deaf = True
    host.client_does(wire, ask())
    host.client_does(wire, c.LeaveSession(NOW + DAY))
    assert wire.last(c.Ended).left is None


def test_a_host_that_keeps_nothing_takes_no_leave(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    host.granted = replace(host.granted, keep_s=0)
    wire = host.open()
    assert accept_of(wire).keep_s == 0
    host.client_does(wire, c.LeaveSession(NOW + DAY))
    assert failure(wire).code == "bad_request"


# ---- two machines


def test_the_first_proof_wins_and_the_other_machine_is_told_and_loses_nothing(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    _, notes = left_after_a_turn(host)
    first, second = host.resume(notes.held(), ONE), host.resume(notes.held(), OTHER)
    assert failure(second).code == "in_use"
    host.answer(first)  # nothing changed for it
    host.leave(first)
    third = host.resume(notes.held(), OTHER)
    assert accept_of(third).generation == 2
    host.answer(third)
    if paid:
        assert host.vouchers[-1].amount == amount_due(TERMS, 3 * TOKENS_IN, 120)


def test_a_stream_that_is_idle_but_answers_a_ping_keeps_the_session(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    _, notes = left_after_a_turn(host)
    first = host.resume(notes.held(), ONE)
    host.now += 600
    second = host.resume(notes.held(), OTHER)
    assert failure(second).code == "in_use"
    assert first.host.state == "idle"


def test_a_silent_stream_is_replaced(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    _, notes = left_after_a_turn(host)
    first = host.resume(notes.held(), ONE)
    host.answer(first)
    host.now += 600
    first.deaf = True
    second = host.resume(notes.held(), OTHER)
    assert second.client.state == "opening"
    host.now += PROBE_S
    host.fire(second, "probe")
    assert accept_of(second).generation == 2
    host.answer(second)
    assert first.host.state == "over"
    if paid:
        assert host.vouchers[-1].amount == amount_due(TERMS, 3 * TOKENS_IN, 120)


def test_the_same_process_replaces_its_own_stream_at_once(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    _, notes = left_after_a_turn(host)
    host.resume(notes.held(), ONE)
    again = host.resume(notes.held(), ONE)
    assert accept_of(again).generation == 2


def test_without_the_key_nobody_gets_it_nor_learns_whether_it_is_used(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    _, notes = left_after_a_turn(host)
    held = notes.held()
    held.channel.prove = HOST.sign_wallet
    thief = host.resume(held, OTHER)
    assert failure(thief).code == "bad_request"
    host.resume(notes.held(), ONE)
    thief = host.resume(held, OTHER)
    assert failure(thief).code == "bad_request"


def test_a_role_that_has_no_room_refuses_and_the_session_stays(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    _, notes = left_after_a_turn(host)
    host.refusal = m.Refuse(code="rate_limited", detail="too much is unpaid", retry_after_s=30.0)
    assert failure(host.resume(notes.held())).code == "rate_limited"
    host.refusal = None
    assert accept_of(host.resume(notes.held())).generation == 1


# ---- unclean exits


def test_a_session_whose_client_is_killed_is_left_by_itself(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    wire = host.open()
    host.answer(wire)
    notes = Notes.of(wire, paid=paid)
    host.lose(wire)
    again = host.resume(notes.held(), OTHER)
    assert accept_of(again).generation == 1
    host.answer(again)
    if paid:
        assert host.vouchers[-1].amount == amount_due(TERMS, 2 * TOKENS_IN, 80)


def test_a_host_that_was_killed_keeps_paid_sessions_and_one_place_has_one_receipt(*, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    _, notes = left_after_a_turn(host)
    host.left = host.left if paid else {}
    host.restart()
    again = host.resume(notes.held(), OTHER)
    if not paid:
        assert failure(again).code == "bad_request"
        return
    assert (accept_of(again).epoch, accept_of(again).generation) == (4, 1)
    host.answer(again)
    assert host.vouchers[-1].amount == amount_due(TERMS, 2 * TOKENS_IN, 80)


# ---- a host that lies


def _told(truth: m.Accept, lie: str) -> m.Accept:
    """What a host says instead of the truth."""
    voucher, receipt = truth.voucher, truth.receipt
    match lie:
        case "a forged voucher" if voucher is not None:
            return replace(truth, voucher=replace(voucher, signature=bytes(64) + b"\x1b"))
        case "a dearer voucher" if voucher is not None:
            return replace(truth, voucher=replace(voucher, amount=voucher.amount + 1))
        case "a forged receipt" if receipt is not None:
            checkpoint = replace(receipt.checkpoint, tokens_out=7)
            return replace(truth, receipt=replace(receipt, checkpoint=checkpoint))
        case "no receipt" if voucher is not None:
            return replace(truth, receipt=None)
        case "another session":
            return replace(truth, session=SessionId(bytes(32)))
        case _:
            return truth


@pytest.mark.parametrize(
    "lie",
    ["nothing", "a forged voucher", "a dearer voucher", "a forged receipt", "no receipt", "another session"],
)
def test_what_it_shows_of_a_left_session_must_be_signed_by_both(lie: str, *, paid: bool) -> None:
    host = KeepingHost(paid=paid)
    wire, notes = left_after_a_turn(host)
    truth = replace(accept_of(wire), generation=1, voucher=notes.voucher, receipt=notes.receipt)
    told = _told(truth, lie)
    assert (told == truth) == (lie == "nothing" or (not paid and ("voucher" in lie or lie == "no receipt")))
    fresh = ClientSession(
        host=HOST.peer, stream=STREAM, model=MODEL, salt=b"", holder=ONE, resume=notes.held(), peer=PEERS[ONE]
    )
    fresh.handle(Command(c.Start()), 0.0)
    fresh.handle(Received(HOST.peer, STREAM, told), 0.0)
    assert fresh.state == ("idle" if told == truth else "over")
