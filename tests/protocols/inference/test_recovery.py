"""A paid session outlives its host's start: paid for exactly what was received, and nothing signed twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.events import Closed, Command, Received
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import exact_voucher, resume_digest
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.commands import (
    Disputed,
    End,
    Finished,
    Generate,
    Issued,
    Opened,
    Paid,
    Replaced,
    SessionFailed,
    Signed,
    Start,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.receipts import receipt_digest
from tests.examples import examples
from tests.protocols.inference.paid_pair import (
    CLIENT_ID,
    RECEIPTS,
    SESSION,
    TERMS,
    VOUCHERS,
    client_payment,
    paid_client,
    resumed_client,
)
from tests.protocols.inference.pair import HOLDER, HOST, SALT, STREAM, Pair, Step, ask
from tests.protocols.inference.restarts import Restarts, deliverer, hears, restarts, serving
from tests.protocols.inference.test_resume import steps
from tests.protocols.support import MODEL, Identity, emitted, only, sent


def finish(pair: Restarts) -> None:
    """The session takes another turn, and both sides agree to the unit."""
    pair.settle()
    assert pair.host.state == pair.client.state == "idle"
    pair.settled()
    pair.ask(ask(40))
    pair.settle()
    assert isinstance(pair.outcomes[-1], TurnDone)
    assert pair.delivered == pair.expected(40)
    pair.settled()


# ---- wherever the host dies


@pytest.mark.parametrize("forgets", [0, 3], ids=["all on disk", "unpaid receipts lost"])
@pytest.mark.parametrize("heard", [0, 8, 24, 32, 40, 64, 96])
def test_a_host_killed_in_the_middle_of_an_answer_is_paid_for_what_was_received(
    heard: int, forgets: int
) -> None:
    pair = serving(heard)
    pair.engine(20)  # on its way when the host dies
    pair.die(forgets=forgets)
    received = len(pair.delivered)
    final = pair.client.final_voucher
    assert final is not None
    assert (final.tokens_in, final.tokens_out, final.amount) == (15, received, pair.due(15, received))
    assert pair.signed[-1] == final
    pair.start_again()
    pair.come_back()
    assert pair.channel.best == pair.paid[-1] == final
    (outcome,) = pair.outcomes
    assert isinstance(outcome, TurnFailed)
    assert (outcome.code, outcome.cause, len(pair.delivered)) == (None, "restarted", received)
    assert pair.host.session is not None
    assert pair.host.session.epoch == 4
    finish(pair)
    assert [place[0] for place in pair.ever][-1] == 4


@pytest.mark.parametrize("moment", ["prompt", "count", "quote"])
def test_input_that_was_not_paid_is_not_in_the_final_voucher(moment: str) -> None:
    pair = restarts()
    pair.ask(ask())
    if moment != "prompt":
        pair.deliver_to_host()
    if moment == "quote":
        pair.count()
    pair.die()
    assert pair.client.final_voucher is None
    pair.start_again()
    pair.come_back()
    assert pair.paid == pair.signed == []
    assert isinstance(pair.outcomes[0], TurnFailed)
    finish(pair)


def test_a_quote_that_a_cancelled_turn_did_not_pay_is_not_in_it_either() -> None:
    pair = restarts()
    pair.ask(ask())
    pair.deliver_to_host()
    pair.count()
    pair.cancel()
    pair.deliver_to_client()
    pair.die()
    assert pair.client.final_voucher is None


@pytest.mark.parametrize("taken", [True, False])
def test_input_whose_voucher_was_on_its_way_is_paid_once(taken: bool) -> None:
    pair = restarts()
    pair.ask(ask())
    pair.deliver_to_host()
    pair.count()
    pair.deliver_to_client()
    if taken:
        pair.deliver_to_host()
    pair.die()
    assert len(pair.signed) == 1
    pair.start_again()
    pair.come_back()
    assert [(each.tokens_in, each.tokens_out) for each in pair.paid] == [(15, 0)]
    finish(pair)


@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize("taken", [True, False])
def test_input_paid_in_advance_is_handed_over_as_it_was_signed(quoted: bool, taken: bool) -> None:
    pair = restarts(reused=0)
    pair.ask(replace(ask(), input_exact=20))
    while taken and pair.deliver_to_host():
        pass
    pair.count()
    if quoted:
        pair.deliver_to_client()
    pair.die()
    assert len(pair.signed) == 1  # nothing better can be said
    pair.start_again()
    pair.come_back()
    assert [(each.tokens_in, each.tokens_out) for each in pair.paid] == [(20, 0)]
    finish(pair)


def test_a_host_killed_at_rest_goes_on_with_nothing_more_signed() -> None:
    pair = serving(answer_tokens=10)
    pair.settle()
    pair.outcomes.clear()
    signed = list(pair.signed)
    pair.die()
    assert pair.signed == signed
    pair.start_again()
    pair.come_back()
    assert pair.outcomes == []
    finish(pair)


def test_a_host_that_dies_again_and_again_goes_on_from_where_it_was() -> None:
    pair = serving(40)
    for _ in range(3):
        pair.die(forgets=1)
        pair.start_again()
        pair.come_back()
        pair.settle()
        pair.settled()
        pair.ask(ask())
        for _ in range(12):
            pair.moves(8)
    assert len({epoch for epoch, _ in pair.ever}) == 4
    pair.settle()
    pair.settled()


def test_an_acceptance_that_is_lost_after_a_restart_locks_nobody_out() -> None:
    pair = serving(40)
    pair.die()
    pair.start_again()
    for _ in range(3):
        pair.come_back(in_time=False)
        pair.deliver_to_client()  # the challenge
        pair.deliver_to_host()
        assert pair.host.session is not None
        pair.to_client.clear()  # the acceptance
        pair.client_did(pair.client.handle(Closed(HOST.peer, STREAM, "lost"), 0.0))
        pair.new_stream()
    assert len([each for each in pair.opened if each.recovered]) == 1, "within one start it is rebuilt once"
    pair.come_back()
    finish(pair)


def test_a_deposit_is_never_exceeded_by_the_final_voucher() -> None:
    terms = replace(TERMS, deposit=TERMS.session_fee + 3_300, price_out=100_000_000, tip=1_000)
    pair = restarts(terms=terms)
    pair.ask(ask())
    for _ in range(14):
        pair.moves(4)
    pair.die()
    final = pair.client.final_voucher
    assert final is not None
    assert 0 < final.tokens_out <= 33
    assert final.amount <= terms.deposit


@examples(150)
@given(
    st.lists(st.tuples(steps, st.booleans(), st.integers(0, 3), st.booleans()), min_size=1, max_size=4),
    st.integers(0, 200),
    st.sampled_from([None, 20]),
    st.sampled_from([0, 5, 20]),
)
def test_whatever_dies_whenever_every_token_is_paid_once_and_no_receipt_signed_twice(
    lives: list[tuple[list[Step], bool, int, bool]], answer: int, exact: int | None, reused: int
) -> None:
    pair = restarts(answer, reused=reused)
    for script, dies, forgets, cancels in lives:
        if pair.client.state == "idle":
            pair.ask(replace(ask(), input_exact=exact))
        pair.play(script)
        if cancels:
            pair.cancel()
        if dies:
            pair.die(forgets=forgets)
            pair.start_again()
            pair.come_back()
        else:
            pair.lose()
            pair.resume()
        pair.play(script)
    pair.settle()
    assert len(pair.outcomes) == pair.turn
    assert pair.host.session is not None
    assert pair.client.held is not None
    assert pair.client.held.meter.tokens_out == pair.host.session.meter.tokens_out
    finish(pair)


# ---- when the final voucher is signed, and when not


def test_a_client_signs_for_what_came_when_a_host_stalls() -> None:
    pair = serving(40)
    pair.fire("progress", host=False)
    assert m.CODEC.decode(pair.to_host.pop()) == m.Cancel(turn=1), "a host that ends it keeps the session"
    pair.fire("progress", host=False)
    assert (pair.signed[-1].seq, pair.signed[-1].tokens_out) == (1, 40)
    assert pair.to_host == pair.to_host.__class__(), "it is not sent to a host that does not answer"


def test_a_client_signs_nothing_more_for_a_host_that_broke_the_protocol() -> None:
    for event in (
        Received(HOST.peer, STREAM, m.Tokens(turn=1, index=99, ids=(1,))),
        Closed(HOST.peer, STREAM, "malformed: a frame of no bytes", malformed=True),
    ):
        pair = serving(40)
        before = list(pair.signed)
        out = pair.client.handle(event, 0.0)
        assert only(SessionFailed, emitted(out)).fault
        assert [each for each in emitted(out) if isinstance(each, Signed)] == []
        assert pair.signed == before


def test_a_free_session_ends_with_nothing_signed() -> None:
    pair = Pair()
    pair.open()
    pair.ask(ask())
    for _ in range(6):
        pair.moves(8)
    assert pair.delivered
    out = pair.client.handle(Closed(HOST.peer, STREAM, "lost"), 0.0)
    assert [type(each) for each in emitted(out)] == [SessionFailed]


def test_a_session_that_is_resumed_alive_forgets_its_final_voucher() -> None:
    pair = serving(40)
    pair.engine(20)  # was sent, and not received
    pair.lose()
    assert pair.signed[-1].tokens_out == 40
    pair.resume()
    pair.settle()
    assert all(each.tokens_out != 40 for each in pair.paid), "a live host takes the exact ones only"
    pair.settled()


# ---- attacks: by whom, and who loses what


def challenged(pair: Restarts) -> tuple[HostSession, bytes]:
    """The host after its restart, asked by somebody, and its nonce."""
    host = pair.start_again()
    out = hears(host, m.Resume(holder=HOLDER, session=SESSION, received=0, turn=0))
    return host, only(m.Challenge, sent(out)).nonce


def honest(pair: Restarts, nonce: bytes, **changes: Any) -> m.Resume:
    """What the client would answer."""
    held = pair.client.held
    assert held is not None
    digest = resume_digest(nonce, SESSION, HOST.peer, CLIENT_ID.peer)
    request = m.Resume(
        holder=HOLDER,
        session=SESSION,
        received=held.received,
        turn=held.asked,
        turns=tuple(held.turns),
        proof=VOUCHERS.sign_wallet(digest),
        receipt=held.receipt,
        voucher=pair.client.final_voucher,
    )
    return replace(request, **changes)


def final(pair: Restarts, *, more: int = 0, **changes: Any) -> m.Voucher:
    """A voucher of the voucher key's for other counts than were received."""
    told = pair.client.final_voucher
    assert told is not None
    counts = {name: getattr(told, name) for name in ("seq", "tokens_in", "tokens_out", "root")} | changes
    made = exact_voucher(client_payment(), SESSION, **counts)
    if not more:
        return made
    from p2pnode.protocols.typed_data import voucher_digest

    bare = replace(made, amount=made.amount + more)
    market = client_payment().market
    return replace(bare, signature=VOUCHERS.sign_wallet(voucher_digest(market, SESSION, bare)))


