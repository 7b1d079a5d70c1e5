"""Twenty real hosts in memory, in virtual time: adverts, lookup, crashes, and the same run twice."""

from __future__ import annotations

import hashlib
from functools import partial

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from p2pnode.host.model_pool import HostedModel
from p2pnode.ids import ModelId
from p2pnode.models.manifest import scripted_model_id
from p2pnode.models.scripted import ScriptedEngine
from p2pnode.net.virtual_time import virtual_time, wall_clock
from p2pnode.node.finder import FoundHost
from tests.node.world import Member, World, scripted_host, world

COUNT = 20
CRASHED = (2, 5, 9, 13, 16, 19)  # 30% of the hosts
RARE = ModelId(hashlib.sha256(b"a model only one host serves").digest())
RARE_HOST = 7


def _rare() -> HostedModel:
    return HostedModel(model=RARE, name="rare", new_engine=ScriptedEngine, n_ctx=2048)


async def _all_start(w: World) -> None:
    first = await w.add([scripted_host()])
    for index in range(1, COUNT):
        models = [scripted_host(), _rare()] if index == RARE_HOST else [scripted_host()]
        await w.add(models, bootstrap=first.node.multiaddrs[:1])
    await trio.sleep(20)  # peers, meshes, provider records


def _knows(member: Member, other: Member, seq: int) -> bool:
    entry = member.node.adverts.book.get(other.node.peer_id, wall_clock())
    return entry is not None and entry.advert.seq >= seq


async def _an_advert_reaches_all(w: World, events: list[str]) -> None:
    speaker = w.members[3]
    assert speaker.host is not None
    await speaker.host.reprice(scripted_model_id(), price_in=1, price_out=2)
    await trio.lowlevel.checkpoint()
    started = trio.current_time()
    current = speaker.node.adverts.publisher.current
    assert current is not None
    others = [member for member in w.members if member is not speaker]
    arrived: dict[int, float] = {}
    while len(arrived) < len(others) and trio.current_time() - started < 2:
        await trio.sleep(0.01)
        for member in others:
            if member.index not in arrived and _knows(member, speaker, current.advert.seq):
                arrived[member.index] = trio.current_time() - started
    assert sorted(arrived) == [member.index for member in others]
    assert max(arrived.values()) <= 2
    events += [f"arrived {index} {seconds:.2f}" for index, seconds in sorted(arrived.items())]


async def _the_dht_finds_the_rare_host(w: World, events: list[str]) -> None:
    rare = w.members[RARE_HOST]
    for member in w.members:
        if member is rare:
            continue
        found: list[FoundHost] = []
        await member.node.finder.find(RARE, seeds=(), on_found=found.append, sources=frozenset({"dht"}))
        assert [host.advert.peer for host in found] == [rare.node.peer_id], member.index
        events.append(f"{trio.current_time():.2f} {member.index} found the rare host")


async def _the_crashed_are_forgotten(w: World, events: list[str]) -> None:
    gone = [w.members[index] for index in CRASHED]
    left = [member for member in w.members if member not in gone]
    for member in gone:
        w.crash(member)
    held = {peer for member in left for peer in _listed(member)}
    assert {member.node.peer_id for member in gone} <= held
    await trio.sleep(95)  # adverts live for 90 s
    peers = {member.node.peer_id for member in left}
    for member in left:
        assert _listed(member) == sorted(peers - {member.node.peer_id}), member.index
        events.append(f"{member.index} knows {len(_listed(member))}")


def _listed(member: Member) -> list[str]:
    live = member.node.adverts.book.live(wall_clock(), scripted_model_id())
    return sorted(entry.advert.peer for entry in live if entry.advert.peer != member.node.peer_id)


async def _scenario(events: list[str]) -> None:
    async with world(seed=7) as w:
        await _all_start(w)
        await _an_advert_reaches_all(w, events)
        await _the_dht_finds_the_rare_host(w, events)
        await _the_crashed_are_forgotten(w, events)


def _digest() -> str:
    events: list[str] = []
    with virtual_time(seed=7):
        trio.run(partial(_scenario, events), clock=MockClock(autojump_threshold=0))
    return hashlib.sha256("\n".join(events).encode()).hexdigest()


@pytest.mark.long
def test_twenty_hosts_find_one_another_and_forget_the_crashed() -> None:
    assert _digest()


@pytest.mark.long
def test_twenty_hosts_do_the_same_twice() -> None:
    assert _digest() == _digest()
