"""``AnswerReader``: from the text that a model puts out to what it says: content, reasoning, tool calls.

Models write a call of a tool as text, each family in a form of its own. The reader takes the text in pieces
as it comes, and gives the arguments of a call in pieces, too. However the text is cut, the parts are the same
once neighbours are joined. What only looks like a call stays content: nothing that a model says is lost.

Pure. Host, client and gateway read with the same reader, so that what was called is a function of the text,
the format, the tools that were offered, and ``VERSION``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from io import StringIO
from itertools import groupby
from typing import Any, Final, Literal, NoReturn, TypeAlias

VERSION: Final = 1
ToolFormat: TypeAlias = Literal["hermes", "llama3", "mistral", "generic"]
"""How a model writes calls.

``hermes``: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, also Qwen's. ``llama3``: the whole
answer is ``{"name": …, "parameters": {…}}``, or several of them. ``mistral``: ``[TOOL_CALLS]`` and an array
of such objects, or a name and its arguments. ``generic``: ``{"tool_calls": […]}`` or ``{"response": "…"}``,
which a grammar forces on a model whose template knows no tools.
"""
Channel: TypeAlias = Literal["content", "reasoning"]
CALL_MAX: Final = 256 * 1024
"""Characters of one call; a longer one is content."""
DEPTH_MAX: Final = 64
_MEMBER: Final = 2
"""The depth of a value in the object that is a call."""
CALLS_MAX: Final = 128
"""Of one answer; later ones are content."""
_THINK: Final = ("<think>", "</think>")
_OPENINGS: Final[dict[str, tuple[str, ...]]] = {
    "hermes": ("<tool_call>",),
    "llama3": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]",),
    "generic": (),
}
_HERMES_END: Final = "</tool_call>"
MARKS: Final = frozenset(
    {*_THINK, _HERMES_END, "[ARGS]", "[CALL_ID]", *(each for those in _OPENINGS.values() for each in those)}
)
"""What tells calls and thoughts from content. In many vocabularies these are tokens of their own."""
_ARGUMENTS: Final = frozenset({"arguments", "parameters"})
_FIRST_KEYS: Final = frozenset({"name", "type", "function", *_ARGUMENTS})
_BLANK: Final = " \t\r\n"
_BLANKS_MAX: Final = 256
"""Blanks that are held back: whether what follows them is a call decides whether they are content."""
_OPENING_MAX: Final = 512
"""Characters within which a generic answer says which of its two forms it has."""
_FED_AT_ONCE: Final = 4096
"""Characters: each step copies what waits."""
_NAMED: Final = re.compile(
    r"([A-Za-z0-9_.-]{1,64}+)[ \t\r\n]*+(?:\[CALL_ID\][A-Za-z0-9]{0,64}+)?(?:\[ARGS\])?[ \t\r\n]*+(?=\{)"
)
"""No repetition gives back what it took: else the time for blanks without a call grows with their square."""
_NAMED_MAX: Final = 256
_BLANKS: Final = re.compile(f"[{_BLANK}]+")
_CALLS: Final = re.compile(r'_*\{_*"tool_calls"_*:_*\['.replace("_*", f"[{_BLANK}]*"))
_RESPONSE: Final = re.compile(r'_*\{_*"response"_*:_*"'.replace("_*", f"[{_BLANK}]*"))
_LETTERS: Final = re.compile(
    r'[^"\\]+|\\["\\/bfnrt]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\u[0-9a-fA-F]{4}"
)
"""Letters of a JSON string as they stand, or one as an escape; the group is half of a letter, alone."""
_PLAIN: Final = re.compile(r'[^"\\]*')
_NO_STRUCTURE: Final = re.compile(r'[^"{}\[\],:]*')
_HALF_ESCAPE: Final = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_HALF_LOW: Final = re.compile(r"(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?")


@dataclass(frozen=True, slots=True)
class Text:
    """Text for people: the answer, or what the model thinks before it."""

    channel: Channel
    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of the tool ``name``; calls of an answer count from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of a call's arguments: JSON text as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """``whole``: the pieces make a JSON object. A call may be cut by the end of the answer, or be broken."""

    index: int
    whole: bool


Part: TypeAlias = Text | CallBegun | CallArguments | CallEnded
_Judged: TypeAlias = Literal["more", "whole", "broken", "no call"]
_State: TypeAlias = Literal["start", "content", "reasoning", "call", "between", "response", "rest"]


def format_of(template: str) -> ToolFormat:
    """The format that a model with this chat template was trained on; ``generic`` where it knows no tools."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "hermes"
    if "<|python_tag|>" in template or "Environment: ipython" in template:
        return "llama3"
    return "generic"


