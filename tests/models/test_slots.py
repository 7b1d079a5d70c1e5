"""Slots and the queue in front of them: whose cache is reused, who waits, who is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import EngineError
from p2pnode.models.slot_wait import wait_assigned
from p2pnode.models.slots import Assignment, SlotQueue, SlotTable, common_prefix
from p2pnode.shares import Origin

PROMPT = (1, 2, 3, 4)


def test_a_key_comes_back_to_its_slot_and_reuses_what_it_holds() -> None:
    table = SlotTable(2)
    assert table.assign(b"a", PROMPT) == Assignment(slot=0, own=False, reusable=0)
    assert table.assign(b"b", PROMPT) == Assignment(slot=1, own=False, reusable=0)
    table.release(0, (*PROMPT, 5))
    table.release(1, (*PROMPT, 5))
    assert table.reusable(b"a", (*PROMPT, 5, 6)) == 5
    assert table.assign(b"a", (*PROMPT, 5, 6)) == Assignment(slot=0, own=True, reusable=5)


def test_the_last_prompt_id_is_always_read_again() -> None:
    table = SlotTable(1)
    table.assign(b"a", PROMPT)
    table.release(0, PROMPT)
    assert table.reusable(b"a", PROMPT) == 3


def test_another_key_takes_the_least_recently_used_slot_and_nothing_of_it() -> None:
    table = SlotTable(2)
    for key in (b"a", b"b"):
        table.assign(key, PROMPT)
    table.release(1, PROMPT)
    table.release(0, PROMPT)
    assert table.assign(b"c", PROMPT) == Assignment(slot=1, own=False, reusable=0)
    assert table.reusable(b"b", PROMPT) == 0
    assert table.reusable(b"a", PROMPT) == 3


def test_slots_that_are_busy_stay_together_for_only_neighbours_are_computed_together() -> None:
    table = SlotTable(8)
    for key in range(5):  # one after the other: each takes the slot that was used least recently
        assignment = table.assign(b"%d" % key, PROMPT)
        assert assignment == Assignment(slot=key, own=False, reusable=0)
        table.release(key, PROMPT)
    taken = [table.assign(b"new %d" % key, PROMPT) for key in range(4)]
    assert [each.slot for each in taken if each is not None] == [5, 6, 7, 4]
    table.release(6, PROMPT)  # the hole is filled first
    again = table.assign(b"another", PROMPT)
    assert again == Assignment(slot=6, own=False, reusable=0)


def test_a_busy_slot_is_not_shared_with_its_own_key() -> None:
    table = SlotTable(2)
    table.assign(b"a", PROMPT)
    assert table.reusable(b"a", PROMPT) == 0
    assert table.assign(b"a", PROMPT) == Assignment(slot=1, own=False, reusable=0)
    assert table.assign(b"a", PROMPT) is None


def test_a_key_with_two_slots_goes_where_more_fits() -> None:
    table = SlotTable(2)
    table.assign(b"a", PROMPT)
    table.assign(b"a", PROMPT)
    table.release(0, (1, 2, 3))
    table.release(1, (1,))
    assert table.assign(b"a", PROMPT) == Assignment(slot=0, own=True, reusable=3)


def test_what_was_forgotten_is_reused_by_nobody() -> None:
    table = SlotTable(1)
    table.assign(b"a", PROMPT)
    table.release(0, PROMPT)
    table.forget()
    assert table.assign(b"a", PROMPT) == Assignment(slot=0, own=False, reusable=0)


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.booleans()), max_size=30), st.integers(1, 3)
)
def test_nobody_ever_gets_a_cache_that_another_key_wrote(steps: list[tuple[bytes, bool]], slots: int) -> None:
    table = SlotTable(slots)
    wrote: dict[int, bytes] = {}
    busy: list[tuple[int, bytes]] = []
    for key, release in steps:
        assignment = table.assign(key, PROMPT)
        if assignment is not None:
            assert assignment.slot not in [slot for slot, _ in busy]
            assert assignment.own == (wrote.get(assignment.slot) == key)
            wrote[assignment.slot] = key
            busy.append((assignment.slot, key))
        if busy and (release or assignment is None):
            table.release(busy.pop(0)[0], PROMPT)
        assert table.busy == len(busy)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_prefix_is_common_and_longest(left: list[int], right: list[int]) -> None:
    length = common_prefix(tuple(left), tuple(right))
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]


async def test_places_are_served_in_order_and_a_full_queue_refuses() -> None:
    admission = SlotQueue(slots=1, queue_max=2)
    first, second, third = (admission.enter(key, PROMPT) for key in (b"a", b"b", b"c"))
    with pytest.raises(EngineError, match="2 requests wait") as full:
        admission.enter(b"d", PROMPT)
    assert full.value.code == "capacity"
    assert (first.slot, second.slot, third.slot) == (0, None, None)
    admission.leave(first, PROMPT)
    assert (await wait_assigned(second)).slot == 0
    assert third.slot is None
    admission.leave(third)
    admission.leave(second)
    assert admission.statistics(restarts=0).active == 0


def test_the_time_to_come_back_follows_what_requests_took_and_stays_in_bounds() -> None:
    admission = SlotQueue(slots=2, queue_max=8)
    assert admission.retry_after_s() == 0.5
    admission.record(tokens=101, seconds=10.0)
    assert admission.retry_after_s() == 5.0
    assert admission.statistics(restarts=0).tokens_per_s == 10.0
    for _ in range(50):
        admission.record(tokens=1, seconds=100_000.0)
    assert admission.retry_after_s() == 120.0


def _origins(*names: str) -> list[Origin]:
    return [Origin(name, name) for name in names]


async def test_a_slot_goes_round_the_origins_whatever_the_number_that_waits() -> None:
    crowd, other, third = _origins("crowd", "other", "third")
    queue = SlotQueue(slots=1, queue_max=16)
    running = queue.enter(b"x", PROMPT, crowd)
    waiting = [queue.enter(b"x", PROMPT, crowd) for _ in range(4)]
    waiting += [queue.enter(b"x", PROMPT, each) for each in (other, other, third)]
    order = []
    while waiting:
        queue.leave(running)
        (running,) = [each for each in waiting if each.slot is not None]
        waiting.remove(running)
        order.append(running.origin.near)
    assert order == ["other", "third", "crowd", "other", "crowd", "crowd", "crowd"]


async def test_a_full_queue_of_one_origin_makes_room_for_another() -> None:
    crowd, other = _origins("crowd", "other")
    queue = SlotQueue(slots=1, queue_max=3)
    _, *waiting = (queue.enter(b"x", PROMPT, crowd) for _ in range(4))
    with pytest.raises(EngineError):
        queue.enter(b"x", PROMPT, crowd)
    newcomer = queue.enter(b"y", PROMPT, other)
    with pytest.raises(EngineError) as lost:
        await wait_assigned(waiting[-1])
    assert lost.value.code == "capacity"
    queue.leave(waiting[-1])
    assert newcomer.slot is None
    assert queue.statistics(restarts=0).queued == 3


async def test_two_origins_have_as_many_slots_each_while_both_wait() -> None:
    crowd, other = _origins("crowd", "other")
    queue = SlotQueue(slots=4, queue_max=16)
    running = [queue.enter(b"x", PROMPT, crowd) for _ in range(4)]
    for _ in range(4):
        queue.enter(b"x", PROMPT, crowd)
    others = [queue.enter(b"x", PROMPT, other) for _ in range(4)]
    for each in running[:2]:
        queue.leave(each)
    assert sum(each.slot is not None for each in others) == 2
