"""OpenAI's chat completions, and the completions before them: requests to turns, answers to objects. Pure.

https://platform.openai.com/docs/api-reference/chat and …/completions. Fields that mean nothing to a host
(``user``, ``metadata``, ``store``, ``service_tier`` …) are ignored, as servers of this API do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pnode.client.chat_options import tools_of
from p2pnode.client.question import chat_messages
from p2pnode.errors import ConfigError
from p2pnode.gateway.faults import Fault, FaultError, bad_request
from p2pnode.gateway.fields import Fields
from p2pnode.gateway.turn import (
    CHOICES_MAX,
    EXTENSION,
    TOKENS_MAX,
    Asked,
    Ended,
    Stamp,
    Tally,
    TokenSaid,
    Turn,
    event_frame,
    seed_in,
    served_fields,
    tally_of,
    with_choices,
)
from p2pnode.models.answer import Said
from p2pnode.protocols.inference.messages import (
    LOGPROBS_MAX,
    N_CTX_MAX,
    ChatMessage,
    FinishReason,
    LogitBias,
    ResponseFormat,
    SamplingParams,
    Tool,
    ToolCall,
)

_DONE: Final = event_frame(b"[DONE]")
_ALIVE: Final = b": waiting\n\n"
"""A comment: parsers of server-sent events pass over it."""
_FINISH: Final[dict[FinishReason, str]] = {
    "stop": "stop",
    "length": "length",
    "cancelled": "stop",
    "tool_calls": "tool_calls",
}
_ID_MAX: Final = 0xFFFFFFFF
_ID_DIGITS: Final = 10
_TYPES: Final = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}


# ---- reading


def read_chat(fields: Fields, stamp: Stamp) -> Asked:
    """A request of ``/v1/chat/completions``. Raises ``FaultError``."""
    given = fields.items("messages")
    if not given:
        raise fields.fault("messages", "give at least one")
    for name in ("functions", "function_call"):
        fields.refuse(name, "give tools instead, with tool_choice")
    fields.refuse("audio", "no host makes sound")
    if any(each != "text" for each in fields.texts("modalities")):
        raise fields.fault("modalities", "hosts answer with text only")
    top = fields.whole("top_logprobs", 0, 0, LOGPROBS_MAX)
    wants_logprobs = fields.flag("logprobs")
    if top and not wants_logprobs:
        raise fields.fault("top_logprobs", "needs logprobs to be true")
    tools, choice = read_tools(fields), _tool_choice(fields)
    turn = Turn(
        model=fields.model(),
        messages=_messages(fields, given),
        tools=tools,
        tool_choice=choice if tools or choice != "required" else "required",
        parallel_tool_calls=fields.flag("parallel_tool_calls", default=True),
        response_format=_response_format(fields),
        sampling=sampling_of(fields, _tokens_max(fields)),
        seed=seed_in(fields),
        logprobs=top if wants_logprobs else -1,
        conversation=fields.text("prompt_cache_key"),
    )
    count = fields.whole("n", 1, 1, CHOICES_MAX)
    stream = fields.flag("stream")
    writer = ChatWriter(
        stamp,
        turn.model,
        stream=stream,
        usage=fields.record("stream_options").flag("include_usage"),
        logprobs=wants_logprobs,
        choices=count,
    )
    return Asked(turns=with_choices(turn, count), writer=writer)


def read_completion(fields: Fields, stamp: Stamp) -> Asked:
    """A request of ``/v1/completions``: each prompt is what a user says. Raises ``FaultError``."""
    prompts = fields.texts("prompt")
    if not prompts or not all(prompts):
        raise fields.fault("prompt", "give a text, or a list of texts")
    fields.refuse("suffix", "hosts don't fill in the middle", unless=("",))
    fields.refuse("best_of", "ask with n, and choose yourself", unless=(1,))
    fields.refuse("echo", "the prompt is not repeated", unless=(False,))
    fields.refuse("functions", "tools are for /v1/chat/completions")
    fields.refuse("tools", "tools are for /v1/chat/completions", unless=([],))
    count = fields.whole("n", 1, 1, CHOICES_MAX)
    if len(prompts) * count > CHOICES_MAX:
        raise fields.fault("prompt", f"at most {CHOICES_MAX} answers are given to one request")
    logprobs = fields.whole("logprobs", -1, 0, LOGPROBS_MAX)
    turns: list[Turn] = []
    for prompt in prompts:
        turn = Turn(
            model=fields.model(),
            messages=(ChatMessage.of("user", prompt),),
            response_format=_response_format(fields),
            sampling=sampling_of(fields, fields.whole("max_tokens", TOKENS_MAX, 1, N_CTX_MAX)),
            seed=seed_in(fields),
            logprobs=logprobs,
            conversation=fields.text("prompt_cache_key"),
        )
        turns += with_choices(turn, count)
    writer = CompletionWriter(
        stamp,
        turns[0].model,
        stream=fields.flag("stream"),
        usage=fields.record("stream_options").flag("include_usage"),
        logprobs=logprobs >= 0,
        choices=len(turns),
    )
    return Asked(turns=tuple(turns), writer=writer)


def _messages(fields: Fields, given: Sequence[Any]) -> tuple[ChatMessage, ...]:
    made: list[ChatMessage] = []
    for index, each in enumerate(given):
        path = fields.at(f"messages[{index}]")
        if not isinstance(each, dict):
            raise bad_request(f"{path}: is an object with role and content", path)
        message = {key: value for key, value in each.items() if value is not None}
        if message.get("role") == "function":
            raise bad_request(f"{path}.role: the answer of a call has the role tool", path)
        try:
            made += chat_messages([{**message, "content": _content(message.get("content"))}], None)
        except ConfigError as error:
            raise bad_request(f"{path}: {error}", path) from error
    return tuple(made)


def _content(content: Any) -> Any:
    """Parts as the client knows them: a refusal is text that the model said."""
    if not isinstance(content, list):
        return content
    return [
        {"type": "text", "text": each.get("refusal")}
        if isinstance(each, dict) and each.get("type") == "refusal"
        else each
        for each in content
    ]


def read_tools(fields: Fields) -> tuple[Tool, ...]:
    """The functions among the tools; tools of other kinds are skipped, for no host has them."""
    found = [each for each in fields.items("tools") if _is_function(each)]
    try:
        return tools_of(found)
    except ConfigError as error:
        raise fields.fault("tools", str(error)) from error


def _is_function(tool: Any) -> bool:
    return not isinstance(tool, dict) or tool.get("type", "function") == "function"


def _tool_choice(fields: Fields) -> str:
    value = fields.any("tool_choice")
    if isinstance(value, dict):
        named = fields.record("tool_choice")
        return f"name:{named.record('function').needed('name')}"
    choice = fields.text("tool_choice", "auto")
    if choice not in ("auto", "none", "required"):
        raise fields.fault(
            "tool_choice", 'is "auto", "none", "required", or an object with a function\'s name'
        )
    return choice


def _response_format(fields: Fields) -> ResponseFormat:
    form = fields.record("response_format")
    match kind := form.text("type", "text"):
        case "text" | "json_object":
            return ResponseFormat(kind=kind)
        case "json_schema":
            schema = form.record("json_schema").record("schema").value
            return ResponseFormat(kind="json_schema", body=json.dumps(schema, ensure_ascii=False))
        case "grammar":
            return ResponseFormat(kind="grammar", body=form.needed("grammar"))
        case _:
            raise form.fault("type", "is text, json_object, json_schema or grammar")


def _tokens_max(fields: Fields) -> int:
    name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    return fields.whole(name, TOKENS_MAX, 1, N_CTX_MAX)


def sampling_of(fields: Fields, tokens_max: int) -> SamplingParams:
    """How tokens are drawn; what the request does not say is as everywhere here."""
    usual = SamplingParams()
    repeat = "repeat_penalty" if "repeat_penalty" in fields else "repetition_penalty"
    return SamplingParams(
        tokens_max=tokens_max,
        temperature=fields.number("temperature", usual.temperature, 0, 5),
        top_p=fields.number("top_p", usual.top_p, 0, 1),
        top_k=fields.whole("top_k", usual.top_k, -1, 1 << 20) if fields.any("top_k") != -1 else 0,
        min_p=fields.number("min_p", usual.min_p, 0, 1),
        repeat_penalty=fields.number(repeat, usual.repeat_penalty, 0.1, 10),
        presence_penalty=fields.number("presence_penalty", usual.presence_penalty, -2, 2),
        frequency_penalty=fields.number("frequency_penalty", usual.frequency_penalty, -2, 2),
        logit_bias=_logit_bias(fields),
        stop=tuple(each for each in fields.texts("stop") if each),
    )


def _logit_bias(fields: Fields) -> tuple[LogitBias, ...]:
    given = fields.record("logit_bias")
    made: list[LogitBias] = []
    for name in given.value:
        digits = name.lstrip("0") or "0"
        is_number = name.isascii() and name.isdigit() and len(digits) <= _ID_DIGITS
        if not is_number or int(digits) > _ID_MAX:
            raise given.fault(name, "is no token's id")
        made.append(LogitBias(id=int(digits), bias=given.number(name, 0.0, -100, 100)))
    return tuple(made)


# ---- writing


def error_object(fault: Fault) -> dict[str, Any]:
    """A fault as OpenAI's API has it."""
    kind = _TYPES.get(fault.status, "invalid_request_error" if fault.status < 500 else "server_error")  # noqa: PLR2004
    return {"error": {"message": fault.message, "type": kind, "param": fault.param, "code": fault.code}}


