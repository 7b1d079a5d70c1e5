"""``LocalModel``: models whose files lie on this machine and were verified, and the index of them.

``models.json`` in the models directory stores the size, modification time and SHA-256 of each file that was
hashed, so that 98 MB and more are hashed once and not at every start. A file that has changed is not trusted
until it is hashed again. Losing the index only means that files are hashed again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from p2pnode.errors import ConfigError, StorageError
from p2pnode.files import write_atomic
from p2pnode.ids import ModelId
from p2pnode.models.manifest import Manifest, model_id

_INDEX: Final = "models.json"
_INDEX_VERSION: Final = 1
_READ_BYTES: Final = 1 << 20
_NEVER: Final = -1
"""A modification time that no file has."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model whose weights lie on this machine and were verified."""

    name: str
    path: Path
    manifest: Manifest

    @property
    def model_id(self) -> ModelId:
        """The hash of the manifest."""
        return model_id(self.manifest)


def installed(models_dir: Path) -> list[LocalModel]:
    """The models that can be loaded now, sorted by name. Hashes nothing, and leaves changed files out."""
    models = []
    for record in _load(models_dir).values():
        model = _trusted(record)
        if model is not None:
            models.append(model)
    return sorted(models, key=lambda model: model.name)


def recall(models_dir: Path, path: Path) -> LocalModel | None:
    """The model that was verified at ``path``; None if the file has changed since."""
    record = _load(models_dir).get(str(path))
    return None if record is None else _trusted(record)


def recorded(models_dir: Path, path: Path) -> Manifest | None:
    """The manifest of the file at ``path`` when it was last hashed and trusted, even if it changed since."""
    record = _load(models_dir).get(str(path), {})
    try:
        return Manifest.from_mapping(record["manifest"])
    except (KeyError, TypeError, ConfigError):
        return None


def remember(models_dir: Path, model: LocalModel) -> None:
    """Write into the index that the file of ``model`` was just hashed, and has the manifest's hash."""
    status = model.path.stat()
    records = _load(models_dir)
    # One name is one file: pulling a newer version of a name forgets the old one.
    records = {path: record for path, record in records.items() if record.get("name") != model.name}
    records[str(model.path)] = {
        "name": model.name,
        "path": str(model.path),
        "size_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "manifest": asdict(model.manifest),
    }
    _save(models_dir, records)


def distrust(models_dir: Path, path: Path) -> None:
    """Note that the file at ``path`` must not be loaded. Its manifest stays in the index."""
    records = _load(models_dir)
    if (record := records.get(str(path))) is not None:
        record["mtime_ns"] = _NEVER
        _save(models_dir, records)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex. Blocks on the disk: call it in a worker thread."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return digest.hexdigest()


def _trusted(record: dict[str, Any]) -> LocalModel | None:
    try:
        path = Path(record["path"])
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) != (record["size_bytes"], record["mtime_ns"]):
            log.warning("model.changed", name=record["name"], remedy="p2pnode models verify")
            return None
        return LocalModel(
            name=str(record["name"]), path=path, manifest=Manifest.from_mapping(record["manifest"])
        )
    except (OSError, KeyError, TypeError, ConfigError):
        return None


def _load(models_dir: Path) -> dict[str, dict[str, Any]]:
    try:
        data = json.loads((models_dir / _INDEX).read_text(encoding="utf-8"))
        if data["version"] == _INDEX_VERSION:
            return {str(record["path"]): record for record in data["models"]}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("models.index_unreadable", remedy="files are hashed again")
    return {}


def _save(models_dir: Path, records: dict[str, dict[str, Any]]) -> None:
    text = json.dumps({"version": _INDEX_VERSION, "models": list(records.values())}, indent=1)
    try:
        models_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(models_dir / _INDEX, text.encode())
    except OSError as error:
        raise StorageError(
            f"{models_dir}: cannot be written ({error.strerror}); choose another --data-dir"
        ) from error
    except ConfigError as error:
        raise StorageError(str(error)) from error
