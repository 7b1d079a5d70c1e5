"""How the last turns of a host went, in percentiles."""

from __future__ import annotations

from p2pnode.host.recent_turns import RecentTurns
from p2pnode.host.turn_times import TurnTimes


def turn(*, waited_s: float, tokens: int) -> TurnTimes:
    """A turn whose tokens came 0.1 s apart, the first at once when it had a slot."""
    times = TurnTimes(asked_at=10.0)
    times.counted(10.0)
    times.ordered(10.0)
    times.started(10.0 + waited_s)
    for each in range(tokens):
        times.made(1, 10.0 + waited_s + each / 10)
    return times


def test_the_time_in_the_queue_stands_beside_outcomes_and_speed() -> None:
    recent = RecentTurns()
    for each in range(100):
        recent.note("stop", turn(waited_s=float(each), tokens=11))
    found = recent.fields()
    assert found["outcomes"] == {"stop": 100}
    assert found["queue_s"] == {"p50": 49.0, "p90": 89.0, "p99": 98.0}
    assert found["first_token_s"] == found["queue_s"]
    assert found["tokens_per_s"]["p50"] == 10.0


def test_a_turn_that_never_got_a_slot_counts_among_the_outcomes_only() -> None:
    recent = RecentTurns()
    recent.note("cancelled", TurnTimes(asked_at=0.0))
    nothing = {"queue_s": None, "first_token_s": None, "tokens_per_s": None}
    assert recent.fields() == {"outcomes": {"cancelled": 1}, **nothing}


def test_only_the_last_five_hundred_turns_count() -> None:
    recent = RecentTurns()
    for reason in ("error", "stop"):
        for _ in range(500):
            recent.note(reason, turn(waited_s=0.0, tokens=1))
    assert recent.fields()["outcomes"] == {"stop": 500}
