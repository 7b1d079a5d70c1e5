"""Everything that a node asks of peers, answered with bytes of any kind: the question fails, nothing else.

In a memory net and in virtual time. The peers that lie are whole networks; only what they say is made up.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.errors import P2PNodeError, RemoteError
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.stream import Stream
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.keys import PeerKey
from p2pnode.payments.books import open_journal
from p2pnode.payments.checkpoints import fetch_receipts
from p2pnode.payments.journal.journal import Journal
from p2pnode.protocols.adverts.messages import CODEC as ADVERTS
from p2pnode.protocols.adverts.messages import Address, Adverts
from p2pnode.protocols.adverts.signatures import parse, seal
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.protocols.typed_data import market_domain
from p2pnode.storage.peer_store import PeerStore
from tests.fuzz.conftest import Counted
from tests.fuzz.corpus import identify, kad, messages, prefixed
from tests.fuzz.mutations import Input, Mutate, Tally, by_bytes, inputs, msgpack_values
from tests.fuzz.test_protocols import PER_PEER, frame, in_batches
from tests.host.support import honest_answer
from tests.net.memory_world import seed_of
from tests.node.world import Member, World, identity_of, scripted_host, world
from tests.payments.journals import NOW, bought
from tests.storage.blob_world import Owners

SHARE = [24, pytest.param(10_000, marks=pytest.mark.long)]
DEADLINE_S = 120.0
"""Longer than any of the asker's own."""
ADVERTS_PROTOCOL, KAD = "/p2pnode/adverts/1", "/p2pnode/kad/1.0.0"


class Liar:
    """A peer that answers each stream of one protocol with the present bytes."""

    def __init__(self, w: World, number: int, **config: Any) -> None:
        self.index = 30_000 + number
        ip = f"10.0.{number // 250 % 200 + 10}.{number % 250 + 1}"
        self.network = Network(
            NetworkConfig(
                key_seed=seed_of(self.index),
                listen=(f"/ip4/{ip}/tcp/4001",),
                transport=w.net.transport(ip),
                **{"dht": "off", "gossip": False, **config},
            )
        )
        self.data = b""

    async def lie(self, stream: Stream) -> None:
        """Read something, answer, and end."""
        with trio.move_on_after(0.3):
            await stream.receive_some()
        await stream.send_all(self.data)
        await stream.aclose()


@contextlib.asynccontextmanager
async def liar(w: World, number: int, protocol: str, **config: Any) -> AsyncIterator[Liar]:
    """One that runs."""
    made = Liar(w, number, **config)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.network.run)
        made.network.serve(protocol, made.lie)
        yield made
        await made.network.aclose()
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def asking(w: World) -> AsyncIterator[tuple[Member, Member]]:
    """An honest host and a node that asks; afterwards both serve, and nothing is left over."""
    host = await w.add([scripted_host(tokens_per_s=5000)])
    asker = await w.add([scripted_host(tokens_per_s=5000)], bootstrap=host.node.multiaddrs[:1])
    await trio.sleep(60)
    before = trio.lowlevel.current_statistics().tasks_living
    yield host, asker
    await trio.sleep(300)
    assert trio.lowlevel.current_statistics().tasks_living <= before
    assert asker.node.network.statistics().tasks_failed == {}
    async with w.client(asker.node.multiaddrs[:1]) as client:
        await honest_answer(client)


Ask = Callable[[Liar], Awaitable[object]]


async def ask_all(
    w: World, protocol: str, made: Iterator[Input], tally: Tally, ask: Ask, **config: Any
) -> None:
    """One question for each input; a few to each liar, for who lies too often is not asked again."""
    for number, batch in enumerate(in_batches(made, PER_PEER)):
        async with liar(w, number, protocol, **config) as other:
            for each in batch:
                other.data = each.data
                with each.told(), trio.fail_after(DEADLINE_S):
                    try:
                        await ask(other)
                    except P2PNodeError as error:
                        tally.outcomes[type(error).__name__] += 1
                    else:
                        tally.outcomes["taken"] += 1


def _made(name: str, count: int, mutate: Mutate = msgpack_values) -> Iterator[Input]:
    return inputs(f"{name} answers", count, messages(name), mutate, frame)


@pytest.mark.parametrize("count", SHARE)
async def test_an_answer_about_adverts_is_taken_or_refused(
    count: int, counted: Counted, autojump_clock: MockClock
) -> None:
    async with world() as w, asking(w) as (host, asker):
        node = asker.node
        publish = host.node.adverts.publisher.current
        assert publish is not None
        honest = parse(publish.signed)

        async def ask(other: Liar) -> None:
            await node.network.connect_peer(other.network.peer_id, other.network.multiaddrs)
            match len(other.data) % 3:
                case 0:
                    await node.adverts.sample(other.network.peer_id)
                case 1:
                    await node.adverts.fetch(other.network.peer_id)
                case _:
                    own = replace(honest, peer=other.network.peer_id, sheet=bytes(32))
                    assert await node.adverts.sheet(own) is None  # nobody has the sheet of this hash

        with counted("adverts answers") as tally:
            await ask_all(w, ADVERTS_PROTOCOL, _made("adverts", count), tally, ask)


