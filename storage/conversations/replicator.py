"""Replicates a client's conversations from this machine's store to other nodes.

It finds the replicas (those that are configured, those that admit us, the host that serves), opens the
archive over them, and brings everything to a quorum before the client leaves, as far as its deadline allows.
Leases are renewed weekly, in the background of whatever the client was started for. What conversations say is
not looked at here.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import structlog
import trio

from p2pnode.config import NodeConfig
from p2pnode.errors import ConfigError, P2PNodeError
from p2pnode.files import off_the_loop
from p2pnode.ids import PeerId
from p2pnode.node.datadir import DataDir
from p2pnode.node.node import Node
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.storage.conversations.archive import Archive, Recovery, Status
from p2pnode.storage.conversations.log_sender import Sent
from p2pnode.storage.conversations.replication_state import ReplicationState
from p2pnode.storage.conversations.sealed_log import Wall
from p2pnode.storage.key_file import load_storage_keys
from p2pnode.storage.keys import StorageKeys
from p2pnode.storage.node_store import open_store
from p2pnode.storage.replication.choice import to_write_to
from p2pnode.storage.replication.replicas import ReplicaFinder
from p2pnode.storage.sealing import Draw
from p2pnode.storage.store import OwnerKey, Replica
from p2pnode.tasks import background_task
from p2pnode.words import count_of

log = structlog.get_logger()
OWN: Final = "this machine"
_NOT_FOR_US: Final = "not_admitted: "


@dataclass(frozen=True, slots=True)
class ReplicationReport:
    """What is kept of the conversations when a client leaves, for people and scripts."""

    status: Status

    def fields(self, sid: bytes) -> dict[str, object]:
        """``replicas``: how many other nodes have all of it. ``waiting``: why not enough have.

        ``refused``: the nodes that keep nothing for this user.
        """
        sent = self.status.last.get(sid)
        written = sent.written if sent is not None else None
        acks = written.acks if written is not None else frozenset()
        failures = written.failures if written is not None else {}
        lags = any(local.sid == sid for local in self.status.lagging)
        return {
            "conversation": sid.hex(),
            "replicas": len(acks - {OWN}),
            "kept": not lags,
            "waiting": self._why(sent) if lags else "",
            "weak": self.status.counted.weak,
            "refused": [name for name, why in failures.items() if why.startswith(_NOT_FOR_US)],
        }

    def _why(self, sent: Sent | None) -> str:
        if sent is None or sent.written is None:
            return sent.trouble if sent is not None and sent.trouble else "there was no time"
        # A node that keeps nothing for us is no failure. Of a peer that could be reached at no address, the
        # error of the first is enough here; the log has all.
        reasons = Counter(
            why.removeprefix(f"{name}: ").partition("; ")[0]
            for name, why in sent.written.failures.items()
            if not why.startswith(_NOT_FOR_US)
        )
        failures = "; ".join(f"{why} ({count_of(nodes, 'node')})" for why, nodes in reasons.items())
        return failures or self.status.counted.weak or "the list of conversations isn't kept yet"

    def is_news(self, sid: bytes) -> bool:
        """Whether any of it was sent or tried in this run, or waits to be."""
        return sid in self.status.last or any(local.sid == sid for local in self.status.lagging)


class Replicator:
    """Replicates the conversations of one client. :func:`open_replicator` makes it."""

    def __init__(
        self,
        keys: StorageKeys,
        own: Replica,
        state: ReplicationState,
        *,
        node: Node,
        finder: ReplicaFinder,
        servers: Sequence[Replica] = (),
    ) -> None:
        self._keys, self._node, self._finder, self._servers = keys, node, finder, tuple(servers)
        self._found: dict[PeerId, Replica] = {}
        self._serving: PeerId | None = None
        self._searching = trio.Lock()
        self._searched, self._renewed = trio.Event(), trio.Event()
        self.archive = Archive(
            keys, own, self._others, state=state, draw=node.draw, wall=node.wall, limits=node.limits
        )

    @property
    def owner(self) -> OwnerKey:
        """The key that other nodes count our blobs by, and that they put on their allow-list."""
        return self._keys.owner

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Send, and renew leases once it is known where they are, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.archive.run)
            nursery.start_soon(self._renew)
            task_status.started()

    async def _renew(self) -> None:
        await self._searched.wait()
        while True:
            try:
                await self.archive.renew()
            except P2PNodeError as error:  # our own disk failed: the next round goes on there
                log.warning("archive.not_renewed", reason=str(error))
            self._renewed.set()
            await trio.sleep(self._node.limits.renew_interval_s)

    def served_by(self, peer: PeerId) -> bool:
        """Note that this host serves now: it is no independent replica. True when it did not before."""
        changed, self._serving = peer != self._serving, peer
        return changed

    async def find_replicas(self) -> None:
        """Find the nodes that have replicas and those that take them now, then send what waits."""
        async with self._searching:
            key = self._keys.index.entry_key
            await self._search_holders(key)
            found = await self._finder.candidates(key, owner=self.owner, serving=self._serving)
            self._use(to_write_to(found.found))
        await self.archive.flush()
        self._searched.set()

    async def recover(self) -> Recovery:
        """Ask every node that may have them for this user's conversations and paid sessions."""
        async with self._searching:
            unreached = await self._search_holders(self._keys.index.entry_key)
        recovery = await self.archive.recover()
        return replace(recovery, failures={**unreached, **recovery.failures})

    async def find_holders(self, sid: bytes) -> None:
        """Find the nodes that have this conversation: another machine may have continued it."""
        async with self._searching:
            await self._search_holders(self._keys.conversation(sid).entry_key)

    async def _search_holders(self, key: EntryKey) -> dict[str, str]:
        """Find every node that may have the entry. Once one has it, the others get a short grace only.

        Returns by configured store that was not reached why it was not.
        """
        grace_s = self._node.limits.replica_grace_s
        unreached: dict[str, str] = dict.fromkeys(self._finder.configured, "it did not answer in time")
        async with trio.open_nursery() as nursery:

            async def look_into(replica: Replica) -> None:
                try:
                    entry = await replica.registry.get(key)
                except P2PNodeError as error:
                    log.debug("replica.unusable", replica=replica.name, reason=str(error))
                    return
                scope = nursery.cancel_scope
                if entry is not None and scope.deadline == math.inf:
                    scope.deadline = trio.current_time() + grace_s

            def found(replica: Replica) -> None:
                unreached.pop(replica.name, None)
                self._use([replica])
                nursery.start_soon(look_into, replica)

            failed = (await self._finder.find(key, on_found=found)).failed
            unreached.update({peer: why for peer, why in failed.items() if peer in unreached})
            nursery.cancel_scope.deadline = trio.current_time() + grace_s
        return unreached

    async def finish(self) -> ReplicationReport:
        """Bring what is kept here to a quorum, within the deadline of a client that leaves.

        Where leases are due (once a week) their renewal gets a moment more: a client may never run longer.
        """
        limits = self._node.limits
        with trio.move_on_after(limits.keep_deadline_s):
            if not (await self.archive.flush()).kept:
                await self.find_replicas()
        if self._searched.is_set():
            with trio.move_on_after(limits.renew_at_end_s):
                await self._renewed.wait()
        return ReplicationReport(await self.archive.status())

    def _use(self, found: Sequence[Replica]) -> None:
        for replica in found:
            if replica.place != "own":  # the node on this data dir has the same disk as we
                self._found[PeerId(replica.name)] = replica

    def _others(self) -> list[Replica]:
        peers = [
            Replica(peer, each.blobs, each.registry, self._finder.place_of(peer, self._serving))
            for peer, each in self._found.items()
        ]
        return [*self._servers, *peers]


