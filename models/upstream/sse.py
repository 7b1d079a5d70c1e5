"""``EventParser``: server-sent events as servers really send them, from bytes to each event's data. Pure.

Lines end with CR, LF or both; comments and unknown fields are skipped; the last event may lack the empty line
that should end it. See https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EVENT_MAX_BYTES: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"


class MalformedError(Exception):
    """What came is no answer in the form that was asked for."""


@dataclass(frozen=True, slots=True)
class Event:
    """``name`` is "" where the server gave none."""

    data: str
    name: str = ""


class EventParser:
    """The parser of one answer."""

    def __init__(self) -> None:
        self._rest = b""
        self._began = False
        self._name = ""
        self._data: list[str] = []
        self._held = 0

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes. Raises ``MalformedError`` where one is too long."""
        self._rest += data
        if not self._began:
            if _BOM.startswith(self._rest):
                return []
            self._rest, self._began = self._rest.removeprefix(_BOM), True
        # A CR at the end may be half of a CRLF.
        whole = self._rest[:-1] if self._rest.endswith(b"\r") else self._rest
        *lines, rest = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + self._rest[len(whole) :]
        events = [event for line in lines if (event := self._take(line)) is not None]
        if self._held + len(self._rest) > EVENT_MAX_BYTES:
            raise MalformedError(f"an event has more than {EVENT_MAX_BYTES} bytes")
        return events

    def finish(self) -> list[Event]:
        """The event under way when the answer ended, if there was one."""
        rest, self._rest = self._rest.rstrip(b"\r"), b""
        last = [self._take(rest)] if rest else []
        return [event for event in [*last, self._take(b"")] if event is not None]

    def _take(self, line: bytes) -> Event | None:
        if not line:
            event = Event("\n".join(self._data), self._name) if self._data else None
            self._data, self._name, self._held = [], "", 0
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value.decode("utf-8", "replace"))
            self._held += len(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")[:64]
        return None