def receipt(pair: Restarts, seq: int) -> m.Receipt:
    return pair.ever[3, seq]


def forged(pair: Restarts) -> m.Receipt:
    """The last receipt's place with another content, signed by a stranger."""
    told = receipt(pair, 1)
    checkpoint = replace(told.checkpoint, token_hash=bytes(32))
    from p2pnode.protocols.inference.receipts import link_root

    root = link_root(told.previous, checkpoint)
    signature = Identity("stranger").sign_wallet(receipt_digest(SESSION, told.epoch, root))
    return replace(told, checkpoint=replace(checkpoint, root=root, signature=signature))


Forgery = Callable[[Restarts, bytes], m.Resume]


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda d, n: honest(d, n, proof=None), id="a stranger without any proof"),
        pytest.param(
            lambda d, n: honest(
                d,
                n,
                proof=Identity("thief").sign_wallet(resume_digest(n, SESSION, HOST.peer, CLIENT_ID.peer)),
            ),
            id="a stranger's signature",
        ),
        pytest.param(lambda d, _: honest(d, bytes(32)), id="a proof of another challenge, replayed"),
        pytest.param(
            lambda d, n: honest(
                d, n, proof=VOUCHERS.sign_wallet(resume_digest(n, SESSION, HOST.peer, PeerId("other")))
            ),
            id="a proof relayed by a third peer",
        ),
        pytest.param(lambda d, n: honest(d, n, voucher=None), id="no voucher where it was paid"),
        pytest.param(lambda d, n: honest(d, n, receipt=None), id="a voucher without its receipt"),
        pytest.param(
            lambda d, n: honest(d, n, receipt=None, voucher=None), id="a session as if nothing had been"
        ),
        pytest.param(
            lambda d, n: honest(d, n, receipt=receipt(d, 1), voucher=d.signed[0]),
            id="the first voucher",
        ),
        pytest.param(
            lambda d, n: honest(d, n, receipt=receipt(d, 1), voucher=d.signed[1]),
            id="an old receipt",
        ),
        pytest.param(
            lambda d, n: honest(
                d, n, receipt=receipt(d, 1), voucher=final(d, seq=1, root=receipt(d, 1).checkpoint.root)
            ),
            id="an old receipt under the final counts",
        ),
        pytest.param(lambda d, n: honest(d, n, voucher=final(d, tokens_out=63)), id="one token less"),
        pytest.param(lambda d, n: honest(d, n, voucher=final(d, tokens_in=14)), id="less input"),
        pytest.param(lambda d, n: honest(d, n, voucher=final(d, more=-1)), id="a unit too little"),
        pytest.param(lambda d, n: honest(d, n, voucher=final(d, more=1)), id="a unit too much"),
        pytest.param(
            lambda d, n: honest(d, n, voucher=final(d, tokens_out=10**6)), id="more than the deposit"
        ),
        pytest.param(
            lambda d, n: honest(d, n, voucher=final(d, tokens_out=64 + 33)), id="output without its receipt"
        ),
        pytest.param(
            lambda d, n: honest(d, n, voucher=final(d, tokens_in=15 + m.TURNS_MAX * m.N_CTX_MAX + 1)),
            id="more input than all turns have",
        ),
        pytest.param(
            lambda d, n: honest(d, n, voucher=replace(final(d), signature=bytes(65))),
            id="no signature",
        ),
        pytest.param(lambda d, n: honest(d, n, voucher=final(d, seq=9)), id="of another place"),
        pytest.param(lambda d, n: honest(d, n, voucher=final(d, root=bytes(32))), id="of another root"),
        pytest.param(lambda d, n: honest(d, n, receipt=forged(d)), id="a forged receipt"),
        pytest.param(
            lambda d, n: honest(d, n, receipt=replace(receipt(d, 2), previous=bytes(32))),
            id="a receipt out of its chain",
        ),
        pytest.param(
            lambda d, n: honest(d, n, receipt=replace(receipt(d, 2), epoch=4)), id="a receipt of the future"
        ),
        pytest.param(lambda d, n: honest(d, n, session=SessionId(bytes(32))), id="another session"),
    ],
)
def test_nobody_gets_a_session_back_for_less_than_it_was_paid(forge: Forgery) -> None:
    """A stranger gets nothing; a client that shows less than it paid loses the session, and has paid."""
    pair = serving(70)  # two receipts paid, six tokens more received
    pair.die()
    host, nonce = challenged(pair)
    out = hears(host, forge(pair, nonce))
    assert only(m.Refuse, sent(out)).code == "bad_request"
    assert only(Finished, emitted(out)).lingers is False
    assert [each for each in emitted(out) if isinstance(each, Opened | Paid | Issued)] == []
    assert host.session is None


