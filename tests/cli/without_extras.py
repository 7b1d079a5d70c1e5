"""Run as a program: commands and imports in a process in which the packages of all extras can't be imported.

Reads JSON from standard input, ``{"commands": [[argument, …], …], "modules": bool}``, and writes
``{"commands": [{"code", "said"}, …], "failed": {module: missing package}}``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import io
import json
import pkgutil
import sys
from typing import Any

from p2pnode.extras import MODULES

HIDDEN = {module for modules in MODULES.values() for module in modules} - {"h11"}  # httpx brings h11


class Refuse(importlib.abc.MetaPathFinder):
    """As where the packages aren't installed."""

    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> None:
        name = fullname.partition(".")[0]
        if name in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _run(arguments: list[str]) -> dict[str, Any]:
    from p2pnode.cli.app import app

    said = io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            app(arguments)
        except SystemExit as left:
            code = left.code
    return {"code": code or 0, "said": said.getvalue()}


def _failed() -> dict[str, str | None]:
    """Modules that can't be imported, each with the package that it lacks."""
    import p2pnode

    failed = {}
    for found in pkgutil.walk_packages(p2pnode.__path__, "p2pnode."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except ModuleNotFoundError as error:
                failed[found.name] = error.name
    return failed


def main() -> None:
    sys.meta_path.insert(0, Refuse())
    asked = json.load(sys.stdin)
    told = {
        "commands": [_run(arguments) for arguments in asked["commands"]],
        "failed": _failed() if asked["modules"] else {},
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