@pytest.mark.parametrize("count", SHARE)
async def test_an_answer_of_a_store_is_taken_or_refused(
    count: int, counted: Counted, autojump_clock: MockClock
) -> None:
    owners, digest = Owners(), hash_of(b"blob")
    async with world() as w, asking(w) as (_, asker):

        async def ask(other: Liar) -> None:
            store = PeerStore(asker.node, other.network.peer_id, other.network.multiaddrs, sign=owners.sign)
            try:
                match len(other.data) % 4:
                    case 0:
                        await store.read(digest)
                    case 1:
                        await store.size(digest)
                    case 2:
                        await store.get(EntryKey(owners.all[0]))
                    case _:
                        await store.put(b"blob", owner=owners.all[0])
            finally:
                store.close()

        with counted("blob answers") as tally:
            await ask_all(w, "/p2pnode/blob/1", _made("blob", count), tally, ask)


@pytest.mark.parametrize("count", SHARE)
async def test_an_answer_about_receipts_is_taken_or_refused(
    count: int, counted: Counted, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with (
        world() as w,
        open_journal(tmp_path / "journal.sqlite", in_thread=False) as journal,
        asking(w) as (_, asker),
    ):
        await _ask_for_receipts(w, asker, journal, count, counted)


async def _ask_for_receipts(w: World, asker: Member, journal: Journal, count: int, counted: Counted) -> None:
    async def ask(other: Liar) -> None:
        record = bought(1, host=other.network.peer_id, addresses=other.network.multiaddrs)
        await fetch_receipts(
            record,
            journal,
            market_domain(1, bytes(20)),
            asker.node.network,
            limits=DEFAULT_LIMITS,
            now=NOW,
        )

    with counted("checkpoint answers") as tally:
        await ask_all(w, "/p2pnode/checkpoint/1", _made("checkpoint", count), tally, ask)


@pytest.mark.parametrize("count", SHARE)
async def test_an_answer_to_a_question_is_shown_or_refused(
    count: int, counted: Counted, autojump_clock: MockClock
) -> None:
    async with world() as w, asking(w) as (host, asker):
        publish = host.node.adverts.publisher.current
        assert publish is not None
        honest = parse(publish.signed)

        async def ask(other: Liar) -> None:
            other.network.serve(ADVERTS_PROTOCOL, _advertises(other, honest))
            failed: P2PNodeError | None = None
            async with w.client(asker.node.multiaddrs[:1]) as client:
                try:
                    await _read(client, other.network.multiaddrs[0])
                except P2PNodeError as error:
                    failed = error
            if failed is not None:
                raise failed

        with counted("inference answers") as tally:
            await ask_all(w, "/p2pnode/inference/1", _made("inference", count), tally, ask)
        assert tally.outcomes["taken"] == 0


def _advertises(other: Liar, honest: Any) -> Callable[[Stream], Awaitable[None]]:
    key, now = PeerKey(seed_of(other.index)), wall_clock()
    advert = replace(
        honest,
        peer=key.peer_id,
        binding=identity_of(other.index, now).binding,
        addresses=(Address(multiaddr=other.network.multiaddrs[0].partition("/p2p/")[0]),),
        issued_at=int(now),
        expires_at=int(now) + 90,
    )
    answer = frame(ADVERTS.encode(Adverts(adverts=(seal(advert, key.sign),))))

    async def advertise(stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    return advertise


async def _read(client: Client, multiaddr: str) -> None:
    answer = client.chat("hello", model="scripted", peer=multiaddr)
    async for _ in answer:
        pass


@pytest.mark.parametrize("count", SHARE)
async def test_whatever_a_peer_says_of_itself_is_survived(
    count: int, counted: Counted, autojump_clock: MockClock
) -> None:
    made = inputs("identify answers", count, identify(), by_bytes, prefixed)
    async with world() as w, asking(w) as (_, asker):

        async def ask(other: Liar) -> None:
            await other.network.connect(asker.node.multiaddrs[0])
            await trio.sleep(0.5)
            await other.network.disconnect(asker.node.peer_id)

        with counted("identify answers") as tally:
            await ask_all(w, "/ipfs/id/1.0.0", made, tally, ask)


@pytest.mark.parametrize("count", SHARE)
async def test_an_answer_of_the_dht_costs_one_question(
    count: int, counted: Counted, autojump_clock: MockClock
) -> None:
    made = inputs("kad answers", count, kad(), by_bytes, prefixed)
    turn = 0
    async with world() as w, asking(w) as (_, asker):
        network = asker.node.network

        async def ask(other: Liar) -> None:
            nonlocal turn
            turn += 1
            if not network.is_connected(other.network.peer_id):
                await other.network.connect(asker.node.multiaddrs[0])
                await trio.sleep(0.5)
            if turn % 2:
                await network.find_providers(bytes(32), limit=3)
            elif not await network.provide(bytes(32)):
                raise RemoteError("nobody took it")

        with counted("kad answers") as tally:
            await ask_all(w, KAD, made, tally, ask, dht="server")