def test_the_honest_answer_to_that_challenge_is_taken() -> None:
    pair = serving(70)
    pair.die()
    host, nonce = challenged(pair)
    out = hears(host, honest(pair, nonce))
    kinds = [type(each) for each in emitted(out)]
    assert kinds == [Opened, Paid], "written down in this order, before it is accepted"
    assert only(Opened, emitted(out)).recovered
    accept = only(m.Accept, sent(out))
    assert (accept.epoch, accept.session_fee) == (4, TERMS.session_fee)


def test_a_client_that_keeps_its_final_voucher_back_costs_its_host_a_window_once() -> None:
    """The host loses what it delivered and was not paid, as if the client had stayed away; not twice."""
    pair = serving(70)
    pair.die()
    host, nonce = challenged(pair)
    best = pair.paid[-1]
    out = hears(host, honest(pair, nonce, receipt=receipt(pair, best.seq), voucher=best))
    assert only(m.Accept, sent(out)).epoch == 4
    assert host.session is not None
    assert host.session.meter.tokens_out == best.tokens_out
    assert len(pair.delivered) - best.tokens_out <= m.WINDOW
    again = pair.new_host(kept=host.session)
    again.start(0.0)
    out = hears(again, m.Resume(holder=HOLDER, session=SESSION, received=0, turn=0))
    second = only(m.Challenge, sent(out)).nonce
    out = hears(again, honest(pair, second, receipt=receipt(pair, 1), voucher=pair.signed[0]))
    assert [each.voucher for each in emitted(out) if isinstance(each, Paid)] == [best]
    assert again.session is host.session, "what lives goes on from where it is"
    assert host.session.meter.tokens_out == best.tokens_out


