"""What commands print. Text for people goes to stderr (stdout is for the answer), ``--json`` to stdout."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from p2pnode.errors import P2PNodeError


class Output:
    """One per command run."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """Rich on stderr, made when first used."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False)
        return self._console

    def event(self, name: str, fields: dict[str, Any] | None = None, *, text: str = "") -> None:
        """A JSON line, or ``text`` for people when there is any."""
        if self.as_json:
            sys.stdout.write(json.dumps({"event": name, **(fields or {})}) + "\n")
            sys.stdout.flush()
        elif text:
            self.console.print(text, markup=False, soft_wrap=True)

    def piece(self, text: str) -> None:
        """A piece of an answer as it streams."""
        if self.as_json:
            self.event("text", {"text": text})
        else:
            sys.stdout.write(text)
            sys.stdout.flush()

    def result(self, text: str) -> None:
        """A line that scripts may want: to stdout."""
        sys.stdout.write(text + "\n")

    def failed(self, error: P2PNodeError, code: int) -> None:
        """The error, as the last thing said."""
        fields = {"error": type(error).__name__, "message": str(error), "exit_code": code}
        wire_code = getattr(error, "code", None)
        if wire_code is not None:
            fields["code"] = wire_code
        self.event("failed", fields, text=f"p2pnode: {error}")


def shorten(peer: str) -> str:
    """A peer id that fits a table."""
    return f"{peer[:8]}…{peer[-6:]}" if len(peer) > 18 else peer  # noqa: PLR2004
