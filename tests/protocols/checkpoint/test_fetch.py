"""Receipts again: to the voucher key alone, in order, each whole, and a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.checkpoint import client as fetch_client
from p2pnode.protocols.checkpoint import messages as c
from p2pnode.protocols.checkpoint.client import FetchClient
from p2pnode.protocols.checkpoint.commands import (
    Fetched,
    FetchFailed,
    Found,
    Look,
    Served,
    Shown,
    Start,
    Unreadable,
)
from p2pnode.protocols.checkpoint.host import FetchHost, no_session, unreadable
from p2pnode.protocols.events import Closed, Command, Effect, HalfClosed, Received, TimerFired
from p2pnode.protocols.inference.channel import exact_voucher, resume_digest
from p2pnode.protocols.inference.messages import Checkpoint, Receipt, SessionTerms, Voucher
from p2pnode.protocols.inference.receipts import NO_FINGERPRINT, ReceiptChain, token_hash
from tests.protocols.inference.paid_pair import (
    CLIENT_ID,
    MARKET,
    RECEIPTS,
    SESSION,
    TERMS,
    VOUCHERS,
    client_payment,
)
from tests.protocols.inference.pair import HOST, SALT
from tests.protocols.strategies import messages
from tests.protocols.support import MODEL, Identity, emitted, only, sent

NONCE = b"\x43" * 32


def chain(count: int, epoch: int = 3, base: Receipt | None = None) -> list[Receipt]:
    """So many receipts of one start, after ``base``."""
    made = ReceiptChain.begin(SESSION, MODEL, SALT, epoch)
    if base is not None:
        made.root, made.seq = base.checkpoint.root, base.checkpoint.seq
    receipts = []
    for _ in range(count):
        previous, hashed = made.root, token_hash([bytes([made.seq])])
        root = made.advance(15, 32 * (made.seq + 1), hashed, NO_FINGERPRINT)
        checkpoint = Checkpoint(
            seq=made.seq,
            tokens_in=15,
            tokens_out=made.tokens_out,
            token_hash=hashed,
            fingerprint_hash=NO_FINGERPRINT,
            root=root,
            signature=RECEIPTS.sign_wallet(made.digest()),
        )
        receipts.append(Receipt(epoch=epoch, previous=previous, checkpoint=checkpoint))
    return receipts


def voucher(tokens_out: int = 32) -> Voucher:
    return exact_voucher(
        client_payment(), SESSION, seq=1, tokens_in=15, tokens_out=tokens_out, root=bytes(32)
    )


def new_host(terms: SessionTerms | None = TERMS) -> FetchHost:
    host = FetchHost(
        host=HOST.peer,
        peer=CLIENT_ID.peer,
        stream=0,
        find=lambda _: terms or no_session(),
        draw=lambda _: NONCE,
    )
    host.start(0.0)
    return host


def new_client() -> FetchClient:
    return FetchClient(
        host=HOST.peer,
        peer=CLIENT_ID.peer,
        stream=0,
        market=MARKET,
        session=SESSION,
        terms=TERMS,
        sign=VOUCHERS.sign_wallet,
    )


def tells(host: FetchHost, message: object) -> Sequence[Effect]:
    return host.handle(Received(CLIENT_ID.peer, 0, message), 0.0)


def shows(client: FetchClient, message: object) -> Sequence[Effect]:
    return client.handle(Received(HOST.peer, 0, message), 0.0)


def proof(nonce: bytes = NONCE, signer: Identity = VOUCHERS) -> c.Prove:
    return c.Prove(proof=signer.sign_wallet(c.fetch_digest(nonce, SESSION, HOST.peer, CLIENT_ID.peer)))


def fetch(held: list[Receipt], best: Voucher | None) -> tuple[list[Any], int]:
    """A whole fetch over bytes: what the client emits, and in how many pages."""
    host, client, pages = new_host(), new_client(), 0
    told: list[Any] = []
    to_host = sent(client.handle(Command(Start()), 0.0))
    while to_host:
        to_client = []
        for message in to_host:
            effects = tells(host, c.CODEC.decode(c.CODEC.encode(message)))
            for order in emitted(effects):
                if isinstance(order, Look):
                    after = [r for r in held if (r.epoch, r.checkpoint.seq) > (order.epoch, order.seq)]
                    found = Found(tuple(after[: order.limit + 1]), best)
                    effects = [*effects, *host.handle(Command(found), 0.0)]
            to_client += sent(effects)
        to_host = []
        for message in to_client:
            payload = c.CODEC.encode(message)
            assert len(payload) < 65_536
            pages += isinstance(message, c.Page)
            out = shows(client, c.CODEC.decode(payload))
            told += emitted(out)
            to_host += sent(out)
    assert host.state == client.state == "over"
    return told, pages


@pytest.mark.parametrize("count", [0, 1, 23, 24, 25, 48, 49])
def test_all_receipts_and_the_best_voucher_come_in_pages_of_24(count: int) -> None:
    held = chain(count)
    told, pages = fetch(held, voucher())
    assert [receipt for each in told if isinstance(each, Shown) for receipt in each.receipts] == held
    assert only(Fetched, told).voucher == voucher()
    assert pages == max(1, -(-count // c.PAGE_MAX))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.data())
def test_sessions_that_went_on_after_restarts_are_shown_whole(counts: list[int], data: st.DataObject) -> None:
    held: list[Receipt] = []
    for epoch, count in enumerate(counts, 3):
        base = data.draw(st.sampled_from(held)) if held else None
        held += chain(count, epoch, base)
    told, _ = fetch(held, None)
    assert [receipt for each in told if isinstance(each, Shown) for receipt in each.receipts] == held
    assert only(Fetched, told).voucher is None


# ---- who is not shown anything


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(proof(signer=Identity("thief")), id="a stranger's signature"),
        pytest.param(proof(nonce=bytes(32)), id="a proof over another nonce, replayed"),
        pytest.param(c.Prove(proof=bytes(65)), id="no signature"),
        pytest.param(
            c.Prove(proof=VOUCHERS.sign_wallet(resume_digest(NONCE, SESSION, HOST.peer, CLIENT_ID.peer))),
            id="a proof made to resume",
        ),
        pytest.param(
            c.Prove(proof=VOUCHERS.sign_wallet(c.fetch_digest(NONCE, SESSION, HOST.peer, PeerId("other")))),
            id="a proof relayed by another peer",
        ),
    ],
)
def test_who_does_not_prove_the_voucher_key_is_refused(claim: c.Prove) -> None:
    host = new_host()
    assert only(c.Challenge, sent(tells(host, c.Fetch(session=SESSION)))).nonce == NONCE
    out = tells(host, claim)
    assert only(c.Refuse, sent(out)).code == "bad_request"
    assert emitted(out) == [Served("refused: bad_request")], "nothing is read for a stranger"
    assert not tells(host, proof()), "and there is no second try"


def test_the_proof_is_not_good_for_a_resume_either() -> None:
    assert c.fetch_digest(NONCE, SESSION, HOST.peer, CLIENT_ID.peer) != resume_digest(
        NONCE, SESSION, HOST.peer, CLIENT_ID.peer
    )


def test_a_session_that_is_not_here_is_refused_at_once() -> None:
    out = tells(new_host(None), c.Fetch(session=SessionId(bytes(32))))
    assert only(c.Refuse, sent(out)).detail == "no such session here"
    assert only(Served, emitted(out)).fault is False


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ([], proof()),
        ([], c.More(epoch=0, seq=0)),
        ([c.Fetch(session=SESSION)], c.More(epoch=0, seq=0)),
        ([c.Fetch(session=SESSION)], c.Fetch(session=SESSION)),
        ([c.Fetch(session=SESSION), proof()], c.More(epoch=0, seq=0)),
        ([], c.Challenge(nonce=NONCE)),
    ],
)
def test_what_is_out_of_place_ends_the_stream_as_the_clients_fault(
    before: list[object], message: object
) -> None:
    host = new_host()
    for each in before:
        tells(host, each)
    out = tells(host, message)
    assert only(c.Refuse, sent(out)).code == "bad_request"
    assert only(Served, emitted(out)).fault
    assert host.state == "over"


def test_a_client_that_says_nothing_more_is_let_go() -> None:
    for before in ([], [c.Fetch(session=SESSION)]):
        host = new_host()
        for each in before:
            tells(host, each)
        out = host.handle(TimerFired("wait"), 10.0)
        assert only(c.Refuse, sent(out)).code == "stalled"
    host = new_host()
    out = host.handle(Closed(CLIENT_ID.peer, 0, "lost"), 0.0)
    assert emitted(out) == [Served("lost")]
    assert not host.handle(Command(Found((), None)), 0.0)


@pytest.mark.parametrize("count", [1, c.PAGE_MAX + 1])
def test_a_client_that_half_closed_is_given_the_page_it_asked_for_and_then_the_end(count: int) -> None:
    host = new_host()
    for each in (c.Fetch(session=SESSION), proof()):
        tells(host, each)
    assert host.handle(HalfClosed(CLIENT_ID.peer, 0), 0.0) == []
    out = host.handle(Command(Found(tuple(chain(count)), None)), 0.0)
    page, *rest = sent(out)
    assert isinstance(page, c.Page)
    assert [each.code for each in rest] == ([] if page.last else ["stalled"])
    assert not only(Served, emitted(out)).fault
    assert host.state == "over"


def test_a_client_that_half_closed_before_its_proof_is_told_so_at_once() -> None:
    host = new_host()
    tells(host, c.Fetch(session=SESSION))
    out = host.handle(HalfClosed(CLIENT_ID.peer, 0), 0.0)
    assert only(c.Refuse, sent(out)).code == "stalled"
    assert host.state == "over"
    assert sent(new_host().handle(HalfClosed(CLIENT_ID.peer, 0), 0.0)) == []


def test_a_client_is_told_when_the_hosts_books_can_not_be_read() -> None:
    host = new_host()
    for each in (c.Fetch(session=SESSION), proof()):
        tells(host, each)
    out = host.handle(Command(Unreadable()), 0.0)
    assert sent(out) == [unreadable()]
    assert unreadable().code == "internal"
    assert not only(Served, emitted(out)).fault


# ---- hosts that show what isn't so


def paging() -> FetchClient:
    client = new_client()
    client.handle(Command(Start()), 0.0)
    shows(client, c.Challenge(nonce=NONCE))
    return client


def altered(receipt: Receipt, **changes: Any) -> Receipt:
    return replace(receipt, checkpoint=replace(receipt.checkpoint, **changes))


ONE, TWO, THREE = chain(3)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(c.Page(receipts=(altered(ONE, tokens_out=33),), last=True), id="a count changed"),
        pytest.param(c.Page(receipts=(altered(ONE, signature=bytes(65)),), last=True), id="not signed"),
        pytest.param(c.Page(receipts=(replace(ONE, epoch=4),), last=True), id="of another epoch"),
        pytest.param(c.Page(receipts=(replace(TWO, previous=bytes(32)),), last=True), id="after nothing"),
        pytest.param(c.Page(receipts=(TWO, ONE), last=True), id="out of order"),
        pytest.param(c.Page(receipts=(ONE, ONE), last=True), id="twice"),
        pytest.param(c.Page(receipts=(ONE, THREE), last=True), id="with a gap"),
        pytest.param(c.Page(receipts=(), last=False), id="an empty page that is not the last"),
        pytest.param(
            c.Page(receipts=(), last=True, voucher=replace(voucher(), amount=10**6)), id="a forged voucher"
        ),
        pytest.param(c.Challenge(nonce=NONCE), id="another challenge"),
        pytest.param(c.Fetch(session=SESSION), id="a question"),
    ],
)
def test_a_host_that_shows_what_does_not_hold_is_at_fault(page: object) -> None:
    out = shows(paging(), page)
    assert only(FetchFailed, emitted(out)).fault
    assert [each for each in emitted(out) if isinstance(each, Shown)] == []


def test_a_host_that_pages_for_ever_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_client, "RECEIPTS_MAX", 3)
    client, receipts = paging(), chain(4)
    for each in receipts[:3]:
        assert only(Shown, emitted(shows(client, c.Page(receipts=(each,), last=False)))).receipts == (each,)
    out = shows(client, c.Page(receipts=(receipts[3],), last=True))
    assert only(FetchFailed, emitted(out)).fault


def test_a_host_that_refuses_or_goes_away_is_not_at_fault() -> None:
    out = shows(paging(), c.Refuse(code="bad_request", detail="no"))
    assert emitted(out) == [FetchFailed("bad_request", "no")]
    for event in (TimerFired("answer"), Closed(HOST.peer, 0, "lost")):
        out = paging().handle(event, 10.0)
        assert only(FetchFailed, emitted(out)).fault is False


def test_an_answer_to_nothing_is_a_fault() -> None:
    out = shows(new_client(), c.Page(receipts=(), last=True))
    assert only(FetchFailed, emitted(out)).fault


anything = st.one_of(
    st.builds(c.Fetch, session=st.just(SESSION)),
    st.just(proof()),
    *[messages(cls) for cls in c.CODEC.classes],
    st.builds(TimerFired, st.sampled_from(["wait", "answer", "x"])),
    st.builds(Command, st.just(Found(tuple(chain(3)), None)) | st.just(Start())),
)


def test_a_command_of_the_other_side_is_ignored_by_a_host_that_reads() -> None:
    host = new_host()
    for each in (c.Fetch(session=SESSION), proof()):
        tells(host, each)
    assert host.handle(Command(Start()), 0.0) == []
    assert host.state == "reading"


@settings(max_examples=200)
@given(st.lists(anything, max_size=12))
def test_no_sequence_of_events_makes_either_side_raise_or_end_twice(sequence: list[Any]) -> None:
    host, client = new_host(), new_client()
    served = failed = 0
    for what in sequence:
        for machine, peer in ((host, CLIENT_ID.peer), (client, HOST.peer)):
            event = what if isinstance(what, TimerFired | Command) else Received(peer, 0, what)
            effects = machine.handle(event, 0.0)
            for message in sent(effects):
                assert c.CODEC.decode(c.CODEC.encode(message)) == message
            served += sum(isinstance(value, Served) for value in emitted(effects))
            failed += sum(isinstance(value, Fetched | FetchFailed) for value in emitted(effects))
    assert served == (host.state == "over")
    assert failed == (client.state == "over")
