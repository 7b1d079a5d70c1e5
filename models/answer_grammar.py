"""``answer_grammar``: what an answer may say where the prompt, or the model's template, leaves it no choice.

A grammar is needed for a response format, for a call that must be made, and for every answer of a model whose
template knows no tools: such a model is told of them in words, and writes its calls in the ``generic`` form.
Where a model may call tools in a form that it was trained on, it writes as it likes.

Pure.
"""

from __future__ import annotations

import json
from typing import Final

from p2pnode.models.answer import ToolFormat
from p2pnode.models.grammar import Grammar, GrammarError, Rule, Symbol, letters
from p2pnode.models.json_schema import add_object, add_schema, check_schema
from p2pnode.protocols.inference.messages import PromptBody, Tool

_RESPONSE_FORMAT: Final = "the schema of the response format"


def answer_grammar(
    body: PromptBody, form: ToolFormat, *, reasons: bool = False, thinking: bool = False
) -> Grammar | None:
    """The grammar of the answer to ``body`` by a model that writes calls in ``form``; None where it is free.

    ``reasons`` and ``thinking`` are those of ``AnswerReader``. Raises ``GrammarError``.
    """
    grammar = Grammar()
    said = _content(grammar, body)
    tools = body.tools if body.tool_choice != "none" else ()
    if tools:
        chosen = [tool for tool in tools if body.tool_choice in ("auto", "required", f"name:{tool.name}")]
        must = body.tool_choice != "auto"
        if not must and said is None and form != "generic":
            return None
        calls = _calls(grammar, chosen, form, several=body.parallel_tool_calls)
        if must:
            answer = calls
        elif said is None:
            letter = add_schema(grammar, '{"type":"string"}', "an answer")
            answer = grammar.rule((calls,), ('{"response": ', letter, "}"))
        else:
            if form == "generic":
                _require_distinct(body)
            answer = grammar.rule((calls,), (said,))
    elif said is not None:
        answer = said
    else:
        return None
    grammar.set("root", (*_thoughts(grammar, reasons=reasons, thinking=thinking), answer))
    return grammar


def check_answer_form(body: PromptBody) -> None:
    """Check that hosts can force the answer's form, and that the tools' parameters are schemas.

    For a client, before it looks for a host. What depends on a model's template is left to hosts, and so is
    a grammar in an engine's own notation. Raises ``GrammarError``.
    """
    if body.response_format.kind == "json_schema":
        add_schema(Grammar(), body.response_format.body, _RESPONSE_FORMAT)
    for tool in body.tools:
        if tool.parameters:
            check_schema(tool.parameters, f"the parameters of {tool.name}")


def _content(grammar: Grammar, body: PromptBody) -> Rule | None:
    match body.response_format.kind:
        case "text":
            return None
        case "json_object":
            return add_object(grammar)
        case "json_schema":
            return add_schema(grammar, body.response_format.body, _RESPONSE_FORMAT)
        case "grammar":
            msg = "this engine takes no grammar of its own notation: send a JSON schema"
            raise GrammarError(msg)


def _require_distinct(body: PromptBody) -> None:
    """The generic form tells calls from other JSON by its first property."""
    text = body.response_format.body
    if body.response_format.kind != "json_schema" or any(
        f'"{name}"' in text for name in ("tool_calls", "response")
    ):
        msg = (
            "this model's template knows no tools: beside tools it takes a response format of type "
            "json_schema only, without properties named tool_calls or response"
        )
        raise GrammarError(msg)


def _calls(grammar: Grammar, tools: list[Tool], form: ToolFormat, *, several: bool) -> Rule:
    key = "parameters" if form == "llama3" else "arguments"
    call = grammar.rule(
        *[(f'{{"name": {json.dumps(tool.name)}, "{key}": ', _arguments(grammar, tool), "}") for tool in tools]
    )
    match form:
        case "hermes":
            one: tuple[Symbol, ...] = ("<tool_call>\n", call, "\n</tool_call>")
            more = grammar.many("\n", grammar.rule(one)) if several else ""
            return grammar.rule((*one, more))
        case "llama3":
            return call  # of several, models of this family write one
        case "mistral" | "generic":
            pass
    opens, closes = ("[TOOL_CALLS][", "]") if form == "mistral" else ('{"tool_calls": [', "]}")
    return grammar.rule((opens, call, grammar.many(", ", call) if several else "", closes))


def _arguments(grammar: Grammar, tool: Tool) -> Rule:
    """The arguments of a call: any object where a grammar can't say what the tool's schema says.

    A tool checks its arguments itself; only a response format promises more than an object.
    """
    if tool.parameters:
        text, where = tool.parameters, f"the parameters of {tool.name}"
        try:
            trial = Grammar()
            trial.set("root", (add_schema(trial, text, where),))
        except GrammarError:
            return add_object(grammar)
        if json.loads(text).get("type") == "object":
            return add_schema(grammar, text, where)
    return add_object(grammar)


def _thoughts(grammar: Grammar, *, reasons: bool, thinking: bool) -> tuple[Symbol, ...]:
    """What a model thinks before it answers: anything without ``</``, to its end."""
    if not (reasons or thinking):
        return ()
    name = grammar.reserve()
    again = Rule(name)
    # One way only for each letter, so that no text stands at several places.
    tail = grammar.rule((letters("<", "/", negated=True), again), ("/think>",))
    grammar.set(name, (letters("<", negated=True), again), ("<", tail))
    blank = grammar.optional("\n")
    thought: tuple[Symbol, ...] = (again, blank, blank)
    return thought if thinking else (grammar.optional("<think>", *thought),)
