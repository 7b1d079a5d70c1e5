"""A store's figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2pnode.metrics import Family, Figure, Metrics
from p2pnode.storage.local.store import LocalStore

BLOBS = Family("p2pnode_storage_blobs", "gauge", "Blobs in this node's store.")
BYTES = Family("p2pnode_storage_bytes", "gauge", "Bytes of these blobs.")
CHARGED = Family("p2pnode_storage_charged_bytes", "gauge", "Bytes that count against the store's quota.")
LEASES = Family("p2pnode_storage_leases", "gauge", "Leases by which owners hold blobs.")
KEYS = Family("p2pnode_storage_registry_keys", "gauge", "Entries of owners in the registry.")
FAMILIES: Final = (BLOBS, BYTES, CHARGED, LEASES, KEYS)


def measure_store(metrics: Metrics, store: LocalStore) -> None:
    """Have ``metrics`` tell of this store."""

    async def read() -> Iterable[Figure]:
        now = await store.statistics()
        values = (now.blobs, now.bytes, now.charged, now.leases, now.keys)
        return [Figure(family, value) for family, value in zip(FAMILIES, values, strict=True)]

    metrics.watch(read)
