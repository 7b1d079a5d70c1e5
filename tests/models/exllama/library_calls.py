"""Reads, without importing them, what our adapters ask of a library and what its wheel has: names, keywords.

An import needs a GPU. What is found here is what would be a ``TypeError`` or an ``AttributeError`` on one.
"""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Signature:
    """The parameters of a function, without ``self``."""

    positional: tuple[str, ...]
    keywords: frozenset[str]
    required: frozenset[str]
    any_positional: bool

    def fault(self, call: ast.Call) -> str:
        """Why ``call`` would fail; "" where it wouldn't."""
        spread = any(isinstance(each, ast.Starred) for each in call.args)
        given = {each.arg for each in call.keywords if each.arg is not None}
        spread = spread or len(given) < len(call.keywords)
        if len(call.args) > len(self.positional) and not self.any_positional and not spread:
            return f"takes {len(self.positional)} positional arguments, is given {len(call.args)}"
        # What a ``**kwargs`` swallows is not read by anybody: it is a mistake, too.
        if unknown := given - self.keywords - set(self.positional):
            return f"has no parameter {', '.join(sorted(unknown))}"
        filled = given | set(self.positional[: len(call.args)])
        if not spread and (missing := self.required - filled):
            return f"needs {', '.join(sorted(missing))}"
        return ""


def signature_of(function: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool) -> Signature:
    a = function.args
    static = any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in function.decorator_list)
    positional = [each.arg for each in (*a.posonlyargs, *a.args)][1 if method and not static else 0 :]
    required = positional[: max(0, len(positional) - len(a.defaults))]
    required += [
        each.arg for each, default in zip(a.kwonlyargs, a.kw_defaults, strict=True) if default is None
    ]
    return Signature(
        tuple(positional),
        frozenset(each.arg for each in a.kwonlyargs),
        frozenset(required),
        a.vararg is not None,
    )


@dataclass
class Class:
    """A class of the library: its methods, those of its bases, and every attribute that is named in it."""

    name: str
    methods: dict[str, Signature] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)


class Library:
    """The source of an installed package."""

    def __init__(self, package: str) -> None:
        files = importlib.metadata.distribution(package).files or []
        self.trees: dict[str, ast.Module] = {}
        for file in files:
            if file.suffix == ".py" and file.parts[0] == package:
                name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
                self.trees[name] = ast.parse(Path(str(file.locate())).read_text(encoding="utf-8"))

    def defined(self, name: str) -> ast.ClassDef | ast.FunctionDef | None:
        """The class or function of this name, wherever it stands at the top of a module."""
        return self._defined().get(name)

    @cache  # noqa: B019 - one object for each library, for the whole run
    def _defined(self) -> Mapping[str, ast.ClassDef | ast.FunctionDef]:
        return {
            node.name: node
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("__")
        }

    def top_level(self, module: str) -> set[str]:
        """Names that a module defines or imports."""
        names: set[str] = set()
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names |= {(each.asname or each.name) for each in node.names}
                if any(each.name == "*" for each in node.names) and isinstance(node, ast.ImportFrom):
                    names |= self._star(module, node)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
        return names | {
            name.removeprefix(module + ".") for name in self.trees if name.startswith(module + ".")
        }

    def _star(self, module: str, node: ast.ImportFrom) -> set[str]:
        base = module if f"{module}" in self._packages() else module.rpartition(".")[0]
        for _ in range(node.level - 1):
            base = base.rpartition(".")[0]
        target = f"{base}.{node.module}" if node.level else str(node.module)
        return self.top_level(target) if target in self.trees else set()

    @cache  # noqa: B019
    def _packages(self) -> frozenset[str]:
        return frozenset(name.rpartition(".")[0] for name in self.trees)

    @cache  # noqa: B019
    def class_(self, name: str) -> Class:
        """A class, with what it inherits within the library."""
        node = self.defined(name)
        assert isinstance(node, ast.ClassDef), f"{name} is no class of the library"
        found = Class(name)
        for base in node.bases:
            based = (
                base.id
                if isinstance(base, ast.Name)
                else base.attr
                if isinstance(base, ast.Attribute)
                else ""
            )
            if isinstance(self.defined(based), ast.ClassDef) and based != name:
                inherited = self.class_(based)
                found.methods |= inherited.methods
                found.attributes |= inherited.attributes
        annotated = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        names = [each.target.id for each in annotated if isinstance(each.target, ast.Name)]
        if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
            found.methods["__init__"] = Signature(
                tuple(names), frozenset(), frozenset(), any_positional=False
            )
        for each in node.body:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                found.methods[each.name] = signature_of(each, method=True)
        found.attributes |= set(names)
        for inner in ast.walk(node):
            if (
                isinstance(inner, ast.Attribute)
                and isinstance(inner.value, ast.Name)
                and inner.value.id == "self"
            ):
                found.attributes.add(inner.attr)
        return found


