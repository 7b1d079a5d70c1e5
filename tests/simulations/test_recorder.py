"""What a run tells: tables, and a hash of what happened."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.simulations.recorder import CHECKPOINT_EVENTS, TABLES, Recorder

VALUE = st.one_of(st.integers(), st.text(), st.binary(), st.floats(allow_nan=False), st.booleans())
EVENT = st.tuples(st.integers(0, 10**9), st.integers(0, 1000), st.text(), st.lists(VALUE, max_size=3))


def told(events: list[tuple[int, int, str, list[Any]]]) -> Recorder:
    recorder = Recorder()
    for micros, node, kind, values in events:
        recorder.event(micros / 1e6, node, kind, *values)
    return recorder


def test_a_row_keeps_its_values_and_a_column_left_out_is_empty() -> None:
    recorder = Recorder()
    recorder.row("lookups", at_s=1.5, node=3, kind="hosts")
    table = recorder.tables["lookups"]
    row = {name: next(iter(column)) for name, column in table.columns.items()}
    assert math.isnan(float(row.pop("seconds")))
    assert row == {"at_s": 1.5, "node": 3, "kind": "hosts", "hops": 0, "asked": 0, "found": 0, "failed": 0}


def test_an_unknown_table_or_column_is_named_with_those_that_are_known() -> None:
    recorder = Recorder()
    with pytest.raises(KeyError, match=r"'lookup'.*known are published, messages"):
        recorder.row("lookup", node=1)
    with pytest.raises(KeyError, match=r"'hop'.*known are at_s, node"):
        recorder.row("lookups", hop=1)
    assert len(recorder.tables["lookups"]) == 0


@pytest.mark.parametrize("wrong", [{"node": "three"}, {"node": 1.5}, {"kind": 7}])
def test_a_value_of_another_kind_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Recorder().row("lookups", **wrong)


def test_rows_by_place_are_those_by_name() -> None:
    one, other = Recorder(), Recorder()
    add = one.appender("messages")
    for node in range(5):
        add(7, node, 1.0, 0.25, 2)
        other.row("messages", message=7, node=node, at_s=1.0, delay_s=0.25, hops=2)
    assert one.tables_hash == other.tables_hash != Recorder().tables_hash
    with pytest.raises(ValueError, match="zip"):
        add(7, 1)


def test_each_column_gives_back_what_it_took() -> None:
    recorder = Recorder()
    names = ("done", "cut", "done")
    for found, outcome in zip((True, False, True), names, strict=True):
        recorder.row("sessions", outcome=outcome, found=found, cost=5)
    table = recorder.tables["sessions"]
    assert tuple(table["outcome"]) == names
    assert table["outcome"].words == ["done", "cut"]
    assert list(table["found"]) == [True, False, True]
    assert list(table["cost"]) == [5, 5, 5]
    assert set(table.columns) == set(TABLES["sessions"])


@settings(max_examples=25)
@given(st.lists(EVENT, max_size=6), st.lists(EVENT, max_size=6))
def test_two_traces_have_one_hash_exactly_where_the_events_are_the_same(one: Any, other: Any) -> None:
    def exact(events: Any) -> str:  # 0 is not 0.0, "" not b"", but True is 1
        return repr([(m, n, k, [int(v) if isinstance(v, bool) else v for v in vs]) for m, n, k, vs in events])

    assert told(one).trace_hash == told(one).trace_hash
    assert (told(one).trace_hash == told(other).trace_hash) == (exact(one) == exact(other))


def test_a_hash_that_was_asked_for_in_between_changes_nothing() -> None:
    events: list[Any] = [(n, n, "advert", ["x" * n]) for n in range(600)]
    recorder = Recorder()
    for micros, node, kind, values in events:
        recorder.event(micros / 1e6, node, kind, *values)
        assert len(recorder.trace_hash) == 64
    assert recorder.trace_hash == told(events).trace_hash
    assert recorder.counts == {"advert": 600}


def test_checkpoints_say_between_which_events_two_runs_part() -> None:
    same: list[Any] = [(n, 1, "advert", []) for n in range(3 * CHECKPOINT_EVENTS)]
    changed = list(same)
    changed[CHECKPOINT_EVENTS + 5] = (CHECKPOINT_EVENTS + 5, 2, "advert", [])
    one, other = told(same).checkpoints, told(changed).checkpoints
    assert [each.events for each in one] == [CHECKPOINT_EVENTS, 2 * CHECKPOINT_EVENTS, 3 * CHECKPOINT_EVENTS]
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, False, False]
