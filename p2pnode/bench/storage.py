"""``storage.*``: what it costs to keep things.

``storage.open`` and ``storage.gc_step`` are measured by ``store_size``, the others by ``kept``.
"""

from __future__ import annotations

from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.replication import measure_kept
from p2pnode.bench.store_size import measure_store_size


async def measure_storage(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    await measure_store_size(options, take)
    await measure_kept(options, take)
