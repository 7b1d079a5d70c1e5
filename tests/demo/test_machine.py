"""What the demo takes from the events of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.demo.machine import Asked, kept_on
from p2pnode.errors import LocalError

KEPT = {"event": "conversation.kept", "conversation": "0f", "kept": True, "weak": "", "replicas": 2}


def asked(*events: dict[str, Any]) -> Asked:
    """An event a second."""
    found = Asked()
    for second, event in enumerate(events):
        found.take(event, float(second))
    return found


def test_the_text_is_what_came_in_order_and_the_host_is_the_last() -> None:
    found = asked(
        {"event": "host", "peer": "a"},
        {"event": "text", "text": "one "},
        {"event": "host", "peer": "b"},
        {"event": "text", "text": "two"},
        {"event": "done", "host": "b"},
    )
    assert (found.text, found.pieces, found.host) == ("one two", 2, "b")
    assert found.done["host"] == "b"
    assert found.gap_s == 0


def test_the_gap_is_from_the_last_text_before_a_failover_to_the_first_after() -> None:
    text = {"event": "text", "text": "x"}
    found = asked(text, text, {"event": "host.failed"}, {"event": "failover"}, text, text)
    assert found.gap_s == 3.0


def test_a_conversation_counts_as_kept_on_so_many_nodes() -> None:
    assert kept_on(asked(KEPT), 2) == 2


@pytest.mark.parametrize(
    "changed", [{"kept": False}, {"weak": "this machine is counted"}, {"replicas": 1}, {"event": "other"}]
)
def test_one_that_is_kept_elsewhere_too_little_is_told(changed: dict[str, Any]) -> None:
    with pytest.raises(LocalError, match="not kept on 2 other nodes"):
        kept_on(asked({**KEPT, **changed}), 2)
