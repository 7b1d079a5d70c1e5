"""Runs a program that ends when stdin closes: ``python -m p2pnode.bench.supervisor PROGRAM ARGUMENT…``.

The program runs in a session of its own, so that a Ctrl-C on the terminal reaches it once, as an orderly
SIGTERM from here. This module imports little, for one such process stands beside each node that the bench
starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Final, NoReturn

from p2pnode.platforms import own_group

_GRACE_S: Final = 10.0
_EXIT_KILLED: Final = 1


def main() -> NoReturn:
    """Run the program of the command line, wait for the end of stdin, end the program."""
    # Handled rather than ignored: the program would inherit that.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: None)
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, **own_group())  # noqa: S603

    closing = threading.Event()

    def ended() -> None:
        code = program.wait()
        if not closing.is_set():
            os._exit(code if code >= 0 else _EXIT_KILLED)

    threading.Thread(target=ended, daemon=True).start()
    while os.read(0, 1 << 12):
        pass
    closing.set()
    program.terminate()
    try:
        program.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
    os._exit(0)


if __name__ == "__main__":
    main()
