"""Asking once before what can't be undone. ``--yes`` answers; where nobody can be asked it is needed."""

from __future__ import annotations

import sys

from p2pnode.cli.output import Output
from p2pnode.cli.user_input import Lines


async def confirm(output: Output, what: str, *, yes: bool) -> None:
    """Return when the user wants it.

    Raises ``UsageError`` where there is no terminal to ask at, and ``LocalError`` when the answer is no.
    """
    from p2pnode.errors import LocalError, UsageError

    if yes:
        return
    if output.as_json or not sys.stdin.isatty():
        msg = f"{what}: add --yes to do that where nobody can be asked. Nothing was done"
        raise UsageError(msg)
    output.event("", text=f"{what}. Type yes to go on:")
    with Lines(sys.stdin, quiet=False) as lines:
        answer = await lines.next()
    if answer is None or answer.strip().lower() not in {"y", "yes"}:
        msg = "nothing was done, since the answer was not yes"
        raise LocalError(msg)
