"""The command line: parse, build a configuration, run, print. Commands import late."""

from __future__ import annotations

import os
import signal

EXIT_INTERRUPTED = 130


def main() -> None:
    """The ``p2pnode`` program."""
    # Until a command takes the signals over, and after it gives them back, Ctrl-C leaves without a word.
    signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(EXIT_INTERRUPTED))
    from p2pnode.cli.app import app

    app()
