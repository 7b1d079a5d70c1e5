"""Tools in words, for models whose templates know none: the ``generic`` form of ``models/answer.py``.

The system's text lists the tools, calls and their results are JSON in messages, and a grammar forces the
answer into the same form. Also the one form that JSON has in any prompt. Pure.
"""

from __future__ import annotations

import json
from typing import Any, Final

from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, Tool

_CALLING: Final = (
    "You can call tools. Answer with one JSON object and nothing else: "
    '{"tool_calls": [{"name": …, "arguments": {…}}]} calls tools, {"response": "…"} answers. '
)
_TOOLS: Final = "The tools, with the JSON Schemas of their arguments:\n"


def generic_messages(body: PromptBody) -> list[ChatMessage]:
    """The conversation in words only: tools in the system's text, calls and their results as JSON."""
    messages: list[ChatMessage] = []
    offered = body.tools if body.tool_choice != "none" else ()
    for message in body.messages:
        text = message.text
        if message.tool_calls:
            calls = [
                {"name": each.name, "arguments": json.loads(each.arguments)} for each in message.tool_calls
            ]
            text = json_text({"tool_calls": calls})
        elif message.role == "assistant" and offered:
            text = json_text({"response": text})
        elif message.role == "tool":
            result = {"tool_call_id": message.tool_call_id, "content": text}
            messages.append(ChatMessage.of("user", json_text({"tool_result": result})))
            continue
        if any(part.kind == "image" for part in message.content):
            messages.append(message)
        else:
            messages.append(ChatMessage.of(message.role, text))
    if offered:
        told = _CALLING + _TOOLS + "\n".join(json_text(function_of(tool)) for tool in offered)
        if messages and messages[0].role in ("system", "developer"):
            told = f"{messages[0].text}\n\n{told}"
            messages = messages[1:]
        messages.insert(0, ChatMessage.of("system", told))
    return messages


def json_text(value: Any) -> str:
    """JSON in the one form that prompts have: letters as they are, a blank after each comma and colon."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "), allow_nan=False)


def uses_tools(body: PromptBody) -> bool:
    return bool(body.tools) or any(each.tool_calls or each.role == "tool" for each in body.messages)


def function_of(tool: Tool) -> dict[str, Any]:
    parameters = json.loads(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}