class AnswerReader:
    """Reads one answer. Without ``tools`` nothing is a call.

    ``reasons``: the model puts what it thinks between ``<think>`` and ``</think>``. ``thinking``: its
    template has opened that already.
    """

    def __init__(
        self, form: ToolFormat, tools: Collection[str] = (), *, reasons: bool = False, thinking: bool = False
    ) -> None:
        self._form, self._tools = form, frozenset(tools)
        self._marks = _OPENINGS[form] if self._tools else ()
        if reasons or thinking:
            self._marks = (*self._marks, _THINK[0])
        self._waiting = ""
        """Taken and not yet read."""
        self._state: _State = "reasoning" if thinking else "start"
        self._begins = ""
        """What stood before the call under way: content, as its letters are, should it be none."""
        self._in_array = False
        self._call: _Call | None = None
        self._calls = 0
        self._parts: list[Part] = []

    @property
    def has_marks(self) -> bool:
        """Whether anything in a text may mean more than it says."""
        return bool(self._tools or self._marks) or self._state == "reasoning"

    def copy(self) -> AnswerReader:
        """Another reader that has read the same. What one of them reads from now on the other doesn't know.

        It takes no time for what was read before, but for a call under way, which is copied once.
        """
        other = copy(self)
        other._parts = list(self._parts)  # noqa: SLF001  of this class
        other._call = self._call.copy() if self._call is not None else None  # noqa: SLF001  of this class
        return other

    def feed(self, text: str) -> list[Part]:
        """What ``text`` makes certain. Texts that follow one another are not joined: each is as it was read,
        so that an answer that is one long text takes no more time than its letters do."""
        for at in range(0, len(text), _FED_AT_ONCE):
            self._waiting += text[at : at + _FED_AT_ONCE]
            while self._step():
                pass
        return self._take()

    def finish(self) -> list[Part]:
        """The answer is over: what was held back."""
        if self._call is not None:
            self._keep_letters(self._call)
            self._end_call(self._call, whole=False)
        if self._state == "reasoning":
            self._say(self._waiting, "reasoning")
        elif self._state in ("between", "response"):
            pass  # no more than blanks, or half of a letter's escape
        else:
            self._say(self._begins + self._waiting)
        self._begins = self._waiting = ""
        return self._take()

    def _take(self) -> list[Part]:
        taken, self._parts = self._parts, []
        return taken

    def _say(self, text: str, channel: Channel = "content") -> None:
        if text:
            self._parts.append(Text(channel, text))

    def _go(self, state: _State, skip: int = 0) -> bool:
        self._state, self._waiting = state, self._waiting[skip:]
        return True

    def _step(self) -> bool:
        """Read on as far as one state goes. False: more text is needed."""
        match self._state:
            case "start":
                return self._start()
            case "content":
                return self._content()
            case "reasoning":
                return self._reasoning()
            case "call":
                return self._read_call()
            case "between":
                return self._between()
            case "response":
                return self._response()
            case "rest":
                self._say(self._waiting)
                self._waiting = ""
                return False

    # ---- outside of calls

    def _start(self) -> bool:
        """The beginning of an answer, which in two formats decides what the whole is."""
        text = self._waiting.lstrip(_BLANK)
        blanks = len(self._waiting) - len(text)
        if not text and blanks < _BLANKS_MAX:
            return False
        if blanks >= _BLANKS_MAX:
            return self._go("content")
        if not self._tools or not text.startswith("{") or self._form in ("hermes", "mistral"):
            return self._go("content")
        if self._form == "llama3":
            return self._expect_call(len(self._waiting) - len(text))
        for pattern in (_CALLS, _RESPONSE):
            if found := pattern.match(self._waiting, 0, _OPENING_MAX):
                self._begins, self._in_array = self._waiting[: found.end()], pattern is _CALLS
                if self._in_array:
                    return self._go("call", found.end())
                self._begins = ""
                return self._go("response", found.end())
        tight = _BLANKS.sub("", self._waiting[:_OPENING_MAX])
        if len(self._waiting) < _OPENING_MAX and any(
            begin.startswith(tight) for begin in ('{"tool_calls":[', '{"response":"')
        ):
            return False
        return self._go("content")

    def _content(self) -> bool:
        at, mark = min(
            ((at, mark) for mark in self._marks if (at := self._waiting.find(mark)) >= 0), default=(-1, "")
        )
        if at < 0:
            held = _may_begin(self._waiting, self._marks)
            self._say(self._waiting[:held])
            self._waiting = self._waiting[held:]
            return False
        self._say(self._waiting[:at])
        if mark == _THINK[0]:
            return self._go("reasoning", at + len(mark))
        self._waiting = self._waiting[at:]
        return self._expect_call(len(mark))

    def _reasoning(self) -> bool:
        end = _THINK[1]
        at = self._waiting.find(end)
        if at < 0:
            held = _may_begin(self._waiting, (end,))
            self._say(self._waiting[:held], "reasoning")
            self._waiting = self._waiting[held:]
            return False
        self._say(self._waiting[:at], "reasoning")
        return self._go("start", at + len(end))

    def _response(self) -> bool:
        """The string of ``{"response": "…"}``, decoded as it comes."""
        text, at = self._waiting, 0
        while at < len(text) and text[at] != '"':
            found = _LETTERS.match(text, at)
            if found is None:
                if _HALF_ESCAPE.fullmatch(text, at):
                    break
                self._say("\\")  # no escape: as it stands
                at += 1
            elif found[1] and _HALF_LOW.fullmatch(text, found.end()):
                break  # the first half of a letter beyond U+FFFF: its second half may follow
            else:
                letters = found[0] if found[0][0] != "\\" else str(json.loads(f'"{found[0]}"'))
                self._say(letters.encode("utf-8", "replace").decode() if found[1] else letters)
                at = found.end()
        self._waiting = text[at:]
        if text.startswith('"', at):
            return self._go("between", 1)
        return False

    # ---- calls

    def _expect_call(self, skip: int) -> bool:
        self._begins = self._waiting[:skip]
        self._in_array = False
        return self._go("call", skip)

    def _read_call(self) -> bool:
        if self._call is None:
            opened = self._open_call()
            if opened is not None:
                return opened
        call = self._call
        assert call is not None  # noqa: S101  _open_call has made it
        took, finished = call.take(self._waiting)
        self._waiting = self._waiting[took:]
        if arguments := call.new_arguments():
            if not call.begun:
                call.begun, self._begins = True, ""
                self._parts.append(CallBegun(self._calls, call.name))
            self._parts.append(CallArguments(self._calls, arguments))
        if finished == "no call" and not call.begun:
            self._keep_letters(call)
            return self._no_call()
        if finished == "more":
            return False
        self._end_call(call, whole=finished == "whole")
        return self._go("between")

    def _open_call(self) -> bool | None:
        """Make the call that begins here. A bool where none does: what ``_step`` is to answer."""
        text = self._waiting.lstrip(_BLANK)
        blanks = len(self._waiting) - len(text)
        if not text and blanks < _BLANKS_MAX:
            return False
        if blanks >= _BLANKS_MAX:
            return self._no_call()
        name = ""
        if self._form == "mistral" and not self._in_array:
            if text.startswith("["):
                self._in_array = True
                self._begins += self._waiting[: blanks + 1]
                return self._go("call", blanks + 1)
            if not text.startswith("{"):
                found = _NAMED.match(text, 0, _NAMED_MAX + 1)
                if found is None:
                    return self._no_call() if "{" in text or len(text) > _NAMED_MAX else False
                name, blanks = found[1], blanks + found.end()
                text = text[found.end() :]
        if not text.startswith("{") or self._calls >= CALLS_MAX:
            return self._no_call()
        self._begins += self._waiting[:blanks]
        self._waiting = text
        self._call = _Call(self._tools, name)
        return None

    def _keep_letters(self, call: _Call) -> None:
        """Nothing was told of a call that has not begun: its letters stay content."""
        if not call.begun:
            self._begins += call.text

    def _end_call(self, call: _Call, *, whole: bool) -> None:
        self._call = None
        if call.begun:
            self._parts.append(CallEnded(self._calls, whole))
            self._calls += 1

    def _no_call(self) -> bool:
        """It looked like a call and is none: content, and what follows is read as content."""
        self._call = None
        self._say(self._begins)
        self._begins = ""
        return self._go("rest" if self._form in ("llama3", "generic") else "content")

    def _between(self) -> bool:
        """After a call: what ends it, another one, or text."""
        text = self._waiting.lstrip(_BLANK)
        if self._form == "generic":  # brackets that close, or the next call: the grammar allows no more
            self._waiting = text = text.lstrip(_BLANK + "]}")
            if self._in_array and text.startswith(","):
                return self._go("call", 1)
            return bool(text) and self._go("rest")
        blanks = len(self._waiting) - len(text)
        if not text and blanks < _BLANKS_MAX:
            return False
        if blanks >= _BLANKS_MAX:
            return self._go("content")
        if self._form == "hermes":
            if text.startswith(_HERMES_END):
                self._waiting = text[len(_HERMES_END) :]
                return self._go("content")
            return False if text and _HERMES_END.startswith(text) else self._go("content")
        separator = "," if self._in_array else ";"
        if self._in_array and text.startswith("]"):
            self._waiting = text[1:]
            return self._go("content")
        another = self._form == "llama3" and text.startswith("{")
        if another or text.startswith(separator):
            self._begins = "" if another else separator
            self._waiting = text if another else text[1:]
            return self._go("call")
        return self._go("content")


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer in one channel, as it travels. ``name``: of a call, on its first piece."""

    channel: Literal["content", "reasoning", "call"]
    text: str
    call: int = 0
    name: str = ""


class AnswerPieces:
    """An answer in pieces by channel, without what its client has: its first ``has`` bytes, in UTF-8.

    Bytes of text are counted in all channels, and those of the names of calls. ``calls_max``: the answer ends
    with so many calls, whatever the model says after them.
    """

    def __init__(self, reader: AnswerReader, *, has: int = 0, calls_max: int = CALLS_MAX) -> None:
        self._reader, self._has, self._calls_max = reader, has, calls_max
        self.bytes = 0
        """Bytes of all that was read, also of what the client has."""
        self.calls = 0
        """Calls that are whole."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is told."""
        return self.calls >= self._calls_max

    def copy(self, *, has: int = 0) -> AnswerPieces:
        """Another one that goes on from here. Of what follows, its client has the first ``has`` bytes."""
        other = copy(self)
        other._reader, other._has = self._reader.copy(), has  # noqa: SLF001  of this class
        return other

    def feed(self, text: str) -> list[Said]:
        """What ``text`` makes certain and the client lacks."""
        return self._new(self._reader.feed(text))

    def finish(self, *, whole: bool) -> list[Said]:
        """The answer is over: what was held back.

        One that is not ``whole`` may go on, and then what was held back may turn out to be something else: it
        is told only where it can't.
        """
        return self._new(self._reader.finish()) if whole or not self._reader.has_marks else []

    def _new(self, parts: list[Part]) -> list[Said]:
        said: list[Said] = []
        for part in parts:
            if self.is_over:
                break
            match part:
                case Text(channel=channel, text=text):
                    said.append(Said(channel, text))
                case CallBegun(index=index, name=name):
                    said.append(Said("call", "", index, name))
                case CallArguments(index=index, text=text):
                    said.append(Said("call", text, index))
                case CallEnded(whole=whole):
                    self.calls += whole
        told = joined(said)
        size = sum(map(said_bytes, told))
        self.bytes += size
        lacking = without_first(told, self._has)
        self._has = max(0, self._has - size)
        return lacking


