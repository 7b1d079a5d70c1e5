"""The small parts the two sides are made of: queue, meter, prompt reader, effects."""

from __future__ import annotations

import pytest

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.crypto import verify_peer
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.events import CancelTimer, Emit, Send, SetTimer
from p2pnode.protocols.inference.messages import (
    DETAIL_MAX,
    RETRY_MAX_S,
    WINDOW,
    Prompt,
    Tokens,
    detail_of,
    retry_of,
)
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.prompts import PromptReader, prompt_parts
from p2pnode.protocols.inference.receipts import ReceiptChain, token_hash
from p2pnode.protocols.inference.replay import SendQueue
from tests.protocols.support import MODEL, Identity

HOST = Identity("host")


# ---- queue


def test_text_goes_with_the_last_of_the_ids_it_completes() -> None:
    queue = SendQueue()
    queue.add((1, 2, 3), "abc")
    assert queue.take(2) == Tokens(seq=0, ids=(1, 2), text="")
    assert queue.take(2) == Tokens(seq=2, ids=(3,), text="abc")
    assert queue.take(2) is None
    assert not queue


def test_no_more_leaves_the_outbox_than_credit_covers() -> None:
    queue = SendQueue()
    queue.add(tuple(range(WINDOW + 5)), "x")
    first = queue.take(1000)
    assert first is not None
    assert len(first.ids) == WINDOW
    assert queue.take(1000) is None
    assert queue.waiting == 5
    assert queue.acknowledge(3)
    assert not queue.acknowledge(3)
    assert queue.take(1000) == Tokens(seq=WINDOW, ids=(64, 65, 66), text="")


def test_what_was_never_sent_can_not_be_acknowledged() -> None:
    queue = SendQueue()
    with pytest.raises(ProtocolError, match="acknowledged 1 tokens of 0 sent"):
        queue.acknowledge(1)


def test_only_ids_without_text_at_the_end_are_dropped() -> None:
    queue = SendQueue()
    for ids, text in (((1,), ""), ((2,), "b"), ((3, 4), ""), ((5,), "")):
        queue.add(ids, text)
    assert queue.drop_text_pending() == 3
    assert queue.waiting == 2
    assert queue.drop_text_pending() == 0


# ---- meter


def meters() -> tuple[Meter, Meter]:
    return tuple(Meter(ReceiptChain.begin(SessionId(b"s" * 32), MODEL, b"salt", 1)) for _ in "hc")  # type: ignore[return-value]


def check(meter: Meter, receipt: object) -> None:
    meter.check(receipt, lambda digest, signature: verify_peer(HOST.peer, digest, signature))  # type: ignore[arg-type]


def test_the_request_leads_only_the_first_receipt_of_a_turn() -> None:
    host, client = meters()
    for meter in (host, client):
        meter.begin_turn(b"r" * 32)
        meter.bill(5)
        meter.count((1, 2))
    first = host.issue(HOST.sign).checkpoint
    assert first.token_hash == token_hash((1, 2), b"r" * 32)
    check(client, first)
    for meter in (host, client):
        meter.count((3,))
    second = host.issue(HOST.sign).checkpoint
    assert second.token_hash == token_hash((3,))
    check(client, second)
    assert not client.due
    assert client.unreceipted == 0


def test_a_well_formed_receipt_for_nothing_new_is_refused() -> None:
    host, client = meters()
    for meter in (host, client):
        meter.count((1,))
    check(client, host.issue(HOST.sign).checkpoint)
    with pytest.raises(ProtocolError, match="nothing new"):
        check(client, host.issue(HOST.sign).checkpoint)


# ---- prompts


def test_a_discarded_prompt_keeps_nothing() -> None:
    reader = PromptReader(1, 100_000)
    parts = list(prompt_parts(1, bytes(100_000)))
    assert not reader.add(parts[0])
    assert len(reader._bytes) == 60_000
    reader.discard()
    assert reader.add(parts[1])
    assert len(reader._bytes) == 0


def test_a_prompt_of_fewer_bytes_than_announced_is_none() -> None:
    reader = PromptReader(1, 100)
    assert reader.add(Prompt(turn=1, part=0, last=True, total=100, body=b"x"))
    with pytest.raises(ProtocolError, match="holds 1 bytes and announced 100"):
        reader.body()


# ---- effects


def test_effects_come_in_order_and_once() -> None:
    effects = Effects(PeerId("peer"), 4)
    effects.send("message")
    effects.set_timer("key", 3.0)
    effects.emit("value")
    assert effects.take() == [Send(PeerId("peer"), 4, "message"), SetTimer("key", 3.0), Emit("value")]
    assert effects.take() == []


def test_a_timer_fires_only_while_it_is_armed() -> None:
    effects = Effects(PeerId("peer"), 4)
    effects.set_timer("key", 3.0)
    assert effects.fired("key")
    assert not effects.fired("key")
    effects.set_timer("key", 4.0)
    effects.cancel_timer("key", "other")
    assert effects.take()[-1] == CancelTimer("key")
    assert not effects.fired("key")


# ---- details


@pytest.mark.parametrize("text", ["", "plain", "é" * 600, "x" * 511 + "é", "\ud800" * 9])
def test_a_detail_fits_the_wire(text: str) -> None:
    assert len(detail_of(text).encode()) <= DETAIL_MAX


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, None), (0, 0.0), (2.5, 2.5), (-1, None), (float("nan"), None), (float("inf"), RETRY_MAX_S)],
)
def test_a_retry_time_fits_the_wire(seconds: float | None, told: float | None) -> None:
    assert retry_of(seconds) == told
