"""One bit of one logit is another arithmetic."""

from __future__ import annotations

import math

import pytest

from p2pnode.models.arithmetic import LENGTH, arithmetic_hash, fixed_prompt

LIKELIEST = [(7, -0.5), (3, -1.25), (9, -2.0)]


def test_the_order_in_which_tokens_are_told_makes_no_difference() -> None:
    assert arithmetic_hash(LIKELIEST) == arithmetic_hash(reversed(LIKELIEST))
    assert len(arithmetic_hash(LIKELIEST)) == 32


@pytest.mark.parametrize(
    "other",
    [
        [(7, -0.5), (3, -1.25), (9, -2.0 * (1 + 2**-23))],
        [(7, -0.5), (3, -1.25), (8, -2.0)],
        [(7, -0.5), (3, -1.25)],
        [(7, -1.25), (3, -0.5), (9, -2.0)],
    ],
    ids=["last bit", "another token", "one fewer", "swapped"],
)
def test_whatever_differs_changes_the_hash(other: list[tuple[int, float]]) -> None:
    assert arithmetic_hash(other) != arithmetic_hash(LIKELIEST)


def test_below_the_precision_of_the_numbers_there_is_no_difference() -> None:
    assert arithmetic_hash([(7, math.nextafter(-0.5, 0))]) == arithmetic_hash([(7, -0.5)])


@pytest.mark.parametrize("vocabulary", [1, 2, 300, 49_152, 256_000])
def test_the_prompt_is_of_tokens_that_the_model_has(vocabulary: int) -> None:
    prompt = fixed_prompt(vocabulary)
    assert len(prompt) == LENGTH
    assert all(0 <= token < vocabulary for token in prompt)
    assert len(set(prompt)) == min(LENGTH, vocabulary)  # 7919 is prime: no two are the same
