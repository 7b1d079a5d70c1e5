"""A command at a real pseudo-terminal: what a person sees, and what they type."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from typing import Self

DEADLINE_S = 30.0
_TAKE = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """``p2pnode`` with a terminal of its own, so that its questions and their echo are real."""

    def __init__(self, arguments: Sequence[object], *, columns: int = 200, term: str = "dumb") -> None:
        self._master, self._terminal = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE, sys.executable, "-m", "p2pnode", *map(str, arguments)],
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            start_new_session=True,
            env={**os.environ, "COLUMNS": str(columns), "TERM": term},
        )
        self.seen = ""

    def expect(self, text: str) -> None:
        """Read until ``text`` is on the screen."""
        until = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            left = until - time.monotonic()
            assert left > 0, f"no {text!r} in time: {self.seen}"
            if not self._read(0.05):
                assert self.process.poll() is None, f"ended without {text!r}: {self.seen}"

    def answer(self, question: str, text: str) -> None:
        """Wait for a question, then type."""
        self.expect(question)
        self.seen = self.seen.partition(question)[2]
        self.type(text + "\n")

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._master, text.encode())

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._terminal)[3] & termios.ECHO)

    def end(self) -> int:
        """Read to the end; its exit code."""
        until = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < until, f"no end in time: {self.seen}"
            self._read(0.02)
        while self._read(0):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return False
        self.seen += os.read(self._master, 65536).decode(errors="replace").replace("\r\n", "\n")
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._terminal)
