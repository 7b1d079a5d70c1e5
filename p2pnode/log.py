"""Logs are events with fields: pretty on a terminal, JSON lines otherwise, always on stderr.

Events carry ids, counts and reasons, and never a prompt, an answer, a key or a secret. An event that can't be
written is lost; its caller does not notice.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from typing import Any, Final, Literal, TextIO

import structlog

from p2pnode.streams import screen_of
from p2pnode.words import one_line, printable, without_secrets

Level = Literal["debug", "info", "warning", "error"]
_RECENT: Final[deque[dict[str, Any]]] = deque(maxlen=300)
"""The last events of this process, as they were logged."""
_FIELD_MAX: Final = 300


def configure_logging(level: Level = "warning", *, stream: TextIO | None = None) -> None:
    """Set up structlog. The command line calls this once."""
    target = screen_of(stream if stream is not None else sys.stderr)
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(colors=target.isatty())
        if target.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _on_one_line,
            _remember,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=False,
    )


def _on_one_line(
    _logger: object, _method: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    """Put each field, which may be a stranger's text, on one line. A traceback keeps its lines, each of them
    clean. A key's secret, which no caller logs, is left out should it stand in an error all the same."""
    for name, value in event.items():
        if isinstance(value, str):
            clean = without_secrets(value)
            event[name] = printable(clean) if name == "exception" else one_line(clean)
    return event


def _remember(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    _RECENT.append({name: str(value)[:_FIELD_MAX] for name, value in event.items()})
    return event


def recent_events() -> list[dict[str, Any]]:
    """The last events that were logged in this process, the newest first; all fields are texts."""
    return list(reversed(_RECENT))


def configure_unless_done() -> None:
    """Log warnings to stderr, for a program that uses this package and has not set up structlog."""
    if not structlog.is_configured():
        configure_logging()
