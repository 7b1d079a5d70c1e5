"""Adverts from a liar: forged, replayed, expired, oversized, and a flood of them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import ConfigError, first_of_kind
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.invite import read_bootstrap
from p2pnode.node.keys import PeerKey
from p2pnode.protocols.adverts.messages import (
    CODEC,
    PROTOCOL,
    Address,
    Adverts,
    GetAdvert,
    SampleAdverts,
    SignedAdvert,
    topic_of,
)
from p2pnode.protocols.adverts.signatures import parse, seal
from p2pnode.protocols.framing.codec import FrameDecoder, pack_frame
from p2pnode.protocols.gossipsub.commands import ACCEPT
from p2pnode.protocols.wire import encode
from tests.host.support import honest_answer
from tests.net.memory_world import seed_of
from tests.node.world import Member, World, identity_of, scripted_host, world

TOPIC = topic_of(scripted_model_id())


@contextlib.asynccontextmanager
async def _liar(w: World, target: Member) -> AsyncIterator[Network]:
    network = Network(
        NetworkConfig(
            key_seed=seed_of(600),
            listen=("/ip4/10.0.7.1/tcp/4001",),
            dht="off",
            transport=w.net.transport("10.0.7.1"),
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        await network.connect(target.node.multiaddrs[0])
        await network.subscribe(TOPIC, lambda _author, _data: ACCEPT)
        await trio.sleep(5)  # the mesh forms
        yield network
        await network.aclose()
        nursery.cancel_scope.cancel()


async def _pair(w: World) -> tuple[Member, Member]:
    first = await w.add([scripted_host(tokens_per_s=500)])
    second = await w.add([scripted_host(tokens_per_s=500)], bootstrap=first.node.multiaddrs[:1])
    await trio.sleep(10)
    return first, second


def _current(member: Member) -> SignedAdvert:
    publish = member.node.adverts.publisher.current
    assert publish is not None
    return publish.signed


def _resign(signed: SignedAdvert, index: int, **changes: object) -> SignedAdvert:
    """The same advert with changes, signed by the key of node ``index`` whoever it names."""
    return seal(replace(parse(signed), **changes), PeerKey(seed_of(index)).sign)  # type: ignore[arg-type]


async def test_forged_replayed_expired_and_oversized_adverts_change_nothing(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        first, second = await _pair(w)
        book = first.node.adverts.book
        truth = book.get(second.node.peer_id, wall_clock())
        assert truth is not None
        signed = _current(second)
        seq, now = parse(signed).seq, int(wall_clock())
        async with _liar(w, first) as liar:
            lies = {
                "forged": _resign(signed, 600, seq=seq + 1, draining=True),
                "stale": signed,
                "expired": _resign(signed, 1, seq=seq - 1, issued_at=now - 400, expires_at=now - 300),
                "future": _resign(signed, 1, seq=seq + 3, expires_at=now + 10**6),
            }
            for reason, lie in lies.items():
                before = book.counts[reason]
                await liar.publish(TOPIC, encode(lie))
                await trio.sleep(2)
                assert book.counts[reason] == before + 1, reason
            before = book.counts["malformed"]
            await liar.publish(TOPIC, b"\xc1" * 2000)
            await liar.publish(TOPIC, encode(signed)[:-9])
            await trio.sleep(2)
            assert book.counts["malformed"] == before + 2
            held = book.get(second.node.peer_id, wall_clock())
            assert held is not None
            assert held.advert.draining is False
            async with w.client(first.node.multiaddrs[:1]) as client:
                await honest_answer(client)


async def test_a_flood_of_adverts_of_made_up_hosts_is_bounded_and_hides_nobody(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        first, second = await _pair(w)
        book = first.node.adverts.book
        signed = _current(second)
        async with _liar(w, first) as liar:
            for number in range(300):
                sybil = identity_of(1000 + number, wall_clock())
                made_up = replace(
                    parse(signed), peer=sybil.key.peer_id, binding=sybil.binding, seq=number + 1
                )
                await liar.publish(TOPIC, encode(seal(made_up, sybil.key.sign)))
                if number % 50 == 0:
                    await trio.sleep(1)
            await trio.sleep(5)
            assert len(book) <= w.limits.book_max
            # The bucket of strangers, and the library's own cap per peer, have held most of them off.
            assert len(book) < 300
            # Hosts that were really dialled are all that counts in any case.
            assert book.population(wall_clock(), scripted_model_id()) <= 2
            assert second.node.adverts.book.get(first.node.peer_id, wall_clock()) is not None
            async with w.client(first.node.multiaddrs[:1]) as client:
                await honest_answer(client)


async def test_a_directory_answers_only_what_it_was_asked_and_survives_garbage(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        first, second = await _pair(w)
        async with _liar(w, first) as liar:

            async def ask(data: bytes) -> list[Adverts]:
                stream = await liar.open_stream(first.node.peer_id, PROTOCOL)
                await stream.send_all(data)
                decoder, answers = FrameDecoder(), []
                with trio.move_on_after(3), contextlib.suppress(Exception):
                    while piece := await stream.receive_some():
                        answers += [CODEC.decode(payload) for payload in decoder.feed(piece)]
                await stream.reset()
                return answers

            assert await ask(b"\xff" * 64) == []
            assert await ask(pack_frame(encode(Adverts(adverts=(_current(second),))))) == []
            (own,) = await ask(pack_frame(encode(GetAdvert(peer=first.node.peer_id))))
            assert parse(own.adverts[0]).peer == first.node.peer_id
            (none,) = await ask(pack_frame(encode(GetAdvert(peer=liar.peer_id))))
            assert none.adverts == ()
            (sample,) = await ask(pack_frame(encode(SampleAdverts(count=32))))
            assert {parse(each).peer for each in sample.adverts} == {first.node.peer_id, second.node.peer_id}


async def _meet_a_copy() -> None:
    async with world() as w:
        first, second = await _pair(w)
        await trio.sleep(150)  # what an earlier start signed by a clock that was ahead is no copy's
        current = parse(_current(first))
        copied = replace(current, instance=b"elsewher", seq=current.seq + 10, issued_at=int(wall_clock()))
        # The copy spoke to the second node, which tells the first when it asks who speaks as it.
        signed = seal(copied, first.node.key.sign)
        verdict, _ = second.node.adverts.book.offer(signed, second.node.peer_id, wall_clock(), asked=True)
        assert verdict == "accepted"
        await first.node.adverts.fetch(second.node.peer_id, first.node.peer_id)
        await trio.sleep(5)


async def test_a_live_advert_of_our_own_peer_id_from_elsewhere_stops_the_node(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await _meet_a_copy()
    error = first_of_kind(caught.value, ConfigError)
    assert "another node speaks as" in str(error)
    assert "--data-dir" in str(error)


_NO_ADDRESSES = (
    "/ip6zone/lo/ip6/::1/tcp/1",
    "/ip6zone/" + "x" * 60 + "/ip6/fe80::1/tcp/4001",
    "/unix/tmp/p2p.sock",
    "/dns4/" + "x" * 80 + "/tcp/1",
    "/ip4/10.0.0.1/tcp/4001/p2p/12D3KooW",
    "/garlic64/=",
    "/p2p/",
)


@pytest.mark.parametrize("address", _NO_ADDRESSES)
async def test_an_advert_whose_address_is_none_ends_no_node_that_reads_it_and_hides_no_host(
    autojump_clock: MockClock, address: str
) -> None:
    async with world() as w:
        first, second = await _pair(w)
        liar_key = PeerKey(seed_of(600))
        mine = identity_of(600, wall_clock())
        own = replace(
            parse(_current(second)),
            peer=liar_key.peer_id,
            binding=mine.binding,
            addresses=(Address(multiaddr=address), Address(multiaddr="/ip4/10.0.7.1/tcp/4001")),
        )
        async with _liar(w, first) as liar:
            await liar.publish(TOPIC, encode(seal(own, liar_key.sign)))
            await trio.sleep(60)  # several rounds in which both look for peers in their books
            for member in (first, second):
                assert member.node.adverts.book.get(liar_key.peer_id, wall_clock()) is not None
                assert member.node.network.statistics().tasks_failed == {}
            async with w.client(first.node.multiaddrs[:1]) as client:
                await honest_answer(client)  # it is offered the liar's advert too
                assert client.node.network.statistics().tasks_failed == {}


@pytest.mark.parametrize("address", [*_NO_ADDRESSES, "\x00"])
def test_an_invite_to_such_an_address_is_refused_in_words(address: str) -> None:
    body = f"{PeerKey(seed_of(600)).peer_id} {address}".encode()
    packed = base64.urlsafe_b64encode(hashlib.sha256(body).digest()[:4] + body).decode().rstrip("=")
    for text in (f"p2pnode1{packed}", f"{address}/p2p/{PeerKey(seed_of(600)).peer_id}"):
        with pytest.raises(ConfigError):
            read_bootstrap(text)
