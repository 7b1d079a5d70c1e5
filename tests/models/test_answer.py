"""What a model says: content, reasoning and calls, from whatever pieces the text comes in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.models.answer import (
    CALL_MAX,
    CALLS_MAX,
    AnswerPieces,
    AnswerReader,
    CallArguments,
    CallBegun,
    CallEnded,
    Part,
    Said,
    Text,
    ToolFormat,
    format_of,
    reader_of,
)

ANSWERS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "models" / "vectors.json").read_text("utf-8")
)["answers"]
TOOLS = ("weather", "add", "find.all-files")
FORMATS: tuple[ToolFormat, ...] = ("hermes", "llama3", "mistral", "generic")
WEATHER = '{"city": "Paris", "days": [1, 2], "note": "a } \\" b"}'


def joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbouring texts and pieces of arguments as one."""
    whole: list[Part] = []
    for part in parts:
        last = whole[-1] if whole else None
        if isinstance(part, Text) and isinstance(last, Text) and part.channel == last.channel:
            whole[-1] = Text(part.channel, last.text + part.text)
        elif isinstance(part, CallArguments) and isinstance(last, CallArguments):
            assert last.index == part.index
            whole[-1] = CallArguments(part.index, last.text + part.text)
        else:
            whole.append(part)
    return whole


def read(form: ToolFormat, pieces: Sequence[str], tools: Sequence[str] = TOOLS, **how: Any) -> list[Part]:
    reader = AnswerReader(form, tools, **how)
    return joined([part for piece in pieces for part in reader.feed(piece)] + reader.finish())


def call(index: int, name: str, arguments: str, *, whole: bool = True) -> list[Part]:
    return [CallBegun(index, name), CallArguments(index, arguments), CallEnded(index, whole)]


def pieces(vector: dict[str, Any], cuts: Iterable[int], *, has: int = 0) -> tuple[list[Said], int]:
    """The answer of a vector, cut at these places."""
    reader = reader_of(
        vector["format"], vector["tools"], reasons=vector["reasons"], thinking=vector["thinking"]
    )
    made, text, said, last = AnswerPieces(reader, has=has), vector["text"], list[Said](), 0
    for cut in [*cuts, len(text)]:
        said += made.feed(text[last:cut])
        last = cut
    return [*said, *made.finish(whole=True)], made.calls


def flat(said: Iterable[Said]) -> list[tuple[str, int, str]]:
    """Letter by letter: a name, or a letter of a text, with its channel."""
    letters: list[tuple[str, int, str]] = []
    for piece in said:
        letters += [(piece.channel, piece.call, piece.name)] if piece.name else []
        letters += [(piece.channel, piece.call, letter) for letter in piece.text]
    return letters


def content(text: str) -> list[Part]:
    return [Text("content", text)]


@pytest.mark.parametrize("vector", ANSWERS, ids=lambda each: str(each["name"]))
def test_an_answer_is_read_as_its_vector_says_however_it_comes(vector: dict[str, Any]) -> None:
    text = vector["text"]
    for cuts in ([], [1, 5, 6], range(len(text)), *([cut] for cut in range(1, len(text)))):
        said, calls = pieces(vector, cuts)
        assert flat(said) == flat([Said(*each) for each in vector["said"]])
        assert calls == vector["calls"]


@pytest.mark.parametrize("vector", ANSWERS, ids=lambda each: str(each["name"]))
def test_what_a_client_has_is_left_out_to_the_letter(vector: dict[str, Any]) -> None:
    whole = flat(pieces(vector, [])[0])
    at = 0
    for first in range(len(whole) + 1):
        said, _ = pieces(vector, [3, 10], has=at)
        assert flat(said) == whole[first:]
        if first < len(whole):
            at += len(whole[first][-1].encode())


@pytest.mark.parametrize("vector", ANSWERS, ids=lambda each: str(each["name"]))
def test_each_letter_makes_certain_what_its_vector_says(vector: dict[str, Any]) -> None:
    reader = reader_of(
        vector["format"], vector["tools"], reasons=vector["reasons"], thinking=vector["thinking"]
    )
    made, told = AnswerPieces(reader), list[int]()
    for letter in vector["text"]:
        made.feed(letter)
        told.append(made.bytes)
    assert told == [int(each) for each in vector["told"].split()]
    made.finish(whole=False)
    assert made.bytes == told[-1] or not reader.has_marks