def storage_keys(config: NodeConfig) -> StorageKeys:
    """The keys of the data dir's conversations. Raises ``ConfigError`` where it has none."""
    data = DataDir(config.data_dir)
    keys = load_storage_keys(data)
    if keys is None:
        msg = (
            f"nothing is kept in {data.root} yet: `p2pnode wallet new` makes twelve words that "
            "conversations are kept and recovered with, `wallet restore` takes yours"
        )
        raise ConfigError(msg)
    return keys


@asynccontextmanager
async def open_own_storage(
    config: NodeConfig, *, wall: Wall = time.time, draw: Draw = secrets.token_bytes, in_thread: bool = True
) -> AsyncIterator[tuple[Replica, ReplicationState]]:
    """This machine's store, and the state of its replication. Raises ``StorageError``."""
    async with open_store(config, wall=wall, in_thread=in_thread) as store:
        make = partial(ReplicationState, store.root / "outbox.sqlite", draw, in_thread=in_thread)
        state = await off_the_loop(make, in_thread=in_thread)
        try:
            yield Replica(OWN, store, store, "own"), state
        finally:
            with trio.CancelScope(shield=True):
                await off_the_loop(state.close, in_thread=in_thread)


@asynccontextmanager
async def open_archive(config: NodeConfig) -> AsyncIterator[Archive]:
    """What is kept on this machine; no replica is asked. Raises ``ConfigError``, ``StorageError``."""
    keys = storage_keys(config)
    async with open_own_storage(config) as (own, state):
        yield Archive(keys, own, lambda: (), state=state, draw=secrets.token_bytes, wall=time.time)


@asynccontextmanager
async def open_replicator(
    config: NodeConfig, node: Node, *, in_thread: bool = True
) -> AsyncIterator[Replicator]:
    """Open the data dir's store and archive, and send in the background until the block ends.

    Raises ``ConfigError`` where the data dir has no storage key, ``StorageError``.
    """
    keys = storage_keys(config)
    running = DataDir(config.data_dir).running_node()
    finder = ReplicaFinder(
        node,
        stores=config.stores,
        sign=lambda _owner, digest: keys.owner_signing.sign(digest),
        own=running.peer_id if running is not None else None,
    )
    async with open_own_storage(config, wall=node.wall, draw=node.draw, in_thread=in_thread) as (own, state):
        try:
            async with _servers(config) as servers:
                replicator = Replicator(keys, own, state, node=node, finder=finder, servers=servers)
                async with background_task(replicator.run):
                    yield replicator
        finally:
            finder.close()


@asynccontextmanager
async def _servers(config: NodeConfig) -> AsyncIterator[list[Replica]]:
    """The S5 node of the configuration, where there is one."""
    if not config.s5_url:
        yield []
        return
    from p2pnode.storage.s5.client import open_s5

    async with open_s5(config.s5_url) as store:
        yield [Replica(config.s5_url, store, store)]
