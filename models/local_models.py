"""``LocalModel``: models whose files lie on this machine and were verified, and the index of them.

``models.json`` in the models directory stores the size and modification time of each file that was hashed,
and the manifest that its hash belongs to, so that 98 MB and more are hashed once and not at every start. A
file that has changed is not trusted until it is hashed again. Losing the index, or finding one of an earlier
version, only means that files are hashed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from p2pnode.errors import ConfigError, StorageError
from p2pnode.files import write_atomic
from p2pnode.ids import ModelId
from p2pnode.models.folder import describe_folder, read_folder
from p2pnode.models.gguf import describe, read_header, shards_of
from p2pnode.models.manifest import CHUNK_BYTES, FileHashes, Manifest, model_id

_INDEX: Final = "models.json"
_INDEX_VERSION: Final = 2
_NEVER: Final = -1
"""A modification time that no file has."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model whose files lie on this machine and were verified.

    They lie in the folder ``root``: under their paths in the manifest, or under ``names``, one for each file
    of the manifest in its order, where they are used in place and are called otherwise.
    """

    name: str
    manifest: Manifest
    root: Path
    names: tuple[str, ...] = ()

    @property
    def model_id(self) -> ModelId:
        """The hash of the manifest."""
        return model_id(self.manifest)

    @property
    def paths(self) -> dict[str, Path]:
        """The place of each file, by its path in the manifest."""
        known = [file.path for file in self.manifest.files]
        return {path: self.root / name for path, name in zip(known, self.names or known, strict=True)}

    @property
    def path(self) -> Path:
        """What a user names it by: the GGUF file, of a split one the first; the folder of any other."""
        if self.manifest.format == "gguf":
            return next(iter(self.paths.values()))
        return self.root

    @property
    def weights_path(self) -> Path:
        """The file that llama.cpp is given. Raises ``ConfigError`` for a model that is no GGUF."""
        if self.manifest.format != "gguf":
            raise ConfigError(
                f"{self.root}: llama.cpp loads GGUF files, and model {self.name!r} has the format "
                f"{self.manifest.format}: name a GGUF of it, or serve it with another --engine"
            )
        return self.path


def installed(models_dir: Path) -> list[LocalModel]:
    """The models that can be loaded now, sorted by name. Hashes nothing, and leaves changed files out."""
    models = []
    for record in _load(models_dir).values():
        model = _trusted(record)
        if model is not None:
            models.append(model)
    return sorted(models, key=lambda model: model.name)


def recall(models_dir: Path, path: Path) -> LocalModel | None:
    """The model that was verified at ``path``; None if a file of it has changed since."""
    record = _load(models_dir).get(str(path))
    return None if record is None else _trusted(record)


def recorded(models_dir: Path, path: Path) -> LocalModel | None:
    """The model at ``path`` as it was last hashed and trusted, even if it changed since."""
    try:
        return _model(_load(models_dir)[str(path)])
    except (KeyError, TypeError, ConfigError):
        return None


def remember(models_dir: Path, model: LocalModel) -> None:
    """Write into the index that the files of ``model`` were just hashed, and have the manifest's hashes."""
    states = [path.stat() for path in model.paths.values()]
    records = _load(models_dir)
    # One name is one model: pulling a newer version of a name forgets the old one.
    records = {path: record for path, record in records.items() if record.get("name") != model.name}
    records[str(model.path)] = {
        "name": model.name,
        "path": str(model.path),
        "root": str(model.root),
        "names": list(model.names),
        "files": [[state.st_size, state.st_mtime_ns] for state in states],
        "manifest": asdict(model.manifest),
    }
    _save(models_dir, records)


def distrust(models_dir: Path, path: Path) -> None:
    """Note that the model at ``path`` must not be loaded. Its manifest stays in the index."""
    records = _load(models_dir)
    if (record := records.get(str(path))) is not None:
        record["files"] = [[size, _NEVER] for size, _ in record["files"]]
        _save(models_dir, records)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex. Blocks on the disk: call it in a worker thread."""
    digest = hashlib.sha256()
    for data in _chunks_of(path):
        digest.update(data)
    return digest.hexdigest()


def hashes_of(path: Path) -> FileHashes:
    """What names the content of a file. Blocks on the disk: call it in a worker thread."""
    digest, chunks = hashlib.sha256(), hashlib.sha256()
    for data in _chunks_of(path):
        digest.update(data)
        chunks.update(hashlib.sha256(data).digest())
    return FileHashes(sha256=digest.hexdigest(), chunks=chunks.hexdigest())


def chunk_list_of(path: Path, expected: str) -> bytes:
    """The chunk list of a file: 32 bytes for each chunk. Blocks on the disk: call it in a worker thread.

    Raises ``ConfigError`` where it does not have the hash that was expected.
    """
    chunks = b"".join(hashlib.sha256(data).digest() for data in _chunks_of(path))
    if hashlib.sha256(chunks).hexdigest() != expected:
        raise ConfigError(f"{path}: the file has changed since it was hashed: run `p2pnode models verify`")
    return chunks


def _chunks_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                yield data
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def describe_at(name: str, path: Path, hashed: Callable[[Path], FileHashes] = hashes_of) -> LocalModel:
    """The model that lies at ``path``: a folder, a GGUF file, or any part of a split one.

    ``hashed`` gives the hashes of a file. Blocks on the disk: call it in a worker thread. Raises
    ``ConfigError`` where there is no model, or a part of one is missing.
    """
    if path.is_dir():
        folder = read_folder(path)
        manifest = describe_folder(folder, {each: hashed(path / each) for each in folder.names})
        return LocalModel(name=name, manifest=manifest, root=path)
    shards = shards_of(path)
    parts = [read_header(shard) for shard in shards]
    manifest = describe(parts, [hashed(shard) for shard in shards])
    return LocalModel(
        name=name, manifest=manifest, root=path.parent, names=tuple(shard.name for shard in shards)
    )


def _model(record: dict[str, Any]) -> LocalModel:
    return LocalModel(
        name=str(record["name"]),
        manifest=Manifest.from_mapping(record["manifest"]),
        root=Path(record["root"]),
        names=tuple(str(name) for name in record["names"]),
    )


def _trusted(record: dict[str, Any]) -> LocalModel | None:
    try:
        model = _model(record)
        states = [path.stat() for path in model.paths.values()]
        hashed = record["files"]
    except (OSError, KeyError, TypeError, ValueError, ConfigError):
        return None
    if [[state.st_size, state.st_mtime_ns] for state in states] != hashed:
        log.warning("model.changed", name=model.name, remedy="p2pnode models verify")
        return None
    return model


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
