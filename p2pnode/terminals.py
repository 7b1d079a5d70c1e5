"""A terminal's modes, as POSIX systems have them. On Windows none are known, and no secret is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from p2pnode.errors import ConfigError

Modes: TypeAlias = list[Any]


def modes_of(handle: int) -> Modes | None:
    """The modes of a terminal, to be given back later; None for what is none."""
    if sys.platform == "win32":
        return None
    import termios

    try:
        return termios.tcgetattr(handle)
    except (OSError, termios.error):
        return None


def set_modes(handle: int, modes: Modes) -> None:
    """Give a terminal modes that it had, once all that was written is out. One that is gone takes none."""
    if sys.platform != "win32":
        import termios

        with suppress(OSError, termios.error):
            termios.tcsetattr(handle, termios.TCSADRAIN, modes)


def hide(handle: int) -> None:
    """What is typed is not shown, and what was typed before is dropped. Raises ``ConfigError``."""
    if sys.platform == "win32":
        msg = "a passphrase can't be typed unseen on this system: keep it in a file (--passphrase-file)"
        raise ConfigError(msg)
    import termios

    hidden = termios.tcgetattr(handle)
    hidden[3] &= ~termios.ECHO
    termios.tcsetattr(handle, termios.TCSAFLUSH, hidden)


def hold_back(handle: int, *, by_key: bool) -> None:
    """What is typed is kept and not shown. ``by_key``: a read gives what there is, without waiting."""
    if sys.platform != "win32":
        import termios

        silent = termios.tcgetattr(handle)
        silent[3] &= ~(termios.ECHO | (termios.ICANON if by_key else 0))
        silent[6][termios.VMIN], silent[6][termios.VTIME] = (0, 0) if by_key else (1, 0)
        termios.tcsetattr(handle, termios.TCSADRAIN, silent)


@contextmanager
def own_terminal() -> Iterator[int]:
    """The terminal of this process, whatever its standard streams are. Raises ``OSError``."""
    if sys.platform == "win32":
        handle = os.dup(sys.stdin.fileno())
    else:
        try:
            handle = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        except OSError:
            handle = os.dup(sys.stdin.fileno())
    try:
        yield handle
    finally:
        os.close(handle)