def test_a_receipt_that_the_host_wrote_down_differently_is_not_gone_on_from() -> None:
    pair = serving(40)
    pair.die()
    told = receipt(pair, 1)
    other = replace(told, checkpoint=replace(told.checkpoint, root=bytes(32)))
    pair.journal[3, 1] = other
    host, nonce = challenged(pair)
    refusal = only(m.Refuse, sent(hears(host, honest(pair, nonce))))
    assert "another receipt for that place" in refusal.detail


def test_a_receipt_that_a_crash_lost_is_written_down_again() -> None:
    pair = serving(32)
    pair.to_host.clear()
    pair.paid[:] = pair.paid[:1]  # the voucher for it was on its way
    pair.die(forgets=1)
    assert (3, 1) not in pair.journal
    host, nonce = challenged(pair)
    out = emitted(hears(host, honest(pair, nonce)))
    assert [type(each) for each in out] == [Opened, Issued, Paid]
    assert only(Issued, out).receipt == receipt(pair, 1)


@pytest.mark.parametrize(
    "second",
    [
        m.Resume(holder=HOLDER, session=SESSION, received=0, turn=0),
        m.Open(model=MODEL, salt=SALT, holder=HOLDER),
        m.Cancel(turn=1),
        m.Challenge(nonce=bytes(32)),
    ],
    ids=["no proof", "open", "cancel", "a challenge of its own"],
)
def test_after_a_challenge_only_its_answer_follows(second: object) -> None:
    pair = serving(40)
    pair.die()
    host, _ = challenged(pair)
    out = hears(host, second)
    assert host.state == "over"
    (answer,) = sent(out)
    assert answer.code == "bad_request"