def said_bytes(piece: Said) -> int:
    """How many bytes it counts: of its text and its name."""
    return len(piece.text.encode(errors="replace")) + len(piece.name.encode(errors="replace"))


def joined(pieces: Iterable[Said]) -> list[Said]:
    """The same with neighbours of one channel and call as one. Each letter is copied once."""
    made: list[Said] = []
    for (channel, call), each in groupby(pieces, key=lambda piece: (piece.channel, piece.call)):
        first, *rest = each
        text = "".join([first.text, *(piece.text for piece in rest)]) if rest else first.text
        made.append(Said(channel, text, call, first.name))
    return made


def without_first(pieces: Sequence[Said], count: int) -> list[Said]:
    """``pieces`` without their first ``count`` bytes, as :func:`said_bytes` counts them.

    A name is left out whole, and so is a letter of which the bytes have a part.
    """
    lacking: list[Said] = []
    for piece in pieces:
        if not count:
            lacking.append(piece)
            continue
        name = piece.name
        if name:
            count, name = max(0, count - len(name.encode(errors="replace"))), ""
        raw = piece.text.encode(errors="replace")
        text, count = raw[count:].decode(errors="ignore") if count else piece.text, max(0, count - len(raw))
        if text:
            lacking.append(replace(piece, text=text, name=name))
    return lacking


