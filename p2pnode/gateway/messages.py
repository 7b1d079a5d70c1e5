"""Anthropic's messages: requests to turns, answers to content blocks. Pure.

https://docs.anthropic.com/en/api/messages and …/messages-streaming. What changes nothing at a host
(``metadata``, ``cache_control``, ``service_tier``) is ignored, and tools that Anthropic's own servers run are
skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from p2pnode.client.chat_options import tools_of
from p2pnode.errors import ConfigError
from p2pnode.gateway.chat import dumped
from p2pnode.gateway.faults import Fault, FaultError
from p2pnode.gateway.fields import Fields, read_object
from p2pnode.gateway.turn import (
    EXTENSION,
    TOKENS_MAX,
    Asked,
    Ended,
    Stamp,
    Tally,
    TokenSaid,
    Turn,
    event_frame,
    joined,
    picture,
    served_fields,
)
from p2pnode.models.answer import Said
from p2pnode.protocols.inference.messages import (
    N_CTX_MAX,
    ChatMessage,
    FinishReason,
    Part,
    ResponseFormat,
    SamplingParams,
    Tool,
    ToolCall,
)

BILLING: Final = "x-anthropic-billing-header"
"""Claude Code begins a block of its system prompt so. It changes with each request, and would cost the cache
of all that follows it."""
_STOP: Final[dict[FinishReason, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "cancelled": "end_turn",
    "tool_calls": "tool_use",
}
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def read_messages(fields: Fields, stamp: Stamp) -> Asked:
    """A request of ``/v1/messages``. Raises ``FaultError``."""
    turn = read_turn(fields)
    thinking = fields.record("thinking").text("type") in ("enabled", "adaptive")
    writer = MessagesWriter(stamp, turn.model, stream=fields.flag("stream"), thinking=thinking)
    return Asked(turns=(turn,), writer=writer)


def read_turn(fields: Fields) -> Turn:
    """What is asked, also where it is only to be counted. Raises ``FaultError``."""
    given = list(fields.objects("messages"))
    if not given:
        raise fields.fault("messages", "give at least one")
    system = _system(fields)
    messages = [*system, *(made for each in given for made in _messages_of(each))]
    if not messages:
        raise fields.fault("messages", "say nothing that a model reads: give a text, a picture or a result")
    choice = fields.record("tool_choice")
    return Turn(
        model=fields.model(),
        messages=tuple(messages),
        tools=_tools(fields),
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=not choice.flag("disable_parallel_tool_use"),
        response_format=_response_format(fields),
        sampling=_sampling(fields),
    )


def _response_format(fields: Fields) -> ResponseFormat:
    form = fields.record("output_config").record("format")
    if not form.value:
        return ResponseFormat()
    if form.text("type") != "json_schema":
        raise form.fault("type", "is json_schema")
    body = json.dumps(form.record("schema").value, ensure_ascii=False)
    return ResponseFormat(kind="json_schema", body=body)


def _sampling(fields: Fields) -> SamplingParams:
    usual = SamplingParams()
    return SamplingParams(
        tokens_max=fields.whole("max_tokens", TOKENS_MAX, 1, N_CTX_MAX),
        temperature=fields.number("temperature", usual.temperature, 0, 1),
        top_p=fields.number("top_p", usual.top_p, 0, 1),
        top_k=fields.whole("top_k", usual.top_k, 0, 1 << 20),
        stop=tuple(each for each in fields.texts("stop_sequences") if each),
    )


def _system(fields: Fields) -> list[ChatMessage]:
    if isinstance(fields.any("system"), str):
        texts = [fields.text("system")]
    else:
        texts = [each.text("text") for each in fields.objects("system")]
    told = "\n\n".join(text for text in texts if text and not text.lower().startswith(BILLING))
    return [ChatMessage.of("system", told)] if told else []


def _messages_of(message: Fields) -> Iterator[ChatMessage]:
    """One message: results of tools are messages of their own, before what else a user says."""
    role = message.needed("role")
    if role not in ("user", "assistant", "system"):
        raise message.fault("role", "is user or assistant")
    if isinstance(message.any("content"), str):
        yield ChatMessage.of(role, message.text("content"))  # type: ignore[arg-type]
        return
    blocks = list(message.objects("content"))
    if role == "user":
        yield from (_result(each) for each in blocks if each.text("type") == "tool_result")
    parts = joined([part for each in blocks for part in _parts(each)])
    calls = [_call(each) for each in blocks if each.text("type") == "tool_use"] if role == "assistant" else []
    if parts or calls:
        yield ChatMessage(role=role, content=parts, tool_calls=tuple(calls))  # type: ignore[arg-type]


def _parts(block: Fields) -> Iterator[Part]:
    """What a block says. Calls, results and thoughts say nothing; a thought of before helps no model here."""
    match kind := block.text("type"):
        case "text":
            yield Part(text=block.text("text"))
        case "image":
            source = block.record("source")
            if source.text("type") != "base64":
                raise source.fault("type", "is base64, for a host fetches nothing")
            yield picture(source, source.text("media_type"), source.text("data"), "data")
        case "document":
            source = block.record("source")
            if source.text("type") != "text":
                raise source.fault("type", "is text: hosts read no other documents")
            yield Part(text=source.text("data"))
        case "tool_use" | "tool_result" | "thinking" | "redacted_thinking":
            return
        case "server_tool_use" | "web_search_tool_result" | "tool_reference":
            return
        case _:
            raise block.fault(
                "type", f"{kind[:40]!r} is not known here: text, image, tool_use, tool_result are"
            )


def _call(block: Fields) -> ToolCall:
    arguments = json.dumps(block.record("input").value, ensure_ascii=False)
    return ToolCall(id=block.needed("id"), name=block.needed("name"), arguments=arguments)


def _result(block: Fields) -> ChatMessage:
    if isinstance(block.any("content"), str):
        parts = [Part(text=block.text("content"))]
    else:
        parts = [part for each in block.objects("content") for part in _parts(each)]
    if block.flag("is_error") and not parts:
        parts = [Part(text="error")]
    return ChatMessage(role="tool", content=joined(parts), tool_call_id=block.needed("tool_use_id"))


def _tools(fields: Fields) -> tuple[Tool, ...]:
    functions = []
    for each in fields.objects("tools"):
        if each.text("type", "custom") == "custom":
            schema = each.record("input_schema").value
            functions.append(
                {"name": each.needed("name"), "description": each.text("description"), "parameters": schema}
            )
    try:
        return tools_of(functions)
    except ConfigError as error:
        raise fields.fault("tools", str(error)) from error


def _tool_choice(choice: Fields) -> str:
    kind = choice.text("type", "auto")
    if kind == "tool":
        return f"name:{choice.needed('name')}"
    if kind not in _CHOICES:
        raise choice.fault("type", "is auto, any, tool or none")
    return _CHOICES[kind]


# ---- writing


def error_object(fault: Fault) -> dict[str, Any]:
    """A fault as Anthropic's API has it."""
    kind = _TYPES.get(fault.status, "api_error" if fault.status >= 500 else "invalid_request_error")  # noqa: PLR2004
    return {"type": "error", "error": {"type": kind, "message": fault.message, "code": fault.code}}