@dataclass(frozen=True)
class Adapter:
    """A module of ours. ``receivers``: what stands before a dot, and the library's class that it is."""

    path: Path
    package: str
    receivers: Mapping[str, str]
    hands_on: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """What is called, and the class and method to which its documentation says that it hands the rest on."""

    def faults(self, library: Library, source: str | None = None) -> list[str]:
        """Each thing that our module asks of the library and the library doesn't have."""
        tree = ast.parse(self.path.read_text(encoding="utf-8") if source is None else source)
        return [f"line {line}: {fault}" for line, fault in self._faults(tree, library)]

    def _faults(self, tree: ast.Module, library: Library) -> Iterator[tuple[int, str]]:
        imported, modules = self._imports(tree, library)
        for name, (module, line) in imported.items():
            if name not in library.top_level(module):
                yield line, f"{module} has no {name}"
        ours = {
            node.name: base.id
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for base in node.bases
            if isinstance(base, ast.Name) and base.id in imported
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ours:
                yield from self._made(node, tree, library.class_(ours[node.func.id]))
            if isinstance(node, ast.ClassDef):
                yield from self._overrides(node, imported, library)
            elif isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value)
                if owner in modules and node.attr not in library.top_level(modules[owner]):
                    yield node.lineno, f"{modules[owner]} has no {node.attr}"
                elif owner in self.receivers:
                    known = library.class_(self.receivers[owner])
                    if node.attr not in known.attributes | known.methods.keys():
                        yield node.lineno, f"{known.name} has no {node.attr}"
            elif (
                isinstance(node, ast.Call)
                and (signature := self._called(node.func, imported, modules, library))
                and (fault := signature.fault(node))
            ):
                yield node.lineno, f"{ast.unparse(node.func)} {fault}"

    def _imports(
        self, tree: ast.Module, library: Library
    ) -> tuple[dict[str, tuple[str, int]], dict[str, str]]:
        imported: dict[str, tuple[str, int]] = {}
        modules: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {
                    each.asname or each.name: each.name
                    for each in node.names
                    if each.name.split(".")[0] == self.package
                }
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == self.package:
                assert node.module is not None
                for each in node.names:
                    imported[each.name] = (node.module, node.lineno)
                    modules[each.asname or each.name] = f"{node.module}.{each.name}"
        return imported, {name: module for name, module in modules.items() if module in library.trees}

    def _called(
        self, function: ast.expr, imported: Iterable[str], modules: Mapping[str, str], library: Library
    ) -> Signature | None:
        """The signature of what is called, where it is the library's."""
        found = self._plainly_called(function, imported, modules, library)
        if found is None or (further := self.hands_on.get(ast.unparse(function))) is None:
            return found
        more = library.class_(further[0]).methods[further[1]]
        return replace(found, keywords=found.keywords | more.keywords | set(more.positional))

    def _plainly_called(
        self, function: ast.expr, imported: Iterable[str], modules: Mapping[str, str], library: Library
    ) -> Signature | None:
        if isinstance(function, ast.Name):
            return _signature(library, function.id) if function.id in imported else None
        if not isinstance(function, ast.Attribute):
            return None
        owner = ast.unparse(function.value)
        if owner in self.receivers:
            return library.class_(self.receivers[owner]).methods.get(function.attr)
        if owner in imported and isinstance(library.defined(owner), ast.ClassDef):
            return library.class_(owner).methods.get(function.attr) or _signature(library, function.attr)
        if owner in modules:
            return _signature(library, function.attr)
        return None

    def _made(self, call: ast.Call, tree: ast.Module, base: Class) -> Iterator[tuple[int, str]]:
        """A class of ours is made, which hands what it doesn't know on to the library's."""
        assert isinstance(call.func, ast.Name)
        name = call.func.id
        made = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
        init = next(
            each for each in made.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"
        )
        ours, theirs = signature_of(init, method=True), base.methods["__init__"]
        known = {*ours.positional, *ours.keywords, *theirs.positional, *theirs.keywords}
        if unknown := {each.arg for each in call.keywords if each.arg} - known:
            yield call.lineno, f"{name} has no parameter {', '.join(sorted(unknown))}"

    def _overrides(
        self, node: ast.ClassDef, imported: Iterable[str], library: Library
    ) -> Iterator[tuple[int, str]]:
        """Methods of ours that the library calls: they must be its own, and take what its own take."""
        for base in node.bases:
            if not (isinstance(base, ast.Name) and base.id in imported):
                continue
            known = library.class_(base.id)
            for each in node.body:
                if not isinstance(each, ast.FunctionDef) or each.name == "__init__":
                    continue
                theirs = known.methods.get(each.name)
                if theirs is None:
                    if not each.name.startswith("_"):
                        yield each.lineno, f"{base.id} has no method {each.name}"
                    continue
                ours = signature_of(each, method=True)
                if not ours.any_positional and ours.positional != theirs.positional:
                    yield each.lineno, f"{base.id}.{each.name} takes {theirs.positional}"


def _signature(library: Library, name: str) -> Signature | None:
    found = library.defined(name)
    if isinstance(found, ast.FunctionDef):
        return signature_of(found, method=False)
    return library.class_(name).methods.get("__init__") if isinstance(found, ast.ClassDef) else None
