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
    "models/upstream/llamacpp_server.py": frozenset({"_exit"}),
    # What mDNS found. There is no multicast in a network in memory, and nothing else finds a neighbour.
    "client/test_client.py": frozenset({"_found"}),
    # Public: IPython calls it on what a notebook shows (its "rich display" protocol).
    "simulations/test_result.py": frozenset({"_repr_html_"}),
}

_CALLS: Final = frozenset({"getattr", "hasattr", "setattr", "delattr", "patch", "object"})


def _names(node: ast.AST) -> Iterator[str]:
    """What one node reads, sets, deletes or imports, but for the attributes of ``self`` and ``cls``.

    Of a text that ``getattr``, ``setattr``, ``patch`` and the like are given, it is the last part.
    """
    match node:
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            pass
        case ast.Attribute(attr=name):
            yield name
        case ast.ImportFrom(names=imported):
            yield from (each.name for each in imported)
        case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=given) if called in _CALLS:
            for each in given[:2]:
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    yield each.value.rpartition(".")[2]
        case _:
            pass


def _private(source: str) -> set[str]:
    names = {name for node in ast.walk(ast.parse(source)) for name in _names(node)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_no_test_touches_a_private_attribute() -> None:
    found = {
        str(path.relative_to(TESTS)): private
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__) and (private := _private(path.read_text()))
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
