"""Which process uses a purchase, so that no other one delivers the last voucher of a session in use.

A process that buys holds a lock on a small file beside the journal for as long as it lives. The kernel
releases the lock however the process ends. Knows nothing of sessions.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from p2pnode.locks import lock, try_lock

ELSEWHERE: Final = "elsewhere"
"""Owner of a purchase that another machine of the user may use: the sealed index tells when it is over."""


class Owner:
    """This process, as one user of the journal at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None
        self._name = ""

    def name(self) -> str:
        """The name to write beside a purchase. The first call takes the lock. Raises ``OSError``."""
        if self._handle is None:
            self._name = secrets.token_hex(8)
            self._handle = os.open(_file(self._path, self._name), os.O_CREAT | os.O_RDWR, 0o600)
            # Whoever asks for a name takes it from the journal, and this one is not there yet: nobody can
            # have locked and removed the file since it was made.
            lock(self._handle)
        return self._name

    def release(self) -> None:
        """Release the lock: nothing that was bought under this name is used any more."""
        if self._handle is not None:
            with suppress(OSError):
                _file(self._path, self._name).unlink()
            os.close(self._handle)
            self._handle = None


def is_alive(path: Path, name: str) -> bool:
    """Whether the process of this name still runs. One whose lock can't be tried counts as alive."""
    if not name or name == ELSEWHERE:
        return bool(name)
    try:
        handle = os.open(_file(path, name), os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        if not try_lock(handle):
            return True
        with suppress(OSError):
            _file(path, name).unlink()
        return False
    finally:
        os.close(handle)


def _file(path: Path, name: str) -> Path:
    return path.with_name(f".{path.stem}.{name}.user")