def test_a_challenge_that_is_not_answered_ends_with_the_first_messages_patience() -> None:
    pair = serving(40)
    pair.die()
    host, _ = challenged(pair)
    pair.fire("open", host=True)
    assert host.state == "over"
    assert pair.finished[-1].lingers is False


def test_a_stranger_who_is_challenged_ends_no_stream_that_lives() -> None:
    pair = serving(40)
    session = pair.host.session
    assert session is not None
    second = pair.new_host(kept=session)
    second.start(0.0)
    nonce = only(
        m.Challenge, sent(hears(second, m.Resume(holder=HOLDER, session=SESSION, received=0, turn=0)))
    ).nonce
    thief = Identity("thief").sign_wallet(resume_digest(nonce, SESSION, HOST.peer, CLIENT_ID.peer))
    out = hears(
        second,
        m.Resume(holder=HOLDER, session=SESSION, received=0, turn=0, proof=thief, voucher=pair.paid[-1]),
    )
    assert only(m.Refuse, sent(out)).code == "bad_request"
    assert session.holder is pair.host
    pair.settle()
    assert pair.delivered == pair.expected(512)
    pair.settled()


def test_two_streams_that_prove_at_once_recover_it_once() -> None:
    pair = serving(70)
    pair.die()
    first, nonce = challenged(pair)
    lapsed = pair.lapsed()
    first, second = pair.new_host(kept=lapsed), pair.new_host(kept=lapsed)
    nonces = []
    for host in (first, second):
        host.start(0.0)
        out = hears(host, m.Resume(holder=HOLDER, session=SESSION, received=0, turn=0))
        nonces.append(only(m.Challenge, sent(out)).nonce)
    assert len({nonce, *nonces}) == 3
    told = [
        only(Opened, emitted(hears(host, honest(pair, drawn))))
        for host, drawn in zip((first, second), nonces, strict=True)
    ]
    assert [each.recovered for each in told] == [True, False]
    assert first.session is second.session
    replaced = first.handle(Command(Replaced()), 0.0)
    assert only(Finished, emitted(replaced)).replaced
    pair.host = second
    assert second.session is not None
    assert second.session.holder is second


