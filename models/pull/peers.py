"""A model's files from peers that share them: several at once, each chunk checked when it comes.

The manifest has the hash of each file's chunk list, the list the hash of each chunk: so a peer that lies
costs one chunk, and is left. A peer that is gone or slow is asked again a few times, and what it was asked
for is asked of others. Chunks stay on the disk when all this breaks off: the next pull checks them and goes
on. This module knows no network: a :class:`FilePeer` is asked.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio

from p2pnode.bounded import backoff_s
from p2pnode.errors import (
    ConfigError,
    ProtocolError,
    StoreRefusedError,
    UnreachableError,
    first_of_kind,
)
from p2pnode.files import off_the_loop
from p2pnode.models.manifest import CHUNK_BYTES
from p2pnode.models.pull.target import PullConfig, Target, commit
from p2pnode.platforms import write_at
from p2pnode.words import count_of

_AT_ONCE: Final = 2
"""Chunks that one peer is asked for at the same time, so that it works while the last one travels."""
_HASH_BYTES: Final = 32
_RETRY_MAX_S: Final = 8.0
_REFUSED_S: Final = 1.0

log = structlog.get_logger(__name__)


class FilePeer(Protocol):
    """A peer that may have the files of a model."""

    @property
    def name(self) -> str:
        """What it is called in logs."""
        ...

    async def fetch(self, sha256: bytes) -> bytes:
        """The bytes with this hash, which was checked.

        Raises ``ProtocolError`` for other bytes, ``UnreachableError`` where it is gone or has none, and
        ``StoreRefusedError`` where it is to be asked again later.
        """
        ...


@dataclass(slots=True)
class _Peer:
    """A peer, and how often in a row it failed."""

    peer: FilePeer
    failures: int = 0
    dropped: bool = False


@dataclass(slots=True, kw_only=True)
class _Download:
    """One file. ``missing`` are numbers of chunks that nobody is asked for."""

    target: Target
    hashes: list[bytes]
    missing: deque[int]
    left: int
    """Chunks that are not on the disk."""
    changed: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        """Wake who waits for something to do."""
        self.changed.set()
        self.changed = trio.Event()


async def pull_from_peers(peers: Sequence[FilePeer], targets: Sequence[Target], config: PullConfig) -> None:
    """Fetch ``targets`` from ``peers``. Raises ``ConfigError`` where they have not all of it."""
    crowd = [_Peer(peer) for peer in peers]
    for target in targets:
        hashes = await _chunk_list(target, crowd, config)
        await _fetch(target, hashes, crowd, config)


async def _chunk_list(target: Target, crowd: list[_Peer], config: PullConfig) -> list[bytes]:
    """The hashes of the chunks of ``target``, from the first peer that has them."""
    file = target.file
    due = -(-file.size_bytes // CHUNK_BYTES) * _HASH_BYTES
    for each in crowd * config.attempts:
        if each.dropped:
            continue
        raw = await _asked(each, bytes.fromhex(file.chunks), config)
        if isinstance(raw, float):
            await trio.sleep(raw)
        elif len(raw) == due:
            return [raw[at : at + _HASH_BYTES] for at in range(0, due, _HASH_BYTES)]
        else:
            raise ConfigError(
                f"the manifest of model {target.name!r} contradicts itself: the chunk list of {file.path} "
                f"has {len(raw)} bytes, and {due} were due. Take the manifest from another source"
            )
    raise ConfigError(_gave_up(target, 0, crowd))


async def _fetch(target: Target, hashes: list[bytes], crowd: Sequence[_Peer], config: PullConfig) -> None:
    unfinished = target.path.with_name(target.path.name + ".peers")
    here = await off_the_loop(partial(_checked, unfinished, hashes), in_thread=config.in_thread)
    missing = deque(number for number, whole in enumerate(here) if not whole)
    download = _Download(target=target, hashes=hashes, missing=missing, left=len(missing))
    target.progress(_done(download), target.file.size_bytes)
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            async with trio.open_nursery() as nursery:
                for each in crowd:
                    for _ in range(_AT_ONCE):
                        nursery.start_soon(_work, download, each, descriptor, config)
        except BaseExceptionGroup as group:
            full = first_of_kind(group, OSError)
            if full is None:
                raise
            raise full from group
        if download.left:
            raise ConfigError(_gave_up(target, _done(download), crowd))
        os.ftruncate(descriptor, target.file.size_bytes)
    finally:
        os.close(descriptor)
    await off_the_loop(partial(_finish, target, unfinished), in_thread=config.in_thread)


async def _work(download: _Download, each: _Peer, descriptor: int, config: PullConfig) -> None:
    """Ask one peer for chunk after chunk until all are here or the peer is dropped."""
    while download.left and not each.dropped:
        if not download.missing:
            await download.changed.wait()  # one that another was asked for may have to be asked for again
            continue
        number = download.missing.popleft()
        data: bytes | float = 0.0
        try:
            data = await _asked(each, download.hashes[number], config)
            if isinstance(data, bytes):
                write = partial(write_at, descriptor, data, number * CHUNK_BYTES)
                await off_the_loop(write, in_thread=config.in_thread)
                download.left -= 1
        finally:
            # Before this peer waits: another one may have it at once.
            if isinstance(data, float):
                download.missing.appendleft(number)
            download.tell()
        if isinstance(data, float):
            await trio.sleep(0.0 if each.dropped else data)
        else:
            download.target.progress(_done(download), download.target.file.size_bytes)


async def _asked(each: _Peer, digest: bytes, config: PullConfig) -> bytes | float:
    """What the peer gave; or after how many seconds it may be asked for something again, if not dropped."""
    try:
        with trio.fail_after(config.stall_s):
            data = await each.peer.fetch(digest)
    except ProtocolError as error:
        each.dropped = True
        log.warning("model.peer_lied", peer=each.peer.name, reason=str(error))
    except StoreRefusedError as error:
        each.dropped = error.code != "rate_limited"
        return min(error.retry_after_s or _REFUSED_S, _RETRY_MAX_S)
    except (UnreachableError, trio.TooSlowError) as error:
        each.failures += 1
        each.dropped = each.failures >= config.attempts
        log.info("model.peer_failed", peer=each.peer.name, failures=each.failures, reason=str(error))
        return backoff_s(each.failures - 1, first_s=config.retry_wait_s, max_s=_RETRY_MAX_S)
    else:
        each.failures = 0
        return data
    return 0.0


def _checked(unfinished: Path, hashes: Sequence[bytes]) -> list[bool]:
    """Which chunks an earlier pull left whole. Blocks on the disk."""
    try:
        with unfinished.open("rb") as file:
            return [hashlib.sha256(file.read(CHUNK_BYTES)).digest() == digest for digest in hashes]
    except FileNotFoundError:
        return [False] * len(hashes)


def _finish(target: Target, unfinished: Path) -> None:
    """Hash the whole, and make it the model's file. Blocks on the disk."""
    digest = hashlib.sha256()
    with unfinished.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
    unfinished.replace(target.part)
    commit(target, digest.hexdigest())


def _done(download: _Download) -> int:
    """Bytes that are here, at least."""
    whole = len(download.hashes) - download.left
    return min(whole * CHUNK_BYTES, download.target.file.size_bytes)


def _gave_up(target: Target, done: int, crowd: Sequence[_Peer]) -> str:
    asked = f"{count_of(len(crowd), 'peer')} asked" if crowd else "no peer shares it"
    return (
        f"the files of model {target.name!r} are not to be had from peers: {asked}, and {done} of "
        f"{target.file.size_bytes} bytes of {target.file.path} are here. Run `p2pnode models pull "
        f"{target.name}` again later, which goes on where it stopped, or without --from-peers"
    )
