"""``Renderer``: from a conversation, with tools, to the text of a prompt by a model's own chat template.

Templates are programs in Jinja, written by whoever made the model. They run in Jinja's sandbox, without a
clock, a file, a network or chance, so that one prompt gives one text on every machine. Still, one may run for
ever or fill the memory: only ``models/prompt_compiler.py`` runs those of strangers, in a process with limits.

What a template is given follows Hugging Face's ``apply_chat_template``. ``tojson`` has one form, whatever it
is asked for. A model whose template knows no tools is told of them in words, in the ``generic`` form of
``models/answer.py``.

Pure but for :func:`load_template`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from p2pnode.errors import EngineError
from p2pnode.models.answer import ToolFormat, format_of
from p2pnode.models.generic_form import function_of, generic_messages, json_text, uses_tools
from p2pnode.models.gguf import GgufHeader, read_header
from p2pnode.models.prompt import Marks, Segment, no_place
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, Tool

VERSION: Final = "renderer/1"
"""Changes when the same template and conversation give another text."""
_PART: Final = re.compile(r"""\.text\b|\[["']text["']\]""")
_TEMPLATE_MAX: Final = 256 * 1024
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CHATML: Final = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "<|im_start|>assistant{{ '\\n' }}"
)
"""Of a model that comes without a template, as in llama.cpp."""
_BY_CHANCE: Final = ("lipsum", "random")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template in Jinja, and the names of the tokens that begin and end a text, "" where there are none."""

    source: str
    bos: str = ""
    eos: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt. ``thinking``: the template has opened the model's thoughts at its end."""

    segments: tuple[Segment, ...]
    thinking: bool


def load_template(path: Path) -> ChatTemplate:
    """The chat template of the GGUF file at ``path``. Blocks on the disk. Raises ``ConfigError``."""
    header = read_header(path)
    bos, eos = ends_of(header)
    return ChatTemplate(header.text("tokenizer.chat_template", "") or CHATML, bos, eos)


def ends_of(header: GgufHeader) -> tuple[str, str]:
    """The names of the tokens that begin and end a text, "" where there are none."""
    tokens = list(header.array("tokenizer.ggml.tokens").strings())

    def name_of(key: str) -> str:
        index = header.values.get(f"tokenizer.ggml.{key}_token_id")
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            return ""
        return tokens[index].decode("utf-8", "replace")

    return name_of("bos"), name_of("eos")


def reasons_of(template: ChatTemplate) -> bool:
    """Whether the model may think before it answers."""
    return "</think>" in template.source


class Renderer:
    """One template. ``form``: how its model writes calls; ``reasons``: it may think before it answers."""

    def __init__(self, template: ChatTemplate) -> None:
        """Raises ``EngineError`` for a template that is no Jinja."""
        self._template = template
        source = template.source
        self.form: Final[ToolFormat] = format_of(source) if "tools" in source else "generic"
        self.reasons: Final = reasons_of(template)
        self._takes_parts = _PART.search(source) is not None
        self._roles = frozenset({"developer"}) if "developer" in source else frozenset[str]()
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        for name in _BY_CHANCE:
            environment.globals.pop(name, None)
            environment.filters.pop(name, None)
        environment.globals["raise_exception"] = _raise_exception
        environment.filters["tojson"] = self._tojson
        self._marks = Marks("")
        """Those of the prompt that is rendered."""
        if len(source) > _TEMPLATE_MAX:
            msg = (
                f"this model's chat template has {len(source)} characters: at most {_TEMPLATE_MAX} are taken"
            )
            raise EngineError(msg, code="bad_request")
        try:
            self._compiled = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            msg = f"this model's chat template is no Jinja: {str(error)[:200]}"
            raise EngineError(msg, code="bad_request") from error

    def render(self, body: PromptBody, nonce: str, *, letters_max: int) -> Rendered:
        """The prompt of ``body`` up to the answer, without its prefix. At most ``letters_max`` letters.

        ``nonce``: letters and digits that nobody can guess. Raises ``EngineError`` with code ``bad_request``,
        or ``context_overflow`` for a prompt that is too long.
        """
        generic = self.form == "generic" and uses_tools(body)
        messages = generic_messages(body) if generic else list(body.messages)
        tools = () if generic or body.tool_choice == "none" else body.tools
        try:
            return self._render(messages, tools, body.now, nonce, letters_max, listed=False)
        except EngineError as error:
            if error.code != "bad_request" or not self._takes_parts:
                raise
            try:  # some templates want the parts of a content, and not its text
                return self._render(messages, tools, body.now, nonce, letters_max, listed=True)
            except EngineError:
                raise error from None

    def _render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool],
        now: int | None,
        nonce: str,
        letters_max: int,
        *,
        listed: bool,
    ) -> Rendered:
        marks = self._marks = Marks(nonce)
        given = [self._message(index, each, marks, listed=listed) for index, each in enumerate(messages)]
        names = [tool.name for tool in tools] + [call.name for each in messages for call in each.tool_calls]
        values = {
            "messages": given,
            "tools": [_tool(tool, marks) for tool in tools] or None,
            "add_generation_prompt": True,
            "bos_token": self._template.bos,
            "eos_token": self._template.eos,
            "strftime_now": _date_of(now),
        }
        parts: list[str] = []
        length = 0
        try:
            for part in self._compiled.generate(values):
                parts.append(part)
                length += len(part)
                if length > letters_max:
                    break
        except Exception as error:  # a template is a stranger's program
            why = str(error)[:200] or type(error).__name__
            msg = f"this model's chat template does not take the conversation: {why}"
            raise EngineError(msg, code="bad_request") from error
        segments = tuple(marks.segments("".join(parts))) if length <= letters_max else ()
        text = "".join(each.text for each in segments)
        if max(length, len(text)) > letters_max:
            msg = "the conversation is too long for this context: shorten it"
            raise EngineError(msg, code="context_overflow")
        for name in names:
            if name not in text:
                raise no_place(f"the tool {name}")
        return Rendered(segments, thinking=text.rstrip().endswith("<think>"))

    @pass_context  # so that Jinja does not run it while it compiles
    def _tojson(self, _context: Context, value: Any, *_form: Any, **_more: Any) -> str:
        """JSON as a text of the user's: no special token is found in it."""
        return self._marks.of_json(_bare(value), json_text)

    def _message(self, index: int, message: ChatMessage, marks: Marks, *, listed: bool) -> dict[str, Any]:
        if any(part.kind == "image" for part in message.content):
            msg = f"message {index + 1} has an image, and this model reads none: leave it out, or ask another"
            raise EngineError(msg, code="bad_request")
        role = "system" if message.role == "developer" and message.role not in self._roles else message.role
        content: Any = marks.of(message.text, what=f"message {index + 1} of the conversation")
        if listed:
            content = [{"type": "text", "text": content}] if content else []
        made: dict[str, Any] = {"role": role, "content": content}
        if message.name:
            made["name"] = marks.within(message.name)
        if message.tool_calls:
            made["tool_calls"] = [
                {
                    "id": marks.within(call.id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": marks.within(json.loads(call.arguments))},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            made["tool_call_id"] = marks.within(message.tool_call_id)
        return made


class _Generation(Extension):
    """``{% generation %}`` marks what a model wrote, for those who train it; here it says nothing."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2's own extensions have it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tool(tool: Tool, marks: Marks) -> dict[str, Any]:
    function = function_of(tool)
    function["description"] = marks.of(tool.description)
    function["parameters"] = marks.within(function["parameters"])
    return {"type": "function", "function": function}


def _bare(value: Any) -> Any:
    """What a template made, as plain JSON values."""
    if isinstance(value, Mapping):
        return {str(key): _bare(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_bare(each) for each in value]
    if value is None or isinstance(value, str | bool | int | float):
        return str(value) if isinstance(value, str) else value
    raise TemplateError(f"{type(value).__name__} has no form in JSON")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _date_of(now: int | None) -> Callable[[str], str]:
    """``strftime_now``: the client's date in UTC, in the forms that templates use."""

    def strftime_now(form: str) -> str:
        if now is None:
            raise TemplateError("it asks for the date: send `now`, in epoch seconds, with the prompt")
        try:
            date = datetime.fromtimestamp(now, UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise TemplateError("the date of the prompt is none: `now` is in epoch seconds") from error
        return _formatted(date, form)

    return strftime_now


def _formatted(date: datetime, form: str) -> str:
    """As C's strftime in English, whatever language this machine speaks."""
    said = {
        "Y": f"{date.year:04}", "m": f"{date.month:02}", "d": f"{date.day:02}", "y": f"{date.year % 100:02}",
        "H": f"{date.hour:02}", "I": f"{(date.hour + 11) % 12 + 1:02}", "M": f"{date.minute:02}",
        "S": f"{date.second:02}", "p": "AM" if date.hour < 12 else "PM",  # noqa: PLR2004 - noon
        "B": _MONTHS[date.month - 1], "b": _MONTHS[date.month - 1][:3], "h": _MONTHS[date.month - 1][:3],
        "A": _DAYS[date.weekday()], "a": _DAYS[date.weekday()][:3], "j": f"{date.timetuple().tm_yday:03}",
        "e": f"{date.day:2}", "%": "%", "Z": "UTC", "z": "+0000",
    }  # fmt: skip
    said |= {"F": f"{said['Y']}-{said['m']}-{said['d']}", "T": f"{said['H']}:{said['M']}:{said['S']}"}
    made, position = "", 0
    while position < len(form):
        if form[position] != "%":
            made += form[position]
            position += 1
            continue
        bare = form[position + 1 : position + 2] == "-"
        letter = form[position + 1 + bare : position + 2 + bare]
        if letter not in said:
            raise TemplateError(f"it asks for the date as {form[:40]!r}, which is not known here")
        made += said[letter].lstrip("0") if bare else said[letter]
        position += 2 + bare
    return made
