"""Free sessions that are left: the prompt cache of one command serves the next."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.host.host import Host
from p2pnode.host.resumable import ResumableSessions
from p2pnode.host.sheet import Grants
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.payments.books import open_journal
from p2pnode.protocols.events import Received
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import Open, SamplingParams
from p2pnode.protocols.inference.prompts import TurnPlaces
from p2pnode.protocols.inference.turn_memory import SessionMemory, TurnMemory
from p2pnode.shares import Origin
from tests.client.support import Events
from tests.net.memory_world import seed_of
from tests.node.world import Member, World, identity_of, scripted_host, world
from tests.payments.journals import TERMS, hosted, receipt, voucher
from tests.protocols.inference.pair import HOST

KEEP_S = 3600


async def keeping(w: World) -> Member:
    """A free host that keeps sessions."""
    member = await w.add()
    member.host = Host(
        member.node, identity_of(member.index, wall_clock()), [scripted_host()], grants=Grants(keep_s=KEEP_S)
    )
    await member.host.start()
    return member


async def ask(
    w: World, member: Member, data: Path, number: int, *, events: Events | None = None
) -> tuple[int, int]:
    """One command; tokens in, and how many of them were reused."""
    node = Node(
        NodeSetup(
            key=PeerKey(seed_of(900 + number)),
            dht="client",
            gossip=False,
            keep_connected=False,
            transport=w.net.transport(f"10.0.7.{number + 1}"),
            wall=wall_clock,
        )
    )
    await w.nursery.start(node.run)
    async with Client(
        NodeConfig(data_dir=data, mdns=False),
        node=node,
        bootstrap=member.node.multiaddrs[:1],
        in_thread=False,
        keep_s=KEEP_S,
    ) as client:
        if events is not None:
            events.of(client)
        asked = client.chat("hello", model="scripted", sampling=SamplingParams(tokens_max=40, temperature=0))
        async for _ in asked:
            pass
    await node.aclose()
    assert asked.usage is not None
    return asked.usage.tokens_in, asked.usage.reused


async def test_the_second_command_pays_no_prefill_for_what_the_first_one_asked(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        member = await keeping(w)
        first, second = await ask(w, member, tmp_path, 0), await ask(w, member, tmp_path, 1)
        assert first == (second[0], 0)
        assert second[1] > 0
        assert member.host is not None
        assert member.host.sessions_left == 1


async def test_the_host_of_the_first_command_is_found_where_it_was_and_asked_before_another_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        first, other = await keeping(w), await keeping(w)
        await ask(w, first, tmp_path, 0)
        events = Events()
        _, reused = await ask(w, other, tmp_path, 1, events=events)  # its first peer knows of no other host
        assert reused > 0
        assert events.named("session.left") == [{"peer": first.node.peer_id}]
        assert [each["peer"] for each in events.named("host")] == [first.node.peer_id]


async def test_a_host_that_is_gone_is_looked_for_where_it_was_and_another_one_is_asked(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        first, other = await keeping(w), await keeping(w)
        await ask(w, first, tmp_path, 0)
        w.crash(first)
        events = Events()
        began = trio.current_time()
        await ask(w, other, tmp_path, 1, events=events)
        assert [each["peer"] for each in events.named("host")] == [other.node.peer_id]
        assert events.named("session.left") == []
        assert trio.current_time() - began < 10


async def test_another_user_has_a_session_and_a_cache_of_its_own(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        member = await keeping(w)
        for number, name in enumerate(("one", "other")):
            (tmp_path / name).mkdir()
            assert (await ask(w, member, tmp_path / name, number))[1] == 0
        assert member.host is not None
        assert member.host.sessions_left == 2


async def test_it_is_forgotten_when_its_time_is_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with world() as w:
        member = await keeping(w)
        await ask(w, member, tmp_path, 0)
        await trio.sleep(KEEP_S + 1)
        assert (await ask(w, member, tmp_path, 1))[1] == 0
        assert member.host is not None
        assert member.host.sessions_left == 1


# ---- what it costs a host


MEMORY, PLACES = TurnMemory(), TurnPlaces()


def _left_record(number: int) -> tuple[object, object]:
    """An accepted free session that rests, and its stream."""
    origin = Origin(f"10.{number // 250}.{number % 250}.0/24", f"10.{number // 250}.{number % 250}.0/24")
    terms = HostTerms(
        n_ctx=2048, host=HOST.peer, keep_s=KEEP_S, memory=SessionMemory(MEMORY, origin), places=PLACES
    )
    machine = HostSession(
        peer=HOST.peer, stream=0, admit=lambda _open: terms, sign=HOST.sign, epoch=1,
        draw=lambda count: number.to_bytes(count, "big"), terms=terms,
    )  # fmt: skip
    machine.start(0.0)
    opening = Open(
        model=scripted_model_id(), salt=number.to_bytes(32, "big"), holder=bytes(16), keep_s=KEEP_S,
        resume_key=number.to_bytes(20, "big"),
    )  # fmt: skip
    machine.handle(Received(HOST.peer, 0, opening), 0.0)
    record = machine.session
    assert record is not None
    # As after a turn: with the last receipt.
    record.channel.last_receipt = receipt(number)
    return record, SimpleNamespace(origin=origin, replaced=lambda: None)


async def test_a_thousand_that_are_left_take_less_than_two_kib_each_and_no_task() -> None:
    limits = DEFAULT_LIMITS
    sessions = ResumableSessions(None, epoch=1, grants=lambda _record: None, wall=lambda: 0.0, limits=limits)

    async def leave(number: int) -> None:
        record, stream = _left_record(number)
        await sessions.began(record, stream)  # type: ignore[arg-type]
        await sessions.leave(record, stream, KEEP_S)  # type: ignore[arg-type]

    for number in range(100):  # what is made once, and by the first of each origin
        await leave(number)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    tasks = trio.lowlevel.current_statistics().tasks_living
    for number in range(100, 1000):
        await leave(number)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sessions.left == 1000
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert (after - before) / 900 < 2048
    await leave(1000)
    assert sessions.left == 1000  # the first gave way


async def test_a_thousand_that_are_paid_and_left_take_less_than_two_kib_each_after_a_restart(
    tmp_path: Path,
) -> None:
    async with open_journal(tmp_path / "journal.sqlite", in_thread=False) as journal:
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                terms = replace(TERMS, payer=number.to_bytes(20, "big"))
                left = hosted(
                    number, terms=terms, state="over", settle_at=KEEP_S, left_until=KEEP_S, keep_s=KEEP_S,
                    voucher=voucher(1, 30_000), origin=f"10.{number // 250}.{number % 250}.0/24",
                )  # fmt: skip
                nursery.start_soon(journal.host_relaying, left)
        journal.hosted("over")  # what is made once
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        sessions = ResumableSessions(
            SimpleNamespace(journal=journal),  # type: ignore[arg-type]
            epoch=1,
            grants=lambda _record: None,
            wall=lambda: 0.0,
            limits=DEFAULT_LIMITS,
        )
        await sessions.prepare()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sessions.left == 1000
        assert (after - before) / 1000 < 2048
