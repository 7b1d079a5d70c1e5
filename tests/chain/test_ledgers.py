"""Every ledger passes the same conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.chain.evm_world import EvmWorld, LocalChain, evm_world
from tests.chain.ledger_conformance import LedgerConformance, scene
from tests.chain.memory_world import MemoryWorld

__all__ = ["scene"]


class TestEvmLedger(LedgerConformance):
    @pytest.fixture
    async def world(self, local: LocalChain) -> AsyncIterator[EvmWorld]:
        async with evm_world(local) as world:
            yield world


class TestMemoryLedger(LedgerConformance):
    @pytest.fixture
    def world(self) -> MemoryWorld:
        return MemoryWorld()
