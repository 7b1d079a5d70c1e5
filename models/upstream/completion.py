"""What an OpenAI-compatible server says: from the JSON of an answer to text, tokens, counts and errors. Pure.

Both forms are read: ``/v1/completions`` (``choices[0].text``) and ``/v1/chat/completions``
(``choices[0].delta.content``, or ``message.content`` from a server that sends the whole text at once).
Everything that is missing, empty or unknown is left out; only what makes no sense at all is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

from p2pnode.errors import EngineError, EngineLostError
from p2pnode.models.upstream.sse import EVENT_MAX_BYTES, Event, EventParser, MalformedError

DONE: Final = "[DONE]"
_RETRY_DEFAULT_S: Final = 2.0
_RETRY_MAX_S: Final = 120.0
_OWNERS: Final = frozenset({401, 403, 404, 405})
"""Statuses that only the host's owner can do something about."""
_BUSY: Final = frozenset({429, 503, 529})
_TOO_LARGE: Final = 413
_BAD: Final = frozenset({400, 422})
_REASON_CHARACTERS: Final = 200
_OVERFLOW: Final = re.compile(
    r"exceed_context|context.?(length|size|window|limit)|maximum context|too many tokens|prompt is too long"
    r"|longer than the maximum",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class TokenTold:
    """A token as the server names it: its bytes, its id where that is told, and log-probabilities."""

    spelled: bytes
    id: int | None
    logprob: float
    top: tuple[tuple[bytes, int | None, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one frame of an answer adds. ``finish`` is the server's reason for the end, "" before it.

    ``thought`` is text that the server took out of the answer, as the model's reasoning. ``marked``: the
    mark of the end came, or the end of an answer that is whole.
    """

    text: str = ""
    thought: str = ""
    finish: str = ""
    tokens: tuple[TokenTold, ...] = ()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    marked: bool = False

    @property
    def counts(self) -> bool:
        """Whether the answer has come further by it."""
        return bool(self.text or self.thought or self.finish or self.marked)


def joined(parts: Iterable[Part]) -> Part:
    """The parts of a whole answer as one."""
    all_parts = list(parts)
    return Part(
        text="".join(each.text for each in all_parts),
        thought="".join(each.thought for each in all_parts),
        finish=next((each.finish for each in reversed(all_parts) if each.finish), ""),
        tokens=tuple(token for each in all_parts for token in each.tokens),
    )


class RefusedError(Exception):
    """The server refused: with an HTTP status, or with an error in the place of an answer (then 500)."""

    def __init__(self, status: int, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


class AnswerParser:
    """The bytes of one answer, as they arrive, to its parts. ``streams``: they are server-sent events.

    Otherwise they are one JSON value: some servers send the whole text at once, whatever they are asked.
    """

    def __init__(self, *, streams: bool) -> None:
        self._events = EventParser()
        self._whole: bytearray | None = None if streams else bytearray()
        self._error: Exception | None = None
        self.over = False
        """The mark of the end came, or the answer ended, or nothing can be read any more."""

    def feed(self, data: bytes) -> list[Part]:
        """The parts that ``data`` completes. Those before an error are given first: see :meth:`check`."""
        if self._whole is not None:
            self._whole += data
            if len(self._whole) > EVENT_MAX_BYTES:
                return self._failed(MalformedError(f"the answer has more than {EVENT_MAX_BYTES} bytes"))
            return []
        try:
            events = self._events.feed(data)
        except MalformedError as error:
            return self._failed(error)
        return self._parts(events)

    def finish(self) -> list[Part]:
        """The parts that the end of the answer completes."""
        whole = self._whole
        events = self._events.finish() if whole is None else [Event(whole.decode("utf-8", "replace"))]
        made = self._parts(events)
        self.over = True
        return made if whole is None or self._error is not None else [*made, Part(marked=True)]

    def check(self) -> None:
        """Raise what is wrong after the parts that were given: ``RefusedError`` or ``MalformedError``."""
        if self._error is not None:
            raise self._error

    def _parts(self, events: Iterable[Event]) -> list[Part]:
        made: list[Part] = []
        for event in events:
            try:
                parts = parts_of(event)
            except (RefusedError, MalformedError) as error:
                self._failed(error)
                break
            if parts is None:
                self.over = True
                return [*made, Part(marked=True)]
            made += parts
        return made

    def _failed(self, error: Exception) -> list[Part]:
        self._error, self.over = error, True
        return []


def parts_of(event: Event) -> list[Part] | None:
    """The parts of an event; None for the mark of the end.

    Raises ``RefusedError`` for an error in it, ``MalformedError`` for what is no JSON.
    """
    if event.data.strip() == DONE:
        return None
    frames = _frames(event.data)
    if event.name == "error":
        raise refusal_in(frames[0] if frames else {}, 500)
    return [part_of(frame) for frame in frames]


def part_of(frame: Any) -> Part:
    """What a decoded frame adds. Raises ``RefusedError``, ``MalformedError``."""
    if not isinstance(frame, dict):
        raise MalformedError("a frame is no JSON object")
    if frame.get("error") or frame.get("object") == "error":
        raise refusal_in(frame, 500)
    usage = frame.get("usage")
    choices = frame.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    choice = first if isinstance(first, dict) and first.get("index", 0) in (0, None) else {}
    said = next(
        (each for each in (choice.get("delta"), choice.get("message")) if isinstance(each, dict)), choice
    )
    return Part(
        text=_text(said.get("content")) or _text(choice.get("text")),
        thought=_text(said.get("reasoning_content")) or _text(said.get("reasoning")),
        finish=str(choice.get("finish_reason") or ""),
        tokens=tuple(_tokens(choice.get("logprobs"))),
        prompt_tokens=_count(usage, "prompt_tokens"),
        cached_tokens=_count(
            usage.get("prompt_tokens_details") if isinstance(usage, dict) else None, "cached_tokens"
        ),
    )


def refusal_in(
    answer: Any, status: int, *, retry_after: str | None = None, now_s: float = 0.0
) -> RefusedError:
    """The error that a decoded answer holds. ``now_s``: the wall clock, for a ``Retry-After`` with a date."""
    error = answer.get("error", answer.get("detail", answer)) if isinstance(answer, dict) else answer
    message, code = error, None
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or error.get("type") or "no reason given"
        code = error.get("code")
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    if status == 500 and isinstance(code, int) and 400 <= code < 600:  # noqa: PLR2004 - HTTP's errors
        status = code
    return RefusedError(status, _short(message), retry_after_s=_retry_after(retry_after, now_s))


def error_of(refused: RefusedError) -> EngineError:
    """What a refusal means to whoever asked this host."""
    words = str(refused)
    if refused.status in _BUSY:
        wait_s = refused.retry_after_s if refused.retry_after_s is not None else _RETRY_DEFAULT_S
        return EngineError(
            "the server behind this host is busy; ask again later", code="capacity", retry_after_s=wait_s
        )
    if refused.status == _TOO_LARGE or (refused.status in {*_BAD, 500} and _OVERFLOW.search(words)):
        return EngineError(
            f"the prompt doesn't fit the server behind this host: {words}; shorten the conversation",
            code="context_overflow",
        )
    if refused.status in _BAD:
        return EngineError(f"the server behind this host refused the request: {words}", code="bad_request")
    if refused.status in _OWNERS:
        return EngineError(
            f"the server behind this host refuses the host itself ({refused.status}): use another host",
            retry_after_s=_RETRY_MAX_S,
        )
    return EngineLostError(
        f"the server behind this host failed ({refused.status}: {words}); ask again",
        retry_after_s=refused.retry_after_s or 1.0,
    )


def words_for_the_owner(refused: RefusedError, url: str, model: str) -> str:
    """What the host's owner can do about a refusal."""
    match refused.status:
        case 401 | 403:
            return (
                f"{url} asks for a key ({refused.status}: {refused}): write it into a file that only you can "
                "read, and name it with --upstream-key-file"
            )
        case 404 | 405:
            return (
                f"{url} has no such model or address ({refused.status}: {refused}): it was asked for "
                f"{model or 'its models'}; check --upstream, which ends before /v1, and --upstream-model"
            )
        case _:
            return f"{url} refused ({refused.status}: {refused}): look at its own log"


def _frames(data: str) -> list[Any]:
    try:
        return [json.loads(data)]
    except (ValueError, RecursionError):
        pass
    try:
        # Some servers leave the empty line between two events out.
        return [json.loads(line) for line in data.split("\n") if line.strip() not in ("", DONE)]
    except (ValueError, RecursionError) as error:
        raise MalformedError("a frame is no JSON") from error


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # content in parts
        return "".join(_text(each.get("text")) for each in content if isinstance(each, dict))
    return ""


def _count(holder: Any, name: str) -> int | None:
    value = holder.get(name) if isinstance(holder, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _tokens(logprobs: Any) -> Iterable[TokenTold]:
    if not isinstance(logprobs, dict):
        return
    try:
        if isinstance(logprobs.get("content"), list):
            for each in logprobs["content"]:
                top = tuple(
                    (*_spelled(other), float(other["logprob"])) for other in each.get("top_logprobs") or ()
                )
                yield TokenTold(*_spelled(each), float(each["logprob"]), top)
        elif isinstance(logprobs.get("tokens"), list):
            told = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
            for token, own, others in zip(logprobs["tokens"], logprobs["token_logprobs"], told, strict=True):
                top = tuple(
                    (name.encode(), None, float(value))
                    for name, value in sorted((others or {}).items(), key=lambda one: -one[1])
                )
                yield TokenTold(str(token).encode(), None, float(own), top)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedError("log-probabilities are in no known form") from error


def _spelled(token: Mapping[str, Any]) -> tuple[bytes, int | None]:
    own, name = token.get("id"), token.get("bytes")
    spelled = bytes(name) if isinstance(name, list) else str(token["token"]).encode()
    return spelled, own if isinstance(own, int) and not isinstance(own, bool) else None


def _retry_after(value: str | None, now_s: float) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now_s
        except ValueError:
            return None
    return min(_RETRY_MAX_S, max(0.0, seconds)) if seconds == seconds else None  # noqa: PLR0124 - NaN


def _short(message: Any) -> str:
    return " ".join(str(message).split())[:_REASON_CHARACTERS]
