"""Logs are events with fields: pretty on a terminal, JSON lines otherwise, always on stderr.

Never a prompt, an answer, a key or a secret: events carry ids, counts and reasons. A log that can't be
written is lost, and nothing else: no caller ever sees it fail.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog

from p2pnode.streams import screen_of

Level = Literal["debug", "info", "warning", "error"]


def configure_logging(level: Level = "warning", *, stream: TextIO | None = None) -> None:
    """Set up structlog once, from the CLI."""
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
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
