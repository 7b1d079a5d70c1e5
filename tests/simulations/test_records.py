"""Parameters as TOML and back, and what is said of those that can't be."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.simulations.records import as_mapping, paths_of, read_record, with_values


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    shape: Literal["straight", "winding"] = "straight"
    loss_share: float = 0.0
    lanes: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.loss_share <= 1:
            msg = f"loss_share is {self.loss_share}: a share is between 0 and 1"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    at_s: float
    share: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    name: str
    riders: int = 10
    roads: Road = Road()
    tolls: Road | None = None
    storms: tuple[Storm, ...] = ()
    stops: tuple[str, ...] = ()
    box: tuple[float, float] = (0.0, 1.0)
    by_night: bool = False


ROADS = st.builds(
    Road, shape=st.sampled_from(["straight", "winding"]), loss_share=st.floats(0, 1), lanes=st.integers(0, 9)
)
STORMS = st.builds(Storm, at_s=st.floats(0, 1e9), share=st.floats(0, 1))
TEXT = st.text(st.characters(codec="utf-8"))
JOURNEYS = st.builds(
    Journey, name=TEXT, riders=st.integers(-(2**62), 2**62), roads=ROADS, tolls=st.none() | ROADS,
    storms=st.lists(STORMS, max_size=3).map(tuple), stops=st.lists(TEXT, max_size=3).map(tuple),
    box=st.tuples(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300)), by_night=st.booleans(),
)  # fmt: skip
PLAIN = Journey(name="plain", storms=(Storm(at_s=1.0), Storm(at_s=2.0)))


@settings(max_examples=50)
@given(JOURNEYS)
def test_what_is_written_as_toml_is_read_back_as_it_was(journey: Journey) -> None:
    assert read_record(Journey, tomllib.loads(tomli_w.dumps(as_mapping(journey)))) == journey


def test_a_field_that_is_not_given_has_its_default_and_a_whole_number_is_a_number() -> None:
    journey = read_record(Journey, {"name": "x", "roads": {"loss_share": 1}})
    assert journey == Journey(name="x", roads=Road(loss_share=1.0))
    assert type(journey.roads.loss_share) is float


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ridres": 1}, "ridres is no parameter: did you mean riders?"),
        ({"roads": {"los_share": 1}}, "roads.los_share is no parameter: did you mean roads.loss_share?"),
        ({"storms": [{"ats": 1.0}]}, "storms.0.ats is no parameter: did you mean storms.0.at_s?"),
        ({"zzz": 1}, "zzz is no parameter: known are name, riders"),
        ({"riders": 1.5}, "riders must be a whole number, not 1.5"),
        ({"riders": True}, "riders must be a whole number, not True"),
        ({"by_night": 1}, "by_night must be true or false, not 1"),
        ({"stops": "here"}, "stops must be a list, not 'here'"),
        ({"stops": [1]}, "stops.0 must be a text, not 1"),
        ({"box": [1.0]}, "box must be a list of 2 values, not of 1"),
        ({"roads": 3}, "roads must be a table of parameters, not 3"),
        ({"roads": {"shape": "straigt"}}, "roads.shape can't be 'straigt': did you mean straight?"),
        ({"roads": {"shape": "x"}}, "roads.shape can't be 'x': it is one of straight, winding"),
        ({"roads": {"loss_share": 2.0}}, "roads: loss_share is 2.0: a share is between 0 and 1"),
        ({"storms": [{}]}, "storms.0.at_s is missing: it has no default"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_path(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_record(Journey, {"name": "x", **values})
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("path", "text", "wanted"),
    [
        ("riders", "12", replace(PLAIN, riders=12)),
        ("name", "12", replace(PLAIN, name="12")),
        ("by_night", "true", replace(PLAIN, by_night=True)),
        ("roads.shape", "winding", replace(PLAIN, roads=Road(shape="winding"))),
        ("roads.loss_share", "1", replace(PLAIN, roads=Road(loss_share=1.0))),
        ("tolls.lanes", "4", replace(PLAIN, tolls=Road(lanes=4))),
        ("tolls", "none", PLAIN),
        ("storms.1.share", "0.5", replace(PLAIN, storms=(Storm(at_s=1.0), Storm(at_s=2.0, share=0.5)))),
        ("storms", "[{at_s = 3}]", replace(PLAIN, storms=(Storm(at_s=3.0),))),
        ("stops", '["a", "b"]', replace(PLAIN, stops=("a", "b"))),
        ("box.1", "2", replace(PLAIN, box=(0.0, 2.0))),
    ],
)
def test_a_value_that_is_typed_is_read_as_its_field_wants_it(path: str, text: str, wanted: Journey) -> None:
    assert with_values(PLAIN, {path: text}) == wanted


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("lanes", "1", "lanes is no parameter: did you mean roads.lanes or tolls.lanes?"),
        ("roads.lane", "1", "roads.lane is no parameter: did you mean roads.lanes?"),
        ("riders.x", "1", "riders is a value and has no parameters: riders.x can't be set"),
        ("storms.2.share", "1", "2 is no place in that list; it has 0 to 1"),
        ("storms.first.share", "1", "first is no place in that list; it has 0 to 1"),
        ("riders", "ten", "riders must be a whole number, not 'ten'"),
        ("riders", "1\nname = 2", "riders must be a whole number"),
        ("riders", "none", "riders must be a whole number, not 'none'"),
        ("roads.loss_share", "-1", "roads: loss_share is -1.0: a share is between 0 and 1"),
    ],
)
def test_a_value_that_is_typed_wrongly_is_named_by_its_path(path: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        with_values(PLAIN, {path: text})
    assert said in str(raised.value)


def test_values_that_are_right_only_together_are_set_at_once() -> None:
    assert with_values(PLAIN, {"tolls.loss_share": 1.0, "tolls.lanes": "1"}).tolls == Road(
        loss_share=1.0, lanes=1
    )


def test_every_value_has_a_path() -> None:
    assert list(paths_of(Journey)) == [
        "name", "riders", "roads.shape", "roads.loss_share", "roads.lanes", "tolls.shape", "tolls.loss_share",
        "tolls.lanes", "storms.0.at_s", "storms.0.share", "stops", "box", "by_night",
    ]  # fmt: skip
