"""What is held of an answer, and the bill of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.client.bill import Bill, BillItem
from p2pnode.client.failover import PartialAnswer
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.inference.messages import PREFIX_MAX, ChatMessage, PromptBody, SamplingParams

BODY = PromptBody(
    messages=(ChatMessage(role="user", content="hi"),), sampling=SamplingParams(tokens_max=10, seed=7)
)
ONE, TWO = SessionId(b"1" * 32), SessionId(b"2" * 32)
PEER = PeerId("a host")


def test_the_first_host_is_asked_what_was_asked() -> None:
    assert PartialAnswer(BODY).next_prompt() is BODY


def test_the_next_is_asked_for_the_rest_from_exactly_what_is_held() -> None:
    partial = PartialAnswer(BODY)
    partial.take((1, 2, 3), "abc")
    rest = partial.next_prompt()
    assert (rest.prefix, rest.text_known, rest.sampling.tokens_max) == ((1, 2, 3), None, 7)
    assert (rest.messages, rest.sampling.seed) == (BODY.messages, 7)
    partial.take((4, 5), "")
    assert (partial.next_prompt().text_known, partial.next_prompt().text_pending) == (3, 2)
    partial.take((), "de")
    assert partial.next_prompt().text_known is None
    assert partial.text == "abcde"


def test_a_faulty_host_costs_what_nobody_saw_and_no_receipt_covers() -> None:
    partial = PartialAnswer(BODY)
    partial.take((1, 2), "ab")
    partial.receipt()
    partial.take((3,), "c")
    partial.take((4, 5), "")
    assert partial.drop_unproven() == 2
    assert (partial.ids, partial.text) == ([1, 2, 3], "abc")
    partial.take((4,), "")
    partial.receipt()
    assert partial.drop_unproven() == 0  # its receipt stands for it, and the next host tells its text
    assert partial.next_prompt().text_pending == 1


def test_what_no_prompt_can_hold_can_not_go_on() -> None:
    long = PromptBody(messages=BODY.messages, sampling=SamplingParams(tokens_max=PREFIX_MAX + 10))
    partial = PartialAnswer(long)
    partial.take(tuple(range(PREFIX_MAX)), "x")
    assert partial.continuable
    partial.take((1,), "y")
    assert not partial.continuable


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=3), st.text("ab", max_size=2)), max_size=8))
def test_text_known_and_receipted_never_exceed_what_is_held(pieces: list[tuple[list[int], str]]) -> None:
    partial = PartialAnswer(BODY)
    for number, (ids, text) in enumerate(pieces):
        partial.take(ids, text)
        if number % 3 == 2:
            partial.receipt()
        if number % 4 == 3:
            partial.drop_unproven()
        assert max(partial.text_known, partial.receipted) <= len(partial.ids)
        assert partial.room == max(0, 10 - len(partial.ids))
    assert partial.text == "".join(text for _, text in pieces)


def test_parts_of_one_session_are_one_item_and_the_sums_are_the_usage() -> None:
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
