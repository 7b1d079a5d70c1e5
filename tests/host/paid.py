"""Hosts that ask for money and clients that have some, in one memory net, on one chain in memory."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from p2pnode.chain.ledger import Domains, Ledger, UnavailableError
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.client.client import Client
from p2pnode.host.host import Host
from p2pnode.host.model_pool import HostedModel
from p2pnode.host.sheet import Grants
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.net.memory import MemoryNet
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.identity import HostIdentity
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.payments.books import open_journal
from p2pnode.payments.escrow import HostMoney
from p2pnode.payments.exposure import ExposureLimits
from p2pnode.payments.gas_budget import GasBudget
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.payments.payer import OpenPayer, Payer
from p2pnode.payments.session_signer import SessionSigner
from p2pnode.payments.spending import Market, SpendingLimits
from p2pnode.protocols.adverts.signatures import BINDING_TTL_MAX_S, BindingTerms, bind
from p2pnode.protocols.crypto import Signer, keccak256, key_address, sign_digest
from p2pnode.protocols.typed_data import Domain, market_domain
from tests.net.memory_world import ip_of, seed_of
from tests.node.world import Member, World, scripted_host
from tests.sqlite_disk import SlowDisk, WatchedDisk

CHAIN_ID = 31337
MARKET, USDC, REGISTRY, TREASURY = (bytes([n]) * 20 for n in (0xA1, 0xA2, 0xA3, 0xA4))
PRICE_IN, PRICE_OUT, FEE = 1_000_000, 3_000_000, 5_000
"""One unit for each input token, three for each output token, half a cent a session."""
RICH = 10_000_000
LIMITS = replace(DEFAULT_LIMITS, settle_batch_s=0.5)


def domains() -> Domains:
    token = Domain(name="USD Coin", version="2", chain_id=CHAIN_ID, contract=USDC)
    return Domains(
        market=market_domain(CHAIN_ID, MARKET), token=token, node_registry=REGISTRY, treasury=TREASURY
    )


def wallet_secret(name: str) -> bytes:
    return keccak256(b"wallet " + name.encode())


def wallet_address(name: str) -> bytes:
    return key_address(wallet_secret(name))


def receipt_secret(index: int) -> bytes:
    """What the host of this number signs receipts with."""
    return keccak256(b"receipt %d" % index)


def paid_identity(index: int, now: float) -> HostIdentity:
    """A host's identity that is bound to the chain, without the second a keystore takes."""
    key, receipt = PeerKey(seed_of(index)), receipt_secret(index)
    secret = wallet_secret(f"host {index}")
    terms = BindingTerms(
        receipt_key=key_address(receipt),
        chain_id=CHAIN_ID,
        node_registry=REGISTRY,
        seq=int(now),
        expires_at=int(now) + BINDING_TTL_MAX_S,
    )
    binding = bind(key.peer_id, key_address(secret), terms, lambda digest: sign_digest(secret, digest))
    return HostIdentity(key, receipt, binding)


def priced(**config: object) -> HostedModel:
    """The scripted model at the test's prices."""
    return replace(scripted_host(**config), price_in=PRICE_IN, price_out=PRICE_OUT, session_fee=FEE)


def journal_on(disk: WatchedDisk, path: Path) -> AbstractAsyncContextManager[Journal]:
    """A journal whose commits take no virtual time, but for those of a slow disk, which take real time."""
    return open_journal(path, disk=disk, in_thread=isinstance(disk, SlowDisk))


def left_in(path: Path) -> list[BoughtSession]:
    """The sessions that were left, as a journal has them that nobody has opened yet."""
    if not path.exists():
        return []
    journal = Journal.open(path, in_thread=False)
    try:
        return journal.purchases_kept(int(wall_clock()))
    finally:
        journal.close()


