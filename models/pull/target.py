"""What every kind of download shares: where it goes, room on the disk, and the last step.

The last step is :func:`commit`: hash compared, file synced, renamed, directory synced. Nothing else makes
a file in the models directory that an engine may load.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from p2pnode.errors import ConfigError, StorageError
from p2pnode.models.manifest import Manifest

Progress: TypeAlias = Callable[[int, int | None], None]
_SLACK_BYTES: Final = 16 << 20
_MIB: Final = 1 << 20


def no_progress(_done_bytes: int, _total_bytes: int | None) -> None:
    """Report to nobody."""


def forwards(progress: Progress) -> Progress:
    """The same, told only of what is more than it was told before, and of the first.

    A download that must begin anew and a wheel that is moved and unpacked have fewer bytes for a while; for
    whoever watches, what was had once is where it stands until there is more.
    """
    furthest = -1

    def told(done: int, total: int | None) -> None:
        nonlocal furthest
        if done > furthest:
            furthest = done
            progress(done, total)

    return told


def _free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


@dataclass(frozen=True, slots=True, kw_only=True)
class PullConfig:
    """How to download. ``free_bytes`` is a seam: tests fill the disk with it."""

    free_bytes: Callable[[Path], int] = _free_bytes
    pip_arguments: tuple[str, ...] = ()
    """More arguments for ``pip download``, an index or ``--find-links`` for example."""
    attempts: int = 5
    """Of an HTTP download in a row that brought it no further than it was before."""
    retry_wait_s: float = 0.5
    """Before the second attempt; it doubles each time."""
    stall_s: float = 30.0
    """A connection that brings nothing for this long is dropped and tried again."""


DEFAULT_PULL: Final = PullConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one download goes, and what it must turn out to be."""

    name: str
    path: Path
    manifest: Manifest
    progress: Progress = no_progress

    @property
    def part(self) -> Path:
        """The unfinished file."""
        return self.path.with_name(self.path.name + ".part")


def require_space(target: Target, needed_bytes: int, config: PullConfig) -> None:
    """``StorageError``, with what is needed and where, unless ``needed_bytes`` and some slack are free."""
    directory = target.path.parent
    free = config.free_bytes(directory)
    if free < needed_bytes + _SLACK_BYTES:
        raise StorageError(
            f"no space for model {target.name!r}: it needs {_mib(needed_bytes + _SLACK_BYTES)} MiB in "
            f"{directory}, which has {free // _MIB} MiB free. Free some space or choose another --data-dir"
        )


def commit(target: Target, found_sha256: str) -> None:
    """Make the finished ``.part`` file the model, or delete it when its hash is wrong."""
    if found_sha256 != target.manifest.weights:
        target.part.unlink(missing_ok=True)
        raise ConfigError(
            f"the download of model {target.name!r} is not what its manifest says (SHA-256 "
            f"{found_sha256[:8]}…, expected {target.manifest.weights[:8]}…) and was deleted. "
            "Try again; if it stays so, the source was changed: do not use it"
        )
    with target.part.open("rb") as file:
        os.fsync(file.fileno())
    target.part.replace(target.path)
    directory = os.open(target.path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _mib(count: int) -> int:
    return -(-count // _MIB)
