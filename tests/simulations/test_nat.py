"""Who can be dialled, and which pairs get through."""

from __future__ import annotations

from itertools import product

import pytest

from p2pnode.simulations.draws import Draws
from p2pnode.simulations.nat import CLASSES, Nat, NatModel, can_punch, is_dialable


def test_classes_are_drawn_by_their_shares() -> None:
    model = NatModel(Nat(public_share=0.3, port_restricted_share=0.5, symmetric_share=0.2), Draws(1))
    drawn = [model.drawn() for _ in range(10_000)]
    assert [drawn.count(each) / 10_000 for each in CLASSES] == pytest.approx([0.3, 0, 0, 0.5, 0.2], abs=0.02)


def test_a_router_that_maps_ports_makes_its_node_public() -> None:
    model = NatModel(Nat(public_share=0, symmetric_share=1, port_mapping_share=0.25), Draws(1))
    drawn = [model.drawn() for _ in range(10_000)]
    assert drawn.count("public") / 10_000 == pytest.approx(0.25, abs=0.02)


def test_two_get_through_unless_one_is_symmetric_and_the_other_lets_in_known_ports_only() -> None:
    closed = {(a, b) for a, b in product(CLASSES, CLASSES) if not can_punch(a, b)}
    assert closed == {
        ("symmetric", "symmetric"), ("symmetric", "port_restricted"), ("port_restricted", "symmetric")
    }  # fmt: skip
    assert [each for each in CLASSES if is_dialable(each)] == ["public"]
