"""Which runs use a thing that they share, so that the last of them puts it away.

Each holds the lock of a small file of its own, which the system gives up however the run ends. Whoever comes
or leaves does so in one lock of the folder (``p2pnode/files.py``).
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Self

from p2pnode.locks import is_held, lock


class User:
    """This run, as one user of what ``name`` stands for. Raises ``OSError``."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.{secrets.token_hex(8)}.user"
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        lock(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
        with suppress(OSError):  # another run has seen that it is over
            self._path.unlink()

    def is_alone(self) -> bool:
        """Whether no other run uses it."""
        return not has_users(self._path.parent, self._path.name.rsplit(".", 2)[0], but=self._path)


def has_users(folder: Path, name: str, *, but: Path | None = None) -> bool:
    """Whether a run uses it, apart from ``but``. Files of runs that crashed are removed."""
    found = False
    for each in folder.glob(f"{name}.*.user"):
        if each == but:
            continue
        if is_held(each):
            found = True
        else:
            with suppress(OSError):
                each.unlink()
    return found