def usage_object(tally: Tally) -> dict[str, int]:
    """Tokens as Anthropic's API counts them: what was in a cache is no input."""
    return {
        "input_tokens": tally.tokens_in - tally.reused,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tally.reused,
        "output_tokens": tally.tokens_out,
    }


class MessagesWriter:
    """An answer as a ``message`` of blocks."""

    def __init__(self, stamp: Stamp, model: str, *, stream: bool, thinking: bool) -> None:
        """``thinking``: thoughts are told, too."""
        self.stream, self._thinking = stream, thinking
        self._head = {"id": f"msg_{stamp.id}", "type": "message", "role": "assistant", "model": model}
        self._blocks = 0
        """How many have begun."""
        self._open: tuple[str, int] | None = None
        """The channel and call of the block that is open."""

    def whole(self, ended: Sequence[Ended]) -> dict[str, Any]:
        """The answer as one object."""
        (answer,) = ended
        content: list[dict[str, Any]] = []
        if answer.reasoning and self._thinking:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        content += [
            {"type": "tool_use", "id": each.id, "name": each.name, "input": _input(each)}
            for each in answer.calls
        ]
        return {
            **self._head,
            "content": content,
            **_stop_of(answer),
            "usage": self._usage(answer),
        }

    def _usage(self, answer: Ended) -> dict[str, Any]:
        return {**usage_object(answer.tally), EXTENSION: served_fields(answer.served, answer.tally.cost)}

    def begin(self) -> bytes:
        """The message without content. Its tokens are counted when it ends."""
        start: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_object(Tally()),
        }
        return _frame("message_start", {"message": start})

    def said(
        self,
        choice: int,  # noqa: ARG002 - there is one
        said: Said,
        call_id: str,
        logprobs: Sequence[TokenSaid],  # noqa: ARG002 - nobody can ask for them
    ) -> bytes:
        """A delta of a block, which begins with the first one."""
        if said.channel == "reasoning" and not self._thinking:
            return b""
        frames = b""
        if self._open != (said.channel, said.call):
            frames += self._close()
            self._open = said.channel, said.call
            frames += _frame(
                "content_block_start",
                {"index": self._blocks, "content_block": _block(said, call_id)},
            )
            self._blocks += 1
        if said.text:
            frames += _frame("content_block_delta", {"index": self._blocks - 1, "delta": _delta(said)})
        return frames

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _frame("content_block_stop", {"index": self._blocks - 1})

    def ended(self, choice: int, ended: Ended) -> bytes:  # noqa: ARG002 - there is one
        """The end of the last block, and why the answer ends."""
        return self._close() + _frame(
            "message_delta", {"delta": _stop_of(ended), "usage": self._usage(ended)}
        )

    def finish(self, ended: Sequence[Ended]) -> bytes:  # noqa: ARG002 - all is told
        """The end of the message."""
        return _frame("message_stop", {})

    def idle(self) -> bytes:
        """A ping, as an event: comments don't count for programs that watch for one."""
        return _frame("ping", {})

    def failed(self, error: FaultError) -> bytes:
        """The error as an event."""
        return event_frame(dumped(error_object(error.fault)), "error")


def _stop_of(ended: Ended) -> dict[str, str | None]:
    if ended.stop:
        return {"stop_reason": "stop_sequence", "stop_sequence": ended.stop}
    return {"stop_reason": _STOP[ended.finish], "stop_sequence": None}


def _block(said: Said, call_id: str) -> dict[str, Any]:
    match said.channel:
        case "content":
            return {"type": "text", "text": ""}
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "call":
            return {"type": "tool_use", "id": call_id, "name": said.name, "input": {}}


def _delta(said: Said) -> dict[str, Any]:
    match said.channel:
        case "content":
            return {"type": "text_delta", "text": said.text}
        case "reasoning":
            return {"type": "thinking_delta", "thinking": said.text}
        case "call":
            return {"type": "input_json_delta", "partial_json": said.text}


def _input(call: ToolCall) -> Any:
    """The arguments as an object. A call that was cut by the end of the answer has none that are whole, and
    a stranger's machine may have written what is no JSON, such as NaN."""
    try:
        return read_object(call.arguments.encode(errors="replace")).value
    except FaultError:
        return {}


def _frame(name: str, fields: dict[str, Any]) -> bytes:
    return event_frame(dumped({"type": name, **fields}), name)