resumes = st.builds(
    m.Resume,
    holder=st.just(HOLDER),
    session=st.just(SESSION),
    received=st.integers(0, 9),
    turn=st.integers(0, 3),
    proof=st.sampled_from([None, "ours", bytes(65)]),
    receipt=st.sampled_from([None, 1, 2]),
    voucher=st.sampled_from([None, 0, 1, 2, 3]),
)


@examples(200)
@given(st.lists(st.lists(resumes, max_size=3), max_size=5))
def test_no_resumes_make_a_host_raise_take_less_than_it_was_paid_or_go_on_twice(
    streams: list[list[m.Resume]],
) -> None:
    """Whoever holds the voucher key may say anything, in any order, on any number of streams."""
    pair = serving(70)
    pair.die()
    host, _ = challenged(pair)
    lapsed, best, recovered = pair.lapsed(), pair.paid[-1], 0
    for said in streams:
        host, nonce = pair.new_host(kept=lapsed), bytes(32)
        host.start(0.0)
        for request in said:
            proof: Any = request.proof
            if proof == "ours":
                proof = honest(pair, nonce).proof
            place, index = request.receipt, request.voucher
            shown = replace(
                request,
                proof=proof,
                receipt=None if place is None else receipt(pair, place),  # type: ignore[arg-type]
                voucher=None if index is None else pair.signed[index],  # type: ignore[call-overload]
            )
            out = hears(host, shown)
            for message in sent(out):
                nonce = message.nonce if isinstance(message, m.Challenge) else nonce
            for value in emitted(out):
                if isinstance(value, Paid):
                    assert value.voucher.amount >= best.amount
                    best = value.voucher
                recovered += isinstance(value, Opened) and value.recovered
    assert recovered <= 1


# ---- a client that lost its memory


