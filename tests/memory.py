"""How much memory a thing holds on to, whatever it calls its parts."""

from __future__ import annotations

import gc
import sys
from types import FunctionType, MethodType, ModuleType

_SHARED = (type, ModuleType, FunctionType, MethodType)


def held_bytes(thing: object) -> int:
    """Bytes of ``thing`` and of all that it refers to, but for classes, modules and functions."""
    seen: dict[int, object] = {}
    found = [thing]
    while found:
        each = found.pop()
        if id(each) not in seen and not isinstance(each, _SHARED):
            seen[id(each)] = each
            found.extend(gc.get_referents(each))
    return sum(sys.getsizeof(each) for each in seen.values())
