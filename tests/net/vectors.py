"""The vectors of ``protocols/transport``. Keys are known bytes and guard nothing."""

from __future__ import annotations

import warnings
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import X25519PrivateKey as LibraryX25519
from libp2p.security.noise.messages import NoiseHandshakePayload, make_handshake_payload_sig
from libp2p.utils.varint import encode_delim
from multiaddr import Multiaddr
from noise.connection import Keypair, NoiseConnection

from p2pnode.ids import ModelId, PeerId
from p2pnode.net import yamux
from p2pnode.node.invite import make_invite
from p2pnode.protocols.adverts.messages import topic_of
from p2pnode.protocols.crypto import peer_id_of

SECRETS: Final = {"dialler": bytes(range(32)), "listener": b"\x05" * 32}
STATIC: Final = {"dialler": b"\x0a" * 32, "listener": b"\x0b" * 32}
EPHEMERAL: Final = {"dialler": b"\x0c" * 32, "listener": b"\x0d" * 32}
NOISE_NAME: Final = b"Noise_XX_25519_ChaChaPoly_SHA256"
HOST_ADDRESSES: Final = (
    "/ip4/192.0.2.7/tcp/4001",
    "/ip6/2001:db8::7/tcp/4001",
    "/dns4/host.example/tcp/443/ws",
    "/ip4/127.0.0.1/tcp/4001",
)
REFUSED_ADDRESSES: Final = {
    "no such part": "/ip4/192.0.2.7/foo/4001",
    "UDP": "/ip4/192.0.2.7/udp/4001/quic-v1",
    "TLS": "/dns4/host.example/tcp/443/wss",
    "a port beyond 65535": "/ip4/192.0.2.7/tcp/65536",
    "no host": "/tcp/4001",
    "no IPv4 address": "/ip4/192.0.2/tcp/4001",
}
LINES: Final = ("/multistream/1.0.0", "/noise", "/yamux/1.0.0", "na", "/p2pnode/inference/1")


def peer_of(secret: bytes) -> PeerId:
    """The peer id of a 32-byte secret."""
    return peer_id_of(Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())


def transport_vectors() -> dict[str, Any]:
    """Every form of ``protocols/transport/SPEC.md`` whose bytes are fixed."""
    peer = peer_of(SECRETS["dialler"])
    whole = [f"{address}/p2p/{peer}" for address in HOST_ADDRESSES]
    return {
        "keys": [_key(secret) for secret in SECRETS.values()],
        "multiaddrs": [
            {"text": text, "hex": Multiaddr(text).to_bytes().hex()} for text in (*HOST_ADDRESSES, whole[0])
        ],
        "refused_multiaddrs": [{"name": name, "text": text} for name, text in REFUSED_ADDRESSES.items()],
        "invites": [
            {"addresses": whole[:3], "invite": make_invite(whole)},
            {"addresses": whole[3:], "invite": make_invite(whole[3:])},
        ],
        "refused_invites": [
            {"name": "one character changed", "invite": make_invite(whole)[:-1] + "A"},
            {"name": "the last character lost", "invite": make_invite(whole)[:-1]},
        ],
        "lines": [{"text": text, "hex": encode_delim(text.encode()).hex()} for text in LINES],
        "noise": _noise(),
        "yamux": _yamux(),
        "topics": [{"model": "11" * 32, "topic": topic_of(ModelId(bytes.fromhex("11" * 32)))}],
    }


def _key(secret: bytes) -> dict[str, str]:
    public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    pair = create_new_key_pair(secret)
    return {
        "secret": secret.hex(),
        "public": public.hex(),
        "public_protobuf": pair.public_key.serialize().hex(),
        "peer_id": f"0024{pair.public_key.serialize().hex()}",
        "peer": peer_id_of(public),
    }


# ---- Noise


def noise_side(side: str) -> NoiseConnection:
    """One side of a handshake with fixed keys."""
    state = NoiseConnection.from_name(NOISE_NAME)
    state.set_keypair_from_private_bytes(Keypair.STATIC, STATIC[side])
    state.set_keypair_from_private_bytes(Keypair.EPHEMERAL, EPHEMERAL[side])
    (state.set_as_initiator if side == "dialler" else state.set_as_responder)()
    with warnings.catch_warnings(action="ignore"):  # that ephemeral keys are never known but in tests
        state.start_handshake()
    return state


def noise_payload(side: str) -> bytes:
    """What one side says of itself inside the handshake."""
    pair: KeyPair = create_new_key_pair(SECRETS[side])
    static = LibraryX25519.from_bytes(STATIC[side]).get_public_key()
    signature = make_handshake_payload_sig(pair.private_key, static)
    return NoiseHandshakePayload(pair.public_key, signature).serialize()


def framed(message: bytes) -> bytes:
    """A Noise message as it travels."""
    return len(message).to_bytes(2, "big") + message


