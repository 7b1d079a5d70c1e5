"""Data dirs of an earlier version are read unchanged, pay, settle and recover. README.md describes them."""

from __future__ import annotations

import dataclasses
import json
import secrets
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pnode import SamplingParams
from p2pnode.chain.dev.devchain import open_dev_chain
from p2pnode.chain.profile import ChainProfile, load_profile, write_profile
from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.host.host import Host
from p2pnode.ids import SessionId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import BoundChain, load_or_create_identity
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.payments.books import open_books
from p2pnode.payments.escrow import HostMoney
from p2pnode.payments.funds import reconcile
from p2pnode.payments.gas import HostGas
from p2pnode.payments.gas_budget import GasBudget
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.payer import payer_of
from p2pnode.payments.redelivery import Redelivery, redeliver_from_journal
from p2pnode.payments.settlement import Settler
from p2pnode.storage.node_store import StoreFor, keep_for_peers, open_store
from tests.cli.support import run
from tests.node.world import scripted_host

HERE = Path(__file__).parent
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
MADE_AT = 1_796_010_600
"""Epoch seconds shortly after the data dirs were written: both sessions can still be served and settled."""
FIRST, SECOND = (SessionId(bytes.fromhex(each["session"])) for each in EXPECTED["client"]["purchases"])
NEWER = {"keep_s", "left_until", "generation", "origin", "settle_above", "turn", "ended", "window"}
"""Fields of records and messages that the version which wrote ``expected.json`` did not have."""
FUNDED, PAID_FIRST = 5_000_000, 10_162
AT_HOST, OWED = 10_043, 10_089
"""What the second session's host had when it was killed, and what the client owes it."""


@dataclass
class Old:
    """The unpacked data dirs, and the time that goes on from when they were written."""

    root: Path
    began: float = field(default_factory=time.monotonic)

    def wall(self) -> float:
        return MADE_AT + time.monotonic() - self.began

    @property
    def client(self) -> DataDir:
        return DataDir(self.root / "client")

    @property
    def host(self) -> DataDir:
        return DataDir(self.root / "host")

    @asynccontextmanager
    async def chain(self) -> AsyncIterator[ChainProfile]:
        """The old chain goes on: its profile, with the address at which it is served now."""
        async with open_dev_chain(state=self.root / "chain.sqlite", wall=self.wall) as chain:
            yield replace(load_profile(self.root / "chain.toml"), rpc_urls=(chain.url,))


