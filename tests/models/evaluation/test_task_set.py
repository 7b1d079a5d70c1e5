"""The task set: what is in it, in which order it is asked, and what counts as a right answer."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from p2pnode.errors import ConfigError
from p2pnode.models.evaluation.task_set import Item, chosen_letter, parse_task_set, task_set
from tests.models import make_task_set

SET = task_set()
ALL = [item for task in SET.tasks.values() for item in task.items]


def item(check: str, answer: Any = None, **more: Any) -> Item:
    values: dict[str, Any] = {"task": "t", "index": 0, "check": check, "ask": "?", "tokens_max": 8}
    return Item(**{**values, "answer": answer, **more})


def perfect_answer(each: Item) -> str:
    """What a model that makes no mistake could say."""
    if each.check == "json":
        return json.dumps(each.answer)
    if each.check != "rules":
        return str(each.answer)
    rules = each.rules or {}
    if "is" in rules:
        return str(rules["is"][0])
    if "lines" in rules:
        return "\n".join(["red"] * rules["lines"])
    if rules.get("words") == [1, 1]:
        return str(rules["has"])
    words = [rules.get("begins", "we"), "see", rules.get("has", "it")]
    return " ".join(words) + str(rules.get("ends", "."))


def test_the_file_is_what_its_maker_makes() -> None:
    assert make_task_set.TASK_SET.read_text() == make_task_set.text_of(make_task_set.task_set())


def test_its_id_follows_from_its_content_and_not_from_its_spelling() -> None:
    content = make_task_set.task_set()
    assert parse_task_set(content).id == SET.id
    content["tasks"]["arithmetic"]["items"][0]["answer"] += 1
    assert parse_task_set(content).id != SET.id


def test_each_task_has_as_many_different_items() -> None:
    assert {name: len(task.items) for name, task in SET.tasks.items()} == dict.fromkeys(
        ("arithmetic", "instructions", "json", "knowledge", "logic", "reading", "strings"), 32
    )
    assert len({(each.task, each.text) for each in ALL}) == len(ALL)


def test_each_item_has_a_right_answer() -> None:
    assert [each for each in ALL if not each.is_right(perfect_answer(each))] == []


def test_silence_is_wrong_and_so_is_the_question_said_again() -> None:
    assert [each for each in ALL if each.is_right("") or each.is_right(each.ask)] == []
    echoed = [each for each in ALL if each.is_right(each.text)]
    # The last line of a choice names letters in words, and options stand behind theirs.
    assert [each for each in echoed if each.answer != "A"] == []


def test_each_letter_is_right_about_as_often() -> None:
    """So that who always says A gets no more than who guesses."""
    for name in ("knowledge", "logic", "reading"):
        assert set(Counter(each.answer for each in SET.tasks[name].items).values()) == {8}


def test_each_choice_has_different_options_and_names_the_right_one_once() -> None:
    for each in ALL:
        assert len(set(each.options)) == len(each.options)


def test_tasks_take_turns_so_that_an_early_end_leaves_none_out() -> None:
    order = SET.items(seed=3)
    assert len(order) == len(ALL)
    assert [each.task for each in order[: len(SET.tasks)]] == list(SET.tasks)
    assert set(Counter(each.task for each in order[: 5 * len(SET.tasks)]).values()) == {5}


def test_a_limit_takes_the_first_of_the_whole_order_of_the_same_seed() -> None:
    whole = SET.items(["logic", "strings"], seed=7)
    assert SET.items(["logic", "strings"], limit=4, seed=7) == whole[:8]
    assert SET.items(["logic", "strings"], limit=4, seed=8) != whole[:8]


def test_a_task_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="'spelling' is no task: choose of arithmetic, instructions"):
        SET.items(["arithmetic", "spelling"])


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("48", True),
        ("The answer is 48.", True),
        ("21 + 27 = 48", True),
        ("**48**", True),
        ("48.0", True),
        ("-48", False),
        ("148", False),
        ("It is 48, not 49", False),
        ("forty-eight", False),
        ("", False),
    ],
)
def test_the_last_number_of_an_answer_counts(answer: str, right: bool) -> None:
    assert item("number", 48).is_right(answer) is right


def test_a_number_may_have_commas_between_its_digits() -> None:
    assert item("number", 1204).is_right("That makes 1,204.")


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Stone", True), (' "stone." ', True), ("'stone'", True), ("the stone", False), ("stones", False)],
)
def test_a_word_counts_without_quotes_and_full_stop(answer: str, right: bool) -> None:
    assert item("text", "stone").is_right(answer) is right


def test_the_case_counts_where_it_is_asked_for() -> None:
    assert item("text", "STONE", case=True).is_right("STONE.")
    assert not item("text", "STONE", case=True).is_right("Stone")


@pytest.mark.parametrize(
    ("rules", "right", "wrong"),
    [
        ({"words": [2, 3]}, ["a b", "a b c"], ["a", "a b c d", ""]),
        ({"has": "river"}, ["The River.", "river"], ["rivers", ""]),
        ({"lacks": "write"}, ["a river", ""], ["Write: a river"]),
        ({"case": "lower"}, ["all small."], ["Not all small.", ""]),
        ({"begins": "Stone"}, ["Stone, that is hard."], ["stone is hard", "A Stone", ""]),
        ({"ends": "!"}, ["No!", "No! "], ["No!.", ""]),
        ({"is": ["a, b", "a,b"]}, ["a, b", "a,b", "a, b."], ["b, a", ""]),
        ({"lines": 2}, ["red\nblue", "red\n\nblue\n"], ["red", "a\nb\nc", ""]),
        ({"has": "river", "words": [1, 2]}, ["a river"], ["a long river", "a stone"]),
    ],
)
def test_an_answer_keeps_all_rules_of_its_form(rules: Any, right: list[str], wrong: list[str]) -> None:
    asked = item("rules", rules=rules)
    assert [each for each in right if not asked.is_right(each)] == []
    assert [each for each in wrong if asked.is_right(each)] == []


def test_a_rule_that_nobody_knows_is_no_rule_that_is_kept() -> None:
    with pytest.raises(ValueError, match="no rule"):
        item("rules", rules={"rhymes": True}).is_right("a")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C) Paris", "C"),
        ("The answer is D", "D"),
        ("**A**", "A"),
        ("Berlin", ""),
        ("b", ""),
        ("E", ""),
        ("I'd say: C, not A", "C"),
        ("", ""),
    ],
)
def test_the_first_letter_that_stands_alone_is_chosen(answer: str, letter: str) -> None:
    assert chosen_letter(answer, "ABCD") == letter


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"age": 7, "open": true}', True),
        ('{ "open":true,"age":7 }', True),
        ('{"age": 7, "open": 1}', False),
        ('{"age": "7", "open": true}', False),
        ('{"age": 7}', False),
        ("age 7", False),
        ("[" * 100_000, False),
    ],
)
def test_json_is_equal_with_its_types(answer: str, right: bool) -> None:
    assert item("json", {"age": 7, "open": True}).is_right(answer) is right


def test_no_answer_breaks_a_check() -> None:
    odd = (
        "\0",
        "\ud800",
        "-",
        "1,,2",
        "1e999",
        "{",
        '"',
        "[" * 5000,
        "9" * 400,
        "A B C",
        "\N{THAI DIGIT FOUR}",
    )
    for each in ALL:
        assert {each.is_right(answer) for answer in odd} <= {True, False}
