"""The command line: parse, build a configuration, run, print.

Commands import what they need when they run.
"""

from __future__ import annotations

import os
import signal
import sys

from p2pnode.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED


def main() -> None:
    """The ``p2pnode`` program."""
    # Until a command takes the signals over, and after it gives them back, Ctrl-C ends the process silently.
    signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(EXIT_INTERRUPTED))
    from p2pnode.streams import open_streams, settle_streams

    open_streams()
    from p2pnode.cli.app import app

    try:
        app()
    except OSError as error:  # of the command line's library: a command tells its own
        sys.stderr.write(f"p2pnode: standard output can't be written ({error.strerror})\n")
        raise SystemExit(EXIT_FAILED) from None
    finally:
        settle_streams()
