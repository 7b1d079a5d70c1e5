"""What errors of SQLite and of the disk stand for."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from p2pnode.sqlite_files import Trouble, trouble_of


def failed(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("it failed")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (failed(sqlite3.SQLITE_FULL), "full"),
        (failed(sqlite3.SQLITE_IOERR_SHMSIZE), "full"),  # what opening on a full disk gives
        (failed(sqlite3.SQLITE_IOERR_READ), "disk"),
        (failed(sqlite3.SQLITE_BUSY), "busy"),
        (failed(sqlite3.SQLITE_CORRUPT), "damaged"),
        (failed(sqlite3.SQLITE_CANTOPEN), "denied"),
        (OSError(errno.ENOSPC, "no space"), "full"),
        (OSError(errno.EIO, "bad sector"), "disk"),
        (PermissionError(errno.EACCES, "denied"), "denied"),
    ],
)
def test_an_error_is_the_trouble_that_the_user_can_mend(error: Exception, trouble: Trouble) -> None:
    assert trouble_of(error) == trouble
