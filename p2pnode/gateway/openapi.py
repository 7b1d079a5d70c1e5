"""The gateway's API as an OpenAPI document, which ``GET /openapi.json`` answers. Pure.

Bounds stand here by the constants that readers and the wire check. A field that means nothing to a host is
not in it; who sends one is answered all the same. A test holds each field that a reader asks for against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import p2pnode
from p2pnode.config import HEDGES
from p2pnode.gateway.fields import NAME_MAX
from p2pnode.gateway.turn import CHOICES_MAX, EXTENSION, HEADER, TOKENS_MAX
from p2pnode.protocols.inference.messages import LOGPROBS_MAX, N_CTX_MAX, TOOLS_MAX

Schema = dict[str, Any]
_TEXT: Final[Schema] = {"type": "string"}
_FLAG: Final[Schema] = {"type": "boolean"}
_ANY_OBJECT: Final[Schema] = {"type": "object"}
_MODEL: Final[Schema] = {
    "type": "string",
    "maxLength": NAME_MAX,
    "description": "A name of `GET /v1/models`, a model's id, or an alias.",
}
_STOP: Final[Schema] = {
    "anyOf": [
        {"type": "string", "maxLength": 256},
        {"type": "array", "items": {"type": "string", "maxLength": 256}, "maxItems": 8},
    ]
}
_TOOL_NAME: Final[Schema] = {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"}
_ID: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 64}
_USDC: Final[Schema] = {
    "anyOf": [
        {"type": "string", "pattern": r"^[0-9]{1,12}(\.[0-9]{1,6})?$"},
        {"type": "number", "minimum": 0, "maximum": 10**12},
    ],
    "description": "USDC, with six digits after the point at most; a price is per million tokens.",
}
_HOSTS: Final[Schema] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "Peer ids or wallets: a list, or a text with commas.",
}
_JSON: Final = "application/json"
_STREAM: Final = "text/event-stream"


def _whole(low: int, high: int, **more: Any) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def _number(low: float, high: float, **more: Any) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high, **more}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Mapping[str, Schema], required: Sequence[str] = (), **more: Any) -> Schema:
    """An object of a request. A field that is null counts as one that is not there."""
    told = {name: schema if name in required else _or_null(schema) for name, schema in properties.items()}
    made: Schema = {"type": "object", "properties": told, **more}
    return {**made, "required": list(required)} if required else made


def _or_null(schema: Schema) -> Schema:
    if "type" in schema and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _given(properties: Mapping[str, Schema], **more: Any) -> Schema:
    """An object of an answer, which has all of these fields."""
    return {"type": "object", "properties": dict(properties), "required": list(properties), **more}


def _kind(*names: str) -> Schema:
    return {"type": "string", "enum": list(names)}


# ---- requests

_TOKENS: Final = _whole(1, N_CTX_MAX, default=TOKENS_MAX)
_SAMPLING: Final[dict[str, Schema]] = {
    "temperature": _number(0, 5),
    "top_p": _number(0, 1),
    "top_k": _whole(-1, 1 << 20),
    "min_p": _number(0, 1),
    "repeat_penalty": _number(0.1, 10),
    "repetition_penalty": _number(0.1, 10, description="Another name of repeat_penalty."),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": _number(-100, 100),
        "maxProperties": 300,
        "description": "By the token's id.",
    },
    "stop": _STOP,
    "seed": _whole(-(1 << 63), (1 << 64) - 1),
}
_ASKED: Final[dict[str, Schema]] = {
    "model": _MODEL,
    "stream": _FLAG,
    "stream_options": _object({"include_usage": _FLAG}),
    "n": _whole(1, CHOICES_MAX, default=1),
    "prompt_cache_key": {"type": "string", "description": "Names the conversation."},
    "response_format": _ref("ResponseFormat"),
    EXTENSION: _ref("Routing"),
}
_FUNCTION: Final = _object(
    {"name": _TOOL_NAME, "description": {"type": "string", "maxLength": 8192}, "parameters": _ANY_OBJECT},
    ["name"],
)
_BASE64: Final = "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_DATA_URL: Final[Schema] = {"type": "string", "pattern": f"^data:image/[a-z]{{1,8}};base64,{_BASE64}"}
_CALL: Final = _object(
    {
        "id": _ID,
        "type": _kind("function"),
        "function": _object(
            {"name": _TOOL_NAME, "arguments": {"type": "string", "description": "An object, as JSON."}},
            ["name", "arguments"],
        ),
    },
    ["id", "function"],
)


def _content(parts: str) -> Schema:
    return {"anyOf": [_TEXT, _list(_ref(parts), maxItems=64)]}


_REQUESTS: Final[dict[str, Schema]] = {
    "Routing": _object(
        {
            "max_price": {"anyOf": [*_USDC["anyOf"], _object({"in": _USDC, "out": _USDC})]},
            "max_cost": _USDC,
            "host": _HOSTS,
            "exclude": _HOSTS,
            "trust": _HOSTS,
            "min_reputation": _number(0, 1),
            "quantisation": _TEXT,
            "verified": _kind("always", "paid", "never"),
            "hedge": _kind(*HEDGES),
            "conversation": _TEXT,
        },
        additionalProperties=False,
        description="Which hosts a request may be sent to. A name that is not known is refused.",
    ),
    "ResponseFormat": {
        "anyOf": [
            _object({"type": _kind("text", "json_object")}, ["type"]),
            _object(
                {"type": _kind("json_schema"), "json_schema": _object({"schema": _ANY_OBJECT}, ["schema"])},
                ["type", "json_schema"],
            ),
            _object(
                {"type": _kind("grammar"), "grammar": {"type": "string", "minLength": 1}},
                ["type", "grammar"],
            ),
        ]
    },
    "ChatPart": {
        "anyOf": [
            _object({"type": _kind("text"), "text": _TEXT}, ["type", "text"]),
            _object(
                {"type": _kind("image_url"), "image_url": _object({"url": _DATA_URL}, ["url"])},
                ["type", "image_url"],
            ),
            _object({"type": _kind("refusal"), "refusal": _TEXT}, ["type", "refusal"]),
        ]
    },
    "ChatMessage": {
        "anyOf": [
            _object(
                {"role": _kind("system", "developer", "user"), "content": _content("ChatPart")},
                ["role", "content"],
            ),
            _object(
                {
                    "role": _kind("assistant"),
                    "content": _content("ChatPart"),
                    "tool_calls": _list(_CALL, maxItems=TOOLS_MAX),
                },
                ["role"],
            ),
            _object(
                {"role": _kind("tool"), "content": _content("ChatPart"), "tool_call_id": _ID},
                ["role", "content", "tool_call_id"],
            ),
        ]
    },
    "ChatRequest": _object(
        {
            "messages": _list(_ref("ChatMessage"), minItems=1, maxItems=1024),
            **_ASKED,
            **_SAMPLING,
            "max_completion_tokens": _TOKENS,
            "max_tokens": _TOKENS,
            "tools": _list(
                _object({"type": _kind("function"), "function": _FUNCTION}, ["type", "function"]),
                maxItems=TOOLS_MAX,
                description="Tools of other types are skipped.",
            ),
            "tool_choice": {
                "anyOf": [
                    _kind("auto", "none", "required"),
                    _object({"function": _object({"name": _TOOL_NAME}, ["name"])}, ["function"]),
                ]
            },
            "parallel_tool_calls": _FLAG,
            "logprobs": _FLAG,
            "top_logprobs": _whole(0, LOGPROBS_MAX, description="Needs logprobs to be true."),
            "modalities": _list(_kind("text")),
        },
        ["messages"],
    ),
    "CompletionRequest": _object(
        {
            "prompt": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    _list({"type": "string", "minLength": 1}, minItems=1, maxItems=CHOICES_MAX),
                ]
            },
            **_ASKED,
            **_SAMPLING,
            "max_tokens": _TOKENS,
            "logprobs": _whole(0, LOGPROBS_MAX),
        },
        ["prompt"],
    ),
    "EmbeddingRequest": _object(
        {
            "model": _MODEL,
            "input": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    _list({"type": "string", "minLength": 1}, minItems=1),
                ]
            },
            "encoding_format": _kind("float", "base64"),
            EXTENSION: _ref("Routing"),
        },
        ["input"],
    ),
    "ResponsePart": {
        "anyOf": [
            _object({"type": _kind("input_text", "output_text", "text"), "text": _TEXT}, ["type", "text"]),
            _object({"type": _kind("refusal"), "refusal": _TEXT}, ["type", "refusal"]),
            _object({"type": _kind("input_image"), "image_url": _DATA_URL}, ["type", "image_url"]),
        ]
    },
    "ResponseItem": {
        "anyOf": [
            _object(
                {
                    "type": _kind("message"),
                    "role": _kind("user", "assistant", "system", "developer"),
                    "content": _content("ResponsePart"),
                },
                ["role", "content"],
            ),
            _object(
                {
                    "type": _kind("function_call"),
                    "call_id": _ID,
                    "name": _TOOL_NAME,
                    "arguments": {"type": "string", "description": "An object, as JSON."},
                },
                ["type", "call_id", "name"],
            ),
            _object(
                {
                    "type": _kind("function_call_output"),
                    "call_id": _ID,
                    "output": _content("ResponsePart"),
                },
                ["type", "call_id", "output"],
            ),
        ]
    },
    "ResponsesRequest": _object(
        {
            "model": _MODEL,
            "input": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    _list(_ref("ResponseItem"), minItems=1, maxItems=1023),
                ]
            },
            "instructions": _TEXT,
            "stream": _FLAG,
            "temperature": _number(0, 2),
            "top_p": _number(0, 1),
            "max_output_tokens": _TOKENS,
            "include": _list(_TEXT),
            "top_logprobs": _whole(0, LOGPROBS_MAX),
            "tools": _list(
                _object(
                    {
                        "type": _kind("function"),
                        "name": _TOOL_NAME,
                        "description": {"type": "string", "maxLength": 8192},
                        "parameters": _ANY_OBJECT,
                    },
                    ["type", "name"],
                ),
                maxItems=TOOLS_MAX,
                description="Tools of other types are skipped.",
            ),
            "tool_choice": {
                "anyOf": [
                    _kind("auto", "none", "required"),
                    _object({"type": _kind("function"), "name": _TOOL_NAME}, ["type", "name"]),
                ]
            },
            "parallel_tool_calls": _FLAG,
            "text": _object(
                {
                    "format": {
                        "anyOf": [
                            _object({"type": _kind("text", "json_object")}, ["type"]),
                            _object(
                                {"type": _kind("json_schema"), "schema": _ANY_OBJECT},
                                ["type", "schema"],
                            ),
                        ]
                    }
                }
            ),
            "prompt_cache_key": {"type": "string", "description": "Names the conversation."},
            "metadata": {"type": "object", "description": "Comes back in the answer, and goes nowhere."},
            "user": {"type": "string", "description": "Comes back in the answer, and goes nowhere."},
            EXTENSION: _ref("Routing"),
        },
        ["input"],
    ),
    "MessageBlock": {
        "anyOf": [
            _object({"type": _kind("text"), "text": _TEXT}, ["type", "text"]),
            _object(
                {
                    "type": _kind("image"),
                    "source": _object(
                        {
                            "type": _kind("base64"),
                            "media_type": {"type": "string", "pattern": "^image/[a-z]{1,8}$"},
                            "data": {"type": "string", "pattern": f"^{_BASE64}"},
                        },
                        ["type", "media_type", "data"],
                    ),
                },
                ["type", "source"],
            ),
            _object(
                {
                    "type": _kind("document"),
                    "source": _object({"type": _kind("text"), "data": _TEXT}, ["type", "data"]),
                },
                ["type", "source"],
            ),
            _object(
                {"type": _kind("tool_use"), "id": _ID, "name": _TOOL_NAME, "input": _ANY_OBJECT},
                ["type", "id", "name", "input"],
            ),
            _object(
                {
                    "type": _kind("tool_result"),
                    "tool_use_id": _ID,
                    "content": {
                        "anyOf": [
                            _TEXT,
                            _list(_object({"type": _kind("text"), "text": _TEXT}, ["type", "text"])),
                        ]
                    },
                    "is_error": _FLAG,
                },
                ["type", "tool_use_id"],
            ),
            _object({"type": _kind("thinking", "redacted_thinking")}, ["type"]),
        ]
    },
    "CountRequest": _object(
        {
            "model": _MODEL,
            "messages": _list(
                _object(
                    {"role": _kind("user", "assistant"), "content": _content("MessageBlock")},
                    ["role", "content"],
                ),
                minItems=1,
                maxItems=500,
            ),
            "system": {"anyOf": [_TEXT, _list(_object({"text": _TEXT}, ["text"]))]},
            "max_tokens": _TOKENS,
            "temperature": _number(0, 1),
            "top_p": _number(0, 1),
            "top_k": _whole(0, 1 << 20),
            "stop_sequences": _list({"type": "string", "maxLength": 256}, maxItems=8),
            "tools": _list(
                _object(
                    {
                        "type": _kind("custom"),
                        "name": _TOOL_NAME,
                        "description": {"type": "string", "maxLength": 8192},
                        "input_schema": _ANY_OBJECT,
                    },
                    ["name"],
                ),
                maxItems=TOOLS_MAX,
                description="Tools that the service's own servers would run are skipped.",
            ),
            "tool_choice": _object(
                {
                    "type": _kind("auto", "any", "none", "tool"),
                    "name": _TOOL_NAME,
                    "disable_parallel_tool_use": _FLAG,
                }
            ),
            "output_config": _object(
                {"format": _object({"type": _kind("json_schema"), "schema": _ANY_OBJECT}, ["type", "schema"])}
            ),
            EXTENSION: _ref("Routing"),
        },
        ["messages"],
    ),
}
_REQUESTS["MessagesRequest"] = {
    **_REQUESTS["CountRequest"],
    "properties": {
        **_REQUESTS["CountRequest"]["properties"],
        **_object({"stream": _FLAG, "thinking": _object({"type": _kind("enabled", "adaptive", "disabled")})})[
            "properties"
        ],
    },
}

# ---- answers

_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_SERVED: Final = _given(
    dict.fromkeys(("host", "session", "price_in", "price_out", "cost"), _TEXT),
    description="Who answered, at which prices, and what it cost: USDC, per million tokens.",
)
_USAGE: Final = _given(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": _given({"cached_tokens": _COUNT}),
        EXTENSION: _SERVED,
    }
)
_FINISHED: Final = _kind("stop", "length", "tool_calls")
_MODEL_OBJECT: Final = _given(
    {
        "id": _TEXT,
        "object": _kind("model"),
        "type": _kind("model"),
        "created": _COUNT,
        "created_at": _TEXT,
        "owned_by": _TEXT,
        "display_name": _TEXT,
        "context_length": _COUNT,
        "max_model_len": _COUNT,
        "hosts": _COUNT,
        "capabilities": _list(_TEXT),
        "pricing": _given({"input": _TEXT, "output": _TEXT, "unit": _TEXT}),
    }
)
_ANSWERS: Final[dict[str, Schema]] = {
    "Error": _given(
        {
            "error": _given(
                {
                    "message": {"type": "string", "minLength": 1},
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": _TEXT,
                }
            )
        }
    ),
    "MessagesError": _given(
        {
            "type": _kind("error"),
            "error": _given({"type": _TEXT, "message": {"type": "string", "minLength": 1}, "code": _TEXT}),
        }
    ),
    "ChatCompletion": _given(
        {
            "id": _TEXT,
            "object": _kind("chat.completion"),
            "created": _COUNT,
            "model": _TEXT,
            "choices": _list(
                _given(
                    {
                        "index": _COUNT,
                        "message": _given(
                            {"role": _kind("assistant"), "content": {"type": ["string", "null"]}}
                        ),
                        "logprobs": {"type": ["object", "null"]},
                        "finish_reason": _FINISHED,
                    }
                ),
                minItems=1,
                maxItems=CHOICES_MAX,
            ),
            "usage": _USAGE,
        }
    ),
    "Completion": _given(
        {
            "id": _TEXT,
            "object": _kind("text_completion"),
            "created": _COUNT,
            "model": _TEXT,
            "choices": _list(
                _given(
                    {
                        "index": _COUNT,
                        "text": _TEXT,
                        "logprobs": {"type": ["object", "null"]},
                        "finish_reason": _FINISHED,
                    }
                ),
                minItems=1,
                maxItems=CHOICES_MAX,
            ),
            "usage": _USAGE,
        }
    ),
    "Embeddings": _given(
        {
            "object": _kind("list"),
            "model": _TEXT,
            "data": _list(
                _given(
                    {
                        "object": _kind("embedding"),
                        "index": _COUNT,
                        "embedding": {"anyOf": [_TEXT, _list({"type": "number"})]},
                    }
                )
            ),
            "usage": _given({"prompt_tokens": _COUNT, "total_tokens": _COUNT, EXTENSION: _ANY_OBJECT}),
        }
    ),
    "Response": _given(
        {
            "id": _TEXT,
            "object": _kind("response"),
            "created_at": _COUNT,
            "model": _TEXT,
            "status": _kind("completed", "incomplete"),
            "output": _list(_ANY_OBJECT),
            "usage": _given({"input_tokens": _COUNT, "output_tokens": _COUNT, EXTENSION: _SERVED}),
        }
    ),
    "Message": _given(
        {
            "id": _TEXT,
            "type": _kind("message"),
            "role": _kind("assistant"),
            "model": _TEXT,
            "content": _list(_ANY_OBJECT),
            "stop_reason": _kind("end_turn", "max_tokens", "tool_use", "stop_sequence"),
            "stop_sequence": {"type": ["string", "null"]},
            "usage": _given({"input_tokens": _COUNT, "output_tokens": _COUNT, EXTENSION: _SERVED}),
        }
    ),
    "Count": _given({"input_tokens": _COUNT}),
    "Model": _MODEL_OBJECT,
    "Models": _given(
        {
            "object": _kind("list"),
            "data": _list(_ref("Model")),
            "models": _list(_ANY_OBJECT),
            "has_more": _FLAG,
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
        }
    ),
    "Health": _given({"status": _kind("ok"), "peers": _COUNT, "under_way": _COUNT, "keys_required": _FLAG}),
    "Root": _given({"name": _TEXT, "apis": _list(_TEXT)}),
    "Document": _given({"openapi": _TEXT, "info": _ANY_OBJECT, "paths": _ANY_OBJECT}),
}

# ---- routes

_FAULTS: Final = {
    400: "The request can't be answered as it stands.",
    401: "The key is missing, unknown or expired.",
    402: "Money is missing, or a limit is reached: the message says which.",
    403: "This key, or this web page, may not do this.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "Ask again after `Retry-After`.",
    500: "A defect: the log says more, under the id in `x-request-id`.",
    502: "A host broke the protocol, and no other could go on.",
    503: "No host can answer now: the message says why.",
}
_READ_FAULTS: Final = (401, 403, 404, 500, 503)
_FRONT_FAULTS: Final = (403,)
"""Of addresses that need no key."""


def _said(description: str, schema: str, *, stream: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": _ref(schema)}}
    if stream:
        content[_STREAM] = {"schema": {"type": "string"}}
    return {"description": description, "content": content}


def _operation(
    summary: str, answer: str, *, faults: Sequence[int], error: str = "Error", stream: bool = False
) -> dict[str, Any]:
    responses = {"200": _said("The answer.", answer, stream=stream)}
    responses |= {str(status): _said(_FAULTS[status], error) for status in faults}
    made: dict[str, Any] = {"summary": summary, "responses": responses}
    return made if faults != _FRONT_FAULTS else {**made, "security": []}


def _post(
    summary: str, request: str, answer: str, *, error: str = "Error", stream: bool = True
) -> dict[str, Any]:
    body = {"required": True, "content": {_JSON: {"schema": _ref(request)}}}
    made = _operation(summary, answer, faults=tuple(_FAULTS), error=error, stream=stream)
    return {"post": {**made, "requestBody": body, "parameters": list(_HEADERS)}}


_HEADERS: Final = tuple(
    {
        "name": HEADER + name.replace("_", "-"),
        "in": "header",
        "required": False,
        "schema": schema,
        "description": f"As the field `{EXTENSION}.{name}`, which wins.",
    }
    for name, schema in (
        ("max_price", _USDC["anyOf"][0]),
        ("max_cost", _USDC["anyOf"][0]),
        ("host", _TEXT),
        ("exclude", _TEXT),
        ("trust", _TEXT),
        ("min_reputation", _number(0, 1)),
        ("quantisation", _TEXT),
        ("verified", _kind("always", "paid", "never")),
        ("hedge", _kind(*HEDGES)),
        ("conversation", _TEXT),
    )
)


@cache
def openapi_document() -> dict[str, Any]:
    """The document. It is the same for all gateways of this version."""
    paths = {
        "/v1/chat/completions": _post("OpenAI's chat completions", "ChatRequest", "ChatCompletion"),
        "/v1/completions": _post("OpenAI's completions", "CompletionRequest", "Completion"),
        "/v1/embeddings": _post("OpenAI's embeddings", "EmbeddingRequest", "Embeddings", stream=False),
        "/v1/responses": _post("OpenAI's responses, without state", "ResponsesRequest", "Response"),
        "/v1/messages": _post("Anthropic's messages", "MessagesRequest", "Message", error="MessagesError"),
        "/v1/messages/count_tokens": _post(
            "How many tokens a prompt has", "CountRequest", "Count", error="MessagesError", stream=False
        ),
        "/v1/models": {"get": _operation("What can be asked now", "Models", faults=_READ_FAULTS)},
        "/v1/models/{name}": {
            "get": {
                **_operation("One model", "Model", faults=_READ_FAULTS),
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": _TEXT}],
            }
        },
        "/health": {"get": _operation("Whether it runs", "Health", faults=_FRONT_FAULTS)},
        "/metrics": {
            "get": {
                "summary": "Figures for Prometheus, where the extra `metrics` is installed",
                "responses": {
                    "200": {"description": "The figures.", "content": {"text/plain": {"schema": _TEXT}}},
                    **{str(each): _said(_FAULTS[each], "Error") for each in _READ_FAULTS},
                },
            }
        },
        "/openapi.json": {"get": _operation("This document", "Document", faults=_FRONT_FAULTS)},
        "/": {"get": _operation("What it is", "Root", faults=_FRONT_FAULTS)},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "p2pnode gateway", "version": p2pnode.__version__},
        "paths": paths,
        "components": {
            "schemas": {**_REQUESTS, **_ANSWERS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }
