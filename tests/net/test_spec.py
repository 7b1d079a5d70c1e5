"""``protocols/transport/SPEC.md`` says what the code does: its vectors, its numbers, its names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import X25519PublicKey
from libp2p.peer.id import ID
from libp2p.security.noise.messages import NoiseHandshakePayload, verify_handshake_payload_sig
from multiaddr import Multiaddr

from p2pnode.errors import ConfigError
from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.net import conduct, multiaddrs, negotiation, network, swarm, transports, upgrader, yamux
from p2pnode.net.multiaddrs import check_address
from p2pnode.node import invite
from p2pnode.protocols.crypto import public_key_of
from p2pnode.protocols.kademlia.messages import record_key
from p2pnode.shares import origin_of
from tests.net.support import Wire
from tests.net.vectors import noise_side
from tests.protocols.test_spec import numbers_of, rows, spec

VECTORS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "protocols" / "transport" / "vectors.json").read_text(encoding="utf-8")
)


# ---- names


@pytest.mark.parametrize("key", VECTORS["keys"], ids=lambda key: key["peer"])
def test_a_key_has_one_peer_id(key: dict[str, str]) -> None:
    pair = create_new_key_pair(bytes.fromhex(key["secret"]))
    assert pair.public_key.serialize().hex() == key["public_protobuf"]
    assert ID.from_pubkey(pair.public_key).to_bytes().hex() == key["peer_id"]
    assert ID.from_pubkey(pair.public_key).to_base58() == key["peer"]
    assert public_key_of(key["peer"]).hex() == key["public"]
    assert (len(bytes.fromhex(key["peer_id"])), len(key["peer"]), key["peer"][:8]) == (38, 52, "12D3KooW")


@pytest.mark.parametrize("each", VECTORS["multiaddrs"], ids=lambda each: each["text"])
def test_a_multiaddr_has_one_form_in_bytes(each: dict[str, str]) -> None:
    assert Multiaddr(each["text"]).to_bytes().hex() == each["hex"]
    assert str(Multiaddr(bytes.fromhex(each["hex"]))) == each["text"]
    check_address(each["text"].split("/p2p/")[0])


@pytest.mark.parametrize("each", VECTORS["refused_multiaddrs"], ids=lambda each: each["name"])
def test_an_address_of_another_kind_is_refused(each: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        check_address(each["text"])


@pytest.mark.parametrize("each", VECTORS["invites"], ids=["far", "loopback alone"])
def test_an_invite_holds_the_addresses_that_the_file_says(each: dict[str, Any]) -> None:
    assert invite.read_bootstrap(each["invite"]) == tuple(each["addresses"])
    assert invite.make_invite(each["addresses"]) == each["invite"]


@pytest.mark.parametrize("each", VECTORS["refused_invites"], ids=lambda each: each["name"])
def test_a_damaged_invite_is_refused(each: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        invite.read_bootstrap(each["invite"])


def test_a_key_of_the_dht_is_a_multihash_of_34_bytes() -> None:
    assert record_key(bytes(32)) == b"\x12\x20" + bytes(32)


# ---- multistream-select

LINES: Final = {each["text"]: bytes.fromhex(each["hex"]) for each in VECTORS["lines"]}
HEADER: Final = LINES[negotiation.MULTISTREAM]
PROPOSED: Final = [text for text in LINES if text not in (negotiation.MULTISTREAM, negotiation.NOT_SPOKEN)]


class _Said:
    """A stream on which the other side has said everything already."""

    def __init__(self, data: bytes) -> None:
        self._data, self.sent = data, b""

    async def read(self, n: int | None = None, /) -> bytes:
        taken, self._data = self._data[:n], self._data[len(self._data[:n]) :]
        return taken

    async def write(self, data: bytes, /) -> None:
        self.sent += data


@pytest.mark.parametrize("protocol", PROPOSED)
async def test_a_protocol_is_agreed_in_these_lines(protocol: str) -> None:
    dialler = _Said(HEADER + LINES[protocol])
    assert await negotiation.propose(dialler, [protocol]) == protocol
    assert dialler.sent == HEADER + LINES[protocol]
    others = b"".join(LINES[text] for text in PROPOSED if text != protocol)
    listener = _Said(HEADER + others + LINES[protocol])
    assert await negotiation.answer(listener, {protocol}) == protocol
    refused = LINES[negotiation.NOT_SPOKEN] * (len(PROPOSED) - 1)
    assert listener.sent == HEADER + refused + LINES[protocol]


# ---- Noise


def test_the_handshake_runs_as_in_the_file() -> None:
    told = VECTORS["noise"]
    sides = {"dialler": noise_side("dialler"), "listener": noise_side("listener")}
    for step in told["handshake"]:
        sender = sides[step["from"]]
        reader = sides["listener" if step["from"] == "dialler" else "dialler"]
        message = bytes(sender.write_message(bytes.fromhex(step["payload"])))
        assert step["bytes"] == (len(message).to_bytes(2, "big") + message).hex()
        assert bytes(reader.read_message(message)).hex() == step["payload"]
    for step in told["after"]:
        message = sides[step["from"]].encrypt(bytes.fromhex(step["text"]))
        assert step["bytes"] == (len(message).to_bytes(2, "big") + message).hex()


@pytest.mark.parametrize(("index", "side"), [(1, "listener"), (2, "dialler")])
def test_the_payload_proves_whose_static_key_it_is(index: int, side: str) -> None:
    told = VECTORS["noise"]
    payload = NoiseHandshakePayload.deserialize(bytes.fromhex(told["handshake"][index]["payload"]))
    static = X25519PublicKey.from_bytes(bytes.fromhex(told["static_publics"][side]))
    assert verify_handshake_payload_sig(payload, static)
    assert ID.from_pubkey(payload.id_pubkey).to_base58() == told["peers"][side]
    other = "dialler" if side == "listener" else "listener"
    stranger = X25519PublicKey.from_bytes(bytes.fromhex(told["static_publics"][other]))
    assert not verify_handshake_payload_sig(payload, stranger)


# ---- yamux


@pytest.mark.parametrize("each", VECTORS["yamux"]["exchanges"], ids=lambda each: each["name"])
async def test_a_listener_answers_as_the_file_says(each: dict[str, str], autojump_clock: object) -> None:
    wire, answer = Wire(), bytes.fromhex(each["listener"])
    conn = yamux.Yamux(
        wire,
        PeerId("dialler"),
        is_initiator=False,
        streams_inbound_max=DEFAULT_LIMITS.streams_per_peer + upgrader.OWN_STREAMS,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.start)
        wire.say(bytes.fromhex(each["dialler"]))
        await trio.sleep(1)
        assert wire.sent == answer
        broken = answer.endswith(yamux.frame(yamux.GO_AWAY, 0, 0, yamux.GO_AWAY_PROTOCOL_ERROR))
        assert conn.is_closed == broken
        await conn.close()


# ---- numbers

NUMBERS: Final[dict[str, list[float]]] = {
    "a multiaddr as text": [multiaddrs.MULTIADDR_MAX],
    "an invite after its prefix": [2048],
    "addresses in an invite": [4],
    "a line of multistream-select": [negotiation.LINE_MAX],
    "protocols that may be proposed in vain, one after another": [negotiation.PROPOSALS_MAX],
    "a WebSocket message": [transports.MESSAGE_MAX_BYTES],
    "a message of the Noise handshake": [upgrader.HANDSHAKE_MESSAGE_MAX],
    "the plaintext of a Noise message": [yamux.PACKET_MAX_BYTES],
    "the body of a data frame that is sent": [yamux.FRAME_BODY_MAX],
    "credit of a new stream": [yamux.WINDOW_INITIAL],
    "the window of a stream, at most": [DEFAULT_LIMITS.stream_window_bytes],
    "credit in all": [yamux.WINDOW_LIMIT],
    "streams of a connection that the peer opened": [DEFAULT_LIMITS.streams_per_peer + upgrader.OWN_STREAMS],
    "streams of a connection that we opened": [yamux.OUTBOUND_STREAMS_MAX],
    "what is queued for a peer that doesn't read": [yamux.HEADERS_MAX_BYTES],
    "streams of a connection that are served, at once and in each second after": [
        swarm.STREAMS_BURST,
        swarm.STREAMS_PER_S,
    ],
    "pings of a stream that are answered, at once and in each second after": [
        network.PINGS_BURST,
        network.PINGS_PER_S,
    ],
    "connections with one peer": [swarm.CONNECTIONS_PER_PEER],
}
TIMES: Final = {
    "handshake": [DEFAULT_LIMITS.handshake_deadline_s],
    "dial": [DEFAULT_LIMITS.dial_deadline_s],
    "stream": [DEFAULT_LIMITS.stream_open_deadline_s],
    "keepalive": [yamux.KEEPALIVE_S],
    "idle": [DEFAULT_LIMITS.connection_idle_s],
    "abandoned": [yamux.ABANDONED_S],
}


@pytest.mark.parametrize(("part", "wanted"), [("Limits", NUMBERS), ("Timers", TIMES)])
def test_the_numbers_are_those_of_the_code(part: str, wanted: dict[str, list[float]]) -> None:
    text = spec("transport").split(f"## {part}\n")[1].split("\n## ")[0]
    found = {row[0]: numbers_of(row[1]) for row in rows(text)}
    assert {name: stated for name, stated in found.items() if stated} == wanted


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("8.8.8.1", "8.8.8.254", True),
        ("8.8.8.1", "8.8.9.1", False),
        ("2600:1f00:1:2::1", "2600:1f00:1:ffff::1", True),
        ("2600:1f00:1::1", "2600:1f00:2::1", False),
        ("192.168.1.5", "192.168.1.5", False),
        ("127.0.0.1", "127.0.0.1", False),
        ("100.64.0.1", "100.64.0.1", False),
    ],
)
def test_an_origin_is_what_the_spec_says(one: str, other: str, same: bool) -> None:
    assert "**Origins.**" in spec("transport")
    first, second = origin_of(one, PeerId("a")), origin_of(other, PeerId("b"))
    assert (first == second) is same
    if one.startswith("2600"):
        assert first.wide == second.wide


def test_what_faults_lead_to_is_what_the_spec_says() -> None:
    text = " ".join(spec("transport").split("**Conduct.**")[1].split("## Timers")[0].split())
    for stated in (
        f"in sums that halve in {conduct.HALF_LIFE_S:g} s",
        f"From a sum of {conduct.SLOW_AT:g} on it reads nothing from that peer for {conduct.SLOW_S:g} s",
        f"From {conduct.LEAVE_AT:g} on",
        f"or from {conduct.SLOW_AT:g} where the sum of its origin is {conduct.ORIGIN_AT:g}",
        f"refuses it for {conduct.REFUSED_S:g} s",
    ):
        assert stated in text


def test_an_invite_is_bounded_as_the_spec_says() -> None:
    [one] = VECTORS["invites"][1:]
    peer = one["addresses"][0].split("/p2p/")[1]
    many = [f"/ip4/192.0.2.{n}/tcp/4001/p2p/{peer}" for n in range(1, 9)]
    assert len(invite.read_bootstrap(invite.make_invite(many))) == NUMBERS["addresses in an invite"][0]
    with pytest.raises(ConfigError, match="damaged"):
        invite.read_bootstrap("p2pnode1" + "A" * (int(NUMBERS["an invite after its prefix"][0]) + 1))
