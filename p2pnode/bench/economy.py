"""``economy.*``: what fifty questions of one user in a day cost in session fees.

The user asks by fifty commands, each a client of its own on one journal, over a virtual day: real nodes,
hosts and clients in a net in memory, on a ledger in memory, at the prices of ``p2pnode demo``. They are asked
of one host, then of three, and once more of one host with a session for each question, as it was before
sessions were left. Counts only: the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio
from trio.testing import MockClock

from p2pnode.bench.figure import compared
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.chain.ledger import Domains
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.client.client import Client
from p2pnode.contract_rules import treasury_share
from p2pnode.errors import LocalError
from p2pnode.host.host import Host
from p2pnode.host.model_pool import HostedModel
from p2pnode.host.sheet import Grants
from p2pnode.ids import PeerId
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine
from p2pnode.net.memory import MemoryNet
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.identity import HostIdentity
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.payments.books import open_journal
from p2pnode.payments.escrow import HostMoney
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.payments.payer import OpenPayer, Payer
from p2pnode.payments.session_signer import SessionSigner
from p2pnode.payments.spending import Market, SpendingLimits
from p2pnode.protocols.adverts.signatures import BINDING_TTL_MAX_S, BindingTerms, bind
from p2pnode.protocols.crypto import Signer, keccak256, key_address, sign_digest
from p2pnode.protocols.inference.messages import SamplingParams
from p2pnode.protocols.typed_data import Domain, market_domain

PRICE_IN: Final = 1_000_000
PRICE_OUT: Final = 2_000_000
SESSION_FEE: Final = 10_000
"""Those of the demo: 1 and 2 USDC per million tokens, 1 cent a session."""
_ASKS: Final = 50
_DAY_S: Final = 86_400
_HOSTS: Final = 3
_TOKENS: Final = 64
_CHAIN_ID: Final = 31_337
_MARKET, _USDC, _REGISTRY, _TREASURY = (bytes([number]) * 20 for number in (0xA1, 0xA2, 0xA3, 0xA4))
_FUNDS: Final = 10**9
_QUESTION: Final = "What is a peer-to-peer network? Answer in two sentences."


@dataclass(frozen=True, slots=True, kw_only=True)
class DayOfQuestions:
    """What the chain says of a day, once all of it is settled. Amounts in token units."""

    opens: int
    hosts_used: int
    paid: int

    @property
    def fees(self) -> int:
        """Session fees."""
        return self.opens * SESSION_FEE

    @property
    def fee_share(self) -> float:
        """The part of it that is fees."""
        return self.fees / self.paid


async def measure_economy(options: BenchOptions, take: Take) -> None:
    """Both figures."""
    asks = 6 if options.quick else _ASKS
    days: list[DayOfQuestions] = []
    for name, hosts, keep_s in (("one", 1, _DAY_S), ("three", _HOSTS, _DAY_S), ("each", 1, 0)):
        folder = options.scratch / f"economy {name}"
        await trio.Path(folder).mkdir(parents=True)
        # In a run of its own: the clock of this one is real.
        days.append(await trio.to_thread.run_sync(partial(run_day, folder, hosts, asks, keep_s=keep_s)))
    one, three, each = days
    take(
        "economy.opens",
        compared(
            one.opens + three.opens, one.hosts_used + three.hosts_used, questions=asks,
            one_host=one.opens, three_hosts=three.opens, three_hosts_used=three.hosts_used,
            session_each=each.opens,
        ),
    )  # fmt: skip
    take(
        "economy.fee_share",
        compared(
            round(one.fee_share, 4), round(each.fee_share, 4), questions=asks, paid_units=one.paid,
            paid_units_session_each=each.paid, three_hosts=round(three.fee_share, 4),
        ),
    )  # fmt: skip


def run_day(folder: Path, hosts: int, asks: int, *, keep_s: int) -> DayOfQuestions:
    """Ask over a virtual day, and settle. Raises ``LocalError`` where a unit is not where it belongs."""
    clock = MockClock(autojump_threshold=0)
    return trio.run(partial(_day, folder, hosts, asks, clock, keep_s=keep_s), clock=clock)


async def _day(folder: Path, hosts: int, asks: int, clock: MockClock, *, keep_s: int) -> DayOfQuestions:
    market = _VirtualMarket(folder, keep_s)
    used: set[PeerId] = set()
    async with trio.open_nursery() as nursery:
        for number in range(hosts):
            await nursery.start(market.host, number)
        for _ in range(asks):
            used.add(await market.ask())
            clock.jump(_DAY_S / asks)
            await trio.sleep(1)
        for node in market.nodes:  # which settles what is left
            await node.aclose()
        nursery.cancel_scope.cancel()
    return market.audit(len(used))


class _VirtualMarket:
    """Hosts, and the commands of one user."""

    def __init__(self, folder: Path, keep_s: int) -> None:
        self._folder, self._keep_s = folder, keep_s
        self._net = MemoryNet(latency=0.02)
        token = Domain(name="USD Coin", version="2", chain_id=_CHAIN_ID, contract=_USDC)
        domains = Domains(
            market=market_domain(_CHAIN_ID, _MARKET), token=token, node_registry=_REGISTRY, treasury=_TREASURY
        )
        self._chain = MemoryChain(domains, lambda: int(wall_clock()))
        self._payer_secret = keccak256(b"economy payer")
        self._payer = key_address(self._payer_secret)
        self._chain.mint(self._payer, _FUNDS)
        self._draws = random.Random("economy")  # noqa: S311 - keys that guard nothing
        self._wallets: list[bytes] = []
        self.nodes: list[Node] = []
        self._asked = 0

    async def host(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Run one until cancelled."""
        identity = self._identity(number)
        ip = f"10.0.0.{number + 1}"
        node = self._node(identity.key, ip, listen=(f"/ip4/{ip}/tcp/4001",))
        self.nodes.append(node)
        self._wallets.append(identity.binding.wallet)
        model = HostedModel(
            model=scripted_model_id(),
            name=SCRIPTED,
            new_engine=lambda: ScriptedEngine(ScriptedConfig()),
            n_ctx=2048,
            price_in=PRICE_IN,
            price_out=PRICE_OUT,
            session_fee=SESSION_FEE,
        )
        async with (
            open_journal(self._folder / f"host {number}.sqlite", in_thread=False) as journal,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(node.run)
            money = HostMoney(MemoryLedger(self._chain, identity.binding.wallet), journal)
            await Host(node, identity, [model], money, grants=Grants(keep_s=self._keep_s)).start()
            task_status.started()
            await trio.sleep_forever()

    async def ask(self) -> PeerId:
        """One command: a client that asks one question. Returns the host that answered."""
        self._asked += 1
        node = self._node(PeerKey(self._draws.randbytes(32)), f"10.0.9.{self._asked}", listen=())
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            first = [each.multiaddrs[0] for each in self.nodes]
            async with Client(
                node=node,
                bootstrap=first,
                remember=False,
                in_thread=False,
                payer=self._new_payer(),
                keep_s=self._keep_s,
            ) as client:
                sampling = SamplingParams(tokens_max=_TOKENS, temperature=0.0)
                answer = client.chat(_QUESTION, model=SCRIPTED, sampling=sampling)
                async for _ in answer:
                    pass
            await node.aclose()
            nursery.cancel_scope.cancel()
        if answer.host is None:
            msg = "a question was answered by no host"
            raise LocalError(msg)
        return answer.host

    def audit(self, hosts_used: int) -> DayOfQuestions:
        """What the day cost. Raises ``LocalError`` where a unit is not where the sessions say."""
        journal = Journal.open(self._path, in_thread=False)
        try:
            sessions = journal.purchases()
        finally:
            journal.close()
        paid = _FUNDS - self._chain.account(self._payer).usdc
        due = sum(each.due for each in sessions)
        earned = sum(self._chain.account(wallet).earned for wallet in self._wallets)
        treasury = sum(treasury_share(each.due - SESSION_FEE) for each in sessions)
        if paid != due or earned != due - treasury or self._chain.account(_TREASURY).earned != treasury:
            msg = f"{paid} units were paid and {earned} earned for sessions that cost {due}"
            raise LocalError(msg)
        return DayOfQuestions(opens=len(sessions), hosts_used=hosts_used, paid=paid)

    # ---- its parts

    @property
    def _path(self) -> Path:
        return self._folder / "client.sqlite"

    def _node(self, key: PeerKey, ip: str, *, listen: tuple[str, ...]) -> Node:
        return Node(
            NodeSetup(
                key=key,
                listen=listen,
                dht="client",
                gossip=bool(listen),
                keep_connected=False,
                transport=self._net.transport(ip),
                wall=wall_clock,
                draw=self._draws.randbytes,
                rng=self._draws,
            )
        )

    @staticmethod
    def _identity(number: int) -> HostIdentity:
        """A host's identity that is bound to the chain, without the second that a keystore takes."""
        key = PeerKey(keccak256(b"economy peer %d" % number))
        receipt, secret = (keccak256(b"economy %s %d" % (name, number)) for name in (b"receipt", b"wallet"))
        now = int(wall_clock())
        terms = BindingTerms(
            receipt_key=key_address(receipt),
            chain_id=_CHAIN_ID,
            node_registry=_REGISTRY,
            seq=now,
            expires_at=now + BINDING_TTL_MAX_S,
        )
        binding = bind(key.peer_id, key_address(secret), terms, lambda digest: sign_digest(secret, digest))
        return HostIdentity(key, receipt, binding)

    def _new_payer(self) -> Payer:
        limits = SpendingLimits(day_max=_FUNDS, host_max=_FUNDS)

        async def unlock() -> Signer:
            return lambda digest: sign_digest(self._payer_secret, digest)

        @asynccontextmanager
        async def make() -> AsyncIterator[OpenPayer]:
            async with open_journal(self._path, in_thread=False) as journal:
                signer = SessionSigner(
                    address=self._payer,
                    sign=unlock,
                    ledger=MemoryLedger(self._chain),
                    journal=journal,
                    limits=limits,
                    wall=wall_clock,
                    draw=self._draws.randbytes,
                    on_sign=lambda _words, _fields: None,
                )
                yield OpenPayer(signer, journal)

        market = Market(_CHAIN_ID, _REGISTRY, _MARKET)
        return Payer(market=market, limits=limits, address=self._payer, make=make, look=self._left)

    def _left(self) -> list[BoughtSession]:
        if not self._path.exists():
            return []
        journal = Journal.open(self._path, in_thread=False)
        try:
            return journal.purchases_kept(int(wall_clock()))
        finally:
            journal.close()
