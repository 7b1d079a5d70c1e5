"""``storage.checkpoint``, ``storage.recover_200_turns`` and ``storage.bytes_per_turn``: a conversation and
its replicas.

Two nodes that store, each a process with a disk of its own, and a client in this process, over loopback TCP.
A turn is a question and an answer that comes in pieces of 32 tokens; each piece is appended and acknowledged
by both nodes before the next. A quarter of the conversation has as many segments as are joined twice (16 of
one level become one of the next, ``compaction.py``), so that each quarter pays the same for joining.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import trio

from p2pnode.bench.figure import Measurement, compared
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import joined
from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.errors import LocalError
from p2pnode.models.manifest import scripted_model_id
from p2pnode.node.datadir import DataDir
from p2pnode.storage.conversations.archive import Archive
from p2pnode.storage.conversations.compaction import FAN_IN
from p2pnode.storage.conversations.records import Piece
from p2pnode.storage.conversations.replicator import Replicator, open_archive
from p2pnode.storage.key_file import save_storage_key
from p2pnode.storage.local.disk import Disk
from p2pnode.storage.local.store import LocalStore

_ENTROPY: Final = bytes(range(16))
"""Of the recovery phrase that all of the client's data dirs have."""
_STORES: Final = ("first", "second")
_PIECES: Final = 4
"""Of a turn: the question, and three of the answer."""
_TOKENS: Final = 32
_QUARTER: Final = FAN_IN * FAN_IN // _PIECES
_QUARTER_QUICK: Final = FAN_IN // _PIECES
"""Segments are joined once a quarter."""
_RECOVER_AT: Final = 200
_RECOVER_AT_QUICK: Final = 8
_RECOVERIES: Final = 7
_DEADLINE_S: Final = 30.0
"""For one checkpoint, and for one recovery."""


async def measure_replication(options: BenchOptions, take: Take) -> None:
    """All three, of one conversation."""
    quarter, at = (_QUARTER_QUICK, _RECOVER_AT_QUICK) if options.quick else (_QUARTER, _RECOVER_AT)
    async with _open_replicated(options.scratch, quarter) as replicated:
        await replicated.grow(at)
        recovered = await replicated.recover(1 if options.quick else _RECOVERIES, turns=at)
        await replicated.grow(4 * quarter)
        take("storage.checkpoint", replicated.checkpoints())
        take("storage.recover_200_turns", recovered)
        take("storage.bytes_per_turn", replicated.growth())


