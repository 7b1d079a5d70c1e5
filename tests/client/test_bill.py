"""The bill of an answer."""

from __future__ import annotations

from p2pnode.client.bill import Bill, BillItem
from p2pnode.ids import PeerId, SessionId

ONE, TWO = SessionId(b"1" * 32), SessionId(b"2" * 32)
PEER = PeerId("a host")


def test_attempts_in_one_session_are_one_item_and_the_sums_are_the_usage() -> None:
    bill = Bill()
    bill.add(BillItem(peer=PEER, session=ONE, tokens_in=5, tokens_out=3, cost=20, reason="lost"))
    bill.add(BillItem(peer=PEER, session=ONE, tokens_in=8, reused=7, tokens_out=4, cost=5, reason="internal"))
    bill.add(BillItem(peer=PEER, session=TWO, reason="capacity"))  # nothing was used
    bill.add(BillItem(peer=PEER, session=TWO, tokens_in=12, tokens_out=6, cost=40, reason="stop"))
    assert [(i.session, i.tokens_in, i.reused, i.tokens_out, i.cost, i.reason) for i in bill.items] == [
        (ONE, 13, 7, 7, 25, "internal"),
        (TWO, 12, 0, 6, 40, "stop"),
    ]
    usage = bill.usage(reason="stop", ttft_s=0.5, total_s=2.0)
    assert (usage.tokens_in, usage.reused, usage.tokens_out, usage.cost) == (25, 7, 13, 65)