def reader_of(form: str, tools: Collection[str], *, reasons: bool, thinking: bool) -> AnswerReader:
    """The reader of an answer, by its format as a quote names it: ``hermes/1``; "" has no calls.

    Raises ``ValueError`` for a format or a version that is not known here.
    """
    name, _, version = form.partition("/")
    if form and (name not in _OPENINGS or version != str(VERSION)):
        msg = f"the answer's format {form[:40]!r} is not known here"
        raise ValueError(msg)
    known: ToolFormat = name if form else "generic"  # type: ignore[assignment]
    return AnswerReader(known, tools if form else (), reasons=reasons, thinking=thinking)


class _Call:
    """One call under way: ``{"name": …, "arguments": {…}}``, or the arguments alone where a name is given.

    Its text is kept in buffers: a list of the pieces that come would take many times the memory.
    """

    def __init__(self, tools: Collection[str], name: str) -> None:
        self._tools = tools
        self.name = name
        self.begun = False
        self._named_before = bool(name)
        self._read = StringIO()
        self._size = 0
        """Letters of what was read."""
        self._depth = 0
        self._in_string = self._escaped = self._is_value = False
        self._literal = StringIO()
        """The string under way, where it is a key or a value of the call itself."""
        self._key = ""
        self._keys = 0
        self._arguments: Literal["no", "open", "over"] = "open" if name else "no"
        self._new = StringIO()
        """Of the arguments: what :meth:`new_arguments` has not given."""

    def copy(self) -> _Call:
        """Another call that has read the same."""
        other = copy(self)
        for name in ("_read", "_literal", "_new"):
            setattr(other, name, _written(getattr(self, name).getvalue()))
        return other

    @property
    def text(self) -> str:
        """All that was read."""
        return self._read.getvalue()

    def take(self, text: str) -> tuple[int, _Judged]:
        """Read on; how many characters were this call's, and whether it is over."""
        if self._named_before and self.name not in self._tools:
            return 0, "no call"
        text = text[: CALL_MAX - self._size]
        at, begin = 0, 0
        judged: _Judged = "more"
        while at < len(text) and judged == "more":
            if self._in_string:
                at, judged = self._in_literal(text, at)
                continue
            before = self._arguments
            at = self._outside(text, at)
            if before == "no" and self._arguments == "open":
                begin = at - 1
            elif before == "open" and self._arguments == "over":
                self._new.write(text[begin:at])
            if not self._depth:
                break
            if self._depth > DEPTH_MAX:
                judged = "no call"
        self._read.write(text[:at])
        self._size += at
        if self._arguments == "open":
            self._new.write(text[begin:at])
        if at and not self._depth:
            judged = self._judge()
        elif self._size >= CALL_MAX:
            judged = "no call"
        return at, "broken" if judged == "no call" and self.begun else judged

    def new_arguments(self) -> str:
        """What is new of the arguments: nothing while the name or the arguments haven't come."""
        if not self.name:
            return ""
        new = self._new.getvalue()
        if new:
            self._new = StringIO()
        return new

    def _in_literal(self, text: str, at: int) -> tuple[int, _Judged]:
        """Go on in a string: to its end, or past one escape, or to the end of what came."""
        is_own = self._depth == 1 and not self._named_before
        end, is_over = at + 1, False
        judged: _Judged = "more"
        if self._escaped:
            self._escaped = False
        else:
            end = _PLAIN.match(text, at).end()  # type: ignore[union-attr]  # it matches anywhere
            if end < len(text):
                self._escaped, is_over = text[end] == "\\", text[end] == '"'
                end += 1
        if is_own:
            self._literal.write(text[at:end])
        if is_over:
            self._in_string = False
            if is_own:
                judged = self._string(self._literal.getvalue())
        return end, judged

    def _outside(self, text: str, at: int) -> int:
        """Go on outside of strings, past the next letter that tells of the structure."""
        at = _NO_STRUCTURE.match(text, at).end()  # type: ignore[union-attr]  # it matches anywhere
        if at == len(text):
            return at
        letter = text[at]
        if letter == '"':
            self._in_string, self._literal = True, _written('"')
        elif letter in "{[":
            self._depth += 1
            is_member = self._depth == _MEMBER and self._is_value and self._key in _ARGUMENTS
            if is_member and letter == "{" and self._arguments == "no":
                self._arguments = "open"
        elif letter in "}]":
            self._depth -= 1
            if self._arguments == "open" and self._depth <= (0 if self._named_before else 1):
                self._arguments = "over"
        elif self._depth == 1:
            self._is_value = letter == ":"
        return at + 1

    def _string(self, literal: str) -> _Judged:
        """A key of the call, or a value that is a string."""
        try:
            text = str(json.loads(literal))
        except ValueError:
            return "no call"
        if self._is_value:
            if self._key == "name" and not self.name:  # of two names the first counts: it may be told already
                if text not in self._tools:
                    return "no call"
                self.name = text
        else:
            self._key = text
            self._keys += 1
            if self._keys == 1 and text not in _FIRST_KEYS:
                return "no call"
        return "more"

    def _judge(self) -> _Judged:
        """Whether the whole is a call."""
        value = _loads(self.text)
        if not self.name:
            return "no call"
        if self._arguments != "no":
            return "whole" if isinstance(value, dict) else "broken"
        # Arguments that are left out are none; as a string that holds an object, they are that object.
        given = next((value[key] for key in sorted(_ARGUMENTS) if key in value), None) if value else None
        text = "{}" if given is None else given
        if not isinstance(value, dict) or not isinstance(text, str) or not self._is_object(text):
            return "no call"
        text = text.encode("utf-8", "replace").decode()  # half of a letter alone can't be sent
        self._arguments = "over"
        self._new.write(text)
        return "whole"

    def _is_object(self, text: str) -> bool:
        """Whether a string holds an object, within the bounds of a call."""
        text = text.strip(_BLANK)
        return _Call((self.name,), self.name).take(text) == (len(text), "whole")


def _written(text: str) -> StringIO:
    """A buffer with ``text``, which is written on."""
    made = StringIO()
    made.write(text)
    return made


def _loads(text: str) -> Any:
    """The value of JSON; None for what is none. Numbers may be of any length."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_int=float)
    except ValueError:
        return None


def _may_begin(text: str, marks: tuple[str, ...]) -> int:
    """Where the longest tail of ``text`` begins that may become one of ``marks``."""
    longest = max((len(mark) - 1 for mark in marks), default=0)
    for at in range(max(0, len(text) - longest), len(text)):
        if any(mark.startswith(text[at:]) for mark in marks):
            return at
    return len(text)


def _refuse(_constant: str) -> NoReturn:
    raise ValueError