class _ReplicatedConversation:
    """A conversation that grows, its replicas, and what its checkpoints took. ``quarter``: so many turns."""

    def __init__(
        self,
        root: Path,
        quarter: int,
        replicator: Replicator,
        stores: Sequence[str],
        disks: Mapping[str, LocalStore],
    ) -> None:
        self._root, self._quarter, self._archive, self._stores = root, quarter, replicator.archive, stores
        self._own, self._replicas = disks["client"], [disks[name] for name in _STORES]
        self._turns = 0
        self._stored: list[int] = []
        """Bytes at a replica before the first turn, and after each quarter."""
        self._durable_ms: list[float] = []
        self._quorum_ms: list[float] = []
        self._file_ms: list[float] = []
        self._bytes: list[int] = []

    async def begin(self) -> None:
        """An empty conversation, on both nodes: streams are open, and the index names it."""
        self._conversation = await self._archive.new(title="Of ships", model=scripted_model_id())
        await self._acknowledged()
        self._stored.append(await self._bytes_stored())

    async def grow(self, turns: int) -> None:
        """Until it has so many. Raises ``LocalError`` when no quorum acknowledges a piece."""
        while self._turns < turns:
            await self._turn(self._turns)
            self._turns += 1
            if self._turns % self._quarter == 0:
                self._stored.append(await self._bytes_stored())

    async def _turn(self, number: int) -> None:
        for piece in _turn(number):
            before = (await self._own.statistics()).bytes
            began = time.perf_counter()
            await self._conversation.append(piece)
            durable = time.perf_counter()
            await self._acknowledged()
            self._quorum_ms.append((time.perf_counter() - began) * 1e3)
            self._durable_ms.append((durable - began) * 1e3)
            size = (await self._own.statistics()).bytes - before
            self._file_ms.append(await trio.to_thread.run_sync(_write_file, self._root, size) * 1e3)
            self._bytes.append(size)

    async def _acknowledged(self) -> None:
        sid = self._conversation.sid
        with trio.move_on_after(_DEADLINE_S):
            await self._archive.wait_kept(sid)
            return
        last = (await self._archive.status()).last.get(sid)
        msg = f"no quorum had a checkpoint within {_DEADLINE_S:g} s ({last})"
        raise LocalError(msg)

    async def _bytes_stored(self) -> int:
        """Of all that a replica took until now: nothing is swept within a day."""
        return max([(await each.statistics()).bytes for each in self._replicas])

    def growth(self) -> Measurement:
        """Of the bytes a turn costs, from the second quarter to the last."""
        per_turn = [(after - before) / self._quarter for before, after in pairwise(self._stored)]
        ratio = per_turn[3] / per_turn[1]
        details = {
            "turns": self._turns,
            "checkpoints_per_turn": _PIECES,
            "bytes_by_quarter": [round(each) for each in per_turn],
            "text_bytes": sum(len(piece.text) for piece in _turn(0)),
        }
        return Measurement(value=ratio, baseline=1.0, ratio=ratio, details=details)

    def checkpoints(self) -> Measurement:
        """From the call of ``append`` until the quorum's acknowledgement is noted on our disk."""
        took, quarter = self._quorum_ms, len(self._quorum_ms) // 4
        return compared(
            median(took),
            median(self._file_ms),
            p95=round(_p95(took), 2),
            max=round(max(took), 2),
            own_disk_p50=round(median(self._durable_ms), 2),
            p50_by_quarter=[round(median(took[at:][:quarter]), 2) for at in range(0, len(took), quarter)],
            baseline_p95=round(_p95(self._file_ms), 2),
            checkpoints=len(took),
            bytes_p50=median(self._bytes),
        )

    async def recover(self, times: int, *, turns: int) -> Measurement:
        """Into fresh data dirs, from a client's start to its last turn. Raises ``LocalError``."""
        own, found = [], []
        for number in range(times):
            own.append(await self._read_own(turns))
            found.append(await self._recover(self._root / f"fresh{number}", turns))
        steps = dict(zip(("start", "index", "conversation"), zip(*found, strict=True), strict=True))
        return compared(
            median(map(sum, found)),
            median(own),
            turns=turns,
            s=[round(sum(each), 3) for each in found],
            **{f"{step}_s_p50": round(median(each), 3) for step, each in steps.items()},
        )

    async def _recover(self, folder: Path, turns: int) -> list[float]:
        config = _config(folder, self._stores)
        with trio.fail_after(_DEADLINE_S):
            moments = [time.perf_counter()]
            async with Client(config, remember=False) as client:
                replicator = await client.conversations.replicator()
                moments.append(time.perf_counter())
                await client.conversations.recover()
                moments.append(time.perf_counter())
                await self._check(replicator.archive, turns)
                moments.append(time.perf_counter())
        return [after - before for before, after in pairwise(moments)]

    async def _read_own(self, turns: int) -> float:
        """The same from the client's own disk, with nobody asked: seconds."""
        began = time.perf_counter()
        async with open_archive(_config(self._root / "client", ())) as archive:
            await self._check(archive, turns, ask=False)
            return time.perf_counter() - began

    async def _check(self, archive: Archive, turns: int, *, ask: bool = True) -> None:
        (listed,) = await archive.conversations()
        read = await archive.open(listed.sid, ask=ask)
        found = [(turn.role, turn.text) for turn in read.turns]
        if found != [(turn.role, turn.text) for turn in self._conversation.turns]:
            msg = f"{len(found)} questions and answers came back of {2 * turns}, or others"
            raise LocalError(msg)


def _turn(number: int) -> list[Piece]:
    """A question and its answer, as long as they are."""
    ids = tuple(range(1000, 1000 + _TOKENS))
    text = f"{number}: a line of an answer goes on about ships, as such lines do, for as long as it takes; "
    parts = [Piece(role="assistant", text=text, ids=ids) for _ in range(_PIECES - 1)]
    end = Piece(role="assistant", text=text, ids=ids, finish="stop")
    return [Piece(role="user", text=f"What of the ship number {number}?"), *parts[1:], end]


def _write_file(folder: Path, size: int) -> float:
    """Seconds to write and sync a file, and the folder it is in."""
    path, data, disk = folder / "baseline", os.urandom(size), Disk()
    began = time.perf_counter()
    handle = disk.create(path)
    try:
        disk.write(handle, data)
        disk.sync(handle)
    finally:
        disk.close(handle)
    disk.sync_folder(folder)
    took = time.perf_counter() - began
    disk.unlink(path)
    return took


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1]


def _config(folder: Path, stores: Sequence[str]) -> NodeConfig:
    """Of one of the client's data dirs, which is made."""
    data = DataDir(folder)
    data.prepare()
    save_storage_key(data, _ENTROPY)
    return NodeConfig(data_dir=folder, stores=tuple(stores), mdns=False)


@asynccontextmanager
async def _open_replicated(root: Path, quarter: int) -> AsyncIterator[_ReplicatedConversation]:
    flags = ("--client-only", "--store-for=anyone")
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(joined(root, name, flags)) for name in _STORES]
        stores = [node.multiaddrs[0] for node in nodes]
        client = await stack.enter_async_context(Client(_config(root / "client", stores), remember=False))
        replicator = await client.conversations.replicator()
        await client.conversations.look_for_replicas()
        disks = {name: LocalStore.open(DataDir(root / name).store) for name in (*_STORES, "client")}
        for disk in disks.values():
            stack.callback(disk.close)
        replicated = _ReplicatedConversation(root, quarter, replicator, stores, disks)
        await replicated.begin()
        yield replicated
