"""The meter of both sides: what receipts cover, and which ones hold."""

from __future__ import annotations

import pytest

from p2pnode.errors import ProtocolError
from p2pnode.ids import SessionId
from p2pnode.protocols.crypto import verify_peer
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.receipts import ReceiptChain, token_hash
from tests.protocols.support import MODEL, Identity

HOST = Identity("host")


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
