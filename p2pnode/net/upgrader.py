"""From a bare connection to an encrypted, multiplexed one: Noise, then yamux, and nothing else.

A peer that offers plaintext, TLS or another muxer is refused by the negotiation itself. The handshake of
Noise is the library's; its packets, the negotiation and yamux are ours.
"""

from __future__ import annotations

from typing import Any, Final, cast

from libp2p.abc import IRawConnection, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport

from p2pnode.errors import ProtocolError, UnreachableError
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.multiaddrs import from_id
from p2pnode.net.negotiation import answer, propose
from p2pnode.net.noise import NoiseConn, Wire
from p2pnode.net.yamux import PROTOCOL as YAMUX
from p2pnode.net.yamux import Yamux

HANDSHAKE_MESSAGE_MAX: Final = 1280
"""Bytes of one message of the Noise handshake: room for the largest identity in use, an RSA key of 4,096
bits (1,169 bytes). To parse what fits takes 3 ms at most; one of 60 kB takes seconds, and that comes before
any signature is checked."""
OWN_STREAMS: Final = 32
"""Streams that gossip, the DHT, identify and ping may have open, besides the node's other protocols."""


class _Handshake(RawConnection):
    """A bare connection that refuses a handshake's message by its length, before its bytes have come."""

    async def read(self, n: int | None = None) -> bytes:
        if n is not None and n > HANDSHAKE_MESSAGE_MAX:
            msg = f"a message of {n} bytes in the Noise handshake; {HANDSHAKE_MESSAGE_MAX} are allowed"
            raise ProtocolError(msg)
        return await super().read(n)


class Upgrader:
    """Secures connections with one key."""

    def __init__(self, seed: bytes, limits: Limits) -> None:
        key_pair = create_new_key_pair(seed)
        self.public_key: bytes = key_pair.public_key.serialize()
        """As protocol buffers hold it."""
        self.private_key = key_pair.private_key
        self.peer = from_id(ID.from_pubkey(key_pair.public_key))
        self._noise = NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)
        self._limits = limits

    async def upgrade_outbound(self, raw: IRawConnection, peer: PeerId) -> Yamux:
        """Secure a connection that we dialled. Raises ``UnreachableError`` when another peer answers."""
        wire = raw.stream if isinstance(raw, RawConnection) else cast("ReadWriteCloser", raw)
        bare = _Handshake(wire, True)
        await propose(bare, [NOISE])
        # Checked here, because the library's own check doesn't say which peer answered.
        nobody = cast("ID", None)
        secured = await self._noise.secure_outbound(bare, nobody)
        actual = from_id(secured.get_remote_peer())
        if actual != peer:
            raise UnreachableError(
                f"peer id mismatch: expected {peer}, but {actual} answers there. "
                "The address belongs to another node now; ask for a fresh multiaddr."
            )
        conn = _packets(wire, secured)
        await propose(conn, [YAMUX])
        return self._multiplexed(conn, peer, is_initiator=True)

    async def upgrade_inbound(self, wire: ReadWriteCloser) -> Yamux:
        """Secure a connection that was accepted, from whichever peer it comes."""
        bare = _Handshake(wire, False)
        await answer(bare, [NOISE])
        secured = await self._noise.secure_inbound(bare)
        conn = _packets(wire, secured)
        await answer(conn, [YAMUX])
        return self._multiplexed(conn, from_id(secured.get_remote_peer()), is_initiator=False)

    def _multiplexed(self, conn: NoiseConn, peer: PeerId, *, is_initiator: bool) -> Yamux:
        return Yamux(
            conn,
            peer,
            is_initiator=is_initiator,
            streams_inbound_max=self._limits.streams_per_peer + OWN_STREAMS,
            window_max=self._limits.stream_window_bytes,
        )


def _packets(wire: ReadWriteCloser, secured: ISecureConn) -> NoiseConn:
    """What follows the handshake. The library read that to its last byte, and nothing beyond."""
    state = cast("Any", secured).conn.noise_state.noise_protocol
    ours = cast("Wire", wire)  # TCP, WebSocket or memory
    return NoiseConn(ours, sends=state.cipher_state_encrypt.k, receives=state.cipher_state_decrypt.k)
