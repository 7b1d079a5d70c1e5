"""``WholeNodes``: the script of a market by whole nodes, hosts and clients, as in the field.

They run in virtual time over a ``MemoryNet`` whose wires have the latencies of the simulation's links, with
libp2p's encryption, real signatures, journals in SQLite and a chain in memory that mines in blocks.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import trio

from p2pnode.chain.ledger import (
    Call,
    Ledger,
    Outcome,
    RegistryLedger,
    SessionClosed,
    SessionOpened,
    UnavailableError,
)
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.client import Client
from p2pnode.errors import P2PNodeError
from p2pnode.host.host import Host
from p2pnode.host.model_pool import HostedModel
from p2pnode.ids import PeerId, SessionId
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine
from p2pnode.net.memory import MemoryNet
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.node import Node, NodeSetup
from p2pnode.node.staked_hosts import StakedHosts
from p2pnode.payments.books import open_journal
from p2pnode.payments.escrow import HostMoney
from p2pnode.payments.exposure import ExposureLimits
from p2pnode.payments.gas_budget import GasBudget
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.journal.keys import KeyShare
from p2pnode.payments.payer import OpenPayer, Payer
from p2pnode.payments.session_signer import SessionSigner
from p2pnode.payments.spending import Market, SpendingLimits
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.crypto import Signer, sign_digest
from p2pnode.protocols.inference.messages import Receipt, SamplingParams, Voucher
from p2pnode.simulations.draws import Draws
from p2pnode.simulations.links import LinkModel
from tests.host.paid import CHAIN_ID, MARKET, REGISTRY, domains, paid_identity, wallet_address, wallet_secret
from tests.simulations.conformance.market_script import (
    BLOCK_S,
    END_S,
    FEE,
    LIMITS,
    LINKS,
    N_CTX,
    PRICE_IN,
    PRICE_OUT,
    REQUEST_S,
    RICH,
    SLOTS,
    TOKENS_PER_S,
    MarketOutcome,
    MarketScript,
    Step,
    cache_key_of,
    ip_of,
)
from tests.sqlite_disk import WatchedDisk

LIFE_S = 3600.0
_DIGITS = 4
_MARKS = 3
"""Ids of a prompt beside its one message's text: its roles' and its end."""


def text_of(step: Step) -> str:
    """What a client asks: how long the answer is to be, and as much as its prompt is to have."""
    return f"{step.tokens_out:0{_DIGITS}}".ljust(step.tokens_in - _MARKS, "x")


def script(prompt: tuple[int, ...], seed: int) -> str:
    """The answer to a question; for one that begins with a part of the answer, too."""
    del seed
    return "." * int(bytes(prompt[1 : 1 + _DIGITS]))


class BlockLedger:
    """A ledger whose calls are carried out in the next block, as the simulation's chain has it."""

    def __init__(self, ledger: Ledger, mined: Callable[[Outcome], None]) -> None:
        self._ledger, self._mined = ledger, mined
        self.is_dead = False

    def __getattr__(self, name: str) -> Any:
        if self.is_dead:
            msg = "the process was killed"
            raise UnavailableError(msg)
        return getattr(self._ledger, name)

    async def transact(self, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
        """As ``Ledger``."""
        reached = trio.current_time() + REQUEST_S
        await trio.sleep_until(math.ceil(reached / BLOCK_S) * BLOCK_S)
        outcome = await self._ledger.transact(call, fee_max_wei=fee_max_wei)
        self._mined(outcome)
        return outcome


class HeardJournal:
    """A journal that tells what is written into it."""

    def __init__(self, journal: Journal, note: Callable[..., None]) -> None:
        self._journal, self._note = journal, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def signed(
        self, session: SessionId, voucher: Voucher, now: int, shares: Sequence[KeyShare] = ()
    ) -> dict[int, int]:
        """A client signed a voucher."""
        bought = self._journal.purchase(session)
        assert bought is not None
        self._note("signed", bought.terms.host, voucher.amount, voucher.tokens_out)
        return await self._journal.signed(session, voucher, now, shares)

    def bought_receipt(self, session: SessionId, receipt: Receipt, now: int) -> None:
        """A client checked a receipt."""
        bought = self._journal.purchase(session)
        assert bought is not None
        made = receipt.checkpoint
        self._note("receipt", bought.terms.host, made.seq, made.tokens_out)
        self._journal.bought_receipt(session, receipt, now)

    async def host_paid(self, session: SessionId, voucher: Voucher) -> None:
        """A host took a voucher."""
        record = self._journal.hosted_one(session)
        assert record is not None
        self._note("paid", record.terms.payer, voucher.amount)
        await self._journal.host_paid(session, voucher)


class NoStakes:
    """Stakes of a node that knows of no chain. ``heard`` is told of each advert that its book takes."""

    def __init__(self, heard: Callable[[Advert], None]) -> None:
        self.heard = heard

    def is_staked(self, _peer: PeerId) -> bool:
        """None is."""
        return False


class WholeNodes:
    """See the module. ``folder`` holds the journals."""

    def __init__(self, script: MarketScript, folder: Path) -> None:
        self._script, self._folder = script, folder
        self._outcome = MarketOutcome()
        draws = Draws(script.seed)
        self._links = LinkModel(LINKS, draws)
        self._order = self._appearance()
        places = {number: self._links.place(place) for place, number in enumerate(self._order)}
        self._places = {ip_of(number): place for number, place in places.items()}
        self._net = MemoryNet(latency=self._latency_s, tells_late=True)
        self._chain = MemoryChain(domains(), lambda: int(wall_clock()))
        self._keys = script.keys
        self._numbers = {key.peer_id: number for number, key in enumerate(self._keys)}
        self._wallets = {wallet_address(self._name(number)): number for number in range(script.nodes)}
        self._hosts: dict[int, Host] = {}
        self._hosts_nodes: dict[int, Node] = {}
        self._prices: dict[int, tuple[int, int]] = {}
        self._alive: dict[int, tuple[trio.CancelScope, BlockLedger, WatchedDisk]] = {}
        self._clients: dict[int, Client] = {}
        self._believed: set[tuple[int, int, int]] = set()
        self._starts = 0
        self._first: str | None = None
        self._close = {number: trio.Event() for number in range(script.nodes)}

    def _appearance(self) -> list[int]:
        """Nodes in the order of their first steps: the simulation numbers them so."""
        steps = [each for each in self._script.steps if each.kind in ("start", "ask")]
        return list(dict.fromkeys(each.node for each in steps))

    def _latency_s(self, source: str, target: str) -> float:
        return self._links.latency_s(self._places[source], self._places[target])

    def _name(self, number: int) -> str:
        return f"{'host' if number < self._script.hosts else 'client'} {number}"

    async def run(self) -> MarketOutcome:
        """Play it to its end."""
        with trio.fail_after(LIFE_S):
            async with trio.open_nursery() as nursery:
                for step in self._script.steps:
                    await trio.sleep_until(step.at_s)
                    await self._do(step, nursery)
                await trio.sleep_until(END_S)
                nursery.cancel_scope.cancel()
        return self._outcome

    async def _do(self, step: Step, nursery: trio.Nursery) -> None:
        number = step.node
        if step.kind in ("start", "restart"):
            if step.kind == "restart":
                self._net.restart(ip_of(number))
            nursery.start_soon(self._host, number)
        elif step.kind == "price":
            self._prices[number] = step.prices
            if number in self._alive:
                price_in, price_out = step.prices
                nursery.start_soon(self._reprice, number, price_in, price_out)
        elif step.kind == "crash":
            scope, ledger, disk = self._alive.pop(number)
            ledger.is_dead = disk.dead = True
            self._net.crash(ip_of(number))
            scope.cancel()
        elif step.kind == "ask":
            if number not in self._clients:
                await nursery.start(self._client, number)
            nursery.start_soon(self._ask, step)
        else:
            self._close[number].set()

    def _note(self, number: int) -> Callable[..., None]:
        def note(kind: str, wallet: bytes, *values: int) -> None:
            self._outcome.note(trio.current_time(), number, kind, self._wallets[wallet], *values)

        return note

    def _mined(self, outcome: Outcome) -> None:
        for event in outcome.events:
            if isinstance(event, SessionOpened | SessionClosed):
                values = [self._wallets[event.payer], self._wallets[event.host]]
                if isinstance(event, SessionClosed):
                    values.append(event.amount)
                kind = "opened" if isinstance(event, SessionOpened) else "settled"
                self._outcome.note(trio.current_time(), -1, kind, *values)

    # ---- hosts

    async def _host(self, number: int) -> None:
        self._starts += 1
        rng = random.Random(f"{self._script.seed} {number} {self._starts}")
        identity = paid_identity(number, wall_clock())
        node = Node(
            NodeSetup(
                key=identity.key,
                listen=(f"/ip4/{ip_of(number)}/tcp/4001",),
                bootstrap=(self._first,) if self._first is not None else (),
                dht="off",
                limits=LIMITS,
                transport=self._net.transport(ip_of(number)),
                wall=wall_clock,
                draw=rng.randbytes,
                rng=rng,
                in_thread=False,
                stakes=cast("StakedHosts", NoStakes(self._believed_by(number))),
            )
        )
        disk = WatchedDisk()
        ledger = BlockLedger(MemoryLedger(self._chain, identity.binding.wallet), self._mined)
        price_in, price_out = self._prices.get(number, (PRICE_IN, PRICE_OUT))
        config = ScriptedConfig(n_ctx=N_CTX, slots=SLOTS, tokens_per_s=TOKENS_PER_S, script=script)
        model = HostedModel(
            model=scripted_model_id(), name=SCRIPTED, new_engine=lambda: ScriptedEngine(config), n_ctx=N_CTX,
            price_in=price_in, price_out=price_out, session_fee=FEE,
        )  # fmt: skip
        async with (
            open_journal(self._folder / f"{number}.sqlite", disk=disk, in_thread=False) as journal,
            trio.open_nursery() as nursery,
        ):
            self._alive[number] = nursery.cancel_scope, ledger, disk
            heard = cast("Journal", HeardJournal(journal, self._note(number)))
            money = HostMoney(cast("RegistryLedger", ledger), heard, ExposureLimits(), GasBudget())
            await nursery.start(node.run)
            self._first = self._first or node.multiaddrs[0]
            self._hosts_nodes[number] = node
            self._hosts[number] = Host(node, identity, [model], money)
            await self._hosts[number].start()
            await trio.sleep_forever()

    async def _reprice(self, number: int, price_in: int, price_out: int) -> None:
        await self._hosts[number].reprice(scripted_model_id(), price_in=price_in, price_out=price_out)

    def _believed_by(self, number: int) -> Callable[[Advert], None]:
        """Hear what the book of a host's node takes."""

        def heard(advert: Advert) -> None:
            fact = number, self._numbers[advert.peer], advert.offers[0].price_out
            if fact[1] != number and fact not in self._believed:
                self._believed.add(fact)
                self._outcome.note(trio.current_time(), number, "advert", *fact[1:])

        return heard

    # ---- clients

    async def _client(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        rng = random.Random(f"{self._script.seed} {number}")
        name = self._name(number)
        self._chain.mint(wallet_address(name), RICH)
        node = Node(
            NodeSetup(
                key=self._keys[number],
                dht="off",
                limits=LIMITS,
                gossip=False,
                keep_connected=False,
                transport=self._net.transport(ip_of(number)),
                wall=wall_clock,
                draw=rng.randbytes,
                rng=rng,
                in_thread=False,
            )
        )
        first = self._hosts_nodes[self._script.first_peer(number)]
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            async with Client(
                node=node, bootstrap=first.multiaddrs[:1], limits=LIMITS, remember=False, keep_s=0,
                payer=self._payer(number, rng), in_thread=False, closes=True,
            ) as client:  # fmt: skip
                self._clients[number] = client
                task_status.started()
                await self._close[number].wait()
            await trio.sleep_until(END_S)
            nursery.cancel_scope.cancel()

    def _payer(self, number: int, rng: random.Random) -> Payer:
        rules, secret = SpendingLimits(), wallet_secret(self._name(number))
        address = wallet_address(self._name(number))

        async def unlock() -> Signer:
            return lambda digest: sign_digest(secret, digest)

        @contextlib.asynccontextmanager
        async def make() -> AsyncIterator[OpenPayer]:
            path = self._folder / f"{number}.sqlite"
            async with open_journal(path, disk=WatchedDisk(), in_thread=False) as opened:
                journal = cast("Journal", HeardJournal(opened, self._note(number)))
                signer = SessionSigner(
                    address=address,
                    sign=unlock,
                    ledger=MemoryLedger(self._chain),
                    journal=journal,
                    limits=rules,
                    wall=wall_clock,
                    draw=rng.randbytes,
                    on_sign=lambda _words, _fields: None,
                )
                yield OpenPayer(signer, journal)

        return Payer(
            market=Market(CHAIN_ID, REGISTRY, MARKET), limits=rules, address=address, make=make,
            look=list,
        )  # fmt: skip

    async def _ask(self, step: Step) -> None:
        number = step.node
        options = ChatOptions(
            model=SCRIPTED,
            sampling=SamplingParams(tokens_max=step.tokens_out + 50),
            cache_key=cache_key_of(step),
        )
        answer = self._clients[number].answer(text_of(step), options)
        outcome, hosts, told = "done", 0, 0
        before: tuple[str | None, bytes | None] = (None, None)
        try:
            async for _ in answer:
                now, host = trio.current_time(), answer.host
                if (host, answer.session) != before and host is not None:
                    before, hosts = (host, answer.session), hosts + 1
                    self._outcome.note(now, number, "host", step.number, self._numbers[host], told)
                told = len(answer.ids)
                self._outcome.note(now, number, "tokens", step.number, told)
        except P2PNodeError as error:
            outcome = type(error).__name__
        bill = answer.bill
        self._outcome.note(
            trio.current_time(), number, "answer", step.number, outcome, sum(item.tokens_in for item in bill),
            len(answer.ids), sum(item.cost for item in bill),
        )  # fmt: skip
