"""The OpenAPI document says what the faces read and write, and no more."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from p2pnode.gateway import app, chat, messages, responses
from p2pnode.gateway.faults import Fault, FaultError
from p2pnode.gateway.fields import Fields
from p2pnode.gateway.openapi import openapi_document
from p2pnode.gateway.turn import Ended, Served, Tally, routing_of
from p2pnode.protocols.inference.messages import ToolCall
from tests.gateway.support import stage
from tests.gateway.test_hostile_requests import CHAT, COMPLETION, MESSAGES, RESPONSES, STAMP, Reader

DOCUMENT = openapi_document()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
PIXEL = "data:image/png;base64,AAAA"
PARTS = [{"type": "input_image", "image_url": PIXEL}, {"type": "refusal", "refusal": "no"}]
GRAMMAR = {"type": "grammar", "grammar": "root ::= .*"}
DOC = {"type": "document", "source": {"type": "text", "data": "t"}}
MORE: list[tuple[str, Reader, list[dict[str, Any]]]] = [
    ("ChatRequest", chat.read_chat, [CHAT, {**CHAT, "response_format": GRAMMAR, "max_completion_tokens": 1}]),
    ("CompletionRequest", chat.read_completion, [COMPLETION, {**COMPLETION, "response_format": GRAMMAR}]),
    (
        "CompletionRequest",
        chat.read_completion,
        [{**COMPLETION, "response_format": CHAT["response_format"], "stream_options": {}}],
    ),
    (
        "ResponsesRequest",
        responses.read_response,
        [
            RESPONSES,
            {
                **RESPONSES,
                "tools": [],
                "text": {"format": {"type": "text"}},
                "input": [
                    {
                        "type": "message",
                        "role": "user",
                        "content": PARTS,
                    },
                    {"type": "function_call_output", "call_id": "a", "output": PARTS},
                ],
            },
        ],
    ),
    (
        "MessagesRequest",
        messages.read_messages,
        [MESSAGES, {**MESSAGES, "messages": [{"role": "user", "content": [DOC]}]}],
    ),
]
COPIED = {"ChatRequest": ("messages[].role", "messages[].content", "messages[].tool_call")}
"""What a reader copies before it looks into it: that these are read is for the tests of the reader."""


class Watched(dict[str, Any]):
    """An object of a request that notes which of its fields are asked for."""

    def __init__(self, value: dict[str, Any], path: str, asked: set[str]) -> None:
        super().__init__({name: watched(each, f"{path}{name}", asked) for name, each in value.items()})
        self._path, self._asked = path, asked

    def get(self, name: str, default: Any = None) -> Any:
        self._asked.add(self._path + name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self._asked.add(self._path + name)
        return super().__getitem__(name)


def watched(value: Any, path: str, asked: set[str]) -> Any:
    if isinstance(value, dict):
        return Watched(value, f"{path}." if path else "", asked)
    return [watched(each, f"{path}[]", asked) for each in value] if isinstance(value, list) else value


def documented(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of all fields that a schema names."""
    if "$ref" in schema:
        yield from documented(SCHEMAS[schema["$ref"].rpartition("/")[2]], path)
    for choice in schema.get("anyOf", ()):
        yield from documented(choice, path)
    if "items" in schema:
        yield from documented(schema["items"], f"{path}[]")
    for name, inner in schema.get("properties", {}).items():
        at = f"{path}.{name}" if path else name
        yield at
        yield from documented(inner, at)


