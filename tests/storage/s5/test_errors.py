"""Which status each error of a store becomes."""

from __future__ import annotations

import json

import pytest

from p2pnode.errors import P2PNodeError, ProtocolError, StorageError, UnreachableError
from p2pnode.protocols.s5.ids import UnsupportedHashError
from p2pnode.storage.s5.server.errors import HttpError, answer, status_of
from p2pnode.storage.store import (
    BadEntryError,
    DiskFullError,
    HashMismatchError,
    NoBlobError,
    QuotaError,
    TooLargeError,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NoBlobError("x"), 404),
        (TooLargeError("x"), 413),
        (UnsupportedHashError("x"), 415),
        (HashMismatchError("x"), 422),
        (QuotaError("x"), 507),
        (DiskFullError("x"), 507),
        (BadEntryError("x"), 400),
        (ProtocolError("x"), 400),
        (UnreachableError("x"), 502),
        (StorageError("x"), 500),
    ],
)
def test_every_error_has_its_status(error: P2PNodeError, status: int) -> None:
    assert status_of(error) == status
    response = answer(error)
    assert response.status_code == status
    assert json.loads(bytes(response.body)) == {"error": "x"}


def test_what_nobody_expected_tells_nothing_of_itself() -> None:
    response = answer(RuntimeError("a secret path"))
    assert response.status_code == 500
    assert b"secret" not in bytes(response.body)


def test_a_refusal_keeps_its_headers() -> None:
    response = answer(HttpError(401, "x", {"WWW-Authenticate": "Bearer"}))
    assert response.headers["www-authenticate"] == "Bearer"