@pytest.mark.parametrize("vector", ANSWERS, ids=lambda each: str(each["name"]))
def test_a_copy_reads_on_from_where_it_was_made_and_neither_hears_of_the_other(
    vector: dict[str, Any],
) -> None:
    text, whole = vector["text"], flat(pieces(vector, [])[0])
    for cut in range(0, len(text) + 1, 3):
        reader = reader_of(
            vector["format"], vector["tools"], reasons=vector["reasons"], thinking=vector["thinking"]
        )
        first = AnswerPieces(reader)
        said = first.feed(text[:cut])
        second = first.copy(has=0)
        first.feed('"}]} something else')
        assert flat([*said, *second.feed(text[cut:]), *second.finish(whole=True)]) == whole
        assert second.calls == vector["calls"]


@pytest.mark.parametrize("form", ["hermes/0", "hermes", "unknown/1", "/1"])
def test_a_format_of_another_version_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match="not known here"):
        reader_of(form, (), reasons=False, thinking=False)


def test_without_a_format_there_are_no_calls() -> None:
    reader = reader_of("", ("f",), reasons=False, thinking=False)
    text = '{"tool_calls": [{"name": "f", "arguments": {}}]}'
    assert [*reader.feed(text), *reader.finish()] == [Text("content", text)]


CASES: list[tuple[ToolFormat, str, list[Part] | None]] = [
    ("hermes", "Hello.", content("Hello.")),
    (
        "hermes",
        f'I look.\n<tool_call>\n{{"name": "weather", "arguments": {WEATHER}}}\n</tool_call>',
        [*content("I look.\n"), *call(0, "weather", WEATHER)],
    ),
    (
        "hermes",
        (
            '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>\n'
            '<tool_call>{"name": "weather"}</tool_call>done'
        ),
        [*call(0, "add", '{"a": 1}'), *content("\n"), *call(1, "weather", "{}"), *content("done")],
    ),
    (
        "hermes",
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 2}"}</tool_call>',
        call(0, "add", '{"a": 2}'),
    ),
    ("hermes", 'a <tool_call>{"name": "unknown", "arguments": {}}</tool_call>', None),
    ("hermes", "a <tool_call> is what it is called", None),
    ("hermes", 'a <tool_call>{"name": "add", "arguments": 7}</tool_call>', None),
    ("hermes", 'a <tool_call>{"name": 7, "arguments": {}}', None),
    ("hermes", "a <tool_cal", None),
    ("hermes", '{"name": "add", "arguments": {}}', None),
    (
        "hermes",
        '<tool_call>{"name": "add", "arguments": {"a": 1',
        call(0, "add", '{"a": 1', whole=False),
    ),
    (
        "hermes",
        '<tool_call>{"name": "add", "arguments": {"a": }}</tool_call>',
        call(0, "add", '{"a": }', whole=False),
    ),
    ("llama3", f' {{"name": "weather", "parameters": {WEATHER}}}', call(0, "weather", WEATHER)),
    (
        "llama3",
        (
            '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1}}; '
            '{"name": "add", "parameters": {}}'
        ),
        [*call(0, "add", '{"a": 1}'), *call(1, "add", "{}")],
    ),
    ("llama3", '{"answer": {"name": "add"}}', None),
    ("llama3", '{"name": "Ada", "age": 36}', None),
    ("llama3", 'The JSON is {"name": "add", "parameters": {}}', None),
    (
        "mistral",
        (
            '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}, "id": "123456789"}, '
            '{"name": "weather", "arguments": {}}]'
        ),
        [*call(0, "add", '{"a": 1}'), *call(1, "weather", "{}")],
    ),
    (
        "mistral",
        f"Well.[TOOL_CALLS]weather[ARGS]{WEATHER}",
        [*content("Well."), *call(0, "weather", WEATHER)],
    ),
    (
        "mistral",
        '[TOOL_CALLS]add[CALL_ID]abc123def[ARGS]{"a": 1}[TOOL_CALLS]find.all-files{"b": {"c": 1}}',
        [*call(0, "add", '{"a": 1}'), *call(1, "find.all-files", '{"b": {"c": 1}}')],
    ),
    ("mistral", '[TOOL_CALLS]unknown{"a": 1}', None),
    ("mistral", "[TOOL_CALLS] is a mark", None),
    (
        "generic",
        '{"tool_calls": [{"name": "add", "arguments": {"a": 1}}, {"name": "weather", "arguments": {}}]}',
        [*call(0, "add", '{"a": 1}'), *call(1, "weather", "{}")],
    ),
    (
        "generic",
        '{ "response": "Caf\\u00e9 \\ud83d\\ude00 \\"so\\"\\n\\\\ \\ud83d!" }',
        content('Café 😀 "so"\n\\ ?!'),
    ),
    ("generic", '{"other": 1}', None),
    ("generic", "just text", None),
]


