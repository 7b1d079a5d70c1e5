"""The meter of both sides: what receipts cover, and which ones hold."""

from __future__ import annotations

import pytest

from p2pnode.errors import ProtocolError
from p2pnode.ids import SessionId
from p2pnode.protocols.crypto import verify_peer
from p2pnode.protocols.inference.messages import Checkpoint, Tokens, TurnEnd
from p2pnode.protocols.inference.meter import Meter, MeteredTurn
from p2pnode.protocols.inference.receipts import Leaf, ReceiptChain, token_hash
from tests.protocols.support import MODEL, Identity

HOST = Identity("host")


class Side:
    """A meter, and the turns that are under way."""

    def __init__(self) -> None:
        self.meter = Meter(ReceiptChain.begin(SessionId(b"s" * 32), MODEL, b"salt", 1))
        self.turns = {n: MeteredTurn(number=n, request=bytes([n]) * 32, prompt=b"p" * 32) for n in (1, 2)}

    def count(self, turn: int, *ids: int, text: str = "") -> None:
        metered = self.turns[turn]
        self.meter.count(metered, Tokens(turn=turn, index=metered.tokens_out, ids=ids, text=text))

    def check(self, receipt: Checkpoint) -> None:
        self.meter.check(
            receipt, self.turns.get, lambda digest, signature: verify_peer(HOST.peer, digest, signature)
        )


def both() -> tuple[Side, Side]:
    return Side(), Side()


def test_a_receipt_has_a_leaf_for_each_turn_that_moved_in_order_of_turn() -> None:
    host, client = both()
    for side in (host, client):
        side.count(2, 7, 8, text="b")
        side.count(1, 5, text="a")
    first = host.meter.issue(HOST.sign).checkpoint
    leaves = [
        Leaf(turn=1, first=0, request=b"\x01" * 32, prompt=b"p" * 32),
        Leaf(turn=2, first=0, request=b"\x02" * 32, prompt=b"p" * 32),
    ]
    leaves[0].add(Tokens(turn=1, index=0, ids=(5,), text="a"))
    leaves[1].add(Tokens(turn=2, index=0, ids=(7, 8), text="b"))
    assert first.token_hash == token_hash([leaf.digest() for leaf in leaves])
    client.check(first)
    for side in (host, client):
        side.count(2, 9)
    second = host.meter.issue(HOST.sign).checkpoint
    after = Leaf(turn=2, first=2, request=b"\x02" * 32, prompt=b"p" * 32, ids=[9])
    assert second.token_hash == token_hash([after.digest()])
    client.check(second)
    assert client.meter.unreceipted == 0


def test_a_receipt_says_how_a_turn_ended_and_does_so_once() -> None:
    host, client = both()
    for side in (host, client):
        side.count(1, 5)
    host.meter.end(host.turns[1], "stop")
    ended = host.meter.issue(HOST.sign).checkpoint
    assert ended.ended == (TurnEnd(turn=1, reason="stop"),)
    client.check(ended)
    assert client.turns[1].ended == "stop"
    host.meter.end(host.turns[1], "failed")
    with pytest.raises(ProtocolError, match="ends turn 1"):
        client.check(host.meter.issue(HOST.sign).checkpoint)


def test_a_receipt_with_another_end_than_its_leaf_is_refused() -> None:
    from dataclasses import replace

    host, client = both()
    for side in (host, client):
        side.count(1, 5)
    host.meter.end(host.turns[1], "stop")
    ended = host.meter.issue(HOST.sign).checkpoint
    with pytest.raises(ProtocolError, match="does not match"):
        client.check(replace(ended, ended=(TurnEnd(turn=1, reason="length"),)))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Tokens(turn=1, index=0, ids=(1,), text="B"), id="another text"),
        pytest.param(Tokens(turn=1, index=0, ids=(1,), text="b", channel="reasoning"), id="another channel"),
        pytest.param(Tokens(turn=1, index=0, ids=(1,), text="b", channel="call", call=1), id="a call"),
        pytest.param(Tokens(turn=1, index=0, ids=(1,), text="b", name="n"), id="a name"),
        pytest.param(Tokens(turn=1, index=0, ids=(2,), text="b"), id="other ids"),
        pytest.param(Tokens(turn=1, index=0, ids=(1,), text="b", start="credit"), id="another start"),
        pytest.param(Tokens(turn=2, index=0, ids=(1,), text="b"), id="of another turn"),
    ],
)
def test_a_leaf_binds_all_that_was_delivered_of_a_turn(other: Tokens) -> None:
    host, client = both()
    host.count(1, 1, text="b")
    client.meter.count(client.turns[other.turn], other)
    with pytest.raises(ProtocolError, match="does not match"):
        client.check(host.meter.issue(HOST.sign).checkpoint)


def test_a_well_formed_receipt_for_nothing_new_is_refused() -> None:
    host, client = both()
    for side in (host, client):
        side.count(1, 1)
    client.check(host.meter.issue(HOST.sign).checkpoint)
    with pytest.raises(ProtocolError, match="nothing new"):
        client.check(host.meter.issue(HOST.sign).checkpoint)
