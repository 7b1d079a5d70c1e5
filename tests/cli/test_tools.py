"""``ask`` with tools, schemas and conversations from files."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trio

from p2pnode.cli.tool_results import ToolProgram
from p2pnode.protocols.inference.messages import ToolCall
from tests.cli.support import Program, Ran, ask, join, run, start

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
        },
    },
}
SCHEMA_OF_WEATHER: Any = WEATHER["function"]["parameters"]  # type: ignore[index]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["n"],
}


@pytest.fixture
def files(tmp_path: Path) -> Any:
    """Writes a value into a file."""

    def write(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
        return path

    return write


def at(host: Program) -> tuple[str, ...]:
    return ("--peer", host.multiaddr, "--no-mdns")


def test_a_tool_that_must_be_called_is_printed_with_its_arguments(
    host: Program, data_dir: Path, files: Any
) -> None:
    flags = ("--tool", files("t.json", WEATHER), "--tool-choice", "weather", "--max-tokens", 500)
    ran = ask(data_dir, "Rain?", *at(host), *flags)
    assert ran.code == 0, ran.err
    for line in filter(None, ran.out.splitlines()):  # of parallel calls there may be several
        name, _, rest = line.partition("(")
        assert name == "weather"
        jsonschema.validate(json.loads(rest.removesuffix(")")), SCHEMA_OF_WEATHER)


def test_a_script_gets_the_call_in_pieces(host: Program, data_dir: Path, files: Any) -> None:
    flags = ("--tool", files("t.json", [WEATHER]), "--tool-choice", "required", "--max-tokens", 500, "--json")
    ran = ask(data_dir, "Rain?", *at(host), *flags)
    pieces = [each for each in ran.events if each["event"] == "tool_call"]
    assert pieces[0]["name"] == "weather"
    assert len(pieces[0]["id"]) == 9
    arguments = json.loads("".join(each["arguments"] for each in pieces if each["index"] == 0))
    assert arguments["days"] in (1, 2, 3)
    assert ran.named("done")[0]["reason"] == "tool_calls"


def test_an_answer_fits_the_schema_of_a_file(host: Program, data_dir: Path, files: Any) -> None:
    ran = ask(data_dir, "How many?", *at(host), "--schema", files("s.json", SCHEMA))
    jsonschema.validate(json.loads(ran.out), SCHEMA)


def test_a_conversation_comes_from_a_file_with_calls_and_results(
    host: Program, data_dir: Path, files: Any
) -> None:
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
    }
    said = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "rain"},
    ]
    flags = ("--tool", files("t.json", WEATHER), "--messages", files("m.json", said), "--max-tokens", 10)
    for question in ((), ("And tomorrow?",)):
        ran = ask(data_dir, *question, *at(host), *flags)
        assert (ran.code, len(ran.out) > 5) == (0, True), ran.err


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--tool", "nowhere.json"), "--tool: nowhere.json can't be read"),
        (("--tool-choice", "rain"), "none of the tools"),
        (("--schema", "/dev/zero"), "--schema: /dev/zero has more than 64 MiB"),
        (("--format", "xml"), "--format: 'xml' is neither"),
        (("--format", "json", "--schema", "s.json"), "--schema and --format don't go together"),
        (("--messages", "nowhere.json"), "--messages: nowhere.json can't be read"),
    ],
)
def test_files_and_words_that_make_no_sense_are_named(
    data_dir: Path, flags: tuple[str, ...], why: str
) -> None:
    ran = ask(data_dir, "hi", "--no-mdns", *flags)
    assert ran.code == 2
    assert why in ran.err


def test_files_that_hold_something_else_are_named(data_dir: Path, files: Any) -> None:
    for flag, content, why in (
        ("--tool", "{", "is no JSON"),
        ("--tool", {"description": "x"}, "each tool is"),
        ("--schema", [1], "it must be an object"),
        ("--schema", {"items": [[[]] * 5000]}, "4096 values"),
        ("--schema", nested(500), "levels deep: at most 32 are taken"),
        ("--schema", '{"items":' * 90_000 + "{}" + "}" * 90_000, "deeper than 32 levels"),
        ("--schema", {"items": {"type": "strng"}}, 'at #/items has the type "strng": known are string,'),
        ("--schema", {"type": "string", "pattern": "(a"}, "a bracket that is not closed"),
        ("--schema", {"maxLength": 2000}, "'maxLength' of 2000: at most 1000"),
        (
            "--tool",
            {"name": "f", "parameters": {"properties": {"x": {"type": "strng"}}}},
            "f at #/properties/x",
        ),
        ("--tool", {"name": "f", "parameters": nested(500)}, "levels deep: at most 32 are taken"),
        ("--tool", {"name": "f", "parameters": {"items": {"pattern": "a)"}}}, "closes nothing: mend it"),
        ("--messages", {}, "no list of messages"),
        ("--messages", [{"role": "wizard", "content": "x"}], "each message is"),
    ):
        ran = ask(data_dir, "hi", "--no-mdns", flag, files("x.json", content))
        assert (ran.code, why in ran.err) == (2, True), (flag, ran.err)


def nested(depth: int) -> Any:
    return {"items": nested(depth - 1)} if depth > 1 else {}


def test_nothing_to_ask_is_said(data_dir: Path) -> None:
    ran = ask(data_dir, "--no-mdns")
    assert (ran.code, "give a question" in ran.err) == (2, True)


@pytest.mark.long
def test_a_call_of_the_real_model_goes_on_when_its_host_is_killed_and_its_result_is_answered(
    tmp_path: Path, files: Any
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 40, "maxLength": 60},
            "days": {"enum": [1, 2, 3]},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    tool = {"name": "weather", "description": "The weather of a city", "parameters": schema}
    model, flags = "smollm2-135m-instruct", ("--threads", 1)
    with (
        join(tmp_path, "a", *flags, model=model) as one,
        join(tmp_path, "b", *flags, "--bootstrap", one.multiaddr, model=model) as two,
    ):
        data_dir = tmp_path / "c"
        run("models", "pull", model, "--data-dir", data_dir)
        common: tuple[object, ...] = (
            "--model",
            model,
            "--no-mdns",
            "--temperature",
            0,
            "--data-dir",
            data_dir,
            "--tool",
            files("t", tool),
        )
        common += ("--bootstrap", one.multiaddr, "--bootstrap", two.multiaddr)
        asked = ["ask", "What is the weather in Oslo?", *common, "--tool-choice", "required", "--json"]
        with start(tmp_path, "ask", asked) as asking:
            asking.wait_event("tool_call", count=4)
            peer = asking.wait_event("host")["peer"]
            next(host for host in (one, two) if host.ready["peer_id"] == peer).kill()
            assert asking.wait() == 0
            done, calls = asking.wait_event("done"), [e for e in asking.events if e["event"] == "tool_call"]
            assert asking.wait_event("failover")["held"] > 0
        first, second = done["bill"]
        assert first["tokens_out"] + second["tokens_out"] == done["tokens_out"]
        assert second["tokens_in"] == first["tokens_in"] + first["tokens_out"]
        assert "not_checked" not in asking.names  # both hosts' pieces are those of their tokens
        arguments = "".join(each["arguments"] for each in calls if each["index"] == 0)
        assert calls[0]["name"] == "weather"
        jsonschema.validate(json.loads(arguments), schema)
        function = {"name": "weather", "arguments": arguments}
        said = [
            {"role": "user", "content": "What is the weather in Oslo?"},
            {
                "role": "assistant",
                "tool_calls": [{"id": calls[0]["id"], "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": calls[0]["id"], "content": "Rain, 8 degrees."},
        ]
        ran = run("ask", *common, "--messages", files("m", said), "--max-tokens", 60, "--json")
        assert ran.code == 0, ran.err
        assert [event["event"] for event in ran.events if event["event"] in ("text", "tool_call")]


def text(least: int) -> dict[str, Any]:
    """Texts that are long enough for a host to be killed in one."""
    return {"type": "string", "minLength": least, "maxLength": least + 20}


def record(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


LONG_SCHEMAS: dict[str, Any] = {
    "a record of texts": record(title=text(40), body=text(80), year={"type": "integer", "minimum": 1900}),
    "a list of records": {
        "type": "array",
        "items": record(name=text(10), legs={"type": "integer", "minimum": 0, "maximum": 8}),
        "minItems": 6,
        "maxItems": 7,
    },
    "a choice by a tag, by reference": {
        "$defs": {
            "letter": record(kind={"const": "letter"}, text=text(120)),
            "parcel": record(kind={"const": "parcel"}, label=text(60), content=text(60)),
        },
        "oneOf": [{"$ref": "#/$defs/letter"}, {"$ref": "#/$defs/parcel"}],
    },
    "numbers and dates": {
        "type": "array",
        "items": record(
            day={"type": "string", "format": "date"},
            degrees={"type": "number", "minimum": -90, "maximum": 90},
        ),
        "minItems": 8,
        "maxItems": 8,
    },
}


@pytest.mark.long
def test_answers_of_the_real_model_fit_their_schemas_when_their_hosts_are_killed_in_the_middle(
    tmp_path: Path, files: Any, record_property: Callable[[str, object], None]
) -> None:
    model, flags = "smollm2-135m-instruct", ("--threads", 1)
    ended: Counter[str] = Counter()
    with ExitStack() as stack:
        one = stack.enter_context(join(tmp_path, "a", *flags, model=model))
        two = stack.enter_context(join(tmp_path, "b", *flags, "--bootstrap", one.multiaddr, model=model))
        hosts = {"a": one, "b": two}
        for number, (name, schema) in enumerate(LONG_SCHEMAS.items()):
            asked: list[object] = ["ask", f"Give me an example of {name} as JSON.", "--model", model]
            asked += ["--no-mdns", "--temperature", 0, "--max-tokens", 400, "--data-dir", tmp_path / "c"]
            asked += ["--schema", files(f"{number}.json", schema)]
            for host in hosts.values():
                asked += ["--bootstrap", host.multiaddr]
            with start(tmp_path, f"ask {number}", asked) as asking:
                asking.wait_event("text", count=2 + number)
                peer = asking.wait_event("host")["peer"]
                (killed,) = [key for key, host in hosts.items() if host.ready["peer_id"] == peer]
                hosts[killed].kill()
                (other,) = [host for key, host in hosts.items() if key != killed]
                assert asking.wait(90) == 0, asking.err
                done = asking.wait_event("done")
                moved = asking.wait_event("failover")
            first, second = done["bill"]
            assert moved["to"] == done["host"] == other.ready["peer_id"]
            assert first["tokens_out"] == moved["held"] > 0
            assert first["tokens_out"] + second["tokens_out"] == done["tokens_out"]
            assert second["tokens_in"] == first["tokens_in"] + first["tokens_out"]
            ended[done["reason"]] += 1
            if done["reason"] == "stop":
                said = "".join(event["text"] for event in asking.events if event["event"] == "text")
                jsonschema.validate(json.loads(said), schema)
            again = join(tmp_path, killed, *flags, "--bootstrap", other.multiaddr, model=model)
            hosts[killed] = stack.enter_context(again)
    record_property("answers", dict(ended))
    assert set(ended) <= {"stop", "length"}
    assert ended["stop"] >= len(LONG_SCHEMAS) - 1, dict(ended)


# ---- a conversation with tools


PROGRAM = """#!/bin/sh
test "$1" = weather || exit 3
printf 'rain in '; cat
"""


def talk(data_dir: Path, host: Program, *lines: str, flags: tuple[object, ...]) -> Ran:
    """``chat`` with the tool, which it must call first."""
    given: tuple[object, ...] = ("--model", "scripted", "--peer", host.multiaddr, "--data-dir", data_dir)
    given += ("--temperature", 0)
    given += ("--max-tokens", 500, "--tool-choice", "weather", "--json", *flags)
    return run("chat", *given, stdin="".join(f"{line}\n" for line in lines))


def test_in_a_chat_the_next_line_is_the_result_of_a_call_and_the_answer_goes_on_from_it(
    host: Program, data_dir: Path, files: Any
) -> None:
    tool = ("--tool", files("t.json", WEATHER))
    ran = talk(data_dir, host, "Rain?", *["It rains."] * 40, flags=tool)
    assert ran.code in (0, 4), ran.err  # so many results may outgrow the context
    wanted = ran.named("result_wanted")
    assert wanted
    for each in wanted:
        assert each["name"] == "weather"
        jsonschema.validate(json.loads(each["arguments"]), SCHEMA_OF_WEATHER)
    first, second = ran.named("done")[:2]
    assert first["reason"] == "tool_calls"
    assert second["tokens_in"] > first["tokens_in"] + 9  # the calls and their results went along


def test_in_a_chat_a_program_gives_results_when_it_may_and_else_is_asked_for_with_enter(
    host: Program, data_dir: Path, files: Any
) -> None:
    program = files("weather.sh", PROGRAM)
    program.chmod(0o755)
    flags = ("--tool", files("t.json", WEATHER), "--tool-command", program)
    by_itself = talk(data_dir, host, "Rain?", "/exit", flags=(*flags, "--yes"))
    assert by_itself.code == 0, by_itself.err
    (run_first, *_) = by_itself.named("running")
    assert (run_first["name"], run_first["program"]) == ("weather", str(program))
    arguments = by_itself.named("result")[0]["result"].removeprefix("rain in ")
    jsonschema.validate(json.loads(arguments), SCHEMA_OF_WEATHER)
    asked = talk(data_dir, host, "Rain?", "", "/skip", flags=flags)
    assert asked.code == 0, asked.err
    assert asked.named("result")[0]["result"] == by_itself.named("result")[0]["result"]
    assert asked.named("result_wanted")


def test_a_chat_says_which_flag_for_its_tools_makes_no_sense(data_dir: Path, files: Any) -> None:
    for flags, why in (
        (("--tool-command", "true"), "name them with --tool"),
        (("--tool", files("t.json", WEATHER), "--tool-command", files("x", "")), "is no program"),
        (("--tool-choice", "rain"), "none of the tools"),
        (("--schema", files("s.json", {"type": "strng"})), "--schema: the schema of the response format"),
    ):
        ran = run("chat", "--model", "scripted", "--no-mdns", "--data-dir", data_dir, *flags, stdin="")
        assert (ran.code, why in ran.err) == (2, True), ran.err


def test_the_answers_of_a_chat_fit_the_schema_of_a_file(host: Program, data_dir: Path, files: Any) -> None:
    given = ("--model", "scripted", "--peer", host.multiaddr, "--data-dir", data_dir, "--json")
    ran = run("chat", *given, "--schema", files("s.json", SCHEMA), stdin="How many?\nAnd now?\n")
    pieces = "".join(each.get("text", "\n") for each in ran.events if each["event"] in ("text", "done"))
    answers = pieces.splitlines()
    assert len(answers) == len(ran.named("done")) == 2
    for said in answers:
        jsonschema.validate(json.loads(said), SCHEMA)


async def test_a_program_does_not_hear_a_ctrl_c_that_is_for_the_chat(files: Any) -> None:
    program = files("group", f"#!{sys.executable}\nimport os\nprint(os.getpgrp())\n")
    program.chmod(0o755)
    call = ToolCall(id="abcdefghi", name="weather", arguments="{}")
    said = await ToolProgram(str(program), asks=False).run(call)
    assert int(said) != os.getpgrp()


async def test_a_program_that_is_stopped_leaves_nothing_behind(files: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    program = files("long", f"#!/bin/sh\n(echo here; sleep 600) > {tmp_path / 'held'} &\nwait\n")
    program.chmod(0o755)
    call = ToolCall(id="abcdefghi", name="weather", arguments="{}")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ToolProgram(str(program), asks=False).run, call)
            async with await trio.open_file(tmp_path / "held") as held:
                assert await held.readline() == "here\n"
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert await held.read() == "", "the pipe ends when nobody holds it any more"
