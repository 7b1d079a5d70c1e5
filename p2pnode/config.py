"""The one configuration object: built from flags and ``config.toml``, validated once, passed down.

Nothing else reads the environment. Keys of the file are the fields' names; an unknown key is an
error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import platformdirs

from p2pnode.errors import ConfigError
from p2pnode.files import read_text_or_none

DEFAULT_MODEL = "smollm2-135m-instruct"
_PRICE_MAX = 10**12


def default_data_dir() -> Path:
    """Where a node keeps its identity unless told otherwise."""
    return Path(platformdirs.user_data_dir("p2pnode", appauthor=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a user can set. Prices are USDC units (1e-6 USDC) per million tokens."""

    data_dir: Path = field(default_factory=default_data_dir)
    listen: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    mdns: bool = True
    client_only: bool = False
    models: tuple[str, ...] = ()
    price_in: int = 0
    price_out: int = 0
    engine: str = "llamacpp"
    n_ctx: int = 2048
    slots: int = 4
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("price_in", "price_out"):
            if not 0 <= getattr(self, name) <= _PRICE_MAX:
                msg = f"{name} must be from 0 to {_PRICE_MAX} USDC units per million tokens"
                raise ConfigError(msg)
        for name, low, high in (("n_ctx", 256, 1 << 20), ("slots", 1, 64), ("threads", 0, 1024)):
            if not low <= getattr(self, name) <= high:
                msg = f"{name} must be from {low} to {high}"
                raise ConfigError(msg)


def load_config(path: Path, overrides: Mapping[str, Any]) -> NodeConfig:
    """A file's settings under the flags' (``None`` in ``overrides`` means not given)."""
    values: dict[str, Any] = {}
    text = read_text_or_none(path)
    if text is not None:
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            msg = f"{path} is not valid TOML ({error}): fix that line"
            raise ConfigError(msg) from error
    known = {item.name: item for item in fields(NodeConfig)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
            msg = f"{path} sets {key!r}, which is no setting{hint}"
            raise ConfigError(msg)
    given = {key: value for key, value in overrides.items() if value is not None}
    return replace(
        NodeConfig(), **{key: _typed(path, key, value) for key, value in {**values, **given}.items()}
    )


def _typed(path: Path, key: str, value: Any) -> Any:
    default = getattr(NodeConfig(), key)
    if isinstance(default, Path) and isinstance(value, str | Path):
        return Path(value).expanduser()
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        if all(isinstance(item, str) for item in value):
            return tuple(value)
    elif type(value) is type(default):
        return value
    kind = "list of strings" if isinstance(default, tuple) else type(default).__name__
    msg = f"{key} in {path} must be a {kind}"
    raise ConfigError(msg)
