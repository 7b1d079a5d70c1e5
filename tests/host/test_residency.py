"""What lies in a host's memory, as a table and as a machine of its own: no engine, no stream, no clock."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pnode.host.residency import (
    BROKEN_FIRST_S,
    FAILURES_MAX,
    LOAD_UNKNOWN_S,
    PROMISED_S,
    EmbedderOf,
    Load,
    Memory,
    NotNow,
    Residency,
    Resident,
    Unload,
)
from p2pnode.ids import ModelId

A, B, C, D = (ModelId(bytes([number]) * 32) for number in range(4))
ALL: tuple[Resident, ...] = (A, B, C, EmbedderOf(A))
ROOM = Memory(10, 6)


def residency(memory: int = 2, *models: ModelId, **settings_: float) -> Residency:
    """One unit of memory for each model; they load in a second."""
    made = Residency(Memory(memory), **settings_)  # type: ignore[arg-type]
    for model in models:
        made.offer(model, Memory(1), load_s=1.0)
    return made


def load(subject: Residency, model: ModelId, now: float) -> None:
    assert subject.want(model, now) is None
    assert Load(model) in subject.steps(now)
    subject.loaded(model, now + 1)


def refused(answer: object) -> NotNow:
    assert isinstance(answer, NotNow)
    return answer


def test_the_model_that_was_used_least_recently_is_unloaded_for_another_one() -> None:
    subject = residency(2, A, B, C)
    for now, model in enumerate((A, B, A)):
        assert subject.ask(model, 10.0 * now) in ("waits", "warm")
        for step in subject.steps(10.0 * now):
            assert isinstance(step, Load)
            subject.loaded(step.model, 10.0 * now + 1)
        subject.release(model, 10.0 * now + 2)
    assert subject.ask(C, 30.0) == "waits"
    assert subject.steps(30.0) == [Unload(B)]
    assert subject.state(B) == "cold"
    assert subject.steps(30.5) == []
    subject.unloaded(B)
    assert subject.steps(31.0) == [Load(C)]
    assert subject.state(C) == "warming"
    assert subject.loaded(C, 32.0) == 1
    assert subject.in_use(C) == 1


def test_a_model_with_work_or_that_is_pinned_is_never_unloaded_and_who_asks_waits() -> None:
    subject = residency(2, B, C)
    subject.offer(A, Memory(1), pinned=True)
    assert subject.ask(B, 0.0) == "waits"
    load(subject, A, 0.0)
    subject.loaded(B, 1.0)
    assert subject.ask(C, 2.0) == "waits"
    assert subject.steps(2.0) == []
    subject.release(B, 3.0)
    assert subject.steps(3.0) == [Unload(B)]


def test_small_models_are_kept_where_a_large_one_gives_all_that_is_needed() -> None:
    subject = Residency(Memory(5))
    for model, memory in ((A, 1), (B, 4), (C, 4)):
        subject.offer(model, Memory(memory), load_s=1.0)
    load(subject, A, 0.0)
    load(subject, B, 2.0)
    assert subject.ask(C, 100.0) == "waits"
    assert subject.steps(100.0) == [Unload(B)]


def test_whoever_waits_longest_comes_first_and_what_fits_beside_it_may_go_before() -> None:
    subject = Residency(Memory(4))
    for model, memory in ((A, 3), (B, 4), (C, 1)):
        subject.offer(model, Memory(memory), load_s=1.0)
    assert subject.ask(A, 0.0) == "waits"
    assert subject.steps(0.0) == [Load(A)]
    subject.loaded(A, 1.0)
    assert subject.ask(B, 2.0) == "waits"
    assert subject.ask(C, 3.0) == "waits"
    assert subject.steps(3.0) == [Load(C)]
    subject.loaded(C, 4.0)
    subject.release(A, 5.0)
    subject.release(C, 5.0)
    assert subject.steps(5.0) == [Unload(A), Unload(C)]


def test_a_model_that_loads_longer_than_anybody_waits_is_refused_with_its_time_and_is_there_then() -> None:
    subject = Residency(Memory(1), wait_s=20.0)
    subject.offer(A, Memory(1), load_s=90.0)
    refusal = refused(subject.ask(A, 0.0))
    assert refusal.retry_after_s == 90.0
    assert subject.steps(0.0) == [Load(A)]
    assert refused(subject.ask(A, 40.0)).retry_after_s == 50.0
    subject.loaded(A, 90.0)
    assert subject.ask(A, 90.0) == "warm"


def test_what_was_loaded_for_a_request_that_comes_back_is_kept_for_it() -> None:
    subject = Residency(Memory(1), wait_s=20.0)
    subject.offer(A, Memory(1), load_s=90.0)
    subject.offer(B, Memory(1), load_s=1.0)
    refused(subject.ask(A, 0.0))
    subject.steps(0.0)
    subject.loaded(A, 90.0)
    assert subject.ask(B, 91.0) == "waits"
    assert subject.steps(91.0) == []
    assert subject.due(91.0) == 90.0 + PROMISED_S
    assert subject.steps(90.0 + PROMISED_S) == [Unload(A)]


def test_a_request_too_many_is_refused_and_one_that_leaves_makes_room() -> None:
    subject = residency(1, A, waiting_max=1)
    assert subject.ask(A, 0.0) == "waits"
    assert refused(subject.ask(A, 0.0)).retry_after_s == 1.0
    subject.leave(A)
    assert subject.ask(A, 0.0) == "waits"


def test_a_model_without_work_is_unloaded_after_its_time() -> None:
    subject = residency(2, A, idle_s=60.0)
    load(subject, A, 0.0)
    assert subject.due(10.0) == 1.0 + PROMISED_S
    assert subject.ask(A, 20.0) == "warm"
    assert subject.steps(900.0) == []
    subject.release(A, 900.0)
    assert subject.due(900.0) == 960.0
    assert subject.steps(959.0) == []
    assert subject.steps(960.0) == [Unload(A)]


def test_measuring_a_model_is_no_work() -> None:
    subject = residency(1, A, idle_s=60.0)
    load(subject, A, 0.0)
    assert subject.hold(A)
    assert subject.steps(100.0) == []
    subject.release(A, 100.0, worked=False)
    assert subject.steps(100.0) == [Unload(A)]
    assert not subject.hold(A)


def test_an_engine_that_crashes_again_and_again_ends_its_own_offer_and_is_tried_again_later() -> None:
    subject = residency(2, A, B)
    for model in (A, B):
        load(subject, model, 0.0)
    assert subject.ask(A, 5.0) == "warm"
    assert [subject.crashed(A, 10.0 + n) for n in range(FAILURES_MAX)] == [False] * (FAILURES_MAX - 1) + [
        True
    ]
    assert not subject.offers(A)
    assert subject.offers(B)
    assert subject.steps(13.0) == [Unload(A)]
    subject.unloaded(A)
    refused(subject.ask(A, 14.0))
    again = 12.0 + BROKEN_FIRST_S
    assert subject.due(50.0) == again
    assert subject.steps(again) == [Load(A)]
    assert not subject.failed(A, again + 1)
    assert subject.due(again + 1) == again + 1 + 2 * BROKEN_FIRST_S
    assert subject.steps(again + 1 + 2 * BROKEN_FIRST_S) == [Load(A)]
    subject.loaded(A, again + 2 + 2 * BROKEN_FIRST_S)
    assert subject.offers(A)


def test_answers_between_make_good_what_crashed_before() -> None:
    subject = residency(1, A)
    load(subject, A, 0.0)
    for now in range(10):
        assert not subject.crashed(A, float(now))
        subject.served(A)
    assert subject.offers(A)


def test_a_withdrawn_model_ends_its_work_and_is_forgotten_and_may_be_offered_again() -> None:
    subject = residency(1, A)
    assert subject.ask(A, 0.0) == "waits"
    subject.steps(0.0)
    subject.loaded(A, 1.0)
    subject.withdraw(A)
    assert not subject.offers(A)
    assert subject.steps(2.0) == []
    subject.release(A, 3.0)
    assert subject.steps(3.0) == [Unload(A)]
    subject.unloaded(A)
    assert subject.taken == Memory()
    subject.offer(A, Memory(1))
    assert subject.warm_in_s(A, 4.0) == LOAD_UNKNOWN_S


def test_no_model_is_offered_that_could_never_be_loaded() -> None:
    subject = Residency(Memory(10))
    subject.offer(A, Memory(4), pinned=True)
    assert subject.room() == Memory(6)
    with pytest.raises(ValueError, match="main=6"):
        subject.offer(B, Memory(7))
    subject.offer(B, Memory(6))
    assert subject.room(pinned=True) == Memory()
    with pytest.raises(ValueError, match="offered already"):
        subject.offer(B, Memory(6))


def test_an_embedder_is_loaded_and_unloaded_for_itself_after_its_own_time() -> None:
    subject, of_texts = residency(2, A), EmbedderOf(A)
    subject.offer(of_texts, Memory(1), load_s=1.0, idle_s=300.0)
    load(subject, A, 0.0)
    assert subject.ask(of_texts, 10.0) == "waits"
    assert subject.steps(10.0) == [Load(of_texts)]
    assert subject.loaded(of_texts, 11.0) == 1
    assert subject.taken == Memory(2)
    subject.release(of_texts, 20.0)
    assert subject.due(20.0) == 1.0 + PROMISED_S
    assert subject.due(40.0) == 320.0
    assert subject.steps(320.0) == [Unload(of_texts)]
    assert subject.state(A) == "warm"


def test_only_who_has_memory_of_the_device_that_is_short_is_unloaded() -> None:
    subject = Residency(Memory(4, 4))
    for model, memory in ((A, Memory(2)), (B, Memory(1, 3)), (C, Memory(1, 2))):
        subject.offer(model, memory, load_s=1.0)
    load(subject, A, 0.0)
    load(subject, B, 2.0)
    assert subject.ask(C, 100.0) == "waits"
    assert subject.steps(100.0) == [Unload(B)]
    with pytest.raises(ValueError, match="gpu=4"):
        subject.offer(D, Memory(0, 5))


def test_what_a_model_was_seen_to_take_counts_while_it_is_loaded() -> None:
    subject = Residency(Memory(4, 4))
    for model in (A, B):
        subject.offer(model, Memory(0, 2), load_s=1.0)
    load(subject, A, 0.0)
    subject.measured(A, gpu=3)
    assert subject.taken == Memory(0, 3)
    assert subject.ask(B, 100.0) == "waits"
    assert subject.steps(100.0) == [Unload(A)]
    subject.unloaded(A)
    assert subject.steps(101.0) == [Load(B)]
    assert subject.room() == Memory(4, 4)


class Residencies(RuleBasedStateMachine):
    """Any order of offers, requests, crashes and ends, and of what becomes of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.subject = Residency(ROOM, idle_s=300.0, wait_s=20.0, waiting_max=4)
        self.begun: list[Load | Unload] = []
        self.held: Counter[Resident] = Counter()
        self.waiting: Counter[Resident] = Counter()
        self.memory: dict[Resident, Memory] = {}
        self.pinned: set[Resident] = set()

    def act(self) -> None:
        for step in self.subject.steps(self.now):
            self.begun.append(step)
            if isinstance(step, Unload) and self.subject.offers(step.model):
                assert not self.held[step.model], "a model with work is unloaded"
                assert step.model not in self.pinned, "a pinned model is unloaded"
        assert self.subject.steps(self.now) == []

    @rule(
        model=st.sampled_from(ALL),
        memory=st.builds(Memory, st.integers(0, 10), st.sampled_from([0, 0, 2, 5])),
        pinned=st.booleans(),
    )
    def offer(self, model: Resident, memory: Memory, pinned: bool) -> None:
        fits = memory.fits(self.subject.room(pinned=pinned))
        try:
            self.subject.offer(model, memory, pinned=pinned, load_s=5.0)
        except ValueError:
            return
        assert fits or not self.subject.offers(model) or self.memory.get(model) == memory
        self.memory[model] = memory
        (self.pinned.add if pinned else self.pinned.discard)(model)
        self.act()

    @rule(model=st.sampled_from(ALL))
    def withdraw(self, model: Resident) -> None:
        self.subject.withdraw(model)
        self.waiting[model] = 0
        self.act()

    @rule(model=st.sampled_from(ALL))
    def ask(self, model: Resident) -> None:
        answer = self.subject.ask(model, self.now)
        if isinstance(answer, NotNow):
            assert 0 < answer.retry_after_s < math.inf
        elif answer == "warm":
            self.held[model] += 1
        else:
            self.waiting[model] += 1
        self.act()

    @precondition(lambda self: self.held.total())
    @rule(data=st.data(), answered=st.booleans())
    def end(self, data: st.DataObject, answered: bool) -> None:
        model = data.draw(st.sampled_from(list(self.held.elements())))
        self.held[model] -= 1
        if answered:
            self.subject.served(model)
        self.subject.release(model, self.now)
        self.act()

    @precondition(lambda self: self.waiting.total())
    @rule(data=st.data())
    def wait_no_longer(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(list(self.waiting.elements())))
        self.waiting[model] -= 1
        self.subject.leave(model)
        self.act()

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), works=st.booleans())
    def end_step(self, data: st.DataObject, works: bool) -> None:
        step = self.begun.pop(data.draw(st.integers(0, len(self.begun) - 1)))
        model = step.model
        if isinstance(step, Unload):
            self.subject.unloaded(model)
            self.held[model] = 0
        elif works:
            held = self.subject.loaded(model, self.now)
            assert held == self.waiting[model]
            self.held[model] += held
            self.waiting[model] = 0
        else:
            self.subject.failed(model, self.now)
            self.waiting[model] = 0
        self.act()

    @rule(model=st.sampled_from(ALL))
    def crash(self, model: Resident) -> None:
        if self.subject.state(model) == "warm":
            self.subject.crashed(model, self.now)
            self.act()

    @rule(seconds=st.floats(0.0, 1000.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.act()

    @rule()
    def wait_until_due(self) -> None:
        if (due := self.subject.due(self.now)) < math.inf:
            assert due > self.now
            self.now = due
            self.act()

    @invariant()
    def memory_is_never_more_than_there_is(self) -> None:
        assert self.subject.taken.fits(ROOM)

    @invariant()
    def what_is_held_is_what_is_in_use(self) -> None:
        for model in ALL:
            assert self.subject.in_use(model) == self.held[model]

    def teardown(self) -> None:
        """Once all work has ended, each model that is offered can be loaded."""
        for _ in range(100):
            if not self.begun:
                break
            self.end_step_all()
        for model in list(self.held.elements()):
            self.subject.release(model, self.now)
        self.held.clear()
        self.now += 200_000.0  # nothing is promised or put off any more
        for model in ALL:
            if not self.subject.offers(model):
                continue
            self.subject.want(model, self.now)
            for _ in range(20):
                self.act()
                if not self.begun:
                    break
                self.end_step_all()
            assert self.subject.state(model) == "warm"
            self.now += 2 * PROMISED_S

    def end_step_all(self) -> None:
        begun, self.begun = self.begun, []
        for step in begun:
            if isinstance(step, Unload):
                self.subject.unloaded(step.model)
                self.held[step.model] = 0
            else:
                self.held[step.model] += self.subject.loaded(step.model, self.now)
        for model in list(self.held.elements()):
            self.subject.release(model, self.now)
        self.held.clear()


TestResidencies = Residencies.TestCase
TestResidencies.settings = settings(max_examples=40, stateful_step_count=30)