def check(name: str, value: Any) -> None:
    """Raise where a value is not as the document has it."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def free(paths: set[str], name: str) -> set[str]:
    """Those that can be compared: not of the routing, which has a test of its own, nor by ids of tokens."""
    return {
        each for each in paths if not each.startswith(("p2pnode.", "logit_bias.", *COPIED.get(name, ("\0",))))
    }


@pytest.mark.parametrize("name", ["ChatRequest", "CompletionRequest", "ResponsesRequest", "MessagesRequest"])
def test_each_field_that_is_read_is_documented_or_refused_and_no_other_is(name: str) -> None:
    asked: set[str] = set()
    examples = [(read, each) for face, read, all_of in MORE if face == name for each in all_of]
    for read, example in examples:
        fields = Fields(watched(copy.deepcopy(example), "", asked))
        read(fields, STAMP)
        routing_of({}, fields)
    told = free(set(documented(SCHEMAS[name])), name)
    asked = free(asked, name)
    assert told - asked == set()
    for refused in asked - told:
        read, example = examples[0]
        if "." in refused:
            continue  # of an item of a kind that is skipped
        with pytest.raises(FaultError) as error:
            read(Fields({**example, refused: {"x": 1}}), STAMP)
        assert error.value.fault.param == refused


def test_each_name_of_the_routing_is_documented_as_field_and_as_header() -> None:
    names = set(SCHEMAS["Routing"]["properties"])
    for name in names:
        routing_of({}, Fields({"p2pnode": {name: None}}))
    with pytest.raises(FaultError, match="known are") as refused:
        routing_of({}, Fields({"p2pnode": {"x": None}}))
    known = str(refused.value).partition("known are ")[2]
    assert set(known.split(", ")) == names
    for path, operations in DOCUMENT["paths"].items():
        for each in (operations[method] for method in operations if method == "post"):
            headers = {one["name"].removeprefix("x-p2pnode-").replace("-", "_") for one in each["parameters"]}
            assert headers == names, path


def test_each_route_is_documented_and_no_other() -> None:
    source = Path(app.__file__).read_text()
    routes = set(re.findall(r'(?:_post|Route)\(\s*"([^"]+)"', source))
    assert {re.sub(":[a-z]+", "", each) for each in routes} == set(DOCUMENT["paths"])


def test_all_schemas_are_schemas_and_all_are_used() -> None:
    jsonschema.Draft202012Validator.check_schema({"$defs": SCHEMAS})
    used = set(re.findall(r"#/components/schemas/(\w+)", str(DOCUMENT)))
    assert used == set(SCHEMAS)


@pytest.mark.parametrize(("name", "read", "examples"), MORE)
def test_what_the_tests_send_is_as_documented(
    name: str, read: Reader, examples: list[dict[str, Any]]
) -> None:
    for example in examples:
        asked = read(Fields(example), STAMP)
        call = ToolCall(id="a", name="f", arguments="{}")
        answer = Ended(text="t", reasoning="r", calls=(call,), tally=Tally(tokens_in=1), served=Served())
        whole = asked.writer.whole([answer] * len(asked.turns))
        told = {
            "ChatRequest": "ChatCompletion",
            "CompletionRequest": "Completion",
            "ResponsesRequest": "Response",
            "MessagesRequest": "Message",
        }[name]
        check(told, whole)
        with pytest.raises(jsonschema.ValidationError):
            check(told, {**whole, "id": 1})
        sent = {**example, "input": example["input"][:3]} if name == "ResponsesRequest" else dict(example)
        sent["tools"] = sent.get("tools", [])[:1]  # the others are skipped, whatever they are
        check(name, sent)
        with pytest.raises(jsonschema.ValidationError):
            check(name, {**sent, "temperature": "hot"})


def test_faults_are_as_documented() -> None:
    fault = Fault(status=400, code="invalid_request", message="x", param="y")
    check("Error", chat.error_object(fault))
    check("MessagesError", messages.error_object(fault))


async def test_a_gateway_tells_its_document_and_what_it_has() -> None:
    async with stage(1) as s, s.http() as http:
        assert (await http.get("/openapi.json")).json() == DOCUMENT
        for path, name in (("/v1/models", "Models"), ("/health", "Health"), ("/", "Root")):
            check(name, (await http.get(path)).json())
        check("Model", (await http.get("/v1/models/scripted")).json())
