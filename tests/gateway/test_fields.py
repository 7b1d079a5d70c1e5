"""Fields of a request are read by their kind, and an error names the one that is wrong."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.gateway.faults import FaultError
from p2pnode.gateway.fields import Fields, read_object

DEEP = b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"
WRONG = [
    b'{"a":1e999}',
    b'{"a":-1e999}',
    DEEP,
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b'{"a":NaN}',
    b"\xff",
    b"[" * 100_000,
    b"1" * 5000,
]


@pytest.mark.parametrize("body", [*WRONG, b'{"a":"\\ud800"}'])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(FaultError) as refused:
        read_object(body)
    assert refused.value.fault.status == 400


@given(st.binary(max_size=200))
def test_no_body_raises_anything_else(body: bytes) -> None:
    with contextlib.suppress(FaultError):
        read_object(b'{"a":' + body + b"}")


def test_a_character_beyond_the_first_plane_may_come_as_two_escapes() -> None:
    assert read_object(b'{"a":"\\ud83d\\ude00"}').text("a") == "\U0001f600"


def test_a_body_may_be_nested_as_deep_as_can_be_written_again() -> None:
    assert read_object(DEEP.replace(b"[]", b"0")).items("a")


def test_a_name_that_somebody_made_up_is_cut_in_the_error() -> None:
    with pytest.raises(FaultError) as refused:
        Fields({"x" * 10_000: 1}).text("x" * 10_000)
    assert len(str(refused.value)) < 400
    with pytest.raises(FaultError, match="at most 256"):
        Fields({"model": "x" * 257}).model()
    assert Fields({"model": "x" * 256}).model() == "x" * 256


def test_a_field_that_is_null_counts_as_one_that_is_not_there() -> None:
    fields = Fields({"a": None})
    assert "a" not in fields
    assert (fields.text("a", "x"), fields.whole("a", 3, 0, 9), fields.items("a")) == ("x", 3, [])
    assert fields.record("a").value == {}


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert Fields({"n": 2.0}).whole("n", 1, 1, 8) == 2


@pytest.mark.parametrize(
    ("read", "value", "words"),
    [
        (lambda f: f.text("a"), 1, "a: is a string, not 1"),
        (lambda f: f.flag("a"), "yes", 'a: is true or false, not "yes"'),
        (lambda f: f.whole("a", 0, 0, 9), 10, "a: is from 0 to 9"),
        (lambda f: f.whole("a", 0, 0, 9), True, "a: is a whole number, not true"),
        (lambda f: f.number("a", 0, 0, 1), "0.5", 'a: is a number, not "0.5"'),
        (lambda f: f.number("a", 0, 0, 1), 1e308 * 10, "a: is from 0 to 1"),
        (lambda f: f.number("a", 0, 0, 1), 10**400, "a: is from 0 to 1"),
        (lambda f: f.whole("a", 0, 0, 9), 10**400, "a: is from 0 to 9"),
        (lambda f: f.texts("a"), ["x", 1], "a[1]: is a string, not 1"),
        (lambda f: list(f.objects("a")), ["x"], 'a[0]: is an object, not "x"'),
        (lambda f: f.record("a").text("b"), {"b": 1}, "a.b: is a string, not 1"),
        (lambda f: f.needed("a"), "", "a: is missing"),
    ],
)
def test_an_error_names_the_field(read: Any, value: object, words: str) -> None:
    with pytest.raises(FaultError) as refused:
        read(Fields({"a": value}))
    assert str(refused.value) == words
    assert (refused.value.fault.param or "").startswith("a")
