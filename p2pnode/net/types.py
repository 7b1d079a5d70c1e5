"""What the network says to the node above it, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pnode.ids import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAddresses:
    """A peer, and full multiaddrs at which it may be found. A hint until it was dialled."""

    peer: PeerId
    addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStats:
    """A snapshot. The mappings count since the start."""

    peers: int = 0
    connections: int = 0
    connections_inbound: int = 0
    handshakes: int = 0
    streams: int = 0
    streams_inbound: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dht_peers: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    dials: Mapping[str, int] = field(default_factory=dict)
    protocols_refused: Mapping[str, int] = field(default_factory=dict)
    protocols_failed: Mapping[str, int] = field(default_factory=dict)
    tasks_failed: Mapping[str, int] = field(default_factory=dict)
    """Tasks for strangers that raised what nobody expected: a defect each, which ended nothing else."""
    gossip: Mapping[str, int] = field(default_factory=dict)
