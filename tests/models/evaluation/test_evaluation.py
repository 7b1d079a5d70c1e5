"""Running a task set: over anything that answers, over the scripted engine, and over the default model."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import pytest
import trio

from p2pnode.errors import EngineError, EngineLostError
from p2pnode.models.engines import EngineSpec, make_engine
from p2pnode.models.evaluation.evaluation import Answered, engine_asker, evaluate, results
from p2pnode.models.evaluation.task_set import Item, task_set
from p2pnode.models.local_models import LocalModel
from p2pnode.models.quality import TaskResult
from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine
from tests.models.evaluation.test_task_set import perfect_answer

ITEMS = task_set().items(limit=2)
GOAL_S = 180.0


async def all_of(answers: AsyncGenerator[Answered, None]) -> list[Answered]:
    async with aclosing(answers) as each:
        return [one async for one in each]


def answering(answer: Callable[[Item], str]) -> Callable[[Item], Awaitable[str]]:
    async def ask(item: Item) -> str:
        await trio.lowlevel.checkpoint()
        return answer(item)

    return ask


async def test_who_makes_no_mistake_gets_all_right() -> None:
    found = results(await all_of(evaluate(ITEMS, answering(perfect_answer))))
    assert found == tuple(TaskResult(task=name, right=2, items=2) for name in sorted(task_set().tasks))


async def test_who_says_nothing_gets_nothing_right() -> None:
    found = results(await all_of(evaluate(ITEMS, answering(lambda _item: ""))))
    assert {each.right for each in found} == {0}


async def test_an_item_at_which_the_engine_dies_is_wrong_and_the_others_are_asked() -> None:
    def answer(item: Item) -> str:
        if item == ITEMS[3]:
            raise EngineLostError("it died")
        return perfect_answer(item)

    done = await all_of(evaluate(ITEMS, answering(answer)))
    assert [each.item for each in done if each.lost] == [ITEMS[3]]
    assert sum(each.right for each in done) == len(ITEMS) - 1


async def test_another_failure_ends_the_run_with_what_was_done_before() -> None:
    def answer(item: Item) -> str:
        if item == ITEMS[3]:
            raise EngineError("no room")
        return perfect_answer(item)

    answers = evaluate(ITEMS, answering(answer))
    done = [await anext(answers) for _ in range(3)]
    assert all(each.right for each in done)
    with pytest.raises(EngineError, match="no room"):
        await anext(answers)


async def test_the_engine_reads_the_item_and_its_text_is_checked() -> None:
    asked = task_set().items(["strings"], limit=1)[0]

    def script(prompt: tuple[int, ...], _seed: int) -> str:
        heard = bytes(each for each in prompt if each < 256).decode()
        return str(asked.answer) if heard == asked.text else "what?"

    engine = ScriptedEngine(ScriptedConfig(script=script))
    info = await engine.load()
    assert (await all_of(evaluate([asked], engine_asker(engine, info))))[0].right
    await engine.aclose()


async def test_json_is_forced_into_its_schema() -> None:
    engine = ScriptedEngine(ScriptedConfig(n_ctx=8192))
    info = await engine.load()
    (asked,) = task_set().items(["json"], limit=1)
    answer = (await all_of(evaluate([asked], engine_asker(engine, info))))[0].answer
    assert answer.startswith("{")
    await engine.aclose()


async def test_a_choice_goes_by_the_likeliest_letter_where_the_engine_tells_it() -> None:
    (asked,) = task_set().items(["knowledge"], limit=1)
    engine = ScriptedEngine(ScriptedConfig(script=lambda _prompt, _seed: f"{asked.answer} it is, or A, B"))
    info = await engine.load()
    assert "logprobs" in info.features
    assert await engine_asker(engine, info)(asked) == asked.answer
    await engine.aclose()


@pytest.mark.long
async def test_the_default_model_is_measured_alike_twice_and_within_three_minutes(smollm: LocalModel) -> None:
    engine = make_engine(EngineSpec(name="llamacpp", n_ctx=2048, slots=1), smollm)
    info = await engine.load()
    try:
        began = time.process_time()
        first = await all_of(evaluate(task_set().items(), engine_asker(engine, info)))
        took = await _cpu_of_children() + time.process_time() - began
        again = await all_of(evaluate(task_set().items(limit=8), engine_asker(engine, info)))
    finally:
        await engine.aclose()
    figures = results(first)
    overall = sum(each.right for each in figures) / len(first)
    assert 0.1 < overall < 0.6
    assert sum(0 < each.right < each.items for each in figures) >= 5
    answers = {(each.item.task, each.item.index): each.answer for each in first}
    assert [each.answer for each in again] == [answers[each.item.task, each.item.index] for each in again]
    # By the time on a processor: what else runs here is none of its doing. One thread decodes.
    assert took < GOAL_S


async def _cpu_of_children() -> float:
    import psutil

    children = psutil.Process().children(recursive=True)
    return float(sum(sum(each.cpu_times()[:2]) for each in children))
