"""A session signer on a chain in memory, with a journal on disk, a clock to turn and hosts to pay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from p2pnode.chain.ledger import Close, Open
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.session_signer import SessionSigner
from p2pnode.payments.spending import SpendingLimits
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.crypto import Signer, keccak256, key_address, sign_digest
from p2pnode.protocols.inference.channel import ClientPayment, exact_voucher
from tests.chain.memory_world import MEMORY_DOMAINS
from tests.client.support import advert as advert_of
from tests.payments.journals import NOW, writing

DOLLAR = 1_000_000
PRICES = {"price_in": 200_000, "price_out": 800_000, "session_fee": 20_000}
TURN_COST = 1_000  # of a turn: (1000 x 0.2 + 1000 x 0.8) / 10^6 USDC
PAYER_SECRET = keccak256(b"the payer's secret")
PAYER = key_address(PAYER_SECRET)


def priced(index: int = 1, **offer: object) -> tuple[Advert, Offer]:
    """Host ``index``, bound to the chain in memory, and its offer."""
    advert = advert_of(index, **{**PRICES, **offer})  # type: ignore[arg-type]
    binding = replace(
        advert.binding, chain_id=MEMORY_DOMAINS.chain_id, node_registry=MEMORY_DOMAINS.node_registry
    )
    return replace(advert, binding=binding), advert.offers[0]


async def turn(signer: SessionSigner, advert: Advert, offer: Offer) -> ClientPayment:
    """Sign for a session of a thousand tokens in and as many out."""
    return await signer.open(advert, offer, tokens_in=1_000, tokens_out=1_000)


def wallet_secret_of(index: int) -> bytes:
    """As ``tests.node.world.identity_of`` makes it."""
    return keccak256(b"wallet %d" % index)


@dataclass
class SpendingWorld:
    """``said`` holds what ``on_sign`` was told, ``events`` the order of what happened."""

    chain: MemoryChain
    journal: Journal
    clock: list[int]
    limits: SpendingLimits = field(default_factory=SpendingLimits)
    said: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    draws: int = 0

    @property
    def now(self) -> int:
        return self.clock[0]

    def draw(self, count: int) -> bytes:
        self.draws += 1
        return keccak256(b"draw %d" % self.draws)[:count]

    async def unlock(self) -> Signer:
        self.events.append("unlocked")

        def sign(digest: bytes) -> bytes:
            self.events.append("signed")
            return sign_digest(PAYER_SECRET, digest)

        return sign

    def on_sign(self, words: str, fields: Mapping[str, object]) -> None:
        self.events.append("said")
        self.said.append((words, fields))

    def signer(self, **changes: object) -> SessionSigner:
        values: dict[str, object] = {
            "address": PAYER,
            "sign": self.unlock,
            "ledger": MemoryLedger(self.chain),
            "journal": self.journal,
            "limits": self.limits,
            "wall": lambda: float(self.now),
            "draw": self.draw,
            "on_sign": self.on_sign,
        }
        return SessionSigner(**{**values, **changes})  # type: ignore[arg-type]

    def relay(self, index: int, payment: ClientPayment) -> None:
        """Host ``index`` opens the session with what the signer signed."""
        host = key_address(wallet_secret_of(index))
        self.chain.send(host, Open(payment.terms, payment.valid_before, payment.authorisation))

    def settle(self, index: int, payment: ClientPayment, tokens_in: int, tokens_out: int) -> int:
        """Host ``index`` closes with an exact voucher for these counts; its amount."""
        voucher = exact_voucher(
            payment, payment.session, seq=1, tokens_in=tokens_in, tokens_out=tokens_out, root=b"\x01" * 32
        )
        self.chain.send(key_address(wallet_secret_of(index)), Close(payment.terms, voucher))
        return voucher.amount


@asynccontextmanager
async def signer_world(
    path: Path, *, usdc: int = 100 * DOLLAR, limits: SpendingLimits | None = None
) -> AsyncIterator[SpendingWorld]:
    """Everything, with ``usdc`` in the payer's wallet and no ether anywhere."""
    clock = [NOW]
    chain = MemoryChain(MEMORY_DOMAINS, lambda: clock[0])
    chain.mint(PAYER, usdc)
    async with writing(path) as journal:
        yield SpendingWorld(chain, journal, clock, limits or SpendingLimits())