def lost_client(pair: Restarts, voucher: m.Voucher | None = None) -> tuple[HostSession, ClientSession]:
    """Its process was killed; a new one knows its journal. The host lives, and keeps the session."""
    session, held = pair.host.session, pair.client.held
    assert session is not None
    assert held is not None
    pair.host_did(pair.host.handle(Closed(CLIENT_ID.peer, STREAM, "lost"), 0.0))
    host = pair.new_host(kept=session)
    host.start(0.0)
    return host, deliverer(held.receipt, voucher or pair.signed[-1])


def exchange(host: HostSession, client: ClientSession) -> tuple[list[Any], list[Any]]:
    """Until neither has more to say: what each emitted."""
    said, told = [], []
    to_host = sent(client.handle(Command(Start()), 0.0))
    while to_host:
        to_client = []
        for message in to_host:
            out = hears(host, message)
            said += emitted(out)
            to_client += sent(out)
        to_host = []
        for message in to_client:
            out = client.handle(Received(HOST.peer, STREAM, message), 0.0)
            told += emitted(out)
            to_host += sent(out)
    return said, told


@pytest.mark.parametrize("heard", [0, 8, 32, 40, 64])
def test_a_new_process_hands_its_last_voucher_to_a_host_that_lives_and_that_ends_it(heard: int) -> None:
    pair = serving(heard)
    pair.engine(8)
    while pair.deliver_to_client():
        pass
    pair.to_host.clear()  # what it signed last never left
    host, client = lost_client(pair)
    said, told = exchange(host, client)
    assert [each.voucher for each in said if isinstance(each, Paid)] == [pair.signed[-1]]
    finished = only(Finished, said)
    assert (finished.lingers, finished.fault, finished.replaced) == (False, False, False)
    assert host.state == client.state == "over"
    assert only(SessionFailed, told).code == "shutting_down"
    assert host.session is not None
    assert pair.channel_of(host.session).best == pair.signed[-1]


@pytest.mark.parametrize(
    "change",
    [{"tokens_out": 65}, {"tokens_out": 31}, {"tokens_in": 14}, {"tokens_in": 16}, {"seq": 9}],
    ids=str,
)
def test_a_live_session_is_not_ended_by_a_voucher_for_other_than_it_may_be(change: dict[str, int]) -> None:
    pair = serving(40)
    host, client = lost_client(pair, final(pair, **{"tokens_out": 40} | change))
    session = pair.host.session
    assert session is not None
    said, told = exchange(host, client)
    assert [each for each in said if isinstance(each, Paid | Opened)] == []
    assert only(SessionFailed, told).code == "bad_request"
    assert session.holder is None  # it lingers on


def test_a_new_process_hands_over_the_pay_for_an_input_that_was_lost_on_its_way() -> None:
    pair = restarts()
    pair.ask(ask())
    pair.deliver_to_host()
    pair.count()
    pair.deliver_to_client()
    pair.to_host.clear()
    host, client = lost_client(pair)
    said, _ = exchange(host, client)
    assert [each.voucher for each in said if isinstance(each, Paid)] == [pair.signed[-1]]
    assert pair.signed[-1].tokens_in == 15


def test_a_live_session_that_was_handed_over_serves_nothing_more() -> None:
    """Else a client could have a window for nothing as often as it likes: the host loses one, once."""
    pair = serving(40)
    session, run = pair.host.session, pair.run
    host, client = lost_client(pair)
    said, _ = exchange(host, client)
    assert host.state == "over"
    assert session is not None
    assert session.holder is None
    assert not session.turns
    assert not hears(host, m.Prompt(turn=2, part=0, last=True, total=1, body=b"x"))
    assert not [each for each in said if isinstance(each, Generate)]
    assert run is not None


def test_a_new_process_hands_over_after_a_restart_too_and_closes() -> None:
    pair = serving(40)
    pair.die()
    held, voucher = pair.client.held, pair.client.final_voucher
    assert held is not None
    assert voucher is not None
    host, client = pair.start_again(), deliverer(held.receipt, voucher)
    said, _ = exchange(host, client)
    assert [each.voucher for each in said if isinstance(each, Paid)] == [voucher]
    out = hears(host, only(m.Close, sent(client.handle(Command(End()), 0.0))))
    assert only(Finished, emitted(out)).reason == "closed by the client"