def expected(form: str, text: str, parts: list[Part] | None) -> list[Part]:
    return content(text) if parts is None else parts


@pytest.mark.parametrize(("form", "text", "parts"), CASES)
def test_an_answer_is_read(form: ToolFormat, text: str, parts: list[Part] | None) -> None:
    assert read(form, [text]) == expected(form, text, parts)


@pytest.mark.parametrize(("form", "text", "parts"), CASES)
def test_an_answer_that_comes_letter_by_letter_is_read_alike(
    form: ToolFormat, text: str, parts: list[Part] | None
) -> None:
    assert read(form, list(text)) == expected(form, text, parts)


@pytest.mark.parametrize("form", FORMATS)
def test_without_tools_nothing_is_a_call(form: ToolFormat) -> None:
    for _, text, _ in CASES:
        assert read(form, [text], tools=()) == content(text)


@pytest.mark.parametrize("form", FORMATS)
def test_reasoning_comes_apart(form: ToolFormat) -> None:
    text = "<think>Hm, </thin. 2?</think>\nTwo."
    assert read(form, [text], reasons=True) == [Text("reasoning", "Hm, </thin. 2?"), *content("\nTwo.")]
    assert read(form, list(text), reasons=True) == read(form, [text], reasons=True)
    assert read(form, [text]) == content(text)


def test_reasoning_that_the_template_has_opened_is_reasoning_from_the_first_letter_on() -> None:
    text = 'I add.</think>{"name": "add", "parameters": {"a": 1}}'
    parts = [Text("reasoning", "I add."), *call(0, "add", '{"a": 1}')]
    assert read("llama3", list(text), thinking=True) == parts


def test_the_arguments_come_while_they_are_written() -> None:
    reader = AnswerReader("hermes", TOOLS)
    assert reader.feed('<tool_call>{"name": "add", "arguments": {"a"') == [
        CallBegun(0, "add"),
        CallArguments(0, '{"a"'),
    ]
    assert reader.feed(": 1") == [CallArguments(0, ": 1")]
    assert reader.feed("}}") == [CallArguments(0, "}"), CallEnded(0, whole=True)]


def test_a_call_that_is_nested_too_deep_or_too_long_is_content_or_broken() -> None:
    broken = read("llama3", ['{"name": "add", "arguments": ' + "[" * 100])
    assert isinstance(broken[0], Text)
    deep = '{"name": "add", "arguments": ' + "{" * 100 + "}"
    assert isinstance(read("llama3", [deep])[-2], CallEnded)
    long = '{"type": "' + "x" * 300_000
    assert read("llama3", [long]) == content(long)


@pytest.mark.parametrize("longer", [0, 1])
def test_a_call_has_a_bounded_number_of_letters(longer: int) -> None:
    head, tail = '{"name": "add", "arguments": {"a": "', '"}}'
    text = head + "x" * (CALL_MAX - len(head) - len(tail) + longer) + tail
    ended = read("llama3", [text])[2]
    assert ended == CallEnded(0, whole=not longer)


def test_a_long_call_that_comes_letter_by_letter_costs_a_like_effort_for_each_letter() -> None:
    reader = AnswerReader("llama3", TOOLS)
    arguments = '{"text": "' + "x" * 200_000 + '"}'
    parts = [
        part for letter in '{"name": "add", "parameters": ' + arguments + "}" for part in reader.feed(letter)
    ]
    assert (parts[0], parts[-1]) == (CallBegun(0, "add"), CallEnded(0, whole=True))
    assert "".join(part.text for part in parts if isinstance(part, CallArguments)) == arguments


@pytest.mark.parametrize("blanks", [255, 256, 300, 600])
@pytest.mark.parametrize(
    ("form", "before", "after"),
    [
        ("hermes", "<tool_call>", '{"name": "add", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "arguments": {}}', "</tool_call>"),
        ("llama3", "", '{"name": "add", "parameters": {}}'),
        ("llama3", '{"name": "add", "parameters": {}}', '{"name": "add", "parameters": {}}'),
        ("mistral", "[TOOL_CALLS]", '[{"name": "add", "arguments": {}}]'),
        ("mistral", "[TOOL_CALLS]add", '{"a": 1}'),
        ("mistral", '[TOOL_CALLS][{"name": "add", "arguments": {}}', "]"),
        ("generic", "", '{"response": "x"}'),
        ("generic", "{", '"tool_calls": [{"name": "add", "arguments": {}}]}'),
    ],
)
def test_many_blanks_are_read_alike_however_they_come(
    form: ToolFormat, before: str, after: str, blanks: int
) -> None:
    text = before + " " * blanks + after
    assert read(form, [text]) == read(form, list(text))


