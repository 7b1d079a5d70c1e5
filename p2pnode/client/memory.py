"""What a client remembers of hosts between runs: a small JSON file in the data dir, best effort."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

import structlog

from p2pnode.client.ranking import Measured
from p2pnode.errors import ConfigError
from p2pnode.files import read_text_or_none, write_atomic
from p2pnode.ids import PeerId

log = structlog.get_logger()
_HOSTS_MAX: Final = 512
_KEYS: Final = frozenset(item.name for item in fields(Measured))
_COUNTS: Final = frozenset({"failures_in_a_row", "faults"})


def load_measured(path: Path) -> dict[PeerId, Measured]:
    """What was saved; a damaged file is forgotten, for it holds nothing that can't be measured again."""
    try:
        raw = json.loads(read_text_or_none(path) or "{}")
        return {PeerId(peer): _measured(known) for peer, known in raw.items()}
    except (ValueError, TypeError, AttributeError, ConfigError):
        log.warning("measured.unreadable", remedy="measuring anew")
        return {}


def _measured(known: Mapping[str, object]) -> Measured:
    values = {key: value for key, value in known.items() if key in _KEYS}
    for key, value in values.items():
        unknown = value is None and getattr(Measured(), key) is None
        kind = int if key in _COUNTS else (int, float)
        if not unknown and not (isinstance(value, kind) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{key} can't be {value!r}")
    return Measured(**values)  # type: ignore[arg-type]


def save_measured(path: Path, measured: Mapping[PeerId, Measured]) -> None:
    """Keep the most recently added; a disk that can't take it costs a log line only."""
    kept = dict(list(measured.items())[-_HOSTS_MAX:])
    try:
        write_atomic(path, json.dumps({peer: asdict(known) for peer, known in kept.items()}).encode())
    except ConfigError as error:
        log.debug("measured.not_saved", reason=str(error))