def _noise() -> dict[str, Any]:
    dialler, listener = noise_side("dialler"), noise_side("listener")
    said: list[dict[str, str]] = []
    for sender, reader, side in ((dialler, listener, "dialler"), (listener, dialler, "listener")) * 2:
        if len(said) == 3:
            break
        payload = noise_payload(side) if said else b""
        message = bytes(sender.write_message(payload))
        assert bytes(reader.read_message(message)) == payload
        said.append({"from": side, "payload": payload.hex(), "bytes": framed(message).hex()})
    after = []
    for sender, side, text in ((dialler, "dialler", b"hello"), (listener, "listener", b"hello, too")):
        after.append({"from": side, "text": text.hex(), "bytes": framed(sender.encrypt(text)).hex()})
    return {
        "static_secrets": {side: secret.hex() for side, secret in STATIC.items()},
        "static_publics": {
            side: X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex()
            for side, secret in STATIC.items()
        },
        "ephemeral_secrets": {side: secret.hex() for side, secret in EPHEMERAL.items()},
        "peers": {side: peer_of(secret) for side, secret in SECRETS.items()},
        "handshake": said,
        "after": after,
    }


# ---- yamux

_HELLO: Final = b"hello"
_DATA = yamux.frame(yamux.DATA, 0, 1, len(_HELLO)) + _HELLO
_OPEN = yamux.frame(yamux.WINDOW_UPDATE, yamux.SYN, 1, 0)
_OPENED = yamux.frame(yamux.WINDOW_UPDATE, yamux.ACK, 1, 0)
_BREACH = yamux.frame(yamux.GO_AWAY, 0, 0, yamux.GO_AWAY_PROTOCOL_ERROR)
STREAMS_MAX: Final = 64
EXCHANGES: Final[dict[str, tuple[bytes, bytes]]] = {
    "a stream is opened": (_OPEN, _OPENED),
    "a stream is opened by its first data": (
        yamux.frame(yamux.DATA, yamux.SYN, 1, len(_HELLO)) + _HELLO,
        _OPENED,
    ),
    "a ping": (yamux.frame(yamux.PING, yamux.SYN, 0, 77), yamux.frame(yamux.PING, yamux.ACK, 0, 77)),
    "frames of a stream that is not open": (
        yamux.frame(yamux.DATA, 0, 9, len(_HELLO)) + _HELLO + yamux.frame(yamux.WINDOW_UPDATE, 0, 9, 1),
        b"",
    ),
    "one stream more than are taken": (
        b"".join(yamux.frame(yamux.WINDOW_UPDATE, yamux.SYN, 2 * n + 1, 0) for n in range(STREAMS_MAX + 1)),
        b"".join(yamux.frame(yamux.WINDOW_UPDATE, yamux.ACK, 2 * n + 1, 0) for n in range(STREAMS_MAX))
        + yamux.frame(yamux.WINDOW_UPDATE, yamux.RST, 2 * STREAMS_MAX + 1, 0),
    ),
    "another version": (b"\x01" + bytes(11), _BREACH),
    "an unknown type": (yamux.frame(4, 0, 0, 0), _BREACH),
    "a stream that is open already": (_OPEN + _OPEN, _OPENED + _BREACH),
    "a stream with a number of the listener's": (
        yamux.frame(yamux.WINDOW_UPDATE, yamux.SYN, 2, 0),
        _BREACH,
    ),
    "data beyond the window": (
        _OPEN + yamux.frame(yamux.DATA, 0, 1, yamux.WINDOW_INITIAL + 1),
        _OPENED + _BREACH,
    ),
    "credit beyond 32 bits": (
        _OPEN + yamux.frame(yamux.WINDOW_UPDATE, 0, 1, yamux.WINDOW_LIMIT),
        _OPENED + _BREACH,
    ),
}
"""What a dialler sends, and what a listener answers that has opened no stream itself."""


def _yamux() -> dict[str, Any]:
    said = {
        "open stream 1": _OPEN,
        "take stream 1": _OPENED,
        "five bytes on stream 1": _DATA,
        "131072 bytes of credit for stream 1": yamux.frame(yamux.WINDOW_UPDATE, 0, 1, 131_072),
        "finish stream 1": yamux.frame(yamux.WINDOW_UPDATE, yamux.FIN, 1, 0),
        "reset stream 1": yamux.frame(yamux.WINDOW_UPDATE, yamux.RST, 1, 0),
        "goodbye": yamux.frame(yamux.GO_AWAY, 0, 0, yamux.GO_AWAY_NORMAL),
    }
    return {
        "frames": [{"name": name, "hex": data.hex()} for name, data in said.items()],
        "exchanges": [
            {"name": name, "dialler": sent.hex(), "listener": answer.hex()}
            for name, (sent, answer) in EXCHANGES.items()
        ],
    }