class Mortal:
    """A ledger that a killed process can't use any more."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        if self.dead:
            msg = "the process was killed"
            raise UnavailableError(msg)
        return getattr(self._ledger, name)


@dataclass
class PaidWorld:
    """A world with a chain. Files of hosts and clients lie in ``folder``."""

    world: World
    chain: MemoryChain
    folder: Path
    disks: dict[Journal, WatchedDisk] = field(default_factory=dict)
    """Of each journal of a host."""
    _names: itertools.count[int] = field(default_factory=itertools.count)

    async def host(
        self,
        *,
        exposure_limits: ExposureLimits | None = None,
        ledger: Callable[[Ledger], Ledger] = lambda ledger: ledger,
        journal: Path | None = None,
        index: int | None = None,
        model: HostedModel | None = None,
        disk: WatchedDisk | None = None,
        budget: GasBudget | None = None,
        keep_s: int = 0,
    ) -> tuple[Member, HostMoney]:
        """A host that runs; ``ledger`` may wrap its ledger. With ``index`` the same host starts again."""
        world = self.world
        again = index is not None
        number = len(world.members) if index is None else index
        identity = paid_identity(number, wall_clock())
        rng = random.Random(f"{world.seed} {number} {len(world.members)}")
        node = Node(
            NodeSetup(
                key=identity.key,
                listen=(f"/ip4/{ip_of(number)}/tcp/4001",),
                limits=world.limits,
                transport=world.net.transport(ip_of(number)),
                wall=wall_clock,
                draw=rng.randbytes,
                rng=rng,
            )
        )
        member = Member(number, node)
        if again:
            world.net.restart(ip_of(number))
            world.members[number] = member
        else:
            world.members.append(member)
        path, disk = journal or self.folder / f"host {number}.sqlite", disk or WatchedDisk()
        money = HostMoney(
            Mortal(ledger(MemoryLedger(self.chain, identity.binding.wallet))),
            await world.nursery.start(self._journal, journal_on(disk, path)),
            exposure_limits or ExposureLimits(),
            budget or GasBudget(),
        )
        self.disks[money.journal] = disk
        await world.nursery.start(self._run, member)
        grants = Grants(keep_s=keep_s)
        member.host = Host(node, identity, [model or priced()], money, grants=grants)
        await member.host.start()
        return member, money

    def kill(self, member: Member, money: HostMoney) -> None:
        """SIGKILL: nothing is said to anybody, neither to peers nor to the chain nor to the disk."""
        money.ledger.dead = True  # type: ignore[attr-defined]
        self.disks[money.journal].dead = True
        self.world.crash(member)

    async def _journal(
        self, books: AbstractAsyncContextManager[Journal], *, task_status: trio.TaskStatus[Journal]
    ) -> None:
        async with books as journal:
            task_status.started(journal)
            await trio.sleep_forever()

    async def _run(self, member: Member, *, task_status: trio.TaskStatus[None]) -> None:
        with member.scope:
            await member.node.run(task_status=task_status)

    @contextlib.asynccontextmanager
    async def client(
        self,
        member: Member,
        *,
        name: str = "alice",
        units: int = RICH,
        limits: SpendingLimits | None = None,
        ip: str = "10.0.9.9",
        ledger: Callable[[Ledger], Ledger] = lambda ledger: ledger,
        disk: WatchedDisk | None = None,
        journal: Path | None = None,
        keep_s: int = 0,
        on_event: Callable[[str, dict[str, object]], None] = lambda _name, _fields: None,
    ) -> AsyncIterator[Client]:
        """A client with USDC and no ether that knows one host. Its journal is on ``disk``."""
        number = next(self._names)
        path = journal or self.folder / f"client {name} {number}.sqlite"
        missing = units - self.chain.account(wallet_address(name)).usdc
        if missing > 0:
            self.chain.mint(wallet_address(name), missing)
        rng = random.Random(f"{self.world.seed} payer {name} {number if journal else ''}")
        payer = self.payer(name, path, rng, limits=limits, ledger=ledger, disk=disk)
        node = Node(
            NodeSetup(
                key=PeerKey(rng.randbytes(32)),
                dht="client",
                gossip=False,
                keep_connected=False,
                limits=self.world.limits,
                transport=self.world.net.transport(ip),
                wall=wall_clock,
                draw=rng.randbytes,
                rng=rng,
            )
        )
        await self.world.nursery.start(node.run)
        async with Client(
            on_event=on_event,
            node=node,
            bootstrap=member.node.multiaddrs[:1],
            limits=self.world.limits,
            remember=False,
            keep_s=keep_s,
            payer=payer,
        ) as client:
            yield client
        await node.aclose()

    def payer(
        self,
        name: str,
        path: Path,
        rng: random.Random,
        *,
        limits: SpendingLimits | None = None,
        ledger: Callable[[Ledger], Ledger] = lambda ledger: ledger,
        disk: WatchedDisk | None = None,
    ) -> Payer:
        """What pays from the wallet of this name, with a journal at ``path``."""
        rules, secret = limits or SpendingLimits(), wallet_secret(name)

        async def unlock() -> Signer:
            return lambda digest: sign_digest(secret, digest)

        @contextlib.asynccontextmanager
        async def make() -> AsyncIterator[OpenPayer]:
            async with journal_on(disk or WatchedDisk(), path) as opened:
                signer = SessionSigner(
                    address=wallet_address(name),
                    sign=unlock,
                    ledger=ledger(MemoryLedger(self.chain)),
                    journal=opened,
                    limits=rules,
                    wall=wall_clock,
                    draw=rng.randbytes,
                    on_sign=lambda _words, _fields: None,
                )
                yield OpenPayer(signer, opened)

        return Payer(
            market=Market(CHAIN_ID, REGISTRY, MARKET),
            limits=rules,
            address=wallet_address(name),
            make=make,
            look=lambda: left_in(path),
        )

    def balance(self, name: str) -> int:
        """USDC in a wallet."""
        return self.chain.account(wallet_address(name)).usdc

    def earned(self, name: str) -> int:
        """What a wallet may withdraw."""
        return self.chain.account(wallet_address(name)).earned

    @property
    def treasury(self) -> int:
        return self.chain.account(TREASURY).earned


@contextlib.asynccontextmanager
async def paid_world(folder: Path, *, limits: Limits = LIMITS, seed: int = 0) -> AsyncIterator[PaidWorld]:
    """An empty paid world."""
    net = MemoryNet(latency=0.02, jitter=0.01, seed=seed)
    chain = MemoryChain(domains(), lambda: int(wall_clock()))
    async with trio.open_nursery() as nursery:
        made = PaidWorld(World(net, nursery, seed, limits), chain, folder)
        try:
            yield made
            for member in made.world.members:
                if not member.scope.cancel_called:
                    await member.node.aclose()
        finally:
            nursery.cancel_scope.cancel()
