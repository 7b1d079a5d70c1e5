"""Every store keeps the same contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.storage.memory import MemoryStore
from tests.storage.store_conformance import QUOTAS, StoreConformance
from tests.storage.stores import OneStoreWorld, Wall, local_store


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def world(self) -> OneStoreWorld:
        wall = Wall()
        return OneStoreWorld(MemoryStore(wall, QUOTAS), wall)


class TestLocalStore(StoreConformance):
    @pytest.fixture(params=["in threads", "without threads"])
    def world(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OneStoreWorld]:
        wall = Wall()
        with local_store(tmp_path / "store", wall, in_thread=request.param == "in threads") as store:
            yield OneStoreWorld(store, wall)
