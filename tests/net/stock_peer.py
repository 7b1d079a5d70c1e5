"""The library as it comes, in a process of its own: a host that carries out commands from standard input.

Both sides write one JSON object per line; ``foreign.py`` is the other end. This file imports nothing of ours,
so that no patch of ours can reach it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from typing import Any

import trio
from libp2p import create_yamux_muxer_option, new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.ping import PingService
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

ECHO, SUM, HOLD = (TProtocol(f"/interop/{name}/1") for name in ("echo", "sum", "hold"))
CHUNK = 65536


class Peer:
    """The host, and what it was asked to remember. A method ``do_x`` is the command ``x``."""

    def __init__(self, listen: list[str], seed: str) -> None:
        pair = create_new_key_pair(hashlib.sha256(seed.encode()).digest())
        self.listen = [Multiaddr(address) for address in listen]
        self.host = new_host(
            key_pair=pair,
            sec_opt={NOISE: NoiseTransport(pair, noise_privkey=create_noise_key_pair().private_key)},
            muxer_opt=create_yamux_muxer_option(),
            listen_addrs=self.listen,
            enable_websocket=True,
        )
        self.router = GossipSub(
            protocols=[TProtocol("/meshsub/1.1.0")],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
        )
        self.pubsub = Pubsub(self.host, self.router, strict_signing=True)
        self.dht = KadDHT(self.host, DHTMode.SERVER, max_peers_per_subnet=0)
        self.ping = PingService(self.host)
        self.outcomes: list[str] = []
        self.messages: list[list[str]] = []
        self.host.set_stream_handler(ECHO, self.on_echo)
        self.host.set_stream_handler(SUM, self.on_sum)
        self.host.set_stream_handler(HOLD, self.on_hold)

    async def on_echo(self, stream: INetStream) -> None:
        with contextlib.suppress(StreamEOF, StreamReset):
            while data := await stream.read(CHUNK):
                await stream.write(data)
        await stream.close()

    async def on_sum(self, stream: INetStream) -> None:
        digest = hashlib.sha256()
        with contextlib.suppress(StreamEOF):
            while data := await stream.read(CHUNK):
                digest.update(data)
        await stream.write(digest.hexdigest().encode())
        await stream.close()

    async def on_hold(self, stream: INetStream) -> None:
        try:
            while data := await stream.read(CHUNK):
                await stream.write(data)
            self.outcomes.append("end")
        except StreamEOF:
            self.outcomes.append("end")
        except StreamReset:
            self.outcomes.append("reset")

    async def do_dial(self, addr: str) -> None:
        await self.host.connect(info_from_p2p_addr(Multiaddr(addr)))

    async def do_echo(self, peer: str, size: int, pause_s: float = 0) -> dict[str, Any]:
        stream = await self.host.new_stream(ID.from_base58(peer), [ECHO])
        digest, received = hashlib.sha256(), 0

        async def send() -> None:
            data = pattern(size)
            for at in range(0, size, CHUNK):
                await stream.write(data[at : at + CHUNK])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while received < size:
                data = await stream.read(CHUNK)
                received += len(data)
                digest.update(data)
                await trio.sleep(pause_s)
        await stream.close()
        return {"received": received, "sha256": digest.hexdigest()}

    async def do_sum(self, peer: str, size: int) -> str:
        stream: Any = await self.host.new_stream(ID.from_base58(peer), [SUM])
        await stream.write(pattern(size))
        await stream.close_write()
        answer = b""
        with contextlib.suppress(StreamEOF):
            while data := await stream.read(CHUNK):
                answer += data
        return answer.decode()

    async def do_reset(self, peer: str) -> None:
        stream = await self.host.new_stream(ID.from_base58(peer), [HOLD])
        await stream.write(b"x")
        await stream.read(1)
        await stream.reset()

    async def do_many(self, peer: str, n: int, size: int) -> int:
        right = 0

        async def one() -> None:
            nonlocal right
            answer = await self.do_echo(peer, size)
            right += answer["sha256"] == hashlib.sha256(pattern(size)).hexdigest()

        async with trio.open_nursery() as nursery:
            for _ in range(n):
                nursery.start_soon(one)
        return right

    async def do_ping(self, peer: str) -> int:
        return len([rtt async for rtt in self.ping.ping_iter(ID.from_base58(peer), 3)])

    async def do_identified(self, peer: str) -> dict[str, Any]:
        store, peer_id = self.host.get_peerstore(), ID.from_base58(peer)
        if peer_id not in store.peer_ids():
            return {"protocols": [], "addrs": []}
        return {
            "protocols": [str(each) for each in store.get_protocols(peer_id)],
            "addrs": [str(address) for address in store.addrs(peer_id)],
        }

    async def do_outcomes(self) -> list[str]:
        return self.outcomes

    async def do_subscribe(self, topic: str) -> None:
        self.pubsub.set_topic_validator(topic, lambda _, message: not message.data.startswith(b"bad"), False)
        subscription = await self.pubsub.subscribe(topic)
        self.nursery.start_soon(self._collect, subscription)

    async def _collect(self, subscription: Any) -> None:
        while True:
            message = await subscription.get()
            self.messages.append([ID(message.from_id).to_base58(), message.data.decode()])

    async def do_publish(self, topic: str, data: str) -> None:
        await self.pubsub.publish(topic, data.encode())

    async def do_messages(self) -> list[list[str]]:
        return self.messages

    async def do_mesh(self, topic: str) -> list[str]:
        return [peer.to_base58() for peer in self.router.mesh.get(topic, ())]

    async def do_provide(self, peer: str, key: str) -> bool:
        await self.dht.add_peer(ID.from_base58(peer))
        return await self.dht.provide(key)

    async def do_find(self, peer: str, key: str) -> list[dict[str, Any]]:
        await self.dht.add_peer(ID.from_base58(peer))
        found = await self.dht.find_providers(key)
        return [{"peer": f.peer_id.to_base58(), "addrs": [str(a) for a in f.addrs]} for f in found]

    async def run(self) -> None:
        async with (
            self.host.run(self.listen),
            background_trio_service(self.pubsub),
            background_trio_service(self.router),
            background_trio_service(self.dht),
            trio.open_nursery() as nursery,
        ):
            self.nursery = nursery
            await self.pubsub.wait_until_ready()
            addrs = [str(address) for address in self.host.get_addrs()]
            say({"ready": {"peer_id": self.host.get_id().to_base58(), "addrs": addrs}})
            stdin = trio.wrap_file(sys.stdin)
            async for line in stdin:
                nursery.start_soon(self.answer, json.loads(line))
            nursery.cancel_scope.cancel()

    async def answer(self, command: dict[str, Any]) -> None:
        number, name = command.pop("id"), command.pop("do")
        try:
            say({"id": number, "result": await getattr(self, f"do_{name}")(**command)})
        except Exception as error:  # noqa: BLE001  told to the test
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            say({"id": number, "error": f"{type(error).__name__}: {error}"})


def pattern(size: int) -> bytes:
    """Bytes that repeat out of step with any buffer."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def say(value: dict[str, Any]) -> None:
    """Write one line for the test."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(BaseExceptionGroup):
        trio.run(Peer(sys.argv[2:], sys.argv[1]).run)
