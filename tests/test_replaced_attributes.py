"""No test replaces a private attribute.

It would go on passing when the code no longer uses the part that it replaces.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent


def _replaced(tree: ast.AST) -> Iterator[str]:
    """What calls of ``setattr``, ``delattr`` and ``patch`` name: the last part of each name or path."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called not in {"setattr", "delattr", "patch", "object"}:
            continue
        for argument in node.args[:2]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value.rpartition(".")[2]
            elif isinstance(argument, ast.Attribute):
                yield argument.attr


def _private(source: str) -> set[str]:
    names = set(_replaced(ast.parse(source)))
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_no_test_replaces_a_private_attribute() -> None:
    found = {
        str(path.relative_to(TESTS)): private
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__) and (private := _private(path.read_text()))
    }
    assert found == {}


def test_each_way_of_replacing_is_seen() -> None:
    assert _private("monkeypatch.setattr(thing, '_part', 1)") == {"_part"}
    assert _private("monkeypatch.setattr('package.module._part', 1)") == {"_part"}
    assert _private("monkeypatch.setattr(client._asking, 'answer', 1)") == {"_asking"}
    assert _private("mock.patch.object(thing, '_part')") == {"_part"}
    assert _private("monkeypatch.setattr(thing, 'part', 1); setattr(thing, '__doc__', '')") == set()