# ---- hosts that cheat


def returned_client(pair: Restarts) -> ClientSession:
    held = pair.client.held
    client = resumed_client(held)
    client.handle(Command(Start()), 0.0)
    return client


def test_a_host_that_challenges_twice_is_at_fault() -> None:
    pair = serving(40)
    pair.die()
    client = returned_client(pair)
    challenge = Received(HOST.peer, STREAM, m.Challenge(nonce=bytes(32)))
    assert sent(client.handle(challenge, 0.0))[0].voucher == pair.client.final_voucher
    assert only(SessionFailed, emitted(client.handle(challenge, 0.0))).fault


def test_a_host_that_challenges_an_open_is_at_fault() -> None:
    client = paid_client()
    client.handle(Command(Start()), 0.0)
    out = client.handle(Received(HOST.peer, STREAM, m.Challenge(nonce=bytes(32))), 0.0)
    assert only(SessionFailed, emitted(out)).fault


@pytest.mark.parametrize(("challenges", "epoch"), [(False, 4), (True, 2)])
def test_a_host_that_claims_a_restart_it_may_not_claim_is_at_fault(challenges: bool, epoch: int) -> None:
    pair = serving(40)
    pair.die()
    client = returned_client(pair)
    held = pair.client.held
    assert held is not None
    if challenges:
        client.handle(Received(HOST.peer, STREAM, m.Challenge(nonce=bytes(32))), 0.0)
    out = client.handle(Received(HOST.peer, STREAM, replace(held.accept, epoch=epoch)), 0.0)
    assert only(SessionFailed, emitted(out)).fault


def signed_by_host(pair: Restarts, told: m.Receipt, **changes: Any) -> m.Checkpoint:
    """Another content for a receipt's place, which the host signs all the same."""
    from p2pnode.protocols.inference.receipts import link_root

    other = replace(told.checkpoint, **changes)
    root = link_root(told.previous, other)
    signature = RECEIPTS.sign_wallet(receipt_digest(SESSION, told.epoch, root))
    return replace(other, root=root, signature=signature)


@pytest.mark.parametrize("idle", [True, False])
def test_a_second_receipt_for_a_place_is_shown_to_whoever_keeps_evidence(idle: bool) -> None:
    pair = serving(40, 44 if idle else 200)
    if idle:
        pair.settle()
    lie = signed_by_host(pair, receipt(pair, 1), token_hash=b"\xee" * 32)
    out = emitted(pair.client.handle(Received(HOST.peer, STREAM, lie), 0.0))
    shown = only(Disputed, out).receipt
    assert (shown.checkpoint, shown.previous, shown.epoch) == (lie, receipt(pair, 1).previous, 3)
    assert only(SessionFailed, out).fault


def test_a_receipt_that_says_other_than_was_received_is_shown_too() -> None:
    pair = serving(24)
    pair.engine(8)
    pair.deliver_to_client()
    true = m.CODEC.decode(pair.to_client[0])
    assert isinstance(true, m.Checkpoint)
    lie = signed_by_host(pair, receipt(pair, 1), tokens_out=31)
    out = emitted(pair.client.handle(Received(HOST.peer, STREAM, lie), 0.0))
    assert only(Disputed, out).receipt.checkpoint == lie


def test_a_receipt_that_nobody_signed_accuses_nobody() -> None:
    pair = serving(40)
    lie = replace(signed_by_host(pair, receipt(pair, 1), token_hash=b"\xee" * 32), signature=bytes(65))
    out = emitted(pair.client.handle(Received(HOST.peer, STREAM, lie), 0.0))
    assert [each for each in out if isinstance(each, Disputed)] == []
    assert only(SessionFailed, out).fault