@pytest.fixture
def old(tmp_path: Path) -> Old:
    with tarfile.open(HERE / "data_dirs.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    return Old(tmp_path)


def restored(old: Old, who: str) -> DataDir:
    """A new data dir, made of the twelve words alone."""
    new = DataDir(old.root / f"new-{who}")
    words = old.root / f"{who}.words"
    ran = run("wallet", "restore", "--random", "--phrase-file", words, "--json", "--data-dir", new.root)
    assert ran.code == 0, ran
    return new


@pytest.fixture
def new(old: Old) -> DataDir:
    """The client's, on another machine."""
    return restored(old, "client")


@contextmanager
def opened(data: DataDir) -> Iterator[Journal]:
    journal = Journal.open(data.journal)
    try:
        yield journal
    finally:
        journal.close()


def plain(value: object) -> object:
    """A record as ``expected.json`` has it: fields that are newer have their defaults, and are left out."""
    if dataclasses.is_dataclass(value):
        kept = [each for each in dataclasses.fields(value) if each.name not in NEWER]
        for each in dataclasses.fields(value):
            assert each.name not in NEWER or getattr(value, each.name) == each.default
        return {each.name: plain(getattr(value, each.name)) for each in kept}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def spent(data: DataDir) -> dict[SessionId, int | None]:
    with opened(data) as journal:
        return {each.session: each.spent for each in journal.purchases("settled")}


# ---- read


@pytest.mark.parametrize("who", ["client", "host"])
def test_a_journal_is_read_to_the_letter(old: Old, who: str) -> None:
    with opened(DataDir(old.root / who)) as journal:
        journal.verify()
        bought, hosted = journal.purchases(), journal.hosted()
        found = {
            "purchases": plain(bought),
            "hosted": plain(hosted),
            "left": [each.session.hex() for each in journal.purchases_left()],
            "taken": {each.session.hex(): plain(journal.taken(each.session)) for each in bought},
            "issued": {
                each.session.hex(): plain(journal.issued_after(each.session, 0, 0, 1000)) for each in hosted
            },
            "evidence": plain(journal.evidence()),
        }
    assert found == EXPECTED[who]


def known(found: Any, expected: Any) -> Any:
    """``found`` without the fields that its version did not know: of those maps that ``expected`` has."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return {key: known(found[key], each) for key, each in expected.items() if key in found}
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [known(*pair) for pair in zip(found, expected, strict=True)]
    return found


def test_conversations_and_sessions_are_listed_and_exported_unchanged(old: Old) -> None:
    place = ("--data-dir", old.client.root)
    listed = run("sessions", "list", "--json", *place).events
    assert [each for each in listed if each["event"] in ("conversation", "session")] == EXPECTED["listed"]
    for conversation, exported in EXPECTED["exported"].items():
        ran = run("sessions", "export", conversation, "--no-mdns", *place)
        assert ran.code == 0, ran
        # A seed has its place in a prompt now, and each prompt has its own.
        exported["sampling"].pop("seed", None)
        assert known(json.loads(ran.out), exported) == exported


@pytest.mark.parametrize("who", ["client", "host"])
def test_the_words_make_the_same_wallet_and_the_same_storage_key(old: Old, who: str) -> None:
    new, held = restored(old, who), DataDir(old.root / who)
    assert json.loads(new.wallet.read_text())["address"] == EXPECTED["wallets"][who]
    assert new.storage_key.read_bytes() == held.storage_key.read_bytes()


# ---- pay, settle, recover


async def test_what_was_left_open_is_settled_on_the_chain_by_both_journals(old: Old) -> None:
    settled: list[tuple[SessionId, int]] = []
    async with old.chain() as profile:
        async with open_books(old.host, profile, sends=True) as books:
            settler = Settler(
                books.ledger,
                books.journal,
                limits=_limits(),
                wall=old.wall,
                gas=HostGas(books.ledger, GasBudget(), old.wall),
                on_settled=lambda record, amount: settled.append((record.session, amount)),
            )
            await settler.prepare(books.journal.next_epoch(int(1000 * old.wall())))
            await settler.settle_all()
            assert [each.state for each in books.journal.hosted()] == ["settled", "settled"]
        assert settled == [(SECOND, AT_HOST)]
        async with open_books(old.client, profile) as books:
            await reconcile(books.journal, books.ledger, int(old.wall()))
            assert (await books.ledger.balances(books.wallet.address)).usdc == FUNDED - PAID_FIRST - AT_HOST
    assert spent(old.client) == {FIRST: PAID_FIRST, SECOND: AT_HOST}


async def test_a_host_and_a_client_go_on_with_their_old_data_dirs(old: Old, new: DataDir) -> None:
    async with old.chain() as profile, _host(old, profile) as node:
        path = old.root / "now.toml"
        write_profile(path, profile)
        async with _client(old.client, old, path, node) as client:
            # The host that was killed gets the last voucher of the session that it was left with.
            config = client.runtime.config
            assert await redeliver_from_journal(config, client.node) == [Redelivery(SECOND, "delivered")]
            # What had not reached its replica does now.
            await client.conversations.look_for_replicas()
            assert (await (await client.conversations.replicator()).archive.flush()).kept
            # The old wallet pays for a new session.
            asked = client.chat("hello", model="scripted", sampling=SamplingParams(tokens_max=16))
            text = "".join([piece async for piece in asked])
            assert text
            assert asked.usage is not None
            cost = asked.usage.cost
        assert node.peer_id == EXPECTED["about"]["peer"]
        async with _client(new, old, path, node) as client:
            recovery = await client.conversations.recover()
        titles = {each.title for each in recovery.conversations}
        assert titles == {each["title"] for each in EXPECTED["exported"].values()}
        with opened(new) as journal:
            assert FIRST in [each.session for each in journal.purchases()]
        with trio.fail_after(30):
            while sum(each is not None for each in spent(old.client).values()) < 3:
                await trio.sleep(0.05)
                async with open_books(old.client, profile) as books:
                    await reconcile(books.journal, books.ledger, int(old.wall()))
    paid = spent(old.client)
    (session,) = paid.keys() - {FIRST, SECOND}
    assert paid == {FIRST: PAID_FIRST, SECOND: OWED, session: cost}
    with opened(old.host) as journal:
        assert {each.session: each.amount for each in journal.hosted()} == paid


def _limits() -> Limits:
    return replace(DEFAULT_LIMITS, settle_batch_s=0.2, chain_poll_s=0.5)


@asynccontextmanager
async def _host(old: Old, profile: ChainProfile) -> AsyncIterator[Node]:
    """The old host, started again at its old prices, which stores for the client as it did."""
    bound = BoundChain(profile.chain_id, profile.node_registry)
    identity = await trio.to_thread.run_sync(load_or_create_identity, old.host, old.wall, bound)
    node = Node(
        NodeSetup(key=identity.key, listen=("/ip4/127.0.0.1/tcp/0",), limits=_limits(), wall=old.wall)
    )
    priced = replace(scripted_host(), price_in=1_000_000, price_out=2_000_000, session_fee=10_000)
    async with (
        open_books(old.host, profile, sends=True) as books,
        open_store(NodeConfig(data_dir=old.host.root), wall=old.wall) as store,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(node.run)
        keep_for_peers(node, store, StoreFor([EXPECTED["about"]["owner"]["client"]]).admits)
        host = Host(node, identity, [priced], HostMoney(books.ledger, books.journal))
        await host.start()
        yield node
        await node.aclose()


@asynccontextmanager
async def _client(data: DataDir, old: Old, profile: Path, host: Node) -> AsyncIterator[Client]:
    """A client on a data dir that knows the host's present address."""
    config = NodeConfig(data_dir=data.root, chain=str(profile), mdns=False)
    node = Node(
        NodeSetup(
            key=PeerKey.generate(),
            dht="client",
            gossip=False,
            keep_connected=False,
            limits=_limits(),
            wall=old.wall,
        )
    )
    payer = payer_of(config, wall=old.wall, draw=secrets.token_bytes, on_sign=lambda _words, _fields: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        async with Client(
            config, node=node, payer=payer, bootstrap=host.multiaddrs[:1], limits=_limits(), remember=False
        ) as client:
            await node.network.connect_peer(host.peer_id, (), trusted=host.multiaddrs)
            yield client
        await node.aclose()
