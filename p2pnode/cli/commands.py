"""How commands are declared: as typer's, and no argument or option takes an empty word for a value.

An empty word is what a script passes whose variable is not set. It must not mean the current folder, the only
conversation, or the default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

_MAY_BE_EMPTY: Final = frozenset({"question", "system", "stop", "name"})
"""Text that is nobody's id and no place, or that its command checks by itself."""


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _refuse_empty(self, ctx, args)
        return super().parse_args(ctx, args)


class _Group(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _refuse_empty(self, ctx, args)
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """A group of commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Declare one."""
        return super().command(name, cls=_Command, **settings)


def _refuse_empty(command: TyperCommand | TyperGroup, ctx: Any, args: list[str]) -> None:
    """Before any value is converted: a path made of an empty word is the current folder."""
    given, _, _ = command.make_parser(ctx).parse_args(args=list(args))
    parameter: Any
    for parameter in command.get_params(ctx):
        value = given.get(parameter.name or "")
        values = value if isinstance(value, (list, tuple)) else (value,)
        if parameter.name in _MAY_BE_EMPTY:
            continue
        if any(isinstance(each, str) and not each.strip() for each in values):
            msg = "it is empty: give it a value, or leave it out (is a variable of your script not set?)"
            raise typer.BadParameter(msg, ctx=ctx, param=parameter)
