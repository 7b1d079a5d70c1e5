"""No test reads, sets or replaces a private attribute of what it tests.

One that is replaced may no longer be used, and the test would go on passing. One that is read ties the test
to how a class is made, not to what it does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

TESTS = Path(__file__).parent
ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    # ``os._exit`` is public, for all its name: it ends a process at once, as a crash does.
    "crash/mortal.py": frozenset({"_exit"}),
    # What mDNS found. There is no multicast in a network in memory, and nothing else finds a neighbour.
    "client/test_client.py": frozenset({"_found"}),
}
NETWORK: Final = "net/"
"""Its tests look beneath the network's own seam: at sockets, at a muxer's buffers, at a router's table."""


def _named(tree: ast.AST) -> Iterator[str]:
    """What calls of ``getattr``, ``setattr``, ``patch`` and the like name in a text: its last part."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in {"getattr", "hasattr", "setattr", "delattr", "patch", "object"}:
            for argument in node.args[:2]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value.rpartition(".")[2]


def _of_others(tree: ast.AST) -> Iterator[str]:
    """Attributes that are read, set or deleted, but for those of ``self`` and ``cls``; and imported names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}):
                yield node.attr
        elif isinstance(node, ast.ImportFrom):
            for imported in node.names:
                yield imported.name


def _private(source: str) -> set[str]:
    tree = ast.parse(source)
    names = {*_named(tree), *_of_others(tree)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_no_test_touches_a_private_attribute() -> None:
    found = {
        name: private
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__)
        and not (name := str(path.relative_to(TESTS))).startswith(NETWORK)
        and (private := _private(path.read_text()))
    }
    assert found == ALLOWED


def test_each_way_of_touching_is_seen() -> None:
    assert _private("monkeypatch.setattr(thing, '_part', 1)") == {"_part"}
    assert _private("monkeypatch.setattr('package.module._part', 1)") == {"_part"}
    assert _private("monkeypatch.setattr(client._asking, 'answer', 1)") == {"_asking"}
    assert _private("mock.patch.object(thing, '_part')") == {"_part"}
    assert _private("getattr(thing, '_part')") == {"_part"}
    assert _private("assert thing._part == 1") == {"_part"}
    assert _private("thing.whole._part = 1") == {"_part"}
    assert _private("del thing._part") == {"_part"}
    assert _private("from package.module import Whole, _part") == {"_part"}
    assert _private("monkeypatch.setattr(thing, 'part', 1); setattr(thing, '__doc__', '')") == set()
    assert _private("self._part = thing.part; thing.__class__") == set()
