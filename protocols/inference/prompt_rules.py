"""What a ``PromptBody`` must be beyond the bounds of its fields, and the seeds of the calls that it leads to.

Both sides check the same: a client before it looks for a host, a host before it counts. Pure.
"""

from __future__ import annotations

import json
import re
from base64 import b32encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from p2pnode.errors import ProtocolError
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.inference.messages import PromptBody

JSON_DEPTH_MAX: Final = 32
JSON_NODES_MAX: Final = 4096
"""Values in all schemas of a prompt together."""
JSON_BYTES_MAX: Final = 64 * 1024
"""UTF-8 bytes of all schemas of a prompt together."""
_SEED_TAG: Final = b"p2pnode/seed/1"
_INTEGER_TAG: Final = b"p2pnode/seed/int"
_CALL_TAG: Final = b"p2pnode/call"
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SEED_DRAWN: Final = 0xFFFFFFFF
"""llama.cpp draws a seed of its own for this one, so no call has it."""


def call_seed(seed: bytes, start: int) -> int:
    """The seed, of 32 bits, of the engine's call whose first token is the answer's at index ``start``.

    ``seed`` is the prompt's. The index counts the answer's ids from 0, those of ``prefix`` too.
    """
    text = _SEED_TAG + seed + start.to_bytes(4, "big")
    made = int.from_bytes(keccak256(text)[-4:], "big")
    while made == _SEED_DRAWN:
        text += b"\0"
        made = int.from_bytes(keccak256(text)[-4:], "big")
    return made


def cache_scope(session: bytes, body: PromptBody) -> bytes:
    """Whose prefix cache a prompt may use: that of its session and its own key."""
    return session + (body.cache_key or b"")


def seed_of(number: int) -> bytes:
    """The seed of a prompt for an integer, as other programs have seeds."""
    return keccak256(_INTEGER_TAG + str(number).encode())[:16]


def next_seed(seed: bytes) -> bytes:
    """Another seed that follows from ``seed``."""
    return keccak256(_INTEGER_TAG + seed)[:16]


def call_id(seed: bytes, index: int) -> str:
    """The id of an answer's call: 9 letters and digits, as some templates demand; the same at any host."""
    digest = keccak256(_CALL_TAG + seed + index.to_bytes(4, "big"))
    return b32encode(digest)[:9].decode("ascii").lower()


def check_prompt(body: PromptBody) -> None:
    """Raise ``ProtocolError`` that says what is wrong with ``body`` and how to mend it."""
    if bool(body.messages) == bool(body.embed):
        _refuse("a prompt has either messages or texts to embed")
    if body.embed:
        _check_embed(body)
    names = [tool.name for tool in body.tools]
    for name in (*names, *(call.name for message in body.messages for call in message.tool_calls)):
        if not _NAME.fullmatch(name):
            _refuse(f"a tool is named {name[:64]!r}: a name has letters, digits, and _ . - only")
    if len(set(names)) != len(names):
        _refuse("two tools have one name: give each a name of its own")
    chosen = body.tool_choice.removeprefix("name:") if body.tool_choice.startswith("name:") else None
    if chosen is not None:
        if chosen not in names:
            _refuse(f"tool_choice names {chosen[:64]!r}, which is none of the tools")
    elif body.tool_choice not in ("auto", "none", "required"):
        _refuse('tool_choice is "auto", "none", "required" or "name:" and the name of a tool')
    elif body.tool_choice == "required" and not names:
        _refuse("tool_choice is required, and there are no tools")
    _check_messages(body)
    _check_json(body)


def _check_embed(body: PromptBody) -> None:
    form = body.response_format.kind != "text"
    if body.tools or form or body.prefix or body.text_bytes is not None or body.logprobs >= 0:
        _refuse("texts are embedded without tools, a response format, log-probabilities or a partial answer")


def _check_messages(body: PromptBody) -> None:
    for index, message in enumerate(body.messages):
        if message.tool_calls and message.role != "assistant":
            _refuse(f"message {index + 1} has tool calls: only the assistant makes them")
        if (message.tool_call_id is not None) != (message.role == "tool"):
            _refuse(f"message {index + 1}: a tool's message, and no other, names the call that it answers")
        for part in message.content:
            if part.kind == "text" and (part.data or part.mime):
                _refuse(f"message {index + 1} has a part that is text and carries data")
        for call in message.tool_calls:
            value, _, deepest = _measured(call.arguments, f"the arguments of {call.name}")
            if not isinstance(value, dict) or deepest.depth > JSON_DEPTH_MAX:
                _refuse(f"the arguments of {call.name} are an object of JSON, at most {JSON_DEPTH_MAX} deep")


def _check_json(body: PromptBody) -> None:
    texts = [(f"the parameters of {tool.name}", tool.parameters) for tool in body.tools if tool.parameters]
    form = body.response_format
    if form.kind == "json_schema":
        texts.append(("the schema of the response format", form.body))
    elif form.kind != "grammar" and form.body:
        _refuse(f"a response format of kind {form.kind} has no body")
    if sum(len(text.encode()) for _, text in texts) > JSON_BYTES_MAX:
        _refuse(f"the schemas of a prompt have more than {JSON_BYTES_MAX} bytes together: make them shorter")
    nodes = 0
    for what, text in texts:
        value, count, deepest = _measured(text, what)
        nodes += count
        if not isinstance(value, dict):
            _refuse(f"{what} is no JSON Schema: it must be an object")
        if deepest.depth > JSON_DEPTH_MAX:
            _refuse(
                f"{what} at {deepest.pointer} is {deepest.depth} levels deep: at most {JSON_DEPTH_MAX} are "
                "taken"
            )
        if nodes > JSON_NODES_MAX:
            _refuse(
                f"with {what} the schemas of a prompt have more than {JSON_NODES_MAX} values together: make "
                "them smaller"
            )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value of JSON stands."""

    depth: int
    name: object = ""
    within: _Place | None = None

    @property
    def pointer(self) -> str:
        """As JSON Schema writes it, cut after 80 letters."""
        names: list[str] = []
        place = self
        while place.within is not None:
            names.append(str(place.name))
            place = place.within
        return "/".join(("#", *reversed(names)))[:80]


def _measured(text: str, what: str) -> tuple[Any, int, _Place]:
    """The JSON value of ``text``, how many values are in it, and where the deepest stands."""
    try:
        value = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        _refuse(f"{what}: nested deeper than {JSON_DEPTH_MAX} levels, the most that is taken")
    except ValueError as error:
        raise ProtocolError(f"{what}: no JSON ({error})") from error
    deepest = _Place(1)
    count, waiting = 0, [(value, deepest)]
    while waiting:
        each, place = waiting.pop()
        count, deepest = count + 1, max(deepest, place, key=lambda one: one.depth)
        waiting += [(inner, _Place(place.depth + 1, name, place)) for name, inner in _inner(each)]
    return value, count, deepest


def _inner(value: Any) -> Iterator[tuple[object, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _refuse(why: str) -> NoReturn:
    raise ProtocolError(why)
