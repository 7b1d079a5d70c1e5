"""The command line: parse, build a configuration, run, print. Commands import late."""

from __future__ import annotations


def main() -> None:
    """The ``p2pnode`` program."""
    from p2pnode.cli.app import app

    app()
