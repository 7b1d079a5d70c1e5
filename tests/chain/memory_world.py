"""The ledger in memory, with the actors that the conformance suite expects."""

from __future__ import annotations

from p2pnode.chain.ledger import Domains, RegistryLedger
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.protocols.typed_data import Domain, market_domain
from tests.chain.contracts.support import ADDRESS, BALANCE

CHAIN_ID = 131_277_322_940_537
START = 1_800_000_000
MEMORY_DOMAINS = Domains(
    market=market_domain(CHAIN_ID, b"\x0a" * 20),
    token=Domain(name="USD Coin", version="2", chain_id=CHAIN_ID, contract=b"\x0b" * 20),
    node_registry=b"\x0c" * 20,
    treasury=ADDRESS["treasury"],
    fab=b"\x0d" * 20,
    model_registry=b"\x0e" * 20,
)


class MemoryWorld:
    """A ``LedgerWorld``: time moves only when the test moves it, and one second per transaction."""

    def __init__(self) -> None:
        self.passed = 0
        self.chain = MemoryChain(
            MEMORY_DOMAINS, lambda: START + self.passed + self.chain.block, gas_price_wei=10**6
        )
        for address in ADDRESS.values():
            self.chain.ether[address] = 10**24
        for name in ("payer", "other payer"):
            self.chain.mint(ADDRESS[name], BALANCE)

    async def ledger(self, name: str | None) -> RegistryLedger:
        return MemoryLedger(self.chain, None if name is None else ADDRESS[name])

    async def travel(self, seconds: int) -> None:
        self.passed += seconds

    async def freeze(self, name: str) -> None:
        self.chain.blacklist(ADDRESS[name])

    async def give_fab(self, name: str, amount: int) -> None:
        self.chain.mint_fab(ADDRESS[name], amount)
