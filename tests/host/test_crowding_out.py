"""Free ids of one prefix against a host that joins late: clients of the node they crowd still find it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.virtual_time import wall_clock
from p2pnode.protocols.adverts.messages import Address, Advert, Load, Offer, topic_of
from p2pnode.protocols.adverts.signatures import seal
from p2pnode.protocols.gossipsub.commands import ACCEPT
from p2pnode.protocols.lookup.messages import provider_key
from p2pnode.protocols.wire import encode
from p2pnode.shares import Origin
from tests.net.memory_world import seed_of
from tests.node.world import Member, World, identity_of, scripted_host, world

MODEL = scripted_model_id()
IDS, ADVERTS_EACH, BOOK = 8, 8, 32


def attackers_from_one_prefix(host: str | None, peer: PeerId) -> Origin:
    """Everybody else has an origin of its own."""
    name = "attackers" if host is not None and host.startswith("10.0.7.") else f"peer/{peer}"
    return Origin(name, name)


def made_up(index: int) -> bytes:
    """A well signed advert of a host that is not there."""
    now = wall_clock()
    identity = identity_of(index, now)
    offer = Offer(model=MODEL, n_ctx=2048)
    advert = Advert(
        peer=identity.key.peer_id,
        instance=bytes(8),
        seq=int(now * 1000),
        issued_at=int(now),
        expires_at=int(now) + 3600,
        binding=identity.binding,
        addresses=(Address(multiaddr=f"/ip4/10.0.8.{index % 250}/tcp/4001"),),
        offers=(offer,),
        load=Load(slots=9),
    )
    return encode(seal(advert, identity.key.sign))


async def attack(w: World, target: Member, number: int) -> None:
    """One id: it provides the model, and brings adverts of made-up hosts as fast as they are taken."""
    network = Network(
        NetworkConfig(
            key_seed=seed_of(700 + number),
            listen=(f"/ip4/10.0.7.{number + 1}/tcp/4001",),
            transport=w.net.transport(f"10.0.7.{number + 1}"),
        )
    )
    await w.nursery.start(network.run)
    await network.connect(target.node.multiaddrs[0])
    await network.subscribe(topic_of(MODEL), lambda _author, _data: ACCEPT)
    await trio.sleep(3)
    await network.provide(provider_key(MODEL))
    for each in range(ADVERTS_EACH):
        await network.publish(topic_of(MODEL), made_up(1000 + ADVERTS_EACH * number + each))
        await trio.sleep(0.5)


@pytest.mark.long  # the machines have this in the short tests, for their part each
async def test_a_host_that_joins_late_is_found_by_every_client_that_starts_at_a_crowded_node(
    autojump_clock: MockClock,
) -> None:
    limits = replace(DEFAULT_LIMITS, book_max=BOOK)
    async with world(limits=limits, origin_rule=attackers_from_one_prefix) as w:
        crowded = await w.add([scripted_host()])
        async with trio.open_nursery() as nursery:
            for number in range(IDS):
                nursery.start_soon(attack, w, crowded, number)
        book = crowded.node.adverts.book
        assert len(book) >= BOOK - BOOK // 8 - 1  # it is full of them
        late = await w.add([scripted_host()], bootstrap=crowded.node.multiaddrs[:1])
        await trio.sleep(60)
        assert book.get(late.node.peer_id, wall_clock()) is not None
        for number in range(3):
            async with w.client(crowded.node.multiaddrs[:1], ip=f"10.0.9.{number + 1}") as client:
                ranking = await client.hosts("scripted")
                assert late.node.peer_id in {each.advert.peer for each in ranking.chosen}
