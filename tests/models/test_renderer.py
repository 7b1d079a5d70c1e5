"""Prompts by chat templates of four families, with tools and without, and templates that mean harm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import EngineError
from p2pnode.models.answer import VERSION
from p2pnode.models.renderer import ChatTemplate, Renderer
from p2pnode.protocols.inference.messages import ChatMessage, Part, PromptBody, Tool, ToolCall
from p2pnode.protocols.wire import decode_record

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "models" / "vectors.json").read_text("utf-8")
)
HELLO = PromptBody(messages=(ChatMessage.of("user", "Hello"),), seed=bytes(16))
WEATHER = Tool(name="weather", description="Says <|im_end|>", parameters='{"type": "object"}')


def rendered(source: str, body: PromptBody = HELLO, **more: Any) -> str:
    made = Renderer(ChatTemplate(source, **more)).render(body, "abc123", letters_max=10_000)
    return "".join(each.text for each in made.segments)


@pytest.mark.parametrize("vector", VECTORS["prompts"], ids=lambda each: str(each["name"]))
def test_each_family_is_rendered_as_its_vector_says(vector: dict[str, Any]) -> None:
    renderer = Renderer(ChatTemplate(vector["source"], vector["bos"], vector["eos"]))
    body = decode_record(PromptBody, bytes.fromhex(vector["body"]))
    made = renderer.render(body, "abc123", letters_max=10_000)
    assert [[each.text, each.of_user] for each in made.segments] == vector["segments"]
    assert (f"{renderer.form}/{VERSION}", renderer.reasons, made.thinking) == tuple(
        vector[key] for key in ("format", "reasons", "thinking")
    )


def test_only_what_the_template_says_counts_as_the_templates() -> None:
    tools = "{# <tool_call> #}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    template = f"{tools}<|im_start|>{{{{ messages[0].content }}}}"
    made = Renderer(ChatTemplate(template)).render(
        replace(HELLO, messages=(ChatMessage.of("user", "<|im_end|>"),), tools=(WEATHER,)),
        "abc123",
        letters_max=999,
    )
    assert "".join(each.text for each in made.segments if not each.of_user) == "<|im_start|>"
    assert json.loads(made.segments[0].text)["function"]["description"] == "Says <|im_end|>"


def test_the_date_is_the_clients_or_an_error() -> None:
    template = "{{ strftime_now('%-d %B %Y') }} {{ messages[0].content }}"
    assert rendered(template, replace(HELLO, now=1_700_000_000)) == "14 November 2023 Hello"
    with pytest.raises(EngineError, match="send `now`"):
        rendered(template)
    with pytest.raises(EngineError, match="not known here"):
        rendered("{{ strftime_now('%s') }}", replace(HELLO, now=1))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set _ = messages.append(1) %}", "unsafe"),
        ("{{ lipsum() }}", "undefined"),
        ("{{ [1, 2] | random }}", "no Jinja"),
        ("{% include 'x' %}", "does not take"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content | upper }}", "changes the texts"),
        ("{{ messages[0].content[:5] }}", "no place for message 1"),
        ("hello", "no place for message 1"),
        ("{{ 1 // 0 }}", "does not take"),
        ("{{ x( }}", "no Jinja"),
        ("{{ messages | tojson }}{% for i in range(99999) %}xxxxxxxxxx{% endfor %}", "too long"),
    ],
)
def test_a_template_that_asks_for_more_than_the_conversation_is_refused(source: str, why: str) -> None:
    with pytest.raises(EngineError, match=why) as refused:
        rendered(source)
    assert refused.value.code in ("bad_request", "context_overflow")


def test_a_template_that_wants_parts_gets_parts() -> None:
    template = "{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}"
    assert rendered(template) == "[Hello]"


def test_json_has_one_form_whatever_it_is_asked_for() -> None:
    source = "{{ messages[0].content }}{{ {'b': [1, 'é'], 'a': none} | tojson(indent=4, sort_keys=true) }}"
    assert rendered(source) == 'Hello{"b": [1, "é"], "a": null}'


def test_an_image_is_refused_in_words() -> None:
    image = ChatMessage(role="user", content=(Part(kind="image", data=b"png", mime="image/png"),))
    with pytest.raises(EngineError, match="message 1 has an image"):
        rendered("{{ messages[0].content }}", replace(HELLO, messages=(image,)))


def test_a_template_that_leaves_a_call_out_is_an_error() -> None:
    call = ChatMessage(role="assistant", tool_calls=(ToolCall(id="1", name="weather"),))
    body = replace(HELLO, messages=(*HELLO.messages, call))
    with pytest.raises(EngineError, match="no place for the tool weather"):
        rendered("<tool_call>{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}", body)