@pytest.mark.parametrize(
    ("form", "before", "unit", "size"),
    [
        ("mistral", "[TOOL_CALLS]", " ", 1),
        ("generic", "{", " ", 1),
        ("hermes", "", '<tool_call>{"a', 1 << 20),
    ],
)
def test_no_text_makes_the_effort_grow_with_what_was_read(
    form: ToolFormat, before: str, unit: str, size: int
) -> None:
    def seconds(letters: int) -> float:
        text = before + unit * (letters // len(unit))
        begun = time.process_time()
        read(form, [text[at : at + size] for at in range(0, len(text), size)])
        return time.process_time() - begun

    assert seconds(128_000) < 4 * 3 * seconds(32_000), "four times as much text"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("generic", '{"response": "' + "a\\n" * 5000 + '"}'),
        ("hermes", "a <tool_call>x" * 2000),
        ("mistral", "[TOOL_CALLS]add{}" * 500),
    ],
)
def test_no_part_of_an_answer_holds_what_a_part_before_it_held(form: ToolFormat, text: str) -> None:
    """To join each with all before it would take a time that grows with the square of the answer."""
    parts = AnswerReader(form, TOOLS).feed(text)
    sizes = [len(part.text) for part in parts if isinstance(part, Text | CallArguments)]
    assert max(sizes) <= 20
    assert sum(sizes) <= len(text)
    said = AnswerPieces(AnswerReader(form, TOOLS)).feed(text)
    assert len(said) <= 1 + 2 * sum(isinstance(part, CallBegun) for part in parts), "joined once, at the end"


def test_blanks_are_held_back_for_a_while_only() -> None:
    reader = AnswerReader("llama3", TOOLS)
    assert reader.feed(" " * 200) == []
    assert reader.feed(" " * 200) == content(" " * 400)


def test_an_answer_has_a_bounded_number_of_calls() -> None:
    one = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    parts = read("hermes", [one * (CALLS_MAX + 1)])
    assert sum(isinstance(part, CallBegun) for part in parts) == CALLS_MAX
    assert parts[-1] == Text("content", one)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("{{ '<|python_tag|>' }}", "llama3"),
        ("{% for message in messages %}", "generic"),
    ],
)
def test_the_format_is_that_of_the_template(template: str, form: ToolFormat) -> None:
    assert format_of(template) == form


PIECES = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>",
        '{"name": "add", "arguments": {"a": 1}}', '{"name": "add", "parameters": ', "{", "}", "[", "]",
        ",", ";", ":", '"', "\\", "\\u", "\\ud83d", "\\ude00", '"name"', '"add"', '"arguments"',
        '"response"', '"tool_calls"',
        '{"tool_calls": [', '{"response": "', "add", "x", " ", "\n", "é", "😀",
    ]
)  # fmt: skip


@given(st.sampled_from(FORMATS), st.lists(PIECES, max_size=24), st.data())
def test_however_the_text_is_cut_the_parts_are_the_same(
    form: ToolFormat, pieces: list[str], data: st.DataObject
) -> None:
    text = "".join(pieces)
    whole = read(form, [text], reasons=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(form, parts, reasons=True) == whole
    assert read(form, list(text), reasons=True) == whole


@given(st.sampled_from(FORMATS), st.lists(PIECES, max_size=24))
def test_every_call_begins_once_and_ends_once_and_a_whole_one_is_an_object(
    form: ToolFormat, pieces: list[str]
) -> None:
    under_way: int | None = None
    count, arguments = 0, ""
    for part in read(form, ["".join(pieces)]):
        match part:
            case CallBegun(index=index, name=name):
                assert (under_way, index, name) == (None, count, "add")
                under_way, arguments = index, ""
            case CallArguments(index=index, text=text):
                assert index == under_way
                arguments += text
            case CallEnded(index=index, whole=whole):
                assert index == under_way
                assert not whole or isinstance(json.loads(arguments), dict)
                under_way, count = None, count + 1
            case Text():
                assert under_way is None
    assert under_way is None


@given(st.sampled_from(("hermes", "mistral", "llama3")), st.lists(PIECES, max_size=24))
def test_no_text_is_lost(form: ToolFormat, pieces: list[str]) -> None:
    text = "".join(pieces)
    parts = read(form, [text])
    if not any(isinstance(part, CallBegun) for part in parts):
        assert parts == (content(text) if text else [])