def usage_object(tally: Tally) -> dict[str, Any]:
    """Tokens as OpenAI's API counts them: the prompt with what was in a cache."""
    return {
        "prompt_tokens": tally.tokens_in,
        "completion_tokens": tally.tokens_out,
        "total_tokens": tally.tokens_in + tally.tokens_out,
        "prompt_tokens_details": {"cached_tokens": tally.reused},
    }


def dumped(value: Mapping[str, Any]) -> bytes:
    """JSON without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


@dataclass(frozen=True, slots=True)
class _Kind:
    prefix: str
    whole: str
    chunk: str


class ChatWriter:
    """Answers as ``chat.completion`` or ``chat.completion.chunk``."""

    _kind = _Kind("chatcmpl-", "chat.completion", "chat.completion.chunk")

    def __init__(
        self, stamp: Stamp, model: str, *, stream: bool, usage: bool, logprobs: bool, choices: int
    ) -> None:
        self.stream = stream
        self._usage, self._logprobs, self._choices = usage, logprobs, choices
        self._head = {"id": self._kind.prefix + stamp.id, "created": stamp.created, "model": model}

    def whole(self, ended: Sequence[Ended]) -> dict[str, Any]:
        """All answers as one object."""
        return {
            **self._head,
            "object": self._kind.whole,
            "choices": [self._choice(index, each) for index, each in enumerate(ended)],
            "usage": self._tallied(ended),
        }

    def _tallied(self, ended: Sequence[Ended]) -> dict[str, Any]:
        tally = tally_of(ended)
        return {**usage_object(tally), EXTENSION: served_fields(ended[-1].served, tally.cost)}

    def _choice(self, index: int, ended: Ended) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": ended.text, "refusal": None}
        if ended.reasoning:
            message |= {"reasoning_content": ended.reasoning, "reasoning": ended.reasoning}
        if ended.calls:
            message["content"] = ended.text or None
            message["tool_calls"] = [_call_object(each) for each in ended.calls]
        logprobs = {"content": logprob_objects(ended.logprobs), "refusal": None} if self._logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": _FINISH[ended.finish],
        }

    def begin(self) -> bytes:
        """The role of each answer."""
        first = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, first) for index in range(self._choices))

    def said(self, choice: int, said: Said, call_id: str, logprobs: Sequence[TokenSaid]) -> bytes:
        """A delta: text, a thought by both names that it goes by, or a piece of a call."""
        delta: dict[str, Any]
        match said.channel:
            case "content":
                delta = {"content": said.text}
            case "reasoning":
                delta = {"reasoning_content": said.text, "reasoning": said.text}
            case "call":
                delta = {"tool_calls": [_call_delta(said, call_id)]}
        return self._chunk(choice, delta, logprobs=logprobs)

    def ended(self, choice: int, ended: Ended) -> bytes:
        """The delta with the reason."""
        return self._chunk(choice, {}, logprobs=ended.logprobs, finish=_FINISH[ended.finish])

    def finish(self, ended: Sequence[Ended]) -> bytes:
        """The usage, where it was asked for, and the mark of the end."""
        if not self._usage:
            return _DONE
        return self._frame({"choices": [], "usage": self._tallied(ended)}) + _DONE

    def idle(self) -> bytes:
        """A comment."""
        return _ALIVE

    def failed(self, error: FaultError) -> bytes:
        """The error as an event, and the mark of the end."""
        return event_frame(dumped(error_object(error.fault))) + _DONE

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: Sequence[TokenSaid] = (),
        finish: str | None = None,
    ) -> bytes:
        told = {"content": logprob_objects(logprobs), "refusal": None} if logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": finish}
        return self._frame({"choices": [choice], **({"usage": None} if self._usage else {})})

    def _frame(self, more: dict[str, Any]) -> bytes:
        return event_frame(dumped({**self._head, "object": self._kind.chunk, **more}))


class CompletionWriter(ChatWriter):
    """Answers as ``text_completion``: the content only."""

    _kind = _Kind("cmpl-", "text_completion", "text_completion")

    def __init__(
        self, stamp: Stamp, model: str, *, stream: bool, usage: bool, logprobs: bool, choices: int
    ) -> None:
        super().__init__(stamp, model, stream=stream, usage=usage, logprobs=logprobs, choices=choices)
        self._lengths = [0] * choices

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def _choice(self, index: int, ended: Ended) -> dict[str, Any]:
        return self._piece(index, ended.text, ended.logprobs, _FINISH[ended.finish])

    def said(
        self,
        choice: int,
        said: Said,
        call_id: str,  # noqa: ARG002 - there are no calls
        logprobs: Sequence[TokenSaid],
    ) -> bytes:
        """A piece of the text; of thoughts the log-probabilities only."""
        text = said.text if said.channel == "content" else ""
        if not (text or logprobs):
            return b""
        return self._frame({"choices": [self._piece(choice, text, logprobs, None)]})

    def ended(self, choice: int, ended: Ended) -> bytes:
        """The piece with the reason."""
        piece = self._piece(choice, "", ended.logprobs, _FINISH[ended.finish])
        return self._frame({"choices": [piece]})

    def _piece(
        self, index: int, text: str, logprobs: Sequence[TokenSaid], finish: str | None
    ) -> dict[str, Any]:
        told = self._told(index, logprobs) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": told, "finish_reason": finish}

    def _told(self, index: int, logprobs: Sequence[TokenSaid]) -> dict[str, Any]:
        offsets = []
        for each in logprobs:
            offsets.append(self._lengths[index])
            self._lengths[index] += len(each.text)
        return {
            "tokens": [each.text for each in logprobs],
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": [{text: logprob for text, _, logprob in each.top} for each in logprobs],
            "text_offset": offsets,
        }


def _call_object(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _call_delta(said: Said, call_id: str) -> dict[str, Any]:
    """Id, type and name come once; then the arguments only."""
    if said.name:
        function = {"name": said.name, "arguments": said.text}
        return {"index": said.call, "id": call_id, "type": "function", "function": function}
    return {"index": said.call, "function": {"arguments": said.text}}


def logprob_objects(logprobs: Sequence[TokenSaid]) -> list[dict[str, Any]]:
    """Log-probabilities as OpenAI's API has them."""
    return [
        {
            "token": each.text,
            "bytes": list(each.data),
            "logprob": each.logprob,
            "top_logprobs": [
                {"token": text, "bytes": list(data), "logprob": logprob} for text, data, logprob in each.top
            ],
        }
        for each in logprobs
    ]
