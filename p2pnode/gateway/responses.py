"""OpenAI's responses, without state: requests to turns, answers to items and their events. Pure.

https://platform.openai.com/docs/api-reference/responses and …/responses-streaming. A request brings the whole
conversation, as Codex sends it; nothing is stored, so that nothing can be referred to. Tools that are no
functions (web search, custom tools) are skipped, and so are calls of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from p2pnode.client.chat_options import tools_of
from p2pnode.errors import ConfigError
from p2pnode.gateway.chat import dumped, error_object, logprob_objects
from p2pnode.gateway.faults import FaultError
from p2pnode.gateway.fields import Fields
from p2pnode.gateway.turn import (
    EXTENSION,
    TOKENS_MAX,
    Asked,
    Ended,
    Stamp,
    TokenSaid,
    Turn,
    event_frame,
    joined,
    picture,
    served_fields,
)
from p2pnode.models.answer import Said
from p2pnode.protocols.inference.messages import (
    LOGPROBS_MAX,
    N_CTX_MAX,
    ChatMessage,
    FinishReason,
    Part,
    ResponseFormat,
    SamplingParams,
    Tool,
    ToolCall,
)

_STATE: Final = "this gateway keeps no state: send the whole conversation as input"
_SKIPPED: Final = frozenset(
    {
        "reasoning", "custom_tool_call", "custom_tool_call_output", "local_shell_call",
        "local_shell_call_output", "web_search_call", "file_search_call", "image_generation_call",
        "compaction",
    }
)  # fmt: skip
"""Items of tools that no host has, and thoughts of before."""
_CHANNELS: Final = {"content": "message", "reasoning": "reasoning", "call": "function_call"}
_LOGPROBS: Final = "message.output_text.logprobs"


def read_response(fields: Fields, stamp: Stamp) -> Asked:
    """A request of ``/v1/responses``. Raises ``FaultError``."""
    fields.refuse("previous_response_id", _STATE)
    fields.refuse("conversation", _STATE)
    fields.refuse("prompt", "templates of prompts are not kept here")
    fields.refuse("background", "send it with background false, and wait", unless=(False,))
    messages = [*_instructions(fields), *_input(fields)]
    if not messages:
        raise fields.fault("input", "give a text, or a list of items")
    wants_logprobs = _LOGPROBS in fields.items("include")
    top = fields.whole("top_logprobs", 0, 0, LOGPROBS_MAX)
    usual = SamplingParams()
    turn = Turn(
        model=fields.model(),
        messages=tuple(messages),
        tools=_tools(fields),
        tool_choice=_tool_choice(fields),
        parallel_tool_calls=fields.flag("parallel_tool_calls", default=True),
        response_format=_response_format(fields.record("text").record("format")),
        sampling=SamplingParams(
            tokens_max=fields.whole("max_output_tokens", TOKENS_MAX, 1, N_CTX_MAX),
            temperature=fields.number("temperature", usual.temperature, 0, 2),
            top_p=fields.number("top_p", usual.top_p, 0, 1),
        ),
        logprobs=top if wants_logprobs else -1,
        conversation=fields.text("prompt_cache_key"),
    )
    return Asked(turns=(turn,), writer=ResponsesWriter(stamp, turn, fields, stream=fields.flag("stream")))


def _instructions(fields: Fields) -> list[ChatMessage]:
    text = fields.text("instructions")
    return [ChatMessage.of("system", text)] if text else []


def _input(fields: Fields) -> list[ChatMessage]:
    if isinstance(fields.any("input"), str):
        return [ChatMessage.of("user", fields.text("input"))]
    made: list[ChatMessage] = []
    for item in fields.objects("input"):
        _add(item, made)
    return made


def _add(item: Fields, made: list[ChatMessage]) -> None:
    """Add what an item says. A call belongs to the message of the assistant before it."""
    match kind := item.text("type", "message"):
        case "message":
            role = item.needed("role")
            if role not in ("user", "assistant", "system", "developer"):
                raise item.fault("role", "is user, assistant, system or developer")
            made.append(ChatMessage(role=role, content=_parts(item, "content")))  # type: ignore[arg-type]
        case "function_call":
            name, arguments = item.needed("name"), item.text("arguments") or "{}"
            call = ToolCall(id=item.needed("call_id"), name=name, arguments=arguments)
            follows = bool(made) and made[-1].role == "assistant"
            said = made.pop() if follows else ChatMessage(role="assistant")
            made.append(replace(said, tool_calls=(*said.tool_calls, call)))
        case "function_call_output":
            call_id, output = item.needed("call_id"), _parts(item, "output")
            made.append(ChatMessage(role="tool", content=output, tool_call_id=call_id))
        case _ if kind in _SKIPPED:
            return
        case "item_reference":
            raise item.fault("type", _STATE)
        case _:
            raise item.fault("type", f"{kind[:40]!r} is not known here")


def _parts(item: Fields, name: str) -> tuple[Part, ...]:
    """A text, or parts of it: the output of a tool may be either."""
    if isinstance(item.any(name), str):
        return joined([Part(text=item.text(name))])
    return joined([_part(each) for each in item.objects(name)])


def _part(part: Fields) -> Part:
    match kind := part.text("type", "input_text"):
        case "input_text" | "output_text" | "text":
            return Part(text=part.text("text"))
        case "refusal":
            return Part(text=part.text("refusal"))
        case "input_image":
            head, _, data = part.text("image_url").partition(";base64,")
            if not head.startswith("data:"):
                raise part.fault("image_url", "is a data: URL with base64, for a host fetches nothing")
            return picture(part, head.removeprefix("data:"), data, "image_url")
        case _:
            raise part.fault("type", f"{kind[:40]!r} is not known here: input_text and input_image are")


def _tools(fields: Fields) -> tuple[Tool, ...]:
    functions = [
        {
            "name": each.needed("name"),
            "description": each.text("description"),
            "parameters": each.any("parameters"),
        }
        for each in fields.objects("tools")
        if each.text("type") == "function"
    ]
    try:
        return tools_of(functions)
    except ConfigError as error:
        raise fields.fault("tools", str(error)) from error


def _tool_choice(fields: Fields) -> str:
    if isinstance(fields.any("tool_choice"), dict):
        choice = fields.record("tool_choice")
        if choice.text("type") != "function":
            raise choice.fault("type", "is function: hosts have no other tools")
        return f"name:{choice.needed('name')}"
    return fields.text("tool_choice", "auto")


def _response_format(form: Fields) -> ResponseFormat:
    match kind := form.text("type", "text"):
        case "text" | "json_object":
            return ResponseFormat(kind=kind)
        case "json_schema":
            body = json.dumps(form.record("schema").value, ensure_ascii=False)
            return ResponseFormat(kind="json_schema", body=body)
        case _:
            raise form.fault("type", "is text, json_object or json_schema")


class ResponsesWriter:
    """An answer as a ``response``: an item for each thought, text and call, in their order."""

    def __init__(self, stamp: Stamp, turn: Turn, fields: Fields, *, stream: bool) -> None:
        self.stream, self._stamp = stream, stamp
        self._with_logprobs = turn.logprobs >= 0
        self._sequence = 0
        self._items: list[dict[str, Any]] = []
        """Those that have begun; all but the last one are whole."""
        self._open: tuple[str, int] | None = None
        self._text = ""
        """Of the item that is open."""
        self._logprobs: list[TokenSaid] = []
        self._head = {
            "id": f"resp_{stamp.id}",
            "object": "response",
            "created_at": stamp.created,
            "model": turn.model,
            "instructions": fields.any("instructions"),
            "max_output_tokens": fields.any("max_output_tokens"),
            "metadata": fields.record("metadata").value,
            "parallel_tool_calls": turn.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": turn.sampling.temperature,
            "top_p": turn.sampling.top_p,
            "text": {"format": fields.record("text").any("format") or {"type": "text"}},
            "tool_choice": fields.any("tool_choice") or "auto",
            "tools": [each for each in fields.items("tools") if each.get("type") == "function"],
            "truncation": "disabled",
            "user": fields.any("user"),
        }

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        told = {"error": None, "incomplete_details": None, "usage": None, "output": self._items}
        return {**self._head, "status": status, **told, **more}

    # ---- whole

    def whole(self, ended: Sequence[Ended]) -> dict[str, Any]:
        """The answer as one object."""
        (answer,) = ended
        if answer.reasoning:
            self._begin(Said("reasoning", ""), "")
            self._text = answer.reasoning
            self._close()
        if answer.text:
            self._begin(Said("content", ""), "")
            self._text, self._logprobs = answer.text, list(answer.logprobs)
            self._close()
        for index, call in enumerate(answer.calls):
            self._begin(Said("call", "", index, call.name), call.id)
            self._text = call.arguments
            self._close()
        return self._final(answer)

    def _final(self, answer: Ended) -> dict[str, Any]:
        tally = answer.tally
        usage = {
            "input_tokens": tally.tokens_in,
            "input_tokens_details": {"cached_tokens": tally.reused},
            "output_tokens": tally.tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tally.tokens_in + tally.tokens_out,
            EXTENSION: served_fields(answer.served, tally.cost),
        }
        details = {"reason": "max_output_tokens"} if answer.finish == "length" else None
        return self._response(_status(answer.finish), usage=usage, incomplete_details=details)

    # ---- as it comes

    def begin(self) -> bytes:
        """The response without output."""
        response = self._response("in_progress", output=[])
        return self._frame("response.created", response=response) + self._frame(
            "response.in_progress", response=response
        )

    def said(
        self,
        choice: int,  # noqa: ARG002 - there is one
        said: Said,
        call_id: str,
        logprobs: Sequence[TokenSaid],
    ) -> bytes:
        """A delta of an item, which begins with the first one."""
        frames = delta = b""
        if self._open != (said.channel, said.call):
            frames += self._close() + self._begin(said, call_id)
        self._text += said.text
        self._logprobs += logprobs
        if not said.text:
            return frames
        match said.channel:
            case "content":
                told = logprob_objects(logprobs) if self._with_logprobs else []
                delta = self._part_frame("response.output_text.delta", delta=said.text, logprobs=told)
            case "reasoning":
                delta = self._part_frame("response.reasoning_text.delta", delta=said.text)
            case "call":
                delta = self._item_frame("response.function_call_arguments.delta", delta=said.text)
        return frames + delta

    def _begin(self, said: Said, call_id: str) -> bytes:
        self._open, self._text, self._logprobs = (said.channel, said.call), "", []
        kind = _CHANNELS[said.channel]
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        item: dict[str, Any] = {"id": f"{prefix}_{self._stamp.id}{len(self._items)}", "type": kind}
        item["status"] = "in_progress"
        match said.channel:
            case "content":
                item |= {"role": "assistant", "content": []}
            case "reasoning":
                item |= {"summary": [], "content": []}
            case "call":
                item |= {"call_id": call_id, "name": said.name, "arguments": ""}
        self._items.append(item)
        frames = self._frame("response.output_item.added", output_index=len(self._items) - 1, item=dict(item))
        if said.channel != "call":
            frames += self._part_frame("response.content_part.added", part=self._part())
        return frames

    def _part(self) -> dict[str, Any]:
        if self._open is not None and self._open[0] == "reasoning":
            return {"type": "reasoning_text", "text": self._text}
        told = logprob_objects(self._logprobs) if self._with_logprobs else []
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": told}

    def _close(self) -> bytes:
        """End the item that is open, if there is one."""
        if self._open is None:
            return b""
        item, channel = self._items[-1], self._open[0]
        item["status"] = "completed"
        if channel == "call":
            item["arguments"] = self._text or "{}"
            name, arguments = item["name"], item["arguments"]
            frames = self._item_frame("response.function_call_arguments.done", name=name, arguments=arguments)
        else:
            part = self._part()
            item["content"] = [part]
            done = "response.output_text.done" if channel == "content" else "response.reasoning_text.done"
            more = {"logprobs": part["logprobs"]} if channel == "content" else {}
            frames = self._part_frame(done, text=self._text, **more)
            frames += self._part_frame("response.content_part.done", part=part)
        self._open = None
        return frames + self._frame("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def ended(self, choice: int, ended: Ended) -> bytes:  # noqa: ARG002 - there is one
        """The end of the last item."""
        self._logprobs += ended.logprobs
        return self._close()

    def finish(self, ended: Sequence[Ended]) -> bytes:
        """The whole response."""
        (answer,) = ended
        return self._frame(f"response.{_status(answer.finish)}", response=self._final(answer))

    def idle(self) -> bytes:
        """That it goes on. A comment would not count for programs that wait for an event."""
        return self._frame("response.in_progress", response=self._response("in_progress"))

    def failed(self, error: FaultError) -> bytes:
        """The response with its error."""
        told = error_object(error.fault)["error"]
        failure = {"code": told["code"], "message": told["message"]}
        return self._frame("response.failed", response=self._response("failed", error=failure))

    def _item_frame(self, event: str, **fields: Any) -> bytes:
        at = len(self._items) - 1
        return self._frame(event, item_id=self._items[at]["id"], output_index=at, **fields)

    def _part_frame(self, event: str, **fields: Any) -> bytes:
        return self._item_frame(event, content_index=0, **fields)

    def _frame(self, event: str, **fields: Any) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return event_frame(dumped({"type": event, "sequence_number": number, **fields}), event)


def _status(finish: FinishReason) -> str:
    return "incomplete" if finish == "length" else "completed"
