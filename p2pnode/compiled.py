"""Compiled copies of the modules in which gossip and simulations spend their time, if there are any.

``python -m p2pnode.compiler`` makes them: the package ``p2pnode_compiled``, beside the other packages of the
environment. They do what the sources say, three times as fast. They are taken all together or not at all, and
only while they fit: made for this Python, and of the very sources that are there now. Whoever changes one of
these runs the sources until the copies are made anew. With ``P2PNODE_PURE=1`` in the environment no copy is
taken. This module is imported with the package, and imports nothing of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import source_hash, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

PACKAGE: Final = "p2pnode_compiled"
LIBRARY: Final = "p2pnode_machines__mypyc"
"""What holds the code of all copies. Each of them is a few lines that ask it for a module."""
PURE: Final = "P2PNODE_PURE"
ROOT: Final = Path(__file__).parent.parent


def source_of(module: str) -> Path:
    """Where a module's source is."""
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def hash_of(module: str) -> str:
    """What a copy's source is compared by. Raises ``OSError``."""
    return source_hash(source_of(module).read_bytes()).hex()


class _Loader(ExtensionFileLoader):
    """Gives a copy's classes their docstrings, ``docs`` by the class."""

    def __init__(self, name: str, path: str, docs: Mapping[str, str]) -> None:
        super().__init__(name, path)
        self._docs = docs

    def exec_module(self, module: ModuleType) -> None:
        """As the import system asks."""
        super().exec_module(module)
        for name, text in self._docs.items():
            setattr(getattr(module, name), "__doc__", text)  # noqa: B010 - mypyc's classes take it


class _Copies:
    """Finds the copies, as ``sys.meta_path`` asks. Its base would be ``importlib.abc``'s, which every start
    of the program would wait 10 ms for. ``sources``: a hash of each source that went into the copies, by its
    module; ``docs``: what the sources say of their classes, by module and class."""

    def __init__(
        self, files: Mapping[str, str], sources: Mapping[str, str], docs: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.files, self._sources, self._docs = files, sources, docs
        self._fit: bool | None = None

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  the import system tells it
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """As the import system asks; None where the source is to be taken."""
        file = self.files.get(fullname)
        if file is None or not self.fit():
            return None
        loader = _Loader(fullname, file, self._docs.get(fullname, {}))
        return spec_from_file_location(fullname, file, loader=loader)

    def fit(self) -> bool:
        """Whether all sources are what they were. Found out once: modules are imported once, too."""
        if self._fit is None:
            try:
                self._fit = all(hash_of(module) == known for module, known in self._sources.items())
            except OSError:
                self._fit = False
        return self._fit


def use() -> None:
    """From now on take the copies, if there are any that fit."""
    if os.environ.get(PURE, "0") not in ("", "0"):
        return
    try:
        made = import_module(PACKAGE)
    except ImportError:
        return
    # Copies of an earlier version of this package have no docstrings.
    if sys.implementation.cache_tag == made.PYTHON and hasattr(made, "DOCS"):
        folder = Path(str(made.__file__)).parent
        files = {name: str(folder / file) for name, file in made.FILES.items()}
        sys.meta_path.insert(0, _Copies(files, made.SOURCES, made.DOCS))


def used() -> frozenset[str]:
    """The modules that are the copies where they are imported now; none where the sources are."""
    found = (each for each in sys.meta_path if isinstance(each, _Copies) and each.fit())
    return frozenset(name for each in found for name in each.files) - {LIBRARY}


def is_used() -> bool:
    """Whether there are any."""
    return bool(used())
