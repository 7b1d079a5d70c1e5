"""Values of this package as msgpack has them, and back: between two processes of one user.

A record is a map with the name of its class, and only classes of the modules below are made of it. So no
types are read at run time: compiled modules have none. A list comes back as a tuple.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, Final

from p2pnode.errors import ConfigError

_CLASS: Final = "\x00"
"""The key of the class's name; no key of a message or a field is this."""
_MODULES: Final = frozenset(
    {
        "p2pnode.client.bill",
        "p2pnode.client.chat_options",
        "p2pnode.client.failover",
        "p2pnode.client.host_rules",
        "p2pnode.client.interface",
        "p2pnode.client.proxy.owner_channel",
        "p2pnode.client.ranking",
        "p2pnode.client.reputation",
        "p2pnode.models.answer",
        "p2pnode.protocols.adverts.messages",
        "p2pnode.protocols.inference.messages",
        "p2pnode.storage.conversations.records",
    }
)
_INT_MAX: Final = 1 << 63


def to_plain(value: Any) -> Any:
    """A value as msgpack takes it. Raises ``ConfigError`` for one that has no such form."""
    if value is None or isinstance(value, bool | float | str | bytes):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _INT_MAX else {_CLASS: "int", "text": str(value)}
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        made = {field.name: to_plain(getattr(value, field.name)) for field in fields(value) if field.init}
        return {_CLASS: f"{kind.__module__}:{kind.__qualname__}", **made}
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, frozenset | set):
        return {_CLASS: "set", "items": [to_plain(each) for each in value]}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    msg = f"{type(value).__name__} is neither text, a number, a list nor a map: a message is made of these"
    raise ConfigError(msg)


def from_plain(plain: Any) -> Any:
    """The value. Raises ``ConfigError`` for a record that this version doesn't know."""
    if isinstance(plain, list | tuple):
        return tuple([from_plain(each) for each in plain])
    if not isinstance(plain, dict):
        return plain
    name = plain.get(_CLASS)
    if name is None:
        return {key: from_plain(each) for key, each in plain.items()}
    if name == "int":
        return int(plain["text"])
    if name == "set":
        return frozenset(from_plain(each) for each in plain["items"])
    kind = _class_of(str(name))
    known = {field.name for field in fields(kind) if field.init}
    try:
        return kind(**{key: from_plain(each) for key, each in plain.items() if key in known})
    except TypeError as error:
        raise _unknown(str(name)) from error


def _class_of(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if module in _MODULES:
        import_module(module)
        found = getattr(sys.modules[module], attribute, None)
        if isinstance(found, type) and is_dataclass(found):
            return found
    raise _unknown(name)


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"the gateway that runs here is of another version ({name[:80]} is not the same): start it again"
    )
