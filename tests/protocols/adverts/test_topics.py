"""Which names of topics are those of models."""

from __future__ import annotations

import pytest

from p2pnode.protocols.adverts.messages import is_topic, topic_of
from p2pnode.protocols.gossipsub.messages import TOPIC_MAX
from tests.protocols.support import MODEL, OTHER_MODEL


def test_the_topic_of_a_model_is_one_and_fits() -> None:
    assert is_topic(topic_of(MODEL))
    assert topic_of(MODEL) != topic_of(OTHER_MODEL)
    assert len(topic_of(MODEL)) <= TOPIC_MAX


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/p2pnode/adverts/1",
        "/p2pnode/adverts/1/",
        "/p2pnode/adverts/2/" + "ab" * 32,
        "/p2pnode/adverts/1/" + "ab" * 31,
        "/p2pnode/adverts/1/" + "ab" * 33,
        "/p2pnode/adverts/1/" + "AB" * 32,
        "/p2pnode/adverts/1/" + "zz" * 32,
        "x/p2pnode/adverts/1/" + "ab" * 32,
    ],
)
def test_nothing_else_is(name: str) -> None:
    assert not is_topic(name)
