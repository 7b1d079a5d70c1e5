"""The model of an engine."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from p2pnode.protocols.inference.commands import GenDone, Generate, GenFailed, GenProgress, GenTokens
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, SamplingParams
from p2pnode.shares import Origin
from p2pnode.simulations.event_loop import EventLoop
from p2pnode.simulations.market.engines import (
    Engines,
    Run,
    SimulatedEngine,
    answer_ids,
    answer_length,
    prompt_ids,
    seed_of_length,
)

SETUP = Engines(
    slots=2, queue_max=1, prefill_tokens_per_s=100, decode_tokens_per_s=10, batch_slowdown=0.5, spread=0,
    flush_s=0.2,
)  # fmt: skip
ORIGINS = [Origin(name, name) for name in "abcd"]


class _Stage:
    """An engine, and what it reported with the time."""

    def __init__(self, engines: Engines = SETUP) -> None:
        self.loop = EventLoop()
        self.engine = SimulatedEngine(self.loop, engines, Random(1))
        self.told: dict[int, list[tuple[float, Any]]] = {}
        self.runs: dict[int, Run] = {}

    def ask(
        self, number: int, *, tokens: int = 20, length: int = 8, prefix: int = 0, most: int = 100
    ) -> None:
        seed = seed_of_length(length, bytes([number]) * 12)
        body = PromptBody(
            messages=(ChatMessage.of("user", f"{number:04}" + "x" * 4 * (tokens - 2)),),
            sampling=SamplingParams(tokens_max=most),
            seed=seed,
            prefix=answer_ids(seed, 0, prefix),
        )
        self.told[number] = []
        self.runs[number] = self.engine.generate(
            Generate(1, number, body, (), most),
            ids=prompt_ids(body),
            key=bytes([number]),
            origin=ORIGINS[number % 4],
            session=bytes([number]),
            report=lambda value: self.told[number].append((self.loop.now, value)),
        )

    def ids(self, number: int) -> tuple[int, ...]:
        return tuple(
            each for _, value in self.told[number] if isinstance(value, GenTokens) for each in value.piece.ids
        )

    def end(self, number: int) -> tuple[float, Any]:
        return self.told[number][-1]


def test_an_answer_takes_its_prompt_and_its_tokens() -> None:
    stage = _Stage()
    stage.ask(1, tokens=20, length=8)
    stage.loop.run_until(10)
    at, last = stage.end(1)
    assert last == GenDone(1, "stop")
    assert at == pytest.approx(20 / 100 + 8 / 10 + 1 / 10)  # the last one says that it is the end
    assert stage.ids(1) == answer_ids(stage.runs[1].seed, 0, 8)


def test_two_at_once_are_slower_each_and_faster_together() -> None:
    stage = _Stage()
    stage.ask(1, tokens=10, length=40)
    stage.ask(2, tokens=10, length=40)
    stage.loop.run_until(60)
    alone_s, both_s = 40 / 10, max(stage.end(1)[0], stage.end(2)[0])
    assert alone_s * 1.3 < both_s < alone_s * 2


def test_who_finds_no_slot_waits_and_is_told_so_and_a_full_queue_refuses() -> None:
    stage = _Stage()
    for number in (1, 2, 3):
        stage.ask(number, length=50)
    stage.ask(7, length=50)  # of the origin of 3, which waits already
    stage.loop.run_until(0.0)
    refused = stage.end(7)[1]
    assert isinstance(refused, GenFailed)
    assert refused.code == "capacity"
    assert (stage.engine.active, stage.engine.queued) == (2, 1)
    stage.loop.run_until(60)
    assert any(isinstance(value, GenProgress) and not value.processed for _, value in stage.told[3])
    assert stage.end(3)[1] == GenDone(3, "stop")
    assert (stage.engine.active, stage.engine.queued) == (0, 0)


def test_a_request_that_is_cancelled_says_nothing_more_and_frees_its_slot() -> None:
    stage = _Stage()
    stage.ask(1, length=50)
    stage.loop.run_until(1)
    stage.engine.cancel(stage.runs[1])
    count = len(stage.told[1])
    stage.loop.run_until(30)
    assert len(stage.told[1]) == count
    assert stage.engine.active == 0


def test_an_answer_goes_on_from_a_prefix_with_the_same_tokens_at_any_host() -> None:
    stage = _Stage()
    stage.ask(1, length=30)
    stage.ask(2, length=30, prefix=12)
    stage.loop.run_until(30)
    seed = stage.runs[2].seed
    assert answer_length(seed) == 30
    assert answer_ids(seed, 0, 12) + stage.ids(2) == answer_ids(seed, 0, 30)


def test_what_is_cached_for_a_key_is_not_read_again() -> None:
    stage = _Stage()
    stage.ask(1, tokens=100, length=4)
    stage.loop.run_until(10)
    assert stage.engine.reusable(bytes([1]), stage.runs[1].ids) == len(stage.runs[1].ids) - 1
    assert stage.engine.reusable(bytes([2]), stage.runs[1].ids) == 0


def test_more_than_was_asked_for_is_not_made() -> None:
    stage = _Stage()
    stage.ask(1, length=50, most=5)
    stage.loop.run_until(10)
    assert len(stage.ids(1)) == 5
    assert stage.end(1)[1] == GenDone(1, "length")


def test_another_model_says_something_else() -> None:
    seed = seed_of_length(5, b"x" * 12)
    assert answer_ids(seed, 0, 5) != answer_ids(seed, 0, 5, model=1)


def test_impossible_engines_are_named() -> None:
    with pytest.raises(ValueError, match="slots"):
        Engines(slots=0)
    with pytest.raises(ValueError, match="batch_slowdown"):
        Engines(batch_slowdown=2.0)
