"""A node that stores: its data dir's store served to peers, announced in the DHT, and collected."""

from __future__ import annotations

from functools import partial

from p2pnode.node.node import Node
from p2pnode.storage.blob_service import Admits, BlobService
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.node_store import run_collection
from p2pnode.storage.replication.announcer import Announcer


def keep_for_peers(node: Node, store: LocalStore, admits: Admits) -> Announcer:
    """Begin, for as long as the node runs. Whoever else writes entries tells the announcer of them."""
    announcer = Announcer(node, store.entries)
    BlobService(node, store, store, admits=admits, on_entry=announcer.arrived).start()
    node.start_soon(announcer.run)
    node.start_soon(partial(run_collection, store, node.limits, wall=node.wall))
    return announcer
