"""Draws are the same for the same names, and one concern's leave another's alone."""

from __future__ import annotations

from p2pnode.simulations.draws import Draws


def test_the_same_seed_and_names_give_the_same_numbers() -> None:
    assert Draws(7)("churn", 3).random() == Draws(7)("churn", 3).random()


def test_another_seed_concern_or_node_gives_others() -> None:
    drawn = {
        Draws(7)("churn", 3).random(), Draws(8)("churn", 3).random(), Draws(7)("links", 3).random(),
        Draws(7)("churn", 4).random(), Draws(7)("churn").random(),
    }  # fmt: skip
    assert len(drawn) == 5
