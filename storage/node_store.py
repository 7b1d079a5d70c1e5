"""The store of a data dir: opened as the configuration says, collected, and served to peers.

Any number of processes may have it open; each that runs long enough collects.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import structlog
import trio

from p2pnode.config import NodeConfig
from p2pnode.errors import StorageError
from p2pnode.files import off_the_loop
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.node.datadir import DataDir
from p2pnode.node.node import Node
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.blob_service import Admits, BlobService
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.public_files import PublicFiles, StoreWithPublicFiles
from p2pnode.storage.replication.announcer import Announcer
from p2pnode.storage.rules import Quotas
from p2pnode.storage.store import OwnerKey

log = structlog.get_logger()
LOCAL_OWNER: Final = OwnerKey(hash_of(b"p2pnode/local-owner"))
"""The owner of what is put by hand (``p2pnode storage put``). It is no key, and nothing is signed with it."""
_DUE_S: Final = 1.0
"""Seconds between two steps while more can be freed."""
_DRIFT_S: Final = 60.0
"""A clock that moves this much more or less than the time that passed was set."""


def quotas_of(config: NodeConfig) -> Quotas:
    """The quotas that the configuration gives the store."""
    return Quotas(owner_bytes=config.store_owner_bytes_max, node_bytes=config.store_bytes_max)


@asynccontextmanager
async def open_store(
    config: NodeConfig, *, wall: Callable[[], float] = time.time, in_thread: bool = True
) -> AsyncIterator[LocalStore]:
    """The store of the data dir until the block ends; made where there is none.

    Raises ``StorageError``, and ``ConfigError`` as ``DataDir.prepare`` does.
    ``in_thread``: see ``LocalStore.open``.
    """
    data = DataDir(config.data_dir)

    def make() -> LocalStore:
        data.prepare()
        return LocalStore.open(data.store, wall=wall, quotas=quotas_of(config), in_thread=in_thread)

    store = await off_the_loop(make, in_thread=in_thread)
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await off_the_loop(store.close, in_thread=in_thread)


async def run_collection(
    store: LocalStore,
    limits: Limits,
    *,
    wall: Callable[[], float] = time.time,
    task_status: Any = trio.TASK_STATUS_IGNORED,
) -> None:
    """Collect step by step until cancelled. A disk that fails is logged, and tried again.

    What is collected is gone, so the clock must have been steady for a while: many machines start with a
    wrong one, and a clock that is a month ahead would end every lease.
    """
    clock = _Clock(wall)
    store.trust_clock_while(lambda: clock.steady_s() >= limits.store_gc_settle_s)
    task_status.started()
    while True:
        due = False
        if clock.steady_s() < limits.store_gc_settle_s:
            await trio.sleep(min(limits.store_gc_interval_s, limits.store_gc_settle_s))
            continue
        try:
            step = await store.gc_step(limits.store_gc_items)
        except StorageError as error:
            log.warning("storage.collection_failed", reason=str(error))
        else:
            due = step.due
            if step.blobs_swept or step.files_removed or step.blobs_lost:
                log.info(
                    "storage.collected", blobs=step.blobs_swept, bytes=step.bytes_freed,
                    files=step.files_removed, lost=step.blobs_lost,
                )  # fmt: skip
        await trio.sleep(_DUE_S if due else limits.store_gc_interval_s)


class _Clock:
    """Tells since when the time of day has moved as fast as time passes."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._since, self._ahead = trio.current_time(), wall() - trio.current_time()

    def steady_s(self) -> float:
        """For how many seconds it has."""
        now = trio.current_time()
        ahead = self._wall() - now
        if abs(ahead - self._ahead) > _DRIFT_S:
            log.warning("storage.clock_was_set", by_s=round(ahead - self._ahead))
            self._since = now
        self._ahead = ahead
        return now - self._since


class StoreFor:
    """For whom this node stores: an owner key that is listed, a peer with an open session, or anyone.

    ``rules`` are those of ``NodeConfig.store_for``, which checks them.
    """

    def __init__(
        self, rules: Sequence[str], has_session: Callable[[PeerId], bool] = lambda _peer: False
    ) -> None:
        self._anyone, self._sessions = "anyone" in rules, "sessions" in rules
        self._owners = frozenset(bytes.fromhex(rule) for rule in rules if rule not in ("anyone", "sessions"))
        self.has_session = has_session
        """Whether a peer has an open session; the host role sets it."""

    def admits(self, peer: PeerId, owner: OwnerKey) -> str:
        """Why this owner's writes are not taken from this peer; an empty text if they are."""
        if self._anyone or owner in self._owners or (self._sessions and self.has_session(peer)):
            return ""
        if self._sessions:
            return "this node keeps copies for clients only while it answers them: name another with --store"
        return "this node keeps copies for owners on its list only: ask its owner, or name another node"


def keep_for_peers(
    node: Node, store: LocalStore, admits: Admits, public: PublicFiles | None = None
) -> Announcer:
    """Serve the store to peers, announce it in the DHT and collect it, for as long as the node runs.

    ``public`` is what peers may read besides. Who else writes entries must tell the announcer of them.
    """
    announcer = Announcer(node, store.entries)
    blobs = store if public is None else StoreWithPublicFiles(store, public)
    BlobService(node, blobs, store, admits=admits, on_entry=announcer.arrived).start()
    node.start_soon(announcer.run)
    node.start_soon(partial(run_collection, store, node.limits, wall=node.wall))
    return announcer
