"""A node's figures for Prometheus: peers, streams, bytes, faults, gossip, the DHT, and known hosts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from p2pnode.metrics import Family, Figure, Metrics
from p2pnode.node.node import Node

PEERS = Family("p2pnode_node_peers", "gauge", "Peers that are connected.")
CONNECTIONS = Family(
    "p2pnode_node_connections", "gauge", "Connections that are open, by who dialled.", ("direction",)
)
HANDSHAKES = Family("p2pnode_node_handshakes", "gauge", "Handshakes of strangers that are under way.")
STREAMS = Family("p2pnode_node_streams", "gauge", "Streams that are open, of both sides.")
BYTES = Family(
    "p2pnode_node_connection_bytes",
    "gauge",
    "Bytes of the connections that are open now; it sinks when one closes.",
    ("direction",),
)
REFUSED = Family(
    "p2pnode_node_refused", "counter", "Connections and handshakes that were not taken, by reason.", ("why",)
)
DIALS = Family("p2pnode_node_dials", "counter", "Dials, by how they ended.", ("outcome",))
FAULTS = Family(
    "p2pnode_node_faults", "counter", "What peers did against the protocols, by its name.", ("fault",)
)
FAILED = Family(
    "p2pnode_node_tasks_failed", "counter", "Tasks for strangers that met a defect, by its kind.", ("error",)
)
DHT = Family("p2pnode_node_dht_peers", "gauge", "Peers in the DHT's routing table.")
GOSSIP = Family("p2pnode_node_gossip", "counter", "Events of gossip since the start, by name.", ("event",))
GOSSIP_HELD = Family("p2pnode_node_gossip_held", "gauge", "What the gossip machine keeps now.", ("what",))
ADVERTS = Family("p2pnode_node_adverts", "gauge", "Adverts of other hosts in the book.")
HOSTS = Family("p2pnode_node_hosts_live", "gauge", "Of these, hosts whose advert holds now.")
REACHABLE = Family(
    "p2pnode_node_reach", "gauge", "1 for the scope from which this node can be reached.", ("scope",)
)
START = Family("p2pnode_node_start_time_seconds", "gauge", "When this node started, Unix time.")
FAMILIES: Final = (
    PEERS, CONNECTIONS, HANDSHAKES, STREAMS, BYTES, REFUSED, DIALS, FAULTS, FAILED, DHT, GOSSIP, GOSSIP_HELD,
    ADVERTS, HOSTS, REACHABLE, START,
)  # fmt: skip


def measure_node(metrics: Metrics, node: Node) -> None:
    """Have ``metrics`` tell of this node."""
    started = time.time()

    async def read() -> Iterable[Figure]:
        return [*_figures(node), Figure(START, started)]

    metrics.watch(read)


def _figures(node: Node) -> Iterable[Figure]:
    net, now = node.network.statistics(), node.wall()
    yield Figure(PEERS, net.peers)
    yield Figure(CONNECTIONS, net.connections_inbound, ("in",))
    yield Figure(CONNECTIONS, net.connections - net.connections_inbound, ("out",))
    yield Figure(HANDSHAKES, net.handshakes)
    yield Figure(STREAMS, net.streams)
    yield Figure(BYTES, net.bytes_in, ("in",))
    yield Figure(BYTES, net.bytes_out, ("out",))
    for family, counts in ((REFUSED, net.refused), (DIALS, net.dials), (FAULTS, net.faults)):
        yield from (Figure(family, count, (name,)) for name, count in counts.items())
    yield from (Figure(FAILED, count, (name,)) for name, count in net.tasks_failed.items())
    yield Figure(DHT, net.dht_peers)
    for family, counts in ((GOSSIP, net.gossip.counts), (GOSSIP_HELD, net.gossip.held)):
        yield from (Figure(family, count, (name,)) for name, count in counts.items())
    yield Figure(ADVERTS, len(node.adverts.book))
    yield Figure(HOSTS, sum(1 for _ in node.adverts.book.live(now)))
    yield Figure(REACHABLE, 1, (node.reach or "none",))
