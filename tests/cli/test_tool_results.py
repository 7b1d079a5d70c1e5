"""Calls that a program of the user's answers: what people are shown is what it gets, or it is not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.cli.tool_results import CALL_MAX, ToolProgram, as_shown, call_line, wanted, why_not_run
from p2pnode.protocols.inference.messages import ToolCall

ECHO = "#!/bin/sh\ncat\n"


def call(arguments: str) -> ToolCall:
    return ToolCall(id="1", name="read_file", arguments=arguments)


@pytest.fixture
def echo(tmp_path: Path) -> ToolProgram:
    """Says what it gets."""
    path = tmp_path / "echo.sh"
    path.write_text(ECHO, "utf-8")
    path.chmod(0o755)
    return ToolProgram(str(path), asks=True)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ('{"file": "notes.txt", "n": 1, "file": "/home/me/key"}', 'name "file" twice'),
        (r'{"file": "notes.txt", "fil\u0065": "/home/me/key"}', 'name "file" twice'),
        ('{"a": [{"file": 1, "file": 2}]}', 'name "file" twice'),
        (json.dumps({"a": "x" * CALL_MAX, "file": "/home/me/key"}), "too long to show"),
        ('{"file": "notes.txt"', "no JSON object"),
        ("[1]", "no JSON object"),
        ('{"a": NaN}', "no JSON object"),
        ('{"a": ' * 60_000 + "1" + "}" * 60_000, "too long to show"),
        ('{"a": ' * 12_000 + "1" + "}" * 12_000, "no JSON object"),
    ],
)
def test_a_call_that_cannot_be_shown_as_it_would_be_run_is_not_run(
    echo: ToolProgram, arguments: str, why: str
) -> None:
    assert why in why_not_run(call(arguments))
    assert "is not run, for its arguments" in wanted(call(arguments), echo)
    assert "Enter runs" not in wanted(call(arguments), echo)


@pytest.mark.parametrize(
    "arguments",
    [
        "{}",
        '{"file": "notes.txt", "n": {"file": 1e999}}',
        '{"file":\n\t"Zürich 日本"}',
        '{"file": "a\u202egpj.exe\u200b\u2028b\U000e0041"}',
        json.dumps({"a": "x" * (CALL_MAX - 30)}),
    ],
)
async def test_a_program_gets_to_the_letter_what_was_shown(echo: ToolProgram, arguments: str) -> None:
    assert why_not_run(call(arguments)) == ""
    assert "Enter runs" in wanted(call(arguments), echo)
    got = (await echo.run(call(arguments))).partition("\n[cut after")[0]
    shown = call_line(call(arguments)).removeprefix("read_file(").removesuffix(")")
    assert shown.startswith(got) if len(got) < len(shown) else shown == got
    assert got.isprintable()
    assert json.loads(as_shown(arguments)) == json.loads(arguments), "and it means what the model said"


@settings(max_examples=50)
@given(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_what_is_shown_of_arguments_can_all_be_seen_and_says_the_same(
    arguments: dict[str, str | float],
) -> None:
    for text in (json.dumps(arguments), json.dumps(arguments, ensure_ascii=False, indent=1)):
        shown = as_shown(text)
        assert shown.isprintable()
        assert json.loads(shown) == arguments
        assert call_line(call(text)) == f"read_file({shown})"


def test_a_person_may_type_the_result_of_a_call_that_is_not_run() -> None:
    repeated = call('{"a": 1, "a": 2}')
    program = ToolProgram("/bin/true", asks=False)
    assert wanted(repeated, program) == (
        '[read_file: /bin/true is not run, for its arguments name "a" twice: '
        "type its result; /skip gives none]"
    )
    assert wanted(repeated, None) == "[read_file: type its result; /skip gives none]"
