"""Errors as HTTP responses: the status of each; the body is JSON, ``{"error": …}``, and says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, Response

from p2pnode.errors import P2PNodeError, ProtocolError, RemoteError
from p2pnode.protocols.s5.ids import UnsupportedHashError
from p2pnode.storage.store import (
    BadEntryError,
    DiskFullError,
    HashMismatchError,
    NoBlobError,
    QuotaError,
    StaleEntryError,
    TooLargeError,
)

STALE_TEXT: Final = "Revision number too low"
"""s5.js and others look for this text in the body of a 500, so it is the one answer that isn't JSON."""
_STATUS: Final[tuple[tuple[type[P2PNodeError], int], ...]] = (
    (NoBlobError, 404),
    (TooLargeError, 413),
    (UnsupportedHashError, 415),
    (HashMismatchError, 422),
    (QuotaError, 507),
    (DiskFullError, 507),
    (BadEntryError, 400),
    (ProtocolError, 400),
    (RemoteError, 502),
)

log = structlog.get_logger(__name__)


class HttpError(Exception):
    """Ends a request with this status."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


def status_of(error: P2PNodeError) -> int:
    """The status of one of the package's errors; 500 where none is given."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def answer(error: Exception) -> Response:
    """The response to a request that failed with ``error``."""
    match error:
        case HttpError():
            return _json(error.status, str(error), error.headers)
        case StaleEntryError():
            return PlainTextResponse(STALE_TEXT, 500)
        case P2PNodeError():
            return _json(status_of(error), str(error))
        case HTTPException():
            said = "there is no such route" if error.status_code == 404 else error.detail  # noqa: PLR2004
            return _json(error.status_code, said, error.headers)
        case _:
            return _json(500, "the node failed; its log says why")


async def on_error(request: HTTPConnection, error: Exception) -> Response:
    """Starlette's hook: answers every error, and logs those that are our fault."""
    response = answer(error)
    if response.status_code == 500 and not isinstance(error, StaleEntryError):  # noqa: PLR2004
        log.error("s5.request_failed", path=_route(request), kind=type(error).__name__, exc_info=error)
    return response


def _route(request: HTTPConnection) -> str:
    return str(getattr(request.scope.get("route"), "path", ""))


def _json(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers=dict(headers or {}))
