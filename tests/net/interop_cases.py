"""What any other implementation must be able to do with us, and we with it; each over one open connection."""

from __future__ import annotations

import pytest
import trio

from p2pnode.errors import UnreachableError
from p2pnode.ids import PeerId
from p2pnode.protocols.gossipsub.commands import ACCEPT, IGNORE, Verdict
from p2pnode.protocols.kademlia.messages import STANDARD_PROTOCOL, record_key
from tests.net.foreign import ECHO, HOLD, PING, SUM, Foreign, Ours, echo_to, pattern, read_all, sha256
from tests.net.support import eventually

TOPIC = "interop"
DHT_PROTOCOL = STANDARD_PROTOCOL
MEGABYTE = 1 << 20


async def connect(ours: Ours, other: Foreign, transport: str, dialler: str) -> None:
    """One side dials the other over one transport."""
    if dialler == "ours":
        assert await ours.network.connect(other.address(transport)) == other.peer_id
    else:
        await other.call("dial", addr=ours.address(transport))
    await eventually(lambda: ours.network.is_connected(other.peer_id))


async def check_echo(ours: Ours, other: Foreign, size: int, pause_s: float = 0) -> None:
    """``size`` bytes there and back, both ways; a reader that pauses is waited for, not cut off."""
    wanted = sha256(pattern(size))
    me = ours.network.peer_id
    with trio.fail_after(40):
        assert await echo_to(ours.network, other.peer_id, size, pause_s) == wanted
    answer = await other.call("echo", 40, peer=me, size=size, pause_s=pause_s)
    assert answer == {"received": size, "sha256": wanted}


async def check_half_close(ours: Ours, other: Foreign) -> None:
    """A side that has finished writing still reads the answer."""
    wanted = sha256(pattern(100_000))
    with trio.fail_after(20):
        stream = await ours.network.open_stream(other.peer_id, SUM)
        await stream.send_all(pattern(100_000))
        await stream.send_eof()
        assert (await read_all(stream)).decode() == wanted
        await stream.aclose()
    assert await other.call("sum", peer=ours.network.peer_id, size=100_000) == wanted


async def check_reset(ours: Ours, other: Foreign, *, seen_as: tuple[str, ...] = ("reset",)) -> None:
    """A reset arrives as a reset, and the connection stays open."""
    with trio.fail_after(20):
        stream = await ours.network.open_stream(other.peer_id, HOLD)
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        await stream.reset()
        await other.until("outcomes", lambda outcomes: len(outcomes) == 1 and outcomes[0] in seen_as)
        await other.call("reset", peer=ours.network.peer_id)
        await eventually(lambda: ours.outcomes == ["reset"])
    await check_echo(ours, other, 1)


async def check_many(ours: Ours, other: Foreign, n: int) -> None:
    """``n`` streams at once, both ways."""
    answers: list[str] = []

    async def one() -> None:
        answers.append(await echo_to(ours.network, other.peer_id, 10_000))

    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for _ in range(n):
                nursery.start_soon(one)
    assert answers == [sha256(pattern(10_000))] * n
    assert await other.call("many", 40, peer=ours.network.peer_id, n=n, size=10_000) == n


async def check_ping(ours: Ours, other: Foreign) -> None:
    """The standard ping, both ways."""
    assert await other.call("ping", peer=ours.network.peer_id)
    with trio.fail_after(10):
        stream = await ours.network.open_stream(other.peer_id, PING)
        for i in range(3):
            await stream.send_all(bytes([i]) * 32)
            got = b""
            while len(got) < 32:
                got += await stream.receive_some()
            assert got == bytes([i]) * 32
        await stream.aclose()


async def check_unknown_protocol(ours: Ours, other: Foreign) -> None:
    """A protocol that the other side doesn't speak is refused, and the connection stays open."""
    with pytest.raises(UnreachableError, match="doesn't speak /p2pnode/inference/1"):
        await ours.network.open_stream(other.peer_id, "/p2pnode/inference/1")
    await check_echo(ours, other, 1)


async def check_identify(ours: Ours, other: Foreign) -> None:
    """Each side learns the other's protocols and listen addresses, whoever dialled."""
    me = ours.network.peer_id
    seen = await other.until("identified", lambda found: ECHO in found["protocols"], peer=me)
    assert PING in seen["protocols"]
    theirs = {address.split("/p2p/")[0] for address in seen["addrs"]}
    assert {address.split("/p2p/")[0] for address in ours.network.multiaddrs} <= theirs
    wanted = {address.split("/p2p/")[0] for address in other.addrs}
    await eventually(
        lambda: wanted <= {a.split("/p2p/")[0] for a in ours.network.addresses_of(other.peer_id)}
    )


async def check_gossip(ours: Ours, other: Foreign) -> None:
    """Signed messages pass both ways; what a validator refuses passes neither way."""
    network = ours.network
    seen: list[tuple[PeerId, bytes]] = []

    def validate(author: PeerId, data: bytes) -> Verdict:
        seen.append((author, data))
        return IGNORE if data.startswith(b"bad") else ACCEPT

    with trio.fail_after(30):
        await other.call("subscribe", topic=TOPIC)
        subscription = await network.subscribe(TOPIC, validate)
        await eventually(lambda: network.topic_peers(TOPIC) == (other.peer_id,))
        await other.until("mesh", lambda mesh: network.peer_id in mesh, topic=TOPIC)
        for data in ("bad one", "hello from there"):
            await other.call("publish", topic=TOPIC, data=data)
        assert await anext(subscription) == (other.peer_id, b"hello from there")
        assert {author for author, _ in seen} == {other.peer_id}
        before = len(await other.call("messages"))
        await network.publish(TOPIC, b"hello from here")
        messages = await other.until("messages", lambda found: len(found) > before)
        assert messages[before:] == [[network.peer_id, "hello from here"]]


async def check_dht(ours: Ours, other: Foreign) -> None:
    """A record that one side provides, the other finds with addresses to dial; and an unknown key nothing."""
    network = ours.network
    here, there, nowhere = (bytes([i]) * 32 for i in (1, 2, 3))
    with trio.fail_after(40):
        await eventually(lambda: network.statistics().dht_peers == 1)
        assert await network.provide(here)
        found = await other.until("find", bool, peer=network.peer_id, key=record_key(here).hex())
        assert [entry["peer"] for entry in found] == [network.peer_id]
        assert any("/tcp/" in address for address in found[0]["addrs"])
        await other.call("provide", peer=network.peer_id, key=record_key(there).hex())
        [entry] = await network.find_providers(there, limit=1)
        assert entry.peer == other.peer_id
        assert any("/tcp/" in address for address in entry.addrs)
        assert await network.find_providers(nowhere, limit=1) == []
