"""``Target``: what every kind of download shares: where a file goes, room on the disk, and the last step.

The last step is :func:`commit`: the hash is compared, the file synced and renamed, and the directory synced.
Nothing else makes a file in the models directory that an engine may load.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from p2pnode.errors import ConfigError, StorageError
from p2pnode.models.manifest import ModelFile
from p2pnode.platforms import bytes_on_disk

Progress: TypeAlias = Callable[[int, int | None], None]
HUB: Final = "https://huggingface.co"
_SLACK_BYTES: Final = 16 << 20
_MIB: Final = 1 << 20


def no_progress(_done_bytes: int, _total_bytes: int | None) -> None:
    """Report nothing."""


def forwards(progress: Progress) -> Progress:
    """``progress``, called only with more bytes than ever before, and the first time.

    A download that begins anew, or a wheel that is moved and unpacked, has fewer bytes for a while. What is
    shown then stays where it was until there is more.
    """
    furthest = -1

    def only_more(done: int, total: int | None) -> None:
        nonlocal furthest
        if done > furthest:
            furthest = done
            progress(done, total)

    return only_more


def _free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def hubs() -> tuple[str, ...]:
    """That of ``HF_ENDPOINT``, as Hugging Face's own tools have it (several with spaces), else their own."""
    return tuple(os.environ.get("HF_ENDPOINT", "").split()) or (HUB,)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullConfig:
    """How to download. ``free_bytes`` is a seam: tests fill the disk with it."""

    free_bytes: Callable[[Path], int] = _free_bytes
    pip_arguments: tuple[str, ...] = ()
    """More arguments for ``pip download``, an index or ``--find-links`` for example."""
    hubs: tuple[str, ...] = field(default_factory=hubs)
    """Hubs with Hugging Face's layout, tried in turn."""
    attempts: int = 5
    """How many attempts of an HTTP download in a row may bring no new bytes."""
    retry_wait_s: float = 0.5
    """The wait before the second attempt; it doubles each time."""
    in_thread: bool = True
    """Whether chunks from peers are written in a worker thread; not where the clock is virtual."""
    public_only: bool = False
    """Whether addresses are a stranger's, and may not lead into a private network."""
    stall_s: float = 30.0
    """A connection that brings nothing for this long is dropped and tried again."""


DEFAULT_PULL: Final = PullConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one file of model ``name`` goes, and what it must be. ``progress`` is that of this file alone."""

    name: str
    path: Path
    file: ModelFile
    progress: Progress = no_progress

    @property
    def part(self) -> Path:
        """The file of the unfinished download."""
        return self.path.with_name(self.path.name + ".part")

    @property
    def missing_bytes(self) -> int:
        """How many bytes of it are not on the disk yet."""
        missing = self.file.size_bytes
        for left in (self.part, self.path.with_name(self.path.name + ".peers")):
            with suppress(OSError):  # from peers there are holes in it
                missing = min(missing, self.file.size_bytes - bytes_on_disk(left))
        return max(0, missing)


def require_space(name: str, directory: Path, needed_bytes: int, config: PullConfig) -> None:
    """Raise ``StorageError`` unless ``needed_bytes`` and some more are free on the disk of ``directory``."""
    free, needed = config.free_bytes(directory), needed_bytes + _SLACK_BYTES
    if free < needed:
        raise StorageError(
            f"no space for model {name!r}: it needs {_mib(needed)} MiB in {directory}, which has "
            f"{free // _MIB} MiB free: {_mib(needed - free)} MiB are missing. Free some space or choose "
            "another --data-dir"
        )


def commit(target: Target, found_sha256: str) -> None:
    """Make the finished ``.part`` file the model's, or delete it when its hash is wrong."""
    if found_sha256 != target.file.sha256:
        target.part.unlink(missing_ok=True)
        raise ConfigError(
            f"the download of model {target.name!r} is not what its manifest says ({target.file.path} has "
            f"the SHA-256 {found_sha256[:8]}…, expected {target.file.sha256[:8]}…) and was deleted. "
            "Try again; if it stays so, the source was changed: do not use it"
        )
    # Content first, then the name, then the directory: after a power cut a file with this name is whole.
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
