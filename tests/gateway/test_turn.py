"""Where a request may go, and what its conversation is called at hosts."""

from __future__ import annotations

import json

import pytest

from p2pnode.client.ranking import Filters
from p2pnode.gateway.chat import dumped
from p2pnode.gateway.faults import FaultError
from p2pnode.gateway.fields import Fields
from p2pnode.gateway.turn import Routing, Turn, cache_key, event_frame, routing_of, with_choices, within
from p2pnode.protocols.inference.messages import ChatMessage
from tests.client.support import peer


def turn(*texts: str, conversation: str = "") -> Turn:
    roles = ("user", "assistant")
    messages = tuple(ChatMessage.of(roles[at % 2], text) for at, text in enumerate(texts))  # type: ignore[arg-type]
    return Turn(model="scripted", messages=messages, conversation=conversation)


def test_headers_and_fields_say_the_same_and_the_field_wins() -> None:
    one, two = str(peer(1)), str(peer(2))
    headers = {
        "X-P2pnode-Max-Price": "0.5",
        "x-p2pnode-exclude": f"{one}, {two}",
        "authorization": "Bearer k",
    }
    routing = routing_of(headers, Fields({"p2pnode": {"max_price": "0.25", "max_cost": 0.01}}))
    filters = routing.filters
    assert (filters.price_in_max, filters.price_out_max, filters.cost_max) == (250_000, 250_000, 10_000)
    assert filters.rules.never == {one, two}


def test_prices_of_input_and_output_may_differ_and_no_amount_is_rounded() -> None:
    routing = routing_of({}, Fields({"p2pnode": {"max_price": {"in": 0.000001, "out": "2"}}}))
    assert (routing.filters.price_in_max, routing.filters.price_out_max) == (1, 2_000_000)
    with pytest.raises(FaultError, match="more than 6 digits"):
        routing_of({}, Fields({"p2pnode": {"max_cost": "0.0000001"}}))
    with pytest.raises(FaultError, match="more than 6 digits"):
        routing_of({}, Fields({"p2pnode": {"max_cost": 1e-7}}))


@pytest.mark.parametrize(
    "given",
    [
        {"max_prize": "1"},
        {"host": "me"},
        {"verified": "yes"},
        {"max_cost": True},
        {"exclude": [1]},
        {"trust": {}},
    ],
)
def test_what_is_not_known_is_refused_and_never_ignored(given: dict[str, object]) -> None:
    with pytest.raises(FaultError) as refused:
        routing_of({}, Fields({"p2pnode": given}))
    assert refused.value.fault.status == 400
    with pytest.raises(FaultError, match="is not known"):
        routing_of({"x-p2pnode-max-prize": "1"}, Fields({}))


def test_a_conversation_keeps_its_name_and_no_key_shares_it() -> None:
    first, second = turn("hello"), turn("hello", "hi", "more")
    name = cache_key("", first, Routing())
    assert name == cache_key("", second, Routing())
    others = {
        cache_key("key", first, Routing()),
        cache_key("", turn("hallo"), Routing()),
        cache_key("", first, Routing(conversation="hello")),
        cache_key("", turn("hello", conversation="c"), Routing()),
        name,
    }
    assert len(others) == 5
    assert len(name) == 16
    named = Routing(conversation="c")
    assert cache_key("", turn("a"), named) == cache_key("", turn("b"), named)


def test_a_key_only_narrows_what_a_request_allows() -> None:
    asked = Filters(price_in_max=5, cost_max=7)
    both = within(asked, Filters(price_in_max=3, price_out_max=9, cost_max=8))
    assert (both.price_in_max, both.price_out_max, both.cost_max) == (3, 9, 7)


def test_choices_of_a_seed_are_many_and_repeat() -> None:
    seeded = Turn(messages=(ChatMessage.of("user", "x"),), seed=bytes(16))
    seeds = [each.seed for each in with_choices(seeded, 4)]
    assert len(set(seeds)) == 4
    assert seeds == [each.seed for each in with_choices(seeded, 4)]
    assert {each.seed for each in with_choices(turn("x"), 3)} == {None}


def test_no_text_of_a_host_ends_the_line_of_an_event() -> None:
    text = "".join(map(chr, (10, 11, 12, 13, 28, 29, 30, 0x85, 0x2028, 0x2029)))
    frame = event_frame(dumped({"text": f"{text}data: {{}}{text}"}), "said").decode()
    assert [each for each in frame.splitlines() if each] == frame.strip().split("\n")
    assert json.loads(frame.partition("data: ")[2]) == {"text": f"{text}data: {{}}{text}"}
